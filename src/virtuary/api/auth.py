"""Who is calling: the user at the other end of the Unix socket, told by the kernel.

In user mode only the same user (and root) is let in; in system mode root and the members of the
group `virtuary`. Everything else is refused before anything is parsed.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from typing import Any

from virtuary.base.errors import Refused

GROUP = "virtuary"
EXTENSION = "virtuary.peer"


def with_peer(app: Any, transport: Any) -> Any:
    """The application, told by its scope who is at the other end of `transport`."""
    uid = peer_uid(transport.get_extra_info("socket"))

    async def told(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[EXTENSION] = uid
        await app(scope, receive, send)

    return told


def peer_uid(sock: Any) -> int | None:
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def actor(uid: int | None) -> str:
    """The caller's name for operations and logs; raises Refused for one who may not come in."""
    if uid is None:
        raise Refused("only local callers on the daemon's socket are served")
    if uid not in (0, os.getuid()) and not _is_member(uid):
        raise Refused(
            "this user may not administer virtual servers here",
            f"an administrator can add the user to the group {GROUP}",
        )
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _is_member(uid: int) -> bool:
    if os.getuid() != 0:
        return False
    try:
        group = grp.getgrnam(GROUP)
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return user.pw_gid == group.gr_gid or user.pw_name in group.gr_mem


def listening_socket(path: str, system: bool) -> socket.socket:
    """The daemon's socket, made by us: 0660 root:virtuary in system mode where the group exists,
    else 0600.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    if os.path.exists(path):
        os.unlink(path)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    if system:
        try:
            os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
            os.chmod(path, 0o660)
        except KeyError:
            pass
    sock.listen(128)
    return sock
