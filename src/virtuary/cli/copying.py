"""The command cp: files and folders into and out of a server, by tar over SSH.

Into a server the user's own files go as they are. Out of it comes what the root user of the guest chooses to send: it is unpacked by
cli/unpacking.py, beneath the folder that the user named and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any, BinaryIO, NamedTuple

import click

from virtuary.base.beneath import Beneath, Path, named, write_all
from virtuary.base.errors import Failed, Invalid, NotFound, Refused, of_system
from virtuary.base.tar import Archive, Entry
from virtuary.base.text import shown
from virtuary.cli.login import ssh_command, wait_for_ssh
from virtuary.cli.output import say
from virtuary.cli.unpacking import Unpacking
from virtuary.client.start import connect

_DESCRIPTORS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,4})")


@click.command()
@click.argument("source")
@click.argument("target")
def cp_command(source: str, target: str) -> None:
    """Copy a file or a folder into or out of a server. Out of it to `-` writes a file to standard output.

    Out of a server come files, folders and links, without owners and set-user-ID bits; devices, pipes and sockets are left out. Nothing outside
    the target is read or written: links that are there already are not followed, but for the target itself.

    \b
    Examples:
      virtuary cp site web1:/var/www/
      virtuary cp web1:/etc/hosts .
    """
    there, here = _split(source), _split(target)
    if bool(there) == bool(here):
        raise Invalid("exactly one side must be in a server", "virtuary cp FILE web1:/path, or virtuary cp web1:/path FILE")
    heed_ends()
    wire = connect()
    if here:
        copy_in(wait_for_ssh(wire, here[0], 60), source, here[1])
    elif there:
        copy_out(wait_for_ssh(wire, there[0], 60), there[1], target)


def heed_ends() -> None:
    """From now on this process ends on SIGTERM and SIGHUP as on Ctrl-C: what is half-written is removed on the way."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _split(text: str) -> tuple[str, str] | None:
    """(server, path) of `server:path`; None for a path of this machine."""
    name, colon, path = text.partition(":")
    return (name, path or ".") if colon and "/" not in name and name else None


# Runs in the guest: unpack into the target when it is a folder or is meant as one, else rename what was unpacked to it.
_PUT = """set -e
t={target}
if [ -d "$t" ]; then tar -xf - -C "$t"
else case "$t" in */) mkdir -p "$t"; tar -xf - -C "$t";;
*) d=$(dirname "$t"); w=$(mktemp -d "$d/.virtuary-XXXXXX"); trap 'rm -rf "$w"' EXIT; tar -xf - -C "$w"; mv "$w"/{base} "$t";; esac; fi
"""
# Runs in the guest: what was named is followed if it is a link; links in a folder are sent as links.
_GET = """p={source}
if [ -d "$p" ]; then CDPATH= cd -- "$p" && exec tar -cf - .; fi
exec tar -chf - -C "$(dirname -- "$p")" -- "$(basename -- "$p")"
"""


def copy_in(way: dict[str, Any], source: str, target: str) -> None:
    """Send a file or folder of the user's, which is what the guest unpacks."""
    if not os.path.exists(source):
        raise NotFound(f"there is no file {source!r} here")
    folder, base = os.path.split(os.path.abspath(source))
    script = _PUT.format(target=shlex.quote(target), base=shlex.quote(base))
    with (
        subprocess.Popen(["tar", "-C", folder, "-cf", "-", "--", base], stdout=subprocess.PIPE) as tar,
        _logged_in(way, script, stdin=tar.stdout) as remote,
    ):
        assert tar.stdout
        tar.stdout.close()
        if remote.wait() or tar.wait():
            raise _failure(source)


def copy_out(way: dict[str, Any], source: str, target: str) -> None:
    """Fetch a file or folder. Raises Failed or Refused when not all of it is there then."""
    with _logged_in(way, _GET.format(source=shlex.quote(source)), stdout=subprocess.PIPE) as remote:
        assert isinstance(remote.stdout, BufferedReader)
        if not remote.stdout.peek(1):
            raise _failure(source)
        try:
            unpack(remote.stdout, source, target)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise of_system(error) from error
        remote.stdout.close()
        if remote.wait():
            raise _failure(source)


