"""Which NIC an address outside is led to, when nobody says."""

from __future__ import annotations

from typing import Any

import pytest

from virtuary.base.errors import Invalid
from virtuary.cli.networks import UNSTATED, Speed, _leading, _print

KINDS = {"n": "nat", "i": "isolated", "b": "bridge"}


def server(*networks: str, external: tuple[str, ...] = ()) -> dict[str, Any]:
    nics = [
        {
            "number": number,
            "network": f"net-{name}",
            "network_id": name,
            "ipv4": "10.1.0.2",
            "external": external if not number else (),
        }
        for number, name in enumerate(networks)
    ]
    return {"meta": {"name": "web1"}, "spec": {"nics": nics}}


def test_an_address_is_led_to_the_first_nic_of_kind_nat() -> None:
    assert _leading(server("i", "b", "n", "n"), "203.0.113.7", None, False, KINDS)["number"] == 2
    assert _leading(server("i", "n"), "203.0.113.7", "net-i", False, KINDS)["number"] == 0, (
        "as it was said"
    )
    for vm, network in ((server("i", "b"), None), (server("n"), "net-i")):
        with pytest.raises(Invalid, match="web1 has no NIC on"):
            _leading(vm, "203.0.113.7", network, False, KINDS)


def test_an_address_is_taken_from_whichever_nic_has_it() -> None:
    assert (
        _leading(server("i", "n", external=("203.0.113.7",)), "203.0.113.7", None, True, KINDS)[
            "number"
        ]
        == 0
    )


def test_a_speed_can_be_taken_back() -> None:
    assert [Speed().convert(text, None, None) for text in ("none", "1Gbit")] == [UNSTATED, 10**9]


def test_a_vlan_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {
        "kind": "bridge",
        "ipv4": None,
        "ipv6": None,
        "routed6": False,
        "domain": "virtuary",
        "interface": "eth1",
        "vlan": 7,
        "trunk": [],
        "host_access": False,
    }
    _print(
        {
            "meta": {"name": "desk"},
            "spec": spec,
            "status": {"state": "ready", "reason": None, "bridge": "vb1", "mtu": 9000, "gaps": []},
        }
    )
    assert "vlan" in (told := capsys.readouterr().out) and "7" in told
