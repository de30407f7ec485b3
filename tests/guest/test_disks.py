"""What a guest is asked about a disk of its own, asked of a sysfs that is made up."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from virtuary.guest import disks
from virtuary.guest.agent import Agent, Outcome

DISK = "mkdir -p vdb/holders vdb/vdb1/holders; printf data >vdb/serial"
LOOP = "mkdir -p loop3/loop; echo"


class Shell:
    """A guest whose block devices are made by this script; the rest of it is this machine's."""

    def __init__(self, devices: str) -> None:
        self.devices = devices

    async def execute(self, command: list[str], *, stdin: bytes, **_: Any) -> Outcome:
        made = f'mount -t tmpfs none /sys/block; cd /sys/block; {self.devices}; exec "$@"'
        process = await asyncio.create_subprocess_exec(
            "unshare", "--mount", "sh", "-ec", made, "sh", *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _nothing = await process.communicate(stdin)
        assert process.returncode == 0
        return Outcome(0, told, b"", truncated=False)


@pytest.mark.host
@pytest.mark.parametrize(
    ("devices", "uses"),
    [
        (DISK, []),
        (f"{DISK}; {LOOP} /dev/vdb >loop3/loop/backing_file", ["behind loop3"]),
        (f"{DISK}; {LOOP} /dev/vdb1 >loop3/loop/backing_file", ["behind loop3"]),
        (f"{DISK}; {LOOP} /dev/vdc >loop3/loop/backing_file", []),
        (f"{DISK}; mkdir dm-0; ln -s ../../../dm-0 vdb/vdb1/holders/dm-0", ["part of dm-0"]),
        (f"{DISK}; printf other >vdb/serial; {LOOP} /dev/vdb >loop3/loop/backing_file", []),
    ],
)
async def test_what_a_guest_uses_a_disk_for(devices: str, uses: list[str]) -> None:
    assert await disks.uses_of(cast(Agent, Shell(devices)), "data") == uses
