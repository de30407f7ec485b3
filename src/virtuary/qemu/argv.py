"""Parts to QEMU's command line. Pure."""

from __future__ import annotations

import hashlib
import json

from virtuary.qemu.parts import Part, Parts

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def command(program: str, machine: Parts, *, sandbox: bool = True) -> list[str]:
    """The exact command line of a machine; same parts, same line."""
    line = [
        program,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-S",
        "-msg",
        "timestamp=on",
    ]
    if sandbox:
        line += ["-sandbox", SANDBOX]
    for grant in machine.grants:
        if grant.mode not in ("socket", "given"):
            line += ["-add-fd", f"fd={grant.number},set={grant.number}"]
    for name, value in machine.settings:
        if name != "mon":
            line += [f"-{name}", value]
    for part in machine.parts:
        line += [f"-{part.kind}", _option(part)]
    for name, value in machine.settings:
        if name == "mon":
            line += ["-mon", value]
    return line


def digest(line: list[str]) -> str:
    """What tells one command line from another, to be kept: a process could rewrite its own."""
    return hashlib.sha256("\0".join(line).encode()).hexdigest()


def _option(part: Part) -> str:
    """JSON where QEMU takes it; character devices take words, and hold only numbers and names of
    ours.
    """
    if part.kind == "chardev":
        args = dict(part.args)
        return ",".join(
            [str(args.pop("backend")), *(f"{key}={value}" for key, value in args.items())]
        )
    return json.dumps(part.args, separators=(",", ":"))
