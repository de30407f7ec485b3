"""Finds the daemon of this user, and starts it when there is none: through systemd where it runs,
else in the background.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from virtuary.base.errors import PeerAway
from virtuary.base.paths import Paths, find_paths
from virtuary.client.wire import Wire, environment_socket

SYSTEMD = Path("/run/systemd/system")
START_LIMIT = 60.0
"""Seconds; the first start of all tries the accelerator and the network with guests of its own: 15
s on an emulated machine.
"""
PROPERTIES = (
    "Type=notify",
    "KillMode=process",
    "OOMPolicy=continue",
    "TasksMax=infinity",
    "After=virtuary-servers.scope",
)
"""As in the packaged unit. Servers outlive the daemon when the host shuts down: one that saw them
end would start them again. It is not said of their unit, for what another unit names systemd does
not forget.
"""
KEPT = ("PATH", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "VIRTUARY_LOG")


def connect() -> Wire:
    """A connection to this user's daemon, which is started if need be. Raises PeerAway with the end
    of its log.
    """
    if path := environment_socket():
        return Wire(path)
    if (
        os.getuid() != 0
        and "VIRTUARY_ROOT" not in os.environ
        and _accepts(system := find_paths({}, 0).socket)
    ):
        return Wire(str(system)) if os.access(system, os.W_OK) else _own()
    return _own()


def find_socket() -> str:
    """Where this user's daemon would listen; starts nothing."""
    return environment_socket() or str(find_paths().socket)


def _own() -> Wire:
    paths = find_paths()
    if not _accepts(paths.socket):
        start(paths)
    return Wire(str(paths.socket))


def start_again(wire: Wire) -> None:
    """Start this user's daemon where `wire` leads to one that went away; any other one is somebody
    else's to start. Raises PeerAway with the end of its log.
    """
    paths = find_paths()
    if environment_socket() is None and wire.path == str(paths.socket):
        _own()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def start(paths: Paths) -> None:
    """Start the daemon and wait until it listens."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o755)
    began = time.monotonic()
    process = None if by_systemd(paths) else _in_background(paths)
    while not _accepts(paths.socket):
        if (
            process is not None
            and process.poll() not in (None, 0)
            and not _held(paths.lock)
            and not _accepts(paths.socket)
        ):
            raise PeerAway(
                f"the daemon did not start: {_last_words(paths.log)}", f"its log is {paths.log}"
            )
        if time.monotonic() - began > START_LIMIT:
            log = (
                paths.log
                if process
                else f"journalctl {'' if paths.mode == 'system' else '--user '}-u virtuary"
            )
            raise PeerAway(
                f"the daemon did not listen within {START_LIMIT:.0f} s", f"its log is {log}"
            )
        time.sleep(0.02)


def _held(lock: Path) -> bool:
    """Whether a daemon lives, listening or about to: somebody else may have started one at the same
    moment.
    """
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _command() -> list[str]:
    return [sys.executable, "-m", "virtuary", "daemon"]


def _in_background(paths: Paths) -> subprocess.Popen[bytes]:
    with open(paths.log, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as log:
        return subprocess.Popen(
            _command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            close_fds=True,
        )


def by_systemd(paths: Paths, systemd: Path = SYSTEMD) -> bool:
    """As a service, so that it is nobody's child, and wait until it is ready; False where systemd
    does not run or does not want to.

    A unit of this name may be there already: the packaged one, or the one of before, which systemd
    keeps as long as anything is left in it.
    """
    if not systemd.is_dir() or "VIRTUARY_ROOT" in os.environ:
        return False
    system = paths.mode == "system"
    for command in (unit_command(system), transient_command(system, dict(os.environ))):
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True  # it is on its way still
        except OSError:
            return False
        if done.returncode == 0:
            return _accepts(paths.socket)  # it was ready; else it ended again
    return False


def unit_command(system: bool) -> list[str]:
    """Starts the service that is there. Pure."""
    return ["systemctl", *([] if system else ["--user"]), "start", "virtuary.service"]


def transient_command(system: bool, environment: dict[str, str]) -> list[str]:
    """Makes the service. It is given what of the environment says where things are, as a daemon in
    the background has it. Pure.
    """
    kept = [f"--setenv={name}={environment[name]}" for name in KEPT if name in environment]
    properties = [f"--property={text}" for text in PROPERTIES]
    scope = [] if system else ["--user"]
    return [
        "systemd-run",
        *scope,
        "--quiet",
        "--unit=virtuary",
        "--collect",
        *properties,
        *kept,
        "--",
        *_command(),
    ]


def _last_words(log: Path) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "it left no log"
    lines = [line for line in text.splitlines() if not line.startswith("hint:")]
    return lines[-1].removeprefix("error: ")[:400] if lines else "it left no log"
