"""The things that are measured beside each other: ours, raw QEMU with the identical command, and libvirt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtuary.client import Client


class Ours:
    """A private instance of Virtuary with the tiny image."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
        self.environment = {**os.environ, "VIRTUARY_ROOT": str(self.root)}
        self.process = self.start_daemon()
        self.client = Client(str(self.root / "run/virtuary.sock"))

    def start_daemon(self) -> subprocess.Popen[bytes]:
        log = (self.root / "log").open("ab")
        process = subprocess.Popen([sys.executable, "-m", "virtuary", "daemon"], env=self.environment, stdout=log, stderr=log)
        path = str(self.root / "run/virtuary.sock")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                    return process
                except OSError:
                    time.sleep(0.005)
        raise SystemExit("the daemon did not start")

    def close(self) -> None:
        for vm in list(self.client.vms()):
            self.client.delete(vm.name, now=True, force=True)
        self.process.terminate()
        self.process.wait()
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
    """QEMU started by hand with the arguments Virtuary gave it: descriptors replaced by plain files and sockets."""

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
                line += ["-chardev", f"socket,id={value['id']},path={self.folder}/{value['id']},server=on,wait=off"]
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

    def start(self) -> float:
        """Start, connect, continue; seconds until QEMU says RESUME."""
        began = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.monitor = Monitor(self.folder / "qmp")
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
    """A libvirtd of its own with one open virsh; raises LookupError where libvirt is not installed."""

    def __init__(self) -> None:
        if os.getuid() != 0 or not all(shutil.which(name) for name in ("libvirtd", "virsh", "virtlogd")):
            raise LookupError("libvirt is not installed, or this is not root")
        self.root = Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp"))
        (self.root / "conf").write_text(
            f'unix_sock_dir = "{self.root}"\nauth_unix_rw = "none"\nlog_outputs = "3:file:{self.root}/log"\n'
        )
        self.logger = subprocess.Popen(["virtlogd", "-p", str(self.root / "logd.pid")], stderr=subprocess.DEVNULL)
        self.uri = f"qemu:///system?socket={self.root}/libvirt-sock"
        self.daemon = self.start_daemon()
        self.shell = self.open_shell()

    def start_daemon(self) -> subprocess.Popen[bytes]:
        daemon = subprocess.Popen(
            ["libvirtd", "-f", str(self.root / "conf"), "-p", str(self.root / "pid")], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 30
        while subprocess.run(["virsh", "-q", "-c", self.uri, "list"], capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                raise LookupError("libvirtd did not start")
            time.sleep(0.02)
        return daemon

    def open_shell(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["virsh", "-q", "-c", self.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def say(self, *commands: str) -> float:
        """Commands on the open connection, each to its end; seconds."""
        assert self.shell.stdin and self.shell.stdout
        mark = uuid.uuid4().hex
        began = time.monotonic()
        for command in commands:
            self.shell.stdin.write(command + "\n")
        self.shell.stdin.write(f"echo {mark}\n")
        self.shell.stdin.flush()
        for line in self.shell.stdout:
            if line.strip() == mark:
                return time.monotonic() - began
            if "error:" in line:
                raise RuntimeError(line)
        raise RuntimeError("virsh ended")

    def close(self) -> None:
        names = subprocess.run(
            ["virsh", "-q", "-c", self.uri, "list", "--all", "--name"], capture_output=True, text=True, check=False
        )
        for name in names.stdout.split():
            if name.startswith("vb-"):
                subprocess.run(["virsh", "-q", "-c", self.uri, "destroy", name], capture_output=True, check=False)
                subprocess.run(["virsh", "-q", "-c", self.uri, "undefine", name], capture_output=True, check=False)
        self.shell.kill()
        for process in (self.daemon, self.logger):
            process.send_signal(signal.SIGTERM)
            process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def define(self, name: str, disk: Path, kernel: Path, initrd: Path, args: str, memory: int = 128) -> Path:
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
