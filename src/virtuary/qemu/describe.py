"""A virtual machine as data: model in, parts out. Pure; opens nothing, asks nothing.

`describe(wanted)` gives everything QEMU is told; `argv.command` turns it into the exact line. No
user's string ever stands in an argument: what comes from users is numbers, enumerations and files
named by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from virtuary.base.units import MIB
from virtuary.jail.walls import Bounds
from virtuary.model.resources import translation_buffer
from virtuary.model.template import WAKE_PORT
from virtuary.qemu.firmware import Firmware
from virtuary.qemu.parts import Grant, Grants, Part, Parts
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Machine:
    """All that decides a machine's command line, resolved: no defaults are left to choose."""

    uuid: str
    platform: Platform
    machine_type: str
    accel: Literal["kvm", "tcg"]
    cpus: int
    memory: int
    disk: Path
    disk_size: int
    """Bytes that the disk has at most: what its file says is held against it."""
    layers: tuple[Path, ...]
    """What lies below the disk, the lowest (the image) first."""
    firmware: Firmware
    runtime: Path
    """Folder of the listening sockets."""
    mac: str
    tap: str | None = None
    """Name of the host's interface that its first NIC is; None: it is served through a socket."""
    vars_file: Path | None = None
    seed: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_args: str = ""
    wished: int = 0
    """Bytes of memory that its guest is to have, where it begins with less."""
    max_cpus: int = 0
    """CPUs it can be given while it runs; no more than it begins with when 0."""
    max_memory: int = 0
    """Bytes of memory it can be grown to in all; no more than it begins with when 0."""
    sockets: int = 1
    threads: int = 1
    """Of a core, as the guest sees it."""
    node: int | None = None
    """NUMA node of the host in which its memory lies."""
    huge_pages: bool = False
    merge: bool = False
    """Whether the kernel may keep pages that are equal in several machines once."""
    reporting: bool = True
    """Whether the guest tells which of its pages are free, so that the host gets them back at once.
    """
    generation: str = "auto"
    """The generation id the guest is shown."""
    wakes: bool = False
    """Whether it has a port at which its guest waits for the identity of a copy: a template has,
    and all that goes on from it.
    """
    warm: Warm | None = None
    """For a template or a copy of one; None boots into memory of its own."""
    state: Path | None = None
    """All of the memory and the devices' state of the machine that this one is a live copy of: it
    waits for that.
    """


@dataclass(frozen=True)
class Warm:
    """What a template and its copies have besides the ordinary: memory in a file. The same for
    both.
    """

    ram: Path
    copy: bool
    """Whether this is a copy: it waits for the template's state and keeps what it writes to itself.
    """
    state: Path
    """The template's device state: written by the template, read by a copy."""


def describe(machine: Machine) -> Parts:
    """The machine as settings, parts and grants, in the order QEMU needs them."""
    grants = Grants()
    settings, readable = settings_of(machine, grants)
    parts = [
        *memory_parts(machine),
        *firmware_parts(machine, grants),
        *disk_parts(machine, grants),
        *seed_parts(machine, grants),
        *serial_parts(machine, grants),
        *agent_parts(machine, grants),
        *wake_parts(machine, grants),
        *network_parts(machine, grants),
        *extra_parts(machine),
        *growth_parts(machine),
    ]
    if machine.state:
        grants.add("state", machine.state, "ro")
    elif machine.warm:
        grants.add("state", machine.warm.state, "ro" if machine.warm.copy else "wo")
    for role in ("qmp", "rescue"):
        grant = grants.add(role, machine.runtime / role, "socket")
        parts.append(_listening(role, grant))
        settings.append(("mon", f"chardev={role},mode=control"))
    cpus, emulated = max(machine.cpus, machine.max_cpus), machine.accel == "tcg"
    memory = memory_bound(
        max(machine.memory, machine.wished), machine.memory, cpus, emulated=emulated
    )
    return Parts(settings, parts, grants.all, readable, bounds_of(machine), memory)


THREADS = 192
"""What QEMU and its network's helper have at most besides virtual CPUs: two pools of 64 for disks,
and those who attend to devices.
"""
SLACK = 256 * MIB
"""What is added to each bound: nothing may end a machine that only does what it was made for."""


