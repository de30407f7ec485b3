"""As much Ethernet, IPv4 and TCP as a test guest needs to complete one handshake. Pure."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

SYN, ACK = 0x02, 0x10
GUEST_MAC = bytes.fromhex("525400000001")


class Segment(NamedTuple):
    """A TCP segment as seen on the wire."""

    peer_mac: bytes
    source: bytes
    target: bytes
    source_port: int
    target_port: int
    sequence: int
    acknowledged: int
    flags: int


def parse_segment(frame: bytes) -> Segment | None:
    """The TCP segment in an Ethernet frame; None for anything else, however broken."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    head = 14 + (frame[14] & 15) * 4
    if len(frame) < head + 20:
        return None
    source, target, sequence, acknowledged, _, flags = struct.unpack_from(">HHIIBB", frame, head)
    return Segment(
        frame[6:12], frame[26:30], frame[30:34], source, target, sequence, acknowledged, flags
    )


def accept(segment: Segment, sequence: int) -> bytes:
    """The frame with which a listening guest answers the SYN `segment`."""
    options = b"\x02\x04" + struct.pack(">H", 1460)
    acknowledged = (segment.sequence + 1) & 0xFFFFFFFF
    ports = (segment.target_port, segment.source_port)
    tcp = (
        struct.pack(">HHIIBBHHH", *ports, sequence, acknowledged, 0x60, SYN | ACK, 65535, 0, 0)
        + options
    )
    pseudo = segment.target + segment.source + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp)) + tcp[18:]
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(tcp),
        0,
        0x4000,
        64,
        socket.IPPROTO_TCP,
        0,
        segment.target,
        segment.source,
    )
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return segment.peer_mac + GUEST_MAC + b"\x08\x00" + ip + tcp


def announcement(address: str) -> bytes:
    """A gratuitous ARP by which the other side learns the guest's MAC."""
    own = socket.inet_aton(address)
    arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + own + bytes(6) + own
    return b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + arp


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
