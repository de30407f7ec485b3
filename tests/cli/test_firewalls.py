"""Firewall rules as people write them, and the commands as a user meets them: a process of their
own, against the API on its socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from virtuary.api.app import make_app
from virtuary.api.auth import listening_socket
from virtuary.api.protocols import PeerProtocol
from virtuary.base.errors import Conflict, Invalid
from virtuary.base.paths import Paths
from virtuary.cli.firewalls import parse_rule, parse_service, show_rule
from virtuary.cli.options import parse_nic
from virtuary.client import AsyncClient, Client
from virtuary.model.firewall import Rule

# test folders are no packages; the service lives with the API's
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from service import Service, make_parts, settle

PROGRAM = str(Path(sys.executable).with_name("virtuary"))
WRITTEN: dict[str, dict[str, Any]] = {
    "in allow tcp 80,443": {"direction": "in", "action": "allow", "protocol": "tcp", "ports": ["80",
    "443"]},
    "in allow tcp 22 from 10.0.0.0/8": {
        "direction": "in", "action": "allow", "protocol": "tcp", "ports": ["22"],
        "peers": ["10.0.0.0/8"],
    },
    "out deny any to 192.168.0.0/16": {"direction": "out", "action": "deny", "protocol": "any",
    "peers": ["192.168.0.0/16"]},
    "in deny": {"direction": "in", "action": "deny", "protocol": "any"},
    "IN Reject udp 5000-6000 from group:web, server:db1": {
        "direction": "in", "action": "reject", "protocol": "udp", "ports": ["5000-6000"],
        "peers": ["group:web", "server:db1"],
    },
    "in allow icmp": {"direction": "in", "action": "allow", "protocol": "icmp"},
    "out allow to fd00::/8": {"direction": "out", "action": "allow", "protocol": "any",
    "peers": ["fd00::/8"]},
}  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_a_rule_is_written_as_people_say_it(text: str) -> None:
    rule = parse_rule(text)
    assert rule == WRITTEN[text]
    Rule.model_validate(rule)


@pytest.mark.parametrize(
    "text",
    [
        "", "in", "allow in", "in allow 80", "in allow tcp 80 443", "in allow tcp from", "in allow from", "out deny any from 10.0.0.1",
        "in allow to 10.0.0.1", "in allow sctp", "in allow tcp 80 from 10.0.0.1,", "in allow tcp 80 from a to b", "from 10.0.0.1", "in from 10.0.0.1",
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse_rule(text)
    assert raised.value.hint and "for example: in allow tcp" in raised.value.hint


@given(
    st.builds(
        Rule, direction=st.sampled_from(["in", "out"]), action=st.sampled_from(["allow", "deny", "reject"]), protocol=st.sampled_from(["tcp", "udp"]),
        ports=st.lists(st.integers(1, 65535).map(lambda port: (port, 65535)), max_size=3).map(tuple),
        peers=st.lists(st.sampled_from(["10.0.0.0/8", "fd00::/8", "group:web", "server:db1"]), max_size=3).map(tuple),
    )
)  # fmt: skip
def test_what_is_shown_can_be_written_again(rule: Rule) -> None:
    assert Rule.model_validate(parse_rule(show_rule(rule.model_dump(mode="json")))) == rule


def test_a_nic_names_its_groups_in_order() -> None:
    assert parse_nic("default,firewall=web") == {"network": "default", "groups": ["web"]}
    assert parse_nic("lan,firewall=web,ip=10.5.0.9,firewall=ssh") == {
        "network": "lan",
        "groups": ["web", "ssh"],
        "ipv4": "10.5.0.9",
    }


def test_a_service_is_a_protocol_and_a_port() -> None:
    assert parse_service("tcp/5432") == {"protocol": "tcp", "port": 5432}
    assert parse_service("ICMP") == {"protocol": "icmp"}
    for text in ("tcp", "5432", "tcp/http", "icmp/1", "sctp/1", "tcp/٣", "tcp/"):
        with pytest.raises(Invalid):
            parse_service(text)


# ---- commands


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def daemon(paths: Paths) -> AsyncIterator[Paths]:
    """The API on its socket, without workers, with a network and two servers on it."""
    parts = make_parts(paths)
    await settle(parts)
    service = Service(parts)
    assert (
        await service.call("POST", "/v1/networks", {"name": "lan", "ipv4": "10.9.1.0/24"})
    ).status == 201
    for name in ("web1", "db1"):
        wish = {"image": "tiny", "name": name, "memory": 64 * 2**20, "nics": [{"network": "lan"}]}
        assert (await service.call("POST", "/v1/vms", wish)).status == 202
    config = uvicorn.Config(
        make_app(parts),
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(
        server.serve(sockets=[listening_socket(str(paths.socket), system=False)])
    )
    while not server.started:
        await asyncio.sleep(0.005)
    yield paths
    server.should_exit = True
    await task


async def virtuary(daemon: Paths, *words: str) -> tuple[int, str, str]:
    environment = {**os.environ, "VIRTUARY_HOST": f"unix://{daemon.socket}", "NO_COLOR": "1"}
    environment.pop("VIRTUARY_OUTPUT", None)
    done = await asyncio.to_thread(
        subprocess.run, [PROGRAM, *words], capture_output=True, env=environment, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
async def test_groups_are_made_shown_changed_tested_and_removed(daemon: Paths) -> None:
    status, out, err = await virtuary(
        daemon,
        "firewall",
        "create",
        "db",
        "--rule",
        "in allow tcp 5432 from server:web1",
        "--rule",
        "in deny",
        "--description",
        "data",
    )
    assert (status, err) == (0, "") and "firewall=db" in out
    assert (await virtuary(daemon, "set", "db1", "--network", "lan,firewall=db"))[0] != 3, (
        "it is busy: no worker ends its launch"
    )
    status, out, _ = await virtuary(daemon, "firewall", "show", "db")
    assert (
        status == 0 and "1  in allow tcp 5432 from server:web1" in out and "2  in deny any" in out
    )
    status, out, _ = await virtuary(daemon, "firewall", "list")
    assert status == 0 and out.splitlines()[1].split()[:2] == ["db", "2"]
    assert (
        json.loads((await virtuary(daemon, "firewall", "list", "-o", "json"))[1])[0]["meta"]["name"]
        == "db"
    )
    status, out, _ = await virtuary(daemon, "firewall", "set", "db", "--no-rules", "-o", "json")
    assert status == 0 and json.loads(out)["spec"] == {"rules": [], "description": "data"}
    status, out, _ = await virtuary(daemon, "firewall", "test", "web1", "db1", "tcp/5432")
    assert (status, out) == (
        0,
        "allowed by the inbound default of network lan, on the inbound side of db1\n",
    )
    assert (
        json.loads(
            (await virtuary(daemon, "firewall", "test", "web1", "db1", "icmp", "-o", "json"))[1]
        )["allowed"]
        is True
    )
    await virtuary(daemon, "set", "db1", "--network", "lan")
    assert json.loads((await virtuary(daemon, "firewall", "delete", "db", "-o", "json"))[1]) == [
        {"name": "db"}
    ]


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (("create", "x", "--rule", "in allow http"), 2, "is no rule"),
        (("create", "x", "--rule", "in allow tcp http"), 2, "is not a port"),
        (("create", "x", "--rule", "in allow from group:lost"), 3, "no firewall group named lost"),
        (("set", "x"), 2, "nothing to change"),
        (("set", "x", "--no-rules", "--rule", "in deny"), 2, "exclude each other"),
        (("show", "x"), 3, "no firewall group named 'x'"),
        (("test", "web1", "db1", "5432"), 2, "nothing to test"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_with_a_way_out(
    daemon: Paths, words: tuple[str, ...], status: int, why: str
) -> None:
    code, out, err = await virtuary(daemon, "firewall", *words)
    assert (code, out) == (status, "") and why in err
    assert json.loads((await virtuary(daemon, "firewall", "list", "-o", "json"))[1]) == []


async def test_the_client_library_makes_networks_and_groups(daemon: Paths) -> None:
    rules = [Rule(direction="in", action="deny", protocol="tcp", ports=((7, 7),))]

    def synchronous() -> None:
        with Client(str(daemon.socket)) as client:
            assert client.create_network("back", kind="isolated").spec.ipv4
            assert {network.name for network in client.networks()} == {"lan", "back"}
            assert client.create_firewall("closed", rules).spec.rules == tuple(rules)
            assert client.change_firewall("closed", []).spec.rules == ()
            assert [group.name for group in client.firewalls()] == ["closed"]
            client.delete_firewall("closed")
            client.delete_network("back")

    await asyncio.to_thread(synchronous)
    async with AsyncClient(str(daemon.socket)) as client:
        assert (await client.create_network("far", ipv4="10.9.2.0/24")).spec.ipv4 == "10.9.2.0/24"
        assert "far" in {network.name for network in await client.networks()}
        assert (await client.create_firewall("open", rules)).spec.rules == tuple(rules)
        assert (await client.change_firewall("open", [])).spec.rules == ()
        assert [group.name for group in await client.firewalls()] == ["open"]
        await client.delete_firewall("open")
        await client.delete_network("far")
        with pytest.raises(Conflict, match="is used by"):
            await client.delete_network("lan")


async def test_the_speed_of_a_link_is_stated_and_taken_back(daemon: Paths) -> None:
    for text, speed in (("1Gbit", 10**9), ("none", None)):
        status, out, _ = await virtuary(
            daemon, "network", "set", "lan", "--speed", text, "-o", "json"
        )
        assert status == 0 and json.loads(out)["spec"]["speed"] == speed
