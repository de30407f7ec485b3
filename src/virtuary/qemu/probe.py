"""What this QEMU binary can do, asked once and cached by its path, size and time; versions are
shown, never compared for features.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from virtuary.base.errors import HostLacks
from virtuary.base.files import write_whole
from virtuary.base.proc import find_program, last_line
from virtuary.qemu.platforms.platform import Platform

FLOOR = (8, 2)


@dataclass(frozen=True)
class Binary:
    program: str
    version: str
    package: str
    machine: str
    """The versioned machine type behind the platform's alias, such as pc-q35-10.0."""


async def find_binary(platform: Platform, cache: Path | None = None) -> Binary:
    """The QEMU of this host for `platform`; raises HostLacks when it is missing or below 8.2."""
    program = Path(find_program(platform.program))
    facts = program.resolve().stat()
    key = hashlib.sha256(
        f"{program} {facts.st_size} {facts.st_mtime_ns} {platform.machine}".encode()
    ).hexdigest()[:32]
    place = cache / f"qemu-{key}.json" if cache else None
    if place and place.exists():
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Binary(**json.loads(place.read_text()))
    binary = await _ask(program, platform)
    if place:
        with contextlib.suppress(OSError):
            write_whole(place, json.dumps(asdict(binary)).encode())
    return binary


async def _ask(program: Path, platform: Platform) -> Binary:
    questions = [
        {"execute": name}
        for name in ("qmp_capabilities", "query-version", "query-machines", "quit")
    ]
    process = await asyncio.create_subprocess_exec(
        *(
            str(program),
            "-machine",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate(
            "\n".join(json.dumps(question) for question in questions).encode()
        )
    answers = [json.loads(line).get("return") for line in out.splitlines() if b'"return"' in line]
    if len(answers) < 3:
        raise HostLacks(
            f"{program} can't be asked what it can do: {last_line(err)}", "reinstall QEMU"
        )
    number = answers[1]["qemu"]
    if (number["major"], number["minor"]) < FLOOR:
        raise HostLacks(
            f"QEMU {number['major']}.{number['minor']} is installed, at least "
            f"{FLOOR[0]}.{FLOOR[1]} is needed",
            "on Debian 12 it comes from the official backports suite: ./run installs it",
        )
    machine = next(
        (item["name"] for item in answers[2] if item.get("alias") == platform.machine),
        platform.machine,
    )
    version = f"{number['major']}.{number['minor']}.{number['micro']}"
    return Binary(str(program), version, str(answers[1].get("package", "")), machine)
