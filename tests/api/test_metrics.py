"""What is used, by the API: figures before anybody looked and after, history, advice, and the page
Prometheus reads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import find_tool
from virtuary.api.exposition import page
from virtuary.base.paths import Paths
from virtuary.host.history import open_history
from virtuary.model.usage import (
    VM_SERIES,
    GuestMemory,
    HostTotals,
    HostUsage,
    NicShare,
    Overview,
    Totals,
    Usage,
)

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle


@pytest.fixture
async def api(paths: Paths) -> Service:
    parts = make_parts(paths)
    await settle(parts)
    service = Service(parts)
    for name in ("web1", "db1"):
        await service.call("POST", "/v1/vms", {"image": "tiny", "name": name, "cpu": 4})
    return service


async def identity(api: Service, name: str) -> str:
    return str((await api.call("GET", f"/v1/vms/{name}")).json["meta"]["id"])


async def remember(api: Service, name: str, minutes: int, **figures: float) -> int:
    """A past of so many minutes, in which every second was the same; when it ends."""
    place = api.parts.node.site.paths.vm(await identity(api, name))
    place.home.mkdir(exist_ok=True)
    now = int(api.parts.node.site.clock.wall().timestamp())
    history = open_history(place.history, VM_SERIES)
    values = [figures.get(series, float("nan")) for series in VM_SERIES]
    for minute in range(minutes, -1, -1):
        history.append(now - 60 * minute, 60, values)
    history.close()
    return now


async def test_before_anybody_looked_the_document_is_told(api: Service) -> None:
    usage = (await api.call("GET", "/v1/vms/web1/usage")).json
    assert (usage["name"], usage["cpus"], usage["age"], usage["cpu"], usage["guest"]) == (
        "web1",
        4,
        None,
        None,
        None,
    )
    assert api.parts.node.metrics.watched


async def test_all_are_told_with_their_host_but_not_the_deleted_ones(api: Service) -> None:
    api.parts.node.metrics.look()
    await api.call("DELETE", "/v1/vms/web1")
    record = api.parts.store.get(f"vm/{await identity(api, 'db1')}")
    assert record
    answer = (await api.call("GET", "/v1/usage")).json
    assert [vm["name"] for vm in answer["vms"] if vm["name"] == "db1"] == ["db1"]
    assert (
        answer["host"]["memory"] > 0
        and answer["host"]["available"] > 0
        and answer["host"]["age"] is not None
    )
    api.parts.node.metrics.close()


async def test_history_is_told_by_resolution_and_from_a_time_on(api: Service) -> None:
    now = await remember(api, "web1", 30, cpu=0.5, resident=1e9)
    answer = (await api.call("GET", f"/v1/vms/web1/history?since={now - 300}")).json
    assert (answer["resolution"], answer["step"]) == ("minute", 60)
    assert 5 <= len(answer["points"]) <= 7 and answer["points"][0]["at"] > now - 400
    assert (
        answer["points"][0]["mean"] == {"cpu": 0.5, "resident": 1e9} == answer["points"][0]["peak"]
    )
    assert (await api.call("GET", "/v1/vms/web1/history?resolution=hour")).json["points"]
    assert (await api.call("GET", "/v1/vms/db1/history")).json["points"] == []
    assert (await api.call("GET", "/v1/host/history?resolution=second")).json["points"] == []


@pytest.mark.parametrize("query", ["resolution=day", "since=-1", "since=x", f"since={10**30}"])
async def test_what_makes_no_sense_is_refused(api: Service, query: str) -> None:
    assert (await api.call("GET", f"/v1/vms/web1/history?{query}")).status == 422


@pytest.mark.parametrize("target", ["usage", "history", "advice"])
@pytest.mark.slow
async def test_a_server_that_is_not_there_is_not_found(api: Service, target: str) -> None:
    assert (await api.call("GET", f"/v1/vms/nobody/{target}")).status == 404


@pytest.mark.parametrize("target", ["/v1/usage", "/metrics", "/v1/advice", "/v1/host/history"])
async def test_nobody_is_told_who_may_not_come_in(paths: Paths, target: str) -> None:
    assert (await Service(make_parts(paths), uid=None).call("GET", target)).status == 403


async def test_advice_is_drawn_from_the_past(api: Service) -> None:
    await remember(api, "web1", 90, cpu=0.1, guest_used=4e6, guest_total=1e8)
    advice = (await api.call("GET", "/v1/vms/web1/advice?enough=3600")).json
    assert (
        advice["change"] == {"cpu": {"count": 1}}
        and advice["command"] == "virtuary set web1 --cpus 1"
        and advice["watched"] > 3600
    )
    every = (await api.call("GET", "/v1/advice")).json["items"]
    assert {item["name"]: item["change"] for item in every} == {"web1": {}, "db1": {}}
    assert (await api.call("GET", "/v1/advice?enough=5")).status == 422


# ---- the page for Prometheus

NAME, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r"[a-zA-Z_][a-zA-Z0-9_]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{((?:{LABEL}="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*)\}})? (\S+)')
PAIR = re.compile(rf'({LABEL})="((?:[^"\\\n]|\\.)*)"')
UNITS = ("seconds", "bytes", "bytes_per_second", "info", "cpus", "reads", "writes")


def parse(text: str) -> dict[str, dict[str, float]]:
    """Every metric's samples by their labels; strict, with the rules `promtool check metrics` has.
    Raises AssertionError.
    """
    assert text.endswith("\n") and "\r" not in text
    kinds: dict[str, str] = {}
    found: dict[str, dict[str, float]] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in found and len(line.split(" ", 3)[3]) > 3, line
            found[current] = {}
        elif line.startswith("# TYPE "):
            _, _, name, kinds[current] = line.split(" ")
            assert name == current and kinds[name] in ("counter", "gauge"), line
        else:
            match = SAMPLE.fullmatch(line)
            assert match and match[1] == current, line
            labels = match[2] or ""
            assert labels not in found[current], f"twice: {line}"
            names = [name for name, _ in PAIR.findall(labels)]
            assert len(set(names)) == len(names)
            found[current][labels] = float(match[3])
    for name, samples in found.items():
        assert samples and (kinds[name] == "counter") == name.endswith("_total"), name
        assert name.removesuffix("_total").endswith(UNITS), f"{name} has no base unit"
        assert all(value == value and value >= 0 for value in samples.values())
    return found


def overview(name: str = "web1", **changes: Any) -> Overview:
    """Every figure there is."""
    counters = dict.fromkeys(Totals.model_fields, 5)
    guest = GuestMemory(total=9, used=4, available=5, age=1.5)
    nics = (
        NicShare(number=0, network="lan", limit_received=1.25e6, floor_sent=5e5),
        NicShare(number=1, network="lan"),
    )
    vm = Usage(
        id="i", name=name, state="running", cpus=1, memory=128, age=0.5, resident=7, guest=guest,
        nics=nics,
        totals=Totals(**counters),
    )  # fmt: skip
    host = {field: 6 for field in HostTotals.model_fields if field != "pressure_seconds"}
    totals = HostTotals(**host, pressure_seconds={"cpu": 1.25})  # type: ignore[arg-type]
    return Overview(
        host=HostUsage(cpus=2, memory=2**40, available=3, swap_used=0, totals=totals),
        vms=(vm.but(**changes),),
    )


def test_the_page_is_as_prometheus_wants_it() -> None:
    found = parse(page(overview(), "0.1"))
    assert found["virtuary_vm_cpu_seconds_total"] == {'name="web1",id="i"': 5.0}
    assert found["virtuary_vm_info"] == {'name="web1",id="i",state="running"': 1.0}
    assert found["virtuary_vm_network_receive_limit_bytes_per_second"] == {
        'name="web1",id="i",nic="0",network="lan"': 1.25e6
    }
    assert found["virtuary_vm_network_transmit_floor_bytes_per_second"] == {
        'name="web1",id="i",nic="0",network="lan"': 5e5
    }
    assert found["virtuary_host_memory_bytes"] == {"": 2.0**40}
    assert found["virtuary_host_pressure_waiting_seconds_total"] == {'resource="cpu"': 1.25}


def test_every_counter_has_its_metric() -> None:
    nothing = page(overview(totals=Totals(), guest=None, resident=None), "0.1")
    everything = page(overview(), "0.1")
    lines = set(everything.splitlines()) - set(nothing.splitlines())
    assert len([line for line in lines if not line.startswith("#")]) == len(Totals.model_fields) + 4


def test_what_nobody_could_tell_is_left_out() -> None:
    found = parse(
        page(
            Overview(
                host=HostUsage(cpus=2, memory=5),
                vms=(Usage(id="i", name="a", state="stopped", cpus=1, memory=5),),
            ),
            "0",
        )
    )
    assert "virtuary_vm_cpu_seconds_total" not in found and "virtuary_vm_memory_bytes" in found
    assert parse(page(Overview(host=HostUsage(cpus=2, memory=5)), "0"))


@given(st.text(max_size=20))
def test_no_name_breaks_the_page(name: str) -> None:
    found = parse(
        page(overview(name.replace("\r", "").replace("\x0b", "")), "0")
        .replace("\x0c", "")
        .translate(ODD)
    )
    assert len(found["virtuary_vm_cpus"]) == 1


ODD = dict.fromkeys([0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029], "?")
"""What Python takes for the end of a line and Prometheus does not."""


async def test_the_page_is_served(api: Service) -> None:
    api.parts.node.metrics.look()
    api.parts.node.metrics.look()
    answer = await api.call("GET", "/metrics")
    assert (
        answer.status == 200
        and answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    )
    found = parse(answer.body.decode())
    assert (
        len(found["virtuary_vm_info"]) == 2
        and found["virtuary_host_sampling_seconds_total"][""] >= 0
    )
    api.parts.node.metrics.close()


@pytest.mark.skipif(
    not find_tool("promtool"),
    reason="promtool can't be had here; the strict parser above stands in",
)
def test_promtool_has_nothing_to_say() -> None:
    done = subprocess.run(
        [str(find_tool("promtool")), "check", "metrics"],
        input=page(overview(), "0.1"),
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
