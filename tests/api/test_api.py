"""The API over a store in memory: what it accepts, refuses, repeats and streams. No worker runs, so
wishes stay wishes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from virtuary.api.vms import PIECE, logs_body, outcome_body
from virtuary.base.paths import Paths
from virtuary.base.units import GIB, MIB
from virtuary.guest.agent import Outcome
from virtuary.host import capacity
from virtuary.model.host import HugePages
from virtuary.model.image import Image
from virtuary.model.runtime import Runtime
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.store import documents
from virtuary.store.memory import MemoryStore
from virtuary.store.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle

WEB1: dict[str, Any] = {"image": "tiny", "name": "web1"}


@pytest.fixture
async def api(paths: Paths) -> Service:
    parts = make_parts(paths)
    await settle(parts)
    return Service(parts)


async def create(api: Service, **wish: Any) -> dict[str, Any]:
    answer = await api.call("POST", "/v1/vms", {**WEB1, **wish})
    assert answer.status == 202, answer.json
    found: dict[str, Any] = answer.json["vm"]
    return found


async def write(api: Service, name: str, **status: Any) -> None:
    """What a worker would have written about a server; its operations are over."""
    store = api.parts.store
    identity = (await api.call("GET", f"/v1/vms/{name}")).json["meta"]["id"]
    record = store.get(f"vm/{identity}")
    assert record
    vm = Vm.load(record.value, record.revision)
    puts = {
        item.key: operations.finished(item).dump()
        for item in operations.open_operations(store, vm.key)
    }
    await store.txn({}, {vm.key: vm.but(status=vm.status.but(**status)).dump(), **puts})


async def test_what_a_newer_version_wrote_is_shown_and_survives_a_change(api: Service) -> None:
    """Also what is known of a part that a change names; and nobody may send it."""
    found = await create(api, power="stopped")
    key, store = f"vm/{found['meta']['id']}", api.parts.store
    record = store.get(key)
    assert record
    body = json.loads(record.value)
    body["spec"]["cpu"]["turbo"] = 3
    body["spec"]["teleport"] = {"to": "b"}
    await store.txn({}, {key: json.dumps(body, separators=(",", ":")).encode()})
    wish = {"cpu": {"weight": 7}, "labels": {"a": "b"}}
    assert (await api.call("PATCH", "/v1/vms/web1", wish)).status == 200
    (listed,) = (await api.call("GET", "/v1/vms")).json["items"]
    shown = (await api.call("GET", "/v1/vms/web1")).json
    assert shown == listed and shown["spec"]["teleport"] == {"to": "b"}
    assert shown["spec"]["cpu"] == body["spec"]["cpu"] | {"weight": 7}
    for wrong in ({"teleport": {}}, {"cpu": {"turbo": 4}}):
        assert (await api.call("PATCH", "/v1/vms/web1", wrong)).status == 422


def running(**changes: Any) -> dict[str, Any]:
    facts = {
        "generation": 1,
        "restarts": 0,
        "boot_id": "b",
        "pid": 1,
        "start": 1,
        "uid": 1,
        "accel": "tcg",
        "level": "L1",
        "started": "2026-01-01T00:00:00Z",
    }
    return {
        "state": "running",
        "disks": {0: {"ready": True, "size": GIB}},
        "runtime": Runtime.model_validate({**facts, "ssh_port": 2222, **changes}),
    }


STOPPED = {"state": "stopped", "disks": {0: {"ready": True, "size": GIB}}, "runtime": None}


# ---- who may come in, and how refusals look


async def test_only_a_caller_the_kernel_vouches_for_is_served(api: Service) -> None:
    answer = await Service(api.parts, uid=None).call("GET", "/v1/vms")
    assert (answer.status, answer.json["code"]) == (403, "refused")


async def test_another_user_is_refused_before_anything_is_parsed(api: Service) -> None:
    stranger = Service(api.parts, uid=54321)
    for method, target in (
        ("GET", "/v1/vms"),
        ("POST", "/v1/vms"),
        ("GET", "/nowhere"),
        ("GET", "/openapi.json"),
    ):
        assert (await stranger.call(method, target, b"{")).status == 403


REFUSALS: dict[str, tuple[str, str, Any, int, str]] = {
    "no such server": ("GET", "/v1/vms/nobody", None, 404, "not-found"),
    "no such route": ("GET", "/v2/vms", None, 404, "not-found"),
    "no such method": ("PUT", "/v1/vms", None, 405, "invalid"),
    "broken JSON": ("POST", "/v1/vms", b"{", 422, "invalid"),
    "no object": ("POST", "/v1/vms", b"[]", 422, "invalid"),
    "no body": ("POST", "/v1/vms", None, 422, "invalid"),
    "unknown field": ("POST", "/v1/vms", {**WEB1, "colour": "red"}, 422, "invalid"),
    "what is ours to decide": ("POST", "/v1/vms", {**WEB1, "owner": "me"}, 422, "invalid"),
    "bad name": ("POST", "/v1/vms", {**WEB1, "name": "a b"}, 422, "invalid"),
    "bad label": ("POST", "/v1/vms", {**WEB1, "labels": {"A B": "c"}}, 422, "invalid"),
    "half a character": (
        "POST",
        "/v1/vms",
        b'{"image":"tiny","labels":{"a":"\\ud800"}}',
        422,
        "invalid",
    ),
    "port published twice": (
        "POST",
        "/v1/vms",
        {**WEB1, "publish": [{"host": 81, "guest": 1}] * 2},
        422,
        "invalid",
    ),
    "no such image": ("POST", "/v1/vms", {**WEB1, "image": "nothing"}, 404, "not-found"),
    "too much memory": ("POST", "/v1/vms", {**WEB1, "memory": 64 * GIB}, 507, "no-room"),
    "a disk below the image's": (
        "POST",
        "/v1/vms",
        {**WEB1, "disks": [64 * 2**20]},
        422,
        "invalid",
    ),
    "bad user data": ("POST", "/v1/vms", {**WEB1, "login": {"user_data": "hello"}}, 422, "invalid"),
    "user data that breaks its parser": (
        "POST",
        "/v1/vms",
        {**WEB1, "login": {"user_data": "#cloud-config\na: 2001-99-99"}},
        422,
        "invalid",
    ),
    "bad If-Match": ("PATCH", "/v1/vms/web1", {"cpu": 1}, 422, "invalid"),
    "no such operation": ("GET", "/v1/operations/nothing", None, 404, "not-found"),
    "no such image to delete": ("DELETE", "/v1/images/nothing", None, 404, "not-found"),
    "endless page": ("GET", "/v1/vms?limit=100000", None, 422, "invalid"),
    "no number": ("GET", "/v1/vms?limit=many", None, 422, "invalid"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_a_problem_document(api: Service, case: str) -> None:
    method, target, body, status, code = REFUSALS[case]
    if "web1" in target:
        await create(api)
    before = api.parts.store.revision
    answer = await api.call(
        method, target, body, **({"If_Match": "x"} if case == "bad If-Match" else {})
    )
    problem = answer.json
    assert (answer.status, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (
        problem["type"] == f"urn:virtuary:problem:{code}" and problem["detail"] and problem["title"]
    )
    assert problem["instance"] == target.partition("?")[0] and problem[
        "request_id"
    ] == answer.headers.get("x-request-id", problem["request_id"])
    assert api.parts.store.revision == before, "nothing was written"


async def test_the_callers_request_id_comes_back(api: Service) -> None:
    answer = await api.call("GET", "/v1/vms/nobody", X_Request_Id="mine")
    assert answer.json["request_id"] == "mine" == answer.headers["x-request-id"]


async def test_all_findings_about_a_body_are_told_at_once(api: Service) -> None:
    problem = (
        await api.call("POST", "/v1/vms", {"image": "tiny", "cpu": 0, "memory": 1, "x": 1})
    ).json
    assert {item["pointer"]: item["detail"] for item in problem["details"]["errors"]} == {
        "/cpu/count": "must be at least 1", "/memory/size": "must be a multiple of 1 MiB",
        "/x": "is not known here",
    }  # fmt: skip


async def test_all_blockers_are_told_at_once(api: Service) -> None:
    await create(api)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"host": taken.getsockname()[1], "guest": 80}
        problem = (
            await api.call(
                "POST",
                "/v1/vms",
                {**WEB1, "memory": 64 * GIB, "cpu": 200, "disks": [2**20], "publish": [port]},
            )
        ).json
    assert [item["code"] for item in problem["details"]["blockers"]] == [
        "exists",
        "no-room",
        "no-room",
        "conflict",
        "invalid",
    ]
    assert all(item["detail"] in problem["detail"] for item in problem["details"]["blockers"])


async def test_a_body_that_is_too_large_or_of_unknown_length_is_refused(api: Service) -> None:
    assert (await api.call("POST", "/v1/vms", b" " * 1_100_000)).status == 422
    assert (await api.call("POST", "/v1/vms", b"{}", transfer_encoding="chunked")).status == 422


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/vms/web1", {"If_Match": '"\xb2"'}),
        ("/v1/events", {"Last_Event_ID": "\xb2"}),
        ("/v1/vms", {"content_length": "\xb2"}),
    ],
    ids=str,
)
async def test_a_superscript_is_no_number(
    api: Service, target: str, headers: dict[str, str]
) -> None:
    await create(api)
    method = "GET" if "event" in target else "PATCH" if "web1" in target else "POST"
    assert (
        await api.call(method, target, {"cpu": 2} if method != "GET" else None, **headers)
    ).status == 422


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("stop", b'{"timeout": NaN}'),
        ("stop", b'{"timeout": Infinity}'),
        ("restart", b'{"timeout": 1e999}'),
    ],
)
async def test_an_endless_or_unspeakable_time_is_refused(
    api: Service, target: str, body: bytes
) -> None:
    await create(api)
    await write(api, "web1", **running())
    assert (await api.call("POST", f"/v1/vms/web1/actions/{target}", body)).status == 422


async def test_an_unspeakable_wait_is_refused(api: Service) -> None:
    identity = (await api.call("POST", "/v1/vms", WEB1)).json["operation"]["meta"]["id"]
    async with asyncio.timeout(3):
        assert (await api.call("GET", f"/v1/operations/{identity}/wait?timeout=nan")).status == 422


# ---- create, look, list


async def test_what_can_not_be_removed_is_told_without_removing_anything(api: Service) -> None:
    target = "/v1/vms/{}?now=true&dry_run=true"
    assert (await api.call("DELETE", target.format("nosuch"))).status == 404
    assert (await api.call("POST", "/v1/vms/nosuch/actions/purge?dry_run=true")).status == 404
    vm = (await api.call("POST", "/v1/vms", {"image": "tiny", "name": "web1"})).json["vm"]
    before = api.parts.store.revision
    answer = await api.call("DELETE", target.format("web1"))
    assert answer.status == 200 and answer.json["meta"]["id"] == vm["meta"]["id"]
    assert api.parts.store.revision == before


async def test_creating_answers_with_the_server_and_the_operation_to_follow(api: Service) -> None:
    answer = await api.call(
        "POST",
        "/v1/vms",
        {**WEB1, "labels": {"role": "web"}, "login": {"user_data": "#!/bin/sh\necho hidden"}},
    )
    vm, operation = answer.json["vm"], answer.json["operation"]
    assert (
        answer.status == 202
        and answer.headers["location"] == f"/v1/operations/{operation['meta']['id']}"
    )
    assert (operation["spec"]["deed"]["kind"], operation["spec"]["target"]) == (
        "launch",
        f"vm/{vm['meta']['id']}",
    )
    assert (vm["meta"]["name"], vm["status"]["state"], vm["spec"]["power"]) == (
        "web1",
        "creating",
        "running",
    )
    assert (
        (await api.call("GET", "/v1/vms/web1")).json
        == (await api.call("GET", f"/v1/vms/{vm['meta']['id']}")).json
        == vm
    )
    everything = b"".join(
        [
            (await api.call("GET", target)).body
            for target in ("/v1/vms", "/v1/operations", "/v1/vms/web1")
        ]
    )
    assert b"hidden" not in everything, "user data may hold secrets"


async def test_creating_is_one_transaction(api: Service) -> None:
    before = api.parts.store.revision
    await create(api, login={"user_data": "#!/bin/sh\n"})
    assert api.parts.store.revision == before + 1


@pytest.mark.slow
async def test_an_image_that_is_missing_but_can_be_built_is_asked_for_as_well(api: Service) -> None:
    vm = await create(api, image="debian")
    image = (await api.call("GET", "/v1/images/debian")).json
    assert (image["meta"]["name"], image["status"]["state"], vm["spec"]["image_id"]) == (
        "debian:12",
        "absent",
        image["meta"]["id"],
    )
    kinds = {
        item["spec"]["deed"]["kind"]
        for item in (await api.call("GET", "/v1/operations")).json["items"]
    }
    assert kinds == {"launch", "image-build"}


async def test_a_server_without_a_name_is_given_one(api: Service) -> None:
    answer = await api.call("POST", "/v1/vms", {"image": "tiny"})
    assert len(answer.json["vm"]["meta"]["name"].split("-")) >= 2


async def test_pages_hold_every_server_once(api: Service) -> None:
    names = {f"web{number}" for number in range(7)}
    for name in names:
        await create(api, name=name)
    seen: list[str] = []
    target = "/v1/vms?limit=3"
    while True:
        answer = await api.call("GET", target)
        seen += [item["meta"]["name"] for item in answer.json["items"]]
        assert (
            len(answer.json["items"]) <= 3 and answer.json["revision"] == api.parts.store.revision
        )
        if not answer.json["next"]:
            assert "link" not in answer.headers
            break
        assert answer.json["next"] in answer.headers["link"]
        target = f"/v1/vms?limit=3&cursor={answer.json['next']}"
    assert sorted(seen) == sorted(names)


@pytest.mark.parametrize("kind", ["vms", "images", "operations"])
async def test_a_listed_document_is_the_document(api: Service, kind: str) -> None:
    await create(api, labels={"generation": "second", "created": "by hand", "name": "x"})
    for item in (await api.call("GET", f"/v1/{kind}")).json["items"]:
        assert (
            item
            == (
                await api.call(
                    "GET",
                    f"/v1/{kind}/{item['meta']['name'] if kind == 'images' else item['meta']['id']}",
                )
            ).json
        )
        assert item["meta"]["revision"] > 0


LABELS = {
    "plain": {"role": "web"},
    "umlaut": {"role": "zürich"},
    "colon": {"role": "a: b"},
    "quote": {"role": 'a"b\\'},
    "many": {"a": "1", "role": "web", "z": "2"},
}


@pytest.mark.parametrize("case", LABELS)
async def test_servers_are_found_by_label(api: Service, case: str) -> None:
    from urllib.parse import quote

    await create(api, labels=LABELS[case])
    await create(api, name="other", labels={"role": "other"})
    found = await api.call("GET", f"/v1/vms?label={quote('role=' + LABELS[case]['role'])}")
    assert [item["meta"]["name"] for item in found.json["items"]] == ["web1"]


async def test_a_label_is_not_any_word_of_the_document(api: Service) -> None:
    await create(api)
    assert (await api.call("GET", "/v1/vms?label=power=running")).json["items"] == []


# ---- entity tags


async def test_a_change_needs_the_revision_it_was_made_for(api: Service) -> None:
    await create(api)
    tag = (await api.call("GET", "/v1/vms/web1")).headers["etag"]
    first = await api.call("PATCH", "/v1/vms/web1", {"cpu": 2}, If_Match=tag)
    assert (
        first.status == 200
        and first.headers["etag"] != tag
        and first.json["spec"]["cpu"]["count"] == 2
    )
    second = await api.call("PATCH", "/v1/vms/web1", {"cpu": 3}, If_Match=tag)
    assert (second.status, second.json["code"]) == (412, "stale")
    assert (await api.call("PATCH", "/v1/vms/web1", {"cpu": 3}, If_Match="*")).status == 200


async def test_what_did_not_change_is_not_sent_again(api: Service) -> None:
    await create(api)
    tag = (await api.call("GET", "/v1/vms/web1")).headers["etag"]
    again = await api.call("GET", "/v1/vms/web1", If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")


async def test_a_change_that_changes_nothing_writes_nothing(api: Service) -> None:
    await create(api, cpu=2)
    before = api.parts.store.revision
    assert (
        await api.call("PATCH", "/v1/vms/web1", {"cpu": 2})
    ).status == 200 and api.parts.store.revision == before


async def test_only_what_needs_a_restart_counts_a_generation(api: Service) -> None:
    await create(api)
    assert (
        await api.call("PATCH", "/v1/vms/web1", {"labels": {"a": "b"}, "policy": {"protect": True}})
    ).json["meta"]["generation"] == 1
    assert (await api.call("PATCH", "/v1/vms/web1", {"memory": 2 * GIB})).json["meta"][
        "generation"
    ] == 2


async def test_disks_only_grow(api: Service) -> None:
    await create(api)
    await write(api, "web1", **STOPPED)
    assert (await api.call("PATCH", "/v1/vms/web1", {"disks": [2**20]})).status == 422
    assert (await api.call("PATCH", "/v1/vms/web1", {"disks": [2 * GIB]})).status == 200


# ---- repeating


async def test_a_repeated_request_is_recognised_and_done_once(api: Service) -> None:
    first = await api.call("POST", "/v1/vms", {"image": "tiny"}, Idempotency_Key="k1")
    before = api.parts.store.revision
    again = await api.call("POST", "/v1/vms", {"image": "tiny"}, Idempotency_Key="k1")
    assert again.status == 202 and again.headers["idempotency-replayed"] == "true"
    assert (
        again.json["operation"]["meta"]["id"] == first.json["operation"]["meta"]["id"]
        and api.parts.store.revision == before
    )
    assert (await api.call("POST", "/v1/vms", {"image": "tiny"}, Idempotency_Key="k2")).headers.get(
        "idempotency-replayed"
    ) is None


async def test_a_key_belongs_to_one_request(api: Service) -> None:
    await api.call("POST", "/v1/vms", {"image": "tiny"}, Idempotency_Key="k1")
    other = await api.call("POST", "/v1/vms", {"image": "tiny", "cpu": 2}, Idempotency_Key="k1")
    assert other.status == 422 and "another request" in other.json["detail"]


async def test_every_deed_can_be_repeated(api: Service) -> None:
    await create(api)
    await write(api, "web1", **running())
    deeds: list[tuple[str, str, Any]] = [
        ("POST", "/v1/vms/web1/actions/stop", {"force": True}),
        ("POST", "/v1/vms/web1/actions/rename", {"name": "web2"}),
        ("PATCH", "/v1/vms/web2", {"cpu": 2}),
        ("DELETE", "/v1/vms/web2?force=true", None),
        ("POST", "/v1/vms/web2/actions/undelete", {"name": "web3"}),
        ("DELETE", "/v1/vms/web3", None),
        ("POST", "/v1/vms/web3/actions/purge", None),
    ]
    for number, (method, target, body) in enumerate(deeds):
        first = await api.call(method, target, body, Idempotency_Key=f"k{number}")
        assert first.status in (200, 202), first.json
        if method == "PATCH":
            await api.call("PATCH", "/v1/vms/web2", {"cpu": 3})
        again = await api.call(method, target, body, Idempotency_Key=f"k{number}")
        assert again.status == first.status, (target, again.json)
        for item in operations.open_operations(api.parts.store):
            await operations.finish(api.parts.store, item.key)
        if target.endswith("stop") or "force" in target:
            identity = first.json["operation"]["spec"]["target"].removeprefix("vm/")
            await write(api, identity, **STOPPED)


# ---- looking first


@pytest.mark.qemu
async def test_a_dry_run_shows_everything_and_writes_nothing(api: Service) -> None:
    before = (
        api.parts.store.revision,
        sorted(str(path) for path in api.parts.node.site.paths.vms.rglob("*")),
    )
    answer = await api.call("POST", "/v1/vms?dry_run=true", WEB1)
    plan = answer.json["plan"]
    assert answer.status == 200 and answer.json["blockers"] == []
    assert (
        plan["accel"] == "tcg"
        and "KVM is out" in plan["why"]
        and plan["command"][1:4] == ["-nodefaults", "-no-user-config", "-display"]
    )
    assert before == (
        api.parts.store.revision,
        sorted(str(path) for path in api.parts.node.site.paths.vms.rglob("*")),
    )


@pytest.mark.qemu
async def test_what_is_not_in_the_way_and_not_as_it_seems_is_told_at_once(api: Service) -> None:
    text = "#cloud-config\npakages: [vim]\n"
    wish = {**WEB1, "image": "debian:12", "login": {"user_data": text}, "memory": 64 * MIB}
    dry = (await api.call("POST", "/v1/vms?dry_run=true", wish)).json
    key, memory = dry["notes"]
    assert "'pakages'" in key and "was packages meant?" in key and not dry["blockers"]
    assert memory.startswith("64 MiB of memory are less than the ")
    status = (await api.call("POST", "/v1/vms", wish)).json["operation"]["status"]
    assert [line["text"] for line in status["log"]] == [key, memory]
    assert status["why"] == memory, "the slow start is explained before it is slow"
    usual = (await api.call("POST", "/v1/vms?dry_run=true", WEB1)).json
    assert usual["notes"] == []


async def test_a_dry_run_tells_all_blockers(api: Service) -> None:
    answer = await api.call(
        "POST", "/v1/vms?dry_run=true", {**WEB1, "memory": 64 * GIB, "cpu": 200, "accel": "kvm"}
    )
    assert answer.status == 200
    assert [item["code"] for item in answer.json["blockers"]] == [
        "no-room",
        "no-room",
        "host-lacks",
    ]


async def test_a_change_can_be_asked_for_first(api: Service) -> None:
    await create(api)
    before = api.parts.store.revision
    answer = await api.call("PATCH", "/v1/vms/web1?dry_run=true", {"cpu": 2})
    assert answer.json["vm"]["spec"]["cpu"]["count"] == 2 and answer.json["blockers"] == []
    answer = await api.call("PATCH", "/v1/vms/web1?dry_run=true", {"memory": 64 * GIB, "cpu": 200})
    assert [item["code"] for item in answer.json["blockers"]] == ["no-room", "no-room"]
    assert api.parts.store.revision == before


# ---- power


DEEDS: dict[str, tuple[dict[str, Any], dict[str, str], str, int]] = {
    "start one that is stopped": ({"power": "stopped"}, STOPPED, "start", 202),
    "start one that runs": ({}, running(), "start", 409),
    "stop one that runs": ({}, running(), "stop", 202),
    "stop one that is stopped": ({"power": "stopped"}, STOPPED, "stop", 409),
    "restart one that runs": ({}, running(), "restart", 202),
    "restart one that is stopped": ({"power": "stopped"}, STOPPED, "restart", 409),
    "pause one that runs": ({}, running(), "pause", 202),
    "pause one that is paused": ({"power": "paused"}, running(), "pause", 409),
    "start one that is paused": ({"power": "paused"}, running(), "start", 409),
    "resume one that is paused": ({"power": "paused"}, running(), "resume", 202),
    "resume one that is stopped": ({"power": "stopped"}, STOPPED, "resume", 409),
}  # fmt: skip


async def test_one_that_halted_stands_still_until_it_is_asked_for(api: Service) -> None:
    await create(api)
    halted = {"why": "it crashed", "since": "2026-01-01T00:00:00Z", "asked": 0}
    await write(api, "web1", **{**STOPPED, "state": "crashed", "power": {"halted": halted}})
    memory = (await api.call("GET", "/v1/host")).json["account"]["memory"]
    assert memory["promised"] == 0, "it holds none"
    stop = await api.call("POST", "/v1/vms/web1/actions/stop")
    assert stop.status == 409 and "is stopped already" in stop.json["detail"]
    answer = await api.call("POST", "/v1/vms/web1/actions/start")
    assert answer.status == 202, answer.json
    found = await api.call("GET", "/v1/vms/web1")
    assert (found.json["spec"]["power"], found.json["spec"]["asked"]) == ("running", 1)
    assert found.json["status"]["power"]["halted"] == halted, "only its host writes that"
    assert Vm.from_body(found.json).wanted == "running"


@pytest.mark.parametrize("case", DEEDS)
async def test_a_deed_is_taken_or_refused_by_what_is(api: Service, case: str) -> None:
    wish, status, deed, wanted = DEEDS[case]
    await create(api, **wish)
    await write(api, "web1", **status)
    answer = await api.call("POST", f"/v1/vms/web1/actions/{deed}")
    assert answer.status == wanted, answer.json
    if wanted == 202:
        assert answer.json["operation"]["spec"]["deed"]["kind"] == deed
        power = {
            "start": "running",
            "stop": "stopped",
            "restart": "running",
            "pause": "paused",
            "resume": "running",
        }[deed]
        assert (await api.call("GET", "/v1/vms/web1")).json["spec"]["power"] == power


async def test_a_second_deed_waits_and_names_the_first_but_stop_wins(api: Service) -> None:
    launched = (await api.call("POST", "/v1/vms", WEB1)).json["operation"]["meta"]["id"]
    busy = await api.call("POST", "/v1/vms/web1/actions/start")
    assert (busy.status, busy.json["code"], busy.json["details"]["operation"]) == (
        409,
        "busy",
        launched,
    )
    assert (await api.call("POST", "/v1/vms/web1/actions/stop")).status == 202
    over = (await api.call("GET", f"/v1/operations/{launched}")).json["status"]
    assert (over["phase"], over["stage"]) == ("cancelled", "superseded by stop")


async def test_an_operation_is_cancelled_by_wish_and_only_once_ended_refuses(api: Service) -> None:
    identity = (await api.call("POST", "/v1/vms", WEB1)).json["operation"]["meta"]["id"]
    assert (await api.call("POST", f"/v1/operations/{identity[:8]}/actions/cancel")).json["spec"][
        "cancel"
    ] is True
    await operations.finish(api.parts.store, f"operation/{identity}", cancelled=True)
    assert (await api.call("POST", f"/v1/operations/{identity}/actions/cancel")).status == 409


async def test_waiting_ends_with_the_operation_and_at_once_when_it_has_ended(api: Service) -> None:
    identity = (await api.call("POST", "/v1/vms", WEB1)).json["operation"]["meta"]["id"]
    waiting = asyncio.create_task(api.call("GET", f"/v1/operations/{identity}/wait?timeout=20"))
    await asyncio.sleep(0.02)
    await operations.note(api.parts.store, f"operation/{identity}", "half way")
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await operations.finish(api.parts.store, f"operation/{identity}")
    async with asyncio.timeout(2):
        assert (await waiting).json["status"]["phase"] == "done"
    async with asyncio.timeout(2):
        assert (await api.call("GET", f"/v1/operations/{identity}/wait?timeout=20")).json["status"][
            "phase"
        ] == "done"


async def test_waiting_ends_with_its_time(api: Service) -> None:
    identity = (await api.call("POST", "/v1/vms", WEB1)).json["operation"]["meta"]["id"]
    assert (await api.call("GET", f"/v1/operations/{identity}/wait?timeout=0.05")).json["status"][
        "phase"
    ] == "pending"


# ---- names, trash


async def test_a_name_is_taken_until_it_is_given_back(api: Service) -> None:
    await create(api)
    assert (await api.call("POST", "/v1/vms", WEB1)).json["code"] == "exists"
    assert (await api.call("POST", "/v1/vms/web1/actions/rename", {"name": "WEB2"})).json["meta"][
        "name"
    ] == "web2"
    assert (await api.call("GET", "/v1/vms/web1")).status == 404
    await create(api)
    assert (await api.call("POST", "/v1/vms/web1/actions/rename", {"name": "web2"})).json[
        "code"
    ] == "exists"


async def test_a_near_miss_is_helped(api: Service) -> None:
    await create(api)
    assert (await api.call("GET", "/v1/vms/wbe1")).json["hint"] == "did you mean web1?"


async def test_deleted_lies_in_the_trash_and_comes_back(api: Service) -> None:
    await create(api)
    await write(api, "web1", **STOPPED)
    assert (await api.call("DELETE", "/v1/vms/web1")).status == 202
    assert (await api.call("GET", "/v1/vms")).json["items"] == []
    (trashed,) = (await api.call("GET", "/v1/vms?trash=true")).json["items"]
    await write(api, trashed["meta"]["id"], **STOPPED)
    await create(api)
    assert (await api.call("POST", "/v1/vms/web1/actions/undelete")).json["code"] == "exists"
    wrong = await api.call("POST", "/v1/vms/web1/actions/undelete", {"name": "old web1"})
    assert wrong.status == 422 and "is not a valid name" in wrong.json["detail"]
    back = await api.call("POST", "/v1/vms/web1/actions/undelete", {"name": "old-web1"})
    assert (back.json["meta"]["name"], back.json["spec"]["power"], back.json["meta"]["id"]) == (
        "old-web1",
        "stopped",
        trashed["meta"]["id"],
    )


async def test_of_two_in_the_trash_with_one_name_nobody_guesses_which_is_meant(
    api: Service,
) -> None:
    ids = []
    for _ in range(2):
        ids.append((await create(api))["meta"]["id"])
        await write(api, "web1", **STOPPED)
        await api.call("DELETE", "/v1/vms/web1")
        await write(api, ids[-1], **STOPPED)
    for deed in ("purge", "undelete"):
        problem = (await api.call("POST", f"/v1/vms/web1/actions/{deed}")).json
        assert (
            problem["code"] == "conflict"
            and all(each in problem["detail"] for each in ids)
            and "id" in problem["hint"]
        )
    assert (await api.call("POST", f"/v1/vms/{ids[0]}/actions/purge")).status == 202
    assert (await api.call("POST", "/v1/vms/web1/actions/undelete")).json["meta"]["id"] == ids[1]


async def test_nobody_who_is_to_delete_something_is_told_what_else_there_is(api: Service) -> None:
    await create(api)
    assert (await api.call("DELETE", "/v1/vms/wbe1")).json["hint"] == "virtuary list shows them"
    assert (await api.call("DELETE", "/v1/images/tinny")).json[
        "hint"
    ] == "virtuary image list shows them"


async def test_one_in_the_trash_does_not_touch_the_name_of_its_successor(api: Service) -> None:
    await create(api)
    await write(api, "web1", **STOPPED)
    await api.call("DELETE", "/v1/vms/web1")
    (old,) = (await api.call("GET", "/v1/vms?trash=true")).json["items"]
    await write(api, old["meta"]["id"], **STOPPED)
    new = await create(api)
    assert (
        await api.call("POST", f"/v1/vms/{old['meta']['id']}/actions/rename", {"name": "web9"})
    ).status == 409
    assert (await api.call("DELETE", f"/v1/vms/{old['meta']['id']}?now=true")).status == 202
    assert (await api.call("GET", "/v1/vms/web1")).json["meta"]["id"] == new["meta"]["id"]


async def test_one_that_runs_or_is_protected_is_not_deleted_by_accident(api: Service) -> None:
    await create(api, policy={"protect": True})
    await write(api, "web1", **running())
    assert (await api.call("DELETE", "/v1/vms/web1?force=true")).status == 409
    await api.call("PATCH", "/v1/vms/web1", {"policy": {"protect": False}})
    assert (await api.call("DELETE", "/v1/vms/web1")).status == 409
    assert (await api.call("DELETE", "/v1/vms/web1?force=true")).status == 202


async def test_an_image_in_use_is_not_deleted(api: Service) -> None:
    await create(api)
    refused = await api.call("DELETE", "/v1/images/tiny")
    assert refused.status == 409 and "web1" in refused.json["detail"]


# ---- touches


@pytest.mark.parametrize(
    ("method", "target", "body"), [("GET", "ssh", None), ("POST", "exec", {"command": ["true"]})]
)
async def test_a_stopped_server_is_not_touched(
    api: Service, method: str, target: str, body: Any
) -> None:
    await create(api)
    assert (await api.call(method, f"/v1/vms/web1/{target}", body)).status in (404, 409)


async def test_the_way_in_is_told(api: Service) -> None:
    await create(api)
    await write(api, "web1", **running(), stages={"ssh": 1.0})
    way = (await api.call("GET", "/v1/vms/web1/ssh")).json
    assert (way["host"], way["port"], way["user"], way["ready"]) == (
        "127.0.0.1",
        2222,
        "root",
        True,
    )
    assert (
        way["known"] is False
        and way["alias"] == "virtuary-" + (await api.call("GET", "/v1/vms/web1")).json["meta"]["id"]
    )


async def test_logs_are_there_for_a_server_that_never_ran(api: Service) -> None:
    await create(api)
    assert (await api.call("GET", "/v1/vms/web1/logs")).json == {"console": "", "qemu": ""}


async def test_input_that_is_no_base64_is_refused(api: Service) -> None:
    await create(api)
    good = base64.b64encode(b"x").decode()
    assert (
        await api.call("POST", "/v1/vms/web1/exec", {"command": ["a"], "stdin": "%"})
    ).status == 422
    assert (
        await api.call("POST", "/v1/vms/web1/exec", {"command": ["a"], "stdin": good})
    ).status == 404


@pytest.mark.qemu
async def test_the_host_describes_itself(api: Service) -> None:
    host = (await api.call("GET", "/v1/host")).json
    assert (
        host["cpus"] == os.cpu_count() and host["accel"] == "tcg" and host["qemu"].count(".") == 2
    )
    doctor = (await api.call("GET", "/v1/doctor")).json
    assert {check["state"] for check in doctor["checks"]} <= {"ok", "note", "missing"} and len(
        doctor["checks"]
    ) == 12
    assert all(check["remedy"] for check in doctor["checks"] if check["state"] == "missing")


async def test_capacity_counts_floors_of_bandwidth(api: Service) -> None:
    await api.call("POST", "/v1/networks", {"name": "lan", "speed": 10**8})
    found = (
        await api.call(
            "GET",
            "/v1/capacity?memory=67108864&disk=1048576&bandwidth=10000000&network=lan&count=20",
        )
    ).json
    assert (
        found["by"]["bandwidth"] == 9
        and found["each"]["bandwidth"] == 10_000_000
        and found["fits"] is False
    )
    assert "105 Mbit/s are missing" in found["missing"]
    assert (await api.call("GET", "/v1/host")).json["bandwidth"]["lan"]["inbound"][
        "usable"
    ] == 95_000_000
    assert (await api.call("GET", "/v1/capacity?bandwidth=10000000&network=nowhere")).status == 404
    assert "bandwidth" not in (await api.call("GET", "/v1/capacity")).json["by"]


# ---- events


async def read(chunks: asyncio.Queue[bytes], number: int) -> list[dict[str, Any]]:
    """The next events; comments are passed over."""
    events = []
    async with asyncio.timeout(5):
        while len(events) < number:
            for block in (await chunks.get()).split(b"\n\n"):
                fields = dict(
                    line.split(b": ", 1)
                    for line in block.split(b"\n")
                    if b": " in line and not line.startswith(b":")
                )
                if fields:
                    events.append(
                        {
                            "id": int(fields[b"id"]),
                            "event": fields[b"event"].decode(),
                            "data": json.loads(fields[b"data"]),
                        }
                    )
    return events


async def test_events_tell_what_changes_from_now_on(api: Service) -> None:
    await create(api, name="before")
    async with api.stream("/v1/events") as chunks:
        assert await chunks.get() == b"200"
        vm = await create(api)
        events = await read(chunks, 2)
    assert [event["event"] for event in events] == ["vm.changed", "operation.changed"]
    assert events[0]["data"] == vm and {event["id"] for event in events} == {vm["meta"]["revision"]}


@pytest.mark.slow
async def test_events_go_on_where_they_were_left(api: Service) -> None:
    first = await create(api)
    await create(api, name="web2")
    async with api.stream("/v1/events", Last_Event_ID=str(first["meta"]["revision"])) as chunks:
        assert await chunks.get() == b"200"
        missed = await read(chunks, 2)
        await create(api, name="web3")
        later = await read(chunks, 2)
    assert [event["data"]["meta"]["name"] for event in missed + later] == [
        "web2",
        "launch",
        "web3",
        "launch",
    ]


async def test_events_of_one_server_leave_out_the_others(api: Service) -> None:
    vm = await create(api)
    key = f"vm/{vm['meta']['id']}"
    async with api.stream(f"/v1/events?since={vm['meta']['revision']}&target={key}") as chunks:
        assert await chunks.get() == b"200"
        await create(api, name="web2")
        await api.call("PATCH", "/v1/vms/web1", {"cpu": 2})
        await api.call("POST", "/v1/vms/web1/actions/stop")
        events = await read(chunks, 3)
    assert all(event["data"].get("spec", {}).get("target", key) == key for event in events)
    assert events[0]["data"]["spec"]["cpu"]["count"] == 2


async def test_a_deleted_document_is_an_event(api: Service) -> None:
    vm = await create(api)
    async with api.stream(f"/v1/events?since={api.parts.store.revision}") as chunks:
        await chunks.get()
        await api.parts.store.txn({}, {}, [f"vm/{vm['meta']['id']}"])
        (event,) = await read(chunks, 1)
    assert (event["event"], event["data"]) == ("vm.deleted", {"key": f"vm/{vm['meta']['id']}"})


async def test_what_its_host_says_of_an_image_is_an_event_of_the_image(paths: Paths) -> None:
    """Once, also where both of its parts change, and in a store that tells by key."""
    parts = make_parts(paths, SqliteStore(paths.store))
    await settle(parts)
    store, api = parts.store, Service(parts)
    (image,) = documents.every(store, Image)
    async with api.stream(f"/v1/events?since={store.revision}") as chunks:
        await chunks.get()
        await documents.change(store, Image, image.key, lambda now: now.seen(size=7))
        await documents.change(store, Image, image.key, lambda now: now.seen(size=8, os="Debian"))
        events = await read(chunks, 2)
        expect, gone = documents.removed(store, documents.every(store, Image)[0])
        await store.txn(expect, {}, gone)
        await create(api, image="debian")
        events += await read(chunks, 4)
    assert [event["event"] for event in events] == [
        "image.changed", "image.changed", "image.deleted", "vm.changed", "image.changed",
        "operation.changed",
    ]  # fmt: skip
    assert events[1]["data"]["status"]["size"] == 8 and events[2]["data"] == {"key": image.key}
    await store.close()


async def test_a_position_that_is_forgotten_is_gone(paths: Paths) -> None:
    api = Service(make_parts(paths, MemoryStore(log_length=3)))
    await settle(api.parts)
    for number in range(5):
        await create(api, name=f"web{number}")
    answer = await api.call("GET", "/v1/events?since=1")
    assert (answer.status, answer.json["code"]) == (410, "compacted")


async def test_a_position_that_was_never_given_is_gone(api: Service) -> None:
    """Who remembers one of another store would wait for ever, or miss what happens now."""
    for words in (
        {"target": f"/v1/events?since={api.parts.store.revision + 1}"},
        {"target": "/v1/events", "last_event_id": "99999"},
    ):
        answer = await api.call("GET", **words)
        assert (answer.status, answer.json["code"]) == (410, "compacted")


async def test_a_body_of_another_type_is_told_so(api: Service) -> None:
    """What curl sends where nothing is said, for one."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "", "application/yaml"):
        answer = await api.call("POST", "/v1/vms", {"image": "tiny"}, content_type=kind)
        assert (answer.status, answer.json["code"]) == (
            415,
            "not-json",
        ) and "application/json" in answer.json["hint"]
    for kind in (
        "application/json; charset=utf-8",
        "application/merge-patch+json",
        "APPLICATION/JSON",
    ):
        assert (
            await api.call("POST", "/v1/vms", {"image": "tiny"}, content_type=kind)
        ).status == 202


