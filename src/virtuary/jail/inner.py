"""Tools that must read files of many owners: what is in a file system that is being made belongs to
everybody.

Such a tool stays root of the namespaces that it is started in, but has no capability besides that
to read, nothing of the file system but what it is given, the filter of system calls and bounds. The
namespaces are the caller's to make, without a network.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtuary.base.proc import find_program
from virtuary.jail.launching import program
from virtuary.jail.syscalls import program as filter_of
from virtuary.jail.walls import Bounds, Jail, landlock_abi


def inner(
    argv: Sequence[str],
    bounds: Bounds,
    *,
    readable: Sequence[Path],
    writable: Sequence[Path],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Words that become the program `argv`; its first word is a program's name or path. `writable`:
    files that are there already.
    """
    jail = Jail(
        os.getuid(),
        os.getgid(),
        own_user_namespace=False,
        namespaces=(),
        empty_root=False,
        landlock=landlock_abi() > 0,
    )
    order = {
        "argv": [argv[0] if argv[0].startswith("/") else find_program(argv[0]), *argv[1:]],
        "environment": dict(environment or {}),
        "landlock": jail.landlock,
        "namespaces": ("net",),
        "filter": filter_of(),
        "limits": bounds.order(jail),
        "readable": [str(path) for path in readable],
        "writable": [str(path) for path in writable],
    }
    return [os.path.realpath(sys.executable), "-I", "-S", program(), marshal.dumps(order).hex()]
