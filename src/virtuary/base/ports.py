"""Ports of this host: whether somebody else has one, by taking it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

MOST = 256
"""That one server publishes."""


def take(protocol: str, address: str, port: int) -> socket.socket:
    """A socket that has this port, and at which nobody listens: who else wants it fails to bind.
    Raises OSError; `why_not` tells why in words.

    What an ended program's connections leave behind is in nobody's way.
    """
    six = ipaddress.ip_address(address).version == 6
    sock = socket.socket(
        socket.AF_INET6 if six else socket.AF_INET,
        (socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) | socket.SOCK_CLOEXEC,
    )
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or protocol != "tcp":
                raise
            # fails still where somebody listens
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def why_not(error: OSError, address: str, port: int) -> tuple[str, str]:
    """Why a port can't be had, and what helps."""
    if error.errno == errno.EADDRINUSE:
        return "is in use on this host by another program", "choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"can't be had: {address} is no address of this host",
            "publish on one that it has: ip address shows them",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "is below 1024, where only root may publish", f"publish another one: {port + 8000}"
    return f"can't be had: {error.strerror or os.strerror(error.errno or 0)}", "choose another port"
