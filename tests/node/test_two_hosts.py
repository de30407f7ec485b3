"""Two hosts with one store: each makes, keeps and removes what is its own, and nothing of the
other's.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hosts import Through
from virtuary.actions import networks, vms
from virtuary.actions.context import Context
from virtuary.base.errors import NotFound, VirtuaryError
from virtuary.base.paths import Paths
from virtuary.base.units import GIB, MIB
from virtuary.model.deeds import Start
from virtuary.model.host import Host, HostStatus
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta, utcnow
from virtuary.model.network import Network, NetworkWish, NicWish
from virtuary.model.operation import Operation, OperationSpec, OperationStatus
from virtuary.model.policy import Policy
from virtuary.model.template import Template, TemplateSpec, TemplateStatus
from virtuary.model.vm import Vm, VmSpec, VmWish
from virtuary.model.volume import Volume, VolumeSpec
from virtuary.node import housekeeping, turns
from virtuary.node.copies.steps import drop_layers
from virtuary.node.making.images import ImageWorker
from virtuary.node.making.networks import NetworkWorker
from virtuary.node.site import Site, Turns, host_status
from virtuary.node.warm import budget, derive
from virtuary.node.warm.templates import TemplateWorker
from virtuary.store import documents, here
from virtuary.store.memory import MemoryStore

LONG_AGO = utcnow() - timedelta(days=30)
IMAGE = Image(
    meta=Meta(id="i", name="tiny"),
    spec=ImageSpec(source=ImageSource(kind="build", recipe="tiny")),
    status=ImageStatus(state="ready", virtual_size=256 * MIB, agent=True),
)
TEMPLATE = Template(
    meta=Meta(id="t", name="tiny"),
    spec=TemplateSpec(image="tiny", image_id="i", memory=GIB, accel="tcg", firmware="bios"),
    status=TemplateStatus(state="ready", key="abc", size=2**50),
)


class Nothing:
    """A catalogue that knows no image but those that are there."""

    def canonical(self, name: str) -> str:
        return name

    def find_source(self, name: str) -> ImageSource:
        raise NotFound("no such image")


@pytest.fixture
async def sites(paths: Paths) -> tuple[Site, Site]:
    """The hosts a and b; a has an image, and a template of it."""
    store = MemoryStore()
    a, b = (Site(paths, Through(store), host) for host in "ab")
    image = {**documents.written(a.store, IMAGE), IMAGE.named: b"i"}
    await store.txn({}, image | documents.written(a.store, TEMPLATE))
    status = HostStatus(
        mode="system", version="1", cpus=8, memory=64 * GIB, memory_available=60 * GIB,
        disk=200 * GIB, disk_free=200 * GIB, accel="tcg",
    )  # fmt: skip
    for name in "ab":
        host = Host(meta=Meta(id=name, name=name), status=status)
        await store.txn({}, {host.key: host.dump()})
    return a, b


def server(owner: str, **meta: Any) -> Vm:
    spec = VmSpec(image="tiny", image_id="i", owner=owner, policy=Policy(autostart=True))
    return Vm(meta=Meta(id=f"vm-{owner}", name=f"web-{owner}", **meta), spec=spec)


def context_of(site: Site) -> Context:
    return Context(site.store, "tester", site.host_id, Nothing())


async def give_a_moment(worker: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await worker.work()


async def test_no_worker_touches_what_is_another_hosts(sites: tuple[Site, Site]) -> None:
    a, b = sites
    network = await networks.create(
        context_of(a), NetworkWish(name="lan", ipv4="10.9.0.0/24", ipv6="fd00:9::/64")
    )
    before = b.store.list("")
    for worker, identity in (
        (ImageWorker, "i"),
        (TemplateWorker, "t"),
        (NetworkWorker, network.id),
    ):
        await give_a_moment(worker(b, identity))
    assert b.store.list("") == before


async def test_nor_what_is_being_removed(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for item in (IMAGE, TEMPLATE):
        gone = item.but(meta=item.meta.but(purge=True))
        await a.store.txn({}, documents.wished(a.store, gone))
    for worker, identity in ((ImageWorker, "i"), (TemplateWorker, "t")):
        await give_a_moment(worker(b, identity))
        assert documents.get(a.store, IMAGE.__class__, "i") or identity == "t"
        await worker(a, identity).work()
    assert documents.every(b.store, Image) == documents.every(b.store, Template) == []
    assert b.store.list("here/").records == b.store.list("image-name/").records == []


async def test_a_server_has_its_image_and_its_network_made_on_its_own_host(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    wish = NetworkWish(name="lan", ipv4="10.9.0.0/24", ipv6="fd00:9::/64")
    network = await networks.create(context_of(a), wish)
    await vms.create(
        context_of(b), VmWish(image="tiny", name="web1", nics=(NicWish(network="lan"),))
    )
    for kind, identity in ((Image, "i"), (Network, network.id)):
        found: Any = documents.get(b.store, kind, identity)
        assert documents.is_here(b.store, found) and found.status.state in ("absent", "creating")
    image = documents.get(a.store, Image, "i")
    assert image and image.status.state == "ready" and image.status.agent
    assert documents.get(b.store, Image, "i") == image.seen(state="absent")


async def test_what_a_host_has_is_promised_to_its_own_servers_alone(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    wish = VmWish.model_validate(
        {"image": "tiny", "memory": 40 * GIB, "publish": [{"host": 8080, "guest": 80}]}
    )
    for site in (a, b):
        await vms.create(context_of(site), wish)
    for site in (a, b):
        assert (await host_status(site)).vms == 1
        with pytest.raises(VirtuaryError) as caught:
            await vms.create(context_of(site), wish)
        assert "port 8080/tcp is published" in caught.value.sentence
        assert len(caught.value.details["blockers"]) == 2


async def test_templates_of_another_host_are_neither_used_nor_counted_nor_renewed(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    assert derive.templates_of(b, "i") == [] and derive.templates_of(a, "i")
    await budget.renew(b)
    await budget.keep_budget(b)
    (found,) = documents.every(a.store, Template)
    assert not found.meta.purge
    await budget.keep_budget(a)
    (found,) = documents.every(a.store, Template)
    assert found.meta.purge, "it is larger than all that may be kept"


async def test_the_trash_is_emptied_by_the_host_whose_it_is(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for owner in "ab":
        vm = server(owner, deleted=LONG_AGO)
        await a.store.txn({}, {vm.key: vm.dump()})
    await housekeeping.empty_trash(a)
    assert {vm.spec.owner: vm.meta.purge for vm in documents.every(b.store, Vm)} == {
        "a": True, "b": False,
    }  # fmt: skip


async def test_operations_are_forgotten_by_the_host_whose_they_are(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sites
    monkeypatch.setattr(housekeeping, "KEPT_OPERATIONS", 1)
    targets = {
        "vm-a": "vm/vm-a", "vm-b": "vm/vm-b", "disk-a": "disk/disk-a", "disk-b": "disk/disk-b",
        "image": "image/i", "gone": "vm/gone",
    }  # fmt: skip
    for owner in "ab":
        volume = Volume(
            meta=Meta(id=f"disk-{owner}", name=f"disk-{owner}"),
            spec=VolumeSpec(size=MIB, owner=owner),
        )
        await a.store.txn({}, {item.key: item.dump() for item in (server(owner), volume)})
    for name, target in targets.items():
        for number in range(3):
            operation = Operation(
                meta=Meta(id=f"{name}-{number}", name="start"),
                spec=OperationSpec(deed=Start(), target=target, target_name=name),
                status=OperationStatus(phase="done"),
            )
            await a.store.txn({}, {operation.key: operation.dump()})
    await housekeeping.forget_operations(b)
    left = [item.id for item in documents.every(a.store, Operation)]
    assert [item.rpartition("-")[0] for item in left].count("vm-a") == 3
    assert [item.rpartition("-")[0] for item in left].count("image") == 3
    assert [item.rpartition("-")[0] for item in left].count("disk-a") == 3
    assert len(left) == 3 + 3 + 3 + 1
    await housekeeping.forget_operations(a)
    left = [item.id for item in documents.every(a.store, Operation)]
    assert [item for item in left if item.startswith("vm-b")] or len(left) == 1


async def test_what_comes_up_with_a_host_is_its_own(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for owner in "ab":
        await a.store.txn({}, {server(owner).key: server(owner).dump()})
    for site in (a, b):
        await turns.after_boot(site)
    a = replace(a, boot="another", store=Through(a.store), turns=Turns())
    before = documents.get(b.store, Vm, "vm-b")
    await turns.after_boot(a)
    assert a.turns.waiting == {"vm-a": 0} and documents.get(b.store, Vm, "vm-b") == before
    boots = [a.store.get(here.key_of(host, "boot")) for host in "ab"]
    assert [record and record.value for record in boots] == [b"another", b.boot.encode()]


async def test_layers_are_removed_by_what_this_host_has_of_them(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    a.paths.layers.mkdir(parents=True, exist_ok=True)
    own, loose = a.paths.layers / "own.qcow2", a.paths.layers / "loose.qcow2"
    for path in (own, loose):
        path.touch()
    for owner, layer in (("a", "layers/own.qcow2"), ("b", "layers/theirs.qcow2")):
        vm = server(owner).seen(disks={0: {"layers": (layer,)}})
        await a.store.txn({}, {vm.key: vm.dump()})
    drop_layers(a)
    assert own.exists() and not loose.exists()
