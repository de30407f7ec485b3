"""The real-time clock of a real QEMU without a guest, started at chosen fractions of a second."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from virtuary.base.errors import GuestSilent
from virtuary.qemu import rtc
from virtuary.qemu.qmp import Monitor, open_monitor

pytestmark = pytest.mark.qemu
OURS = ("-machine", "q35", "-rtc", "base=utc,clock=host")


@asynccontextmanager
async def machine(folder: Path, *words: str) -> AsyncIterator[Monitor]:
    """The monitor of a QEMU whose guest has not begun."""
    place = folder / "qmp"
    line = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        *words,
        "-qmp",
        f"unix:{place},server=on,wait=off",
    ]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        try:
            monitor = await reached(place, process)
            yield monitor
            await monitor.close()
        finally:
            process.kill()


async def reached(place: Path, process: subprocess.Popen[bytes]) -> Monitor:
    until = time.monotonic() + 20
    while True:
        try:
            return await open_monitor(place)
        except GuestSilent:
            assert process.poll() is None and time.monotonic() < until, "QEMU did not start"
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("part", [0.1, 0.4, 0.7])
async def test_a_clock_is_behind_by_the_part_of_a_second_at_which_its_machine_was_started(
    part: float, tmp_path: Path
) -> None:
    await asyncio.sleep((part - time.time()) % 1)
    began = time.time()
    async with machine(tmp_path, *OURS) as monitor:
        latest = time.time() - began
        found = await rtc.lag(monitor)
    assert found is not None
    # The machine's clock was made after the start of its process and before its monitor answered.
    after = (found - began + 0.06) % 1
    assert after <= latest + 0.12, (
        f"{found} of a machine started at {began % 1:.2f} to {(began + latest) % 1:.2f}"
    )


@pytest.mark.parametrize(
    "words",
    [("-machine", "q35", "-rtc", "base=2001-02-03T04:05:06"), ("-machine", "none")],
    ids=" ".join,
)
async def test_nothing_is_said_of_a_clock_with_a_time_of_its_own_or_of_none(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    async with machine(tmp_path, *words) as monitor:
        assert await rtc.lag(monitor) is None
