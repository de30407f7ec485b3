"""The rows about warm launches: P3 one copy, P3b whatever its size, P4 many at once, P4n by
network, TB the translation buffer.

The end of a launch is an SSH command that was authenticated and ran. libvirt's user network
publishes no port without passt, so beside `virsh restore` and a full restore by hand the end is the
guest agent's answer, and ours is measured to that end too.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import Row, pss
from subjects import Raw

from virtuary.model.image import ImageSource

DEBIAN = "debian:12"
SETTLE = 25
"""Seconds until a copy has done what it does in the background."""


def log_in(bench: Any, name: str) -> None:
    """An SSH command as a user's own would be: no retry, an error is an error."""
    way = bench.client.way_in(name)
    subprocess.run(
        [*bench.ours.namespace, "ssh", "-F", "none", "-p", str(way["port"]), "-i", way["key"],
        "-oBatchMode=yes", "-oStrictHostKeyChecking=yes",
         f"-oUserKnownHostsFile={way['known_hosts']}", f"-oHostKeyAlias={way['alias']}",
         "-oKexAlgorithms=^curve25519-sha256",
         "-oConnectTimeout=60", f"root@{way['host']}", "true"],
        check=True, timeout=120,
    )  # fmt: skip


def launched(bench: Any, image: str, **wish: Any) -> float:
    """Seconds from the request to a command that ran by SSH."""
    began = time.monotonic()
    vm = bench.client.launch(image, "warm", **wish)
    assert bool(vm.status.runtime and vm.status.runtime.template) != bool(wish.get("cold")), (
        vm.status.warm.cold
    )
    log_in(bench, "warm")
    took = time.monotonic() - began
    bench.client.delete("warm", now=True, force=True)
    return took


def make_warm(bench: Any, image: str, memory: int | None = None) -> None:
    """Have a template made, of an image that is built where it is missing."""
    if image != "tiny" and not any(item.name == image for item in bench.client.images()):
        bench.client.make_image(image, ImageSource(kind="build", recipe="debian", release="12"))
    bench.client.warm_image(image, memory)


def p3(bench: Any) -> None:
    """A copy beside a boot; tiny also beside a restore of all its memory by hand and by libvirt."""
    row = Row("P3", "launch to an SSH command: a copy of a warm template beside a boot", targets=[
        "debian <= 2.5 s, <= 1/20 of its cold boot, <= 1/40 of one with cloud-init; tiny <= 1.0 s",
    ])  # fmt: skip
    for image in ("tiny", DEBIAN):
        make_warm(bench, image)
    row.interleave(
        {
            "debian, a copy": lambda: launched(bench, DEBIAN),
            "tiny, a copy": lambda: launched(bench, "tiny"),
        },
        11,
    )
    row.interleave({"tiny, a boot": lambda: launched(bench, "tiny", cold=True)}, 5)
    row.interleave({"debian, a boot": lambda: launched(bench, DEBIAN, cold=True)}, 3)
    data = "#cloud-config\nwrite_files: [{path: /root/made, content: x}]\n"
    row.interleave(
        {
            "debian, a boot with cloud-init": lambda: launched(
                bench, DEBIAN, cold=True, login={"user_data": data}
            )
        },
        1,
    )
    copy = row.median("debian, a copy")
    row.facts["debian: boot to copy"] = round(row.median("debian, a boot") / copy, 1)
    row.facts["debian: boot with cloud-init to copy"] = round(
        row.median("debian, a boot with cloud-init") / copy, 1
    )
    row.facts["tiny: boot to copy"] = round(
        row.median("tiny, a boot") / row.median("tiny, a copy"), 1
    )
    row.finish()
    restores(bench)


def p3n(bench: Any) -> None:
    """What a network of the host's adds: to a launch of a copy beside one on the network `user`,
    and to the control plane beside no cable.
    """
    row = Row("P3n", "joining a network of the host's", targets=["adds <= 60 ms to a launch"])
    make_warm(bench, "tiny")

    def on(network: str) -> Callable[[], float]:
        return lambda: launched(bench, "tiny", nics=[{"network": network}])

    def paused(network: str) -> Callable[[], float]:
        def run() -> float:
            began = time.monotonic()
            bench.client.launch("tiny", "idle", power="paused", nics=[{"network": network}])
            took = time.monotonic() - began
            memory.setdefault(network, []).append(helpers_of(bench, "idle"))
            bench.client.delete("idle", now=True, force=True)
            return took

        return run

    memory: dict[str, list[float]] = {}
    with bench.ours.apart():
        bench.client = bench.ours.connect()
        bench.client.create_network("lan", ipv4="10.91.0.0/24")
        subjects = {
            "lan": "a network of the host's",
            "user": "the network user",
            "none": "no cable",
        }
        row.interleave(
            {f"a copy, to SSH, {subjects[name]}": on(name) for name in ("lan", "user")}, 15
        )
        row.interleave(
            {f"a machine that waits, {subjects[name]}": paused(name) for name in subjects}, 15
        )
        bench.client.delete_network("lan")
        while list(bench.client.networks()):
            time.sleep(0.05)
    bench.client = bench.ours.connect()
    for kind, base in (
        ("a copy, to SSH", "the network user"),
        ("a machine that waits", "no cable"),
    ):
        more = row.median(f"{kind}, a network of the host's") - row.median(f"{kind}, {base}")
        row.facts[f"{kind}: more than {base}, ms"] = round(1000 * more)
    row.facts["network's helper beside a machine, MiB"] = {
        name: round(statistics.median(sizes), 1) for name, sizes in memory.items()
    }
    row.finish()


