"""The ways of packets through this host: routes that lead astray, and interfaces from which nothing
is passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import OUTSIDE, Lab, lab_of, v4, v6
from virtuary.network import ways


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    for name in (
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/vbr1/forwarding",
        "ipv4/conf/up0/forwarding",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("off", "version", "why"),
    [
        ("", 4, ""),
        ("", 6, ""),
        ("ipv4/ip_forward", 4, "this host passes no packets on"),
        ("ipv6/conf/all/forwarding", 6, "this host passes no packets on"),
        ("ipv4/conf/up0/forwarding", 4, "this host passes nothing on that comes from up0"),
        ("ipv4/conf/up0/forwarding", 6, ""),
    ],
)
def test_an_interface_from_which_nothing_is_passed_on_is_named(
    settings: Path, off: str, version: int, why: str
) -> None:
    if off:
        (settings / off).write_text("0\n")
    assert [
        item.sentence for item in ways.not_passed_on(("vbr1", "up0", ""), version, settings)
    ] == ([why] if why else [])


@pytest.mark.host
@pytest.mark.slow
def test_routes_that_lead_elsewhere_are_named_also_those_of_a_policy(lab: Lab) -> None:
    own = [v4("a"), v4("b"), v6("a")]
    assert lab.on_host(ways.astray, "vbr1", own) == []
    lab.run(
        "h",
        f"ip route add {v4('b')}/32 dev up0",
        f"ip -6 rule add to {v6('a')} lookup 77",
        f"ip -6 route add {v6('a')}/128 dev vbr2 table 77",
    )
    try:
        found = [item.sentence for item in lab.on_host(ways.astray, "vbr1", own)]
        assert found == [
            f"what goes to {v4('b')} is routed to up0, and not to vbr1",
            f"what goes to {v6('a')} is routed to vbr2, and not to vbr1",
        ]
    finally:
        lab.run(
            "h",
            f"ip route del {v4('b')}/32",
            f"ip -6 rule del to {v6('a')} lookup 77",
            "ip -6 route flush table 77",
        )


@pytest.mark.host
@pytest.mark.slow
def test_what_is_in_the_way_of_a_network_is_told_once_and_only_what_is_certain(lab: Lab) -> None:
    lab.rule()
    lab.run("h", f"ip route add default via {OUTSIDE}")
    try:
        assert lab.on_host(survey) == []
        lab.run(
            "h",
            "iptables -A FORWARD -p tcp -j DROP",
            "iptables -A FORWARD -m mark --mark 7 -j ACCEPT",
            "iptables -A FORWARD -p icmp -j DROP",
        )
        assert lab.on_host(survey) == [
            "iptables drops what servers send outside (tcp) in ip filter FORWARD"
        ]
    finally:
        lab.run("h", "iptables -F", "ip route del default")


async def survey() -> list[str]:
    return [
        item.sentence for item in await ways.survey("vbr1", "10.1.0.1", [v4("a")], outside=True)
    ]
