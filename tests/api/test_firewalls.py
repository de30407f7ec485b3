"""Firewall groups as callers of the API meet them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.paths import Paths

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle

WEB: dict[str, Any] = {
    "name": "web",
    "rules": [
        {
            "direction": "in",
            "protocol": "tcp",
            "ports": ["80", "8000-8100"],
            "peers": ["10.0.0.0/8"],
        },
        {"direction": "in", "action": "reject"},
    ],
}


@pytest.fixture
async def api(paths: Paths) -> Service:
    parts = make_parts(paths)
    await settle(parts)
    found = Service(parts)
    for name, net in (("lan", "10.9.1.0/24"), ("other", "10.9.2.0/24")):
        assert (await found.call("POST", "/v1/networks", {"name": name, "ipv4": net})).status == 201
    return found


async def server(api: Service, name: str, *nics: dict[str, Any]) -> Any:
    answer = await api.call(
        "POST", "/v1/vms", {"image": "tiny", "name": name, "memory": 64 * 2**20, "nics": nics}
    )
    assert answer.status == 202, answer.json
    return answer.json["vm"]


async def test_a_group_lives_and_dies(api: Service) -> None:
    made = await api.call("POST", "/v1/firewalls", WEB)
    assert made.status == 201 and made.headers["etag"] == f'"{made.json["meta"]["revision"]}"'
    assert made.json["spec"]["rules"][0]["ports"] == ["80", "8000-8100"]
    assert (await api.call("GET", "/v1/firewalls")).json["items"] == [made.json]
    assert (await api.call("GET", "/v1/firewalls/web")).json == made.json
    changed = await api.call(
        "PATCH", "/v1/firewalls/web", {"description": "x"}, if_match=made.headers["etag"]
    )
    assert changed.status == 200 and changed.json["spec"]["rules"] == made.json["spec"]["rules"]
    assert (
        await api.call("PATCH", "/v1/firewalls/web", {"rules": []}, if_match=made.headers["etag"])
    ).status == 412
    gone = await api.call("DELETE", "/v1/firewalls/web")
    assert (gone.status, gone.body) == (204, b"")
    assert (await api.call("GET", "/v1/firewalls/web")).status == 404


async def test_a_repeated_request_does_nothing_twice(api: Service) -> None:
    first = await api.call("POST", "/v1/firewalls", WEB, idempotency_key="a")
    again = await api.call("POST", "/v1/firewalls", WEB, idempotency_key="a")
    assert (first.status, again.status) == (201, 201) and again.json == first.json
    assert (await api.call("POST", "/v1/firewalls", WEB)).json["code"] == "exists"
    for _ in range(2):
        assert (await api.call("DELETE", "/v1/firewalls/web", idempotency_key="b")).status == 204
    assert (await api.call("DELETE", "/v1/firewalls/web")).status == 404


async def test_rules_name_servers_as_they_are_called_now(api: Service) -> None:
    vm = await server(api, "web1", {"network": "lan"})
    wish = {"name": "db", "rules": [{"direction": "in", "peers": ["server:web1"]}]}
    made = (await api.call("POST", "/v1/firewalls", wish)).json
    assert made["spec"]["rules"][0]["peers"] == ["server:web1"]
    async with api.stream(f"/v1/events?since=0&target=firewall/{made['meta']['id']}") as chunks:
        told = b""
        while b"server:web1" not in told:
            told = await chunks.get()
    renamed = await api.call("POST", "/v1/vms/web1/actions/rename", {"name": "www"})
    assert renamed.status == 200
    shown = (await api.call("GET", "/v1/firewalls/db")).json
    assert shown["spec"]["rules"][0]["peers"] == ["server:www"]
    assert shown["meta"] == made["meta"], "a new name changes no group"
    assert (await api.call("GET", "/v1/firewalls")).json["items"] == [shown]
    stored = api.parts.store.get(f"firewall/{made['meta']['id']}")
    assert stored and f"server:{vm['meta']['id']}".encode() in stored.value


async def test_a_server_is_attached_and_the_group_stays_while_it_is(api: Service) -> None:
    await api.call("POST", "/v1/firewalls", WEB)
    vm = await server(api, "web1", {"network": "lan", "groups": ["web"]})
    assert vm["spec"]["nics"][0]["groups"] == ["web"]
    refused = await api.call("DELETE", "/v1/firewalls/web")
    assert (
        refused.status == 409
        and "attached to web1" in refused.json["detail"]
        and refused.json["hint"]
    )
    changed = await api.call("PATCH", "/v1/vms/web1", {"nics": [{"network": "lan"}]})
    assert changed.status == 200 and changed.json["meta"]["generation"] == vm["meta"]["generation"]
    assert (await api.call("DELETE", "/v1/firewalls/web")).status == 204


async def test_a_dry_run_tells_of_groups_that_are_not_there(api: Service) -> None:
    wish = {
        "image": "tiny",
        "name": "web1",
        "nics": [{"network": "lan", "groups": ["lost", "gone"]}],
    }
    answer = await api.call("POST", "/v1/vms?dry_run=true", wish)
    told = [blocker["detail"] for blocker in answer.json["blockers"]]
    assert [text for text in told if "firewall group named 'lost'" in text] and [
        text for text in told if "'gone'" in text
    ]


async def test_the_defaults_of_a_network_are_changed(api: Service) -> None:
    changed = await api.call("PATCH", "/v1/networks/lan", {"default_in": "deny"})
    spec = changed.json["spec"]
    assert changed.status == 200 and (spec["default_in"], spec["default_out"]) == ("deny", "allow")
    made = await api.call(
        "POST", "/v1/networks", {"name": "shut", "default_in": "reject", "default_out": "deny"}
    )
    assert (made.json["spec"]["default_in"], made.json["spec"]["default_out"]) == ("reject", "deny")


async def test_a_connection_is_asked_about(api: Service) -> None:
    await api.call("POST", "/v1/firewalls", WEB)
    await server(api, "web1", {"network": "lan", "groups": ["web"]})
    await server(api, "web2", {"network": "lan"})
    await server(api, "far", {"network": "other"})
    ask = "/v1/firewall-test?source={}&destination=web1&protocol=tcp&port={}"
    answer = await api.call("GET", ask.format("web2", 80))
    assert answer.json == {
        "allowed": True, "action": "allow", "direction": "in", "server": "web1", "group": "web",
        "number": 1, "network": "lan", "why": "",
        "sentence": "allowed by rule 1 of group web, on the inbound side of web1",
    }  # fmt: skip
    assert (
        (await api.call("GET", ask.format("web2", 22)))
        .json["sentence"]
        .startswith("rejected by rule 2 of group web")
    )
    far = (await api.call("GET", ask.format("far", 80))).json
    assert not far["allowed"] and far["direction"] is None and "published ports" in far["why"]
    assert (
        await api.call("GET", "/v1/firewall-test?source=web2&destination=web1&protocol=icmp")
    ).json["action"] == "reject"


REFUSED: dict[str, tuple[str, str, Any, int, str]] = {
    "a wrong port": ("POST", "/v1/firewalls", {"name": "x", "rules": [{"direction": "in",
    "protocol": "tcp", "ports": ["http"]}]}, 422, "is not a port"),
    "a wrong peer": ("POST", "/v1/firewalls", {"name": "x", "rules": [{"direction": "in",
    "peers": ["web"]}]}, 422, "is not a peer"),
    "ports of any": ("POST", "/v1/firewalls", {"name": "x", "rules": [{"direction": "in",
    "ports": ["80"]}]}, 422, "has no ports"),
    "a wrong name": ("POST", "/v1/firewalls", {"name": "a b"}, 422, "not a valid name"),
    "an unknown field": ("POST", "/v1/firewalls", {"name": "x", "spec": {}}, 422,
    "is not known here"),
    "too many rules": ("POST", "/v1/firewalls", {"name": "x", "rules": [{"direction": "in"}] * 257},
    422, "256"),
    "a wrong default": ("PATCH", "/v1/networks/lan", {"default_in": "maybe"}, 422, "default_in"),
    "a group twice": ("POST", "/v1/vms", {"image": "tiny", "nics": [{"network": "lan",
    "groups": ["a", "a"]}]}, 422, "named twice"),
    "no port to test": ("GET", "/v1/firewall-test?source=10.0.0.1&destination=10.0.0.2", None, 422,
    "has a port"),
    "nobody to test": ("GET", "/v1/firewall-test?source=a&destination=b&port=1", None, 404,
    "no server named"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_what_makes_no_sense_is_refused_with_a_sentence(api: Service, case: str) -> None:
    method, target, body, status, words = REFUSED[case]
    before = api.parts.store.revision
    answer = await api.call(method, target, body)
    assert answer.status == status and words in answer.json["detail"], answer.json
    assert api.parts.store.revision == before
