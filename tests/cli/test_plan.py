"""`virtuary plan` as a user meets it: the command as a process of its own, against the API on its
socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from virtuary.api.app import make_app
from virtuary.api.auth import listening_socket
from virtuary.api.protocols import PeerProtocol
from virtuary.base.errors import Invalid
from virtuary.base.paths import Paths
from virtuary.cli.plan import parse_host, show
from virtuary.client import AsyncClient, Client
from virtuary.model.consolidation import ConsolidationWish, HostShape, ServerLoad
from virtuary.model.placement import HostRoom, ServerNeed
from virtuary.planning.consolidate import consolidate

# test folders are no packages; the service lives with the API's
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from service import make_parts

PROGRAM = str(Path(sys.executable).with_name("virtuary"))
EXAMPLE = Path(__file__).parents[2] / "examples/consolidation-plan"
HOST = "cpus=8,memory=32GiB,disk=300MiB,network=1Gbit"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def daemon(paths: Paths) -> AsyncIterator[Paths]:
    """The API on its socket, without workers."""
    app = make_app(make_parts(paths))
    config = uvicorn.Config(
        app,
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


async def plan(daemon: Paths, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
    environment = {**os.environ, "VIRTUARY_HOST": f"unix://{daemon.socket}", "NO_COLOR": "1"}
    environment.pop("VIRTUARY_OUTPUT", None)
    done = await asyncio.to_thread(
        subprocess.run,
        [PROGRAM, "plan", *words],
        input=stdin,
        capture_output=True,
        env=environment,
        timeout=60,
        cwd=EXAMPLE,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
async def test_the_example_is_planned(daemon: Paths) -> None:
    status, out, err = await plan(daemon, "consolidate", "loads.csv", "--host", HOST)
    assert status == 0 and err == "", err
    assert (
        "hosts needed     3" in out
        and "servers placed   8 of 8" in out
        and "fewer are impossible" in out
    )
    row = next(line for line in out.splitlines() if line.startswith("host-1"))
    assert "% " in row and ":00" in row and "database" in row
    assert "without a place if a host fails" in out and "CPUs missing at" in out


@pytest.mark.slow
async def test_a_program_gets_all_of_it(daemon: Paths) -> None:
    words = (
        "consolidate",
        "loads.csv",
        "--host",
        HOST,
        "--spare",
        "1",
        "--apart",
        "web1,web2",
        "--growth",
        "20%",
        "-o",
        "json",
    )
    status, out, _ = await plan(daemon, *words)
    found = json.loads(out)
    assert (
        status == 0
        and found["survives_failure"]
        and found["hosts_needed"] == found["hosts_used"] + found["hosts_spare"]
    )
    places = {server: host["name"] for host in found["hosts"] for server in host["servers"]}
    assert len(places) == 8 and places["web1"] != places["web2"]
    status, out, _ = await plan(daemon, "consolidate", "loads.csv", "--host", HOST, "-o", "name")
    assert sorted(line.split()[0] for line in out.splitlines()) == sorted(places)


@pytest.mark.slow
async def test_what_has_no_place_is_told_and_ends_with_4(daemon: Paths) -> None:
    status, out, _ = await plan(
        daemon,
        "consolidate",
        "loads.csv",
        "--host",
        "cpus=4,memory=16GiB",
        "--hosts",
        "3",
        "--headroom",
        "0%",
    )
    assert (
        status == 4
        and "reports: larger than what an empty host offers; 1.00 CPUs missing"
        in out.replace("0.99", "1.00")
    )
    assert "hosts would hold all that fit on one" in out
    needed, large = out.splitlines()[:2]
    assert needed.endswith("3, for those that fit on one")
    assert large.split() == ["fit", "on", "no", "host", "office1,", "reports"]


def test_where_no_server_fits_on_a_host_none_is_said_and_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server: Any = {"name": "big", "cpu": [50.0] * 168, "memory": [1e9] * 168}
    wish: Any = {"servers": [server], "host": {"cpu": 4, "memory": 2**34}, "spare": 1}
    found = consolidate(ConsolidationWish.model_validate(wish)).model_dump(mode="json")
    show(found, wish, "UTC")
    needed, large = capsys.readouterr().out.splitlines()[:2]
    assert needed.endswith("none: no server fits on such a host") and large.endswith("big")


@pytest.mark.slow
async def test_stdin_json_and_hours_that_were_not_measured(daemon: Paths) -> None:
    rows = b"server,timestamp,cpu,memory\na,2026-11-23T09:00+01:00,1,1GiB\na,2026-11-23T10:00+01:00,2,1GiB\n"
    status, out, err = await plan(
        daemon,
        "consolidate",
        "-",
        "--host",
        "cpus=4,memory=4GiB",
        "--timezone",
        "Europe/Berlin",
        "-o",
        "json",
        stdin=rows,
    )
    assert status == 0 and "1 of 1 servers were not measured in every hour" in err
    assert json.loads(out)["hosts"][0]["peaks"]["cpu"]["value"] == 2
    status, out, err = await plan(
        daemon,
        "consolidate",
        "loads.json",
        "--host",
        "cpus=4,memory=32GiB,network=1Gbit",
        "--apart",
        "web1,web2",
    )
    assert status == 0 and "hosts needed     2" in out, err


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no host": (("loads.csv",), "--host"),
    "half a host": (("loads.csv", "--host", "cpus=4"), "memory of a host is not given"),
    "an odd host": (("loads.csv", "--host", "wheels=4"), "'wheels=4' is not one of cpus, memory"),
    "no percentage": (("loads.csv", "--host", HOST, "--headroom", "10"), "write for example 10%"),
    "all headroom": (("loads.csv", "--host", HOST, "--headroom", "100%"), "headroom"),
    "no zone": (
        ("loads.csv", "--host", HOST, "--timezone", "../../etc/passwd"),
        "there is no time zone",
    ),
    "a stranger": (
        ("loads.csv", "--host", HOST, "--apart", "web1,web9"),
        "'web9', which is not among the servers",
    ),
    "not measured": (
        ("loads.csv", "--host", HOST + ",iops=500"),
        "iops of 'backup' was not measured (8 such servers)",
    ),
    "no file": (("nothing.csv", "--host", HOST), "does not exist"),
    "no measurements": (
        ("../consolidation/mail.yaml", "--host", HOST),
        "mail.yaml, line 1: unknown columns",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_wrong_usage_ends_with_2_and_a_sentence(daemon: Paths, case: str) -> None:
    words, sentence = REFUSED[case]
    status, out, err = await plan(daemon, "consolidate", *words)
    assert status == 2 and out == "" and sentence in " ".join(err.split()), err
    assert "Traceback" not in err


@pytest.mark.slow
async def test_wrong_gathering_ends_with_2(daemon: Paths) -> None:
    for words in (
        ["--", "-oProxyCommand=id"],
        ["a;b"],
        ["a", "a"],
        ["a", "--every", "0.1s"],
        ["a", "--for", "1s", "--every", "1m"],
    ):
        status, out, err = await plan(daemon, "gather", *words)
        assert status == 2 and out == "" and "error" in err.lower(), words


@pytest.mark.slow
async def test_both_clients_plan(daemon: Paths) -> None:
    servers = [ServerLoad(name="a", cpu=1, memory=10), ServerLoad(name="b", cpu=2, memory=10)]
    host = HostShape(cpu=4, memory=100)
    found = await asyncio.to_thread(
        lambda: Client(str(daemon.socket)).plan_consolidation(servers, host, headroom=0)
    )
    assert found.hosts_used == 1 and found.hosts[0].servers == ("a", "b")
    async with AsyncClient(str(daemon.socket)) as client:
        assert await client.plan_consolidation(servers, host, headroom=0) == found
        with pytest.raises(Invalid, match="spare"):
            await client.plan_consolidation(servers, host, hosts=1, spare=1)


HOSTS_CSV = (
    "name,cpus,memory,zone,features\nh1,16,64GiB,a,\nh2,16,64GiB,a,huge gpu\nh3,16,64GiB,b,\n"
)
SERVERS_CSV = (
    "name, cpu, memory, features, host, group, "
    "apart\nold,8,48GiB,,h1,,\nweb1,2,4GiB,,,web,zone\nweb2,2,4GiB,,,web,zone\ndb,4,32GiB,huge,,,\n"
)


async def test_servers_are_placed_onto_hosts(daemon: Paths, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.csv"
    hosts.write_text(HOSTS_CSV)
    status, out, err = await plan(
        daemon, "place", "-", "--onto", str(hosts), stdin=SERVERS_CSV.encode()
    )
    assert status == 0, err
    assert "placed      3 of 3" in out and re.search(r"h2 +a +12 CPUs +32 GiB +1 +db", out), out
    status, out, _ = await plan(
        daemon, "place", "-", "--onto", str(hosts), "-o", "name", stdin=SERVERS_CSV.encode()
    )
    assert sorted(line.split()[0] for line in out.splitlines()) == ["db", "web1", "web2"]
    more = SERVERS_CSV + "web3,2,4GiB,,,web,zone\nbig,20,8GiB,huge,,,\n"
    status, out, _ = await plan(daemon, "place", "-", "--onto", str(hosts), stdin=more.encode())
    assert status == 4 and "web3: 3 hosts kept free of a second one of the group web" in out
    assert (
        "big: 3 hosts with less than 20 CPUs free (the most: " in out
        and "2 hosts without huge" in out
    )


UNREADABLE = {
    "a column nobody knows": (
        "name,cpu,memory,wheels\na,1,1GiB,4\n",
        "stdin has a column 'wheels' that nobody knows",
    ),
    "no memory": ("name,cpu\na,1\n", "stdin has no column memory"),
    "nothing": ("", "stdin has no column name or cpu or memory"),
    "parsecs": (
        "name,cpu,memory\na,1,12 parsecs\n",
        "stdin, line 2: '12 parsecs' is no amount of memory",
    ),
    "too much on a line": (
        "name,cpu,memory\na,1,1GiB,7\n",
        "stdin, line 2: more values than columns",
    ),
    "twice": ("name,cpu,memory\na,1,1GiB\na,1,1GiB\n", "the server 'a' is given twice"),
    "a stranger": (
        "name,cpu,memory,host\na,1,1GiB,h9\n",
        "'a' is on 'h9', which is not among the hosts",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_servers_that_make_no_sense_end_with_2(
    daemon: Paths, tmp_path: Path, case: str
) -> None:
    text, sentence = UNREADABLE[case]
    hosts = tmp_path / "hosts.csv"
    hosts.write_text(HOSTS_CSV)
    status, out, err = await plan(daemon, "place", "-", "--onto", str(hosts), stdin=text.encode())
    assert status == 2 and out == "" and sentence in " ".join(err.split()), err


async def test_both_clients_place(daemon: Paths) -> None:
    servers, hosts = [ServerNeed(name="a", cpu=1, memory=1)], [HostRoom(name="h", cpu=2, memory=2)]
    found = await asyncio.to_thread(
        lambda: Client(str(daemon.socket)).plan_placement(servers, hosts)
    )
    async with AsyncClient(str(daemon.socket)) as client:
        assert await client.plan_placement(servers, hosts) == found
    assert found.hosts[0].servers == ("a",) and found.bound == 1


def test_the_shape_of_a_host_is_read() -> None:
    assert parse_host("cpus=2.5,memory=1GiB,disk=1MiB/s,iops=10,network=8Kbit") == {
        "cpu": 2.5, "memory": 2**30, "disk": 2**20, "iops": 10, "network": 1000,
    }  # fmt: skip
    for text in (
        "",
        "cpus",
        "cpus=,memory=1",
        "cpus=1,cpus=2,memory=1",
        "cpus=nan,memory=1",
        "cpus=inf,memory=1",
        "cpus=-1,memory=1",
        "cpus=0,memory=1",
    ):
        with pytest.raises(Invalid):
            parse_host(text)
