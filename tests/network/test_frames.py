"""The frames a test guest speaks: right to the last checksum, and deaf to anything broken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.network.frames import (
    ACK,
    GUEST_MAC,
    SYN,
    Segment,
    accept,
    announcement,
    checksum,
    parse_segment,
)

VECTORS = {
    "RFC 1071": (bytes.fromhex("0001f203f4f5f6f7"), 0x220D),
    "an IPv4 header": (bytes.fromhex("450000730000400040110000c0a80001c0a800c7"), 0xB861),
    "nothing": (b"", 0xFFFF),
    "one byte": (b"\x01", 0xFEFF),
    "all ones": (b"\xff" * 8, 0),
}


@pytest.mark.parametrize("case", VECTORS)
def test_the_checksum_is_the_known_one(case: str) -> None:
    data, wanted = VECTORS[case]
    assert checksum(data) == wanted


@given(st.binary(max_size=200).filter(lambda data: len(data) % 2 == 0))
def test_data_with_its_checksum_sums_to_zero(data: bytes) -> None:
    assert checksum(data + struct.pack(">H", checksum(data))) == 0


@given(st.binary(max_size=120))
def test_any_bytes_are_a_segment_or_nothing(frame: bytes) -> None:
    assert parse_segment(frame) is None or isinstance(parse_segment(frame), Segment)


@given(st.binary(min_size=54, max_size=120), st.integers(0, 255))
def test_any_tcp_frame_is_a_segment_or_nothing(frame: bytes, head: int) -> None:
    forged = frame[:12] + b"\x08\x00" + bytes([head]) + frame[15:23] + b"\x06" + frame[24:]
    assert parse_segment(forged) is None or isinstance(parse_segment(forged), Segment)


segments = st.builds(
    Segment, peer_mac=st.binary(min_size=6, max_size=6), source=st.binary(min_size=4, max_size=4),
    target=st.binary(min_size=4, max_size=4),
    source_port=st.integers(1, 65535), target_port=st.integers(1, 65535), sequence=st.integers(0,
    2**32 - 1), acknowledged=st.just(0), flags=st.just(SYN),
)  # fmt: skip


@given(segments, st.integers(0, 2**32 - 1))
def test_the_answer_to_a_syn_is_whole_and_goes_back(segment: Segment, sequence: int) -> None:
    frame = accept(segment, sequence)
    answer = parse_segment(frame)
    assert answer and frame[:6] == segment.peer_mac and answer.peer_mac == GUEST_MAC
    assert (answer.source, answer.target) == (segment.target, segment.source)
    assert (answer.source_port, answer.target_port) == (segment.target_port, segment.source_port)
    assert (answer.sequence, answer.acknowledged) == (sequence, (segment.sequence + 1) % 2**32)
    assert answer.flags == SYN | ACK
    ip, tcp = frame[14:34], frame[34:]
    assert checksum(ip) == 0, "the header's"
    assert (
        checksum(answer.source + answer.target + struct.pack(">BBH", 0, 6, len(tcp)) + tcp) == 0
    ), "and the segment's"
    assert struct.unpack_from(">H", ip, 2)[0] == len(frame) - 14


def test_the_announcement_is_a_gratuitous_arp_to_everybody() -> None:
    frame = announcement("10.0.2.15")
    assert frame[:6] == b"\xff" * 6 and frame[12:14] == b"\x08\x06" and len(frame) == 42
    assert frame[28:32] == frame[38:42] == bytes([10, 0, 2, 15])