@pytest.mark.parametrize("target", ["/v1/vms", "/healthz", "/v1/vms/nobody", "/metrics"])
async def test_head_is_answered_as_get_is_without_a_body(api: Service, target: str) -> None:
    whole, head = await api.call("GET", target), await api.call("HEAD", target)
    assert (head.status, head.body) == (whole.status, b"")
    same = ("content-type", "content-length")
    assert target == "/metrics" or [head.headers[name] for name in same] == [
        whole.headers[name] for name in same
    ]
    assert (await api.call("HEAD", "/v1/events")).status == 405


# ---- the same over the store of a real host


@pytest.fixture
async def durable(paths: Paths) -> AsyncIterator[Service]:
    store = SqliteStore(paths.store)
    parts = make_parts(paths, store)
    await settle(parts)
    yield Service(parts)
    await store.close()


@pytest.mark.parametrize(
    "target",
    [
        f"/v1/events?since={10**30}",
        "/v1/vms?cursor=%00",
        "/v1/vms/%00",
        "/v1/operations/%F4%8F%BF%BF",
        f"/v1/vms?limit={10**30}",
    ],
)
async def test_no_number_or_name_is_too_strange_for_sqlite(durable: Service, target: str) -> None:
    if "events?" in target:
        assert (await durable.call("GET", target)).status == 422
    else:
        assert (await durable.call("GET", target)).status < 500


