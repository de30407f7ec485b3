"""Copies as callers ask for them: what the new documents say, what is refused and why. No worker
runs, so wishes stay wishes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.paths import Paths
from virtuary.base.units import GIB, MIB
from virtuary.model.deeds import Stop
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation, OperationSpec
from virtuary.model.runtime import Runtime, Shape
from virtuary.model.template import Template, TemplateSpec
from virtuary.model.vm import Vm
from virtuary.node import operations

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Answer, Service, make_parts, settle

STOPPED: dict[str, Any] = {"state": "stopped", "disks": {0: {"ready": True, "size": GIB}}}


def running(**changes: Any) -> dict[str, Any]:
    facts = {
        "generation": 1, "restarts": 0, "boot_id": "b", "pid": 1, "start": 1, "uid": 1,
        "accel": "tcg", "level": "L1",
        "started": "2026-01-01T00:00:00Z", **changes,
    }  # fmt: skip
    return {
        **STOPPED,
        "state": "running",
        "identity": {"given": "web1"},
        "power": {"applied": 1},
        "runtime": Runtime.model_validate(facts),
    }


@pytest.fixture
async def api(paths: Paths) -> Service:
    """A host with one server, web1, that has a disk and is stopped."""
    parts = make_parts(paths)
    await settle(parts)
    service = Service(parts)
    wish = {
        "image": "tiny", "name": "web1", "cpu": 2, "memory": 256 * MIB, "power": "stopped",
        "policy": {"protect": True, "autostart": True},
        "publish": [{"host": 18080, "guest": 80}], "labels": {"role": "web"},
        "login": {"user_data": "#cloud-config\n{}\n"},
    }  # fmt: skip
    answer = await service.call("POST", "/v1/vms", wish)
    assert answer.status == 202, answer.json
    await write(service, **STOPPED)
    return service


async def write(
    api: Service, wished: str = "stopped", meta: dict[str, Any] | None = None, **status: Any
) -> None:
    """What a worker would have written about web1; its operations are over."""
    store = api.parts.store
    for record in store.list("vm/").records:
        vm = Vm.load(record.value, record.revision)
        if vm.name == "web1":
            puts = {
                item.key: operations.finished(item).dump()
                for item in operations.open_operations(store, vm.key)
            }
            changed = vm.but(
                spec=vm.spec.but(power=wished),
                status=vm.status.but(**status),
                meta=vm.meta.but(**(meta or {})),
            )
            await store.txn({}, {vm.key: changed.dump(), **puts})


async def copy(api: Service, name: str = "web1", query: str = "", **wish: Any) -> Answer:
    return await api.call("POST", f"/v1/vms/{name}/actions/copy{query}", wish or None)


async def test_a_copy_has_what_its_source_has_but_for_what_there_is_once(api: Service) -> None:
    source = (await api.call("GET", "/v1/vms/web1")).json
    answer = await copy(api, name="web1", **{"mode": "overlay"})
    assert answer.status == 202, answer.json
    vm = answer.json["vm"]
    assert vm["meta"]["id"] != source["meta"]["id"] and vm["meta"]["labels"] == {"role": "web"}
    assert vm["spec"]["origin"] == {"id": source["meta"]["id"], "name": "web1", "mode": "overlay"}
    alike = (
        "image",
        "image_id",
        "cpu",
        "memory",
        "disks",
        "machine",
        "firmware",
        "accel",
        "login",
    )
    assert {field: vm["spec"][field] for field in alike} == {
        field: source["spec"][field] for field in alike
    }
    assert (vm["spec"]["publish"], vm["spec"]["power"]) == ([], "stopped")
    own = {"protect": False, "autostart": False}
    assert vm["spec"]["policy"] == source["spec"]["policy"] | own
    secrets = [api.parts.store.get(f"secret/{item['meta']['id']}") for item in (source, vm)]
    assert secrets[0] and secrets[1] and secrets[0].value == secrets[1].value
    operation = answer.json["operation"]["spec"]
    assert (operation["deed"]["kind"], operation["target"], operation["target_name"]) == (
        "copy",
        f"vm/{vm['meta']['id']}",
        vm["meta"]["name"],
    )
    assert (await api.call("GET", "/v1/vms/web1")).json == source, (
        "the wish changes nothing of the source"
    )


async def test_what_is_said_about_a_copy_counts(api: Service) -> None:
    wish = {
        "name": "web2",
        "start": True,
        "cpu": 3,
        "memory": 512 * MIB,
        "disks": [2 * GIB],
        "labels": {"a": "b"},
    }
    answer = await api.call(
        "POST", "/v1/vms/web1/actions/copy", {**wish, "publish": [{"host": 18081, "guest": 80}]}
    )
    vm = answer.json["vm"]
    assert (vm["meta"]["name"], vm["meta"]["labels"], vm["spec"]["power"]) == (
        "web2",
        {"a": "b"},
        "running",
    )
    assert (
        vm["spec"]["cpu"]["count"],
        vm["spec"]["memory"]["size"],
        vm["spec"]["disks"][0]["size"],
    ) == (3, 512 * MIB, 2 * GIB)
    assert vm["spec"]["publish"][0]["host"] == 18081


async def test_a_live_copy_runs_whatever_was_said(api: Service) -> None:
    await write(api, "running", **running())
    answer = await copy(api, mode="live")
    assert answer.status == 202 and answer.json["vm"]["spec"]["power"] == "running", answer.json


async def test_a_repeated_request_makes_one_copy(api: Service) -> None:
    first = await api.call(
        "POST", "/v1/vms/web1/actions/copy", {"name": "web2"}, Idempotency_Key="k"
    )
    again = await api.call(
        "POST", "/v1/vms/web1/actions/copy", {"name": "web2"}, Idempotency_Key="k"
    )
    assert (first.status, again.status) == (202, 202) and again.headers[
        "idempotency-replayed"
    ] == "true"
    assert first.json["operation"]["meta"]["id"] == again.json["operation"]["meta"]["id"]
    other = await api.call(
        "POST", "/v1/vms/web1/actions/copy", {"name": "web3"}, Idempotency_Key="k"
    )
    assert other.status == 422


async def test_a_dry_run_tells_every_blocker_and_writes_nothing(api: Service) -> None:
    await write(api, "running", **running())
    before = api.parts.store.revision
    answer = await api.call(
        "POST",
        "/v1/vms/web1/actions/copy?dry_run=true",
        {"name": "web1", "cpu": 200, "publish": [{"host": 18080, "guest": 1}]},
    )
    assert [item["code"] for item in answer.json["blockers"]] == [
        "conflict",
        "no-room",
        "conflict",
        "exists",
    ]
    fine = await api.call(
        "POST", "/v1/vms/web1/actions/copy?dry_run=true", {"name": "web2", "mode": "live"}
    )
    assert (
        fine.status == 200
        and fine.json["blockers"] == []
        and fine.json["vm"]["meta"]["name"] == "web2"
    )
    assert api.parts.store.revision == before


LIVE = {"mode": "live"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str, str]] = {
    # what a worker wrote of the source, what is asked for -> status, sentence, hint
    "a running one": ({"wished": "running", **running()}, {}, 409, "web1 is running", "--live"),
    "one that is to run": ({"wished": "running"}, {}, 409, "web1 is stopped", "--live"),
    "a paused one": ({"wished": "paused", **running(), "state": "paused"}, LIVE, 409,
    "web1 is paused", "virtuary resume web1"),
    "a stopped one, live": ({}, LIVE, 409, "web1 is stopped", "leave out --live"),
    "one without a disk": ({"disks": {0: {"ready": False}}}, {}, 409, "nothing to copy yet", "repeat"),
    "one in the trash": ({"meta": {"deleted": "2026-01-01T00:00:00Z"}}, {}, 409,
    "lies in the trash", "undelete"),
    "one that was changed and not restarted": ({"wished": "running", **running(),
    "power": {"applied": 0}}, LIVE, 409, "not restarted", "virtuary restart web1"),
    "one that was renamed just now": ({"wished": "running", **running(),
    "identity": {"given": "old"}}, LIVE, 409, "has not taken its name", "repeat"),
    "one with memory plugged": (
        {"wished": "running", **running(live=True, shape=Shape(memory=128 * MIB, max_cpus=8,
        max_memory=GIB))},
        LIVE, 409, "was given memory while it ran", "virtuary restart web1",
    ),
    "one with memory plugged to a template's": (
        {"wished": "running", **running(template="template-id")}, LIVE, 409,
        "was given memory while it ran", "virtuary restart web1",
    ),
    "live and larger": ({"wished": "running", **running()}, {**LIVE, "memory": GIB}, 422,
    "has its source's memory", "--memory"),
    "a smaller disk": ({}, {"disks": [512 * MIB]}, 422, "512 MiB were asked for", "--disk 1 GiB"),
    "a bad name": ({}, {"name": "a b"}, 422, "is not a valid name", ""),
    "a name that is taken": ({}, {"name": "web1"}, 409, "there already", "another name"),
    "a port that is taken": ({}, {"publish": [{"host": 18080, "guest": 80}]}, 409,
    "published by web1", "another port"),
    "an unknown way": ({}, {"mode": "half"}, 422, "mode", ""),
    "what is not a copy's": ({}, {"image": "tiny"}, 422, "image", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_copy_is_refused_with_a_reason_and_a_way_out(api: Service, case: str) -> None:
    seen, wish, status, sentence, hint = REFUSED[case]
    spec = TemplateSpec(image="tiny", image_id="i", memory=128 * MIB, accel="tcg", firmware="bios")
    await api.parts.store.txn(
        {},
        {
            "template/template-id": Template(
                meta=Meta(id="template-id", name="tiny"), spec=spec
            ).dump()
        },
    )
    await write(api, **seen)
    before = api.parts.store.revision
    name = (
        (await api.call("GET", "/v1/vms?trash=true")).json["items"][0]["meta"]["id"]
        if "meta" in seen
        else "web1"
    )
    answer = await api.call("POST", f"/v1/vms/{name}/actions/copy", wish)
    problem = answer.json
    assert (answer.status, sentence in problem["detail"], hint in problem.get("hint", "")) == (
        status,
        True,
        True,
    ), problem
    assert api.parts.store.revision == before, "nothing was written"


async def test_an_image_without_an_agent_is_not_copied_live(api: Service) -> None:
    store = api.parts.store
    for record in store.list("image/").records:
        await store.txn({}, {record.key: record.value.replace(b'"agent":true', b'"agent":false')})
    await write(api, "running", **running())
    problem = (await copy(api, mode="live")).json
    assert "has no guest agent" in problem["detail"] and "without --live" in problem["hint"]


async def test_a_busy_server_is_not_copied(api: Service) -> None:
    await api.call("POST", "/v1/vms/web1/actions/start")
    answer = await copy(api)
    assert (answer.status, answer.json["code"]) == (
        409,
        "busy",
    ) and "start is under way" in answer.json["detail"]


@pytest.mark.parametrize(("mode", "status"), [("full", 409), ("overlay", 202)])
async def test_a_server_is_not_started_while_its_disk_is_read(
    api: Service, mode: str, status: int
) -> None:
    assert (await copy(api, mode=mode)).status == 202
    answer = await api.call("POST", "/v1/vms/web1/actions/start")
    assert answer.status == status
    if status == 409:
        assert answer.json["code"] == "busy" and "is being copied to" in answer.json["detail"]


async def test_whoever_copies_is_found_among_many_operations(api: Service) -> None:
    source = (await api.call("GET", "/v1/vms/web1")).json["meta"]["id"]
    made = (await copy(api)).json["operation"]["meta"]["id"]
    store = api.parts.store
    decoy = OperationSpec(deed=Stop(), target="vm/other", target_name=source)
    await store.txn(
        {}, {"operation/decoy": Operation(meta=Meta(id="decoy", name="stop"), spec=decoy).dump()}
    )
    on, copying = operations.open_about(store, f"vm/{source}")
    assert (on, [item.id for item in copying]) == ([], [made])