def helpers_of(bench: Any, name: str) -> float:
    """Memory of the process that serves this server's network, MiB; 0 where none does."""
    runtime = bench.client.vm(name).status.runtime
    return pss(runtime.network_pid) if runtime and runtime.network_pid else 0.0


def agent_answers(path: Path) -> None:
    """Return once the guest agent behind this socket has answered."""
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.5)
            try:
                sock.connect(str(path))
                sock.sendall(b'\xff{"execute":"guest-ping"}\n')
                if b"return" in sock.recv(4096):
                    return
            except OSError:
                time.sleep(0.005)


def restores(bench: Any) -> None:
    """The same guest, 128 MiB, brought back until its agent answers: ours as a copy, by hand and by
    libvirt from all of its memory.
    """
    row = Row(
        "P3r",
        "tiny brought back until its agent answers",
        targets=["ours, identity renewed, beside restores that renew nothing"],
    )
    raw: Raw = bench.raw("restore")
    state = raw.folder / "state"
    raw.start()
    agent_answers(raw.folder / "agent")
    time.sleep(2)
    raw.monitor.run("stop")
    raw.monitor.file.write(
        json.dumps({"execute": "migrate", "arguments": {"uri": f"file:{state}"}}) + "\n"
    )
    raw.monitor.file.flush()
    while raw.monitor.run("query-migrate").get("status") != "completed":
        time.sleep(0.02)
    raw.stop()
    command = list(raw.command)

    def run_raw() -> float:
        raw.command = [*command, "-incoming", f"file:{state}"]
        began = time.monotonic()
        raw.start(run=False)
        while raw.monitor.run("query-migrate").get("status") != "completed":
            time.sleep(0.002)
        raw.monitor.run("cont")
        agent_answers(raw.folder / "agent")
        took = time.monotonic() - began
        raw.stop()
        return took

    def run_ours() -> float:
        began = time.monotonic()
        vm = bench.client.launch("tiny", "warm")
        took = time.monotonic() - began
        assert vm.status.runtime and vm.status.runtime.template
        bench.client.delete("warm", now=True, force=True)
        return took

    subjects: dict[str, Callable[[], float]] = {"ours (ready for SSH)": run_ours, "raw": run_raw}
    if bench.libvirt:
        xml, virsh = bench.xml("vb-p3"), bench.libvirt
        saved = virsh.root / "files/vb-p3.save"
        ping = 'qemu-agent-command vb-p3 \'{"execute":"guest-ping"}\''
        virsh.say(f"create {xml}")
        virsh.say_until(ping)
        time.sleep(2)
        virsh.say(f"save vb-p3 {saved}")

        def run_libvirt() -> float:
            copy = saved.with_suffix(".now")
            copy.unlink(missing_ok=True)
            os.link(saved, copy)
            began = time.monotonic()
            virsh.say(f"restore {copy}")
            virsh.say_until(ping)
            took = time.monotonic() - began
            virsh.say("destroy vb-p3")
            return took

        subjects["libvirt"] = run_libvirt
    bench.skip(row)
    row.interleave(subjects, 9)
    row.finish()


