"""Two daemons of root's on one host: each has users of its own, and the networks of the host belong
to one of them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, serve, until
from lans import Place

pytestmark = [pytest.mark.live, pytest.mark.host]
FREE = range(2_000_000_000, 2_000_060_000)


@pytest.fixture
def first(template: Path, place: Place) -> Iterator[Instance]:
    yield from serve(template, namespace=place.host)


@pytest.fixture
def second(template: Path, place: Place) -> Iterator[Instance]:
    """The same namespace; its daemon is started by the test."""
    instance = Instance(template=template, namespace=place.host)
    try:
        yield instance
        instance.wipe()
        instance.stop()
    finally:
        instance.remove()


def changes_within(place: Place, seconds: float) -> list[str]:
    """What anybody changed in the packet filter of the host meanwhile."""
    watch = ["ip", "netns", "exec", place.host, "timeout", str(seconds), "nft", "monitor"]
    told = subprocess.run(watch, capture_output=True, text=True, check=False).stdout
    return [line for line in told.splitlines() if line and not line.startswith("#")]


def networks_check(instance: Instance) -> str:
    checks = instance.call("GET", "/v1/doctor")["checks"]
    return str(next(check["found"] for check in checks if check["name"] == "networks"))


def test_the_second_runs_beside_the_first_and_leaves_its_networks_alone(
    first: Instance, second: Instance, place: Place
) -> None:
    first.ok("launch", "tiny", "one", limit=240)
    assert first.vm("one")["status"]["runtime"]["network"] == "tap"
    second.start()
    owner = (
        f"another Virtuary ({first.root}/state, pid "
        f"{first.process.pid if first.process else 0}) has the networks of this host"
    )
    assert owner in networks_check(second) and "nftables work" in networks_check(first)
    second.ok("launch", "tiny", "two", limit=240)
    assert second.vm("two")["status"]["runtime"]["network"] != "tap"
    users = [
        instance.vm(name)["status"]["runtime"]["uid"]
        for instance, name in ((first, "one"), (second, "two"))
    ]
    assert all(uid in FREE for uid in users) and users[0] // 1000 != users[1] // 1000

    for words in (
        ("network", "create", "mine"),
        ("launch", "tiny", "three", "--network", "default"),
    ):
        refused = second.run(*words)
        assert refused.status and owner in refused.err, refused
    assert not second.json("network", "list") and "three" not in [
        vm["meta"]["name"] for vm in second.json("list")
    ]
    assert changes_within(place, 8) == [], "nobody changes the packet filter"
    assert second.in_guest("two", "echo hello") == first.in_guest("one", "echo hello") == "hello"

    first.wipe()
    until(lambda: second.run("network", "create", "mine").status == 0, 40, "what is free is taken")
    assert f"another Virtuary ({second.root}/state" in networks_check(first)
    second.ok("network", "delete", "mine")
    until(
        lambda: (
            not [
                it
                for it in second.call("GET", "/v1/networks")["items"]
                if it["meta"]["name"] == "mine"
            ]
        ),
        20,
        "it is removed",
    )
    time.sleep(0.2)
    assert "table" not in place.in_host("nft", "list", "tables")
