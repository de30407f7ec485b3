"""The things that are measured beside each other: ours, raw QEMU with the identical command, and
libvirt.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtuary.client import Client


class Reaper:
    """A process that starts the daemons, buries what they orphan, and ends all of it when it is
    closed or this program dies.
    """

    def __init__(self, log: Path, *hidden: str) -> None:
        self.log = log
        program = [sys.executable, str(Path(__file__).with_name("reaper.py")), *hidden]
        if hidden:
            program = ["unshare", "--mount", "--propagation", "private", *program]
        self.process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, *command: str, environment: dict[str, str] | None = None) -> int:
        assert self.process.stdin and self.process.stdout
        order = {
            "command": command,
            "environment": environment or dict(os.environ),
            "log": str(self.log),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise LookupError(f"{command[0]} could not be started")
        return int(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """End a process and wait until it is buried."""
    watch = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(watch, how)
        select.select([watch], [], [], 20)
    finally:
        os.close(watch)


class Ours:
    """A private instance of Virtuary with the tiny image."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
        (self.root / "config").mkdir()
        (self.root / "config/virtuary.toml").write_text(
            "[templates]\nauto = false\n[network]\ndefault = 'user'\n"
        )  # none is made while something else is measured
        outside = {
            key: value for key, value in os.environ.items() if not key.startswith("VIRTUARY_")
        }
        # installed packages are compiled; so is what is measured
        outside.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environment = {
            **outside,
            "VIRTUARY_ROOT": str(self.root),
            "PYTHONPYCACHEPREFIX": str(self.root / "compiled"),
        }
        self.reaper = Reaper(self.root / "log")
        self.namespace: tuple[str, ...] = ()
        """Words before a command that is to run where the daemon does."""
        self.pid = self.start_daemon()
        self.client = self.connect()

    def connect(self) -> Client:
        return Client(str(self.root / "run/virtuary.sock"))

    def start_daemon(self) -> int:
        pid = self.reaper.start(
            *self.namespace,
            sys.executable,
            "-m",
            "virtuary",
            "daemon",
            environment=self.environment,
        )
        path = str(self.root / "run/virtuary.sock")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                    return pid
                except OSError:
                    time.sleep(0.005)
        self.reaper.close()
        raise SystemExit(f"the daemon did not start: {(self.root / 'log').read_text()[-500:]}")

    @contextmanager
    def apart(self) -> Iterator[None]:
        """The daemon, started anew, in a network namespace of its own meanwhile; what it began
        there is its own to end.
        """
        name = f"vb-{os.getpid()}"
        kill(self.pid, signal.SIGTERM)
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            self.namespace = ("ip", "netns", "exec", name)
            self.pid = self.start_daemon()
            yield
            kill(self.pid, signal.SIGTERM)
        finally:
            self.namespace = ()
            subprocess.run(["ip", "netns", "delete", name], check=True)
            self.pid = self.start_daemon()

    def close(self) -> None:
        try:
            for vm in list(self.client.vms()):  # those that never ran are but files below the root
                if vm.status.runtime:
                    self.client.delete(vm.name, now=True, force=True)
            kill(self.pid, signal.SIGTERM)
        finally:
            self.reaper.close()
            shutil.rmtree(self.root, ignore_errors=True)

    def command_of(self, name: str) -> list[str]:
        """The command line of a running server, as the kernel shows it."""
        runtime = self.client.vm(name).status.runtime
        assert runtime
        return Path(f"/proc/{runtime.pid}/cmdline").read_bytes().decode().split("\0")[:-1]


@contextmanager
def ours() -> Iterator[Ours]:
    instance = Ours()
    try:
        yield instance
    finally:
        instance.close()


class Raw:
    """QEMU started by hand with the arguments Virtuary gave it: descriptors replaced by plain files
    and sockets.
    """

    def __init__(self, command: list[str], folder: Path, disk: Path, base: Path) -> None:
        self.folder = folder
        self.command = self._plain(command, disk, base)
        self.process: subprocess.Popen[bytes] | None = None

    def _plain(self, command: list[str], disk: Path, base: Path) -> list[str]:
        line: list[str] = []
        words = iter(command)
        for word in words:
            if word == "-add-fd":
                next(words)
            elif word == "-chardev":
                value = dict(item.split("=", 1) for item in next(words).split(",")[1:])
                line += [
                    "-chardev",
                    f"socket,id={value['id']},path={self.folder}/{value['id']},server=on,wait=off",
                ]
            elif word in ("-netdev", "-blockdev"):
                line += [word, self._opened(json.loads(next(words)), disk, base)]
            else:
                line.append(word)
        return line

    def _opened(self, part: dict[str, Any], disk: Path, base: Path) -> str:
        if part.get("type") == "stream":
            part = {"id": part["id"], "type": "user"}
        if part.get("driver") == "file":
            part["filename"] = str(base if "base" in part["node-name"] else disk)
        return json.dumps(part)

    def start(self, run: bool = True) -> float:
        """Start, connect, continue; seconds until QEMU says RESUME, or without `run` until its
        monitor answers.
        """
        began = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.monitor = Monitor(self.folder / "qmp")
        if run:
            self.monitor.run("cont")
            self.monitor.wait("RESUME")
        return time.monotonic() - began

    def stop(self) -> None:
        assert self.process
        self.monitor.run("quit")
        self.process.wait()