async def test_a_server_is_created_durably(durable: Service, paths: Paths) -> None:
    vm = await create(durable)
    other = SqliteStore(paths.store)
    assert other.get(f"vm/{vm['meta']['id']}") is not None
    await other.close()


def test_the_contract_is_the_one_that_was_reviewed(
    paths: Paths, golden: Callable[[str, str], None]
) -> None:
    document = Service(make_parts(paths)).app.app.openapi()
    document["info"]["version"] = "0"
    golden("openapi.json", json.dumps(document, indent=1, sort_keys=True) + "\n")


async def test_huge_pages_that_were_just_set_aside_count_at_once(
    api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is set aside is no other server's any more."""
    monkeypatch.setattr(
        capacity,
        "find_huge_pages",
        lambda: (HugePages(size=2 << 20, total=64, free=64, default=True),),
    )
    wish = {"name": "a", "image": "tiny", "memory": {"size": 128 << 20, "pages": "huge"}}
    assert (await api.call("POST", "/v1/vms", wish)).status == 202
    refused = await api.call("POST", "/v1/vms", {**wish, "name": "b"})
    assert refused.status != 202 and "128 MiB are missing" in refused.json["detail"]


@pytest.mark.parametrize("size", [0, 1, 2, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_the_output_of_a_command_is_one_answer_whatever_its_length(size: int) -> None:
    found = json.loads(outcome_body(Outcome(3, bytes(size), b"e" * size, True)))
    assert (found["status"], found["truncated"]) == (3, True)
    assert (
        base64.b64decode(found["stdout"], validate=True),
        base64.b64decode(found["stderr"]),
    ) == (bytes(size), b"e" * size)


@pytest.mark.parametrize(
    "text",
    ["", "a", 'é\x1b\n"' * 40_000, "x" * (PIECE // 12), "x" * (PIECE // 12 - 1) + "é"],
    ids=len,
)
def test_a_log_is_one_answer_whatever_its_length(text: str) -> None:
    assert json.loads(logs_body(text.encode(), 'its "last" words')) == {
        "console": text,
        "qemu": 'its "last" words',
    }


def test_bytes_that_are_no_text_are_marked_in_a_log() -> None:
    assert json.loads(logs_body(b"a\xffb\xc3", "")) == {"console": "a\ufffdb\ufffd", "qemu": ""}


async def test_networks_are_refused_where_this_host_can_have_none(api: Service) -> None:
    """Before anything is made: a launch on one of them could only fail."""
    api.parts.node.site.nat_fault = "/dev/net/tun can't be opened by this user"
    for target, body in (
        ("/v1/networks", {"name": "team"}),
        ("/v1/vms", {"image": "tiny", "nics": [{"network": "default"}]}),
    ):
        answer = await api.call("POST", target, body)
        assert (answer.status, answer.json["code"]) == (
            501,
            "host-lacks",
        ) and "/dev/net/tun" in answer.json["detail"]
    assert (await api.call("GET", "/v1/networks")).json["items"] == []
