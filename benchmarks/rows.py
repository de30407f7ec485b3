"""The rows. `python benchmarks/rows.py P1 P7` runs some, without arguments all; results lie in
benchmarks/results.

P1 control-plane tax · P2 cold create to SSH banner · P5 memory of a machine beside its guest's · P7
define, start paused, stop, delete in bulk · P11 memory of the daemon · P12 its idle processor time
· P14 adoption after a kill · P29 cost of the command line · U1 sampling P16 placement · P30
consolidation planner · P25n bandwidth limits · P25f floors
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import resources
import sampling
import warm
from harness import Row, cpu_seconds, pss
from subjects import Libvirt, Raw, kill, libvirt, ours

import network
import planning

HERE = Path(__file__).parent


class Bench:
    """Ours with a prepared server, and beside it whatever baseline is there."""

    def __init__(self, stack: ExitStack) -> None:
        self.ours = stack.enter_context(ours())
        self.client = self.ours.client
        self.client.launch("tiny", "base")
        self.command = self.ours.command_of("base")
        vm = self.client.vm("base")
        self.image = self.ours.root / "state/images" / vm.spec.image_id
        self.client.stop("base", force=True)
        self.disk = self.ours.root / "raw.qcow2"
        self.args = self.command[self.command.index("-append") + 1]
        self.libvirt: Libvirt | None = None
        self.no_libvirt = ""
        try:
            self.libvirt = stack.enter_context(libvirt())
        except LookupError as error:
            self.no_libvirt = str(error)

    def raw(self, name: str = "raw", extra: tuple[str, ...] = ()) -> Raw:
        folder = self.ours.root / name
        folder.mkdir(exist_ok=True)
        return Raw(
            [*self.command, *extra],
            folder,
            self.overlay(folder / "disk.qcow2"),
            self.image / "disk.qcow2",
        )

    def overlay(self, disk: Path, owner: int | None = None) -> Path:
        disk.unlink(missing_ok=True)
        base = self.image / "disk.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk)],
            check=True,
        )
        return disk

    def xml(self, name: str) -> Path:
        """A libvirt machine like ours, with files its own user may read."""
        assert self.libvirt
        public = self.libvirt.root / "files"
        if not public.exists():
            public.mkdir()
            for file in ("disk.qcow2", "kernel", "initrd"):
                subprocess.run(
                    ["cp", "--sparse=always", str(self.image / file), str(public / file)],
                    check=True,
                )
            os.chmod(self.libvirt.root, 0o755)
            subprocess.run(["chmod", "-R", "a+rwX", str(public)], check=True)
        disk = public / f"{name}.qcow2"
        subprocess.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                str(public / "disk.qcow2"),
                "-F",
                "qcow2",
                str(disk),
            ],
            check=True,
        )
        os.chmod(disk, 0o666)
        return self.libvirt.define(name, disk, public / "kernel", public / "initrd", self.args)

    def skip(self, row: Row) -> None:
        if not self.libvirt:
            row.skipped["libvirt"] = self.no_libvirt


def p1(bench: Bench) -> None:
    """From the call to QEMU's RESUME, the guest's boot not counted."""
    row = Row(
        "P1",
        "control-plane tax: the call to the virtual CPUs running",
        targets=["ours <= raw + 50 ms; tax <= 0.5 of libvirt's"],
    )
    raw = bench.raw()

    def run_ours() -> float:
        began = time.monotonic()
        bench.client.start("base", wait="running")
        took = time.monotonic() - began
        bench.client.stop("base", force=True)
        return took

    def run_raw() -> float:
        took = raw.start()
        raw.stop()
        return took

    subjects: dict[str, Callable[[], float]] = {"ours": run_ours, "raw": run_raw}
    if bench.libvirt:
        xml, virsh = bench.xml("vb-p1"), bench.libvirt

        def run_libvirt() -> float:
            took = virsh.say(f"create {xml} --paused", "resume vb-p1")
            virsh.say("destroy vb-p1")
            return took

        subjects["libvirt"] = run_libvirt
    bench.skip(row)
    row.interleave(subjects, 15)
    tax = row.median("ours") - row.median("raw")
    row.facts["tax of ours, ms"] = round(tax * 1000, 1)
    if bench.libvirt:
        theirs = row.median("libvirt") - row.median("raw")
        row.facts["tax of libvirt, ms"] = round(theirs * 1000, 1)
        row.facts["tax, ours to libvirt's"] = round(tax / theirs, 2)
    row.finish()


def p2(bench: Bench) -> None:
    """Cold create to the SSH banner, tiny."""
    row = Row(
        "P2",
        "cold create to SSH (tiny)",
        targets=["ours <= 1.03 of raw (boot is nearly all of it)"],
    )

    def run_ours() -> float:
        began = time.monotonic()
        bench.client.launch("tiny", "cold")
        took = time.monotonic() - began
        bench.client.delete("cold", now=True, force=True)
        return took

    def run_raw() -> float:
        raw = bench.raw("cold")
        port = free_port()
        raw.command = [
            word.replace(
                '"type": "user"',
                f'"type": "user", "hostfwd": [{{"str": "tcp:127.0.0.1:{port}-:22"}}]',
            )
            for word in raw.command
        ]
        began = time.monotonic()
        raw.start()
        wait_banner(port)
        took = time.monotonic() - began
        raw.stop()
        return took

    row.skipped["libvirt"] = "its user network publishes no port without passt"
    row.interleave({"ours": run_ours, "raw": run_raw}, 7)
    row.finish()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_banner(port: int) -> None:
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 0.7) as sock:
                sock.settimeout(0.7)
                sock.sendall(b"SSH-2.0-bench\r\n")
                if sock.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        time.sleep(0.05)


def p5(bench: Bench) -> None:
    """Proportional memory of a machine whose guest never ran."""
    row = Row(
        "P5",
        "memory of a machine that was started paused and never ran",
        "MiB",
        targets=["<= 0.6 of libvirt's"],
    )
    helpers: list[float] = []

    def run_ours() -> float:
        bench.client.launch("tiny", "idle", power="paused")
        runtime = bench.client.vm("idle").status.runtime
        assert runtime
        size = pss(runtime.pid)
        helpers.append(pss(runtime.network_pid) if runtime.network_pid else 0.0)
        bench.client.delete("idle", now=True, force=True)
        return size

    def run_raw() -> float:
        raw = bench.raw("idle")
        raw.start(run=False)
        assert raw.process
        size = pss(raw.process.pid)
        raw.stop()
        return size

    subjects: dict[str, Callable[[], float]] = {"ours": run_ours, "raw": run_raw}
    if bench.libvirt:
        xml, virsh = bench.xml("vb-p5"), bench.libvirt

        def run_libvirt() -> float:
            virsh.say(f"create {xml} --paused")
            size = pss(qemu_of("guest=vb-p5"))
            virsh.say("destroy vb-p5")
            return size

        subjects["libvirt"] = run_libvirt
    bench.skip(row)
    row.interleave(subjects, 7)
    row.facts["network helper of ours beside it, MiB"] = round(statistics.median(helpers), 1)
    row.facts["note"] = (
        "libvirt's has the same devices as ours, not its default ones; its user network runs "
        "inside QEMU, as raw's does"
    )
    row.finish()


def qemu_of(word: str) -> int:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"/usr/bin/qemu-system") and word.encode() in words:
            return int(place.name)
    raise LookupError(word)


def p7(bench: Bench, count: int = 24) -> None:
    """Define, start, stop, delete; two at a time."""
    row = Row(
        "P7",
        f"{count} x define, start, stop, delete, 2 in parallel",
        targets=["ours <= 1.3 of the raw loop"],
    )

    def ours_one(number: int) -> None:
        client, name = bench.ours.connect(), f"bulk-{number}"
        client.create("tiny", name)
        client.start(name, wait="running")
        client.stop(name, force=True)
        client.delete(name, now=True)

    def raw_one(number: int) -> None:
        raw = bench.raw(f"bulk{number % 2}-{number}")
        raw.start()
        raw.stop()

    def in_parallel(one: Callable[[int], None]) -> Callable[[], float]:
        def run() -> float:
            began = time.monotonic()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(one, range(count)))
            return time.monotonic() - began

        return run

    subjects = {"ours": in_parallel(ours_one), "raw": in_parallel(raw_one)}
    if bench.libvirt:
        virsh = bench.libvirt

        def run_libvirt() -> float:
            began = time.monotonic()
            for number in range(count):
                xml = bench.xml(f"vb-bulk{number}")
                virsh.say(
                    f"define {xml}",
                    f"start vb-bulk{number}",
                    f"destroy vb-bulk{number}",
                    f"undefine vb-bulk{number}",
                )
            return time.monotonic() - began

        subjects["libvirt"] = run_libvirt
        row.facts["note"] = "libvirt one after another on one connection"
    bench.skip(row)
    row.interleave(subjects, 3)
    row.finish()


def p11(bench: Bench, count: int = 300) -> None:
    """Memory of the daemons: idle, and with many definitions."""
    row = Row(
        "P11",
        "memory of the daemon",
        "MiB",
        targets=["ours <= 90 MiB; libvirt's C probably needs less"],
    )
    row.samples["ours, idle"] = [pss(bench.ours.pid)]
    if bench.libvirt:
        row.samples["libvirt, idle"] = [pss(bench.libvirt.pid) + pss(bench.libvirt.logger)]
    for number in range(count):
        bench.client.create("tiny", f"many-{number}")
    row.samples[f"ours, {count} definitions"] = [pss(bench.ours.pid)]
    if bench.libvirt:
        for number in range(count):
            bench.libvirt.say(
                f"define {bench.libvirt.define(f'vb-many{number}', Path('/x'), Path('/k'), Path('/i'), '')}"
            )
        row.samples[f"libvirt, {count} definitions"] = [
            pss(bench.libvirt.pid) + pss(bench.libvirt.logger)
        ]
    bench.skip(row)
    row.finish()
    p29(bench, count)


def p29(bench: Bench, count: int = 0) -> None:
    """The command line as a whole process."""
    row = Row(
        "P29",
        f"list {count} objects, whole process",
        targets=["list -o json <= 90 ms"],
    )

    def timed(command: list[str]) -> Callable[[], float]:
        def run() -> float:
            began = time.monotonic()
            subprocess.run(command, env=bench.ours.environment, capture_output=True, check=True)
            return time.monotonic() - began

        return run

    program = str(Path(sys.executable).with_name("virtuary"))
    subjects = {
        "ours, list -o json": timed([program, "list", "-o", "json"]),
        "ours, list": timed([program, "list"]),
    }
    if bench.libvirt:
        virsh = ["virsh", "-q", "-c", bench.libvirt.uri]
        subjects["virsh list --all"] = timed([*virsh, "list", "--all"])
        # as `-o json`: all that is defined of each, by one process
        every = "; ".join(f"dumpxml vb-many{number}" for number in range(count))
        subjects["virsh, dumpxml of each"] = timed([*virsh, every])
    bench.skip(row)
    row.interleave(subjects, 30)
    row.finish()


def fleet(bench: Bench, count: int) -> list[str]:
    names = [f"fleet-{number}" for number in range(count)]
    for name in names:
        bench.client.create("tiny", name)
    with ThreadPoolExecutor(2) as pool:

        def begin(name: str) -> None:
            client = bench.ours.connect()
            client.start(name, wait="running")
            client.pause(name)

        list(pool.map(begin, names))
    return names


def p12_and_p14(bench: Bench, count: int = 20) -> None:
    """Idle cost with paused machines; then the daemon is killed and has to find them again."""
    names = fleet(bench, count)
    row = Row(
        "P12",
        f"daemon's idle share of one core with {count} paused machines",
        "%",
        targets=["<= 0.3 %"],
    )
    time.sleep(10)
    began, before = time.monotonic(), cpu_seconds(bench.ours.pid)
    time.sleep(60)
    row.samples["ours"] = [
        100 * (cpu_seconds(bench.ours.pid) - before) / (time.monotonic() - began)
    ]
    if bench.libvirt:
        before, began = cpu_seconds(bench.libvirt.pid), time.monotonic()
        time.sleep(20)
        row.samples["libvirt, no machine"] = [
            100 * (cpu_seconds(bench.libvirt.pid) - before) / (time.monotonic() - began)
        ]
    row.finish()
    row = Row(
        "P14",
        f"daemon killed; {count} machines found again and answering",
        targets=["<= 0.6 s, none lost"],
    )
    before_pids = {
        vm.name: vm.status.runtime and vm.status.runtime.pid
        for vm in bench.client.vms()
        if vm.name in names
    }
    for _ in range(5):
        kill(bench.ours.pid)
        began = time.monotonic()
        bench.ours.pid = bench.ours.start_daemon()
        # proves that the daemon and each machine's monitor speak again
        every(bench, names, "resume")
        row.samples.setdefault("ours", []).append(time.monotonic() - began)
        every(bench, names, "pause")
    after = {
        vm.name: vm.status.runtime and vm.status.runtime.pid
        for vm in bench.client.vms()
        if vm.name in names
    }
    row.facts["machines lost or doubled"] = sum(before_pids[name] != after[name] for name in names)
    if bench.libvirt:
        adopt_libvirt(bench, row, count)
    bench.skip(row)
    row.finish()


def every(bench: Bench, names: list[str], deed: str) -> None:
    """A deed on many servers, four at a time."""

    def one(name: str) -> None:
        getattr(bench.ours.connect(), deed)(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, names))


def adopt_libvirt(bench: Bench, row: Row, count: int) -> None:
    virsh = bench.libvirt
    assert virsh
    for number in range(count):
        virsh.say(f"create {bench.xml(f'vb-fleet{number}')} --paused")
    for _ in range(5):
        assert virsh.shell
        virsh.shell.kill()
        virsh.shell.wait()
        kill(virsh.pid)
        began = time.monotonic()
        virsh.pid = virsh.start_daemon()
        virsh.shell = virsh.open_shell()
        virsh.say(*[f"resume vb-fleet{number}" for number in range(count)])
        row.samples.setdefault("libvirt", []).append(time.monotonic() - began)
        virsh.say(*[f"suspend vb-fleet{number}" for number in range(count)])


ROWS: dict[str, Callable[[Any], None]] = {
    "P1": p1,
    "P2": p2,
    "P5": p5,
    "P7": p7,
    "P11": p11,
    "P12": p12_and_p14,
    **warm.ROWS,
    **planning.ROWS,
    **sampling.ROWS,
    **resources.ROWS,
    **network.ROWS,
}


def interrupted(*_: object) -> None:
    """An orderly end, so that everything is put away; `timeout` sends the signal twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    wanted = list(
        dict.fromkeys({"P14": "P12", "P29": "P11"}.get(name, name) for name in sys.argv[1:] or ROWS)
    )
    if unknown := [name for name in wanted if name not in ROWS]:
        raise SystemExit(f"no such row: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, interrupted)
    failed = []
    for name in wanted:
        try:
            with ExitStack() as stack:
                ROWS[name](Bench(stack))
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"rows that failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
