"""Starts one machine in its jail, as whoever runs this, and prints as JSON what can be seen of it
from outside.

A program of its own, so that the same look is taken as root and as an ordinary user: `python
jailed.py FOLDER`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from virtuary.base.errors import VirtuaryError
from virtuary.base.known import adopt
from virtuary.base.proc import end, find_program, start_time, wait_end
from virtuary.base.units import MIB
from virtuary.jail.walls import choose_jail, find_capabilities
from virtuary.qemu.argv import command
from virtuary.qemu.describe import describe
from virtuary.qemu.devices.disk import Disk
from virtuary.qemu.devices.memory import Memory
from virtuary.qemu.devices.nic import Nic
from virtuary.qemu.devices.processor import Cpus
from virtuary.qemu.machine import Machine
from virtuary.qemu.platforms.table import USUAL
from virtuary.qemu.process import Launch, Started, become_subreaper, read_errors, start
from virtuary.qemu.qmp import Monitor, open_monitor

ID = "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"
GROUP = 2_000_000_777
"""A supplementary group the machine is given, where it can be."""


def image_tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_program("qemu-img"), *words], capture_output=True, text=True)


def free(disk: Path) -> bool:
    """Whether another program could open the disk for writing: QEMU's image lock does not stand
    against it.
    """
    return image_tool("resize", "-q", "-f", "qcow2", str(disk), "2M").returncode == 0


def seen(pid: int) -> dict[str, Any]:
    """What the kernel says about a process."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    names = ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "NoNewPrivs", "Seccomp")
    found: dict[str, Any] = {name: status[name].split() for name in names}
    found["foreign namespaces"] = [
        name for name in ("mnt", "net", "pid", "ipc", "uts",
        "user") if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    ]  # fmt: skip
    root = Path(f"/proc/{pid}/root")
    found["root"] = sorted(
        str(path.relative_to(root)) for top in root.iterdir() if top.name not in ("usr", "lib",
        "lib64")
        for path in top.rglob("*") if not path.is_dir()
    )  # fmt: skip
    found["home"] = os.path.exists(f"/proc/{pid}/root{Path(__file__)}")
    found["environment"] = Path(f"/proc/{pid}/environ").read_bytes().decode()
    found["session"] = os.getsid(pid) == pid
    found["cores"] = next(
        line.split()[4]
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if "core" in line
    )
    return found


async def main(folder: Path) -> dict[str, Any]:
    become_subreaper()
    base, disk, runtime, canary = (
        folder / "base",
        folder / "disk",
        folder / "run",
        folder / "canary",
    )
    runtime.mkdir(mode=0o711)
    canary.write_text("secret of the host")
    canary.chmod(0o666)
    image_tool("create", "-q", "-f", "qcow2", str(base), "1M")
    image_tool("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", str(disk))
    host = await find_capabilities()
    jail = choose_jail(host, 2_000_000_000 if host.root else os.getuid())
    program = find_program("qemu-system-x86_64")
    machine = Machine(
        uuid=ID, platform=USUAL, type="q35", accel="tcg", cpus=Cpus(1), memory=Memory(64 * MIB),
        disks=(Disk(disk, MIB, (base,)),), nics=(Nic("52:54:00:12:34:56"),), runtime=runtime,
    )  # fmt: skip
    parts = describe(machine)
    given = {name: folder / name for name in ("readable", "writable")}
    for path in given.values():
        path.write_bytes(bytes(512))
        path.chmod(0o666)
    launch = Launch(
        command(program, parts),
        parts.grants,
        [given["readable"]],
        jail,
        runtime,
        writable=[given["writable"]],
        groups=(GROUP,),
    )
    open_before = set(os.listdir("/proc/self/fd"))
    started = await start(launch)
    told: dict[str, Any] = {
        "level": jail.level,
        "gaps": [*jail.gaps, *started.gaps],
        "uid": jail.uid,
    }
    told["left open"] = (
        len(set(os.listdir("/proc/self/fd")) - open_before) - 2
    )  # the one its words are read by, and the launcher's
    monitor = await open_monitor(runtime / "qmp")
    told["status"] = await monitor.status()
    told["process"] = seen(started.identity.pid)
    told["refused"] = []
    for path in (str(canary), "/etc/passwd", "/proc/1/environ", "/dev/mem"):
        try:
            await monitor.run(
                "blockdev-add", driver="file", filename=path, **{"node-name": "thief"}
            )
        except VirtuaryError as error:
            told["refused"].append(error.sentence)
    told["opened to write"] = [
        name for name in given if await opens(monitor, given[name], read_only=False)
    ]
    told["opened to read"] = [
        name for name in given if await opens(monitor, given[name], read_only=True)
    ]
    told["free while alive"] = free(disk)
    await monitor.close()
    handle = adopt(started.identity)
    assert handle is not None
    end(handle)
    await asyncio.wait_for(wait_end(handle), 10)
    told["gone"] = start_time(started.identity.pid) is None
    told["free afterwards"] = free(disk)
    os.close(started.errors)
    told["words"] = await last_words(replace(launch, argv=[*launch.argv, "-cpu", "no-such-cpu"]))
    return told


async def opens(monitor: Monitor, path: Path, *, read_only: bool) -> bool:
    """Whether QEMU can open a file by its path."""
    try:
        await monitor.run(
            "blockdev-add",
            **{"driver": "file", "filename": str(path), "node-name": "it", "read-only": read_only},
        )
        await monitor.run("blockdev-del", **{"node-name": "it"})
    except VirtuaryError:
        return False
    return True


async def last_words(launch: Launch) -> str:
    """What a QEMU says that dislikes its arguments."""
    try:
        started: Started = await start(launch)
    except VirtuaryError as error:
        return error.sentence
    words = ""
    for _ in range(200):
        words += read_errors(started.errors)
        if "no-such-cpu" in words:
            break
        await asyncio.sleep(0.02)
    os.close(started.errors)
    return words


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
