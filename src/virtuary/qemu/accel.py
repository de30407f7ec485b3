"""The accelerator is proven, not assumed: a guest of our own is run with the CPU model that will be
used.

`/dev/kvm` may exist, open and report itself enabled and still be unable to run an ordinary guest.
The probe (accel_probe.S) goes through long mode, paging, timer interrupts, ring 3, a repaired page
fault and a system call, within 3 s. The verdict is cached per kernel, QEMU binary and CPU model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from virtuary.base.errors import HostLacks
from virtuary.base.files import write_whole
from virtuary.base.proc import last_line
from virtuary.qemu.platforms.platform import Platform

STAGES = "RPLIAUFCS"
NAMES = {
    "R": "real mode", "P": "protected mode", "L": "long mode with paging", "I": "a timer interrupt",
    "A": "an APIC timer interrupt",
    "U": "user mode", "F": "a page fault", "C": "a system call", "S": "SSE2",
}  # fmt: skip
PASSED, EXCEPTION = 85, 33
LIMIT = 3.0
DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Verdict:
    """Whether an accelerator runs guests with one CPU model, and if not, why."""

    works: bool
    accel: str
    cpu: str
    reason: str
    seconds: float = 0.0
    stages: str = ""


def image() -> bytes:
    """The probe's firmware: code at 0, HLT elsewhere, a jump at the reset vector."""
    code = (files("virtuary.qemu") / "accel_probe.bin").read_bytes()
    rom = bytearray(b"\xf4" * 0x10000)
    rom[: len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"
    return bytes(rom)


def cache_key(program: Path, accel: str, cpu: str) -> str:
    """Changes when anything changes that could change the verdict: kernel, KVM modules, CPU, QEMU
    binary.
    """
    binary = program.resolve().stat()
    system = os.uname()
    modules = sorted(path.name for path in Path("/sys/module").glob("kvm*"))
    with contextlib.suppress(OSError):
        modules += [
            path.read_text() for path in sorted(Path("/sys/module").glob("kvm*/srcversion"))
        ]
    lines = {
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "microcode"))
    }
    facts = [
        str(program),
        binary.st_size,
        binary.st_mtime_ns,
        accel,
        cpu,
        system.release,
        system.version,
        modules,
        sorted(lines),
    ]
    facts.append(hashlib.sha256(image()).hexdigest())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


async def prove(
    program: Path, platform: Platform, accel: str, cpu: str, cache: Path | None
) -> Verdict:
    """The verdict on `accel` with `cpu`, from the cache or by running the probe; never raises for a
    bad accelerator.
    """
    if accel == "kvm" and (missing := device_fault()):
        return Verdict(False, accel, cpu, missing)
    place = cache / f"accel-{cache_key(program, accel, cpu)}.json" if cache else None
    if place and place.exists():
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Verdict(**json.loads(place.read_text()))
    verdict = await run_probe(program, platform, accel, cpu)
    if place:
        with contextlib.suppress(OSError):
            write_whole(place, json.dumps(asdict(verdict)).encode())
    return verdict


def device_fault(device: Path = DEVICE) -> str | None:
    """Why the KVM device can't even be opened, in words; None when it can."""
    if not device.exists():
        return "this machine offers no hardware virtualization (/dev/kvm does not exist)"
    if not os.access(device, os.R_OK | os.W_OK):
        return (
            "/dev/kvm is closed to this user (an administrator can add the user to the group kvm)"
        )
    return None


async def run_probe(
    program: Path, platform: Platform, accel: str, cpu: str, limit: float = LIMIT
) -> Verdict:
    """Run the probe guest once; ends it at `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="virtuary-probe-") as folder:
        rom, letters, errors = (Path(folder) / name for name in ("rom", "letters", "errors"))
        rom.write_bytes(image())
        letters.touch()
        command = [
            *(
                str(program),
                "-accel",
                accel,
                "-machine",
                platform.machine,
                "-cpu",
                cpu,
                "-smp",
                "1",
                "-m",
                "32",
                "-nodefaults",
            ),
            *("-no-user-config", "-display", "none", "-no-reboot", "-bios", str(rom)),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
            *(
                "-chardev",
                f"file,id=letters,path={letters}",
                "-device",
                "isa-debugcon,iobase=0xe9,chardev=letters",
            ),
        ]
        loop = asyncio.get_running_loop()
        began = loop.time()
        with errors.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=sink,
                env={},
            )
        in_time = await _watch(
            process, limit, lambda: "KVM internal error" in errors.read_text(errors="replace")
        )
        said = letters.read_text(errors="replace")
        words = last_line(errors.read_bytes())
    seconds = round(loop.time() - began, 3)
    status = process.returncode if in_time else None
    return judge(accel, cpu, status, said, words, seconds)


async def _watch(
    process: asyncio.subprocess.Process, limit: float, hopeless: Callable[[], bool]
) -> bool:
    """Wait for the probe's end, at most `limit` seconds and not longer than it is hopeless; says
    whether it ended itself.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    waiting = asyncio.ensure_future(process.wait())
    try:
        while loop.time() < end and not hopeless():
            done, _ = await asyncio.wait({waiting}, timeout=0.05)
            if done:
                return True
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await waiting


def judge(
    accel: str, cpu: str, status: int | None, said: str, words: str, seconds: float
) -> Verdict:
    """What the probe's end means. Pure."""
    stages = "".join(letter for letter in said if letter in STAGES)
    if status == PASSED and stages == STAGES:
        return Verdict(
            True, accel, cpu, f"a test guest passed all {len(STAGES)} stages", seconds, stages
        )
    if status is None:
        how = "hung"
    elif status == EXCEPTION:
        how = "met an unexpected CPU exception"
    elif status < 0:
        how = f"made QEMU die of {signal.Signals(-status).name}"
    elif status == 0:
        how = "reset itself (triple fault)"
    else:
        how = f"could not be started ({words or f'exit status {status}'})"
    reached = len(stages) if STAGES.startswith(stages) else 0
    where = (
        ""
        if reached == len(STAGES)
        else f" at {NAMES[STAGES[reached]]}"
        if reached
        else " before its first instruction"
    )
    return Verdict(False, accel, cpu, f"a test guest {how}{where}", seconds, stages)


@dataclass(frozen=True)
class Choice:
    accel: Literal["kvm", "tcg"]
    why: str
    """One line for people: what was chosen, why, and what it means."""


def choose(wanted: str, kvm: Verdict) -> Choice:
    """Which accelerator a machine gets. Pure. Raises HostLacks when KVM is insisted on and does not
    work.
    """
    if wanted == "tcg":
        return Choice(
            "tcg",
            "emulated as asked: many times slower than hardware virtualization, and not isolated "
            "by hardware",
        )
    if kvm.works:
        return Choice("kvm", f"hardware virtualization (KVM): {kvm.reason}")
    if wanted == "kvm":
        raise HostLacks(
            f"KVM does not work here: {kvm.reason}", "leave out --accel kvm to run emulated"
        )
    return Choice(
        "tcg",
        f"emulated (many times slower, not isolated by hardware) because KVM is out: {kvm.reason}",
    )