def memory_bound(memory: int, began: int, cpus: int, *, emulated: bool) -> int:
    """Bytes that all processes of a machine with so much memory may have: its own, what emulating
    it takes, and slack.

    `began`: memory that it was started with, by which its buffers were made. `cpus`: those it can
    have at most.
    """
    emulation = translation_buffer(began) * MIB if emulated else 0
    return memory + memory // 8 + emulation + 64 * MIB + 2 * MIB * cpus + SLACK


def bounds_of(machine: Machine) -> Bounds:
    """The largest file that it writes is its disk, or one that holds its memory: up to three times,
    when that changes while it is saved, or with a place for each page that it could be given.
    """
    most = max(machine.memory, machine.max_memory)
    largest = max(
        disk_bound(machine.disk_size), 3 * machine.memory + SLACK, most + most // 256 + SLACK
    )
    return Bounds(
        file_size=largest, growing=True, processes=THREADS + max(machine.cpus, machine.max_cpus)
    )


def disk_bound(size: int) -> int:
    """Bytes that the file of a disk of this size can have, all of it written."""
    return size + size // 64 + SLACK


def settings_of(machine: Machine, grants: Grants) -> tuple[list[tuple[str, str]], list[Path]]:
    """What QEMU takes as plain options: numbers and words of our own only."""
    options = {
        "type": machine.machine_type,
        **dict(machine.platform.machine_options),
        "memory-backend": "ram0",
    }
    options["mem-merge"] = "on" if machine.merge else "off"
    if machine.firmware.kind == "uefi":
        options |= {"pflash0": "firmware-code", "pflash1": "firmware-vars"}
    settings = [
        ("uuid", machine.uuid),
        ("machine", _keyval(options)),
        ("accel", accel_option(machine, grants)),
        ("cpu", machine.platform.kvm_cpu if machine.accel == "kvm" else machine.platform.tcg_cpu),
        ("smp", cpus_option(machine)),
        ("m", memory_option(machine)),
        ("rtc", "base=utc,clock=host"),
        ("action", "reboot=reset,shutdown=pause,panic=pause"),
    ]
    readable: list[Path] = []
    if machine.kernel and machine.initrd:
        settings += [
            ("kernel", str(machine.kernel)),
            ("initrd", str(machine.initrd)),
            ("append", machine.kernel_args),
        ]
        readable = [machine.kernel, machine.initrd]
    if machine.state or (machine.warm and machine.warm.copy):
        settings.append(("incoming", "defer"))
    if machine.warm and machine.warm.copy and not machine.state:
        readable.append(machine.warm.ram)
    return settings, readable


