"""What `list` and `show` make of a document."""

from __future__ import annotations

from virtuary.cli.look import ports_of
from virtuary.model.publish import Publish


def test_a_published_port_tells_where_but_for_everywhere() -> None:
    ports = [
        Publish(host=8080, guest=80),
        Publish(host=8081, guest=81, address="0.0.0.0"),
        Publish(host=53, guest=53, address="::", protocol="udp"),
    ]
    vm = {"spec": {"publish": [port.model_dump() for port in ports]}}
    assert ports_of(vm) == "127.0.0.1:8080→80, 8081→81, [::]:53→53/udp"
    assert ports_of({"spec": {"publish": []}}) == ""
