"""Where a URL of a user may lead: what is never fetched from, what only where that is allowed, and
how URLs are read.
"""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid, PeerAway, Refused
from virtuary.images.addresses import Url, follow, parse_url, why_not
from virtuary.images.making import check_source
from virtuary.images.remote import look_up
from virtuary.model.image import ImageSource

NEVER = [
    "0.0.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "::",
    "fe80::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b:1::7f00:1",
    "64:ff9b:1:a9fe:a9:fe00::",
    "100::1",
    "5f00::1",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808::5601:5601",
    "2606:2800::5efe:a9fe:a9fe",
    "2606:2800::200:5efe:a9fe:a9fe",
    "::ffff:168.63.129.16",
]
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "::1",
    "fc00::1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:a00:1::",
    "2001:0:a00:1::f5ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "3fff::1",
    "4000::1",
    "1::1",
    "e000::1",
    "2606:2800::5efe:a00:1",
    "fd00::5efe:808:808",
    "fdab::200:5efe:808:808",
    "2001:db8::5efe:808:808",
    "::127.0.0.1",
    "0:0:1::1",
]
PUBLIC = [
    "93.184.216.34",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "192.0.0.9",
    "192.31.196.1",
    "192.175.48.1",
    "198.17.0.1",
    "223.255.255.255",
    "2606:2800:220:1::1",
    "64:ff9b::5db8:d822",
    "2002:5db8:d822::",
    "2001:200::1",
    "2001:4:112::1",
    "2620:4f:8000::1",
    "::ffff:93.184.216.34",
    "2606:2800::5efe:5db8:d822",
]


@pytest.mark.parametrize("text", NEVER)
def test_what_is_never_a_server_of_images_is_not_fetched_from_however_it_is_written(
    text: str,
) -> None:
    address = ipaddress.ip_address(text)
    assert why_not(address, False) and why_not(address, True)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_and_all_that_stands_for_them_are_fetched_from_only_where_that_is_allowed(
    text: str,
) -> None:
    address = ipaddress.ip_address(text)
    assert why_not(address, False) == "is a private address" and why_not(address, True) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_servers_on_the_internet_are_fetched_from(text: str) -> None:
    assert why_not(ipaddress.ip_address(text), False) is None


@given(st.integers(0, 2**32 - 1))
def test_an_address_inside_another_is_judged_as_itself(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for text in ("::ffff:0:0", "::ffff:0:0:0", "64:ff9b::"):
        outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(text)) | number)
        for allowed in (False, True):
            assert why_not(outer, allowed) == why_not(inner, allowed)
    assert why_not(inner, False) or inner.is_global or str(inner).startswith("192.")


def test_addresses_are_judged_by_what_they_stand_for() -> None:
    for text in ("93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"):
        assert why_not(ipaddress.ip_address(text), False) is None
    for text in ("127.0.0.1", "10.0.0.1", "::1", "fd00::1"):
        assert why_not(ipaddress.ip_address(text), False) and not why_not(
            ipaddress.ip_address(text), True
        )
    for text in (
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "0.0.0.0",
        "::",
        "::ffff:169.254.169.254",
    ):
        assert why_not(ipaddress.ip_address(text), True)


@pytest.mark.parametrize(
    "text",
    ["file:///etc/passwd", "/etc/passwd", "", "http://", "http:///x", "http://a b/", "http://a\r\nX: y/", "http://user@h/", "ftp://h/",
     "http://u:p@h/", "http://h:99999/", "http://h:x/", "http://[::1", "http://h\\@g/", "http://ä.de/",
     "http://-/", "http://" + "a" * 3000],
)  # fmt: skip
def test_urls_that_could_be_read_two_ways_are_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_url(text)


def test_urls_are_taken_apart_once() -> None:
    url = parse_url("https://Host.Example.:8443/a/b?c=d#e")
    assert (
        url == Url("https", "host.example", 8443, "/a/b?c=d")
        and url.authority == "host.example:8443"
    )
    assert parse_url("http://h").target == "/" and parse_url("https://h:443/").authority == "h"
    assert str(parse_url("http://[2001:db8::1]:80/x")) == "http://[2001:db8::1]/x"
    assert url.at("::1") == "https://[::1]:8443/a/b?c=d"
    assert str(follow(url, "../x")) == "https://host.example:8443/x"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "2130706433", "0x7f.1", "169.254.169.254", "[fec0::1]", "10.0.0.1"],
)
def test_an_address_that_can_not_be_meant_is_refused_before_anything_is_begun(host: str) -> None:
    source = ImageSource(kind="url", url=f"https://{host}/x", sha256="0" * 64)
    with pytest.raises((Refused, Invalid)):
        check_source(source, allow_private=False)
    check_source(source.but(url="https://images.example/x"), allow_private=False)
    with pytest.raises(Invalid, match="needs its digest"):
        check_source(source.but(sha256=""), allow_private=True)
    with pytest.raises(Invalid):
        check_source(source.but(url="file:///etc/passwd"), allow_private=True)


async def test_names_are_looked_up_by_a_program_in_the_jail() -> None:
    assert ipaddress.ip_address("127.0.0.1") in await look_up("localhost", 80, 15)
    with pytest.raises(PeerAway, match="can't be resolved"):
        await look_up("no..name", 80, 15)
