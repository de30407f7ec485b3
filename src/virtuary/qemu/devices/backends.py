"""What stands behind several kinds of devices: sockets that listen, and raw files."""

from __future__ import annotations

from virtuary.qemu.parts import Grant, Grants, Part


def listening(role: str, grants: Grants) -> Part:
    """A character device whose other end may come and go."""
    number = grants.listen(role).number
    return Part(
        "chardev", {"id": role, "backend": "socket", "fd": number, "server": "on", "wait": "off"}
    )


def raw_node(name: str, grant: Grant, *, read_only: bool) -> Part:
    """A block node of a file as it is."""
    file = {"driver": "file", "filename": grant.fdset, "locking": "off" if read_only else "on"}
    return Part(
        "blockdev", {"node-name": name, "driver": "raw", "read-only": read_only, "file": file}
    )
