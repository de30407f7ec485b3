"""QEMU's own user network in a process of its own, for hosts where passt does not work.

A QEMU without a machine joins a socket and the user network by a hub. The machine's QEMU stays cut
off from the host's network; only this helper opens the guest's connections, confined like a machine
but for the network. It is replaced when it dies. The guest can reach services on the host's
loopback addresses through 10.0.2.2: passt would prevent that.
"""

from __future__ import annotations

import json
from typing import Any

from virtuary.qemu.argv import SANDBOX

LINK = 20
"""Descriptor of the connection to the machine's NIC."""


MONITOR = 21
"""Descriptor of a listening socket, where ports are to be published while it runs."""


def command(program: str, uuid: str, forwards: tuple[tuple[str, str, int, int], ...]) -> list[str]:
    """The helper's command line. Pure. `forwards`: (protocol, host address, host port, guest
    port).
    """
    hostfwd = [
        {"str": f"{protocol}:{address}:{host}-:{guest}"}
        for protocol, address, host, guest in forwards
    ]
    link = {
        "type": "stream",
        "id": "link",
        "server": False,
        "addr": {"type": "fd", "str": str(LINK)},
    }
    return _line(program, uuid, {"type": "user", "id": "user", "hostfwd": hostfwd}, link)


def uplink(program: str, uuid: str) -> list[str]:
    """The command line of one that serves a whole network namespace through an interface of it.
    Pure. What it publishes its monitor is told.
    """
    line = _line(
        program,
        uuid,
        {"type": "user", "id": "user"},
        {"type": "tap", "id": "link", "fd": str(LINK)},
    )
    return [
        *line,
        "-chardev",
        f"socket,id=qmp,fd={MONITOR},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]


def _line(program: str, uuid: str, user: dict[str, Any], link: dict[str, Any]) -> list[str]:
    ports = [
        {"type": "hubport", "id": f"port{number}", "hubid": 0, "netdev": name}
        for number, name in enumerate(("user", "link"))
    ]
    line = [
        program,
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-uuid",
        uuid,
        "-sandbox",
        SANDBOX,
    ]
    for netdev in (user, link, *ports):
        line += ["-netdev", json.dumps(netdev, separators=(",", ":"))]
    return line
