"""Programs of the host, through one door.

Argument lists only (never a shell), absolute program path, small fixed environment, own deadline,
capped output, own process group, and an end by pidfd. What is missing raises `HostLacks` with the
package that has it. Processes that must outlive the daemon are known by pid *and* start time
(`Identity`), never by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.text import shown

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
OUTPUT_CAP = 4 * 1024 * 1024

# program -> Debian and Ubuntu package; used for hints only
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "passt": "passt",
    "nft": "nftables",
    "ip": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "gpgv": "gpgv",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "scp": "openssh-client",
}


class Result(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes


class Identity(NamedTuple):
    """A process that may outlive us: the pid alone could be somebody else's by now."""

    pid: int
    start: int  # clock ticks since boot, field 22 of /proc/PID/stat


def find_program(name: str) -> str:
    """Absolute path of the program `name`; raises HostLacks with the package that has it."""
    found = shutil.which(name, path=PATH)
    if not found:
        package = PACKAGES.get(name, name)
        raise HostLacks(
            f"the program {name} is not installed",
            f"apt install {package}",
            program=name,
            package=package,
        )
    return found


def bounded(memory: int, file_size: int) -> list[str]:
    """Words that start a program, to follow them, with at most so many bytes of address space and
    of each file, and no core dumps.
    """
    return [find_program("prlimit"), f"--as={memory}", f"--fsize={file_size}", "--core=0", "--"]


def session() -> dict[str, str]:
    """What a program must have in its environment to speak to this user's service manager."""
    return {
        name: os.environ[name]
        for name in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
        if name in os.environ
    }


def die_with_parent() -> None:
    """In a child: be killed when the parent dies (Linux, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


aside: Path | None = None
"""The control group long programs run in, apart from the daemon that has to answer; None where
there is none. Set once, at the start.
"""


def _step_aside() -> None:
    die_with_parent()
    if aside:
        with contextlib.suppress(OSError):
            (aside / "cgroup.procs").write_text("0", encoding="ascii")


async def run(
    *command: str,
    deadline: float = 60,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    preexec: Callable[[], None] | None = None,
) -> Result:
    """Run a program to its end and return its status and output, each capped at 4 MiB.

    The first word is a program's name (see `find_program`) or an absolute path. It is killed with
    its whole process group at the deadline (seconds), on cancellation, and when the daemon dies.
    With `check` a failure raises `Failed` with the last line it wrote to stderr.
    """
    program = command[0] if command[0].startswith("/") else find_program(command[0])
    spawning = asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, **(env or {})},
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=preexec or die_with_parent,
    )
    process = await _spawned(spawning)
    ended = False
    try:
        async with asyncio.timeout(deadline):
            out, err = await _talk(process, stdin)
            status = await process.wait()
        ended = True
    except TimeoutError:
        raise Failed(f"{command[0]} did not end within {deadline:.0f} s") from None
    finally:
        # its first process may be gone already while another one of the group holds the output open
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    result = Result(status, out, err)
    if check and status != 0:
        raise Failed(
            f"{command[0]} failed: {last_line(err) or last_line(out) or f'exit status {status}'}",
            status=status,
        )
    return result


async def _spawned(
    spawning: Coroutine[Any, Any, asyncio.subprocess.Process],
) -> asyncio.subprocess.Process:
    """The started program. Cancelled meanwhile, asyncio would end its first process only and wait
    for the others.
    """
    task = asyncio.ensure_future(spawning)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process = await task
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        raise


async def _talk(process: asyncio.subprocess.Process, stdin: bytes | None) -> tuple[bytes, bytes]:
    assert process.stdout and process.stderr

    async def feed() -> None:
        if stdin is not None and process.stdin:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(stdin)
                await process.stdin.drain()
            process.stdin.close()

    _, out, err = await asyncio.gather(
        feed(), _read_capped(process.stdout), _read_capped(process.stderr)
    )
    return out, err


async def _read_capped(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        if len(kept) < OUTPUT_CAP:
            kept += chunk[: OUTPUT_CAP - len(kept)]
    return bytes(kept)


async def lines_of(
    *command: str,
    deadline: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[str]:
    """Run a long program and yield what it writes (stdout and stderr together) line by line; raises
    `Failed` at a bad end.

    It runs in the control group `aside`. Ends the whole process group when the iteration is left
    early, at the deadline, and when the daemon dies.
    """
    program = command[0] if command[0].startswith("/") else find_program(command[0])
    spawning = asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ENVIRONMENT, **(env or {})},
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=_step_aside,
        limit=1024 * 1024,
    )
    process = await _spawned(spawning)
    assert process.stdout
    last: list[str] = []
    try:
        async with asyncio.timeout(deadline):
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                last = [*last[-4:], line] if line else last
                yield line
            status = await process.wait()
    except TimeoutError:
        raise Failed(f"{command[0]} did not end within {deadline:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status != 0:
        raise Failed(
            f"{command[0]} failed: {' / '.join(last) or f'exit status {status}'}", status=status
        )


_TRAILER = re.compile(
    r"Command failed \S+:\d+$|Try ['\"`].*help|See ['\"`].*help|Usage: ", re.IGNORECASE
)
"""What programs say after that: ip of a batch, many of their options."""


def last_line(output: bytes) -> str:
    """The last line of a program's output that tells what is the matter, at most 400 characters,
    control characters removed.
    """
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if not _TRAILER.match(line)] or lines
    return shown(telling[-1])[:400] if telling else ""


def boot_id() -> str:
    """Names this boot of the host: pids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it is gone or only a zombie is
    left.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> Identity | None:
    """The identity of a living process; None when it is gone."""
    start = start_time(pid)
    return None if start is None else Identity(pid, start)


def end(pidfd: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to exactly the process behind `pidfd`; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def wait_end(pidfd: int) -> None:
    """Return once the process behind `pidfd` has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def reap(pidfd: int) -> int | None:
    """Exit status of an ended child, negative for a signal; None when it is not our child."""
    with contextlib.suppress(ChildProcessError):
        if result := os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG):
            return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
    return None


def bury(pidfd: int) -> None:
    """Reap the child behind `pidfd` when it has ended, in the background; takes the descriptor
    over.

    A process that another one started for us becomes our child only when that one is gone, perhaps
    a moment after its own end.
    """
    loop = asyncio.get_running_loop()

    def look(left: int) -> None:
        loop.remove_reader(pidfd)
        try:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            if left and _is_there(pidfd):
                loop.call_later(0.01, look, left - 1)
                return
        os.close(pidfd)

    loop.add_reader(pidfd, look, 20)


def bury_ended(pid: int) -> None:
    """The same for a child that has ended already, by its number; nothing for one that is none."""
    with contextlib.suppress(OSError):
        bury(os.pidfd_open(pid))


def _is_there(pidfd: int) -> bool:
    """Whether the process lives or waits to be buried."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True
