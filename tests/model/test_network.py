"""Networks and NICs as documents: what is understood, what is refused, and how subnets and
addresses are chosen.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.model.network import NetworkSpec, NicWish, choose_ipv4, choose_subnets, eui64, mac_of

BRIDGE = {"kind": "bridge", "interface": "br0"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["10"], [(10, 10)]), ([10, "20-29"], [(10, 10), (20, 29)]), (["5-9", "7-12", "13"], [(5, 13)]), ([], []), ([(3, 4)], [(3, 4)]),
    ],
)  # fmt: skip
def test_a_trunk_is_written_as_people_write_it(
    written: list[Any], meant: list[tuple[int, int]]
) -> None:
    spec = NetworkSpec.model_validate({**BRIDGE, "trunk": written})
    assert (
        list(spec.trunk) == meant
        and NetworkSpec.model_validate_json(spec.model_dump_json()) == spec
    )


SENSELESS: dict[str, dict[str, Any]] = {
    "tag 0": {**BRIDGE, "trunk": ["0"]},
    "tag 4095": {**BRIDGE, "trunk": ["4095"]},
    "backwards": {**BRIDGE, "trunk": ["9-5"]},
    "no number": {**BRIDGE, "trunk": ["all"]},
    "a tag and a trunk": {**BRIDGE, "vlan": 5, "trunk": ["5"]},
    "a trunk of a nat network": {"ipv4": "10.0.0.0/24", "trunk": ["5"]},
    "a bridge to nowhere": {"kind": "bridge"},
    "a bridge with a subnet": {**BRIDGE, "ipv4": "10.0.0.0/24"},
    "a bridge with a firewall": {**BRIDGE, "default_in": "deny"},
    "an interface that is a path": {"kind": "bridge", "interface": "../br0"},
    "a subnet too small": {"ipv4": "10.0.0.0/30"},
    "a subnet with host bits": {"ipv4": "10.0.0.1/24"},
}


@pytest.mark.parametrize("case", SENSELESS)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    with pytest.raises(ValidationError):
        NetworkSpec.model_validate(SENSELESS[case])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "::1",
        "x",
        "10.0.0.1/24",
        "fe80::1%eth0",
    ],
)
def test_no_such_address_leads_to_a_server(address: str) -> None:
    with pytest.raises(ValidationError):
        NicWish(external=(address,))


def test_an_address_outside_has_one_spelling_and_is_named_once() -> None:
    assert NicWish(external=("2001:DB8:0::7", "203.0.113.7")).external == (
        "2001:db8::7",
        "203.0.113.7",
    )
    with pytest.raises(ValidationError):
        NicWish(external=("2001:db8::7", "2001:DB8::7"))


nets = st.builds(
    lambda base, length: str(ip_network((base, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(4, 32),
)


@given(st.text(max_size=8), st.lists(nets, max_size=20))
@pytest.mark.slow
def test_chosen_subnets_meet_nothing(seed: str, routed: list[str]) -> None:
    four, six = choose_subnets(seed, routed)
    assert ip_network(four).is_private and ip_network(six).is_private
    assert not any(
        IPv4Network(four).overlaps(IPv4Network(net)) for net in routed if not net.endswith("/0")
    )
    assert (four, six) == choose_subnets(seed, routed)


@given(st.lists(st.uuids(), min_size=1, max_size=5, unique=True))
@pytest.mark.slow
def test_addresses_are_each_one_s_own_until_none_is_left(ids: list[Any]) -> None:
    taken: list[str] = []
    for one in ids:
        address = choose_ipv4("10.0.0.0/29", mac_of(str(one)), taken)
        assert address and address not in taken and ip_address(address) in ip_network("10.0.0.0/29")
        assert address not in ("10.0.0.0", "10.0.0.1", "10.0.0.7")
        taken.append(address)
    assert (
        choose_ipv4("10.0.0.0/29", mac_of("x"), [f"10.0.0.{number}" for number in range(8)]) is None
    )


def test_the_address_of_a_mac_is_the_one_of_the_rfc() -> None:
    assert eui64("2001:db8::/64", "34:56:78:9a:bc:de") == "2001:db8::3656:78ff:fe9a:bcde"
