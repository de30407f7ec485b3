"""Sizes and durations as people write them, parsed once at the door.

Sizes are binary: a bare `G` is GiB, as in qemu-img; a number without a unit is bytes. `GB`
(decimal) is accepted and means 10^9. Output always carries the unit.
"""

from __future__ import annotations

import re

from virtuary.base.errors import Invalid

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
_BINARY = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?)(|B|IB)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|min|h|d)?\s*$", re.IGNORECASE)
_BITS = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?)bit(?:/s|ps)?\s*$", re.IGNORECASE)
_BANDWIDTH = re.compile(
    r"^\s*(\d{1,18}(?:\.\d{1,6})?)\s*(?:([kKMGT]?)(bit/s|bit|bps|B/s|B)|([KMGT])(iB/s|iB))?\s*$"
)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
MAX_SIZE = 2**60
MAX_BANDWIDTH = 10**13


def parse_size(text: str) -> int:
    """Bytes meant by `text`: "4GiB", "512M", "1.5G", "1048576". Raises Invalid."""
    match = _SIZE.match(text)
    if not match:
        raise Invalid(
            f"{text!r} is not a size", "write a number and a unit, for example 512MiB or 4GiB"
        )
    number, prefix, suffix = match.group(1), match.group(2).upper(), match.group(3).upper()
    factor = _DECIMAL[prefix] if suffix == "B" and prefix else _BINARY[prefix]
    whole = int(number) * factor if number.isdigit() else round(float(number) * factor)
    if whole > MAX_SIZE:
        raise Invalid(f"{text!r} is more than any machine has", "write a size below 1 EiB")
    return whole


def format_size(size: int) -> str:
    """`size` in the largest binary unit that keeps it readable: 4 GiB, 1.5 GiB, 900 MiB, 12 B."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= factor:
            value = size / factor
            return (
                f"{value:.0f} {unit}"
                if value == int(value) or value >= 100
                else f"{value:.1f} {unit}"
            )
    return f"{size} B"


def parse_rate(text: str) -> int:
    """Bytes a second meant by `text`: "500MiB", "500MiB/s", "1048576"; "1Gbit" is 10^9 bits a
    second. Raises Invalid.
    """
    if match := _BITS.match(text):
        prefix = match.group(2).upper()
        return min(MAX_SIZE, round(float(match.group(1)) * (_DECIMAL[prefix] if prefix else 1) / 8))
    try:
        return parse_size(text.strip().removesuffix("/s"))
    except Invalid:
        raise Invalid(
            f"{text[:80]!r} is not a rate", "write for example 500MiB (a second) or 1Gbit"
        ) from None


def format_rate(rate: float) -> str:
    """Bytes a second, for people: 12 MiB/s."""
    return f"{format_size(round(rate))}/s"


def parse_bandwidth(text: str) -> int:
    """Bits a second meant by `text`: "100Mbit", "1.5Gbit/s", "10MB/s" (bytes), "64MiB/s", "5000000"
    (bits). Raises Invalid.

    Upper and lower case matter here: "Mb" may mean both and is refused.
    """
    match = _BANDWIDTH.match(text)
    if not match:
        raise Invalid(
            f"{text[:80]!r} is not a bandwidth", "write for example 100Mbit, 1.5Gbit or 10MB/s"
        )
    number, decimal, unit, binary, binary_unit = match.groups()
    factor = 8 * _BINARY[binary] if binary_unit else _DECIMAL[decimal.upper()] if decimal else 1
    factor *= 8 if unit and unit.startswith("B") else 1
    whole = int(number) * factor if number.isdigit() else round(float(number) * factor)
    if whole > MAX_BANDWIDTH:
        raise Invalid(
            f"{text!r} is more than any network has", "write a bandwidth of at most 10 Tbit"
        )
    return whole


def format_bandwidth(bits: int) -> str:
    """Bits a second in the largest decimal unit that keeps it readable: 100 Mbit/s, 1.5 Gbit/s, 64
    kbit/s.
    """
    for unit, factor in (
        ("Tbit/s", 10**12),
        ("Gbit/s", 10**9),
        ("Mbit/s", 10**6),
        ("kbit/s", 1000),
    ):
        if bits >= factor:
            return f"{float(f'{bits / factor:.4g}'):g} {unit}"
    return f"{bits} bit/s"


def parse_duration(text: str) -> float:
    """Seconds meant by `text`: "90s", "5m", "1.5h", "250ms", "30". Raises Invalid."""
    match = _DURATION.match(text)
    if not match:
        raise Invalid(
            f"{text!r} is not a duration", "write a number and a unit, for example 30s or 5m"
        )
    return float(match.group(1)) * _SECONDS[(match.group(2) or "s").lower()]


def format_duration(seconds: float) -> str:
    """A duration for people: 850 ms, 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
