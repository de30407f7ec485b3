"""The command cp: files and folders into and out of a server, by tar over SSH.

Into a server the user's own files go, packed by cli/packing.py. Out of it comes what the root user
of the guest chooses to send: it is unpacked by cli/unpacking.py, beneath the folder that the user
named and nowhere else.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Any, BinaryIO, NamedTuple

import click

from virtuary.base.beneath import Beneath, Path, named, write_all
from virtuary.base.errors import Failed, Invalid, NotFound, Refused, VirtuaryError, of_system
from virtuary.base.tar import Archive, Entry
from virtuary.base.text import shown
from virtuary.cli.login import leave_login, say_suspects, ssh_command, wait_for_ssh
from virtuary.cli.output import say
from virtuary.cli.packing import Packing, own_name
from virtuary.cli.progress import Progress, Watched
from virtuary.cli.remote import (
    GET,
    HOME,
    LIST,
    PUT,
    PUT_STREAM,
    as_pattern,
    is_pattern,
    literal,
    remote,
)
from virtuary.cli.unpacking import TOLD_CAP, Unpacking
from virtuary.client.start import connect

_FUTURE = re.compile(rb"tar: .*: time stamp .* in the future\n")
"""What GNU tar says of clocks that differ by a moment."""
_DESCRIPTORS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,4})")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="SOURCE... TARGET")
@click.option(
    "-r",
    "-R",
    "-a",
    "-p",
    "--recursive",
    "habit",
    is_flag=True,
    help="For those used to it: folders are always copied with all in them.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def cp_command(paths: tuple[str, ...], habit: bool, quiet: bool) -> None:
    """Copy files and folders into or out of a server. `-` stands for standard input and output.

    A target that is a folder receives the copies under their own names; else the one copy gets its
    name, and the folder it goes to must be there. In paths of a server ~ is the home folder, and *
    ? [] choose files, in quotes; a backslash before one of them, or before any letter, takes that
    one as it is. A link that is named itself is followed; links in folders stay
    links, and devices, pipes and sockets are left out, which is said. Copies belong to whoever is
    logged in there, or to you here, without set-user-ID bits. Out of a server nothing outside the
    target is read or written: links that are there already are not followed, but for the target
    itself.

    \b
    Examples:
      virtuary cp site index.html web1:/var/www/
      virtuary cp 'web1:/var/log/*.log' logs
      virtuary cp web1:/etc/hosts .
      tar -c site | virtuary cp - web1:site.tar
    """
    if len(paths) < 2:
        raise Invalid(
            "a source and a target are needed",
            "virtuary cp FILE web1:/path, or virtuary cp web1:/path FILE",
        )
    *sources, target = paths
    there, here = [_split(source) for source in sources], _split(target)
    if here and not any(there):
        server = here[0]
    elif not here and all(there) and len({place[0] for place in there if place}) == 1:
        server = next(place[0] for place in there if place)
    else:
        raise Invalid(
            "exactly one side must be in a server, and all sources in the same one",
            "virtuary cp FILE web1:/path, or virtuary cp web1:/path FILE; a file whose name has "
            "a colon is ./NAME",
        )
    heed_ends()
    progress = Progress(quiet)
    with contextlib.closing(progress):
        way = wait_for_ssh(connect(), server, 60)
        if here:
            copy_in(way, sources, here[1], progress)
        else:
            copy_all_out(way, [place[1] for place in there if place], target, progress)


def heed_ends() -> None:
    """From now on this process ends on SIGTERM and SIGHUP as on Ctrl-C: what is half-written is
    removed on the way.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _split(text: str) -> tuple[str, str] | None:
    """(server, path) of `server:path`; None for a path of this machine."""
    name, colon, path = text.partition(":")
    return (name, path or ".") if colon and "/" not in name and name else None


LIST_CAP = 1024 * 1024


