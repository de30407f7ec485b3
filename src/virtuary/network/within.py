"""The program inside a user's own network namespace, where they may do with networks what root may
on the host.

`hold` makes the namespaces and stays in them as a program that does nothing: they last as long as
it does, whatever becomes of the daemon. `serve` enters them, and does there what the daemon asks
for, call by call; it ends with the daemon. The user keeps their own number inside, so that files
are theirs and dnsmasq, which gives up root where it is root, is content.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from pydantic import TypeAdapter, validate_call
from pydantic_core import to_jsonable_python

from virtuary.base.errors import Failed, VirtuaryError, from_problem
from virtuary.base.known import recording
from virtuary.base.proc import die_with_parent
from virtuary.network.bridge import raise_link

NEW_MOUNTS, NEW_USER, NEW_NET = 0x20000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_SLAVE = 2, 4, 8, 1 << 14, 1 << 19
CAPABILITIES = (10, 12, 13)
"""What programs started here may do: low ports, networks, raw sockets (capabilities(7))."""
CAPABILITY_VERSION, AMBIENT, AMBIENT_RAISE = 0x20080522, 47, 2
LENGTH = struct.Struct("=Q")
READY = b"ready\n"

libc = ctypes.CDLL(None, use_errno=True)


def _check(value: int, what: str) -> None:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolate() -> None:
    """Make the namespaces, and become their first process."""
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(NEW_USER | NEW_NET | NEW_MOUNTS), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as handle:
            handle.write(text)
    # What the host mounts and unmounts later happens here too: a stick can be pulled.
    _check(libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None), "mount /")
    _check(
        libc.mount(b"sysfs", b"/sys", b"sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, None),
        "mount /sys",
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        raise_link(control, "lo")


def hold(anchor: str) -> NoReturn:
    """Make the namespaces and stay in them; `anchor` is the file in which this process writes down
    who it is. Says READY on stdout.
    """
    isolate()
    os.write(1, READY)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.closerange(3, 1024)
    words = staying(anchor)
    os.execv(words[0], words)  # noqa: S606


def stay(anchor: str) -> None:
    """From inside: have somebody stay here, as `hold` does."""
    nothing = subprocess.DEVNULL
    STAYING.append(
        subprocess.Popen(
            staying(anchor),
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
            cwd="/",
        )
    )


STAYING: list[subprocess.Popen[bytes]] = []


def staying(anchor: str) -> list[str]:
    return recording(Path(anchor), "/usr/bin/tail", "-f", os.devnull)


def enter(holder: int) -> None:
    """Become one of the holder's namespaces."""
    places = [
        os.open(f"/proc/{holder}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in ("user", "mnt", "net")
    ]
    for place in places:
        _check(libc.setns(place, 0), "setns")
        os.close(place)


def keep_rights() -> None:
    """Have programs that are started keep the rights that count in the namespaces; they would lose
    them, not being root.
    """
    header, sets = struct.pack("=Ii", CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    _check(libc.capget(header, sets), "capget")
    effective, permitted, _, *high = struct.unpack("=6I", sets.raw)
    _check(
        libc.capset(header, struct.pack("=6I", effective, permitted, permitted, *high)), "capset"
    )
    for number in CAPABILITIES:
        _check(libc.prctl(AMBIENT, AMBIENT_RAISE, number, 0, 0), "ambient capabilities")


async def serve(control: socket.socket, hands: socket.socket) -> None:
    """Do what is asked, one call after the other, until the daemon is gone. Descriptors go through
    `hands`.
    """
    reader, writer = await asyncio.open_connection(sock=control)
    try:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            answer = json.dumps(
                await _do(hands, json.loads(await reader.readexactly(length)))
            ).encode()
            writer.write(LENGTH.pack(len(answer)) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _do(hands: socket.socket, question: dict[str, Any]) -> dict[str, Any]:
    try:
        value = find_function(question["function"])(*question["words"], **question["named"])
        if inspect.isawaitable(value):
            value = await value
        if question["descriptor"]:
            socket.send_fds(hands, [b"."], [value])
            os.close(value)
        return {"value": to_jsonable_python(value)}
    except VirtuaryError as error:
        return {"problem": error.problem()}
    except OSError as error:
        return {"system": [error.errno or 0, error.strerror or str(error)]}
    except Exception as error:
        return {"problem": Failed(f"{question['function']} met a defect: {error!r}").problem()}


def ask(
    function: Callable[..., Any],
    words: Sequence[Any],
    named: Mapping[str, Any],
    *,
    descriptor: bool,
) -> bytes:
    """The question that `serve` understands. What it is about is plain data, or what pydantic can
    make of that by the function's annotations.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    return json.dumps(
        {
            "function": name,
            "words": to_jsonable_python(words),
            "named": to_jsonable_python(named),
            "descriptor": descriptor,
        }
    ).encode()


def understand(answer: bytes, function: Callable[..., Any]) -> Any:
    """What the function gave there; raises what it raised."""
    said = json.loads(answer)
    if problem := said.get("problem"):
        raise from_problem(problem)
    if system := said.get("system"):
        raise OSError(*system)
    return _result_of(function).validate_python(said["value"])


@cache
def _result_of(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(function)["return"])


@cache
def find_function(name: str) -> Callable[..., Any]:
    """A function that this room defines, by module and name, which makes of plain data what it is
    annotated with; raises Failed for any other.
    """
    module, _, word = name.partition(":")
    found = (
        getattr(importlib.import_module(module), word, None)
        if module.startswith("virtuary.network.")
        else None
    )
    if not inspect.isfunction(found) or found.__module__ != module:
        raise Failed(f"{name[:80]!r} is nothing that networks are made by")
    return validate_call(found)


def main() -> None:
    """`hold ANCHOR`, `serve HOLDER CONTROL HANDS` (the last two descriptors of sockets), or `try
    SCRIPT` in namespaces that go with it.
    """
    what, *words = sys.argv[1:]
    try:
        if what == "hold":
            hold(words[0])
        if what == "try":
            isolate()
            keep_rights()
            os.execv("/bin/sh", ["sh", "-c", words[0]])  # noqa: S606
        holder, control, hands = map(int, words)
        die_with_parent()
        enter(holder)
        keep_rights()
    except OSError as error:
        sys.exit(str(error.strerror))
    asyncio.run(serve(socket.socket(fileno=control), socket.socket(fileno=hands)))


if __name__ == "__main__":
    main()
