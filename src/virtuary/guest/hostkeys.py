"""The SSH host keys of a guest: told by the guest itself through its agent, which its root user
runs; and the lines by which clients know them.

So a login never has to believe the first key it is shown. What the agent answers is hostile text of
which only whole keys are taken.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable

from virtuary.base.errors import Failed, GuestSilent
from virtuary.guest.agent import Agent

PUBLIC = tuple(f"/etc/ssh/ssh_host_{kind}_key.pub" for kind in ("ed25519", "ecdsa", "rsa"))
DROPBEAR = b"""[ -d /etc/dropbear ] || exit 0
own=/etc/dropbear/dropbear_ed25519_host_key
[ -e "$own" ] || dropbearkey -t ed25519 -f "$own"
for key in /etc/dropbear/dropbear_*_host_key; do dropbearkey -y -f "$key"; done
"""
"""Prints the public halves of dropbear's keys. It makes its own when the first client comes: that
is too late, so it is made here.
"""
KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
ANSWER_CAP = 32 * 1024
LIMIT = 5.0
"""Seconds within which a guest answers or is not asked any more."""


async def ask(agent: Agent, limit: float = LIMIT) -> tuple[str, ...]:
    """The host keys that the guest says it has. Raises GuestSilent at the limit."""
    try:
        async with asyncio.timeout(limit):
            found = parse(b"\n".join([await _read(agent, path) for path in PUBLIC]))
            return found or parse((await agent.execute(["/bin/sh"], DROPBEAR, limit)).stdout)
    except TimeoutError as error:
        raise GuestSilent("the guest agent did not tell the host keys in time") from error


async def _read(agent: Agent, path: str) -> bytes:
    try:
        return await agent.read_file(path, ANSWER_CAP // len(PUBLIC))
    except Failed:
        return b""


def parse(answer: bytes) -> tuple[str, ...]:
    """The public keys in what the guest said, at most one of each kind: `KIND BASE64`. Whatever is
    no such key is left out. Pure.
    """
    found: dict[str, str] = {}
    for line in answer[:ANSWER_CAP].decode("ascii", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        text = rest.partition(" ")[0]
        if kind in KINDS and _is_key(kind, text):
            found.setdefault(kind, f"{kind} {text}")
    return tuple(found.values())


def _is_key(kind: str, text: str) -> bool:
    """Whether this is the base64 of a key that names itself so (RFC 4253, 6.6)."""
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return (
        blob.startswith(len(kind).to_bytes(4, "big") + kind.encode())
        and len(blob) > 4 + len(kind) + 4
    )


def alias(vm_id: str) -> str:
    """The name under which clients remember a server's host keys, wherever it is reached."""
    return f"virtuary-{vm_id}"


def known_hosts(name: str, keys: Iterable[str]) -> bytes:
    """The lines of a known_hosts file (sshd(8)) for these public keys; what follows a key on its
    line is left out. Pure.
    """
    return "".join(f"{name} {' '.join(key.split()[:2])}\n" for key in keys).encode()
