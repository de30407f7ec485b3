"""What people write about ports, and how it is shown."""

from __future__ import annotations

from typing import Any

import pytest

from virtuary.base.errors import Invalid
from virtuary.cli.look import ports_of
from virtuary.cli.options import parse_publish

PORT = {"host": 8080, "guest": 80, "protocol": "tcp"}
WRITTEN: dict[str, list[dict[str, Any]]] = {
    "8080:80": [PORT],
    "127.0.0.1:8080:80/tcp": [{**PORT, "address": "127.0.0.1"}],
    "[::]:8080:80/udp": [{**PORT, "address": "::", "protocol": "udp"}],
    "8080-8081:80-81": [PORT, {**PORT, "host": 8081, "guest": 81}],
}
REFUSED = {
    "8080": "is not HOST:GUEST",
    "a:b": "is not HOST:GUEST",
    "80:80/sctp": "sctp can't be published: tcp and udp can",
    "80-90:80-91": "no two ranges of the same length",
    "90-80:90-80": "no two ranges of the same length",
    "1000-9000:1000-9000": "no two ranges of the same length",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_ports_are_published_alone_or_in_ranges(text: str) -> None:
    assert parse_publish(text) == WRITTEN[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_can_not_be_published_says_why(text: str) -> None:
    with pytest.raises(Invalid, match=REFUSED[text]):
        parse_publish(text)


def test_ranges_are_shown_as_such() -> None:
    ports = [port for text in ("0.0.0.0:8000-8002:80-82", "0.0.0.0:8003:90", "[::1]:53:53/udp") for port in parse_publish(text)]
    assert ports_of({"spec": {"publish": ports}}) == "8000-8002→80-82, 8003→90, [::1]:53→53/udp"