@contextlib.contextmanager
def _logged_in(
    way: dict[str, Any], script: str, stdin: IO[bytes] | int | None = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A script that runs in a server, for as long as this. What it complains of is shown without what would steer a terminal."""
    complaints, theirs = os.pipe()
    with open(theirs, "wb") as stderr:
        process = subprocess.Popen(ssh_command(way, script), stdin=stdin, stdout=stdout, stderr=stderr)
    relay = threading.Thread(target=_relay, args=(complaints,), daemon=True)
    relay.start()
    with process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            relay.join(1)  # what ssh started may outlive it, if it is a wrapper


def _relay(complaints: int) -> None:
    with open(complaints, "rb") as lines:
        while line := lines.readline(4096):
            say(shown(line))


def _failure(what: str) -> Failed:
    return Failed(f"{what} could not be copied", "what was written above tells why")


class Place(NamedTuple):
    """Where a copy goes: a folder that its user named, and the path in it."""

    folder: str
    path: Path


def find_place(source: str, target: str) -> Place:
    """The place of a copy of `source`: in the folder `target`, or beside others as `target`. Folders before it are made."""
    name = os.fsencode(os.path.basename(source.rstrip("/")))
    own = () if name in (b"", b".", b"..") else (name,)
    if os.path.isdir(target):
        return Place(target, own)
    folder, base = (
        (target, own) if target.endswith("/") else (os.path.dirname(target) or ".", (os.fsencode(os.path.basename(target)),))
    )
    os.makedirs(folder, exist_ok=True)
    return Place(target, own) if os.path.isdir(target) else Place(folder, base)


def unpack(stream: BinaryIO, source: str, target: str) -> None:
    """Put what the server sends of `source` to `target`; says what was left out. Raises Failed when not all of it came or could be written."""
    archive = Archive(stream)
    entries = iter(archive)
    first = next(entries, None)
    if first is None:
        raise _failure(source)
    if first.kind not in ("file", "folder"):
        raise Failed(f"{source} is neither a file nor a folder there")
    if _is_sink(target):
        _pour(first, archive, source, target)
    else:
        _unpack_at(find_place(source, target), first, archive, entries, source)
    if more := next(entries, None):
        raise Failed(f"the server sent {named(more.name)} where one file was asked for")


def _unpack_at(place: Place, first: Entry, archive: Archive, entries: Iterator[Entry], source: str) -> None:
    with Beneath(place.folder) as beneath:
        if first.kind == "folder":
            unpacking = Unpacking(archive, beneath, place.path)
            unpacking.folder(first, entries)
            _tell(unpacking, source)
        elif place.path:
            beneath.write(place.path, first.mode, first.modified, archive.content())
        else:
            raise Refused(f"{source} is no folder there, and has no name here")


def _is_sink(target: str) -> bool:
    """Whether the target is something that is written into and never replaced: a stream, a device, a pipe."""
    if target in _DESCRIPTORS or _DESCRIPTOR.fullmatch(target):
        return True
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _pour(first: Entry, archive: Archive, source: str, target: str) -> None:
    """Write one file into a sink, as plain cp does."""
    if first.kind == "folder":
        raise Refused(f"{source} is a folder, and {target} can't become one", "name a folder, or one that is not there yet")
    named = _DESCRIPTOR.fullmatch(target)
    number = int(named[1]) if named else _DESCRIPTORS.get(target)
    handle = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY) if number is None else os.dup(number)
    try:
        for piece in archive.content():
            write_all(handle, piece)
    finally:
        os.close(handle)


def _tell(unpacking: Unpacking, source: str) -> None:
    if unpacking.left_out:
        names = ", ".join(unpacking.special) + (" and others" if unpacking.left_out > len(unpacking.special) else "")
        say(f"{unpacking.left_out} special file{'s were' if unpacking.left_out > 1 else ' was'} left out: {names}")
    for sentence in unpacking.told:
        say(f"not copied: {sentence}")
    if unpacking.refused:
        raise Failed(f"{unpacking.refused} of the files of {source} were not copied", "what was written above tells why")