def copy_in(
    way: dict[str, Any], sources: list[str], target: str, progress: Progress | None = None
) -> None:
    """Send files and folders of the user's, which is what the guest unpacks. Raises Failed when not
    all of it is there then.
    """
    progress = progress or Progress(quiet=True)
    if "-" in sources:
        return _stream_in(way, sources, target, progress)
    missing = [source for source in sources if not os.path.lexists(source)]
    if missing:
        raise NotFound(f"there is no file {missing[0]!r} here")
    name = own_name(sources[0])
    folder = os.path.isdir(sources[0])
    script = PUT.format(
        target=remote(target),
        many=int(len(sources) > 1),
        folder=int(folder),
        base=shlex.quote(name),
    )
    with _logged_in(way, script, stdin=subprocess.PIPE) as process:
        assert process.stdin
        packing = Packing(process.stdin, progress.tell)  # type: ignore[arg-type]
        failed: list[VirtuaryError] = []
        try:
            for source in sources:
                try:
                    packing.add(source)
                except (NotFound, Refused) as error:
                    failed.append(error)
            if len(failed) == len(sources):
                process.terminate()
                raise failed[0]
            packing.close()
            process.stdin.close()
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        status = process.wait()
    progress.close()
    _tell_packed(packing, failed)
    if status or failed or packing.refused:
        raise _failure(", ".join(sources))


def _stream_in(way: dict[str, Any], sources: list[str], target: str, progress: Progress) -> None:
    """Standard input becomes a file there."""
    if len(sources) > 1:
        raise Invalid(
            "standard input can't be copied together with files", "copy it by a command of its own"
        )
    with _logged_in(
        way, PUT_STREAM.format(target=remote(target)), stdin=subprocess.PIPE
    ) as process:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            while data := os.read(0, 256 * 1024):
                process.stdin.write(data)
                progress.tell("standard input", len(data))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if process.wait():
            raise _failure("standard input")


def _tell_packed(packing: Packing, failed: list[VirtuaryError]) -> None:
    _tell_some("left out", packing.special)
    _tell_some("kept as links that lead out of what was copied", packing.leading_out)
    for sentence in [*(error.sentence for error in failed), *packing.refused[:TOLD_CAP]]:
        say(f"not copied: {sentence}")


def _tell_some(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} others" if len(names) > 3 else ""
        say(f"{what}: {', '.join(names[:3])}{more}")


def copy_all_out(way: dict[str, Any], sources: list[str], target: str, progress: Progress) -> None:
    """Fetch several files and folders, or those that patterns stand for. What can't be had is told,
    and the rest is copied.
    """
    shared = None
    if len(sources) > 1 or any(is_pattern(source) for source in sources):
        shared = tempfile.mkdtemp(prefix="virtuary-cp-")  # one login serves all of them
        way = way | {"share": f"{shared}/login"}
    try:
        found = [
            each
            for source in sources
            for each in (_list(way, source) if is_pattern(source) else [literal(source)])
        ]
        if len(found) > 1 and not os.path.isdir(target) and not _is_sink(target):
            raise NotFound(
                f"there is no folder {target!r} here",
                "several files are copied into a folder that is there",
            )
        failures = []
        for source in found:
            try:
                copy_out(way, source, target, progress)
            except VirtuaryError as error:
                if len(found) == 1:
                    raise
                progress.pause()
                say(f"error: {error.sentence}")
                failures.append(source)
        if failures:
            raise _failure(f"{len(failures)} of {len(found)}")
    finally:
        if shared:
            leave_login(way)
            shutil.rmtree(shared, ignore_errors=True)


def _list(way: dict[str, Any], wanted: str) -> list[str]:
    """The paths that a pattern stands for in the server. Their names must be what was asked for, or
    a server could choose what is written here.
    """
    pattern = as_pattern(wanted)
    last = pattern.rpartition("/")[2]
    home = HOME.match(pattern)
    source = f'"$HOME"{shlex.quote(pattern[1:])}' if home and home[0] == "~" else remote(pattern)
    with _logged_in(way, LIST.format(source=source), stdout=subprocess.PIPE) as process:
        assert process.stdout
        told = process.stdout.read(LIST_CAP + 1)
        process.stdout.close()
        status = process.wait()
    paths = [os.fsdecode(path) for path in told.split(b"\0") if path]
    if len(told) > LIST_CAP or status:
        raise Failed(f"what {wanted} stands for could not be had")
    if not paths:
        raise NotFound(f"nothing in the server is called {wanted}")
    for path in paths:
        name = own_name(path)
        if not (fnmatch.fnmatchcase(name, last) or path == pattern) or (
            name.startswith(".") and not last.startswith(".")
        ):
            raise Refused(f"the server says that {shown(path)!r} is called {wanted}")
    return paths


