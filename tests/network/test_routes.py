"""What the kernel says of this host's own addresses and of its ways out."""

from __future__ import annotations

from pathlib import Path

from virtuary.network.routes import find_gateways6, find_mtu, find_nameservers, find_own

TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 192.0.2.0
        /24 link UNICAST
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.1
           /32 host LOCAL
        |-- 192.0.2.40
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
"""
SIX = "20010db8000100000000000000000001 02 40 00 80     eth0\n"


def test_an_address_is_the_hosts_own_on_whatever_interface(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(TRIE)
    (tmp_path / "if_inet6").write_text(SIX)
    found = find_own(tmp_path)
    assert {"192.0.2.1", "192.0.2.40", "2001:db8:1::1"} <= found
    assert not {"192.0.2.0", "192.0.2.255", "0.0.0.0"} & found


def test_this_host_has_its_loopback() -> None:
    assert "127.0.0.1" in find_own()


NOTHING = "0" * 32
ROUTES = f"""\
{NOTHING} 00 {NOTHING} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003 eth0
{NOTHING} 00 {NOTHING} 00 20010db8000100000000000000000002 00000400 00000001 00000000 00000003 eth1
20010db8000100000000000000000000 40 {NOTHING} 00 {NOTHING} 00000100 00000001 00000000 00000001 eth1
{NOTHING} 00 {NOTHING} 00 {NOTHING} ffffffff 00000001 00000000 00200200 lo
"""


def test_an_ipv6_router_is_named_where_its_address_says_something_elsewhere(tmp_path: Path) -> None:
    assert find_gateways6(tmp_path) == []
    (tmp_path / "ipv6_route").write_text(ROUTES)
    assert find_gateways6(tmp_path) == ["2001:db8:1::2"]


def test_the_largest_packet_is_that_of_the_narrowest_way_out(tmp_path: Path) -> None:
    for name, mtu in (("eth0", 1500), ("tun0", 1400), ("eth1", 9000), ("lo", 65536)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mtu").write_text(f"{mtu}\n")
    row = "{}\t{}\t00000000\t0003\t0\t0\t0\t{}\t0\t0\t0\n"
    ways = row.format("eth0", "00000000", "00000000"), row.format("eth1", "0000000A", "000000FF")
    (tmp_path / "route").write_text("head\n" + "".join(ways))
    assert find_mtu(tmp_path, tmp_path) == 1500
    (tmp_path / "ipv6_route").write_text(
        "".join(
            f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 0 1 0 3 {name}\n" for name in ("tun0", "lo")
        )
    )
    assert find_mtu(tmp_path, tmp_path) == 1400
    assert find_mtu(tmp_path / "nowhere", tmp_path) is None


def test_nameservers_are_found_beside_lines_that_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "nameserver 198.51.100.1,\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver "
        "198.51.100.2\n"
    )
    assert find_nameservers(tmp_path / "resolv.conf") == ["198.51.100.2"]
    assert find_nameservers(tmp_path / "missing") == []
