"""Run in a network namespace of its own: a server's card on a VLAN of an interface, and one on a
trunk; what passes, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import time

from virtuary.model.meta import Meta
from virtuary.model.network import Network, NetworkSpec
from virtuary.network import bridge, physical
from virtuary.node.making.networks import vlan_of

ALL, GUEST, OTHER, KIND = (
    b"\xff" * 6,
    bytes.fromhex("525400000001"),
    bytes.fromhex("525400000099"),
    b"\x88\xb5",
)
SOL_PACKET, AUXDATA = 263, 8


def ip(*lines: str) -> str:
    return subprocess.run(
        ["sh", "-ec", "\n".join(lines)], capture_output=True, text=True, check=True
    ).stdout


def frame(tag: int | None) -> bytes:
    head = b"" if tag is None else struct.pack(">HH", 0x8100, tag)
    return ALL + OTHER + head + KIND + f"for {tag}".encode().ljust(60, b"\0")


def arrived(tap: int) -> list[str]:
    """What came to the server, and whether with a tag."""
    found = []
    while True:
        try:
            data = os.read(tap, 2000)[10:]
        except BlockingIOError:
            return found
        tagged = data[12:14] == b"\x81\x00"
        body = data[18:] if tagged else data[14:]
        if b"for " in body:
            found.append(body.rstrip(b"\0").decode() + (" tagged" if tagged else ""))


def left(wire: socket.socket) -> list[int]:
    """The tags with which the server's frames came out."""
    found = []
    while True:
        try:
            data, extra, _, _ = wire.recvmsg(2000, 200)
        except BlockingIOError:
            return found
        if b"from the server" in data:
            found.append(struct.unpack_from("=IIIHHHH", extra[0][2])[5] & 0xFFF)


def pass_frames(tap: int, wire: socket.socket, *tags: int | None) -> dict[str, object]:
    os.set_blocking(tap, False)
    os.write(tap, bytes(10) + ALL + GUEST + KIND + b"from the server".ljust(60, b"\0"))
    for tag in tags:
        wire.send(frame(tag))
    time.sleep(0.5)
    return {"in": arrived(tap), "out": left(wire)}


async def main() -> None:
    ip("ip link add wire type veth peer name far", "ip link set wire up", "ip link set far up")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind(("far", 0))
    wire.setsockopt(SOL_PACKET, AUXDATA, 1)
    wire.setblocking(False)
    network = Network(
        meta=Meta(name="seven"), spec=NetworkSpec(kind="bridge", interface="wire", vlan=7)
    )
    told: dict[str, object] = {}
    name = await physical.join("wire", network.bridge, 7, vlan_of(network))
    tap = bridge.open_tap("vt0123456789n0", name, apart=False)
    told["vlan 7"] = pass_frames(tap, wire, 7, 8, None)
    os.close(tap)
    await physical.leave("wire", network.bridge, vlan_of(network), was_up=True)
    bridge.remove_bridge(name)
    told["left behind"] = ip("ip -br link show type vlan", "ip -br link show type bridge").split()
    ip(
        "ip link add br0 type bridge vlan_filtering 1",
        "ip link set br0 up",
        "ip link set wire master br0",
        "bridge vlan add dev wire vid 10-22",
    )
    tap = bridge.open_tap("vt0123456789n1", "br0", apart=False)
    await bridge.allow_tags("vt0123456789n1", "br0", ((10, 10), (20, 21)))
    told["trunk"] = pass_frames(tap, wire, 10, 11, 21, 22)
    print(json.dumps(told))


asyncio.run(main())
