"""The account: never over-promised, sums always equal, and whoever is refused is told the number
that is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtuary.actions import account, power, trash, vms
from virtuary.actions.account import Claim, balances, claim_of, fit, shortage
from virtuary.actions.context import Context, all_vms
from virtuary.base.errors import NoRoom, NotFound, Stale
from virtuary.base.units import GIB, MIB
from virtuary.model.bandwidth import Bandwidth, Rate
from virtuary.model.cpu import Cpu, CpuWish
from virtuary.model.deeds import Start
from virtuary.model.disk import Disk
from virtuary.model.host import Host, HostStatus, HugePages, Link
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.memory import Memory
from virtuary.model.meta import Meta, utcnow
from virtuary.model.network import Network, NetworkSpec, Nic
from virtuary.model.operation import Operation
from virtuary.model.runtime import Runtime
from virtuary.model.settings import ResourceSettings
from virtuary.model.vm import Vm, VmChange, VmSpec, VmWish
from virtuary.store.memory import MemoryStore

HOST = HostStatus(
    mode="system", version="1", cpus=4, memory=20 * GIB, memory_available=8 * GIB, disk=100 * GIB,
    disk_free=50 * GIB, accel="tcg",
    huge_pages=(HugePages(size=2 * MIB, total=2048, free=2048, default=True),),
)  # fmt: skip


class Nothing:
    """A catalogue that knows no image but those that are there."""

    def canonical(self, name: str) -> str:
        return name

    def find_source(self, name: str) -> ImageSource:
        raise NotFound("no such image")


async def context(store: MemoryStore | None = None, **policy: Any) -> Context:
    store = store or MemoryStore()
    host = Host(
        meta=Meta(id="here", name="here"), status=HOST.but(policy=ResourceSettings(**policy))
    )
    image = Image(
        meta=Meta(name="tiny"), spec=ImageSpec(source=ImageSource(kind="build", recipe="tiny")),
        status=ImageStatus(state="ready", virtual_size=256 * MIB, agent=True),
    )  # fmt: skip
    await store.txn(
        {}, {host.key: host.dump(), image.key: image.dump(), "image-name/tiny": image.id.encode()}
    )
    return Context(store, "tester", "here", Nothing())


async def settle(ctx: Context) -> None:
    """Whoever carries out operations has done so."""
    await ctx.store.txn({}, {}, [record.key for record in ctx.store.list("operation/").records])


def runtime() -> Runtime:
    return Runtime.model_validate(
        {"generation": 1, "restarts": 0, "boot_id": "b", "pid": 7, "start": 7, "uid": 7,
        "accel": "tcg", "level": "L1",
         "started": "2026-01-01T00:00:00Z"}
    )  # fmt: skip


specs = st.builds(
    lambda cpus, memory, disk, power, reserve, pages: VmSpec(
        image="tiny", cpu=Cpu(count=cpus, reserve=reserve),
        memory=Memory(size=memory * MIB, pages=pages), disks=(Disk(size=disk * MIB),), power=power
    ),
    st.integers(1, 16), st.integers(64, 8192), st.integers(1, 50_000), st.sampled_from(["running",
    "stopped", "paused"]), st.integers(0, 200),
    st.sampled_from(["normal", "normal", "huge"]),
)  # fmt: skip


@given(st.lists(specs, max_size=12))
def test_what_is_promised_is_the_sum_over_the_servers(found: list[VmSpec]) -> None:
    servers = [Vm(meta=Meta(name=f"vm{number}"), spec=spec) for number, spec in enumerate(found)]
    whole = balances(HOST, servers)
    for index, field in enumerate(Claim._fields):
        assert whole[field].promised == sum(claim_of(vm, HOST)[index] for vm in servers)
        assert whole[field].free == whole[field].usable - whole[field].promised
        assert len(whole[field].holders) <= account.HOLDERS


@given(st.lists(specs, max_size=12), st.floats(1, 4))
def test_who_asks_one_after_the_other_is_never_promised_too_much(
    found: list[VmSpec], ratio: float
) -> None:
    host = HOST.but(policy=ResourceSettings(memory_overcommit=ratio))
    servers: list[Vm] = []
    for number, spec in enumerate(found):
        vm = Vm(meta=Meta(name=f"vm{number}"), spec=spec)
        if not shortage(claim_of(vm, host), balances(host, servers)):
            servers.append(vm)
    for balance in balances(host, servers).values():
        assert 0 <= balance.promised <= max(balance.usable, 0)


@given(specs, st.lists(specs, max_size=6))
@pytest.mark.slow
def test_so_many_fit_and_not_one_more(spec: VmSpec, found: list[VmSpec]) -> None:
    servers = [Vm(meta=Meta(name=f"vm{number}"), spec=one) for number, one in enumerate(found)]
    running = spec.but(power="running")
    room = fit(running, HOST, servers)
    if account.alone(running, HOST):
        assert room.servers == 0, "what is refused alone fits nowhere"
        return
    for more in range(room.servers, room.servers + 1):
        added = [
            *servers,
            *(Vm(meta=Meta(name=f"new{number}"), spec=running) for number in range(min(more, 200))),
        ]
        over = [name for name, balance in balances(HOST, added).items() if balance.free < 0]
        before = [name for name, balance in balances(HOST, servers).items() if balance.free < 0]
        assert over == before or room.servers > 200
    again = [
        *servers,
        *(
            Vm(meta=Meta(name=f"new{number}"), spec=running)
            for number in range(min(room.servers, 200))
        ),
    ]
    if room.servers <= 200:
        assert shortage(room.each, balances(HOST, again)), f"{room.limit} should be used up"


def test_huge_pages_are_an_account_of_their_own() -> None:
    """They are no ordinary memory any more, whoever uses them; and only so many can be had."""
    whole = balances(HOST, [])
    assert whole["memory"].total == 16 * GIB and whole["huge_pages"].usable == 4 * GIB
    mine = Vm(
        meta=Meta(name="db"), spec=VmSpec(image="tiny", memory={"size": 3 * GIB, "pages": "huge"})
    )
    taken = claim_of(mine, HOST)
    assert taken.huge_pages == 3 * GIB and taken.memory == taken.floor_memory < GIB, (
        "its emulation needs ordinary memory"
    )
    (refused,) = shortage(taken, balances(HOST, [mine]))
    assert (
        refused.details["resource"] == "huge_pages"
        and refused.details["missing"] == 2 * GIB
        and "db 3 GiB" in refused.sentence
    )
    assert fit(mine.spec, HOST, [mine]).limit == "huge_pages"


def on(name: str, network: Network, floors: int, **meta: Any) -> Vm:
    """A server with so many bits a second promised to it, inbound only."""
    nic = Nic(
        network=network.name, network_id=network.id, bandwidth=Bandwidth(inbound=Rate(floor=floors))
    )
    return Vm(
        meta=Meta(name=name, **meta),
        spec=VmSpec(image="tiny", nics=(nic, nic.but(number=1)), power="stopped"),
    )


def test_floors_of_bandwidth_are_promised_of_a_network_s_link() -> None:
    lan = Network(meta=Meta(name="lan"), spec=NetworkSpec(ipv4="10.9.0.0/24", speed=10**8))
    other = Network(meta=Meta(name="other"), spec=NetworkSpec(ipv4="10.9.1.0/24"))
    vms = [
        on("a", lan, 10_000_000),
        on("b", lan, 5_000_000),
        on("gone", lan, 64_000, deleted=utcnow()),
        on("c", other, 64_000),
    ]
    found = account.bandwidths([lan, other], (), vms)
    assert list(found) == ["lan"], "the speed of the other's link is not known"
    inbound, outbound = found["lan"]["inbound"], found["lan"]["outbound"]
    assert (inbound.total, inbound.usable, inbound.promised, inbound.holders) == (
        10**8,
        95_000_000,
        30_000_000,
        {"a": 20_000_000, "b": 10_000_000},
    )
    assert (outbound.promised, outbound.holders) == (0, {})
    assert (
        account.bandwidths([other], [Link(name="eth0", speed=10**9)], vms)["other"]["inbound"].total
        == 10**9
    )
    small = VmSpec(image="tiny", memory=64 * MIB, disks=(MIB,))
    room = fit(small, HOST, vms, 40_000_000, found["lan"])
    assert (room.servers, room.limit, room.by["bandwidth"]) == (1, "bandwidth", 1), (
        "of the direction that is fuller"
    )
    assert account.bandwidth_shortage(65_000_000, found["lan"]) == []
    (error,) = account.bandwidth_shortage(80_000_000, found["lan"])
    assert (
        error.details["missing"] == 15_000_000
        and "15 Mbit/s are missing" in error.sentence
        and "a 20 Mbit/s" in error.sentence
    )


def test_a_refusal_says_asked_free_missing_and_who_holds_it() -> None:
    holders = [
        Vm(meta=Meta(name=name), spec=VmSpec(image="tiny", memory=size * GIB))
        for name, size in (("big", 9), ("small", 4))
    ]
    wanted = claim_of(Vm(meta=Meta(name="more"), spec=VmSpec(image="tiny", memory=6 * GIB)), HOST)
    (error,) = shortage(wanted, balances(HOST, holders))
    details = error.details
    assert isinstance(error, NoRoom) and details["resource"] == "memory"
    assert details["missing"] == details["asked"] - details["free"] > 0
    assert (
        list(details["holders"]) == ["big", "small"]
        and "most is held by big" in error.sentence
        and "are missing" in error.sentence
    )


def test_one_that_stops_holds_its_disk_only_and_one_that_still_runs_holds_all() -> None:
    spec = VmSpec(image="tiny", memory=GIB, disks=(4 * GIB,), power="stopped")
    vm = Vm(meta=Meta(name="a"), spec=spec)
    assert claim_of(vm, HOST) == Claim(disk=4 * GIB)
    living = vm.but(status=vm.status.but(runtime=runtime()))
    assert claim_of(living, HOST).memory > GIB


def test_memory_that_was_not_given_back_yet_is_still_held() -> None:
    vm = Vm(meta=Meta(name="a"), spec=VmSpec(image="tiny", memory=GIB))
    shrinking = vm.but(status=vm.status.but(runtime=runtime(), memory=3 * GIB))
    assert claim_of(shrinking, HOST).memory == claim_of(vm, HOST).memory + 2 * GIB


def test_emulation_is_part_of_what_is_held_and_less_of_it_with_hardware() -> None:
    vm = Vm(meta=Meta(name="a"), spec=VmSpec(image="tiny", memory=GIB))
    emulated, native = claim_of(vm, HOST).memory, claim_of(vm, HOST.but(accel="kvm")).memory
    assert emulated > native > GIB


def test_overcommitted_memory_is_guaranteed_in_part() -> None:
    host = HOST.but(policy=ResourceSettings(memory_overcommit=2))
    vm = Vm(meta=Meta(name="a"), spec=VmSpec(image="tiny", memory=4 * GIB))
    found = claim_of(vm, host)
    assert found.memory - found.floor_memory == 2 * GIB
    own = vm.but(spec=vm.spec.but(memory=vm.spec.memory.but(min=3 * GIB)))
    assert claim_of(own, host).floor_memory == found.floor_memory + GIB


# ---- in the store


@pytest.mark.slow
async def test_a_hundred_at_once_are_never_promised_the_same_byte_twice() -> None:
    ctx = await context()
    wish = VmWish(image="tiny", memory=1 * GIB)
    answers = await asyncio.gather(
        *(vms.create(ctx, wish) for _ in range(100)), return_exceptions=True
    )
    made = [answer for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert (
        made
        and all(isinstance(error, NoRoom) for error in refused)
        and len(made) + len(refused) == 100
    )
    account_now = balances(HOST, all_vms(ctx.store))
    assert account_now["memory"].promised <= account_now["memory"].usable
    assert account_now["memory"].free < claim_of(made[0][0], HOST).memory, (
        "nor was any refused for whom there was room"
    )


async def test_starting_growing_and_copying_are_promises_too() -> None:
    ctx = await context()
    await vms.create(ctx, VmWish(image="tiny", name="a", memory=2 * GIB, power="stopped"))
    await vms.create(ctx, VmWish(image="tiny", name="b", memory=14 * GIB))
    await settle(ctx)
    with pytest.raises(NoRoom):
        await power.power(ctx, "a", Start())
    with pytest.raises(NoRoom):
        await vms.change(ctx, "b", VmChange(memory=16 * GIB))
    changed, operation = await vms.change(ctx, "a", VmChange(memory=8 * GIB))
    assert changed.spec.memory.size == 8 * GIB and operation is None, (
        "one that is stopped promises no memory"
    )


async def test_a_guaranteed_floor_is_counted_and_refused_with_its_number() -> None:
    ctx = await context(reserve_cpu=100)
    await vms.create(
        ctx, VmWish(image="tiny", name="a", memory=256 * MIB, cpu=CpuWish(reserve=200))
    )
    with pytest.raises(
        NoRoom,
        match=r"150 % of guaranteed processor time were asked for and this host has 100 % left "
        r"of 300 %: 50 % are missing",
    ):
        await vms.create(
            ctx, VmWish(image="tiny", name="b", memory=256 * MIB, cpu=CpuWish(reserve=150))
        )


async def test_a_pool_that_is_nearly_full_takes_no_disk() -> None:
    ctx = await context()
    full = Context(ctx.store, "tester", "here", Nothing(), disk_free=1 * GIB)
    with pytest.raises(NoRoom, match="are kept: no disk is made or grown"):
        await vms.create(full, VmWish(image="tiny", memory=256 * MIB))
    await vms.create(ctx, VmWish(image="tiny", name="a", memory=256 * MIB, power="stopped"))
    await settle(ctx)
    vm, _ = await power.power(full, "a", Start())
    assert vm.spec.power == "running", "starting makes no disk"


@settings(max_examples=50)
@given(st.sampled_from(["cpus", "memory", "disk", "cpu"]), st.integers(-(2**40), 2**50))
def test_whatever_is_wished_is_a_document_or_a_sentence(field: str, value: int) -> None:
    async def run() -> None:
        ctx = await context()
        fields: dict[str, Any] = {
            "cpus": {"cpu": value}, "memory": {"memory": value}, "disk": {"disks": (value,)},
            "cpu": {"cpu": {"limit": value}},
        }[field]  # fmt: skip
        try:
            wish = VmWish(image="tiny", **fields)
        except ValueError:
            return
        try:
            await vms.create(ctx, wish)
        except NoRoom as error:
            assert "missing" in error.sentence or "allow" in error.sentence

    asyncio.run(run())


class Interfering(MemoryStore):
    """A store in which somebody writes `key` between every action's look and its first
    transaction.
    """

    key = ""

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        if (key := self.key) in expect and (record := self.get(key)):
            self.key = ""
            await super().txn({}, {key: record.value})
        return await super().txn(expect, puts, deletes)


async def test_what_changes_between_a_look_and_its_transaction_is_looked_at_again() -> None:
    """Its worker writes an operation's progress all the time: whoever deletes the server is not
    told to repeat it.
    """
    store = Interfering()
    ctx = await context(store)
    _, operation = await vms.create(ctx, VmWish(image="tiny", name="a", memory=256 * MIB))
    store.key = operation.key
    await trash.delete(ctx, "a", now=True, force=True)
    assert not store.key, "it was interfered with"
    found = store.get(operation.key)
    assert found and Operation.load(found.value, found.revision).status.phase == "cancelled"
    other, _ = await vms.create(
        ctx, VmWish(image="tiny", name="b", memory=256 * MIB, power="stopped")
    )
    store.key = other.key
    with pytest.raises(Stale):
        await vms.change(ctx, "b", VmChange(labels={"a": "b"}), revision=other.meta.revision)