class Monitor:
    def __init__(self, path: Path) -> None:
        until = time.monotonic() + 20
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(str(path))
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.002)
        self.file = self.sock.makefile("rw")
        self.file.readline()
        self.events: list[str] = []
        self.run("qmp_capabilities")

    def run(self, command: str) -> Any:
        self.file.write(json.dumps({"execute": command}) + "\n")
        self.file.flush()
        while "event" in (answer := json.loads(self.file.readline())):
            self.events.append(answer["event"])
        return answer.get("return")

    def wait(self, event: str) -> None:
        while event not in self.events:
            self.events.append(json.loads(self.file.readline()).get("event", ""))


class Libvirt:
    """A libvirtd of its own, hidden from the one of the machine, with one open virsh; LookupError
    where there is none.

    Its folders lie in a mount namespace under empty ones. KVM is hidden from it, as both sides are
    measured with TCG and libvirtd spends seconds on probing a /dev/kvm that runs no guest;
    therefore its own /dev namespaces are off. The rest is its default.
    """

    HIDDEN = (
        "/run/libvirt",
        "/var/lib/libvirt",
        "/var/log/libvirt",
        "/var/cache/libvirt",
        "/etc/libvirt",
    )

    def __init__(self) -> None:
        missing = [
            name
            for name in ("libvirtd", "virtlogd", "virsh", "unshare", "stdbuf")
            if not shutil.which(name)
        ]
        if os.getuid() != 0 or missing:
            raise LookupError(
                f"{' and '.join(missing)} not installed" if missing else "this is not root"
            )
        self.root = Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp"))
        os.chmod(self.root, 0o755)
        (self.root / "conf").write_text(
            f'unix_sock_dir = "{self.root}"\nauth_unix_rw = "none"\nlog_outputs = '
            f'"3:file:{self.root}/log"\n'
        )
        (self.root / "qemu.conf").write_text("namespaces = []\n")
        self.uri = f"qemu:///system?socket={self.root}/libvirt-sock"
        self.reaper = Reaper(self.root / "out", *self.HIDDEN)
        self.shell: subprocess.Popen[str] | None = None
        try:
            self.logger = self.reaper.start(
                *self.prepared("virtlogd", "-p", str(self.root / "logd.pid"))
            )
            until = time.monotonic() + 10
            while not (self.root / "logd.pid").exists() and time.monotonic() < until:
                time.sleep(0.02)
            self.pid = self.start_daemon()
            self.shell = self.open_shell()
        except LookupError:
            self.close()
            raise

    def prepared(self, *command: str) -> list[str]:
        """The command after the private configuration and a KVM that nobody may open are in
        place.
        """
        nothing = self.root / "nothing"
        nothing.touch(0o000)
        kvm = f"test ! -e /dev/kvm || mount --bind {nothing} /dev/kvm"
        return [
            "sh",
            "-ec",
            f'{kvm}; cp {self.root}/qemu.conf /etc/libvirt/; exec "$@"',
            "sh",
            *command,
        ]

    def start_daemon(self) -> int:
        """Start libvirtd and wait until it answers."""
        pid = self.reaper.start(
            "libvirtd", "-f", str(self.root / "conf"), "-p", str(self.root / "pid")
        )
        until = time.monotonic() + 30
        while subprocess.run(
            ["virsh", "-q", "-c", self.uri, "list"], capture_output=True, check=False, timeout=30
        ).returncode:
            if time.monotonic() > until:
                raise LookupError("libvirtd did not start")
            time.sleep(0.02)
        return pid

    def open_shell(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["stdbuf", "-oL", "virsh", "-c", self.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def say(self, *commands: str) -> float:
        """Commands on the open connection, each to its end; seconds."""
        assert self.shell and self.shell.stdin and self.shell.stdout
        mark = uuid.uuid4().hex
        patience = threading.Timer(60, self.shell.kill)
        patience.start()
        try:
            began = time.monotonic()
            for command in commands:
                self.shell.stdin.write(command + "\n")
            self.shell.stdin.write(f"echo {mark}\n")
            self.shell.stdin.flush()
            fault = ""
            for line in self.shell.stdout:
                if line.strip() == mark:
                    if fault:
                        raise RuntimeError(fault)
                    return time.monotonic() - began
                if "error:" in line:
                    fault = fault or line.strip()
            raise RuntimeError(f"virsh ended, or did not answer in a minute: {commands}")
        finally:
            patience.cancel()

    def say_until(self, command: str, limit: float = 60) -> None:
        """A command again and again until it succeeds: libvirt does not wait for a guest's
        agent.
        """
        until = time.monotonic() + limit
        while True:
            try:
                self.say(command)
                return
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        if self.shell:
            self.shell.kill()
            self.shell.wait()
        self.reaper.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def define(
        self, name: str, disk: Path, kernel: Path, initrd: Path, args: str, memory: int = 128
    ) -> Path:
        """The XML of a machine like ours, minimal; a file to `create` or `define`."""
        place = self.root / f"{name}.xml"
        place.write_text(f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{args}</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/><on_crash>preserve</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface><serial type='pty'/>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<controller type='usb' model='none'/><memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices></domain>""")
        return place


@contextmanager
def libvirt() -> Iterator[Libvirt]:
    baseline = Libvirt()
    try:
        yield baseline
    finally:
        baseline.close()
