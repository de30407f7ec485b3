"""A Virtuary of its own for tests: a daemon with a private folder, its command line, its end, and
the leak audit.

Used by the live tests and by the crash harness. Processes are known by pid and start time, or by an
id of ours on their command line, and only ever ended so; nothing is found or ended by its name.
What an instance leaves behind is a failure of the test, not litter: `leaks` names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtuary.base.errors import VirtuaryError
from virtuary.base.paths import find_paths
from virtuary.base.proc import start_time
from virtuary.client.wire import Wire

Json = Any
SOURCE = Path(__file__).resolve().parents[2] / "src"
LISTENS_WITHIN = 30.0
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        return json.loads(self.out)


def until(what: Callable[[], Any], limit: float, wanted: str, pause: float = 0.1) -> Any:
    """Ask again and again until the answer is true; the answer. Fails after `limit` seconds with
    the last answer.
    """
    end = time.monotonic() + limit
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {limit:.0f} s: {wanted} (last seen: {answer!r})"
        time.sleep(pause)


class Instance:
    def __init__(
        self, root: Path | None = None, template: Path | None = None,
        env: dict[str, str] | None = None, resources: str = "",
        namespace: str = "",
    ) -> None:  # fmt: skip
        """A folder of its own, perhaps with a copy of a prepared state in it; the daemon is not
        started yet. `resources`: lines of its settings.

        `namespace`: network namespace in which the daemon and its commands run; only there has it
        networks of its own.
        """
        self.root = root or Path(tempfile.mkdtemp(prefix="vi-", dir="/tmp"))
        self.root.mkdir(exist_ok=True)
        self.root.chmod(0o711)
        self.env = {key: value for key,
        value in os.environ.items() if not key.startswith("VIRTUARY_")} | {
            "VIRTUARY_ROOT": str(self.root), "PYTHONPATH": str(SOURCE), "NO_COLOR": "1",
            **(env or {}),
        }  # fmt: skip
        self.paths = find_paths({"VIRTUARY_ROOT": str(self.root)})
        self.log = self.root / "daemon.out"
        self.resources = resources
        self.inside = ("ip", "netns", "exec", namespace) if namespace else ()
        self.configure(auto=False)
        self.process: subprocess.Popen[bytes] | None = None
        if template:
            copy_template(template, self.root)

    def configure(self, **templates: bool | int | str) -> None:
        """Write the settings of warm templates; by default none is made unasked, for it would cost
        the tests a processor.
        """
        self.paths.config.mkdir(exist_ok=True)
        lines = [f"{name} = {json.dumps(value)}" for name, value in templates.items()]
        network = ["[network]", f'default = "{"auto" if self.inside else "user"}"']
        text = "\n".join(["[templates]", *lines, "[resources]", self.resources, *network, ""])
        (self.paths.config / "virtuary.toml").write_text(text)

    # ---- the daemon

    def start(self, wait: bool = True, prefix: Sequence[str] = (), **extra: str) -> Instance:
        """Start the daemon, by a command that becomes it if `prefix` is given; with `wait` until it
        listens. `extra` is added to its environment.
        """
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.inside, *prefix, sys.executable, "-m", "virtuary", "daemon"],
                env=self.env | extra, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd="/", start_new_session=True,
            )  # fmt: skip
        if wait:
            until(self.listens, LISTENS_WITHIN, "the daemon listens", 0.02)
        return self

    def listens(self) -> bool:
        assert self.process and self.process.poll() is None, f"the daemon ended: {self.words()}"
        with contextlib.suppress(VirtuaryError, OSError):
            Wire(str(self.paths.socket), 20).call("GET", "/")
            return True
        return False

    def kill(self) -> None:
        """The end of a daemon without a last word."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """The orderly end of the daemon; fails when it does not come within ten seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end on SIGTERM: {self.words()}") from None

    def words(self) -> str:
        """The end of the daemon's log."""
        return self.log.read_text(errors="replace")[-6000:]

    # ---- talking to it

    def start_cli(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command without waiting for it."""
        options = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
            "preexec_fn": heed_interrupts,
        } | options  # fmt: skip
        return subprocess.Popen(
            [*self.inside, sys.executable, "-m", "virtuary", *words],
            env=self.env,
            text=True,
            cwd="/",
            **options,
        )

    def run(self, *words: str, stdin: bytes = b"", limit: float = 90) -> Said:
        """Run a command to its end, whatever that is."""
        done = subprocess.run(
            [*self.inside, sys.executable, "-m", "virtuary", *words], env=self.env, input=stdin,
            capture_output=True, timeout=limit,
            check=False, cwd="/",
        )  # fmt: skip
        return Said(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def ok(self, *words: str, stdin: bytes = b"", limit: float = 90) -> Said:
        """Run a command that has to succeed."""
        said = self.run(*words, stdin=stdin, limit=limit)
        assert said.status == 0, f"virtuary {' '.join(words)}: {said}\n{self.words()}"
        return said

    def json(self, *words: str, limit: float = 90) -> Json:
        return self.ok(*words, "-o", "json", limit=limit).json

    def call(self, method: str, target: str, body: Json = None, **query: Any) -> Json:
        """One request to the API, without the price of a process."""
        return Wire(str(self.paths.socket), 60).call(method, target, body, query or None)

    def vm(self, name: str) -> Json:
        return self.call("GET", f"/v1/vms/{name}")

    def state(self, name: str) -> str:
        return str(self.vm(name)["status"]["state"])

    def wait_state(self, name: str, *states: str, limit: float = 40) -> Json:
        """The server once it is in one of these states."""

        def look() -> Json:
            vm = self.vm(name)
            return vm if vm["status"]["state"] in states else None

        try:
            return until(look, limit, f"{name} is {' or '.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.vm(name)['status']}\n{self.words()}") from None

    def operations(self) -> list[Json]:
        return list(self.call("GET", "/v1/operations", limit=1000)["items"])

    def ask_qemu(self, name: str, command: str, **arguments: Any) -> Json:
        """One command to a server's second monitor."""
        with self.qemu(name) as ask:
            return ask(command, **arguments)

    @contextlib.contextmanager
    def qemu(self, name: str) -> Iterator[Callable[..., Json]]:
        """A connection to a server's second monitor, which others have to wait for meanwhile."""
        path = self.paths.vm(self.vm(name)["meta"]["id"]).socket("rescue")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            stream = sock.makefile("rw")
            stream.readline()

            def ask(command: str, **arguments: Any) -> Json:
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                while "event" in (answer := json.loads(stream.readline())):
                    pass
                assert "return" in answer, answer
                return answer["return"]

            ask("qmp_capabilities")
            yield ask

    def in_guest(self, name: str, script: str) -> str:
        """What a shell script prints in the guest, by its agent; it has to succeed."""
        said = self.run("exec", name, "--", "sh", "-c", script)
        assert said.status == 0, said
        return said.out.strip()

    # ---- what is left

    def documents(self, prefix: str) -> list[tuple[str, bytes]]:
        """What the store holds, read from the file, also without a daemon."""
        return self._query(
            "select key, value from object where key >= ? and key < ?",
            (prefix, prefix + "\U0010ffff"),
        )

    def _query(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        if not self.paths.store.exists():
            return []
        with contextlib.closing(sqlite3.connect(self.paths.store, timeout=10)) as db:
            return db.execute(query, values).fetchall()

    def ids(self) -> set[str]:
        """Every server there ever was, from the store's log."""
        return {
            row[0].removeprefix("vm/")
            for row in self._query("select distinct key from log where key like 'vm/%'")
        }

    def templates(self) -> set[str]:
        """Every warm template there ever was, as it stands on the command line while it is made.
        Its copies name it too, other instances' as well.
        """
        keys = self._query("select distinct key from log where key like 'template/%'")
        return {f"-uuid {row[0].removeprefix('template/')}" for row in keys}

    def recorded(self) -> set[tuple[int, int]]:
        """Every process (pid, start time) that was ever recorded as a machine or as its network."""
        found = set()
        for (value,) in self._query(
            "select value from log where key like 'vm/%' and value is not null"
        ):
            runtime = json.loads(value)["status"]["runtime"] or {}
            found |= {
                (runtime.get("pid"), runtime.get("start")),
                (runtime.get("network_pid"), runtime.get("network_start")),
            }
        return {(pid, start) for pid, start in found if pid}

    def processes(self) -> dict[int, str]:
        """Living processes of this instance but for the daemon: by record, by a server's or a
        template's id or by our folder in their arguments.
        """
        marks = [str(self.root), *self.ids(), *self.templates()]
        found = {pid: "recorded" for pid, start in self.recorded() if start_time(pid) == start}
        for pid, line in command_lines():
            if any(mark in line for mark in marks) and pid not in (
                os.getpid(),
                self.process.pid if self.process else 0,
            ):
                found[pid] = line[:200]
        return found

    def machines(self, vm_id: str) -> list[int]:
        """The QEMUs that are this server: its id and a disk; the helper of its network has no
        disk.
        """
        return [
            pid for pid, line in command_lines() if f"-uuid {vm_id}" in line and "disk0" in line
        ]

    def descriptors(self) -> int:
        assert self.process
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def leaks(self) -> list[str]:
        """What should not be there once every server is gone."""
        found = [f"process {pid}: {line}" for pid, line in self.processes().items()]
        found += (
            [f"zombie {pid}" for pid in zombies(self.process.pid)]
            if self.process and self.process.poll() is None
            else []
        )
        for vm_id in self.ids():
            found += [
                f"control group {path}"
                for path in (
                    *CGROUPS.glob(f"*/virtuary/{vm_id}"),
                    *CGROUPS.glob(f"virtuary/{vm_id}"),
                )
            ]
        for folder in (self.paths.run / "vms", self.paths.vms):
            found += [f"folder {path}" for path in folder.glob("*")]
        found += [f"network {path}" for path in (self.paths.run / "networks").glob("*")]
        if self.inside:
            looks = (("ip", "-br", "link"), ("nft", "list", "tables"))
            told = "".join(
                subprocess.run(
                    [*self.inside, *look], capture_output=True, text=True, check=True
                ).stdout
                for look in looks
            )
            found += [
                f"in the host's network: {line}"
                for line in told.splitlines()
                if line.startswith(("vb", "vt8", "table"))
            ]
        found += [f"partial {path}" for path in self.paths.images.glob(".*")]
        found += [f"layer {path}" for path in self.paths.layers.glob("*")]
        found += [
            f"mount {line}"
            for line in Path("/proc/mounts").read_text().splitlines()
            if str(self.root) in line
        ]
        found += [
            f"document {key}"
            for prefix in ("vm/", "vm-name/", "secret/")
            for key, _ in self.documents(prefix)
        ]
        every = [json.loads(value) for _, value in self.documents("operation/")]
        found += [
            f"operation {item['spec']['deed']['kind']} {item['spec']['target_name']} is "
            f"{item['status']['phase']}"
            for item in every if item["status"]["phase"] not in ("done", "failed", "cancelled")
        ]  # fmt: skip
        return found

    def wipe(self) -> None:
        """Remove every server, those in the trash too."""
        items = [
            *self.call("GET", "/v1/vms", limit=1000)["items"],
            *self.call("GET", "/v1/vms", limit=1000, trash="true")["items"],
        ]
        for vm in items:
            if vm["spec"]["policy"]["protect"]:
                self.call("PATCH", f"/v1/vms/{vm['meta']['id']}", {"policy": {"protect": False}})
        if items:
            self.ok("delete", "--now", "--force", "--yes", *(vm["meta"]["id"] for vm in items))
        for network in self.call("GET", "/v1/networks")["items"]:
            if not network["meta"]["purge"]:
                self.ok("network", "delete", network["meta"]["name"])

    def audit(self, descriptors: int | None = None) -> None:
        """Fail when anything is left, or when the daemon holds more than five descriptors more than
        `descriptors`.
        """
        end = time.monotonic() + 10
        while (found := self.leaks()) and time.monotonic() < end:
            time.sleep(0.2)
        assert not found, "left behind: " + "; ".join(found) + f"\n{self.words()}"
        if descriptors is not None:
            until(
                lambda: self.descriptors() <= descriptors + 5,
                5,
                f"{descriptors} descriptors and not {self.descriptors()}",
            )

    def remove(self) -> None:
        """End whatever is left, by pid, and remove the folder. For teardown: nothing here fails."""
        if self.process and self.process.poll() is None:
            self.kill()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        for vm_id in self.ids():
            for path in (*CGROUPS.glob(f"*/virtuary/{vm_id}"), *CGROUPS.glob(f"virtuary/{vm_id}")):
                for place in (path / "vcpus", path):
                    with contextlib.suppress(OSError):
                        place.rmdir()
        shutil.rmtree(self.root, ignore_errors=True)


def heed_interrupts() -> None:
    """In a child: Ctrl-C counts, although a shell that started the suite in the background has it
    ignored by all.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_lines() -> list[tuple[int, str]]:
    """Every living process with its arguments; zombies have none."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                words = (
                    Path(f"/proc/{name}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                if words:
                    found.append((int(name), words))
    return found


def zombies(parent: int) -> list[int]:
    """Ended children that nobody has asked about."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and int(fields[1]) == parent:
                    found.append(int(name))
    return found


def make_template(instance: Instance, image: str = "tiny", warm: bool = False) -> Path:
    """Let an instance build an image, perhaps make it warm, and learn about its host, then end; its
    folder can be copied from then on.
    """
    instance.start()
    if not any(
        item["meta"]["name"] == image for item in instance.call("GET", "/v1/images")["items"]
    ):
        instance.ok("image", "build", image, limit=400)
    if warm:
        instance.ok("image", "warm", image, limit=600)
    instance.stop()
    instance.log.unlink()
    return instance.root


@contextlib.contextmanager
def prepared(
    key: str, begin: Path | None = None, image: str = "tiny", **wish: bool
) -> Iterator[Path]:
    """The folder of an instance that was made ready once: for this process, or for all that share
    VIRTUARY_TEST_PREPARED.
    """
    shared = os.environ.get("VIRTUARY_TEST_PREPARED")
    if shared is None:
        instance = Instance(template=begin)
        try:
            yield make_template(instance, image, **wish)
        finally:
            instance.remove()
        return
    place, done = Path(shared) / key, Path(shared) / f"{key}.ready"
    with open(Path(shared) / f"{key}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            make_template(Instance(place, begin), image, **wish)
            done.touch()
    yield place


def serve(template: Path, resources: str = "", namespace: str = "") -> Iterator[Instance]:
    """A daemon with a copy of a prepared state; at its end it is emptied and audited."""
    instance = Instance(template=template, resources=resources, namespace=namespace)
    try:
        instance.start()
        before = instance.descriptors()
        yield instance
        if instance.process and instance.process.poll() is not None:
            instance.start()
        instance.wipe()
        instance.audit(before)
        instance.stop()
        instance.audit()
    finally:
        keep = os.environ.get("VIRTUARY_TEST_KEEP")
        if keep:
            shutil.copy(instance.log, keep)
        instance.remove()


def copy_template(template: Path, root: Path) -> None:
    """The state of a prepared instance; the image's files are shared by hard links, they are
    read-only.
    """
    shutil.copytree(
        template / "state",
        root / "state",
        copy_function=_link_image,
        ignore=shutil.ignore_patterns("daemon.lock", "ballast"),
    )
    shutil.copytree(template / "cache", root / "cache")


def _link_image(source: str, target: str) -> object:
    if "/state/images/" in source or "/state/templates/" in source:
        with contextlib.suppress(OSError):  # on another filesystem
            return os.link(source, target)
    shutil.copy2(source, target)
    if os.getuid() == 0:  # the group of a template's memory
        facts = os.stat(source)
        os.chown(target, facts.st_uid, facts.st_gid)