def p3b(bench: Any) -> None:
    """Templates of several sizes, and growth."""
    row = Row(
        "P3b",
        "launch to an SSH command, tiny, by the memory of the template",
        targets=["4 GiB <= 1.15 of 256 MiB"],
    )
    sizes = {"256 MiB": 256 << 20, "1 GiB": 1 << 30, "4 GiB": 4 << 30}
    for memory in sizes.values():
        make_warm(bench, "tiny", memory)
    row.interleave(
        {
            name: lambda memory=memory: launched(bench, "tiny", memory=memory)
            for name, memory in sizes.items()
        },
        9,
    )  # type: ignore[misc]
    row.interleave({"1 GiB, grown to 2 GiB": lambda: launched(bench, "tiny", memory=2 << 30)}, 5)
    middle, low, high = row.ratio("4 GiB", "256 MiB")
    row.facts["4 GiB to 256 MiB (95 %)"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    row.finish()


def private(pid: int) -> float:
    """MiB of a process that nobody else shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return (
        sum(
            int(line.split()[1])
            for line in lines
            if line.startswith(("Private_Clean", "Private_Dirty"))
        )
        / 1024
    )


def p4(bench: Any, count: int = 16) -> None:
    """Many at once, and what each costs."""
    row = Row(
        "P4",
        f"{count} copies at once beside one",
        targets=["<= 0.7 x 16 x single; private memory <= 0.3 of a booted one's"],
    )
    for image in ("tiny", DEBIAN):
        if not [item for item in bench.client.templates() if item.spec.image == image]:
            make_warm(bench, image)
        row.interleave({f"{image}, one": lambda image=image: single(bench, image)}, 5)  # type: ignore[misc]
        row.interleave({f"{image}, {count}": lambda image=image: many(bench, image, count, row)}, 2)  # type: ignore[misc]
        share = row.median(f"{image}, {count}") / count / row.median(f"{image}, one")
        row.facts[f"{image}: each of {count} to one alone"] = round(share, 2)
        bench.client.launch(image, "booted", cold=True)
        time.sleep(SETTLE)
        booted = bench.client.vm("booted").status.runtime
        row.facts[f"{image}: private MiB of one that booted"] = round(private(booted.pid), 1)
        row.facts[f"{image}: PSS MiB of one that booted"] = round(pss(booted.pid), 1)
        bench.client.delete("booted", now=True, force=True)
    row.finish()


def p4n(bench: Any, count: int = 16) -> None:
    """Many at once on a network of the host's beside as many on the network `user`."""
    row = Row(
        "P4n",
        f"{count} copies of Debian at once, by network",
        targets=["a network of the host's <= 1.1 of the network user"],
    )
    make_warm(bench, DEBIAN)

    def on(network: str) -> Callable[[], float]:
        def run() -> float:
            names = [f"many-{number}" for number in range(count)]
            began = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                list(
                    pool.map(
                        lambda name: bench.ours.connect().launch(
                            DEBIAN, name, nics=[{"network": network}]
                        ),
                        names,
                    )
                )
            took = time.monotonic() - began
            for name in names:
                bench.client.delete(name, now=True, force=True)
            return took

        return run

    with bench.ours.apart():
        bench.client = bench.ours.connect()
        bench.client.create_network("lan", ipv4="10.91.0.0/24")
        row.interleave({"a network of the host's": on("lan"), "the network user": on("user")}, 4)
        bench.client.delete_network("lan")
        while list(bench.client.networks()):
            time.sleep(0.05)
    bench.client = bench.ours.connect()
    middle, low, high = row.ratio("a network of the host's", "the network user")
    row.facts["network of the host's to user (95 %)"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    row.finish()


def single(bench: Any, image: str) -> float:
    began = time.monotonic()
    bench.client.launch(image, "one")
    took = time.monotonic() - began
    bench.client.delete("one", now=True, force=True)
    return took


def many(bench: Any, image: str, count: int, row: Row) -> float:
    began = time.monotonic()
    names = [f"many-{number}" for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda name: bench.ours.connect().launch(image, name), names))
    took = time.monotonic() - began
    time.sleep(SETTLE)
    pids = [bench.client.vm(name).status.runtime.pid for name in names]
    row.facts[f"{image}: private MiB of an idle copy"] = round(
        statistics.median(private(pid) for pid in pids), 1
    )
    row.facts[f"{image}: PSS MiB of an idle copy"] = round(
        statistics.median(pss(pid) for pid in pids), 1
    )
    for name in names:
        bench.client.delete(name, now=True, force=True)
    return took


def translation(bench: Any) -> None:
    """Seconds to the agent, and memory afterwards, by the size of the translation buffer."""
    row = Row(
        "TB",
        "tiny booted by hand to its agent, by the size of the translation buffer",
        targets=["a size that costs no time"],
    )
    memory: dict[str, list[float]] = {}

    def run(size: int) -> float:
        raw: Raw = bench.raw("buffer")
        raw.command = [word.replace("tb-size=256", f"tb-size={size}") for word in raw.command]
        began = time.monotonic()
        raw.start()
        agent_answers(raw.folder / "agent")
        took = time.monotonic() - began
        assert raw.process
        memory.setdefault(f"{size} MiB", []).append(pss(raw.process.pid))
        raw.stop()
        return took

    row.interleave(
        {f"{size} MiB": lambda size=size: run(size) for size in (16, 32, 64, 128, 256)}, 5
    )  # type: ignore[misc]
    row.facts |= {
        f"PSS MiB with {name}": round(statistics.median(values), 1)
        for name, values in memory.items()
    }
    row.finish()


ROWS: dict[str, Callable[[Any], None]] = {
    "P3": p3,
    "P3n": p3n,
    "P3b": p3b,
    "P4": p4,
    "P4n": p4n,
    "TB": translation,
}
