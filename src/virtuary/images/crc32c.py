"""CRC-32C (Castagnoli), the checksum of VHDX. Pure, and slow: some MiB a second."""

from __future__ import annotations


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(piece: bytes) -> int:
    """CRC-32C (Castagnoli), the checksum of VHDX."""
    value = 0xFFFFFFFF
    for byte in piece:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
