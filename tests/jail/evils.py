"""Starts evil.py in a jail, as whoever runs this, and prints what it told: `python evils.py KIND
FOLDER`, KIND being machine, network, tool or lookup.

A program of its own, so that the same is tried as root and as an ordinary user. As root it runs in
a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from virtuary.jail.syscalls import Reach
from virtuary.jail.tool import Surroundings, confined
from virtuary.jail.walls import Bounds, Jail, choose_jail, find_capabilities
from virtuary.qemu.process import Launch, become_subreaper, read_errors, start

FILE, TAP, HELD = 30, 31, 32
REACHES: dict[str, Reach] = {"network": "internet", "lookup": "names"}
LARGEST = 1 << 20
PYTHON = os.path.realpath("/usr/bin/python3")


def a_key() -> int:
    """A key in the session of whoever runs this; 0 where the kernel keeps none for them."""
    libc = ctypes.CDLL(None)
    libc.syscall(250, 1, None)
    return max(0, int(libc.syscall(248, b"user", b"virtuary-test", b"secret", 6, -3)))


def a_tap() -> int | None:
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH22x", b"vtevil", 0x1002))
    except OSError:
        return None
    return handle


async def as_machine(launch: Launch, shared: Path) -> tuple[int, str]:
    """Exit status as wait(2) has it, and what it said."""
    started = await start(launch)
    shared.write_text("seen")
    words = ""
    while True:
        words += read_errors(started.errors)
        done, status = os.waitpid(started.identity.pid, os.WNOHANG)
        if done:
            return status, words + read_errors(started.errors)
        await asyncio.sleep(0.01)


async def as_tool(
    argv: list[str], descriptors: dict[int, int], bounds: Bounds, around: Surroundings
) -> tuple[int, str]:
    reader, writer = os.pipe()
    async with confined(argv, {**descriptors, 2: writer}, bounds, around) as tied:
        os.close(writer)
        status = await tied.wait()
    with open(reader, "rb") as said:
        return -status, said.read().decode()


async def main(kind: str, folder: Path) -> dict[str, Any]:
    become_subreaper()
    host = await find_capabilities()
    reach = REACHES.get(kind, "nothing")
    jail: Jail = choose_jail(host, 2_000_000_321 if host.root else os.getuid(), reach=reach)
    (folder / "canary").write_text("secret")
    (folder / "canary").chmod(0o666)
    shutil.copy(Path(__file__).with_name("evil.py"), folder / "evil.py")
    (folder / "evil.py").chmod(0o444)
    listener = socket.create_server(("127.0.0.1", 0))
    abstract, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0virtuary-test-{os.getpid()}")
    named.bind(str(folder / "socket"))
    for sock in (abstract, named):
        sock.listen()
    os.chmod(folder / "socket", 0o777)
    own = os.open(folder / "own", os.O_RDWR | os.O_CREAT, 0o600)
    (folder / "shared").write_text("shared")
    held = os.open(folder / "shared", os.O_RDONLY)
    tap = a_tap()
    facts = {
        "key": a_key(), "port": listener.getsockname()[1],
        "abstract": f"virtuary-test-{os.getpid()}", "socket": str(folder / "socket"),
        "canary": str(folder / "canary"), "daemon": os.getpid(), "file": FILE, "held": HELD,
        "largest": LARGEST, "tap": TAP if tap else None, "name": "vtevil",
    }  # fmt: skip
    links = ((own, FILE), (held, HELD), *(((tap, TAP),) if tap else ()))
    runtime = folder / "run"
    runtime.mkdir(mode=0o711)
    argv = [PYTHON, "-I", "-S", str(folder / "evil.py"), json.dumps(facts)]
    bounds = Bounds(file_size=LARGEST, processes=200)
    if kind in ("tool", "lookup"):
        (folder / "shared").write_text("seen")
        around = Surroundings(readable=[folder / "evil.py"], reach=reach)
        status, words = await as_tool(argv, {there: here for here, there in links}, bounds, around)
    else:
        status, words = await as_machine(
            Launch(argv, [], [folder / "evil.py"], jail, runtime, links=links, bounds=bounds),
            folder / "shared",
        )
    address = Path("/sys/class/net/vtevil/address")
    told = {
        "level": jail.level,
        "gaps": jail.gaps,
        "status": status,
        "words": words,
        "canary": (folder / "canary").read_text(),
    }
    return {
        **told,
        "alive": True,
        "address": address.read_text().strip() if tap and address.exists() else None,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2])))))
