"""The real-time clock of a real QEMU without a guest, started at chosen fractions of a second."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtuary.qemu import rtc
from virtuary.qemu.qmp import open_monitor

pytestmark = pytest.mark.qemu
OURS = ("-machine", "q35", "-rtc", "base=utc,clock=host")


def listens(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(place)) == 0


@contextmanager
def machine(folder: Path, *words: str) -> Iterator[Path]:
    """QEMU, with its guest not begun; the path of its monitor."""
    place = folder / "qmp"
    line = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", *words, "-qmp", f"unix:{place},server=on,wait=off"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 20
            while not listens(place):
                assert process.poll() is None and time.monotonic() < until, "QEMU did not start"
                time.sleep(0.002)
            yield place
        finally:
            process.kill()


async def lag_of(place: Path) -> float | None:
    monitor = await open_monitor(place)
    try:
        return await rtc.lag(monitor)
    finally:
        await monitor.close()


@pytest.mark.parametrize("part", [0.1, 0.4, 0.7])
async def test_a_clock_is_behind_by_the_part_of_a_second_at_which_its_machine_was_started(part: float, tmp_path: Path) -> None:
    time.sleep((part - time.time()) % 1)
    began = time.time()
    with machine(tmp_path, *OURS) as place:
        latest = time.time() - began
        found = await lag_of(place)
    assert found is not None
    after = (
        found - began + 0.06
    ) % 1  # the machine's clock was made between the start of its process and its monitor's being there
    assert after <= latest + 0.12, f"{found} of a machine started at {began % 1:.2f} to {(began + latest) % 1:.2f}"


@pytest.mark.parametrize("words", [("-machine", "q35", "-rtc", "base=2001-02-03T04:05:06"), ("-machine", "none")], ids=" ".join)
async def test_nothing_is_said_of_a_clock_with_a_time_of_its_own_or_of_none(words: tuple[str, ...], tmp_path: Path) -> None:
    with machine(tmp_path, *words) as place:
        assert await lag_of(place) is None
