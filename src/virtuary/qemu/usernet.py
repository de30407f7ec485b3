"""QEMU's own user network in a process of its own, for hosts where passt does not work.

A QEMU without a machine joins a socket and the user network by a hub. The machine's QEMU stays cut off from the host's
network; only this helper opens the guest's connections, confined like a machine but for the network. It is replaced when it
dies. The guest can reach services on the host's loopback addresses through 10.0.2.2: passt would prevent that.
"""

from __future__ import annotations

import json
from typing import Any

from virtuary.qemu.argv import SANDBOX

LINK = 20
"""Descriptor of the connection to the machine's NIC."""


def command(program: str, uuid: str, forwards: tuple[tuple[str, str, int, int], ...]) -> list[str]:
    """The helper's command line. Pure. `forwards`: (protocol, host address, host port, guest port)."""
    hostfwd = [{"str": f"{protocol}:{address}:{host}-:{guest}"} for protocol, address, host, guest in forwards]
    netdevs: list[dict[str, Any]] = [
        {"type": "user", "id": "user", "hostfwd": hostfwd},
        {"type": "stream", "id": "link", "server": False, "addr": {"type": "fd", "str": str(LINK)}},
        {"type": "hubport", "id": "port0", "hubid": 0, "netdev": "user"},
        {"type": "hubport", "id": "port1", "hubid": 0, "netdev": "link"},
    ]
    line = [program, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-uuid", uuid, "-sandbox", SANDBOX]
    for netdev in netdevs:
        line += ["-netdev", json.dumps(netdev, separators=(",", ":"))]
    return line