def copy_out(
    way: dict[str, Any], source: str, target: str, progress: Progress | None = None
) -> None:
    """Fetch a file or folder. Raises Failed, Refused or NotFound when not all of it is there
    then.
    """
    progress = progress or Progress(quiet=True)
    with _logged_in(way, GET.format(source=remote(source)), stdout=subprocess.PIPE) as process:
        assert isinstance(process.stdout, BufferedReader)
        if not process.stdout.peek(1):
            raise _failure(source)
        try:
            unpack(Watched(process.stdout, source, progress), source, target)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise of_system(error) from error
        process.stdout.close()
        if process.wait():
            raise _failure(source)


@contextlib.contextmanager
def _logged_in(
    way: dict[str, Any],
    script: str,
    stdin: IO[bytes] | int | None = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A script that runs in a server, for as long as this. What it complains of is shown without
    what would steer a terminal.
    """
    complaints, theirs = os.pipe()
    with open(theirs, "wb") as stderr:
        process = subprocess.Popen(
            ssh_command(way, f"exec sh -c {shlex.quote(script)}"),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    relay = threading.Thread(target=_relay, args=(complaints, way), daemon=True)
    relay.start()
    with process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            relay.join(1)  # what ssh started may outlive it, if it is a wrapper


def _relay(complaints: int, way: dict[str, Any]) -> None:
    with open(complaints, "rb") as lines:
        while line := lines.readline(4096):
            if not _FUTURE.fullmatch(line):
                say(shown(line))
            if b"Permission denied (" in line and way.get("suspects"):
                say_suspects(way)


def _failure(what: str) -> Failed:
    return Failed(f"{what} could not be copied", "what was written above tells why")


class Place(NamedTuple):
    """Where a copy goes: a folder that its user named, and the path in it."""

    folder: str
    path: Path


def find_place(source: str, target: str, folder: bool) -> Place:
    """The place of a copy of `source`: in the folder `target`, or beside others as `target`, in a
    folder that is there. Raises NotFound.
    """
    name = os.fsencode(own_name(source))
    if os.path.isdir(target):
        return Place(target, () if name == b"." else (name,))
    missing = (
        target
        if target.endswith("/") and not folder
        else os.path.dirname(target.rstrip("/")) or "."
    )
    base = os.fsencode(os.path.basename(target.rstrip("/")))
    if missing == target or not os.path.isdir(missing) or base in (b"", b".", b".."):
        raise NotFound(f"there is no folder {missing!r} here", f"mkdir {shlex.quote(missing)}")
    return Place(missing, (base,))


def unpack(stream: BinaryIO, source: str, target: str) -> None:
    """Put what the server sends of `source` to `target`; says what was left out. Raises Failed when
    not all of it came or could be written.
    """
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
        _unpack_at(
            find_place(source, target, first.kind == "folder"), first, archive, entries, source
        )
    if more := next(entries, None):
        raise Failed(f"the server sent {named(more.name)} where one file was asked for")


def _unpack_at(
    place: Place, first: Entry, archive: Archive, entries: Iterator[Entry], source: str
) -> None:
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
    """Whether the target is something that is written into and never replaced: a stream, a device,
    a pipe.
    """
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
        raise Refused(
            f"{source} is a folder, and {target} can't become one",
            "name a folder, or one that is not there yet",
        )
    named = _DESCRIPTOR.fullmatch(target)
    number = int(named[1]) if named else _DESCRIPTORS.get(target)
    handle = (
        os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        if number is None
        else os.dup(number)
    )
    try:
        for piece in archive.content():
            write_all(handle, piece)
    finally:
        os.close(handle)


def _tell(unpacking: Unpacking, source: str) -> None:
    if unpacking.left_out:
        names = ", ".join(unpacking.special) + (
            " and others" if unpacking.left_out > len(unpacking.special) else ""
        )
        say(
            f"{unpacking.left_out} special file{'s were' if unpacking.left_out > 1 else ' was'} "
            f"left out: {names}"
        )
    _tell_some("kept as links that lead out of what was copied", unpacking.leading_out)
    for sentence in unpacking.told:
        say(f"not copied: {sentence}")
    if unpacking.refused:
        raise Failed(
            f"{unpacking.refused} of the files of {source} were not copied",
            "what was written above tells why",
        )
