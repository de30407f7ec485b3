"""What several Virtuaries on one host would take from each other as root: the users of their
machines, and the networks of the host.

Each has its part by a note in a folder that is root's and the same for all. A note counts while its
owner's daemon lives or what was taken is in use, so that a stopped daemon keeps what its servers
run on; with the host's next start all notes are gone, as is what they are about. Ordinary users
share nothing: their machines run as themselves, their networks lie in a network namespace of their
own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from virtuary.base.errors import HostLacks
from virtuary.base.files import write_whole
from virtuary.base.known import users_of
from virtuary.base.proc import identify

SYSTEM = Path("/var/lib/virtuary")
"""State of the one Virtuary that has no `VIRTUARY_ROOT`."""
MOST, EACH = 20_000, 1000
"""Users of that one's machines, and of those of each other one."""


@dataclass(frozen=True)
class Owner:
    state: str
    """Folder of its state, by which it is known."""
    pid: int
    start: int
    """Of its daemon."""
    used: str
    """Folder in which something lies as long as what was taken is in use."""

    @property
    def lives(self) -> bool:
        return identify(self.pid) == (self.pid, self.start)

    @property
    def holds(self) -> bool:
        return self.lives or (os.path.isdir(self.used) and bool(os.listdir(self.used)))

    def __str__(self) -> str:
        return (
            f"another Virtuary ({self.state}, "
            f"{f'pid {self.pid}' if self.lives else 'whose daemon does not run'})"
        )


@dataclass(frozen=True)
class Claim:
    """One thing that only one instance can have."""

    folder: Path
    name: str
    owner: Owner

    def find_other(self) -> Owner | None:
        """Who else has it."""
        found = self._read()
        return found if found and found.state != self.owner.state and found.holds else None

    def is_mine(self) -> bool:
        found = self._read()
        return found is not None and found.state == self.owner.state

    def take(self) -> Owner | None:
        """Have it, unless somebody else does: that one. Repeats harmlessly."""
        with _alone(self.folder):
            other = self.find_other()
            if other is None and self._read() != self.owner:
                write_whole(self.folder / self.name, json.dumps(asdict(self.owner)).encode())
            return other

    def give_back(self) -> None:
        """Have it no longer, if it was ours."""
        with _alone(self.folder):
            if self.is_mine():
                (self.folder / self.name).unlink()

    def _read(self) -> Owner | None:
        try:
            return Owner(**json.loads((self.folder / self.name).read_bytes()))
        except FileNotFoundError:
            return None


def claim(folder: Path, name: str, state: Path, used: Path) -> Claim:
    """The claim of this process, which is the daemon of `state`."""
    identity = identify(os.getpid())
    assert identity
    return Claim(
        folder, name, Owner(os.path.realpath(state), identity.pid, identity.start, str(used))
    )


def claim_networks(folder: Path, state: Path, used: Path) -> Claim:
    """Bridges, addresses and the packet filter belong to a network namespace, and so does this
    claim.
    """
    return claim(folder, f"networks-{os.stat('/proc/self/ns/net').st_ino}", state, used)


def take_users(folder: Path, state: Path, used: Path, whole: range) -> range:
    """The users of this instance's machines: no other instance on this host has any of them. Raises
    HostLacks when all are given away.
    """
    if state == SYSTEM:
        return whole[:MOST]
    rest = whole[MOST:]
    claims = [claim(folder, f"users-{number}", state, used) for number in range(len(rest) // EACH)]
    parts = [(one, rest[number * EACH : (number + 1) * EACH]) for number, one in enumerate(claims)]
    living = _living_users()
    for one, users in sorted(parts, key=lambda part: not part[0].is_mine()):
        if (one.is_mine() or living.isdisjoint(users)) and one.take() is None:
            return users
    raise HostLacks(
        f"{len(parts)} other Virtuaries have all users of machines on this host",
        f"their notes lie in {folder}",
    )


def _living_users() -> set[int]:
    """Users of all processes of this host."""
    return {uid for name in os.listdir("/proc") if name.isdigit() for uid in users_of(name)}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
