"""How fast the host's interfaces are, as their drivers state."""

from __future__ import annotations

from pathlib import Path

NET = Path("/sys/class/net")


def measure_link(name: str, net: Path = NET) -> int | None:
    """Bits a second of an interface, as its driver states; of a bridge, those of its slowest way
    out of the host.

    None where no driver states anything, as most virtual ones do; a tap's or a veth's number is
    invented and does not count.
    """
    try:
        ports = sorted(place.name for place in (net / name / "brif").iterdir())
    except OSError:
        return _speed(net / name)
    speeds = [speed for port in ports if (speed := _speed(net / port))]
    return min(speeds, default=None)


def _speed(place: Path) -> int | None:
    real = (place / "device").exists() or (place / "bonding").exists() or any(place.glob("lower_*"))
    try:
        speed = int((place / "speed").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return speed * 10**6 if real and 0 < speed < 2**31 else None