def cpus_option(machine: Machine) -> str:
    """CPUs as cores and threads of sockets; with room for more, in whole sockets, where the machine
    can grow.
    """
    each = machine.sockets * machine.threads
    most = max(machine.max_cpus // each * each, machine.cpus)
    growth = f",maxcpus={most}" if most > machine.cpus else ""
    shape = f"sockets={machine.sockets},cores={most // each},threads={machine.threads}"
    return f"cpus={machine.cpus}{growth},{shape}"


def memory_option(machine: Machine) -> str:
    growth = f",maxmem={machine.max_memory // MIB}M" if machine.max_memory > machine.memory else ""
    return f"size={machine.memory // MIB}M{growth}"


def accel_option(machine: Machine, grants: Grants) -> str:
    if machine.accel == "kvm":
        return f"kvm,device={grants.add('kvm', Path('/dev/kvm'), 'rw').fdset}"
    return f"tcg,thread=multi,tb-size={translation_buffer(machine.memory)}"


def _node_of(machine: Machine) -> dict[str, Any]:
    """Where on the host its memory is to lie."""
    return {} if machine.node is None else {"host-nodes": [machine.node], "policy": "bind"}


def memory_parts(machine: Machine) -> list[Part]:
    """Memory of its own; a template's lies in a file, of which each copy has a private view it
    can't write through.
    """
    place = _node_of(machine)
    if machine.huge_pages:
        pages = {
            **place,
            "qom-type": "memory-backend-memfd",
            "hugetlb": True,
            "share": False,
            "merge": False,
        }
        return [Part("object", {**pages, "id": "ram0", "size": machine.memory})]
    if machine.state or not machine.warm:
        return [
            Part(
                "object",
                {
                    "qom-type": "memory-backend-ram",
                    "id": "ram0",
                    "size": machine.memory,
                    "merge": machine.merge,
                    **place,
                },
            )
        ]
    view = (
        {"share": False, "readonly": True, "rom": "off"} if machine.warm.copy else {"share": True}
    )
    file = {
        "qom-type": "memory-backend-file",
        "id": "ram0",
        "size": machine.memory,
        "mem-path": str(machine.warm.ram),
        **view,
    }
    return [Part("object", {**file, "merge": False})]


def growth_parts(machine: Machine) -> list[Part]:
    """Memory that can be plugged while it runs, none of it yet; and doors for devices plugged
    later.
    """
    parts: list[Part] = []
    if machine.max_memory > machine.memory:
        size = machine.max_memory - machine.memory
        parts += [
            Part(
                "object",
                {
                    "qom-type": "memory-backend-ram",
                    "id": "growth0",
                    "size": size,
                    "merge": machine.merge,
                    **_node_of(machine),
                },
            ),
            Part(
                "device",
                {
                    "driver": "virtio-mem-pci",
                    "id": "growth0-device",
                    "memdev": "growth0",
                    "requested-size": 0,
                    **machine.platform.slot("growth0"),
                },
            ),
        ]
    return [
        *parts,
        *(
            Part(
                "device",
                {
                    "driver": "pcie-root-port",
                    "id": f"port{n}",
                    "chassis": n + 1,
                    "slot": n + 1,
                    **machine.platform.port(n),
                },
            )
            for n in range(machine.platform.ports)
        ),
    ]


def firmware_parts(machine: Machine, grants: Grants) -> list[Part]:
    """UEFI code (read-only, shared) and this machine's own variables; nothing for BIOS, which QEMU
    brings.
    """
    if machine.firmware.kind == "bios":
        return []
    assert machine.firmware.code and machine.vars_file
    code = grants.add("firmware-code", machine.firmware.code, "ro")
    variables = grants.add("firmware-vars", machine.vars_file, "rw")
    return [
        _raw_node("firmware-code", code, read_only=True),
        _raw_node("firmware-vars", variables, read_only=False),
    ]


def disk_parts(machine: Machine, grants: Grants) -> list[Part]:
    """The root disk: of ours, on layers of ours if there are any, each node with its format named,
    discard passed down.
    """
    grant = grants.add("disk0", machine.disk, "rw")
    shared: dict[str, Any] = {"discard": "unmap"}
    below, layers = layer_parts(machine, grants)
    return [
        *layers,
        Part(
            "blockdev",
            {
                "node-name": "disk0-file",
                "driver": "file",
                "filename": grant.fdset,
                "locking": "on",
                **shared,
            },
        ),
        Part(
            "blockdev",
            {
                "node-name": "disk0",
                "driver": "qcow2",
                "file": "disk0-file",
                "backing": below or None,
                "detect-zeroes": "unmap",
                **shared,
            },
        ),
        Part(
            "device",
            {
                "driver": "virtio-blk-pci",
                "id": "disk0-device",
                "drive": "disk0",
                "serial": "root",
                **({} if machine.kernel else {"bootindex": 0}),
                "werror": "enospc",
                "rerror": "report",
                **machine.platform.slot("disk0"),
            },
        ),
    ]


def layer_parts(machine: Machine, grants: Grants) -> tuple[str, list[Part]]:
    """The files below the root disk, read-only; the name of the uppermost one."""
    parts: list[Part] = []
    below = ""
    for number, path in enumerate(machine.layers):
        name = f"disk0-layer{number}" if number else "disk0-base"
        grant = grants.add(name, path, "ro")
        parts.append(Part("blockdev", _shared_file(f"{name}-file", grant)))
        node = {
            "node-name": name,
            "driver": "qcow2",
            "file": f"{name}-file",
            "read-only": True,
            "backing": below or None,
        }
        parts.append(Part("blockdev", node))
        below = name
    return below, parts


def _shared_file(name: str, grant: Grant) -> dict[str, Any]:
    """A file that others read too: locked by none, since whoever took one QEMU over could keep all
    others from starting.
    """
    return {
        "node-name": name,
        "driver": "file",
        "filename": grant.fdset,
        "read-only": True,
        "locking": "off",
    }


def seed_parts(machine: Machine, grants: Grants) -> list[Part]:
    """The cloud-init seed, a read-only disk."""
    if not machine.seed:
        return []
    grant = grants.add("seed0", machine.seed, "ro")
    return [
        _raw_node("seed0", grant, read_only=True),
        Part(
            "device",
            {
                "driver": "virtio-blk-pci",
                "id": "seed0-device",
                "drive": "seed0",
                "serial": "seed",
                **machine.platform.slot("seed0"),
            },
        ),
    ]


def serial_parts(machine: Machine, grants: Grants) -> list[Part]:
    grant = grants.add("serial", machine.runtime / "serial", "socket")
    return [
        _listening("serial", grant),
        Part(
            "device",
            {"driver": machine.platform.serial_device, "id": "serial-device", "chardev": "serial"},
        ),
    ]


def agent_parts(machine: Machine, grants: Grants) -> list[Part]:
    grant = grants.add("agent", machine.runtime / "agent", "socket")
    return [
        _listening("agent", grant),
        Part(
            "device",
            {
                "driver": "virtio-serial-pci",
                "id": "serial-bus",
                "max_ports": 8,
                **machine.platform.slot("serial-bus"),
            },
        ),
        _serial_port(1, "agent", "org.qemu.guest_agent.0"),
    ]


def wake_parts(machine: Machine, grants: Grants) -> list[Part]:
    """Where the guest of a template waits until a copy of it is told who it is."""
    if not machine.wakes:
        return []
    grant = grants.add("wake", machine.runtime / "wake", "socket")
    return [_listening("wake", grant), _serial_port(2, "wake", WAKE_PORT)]


def _serial_port(number: int, chardev: str, name: str) -> Part:
    place: dict[str, Any] = {"id": f"{chardev}-device", "bus": "serial-bus.0", "nr": number}
    return Part("device", {"driver": "virtserialport", **place, "chardev": chardev, "name": name})


def network_parts(machine: Machine, grants: Grants) -> list[Part]:
    """The first NIC: a tap of the host's, or a listening socket to which whoever serves the network
    is connected, and may be replaced.
    """
    if machine.tap:
        grant = grants.add("network", Path(machine.tap), "given")
        backend: dict[str, Any] = {"type": "tap", "fd": str(grant.number)}
    else:
        grant = grants.add("network", machine.runtime / "network", "socket")
        backend = {
            "type": "stream",
            "server": True,
            "addr": {"type": "fd", "str": str(grant.number)},
        }
    return nic_parts(0, backend, machine.mac, machine.platform.slot("net0"))


def nic_parts(number: int, backend: dict[str, Any], mac: str, place: dict[str, str]) -> list[Part]:
    """A NIC and what is behind it; the same at the start and when it is plugged in."""
    device = {
        "driver": "virtio-net-pci",
        "id": f"net{number}-device",
        "netdev": f"net{number}",
        "mac": mac,
        "romfile": "",
        **place,
    }
    return [Part("netdev", {"id": f"net{number}", **backend}), Part("device", device)]


def extra_parts(machine: Machine) -> list[Part]:
    """Random numbers, balloon, generation id, panic notice."""
    return [
        Part("object", {"qom-type": "rng-builtin", "id": "rng0"}),
        Part(
            "device",
            {
                "driver": "virtio-rng-pci",
                "id": "rng0-device",
                "rng": "rng0",
                **machine.platform.slot("rng0"),
            },
        ),
        Part(
            "device",
            {
                "driver": "virtio-balloon-pci",
                "id": "balloon0",
                "free-page-reporting": machine.reporting,
                "deflate-on-oom": True,
                **machine.platform.slot("balloon0"),
            },
        ),
        Part("device", {"driver": "vmgenid", "id": "generation0", "guid": machine.generation}),
        Part(
            "device", {"driver": "pvpanic-pci", "id": "panic0", **machine.platform.slot("panic0")}
        ),
    ]


def _raw_node(name: str, grant: Grant, *, read_only: bool) -> Part:
    file = {"driver": "file", "filename": grant.fdset, "locking": "off" if read_only else "on"}
    return Part(
        "blockdev", {"node-name": name, "driver": "raw", "read-only": read_only, "file": file}
    )


def _listening(name: str, grant: Grant) -> Part:
    return Part(
        "chardev",
        {"id": name, "backend": "socket", "fd": grant.number, "server": "on", "wait": "off"},
    )


def _keyval(options: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())
