"""A machine is data: the exact command line for every case stands in tests/golden, and nobody's
string gets into it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.units import GIB, MIB
from virtuary.model.meta import Meta
from virtuary.model.vm import Vm, VmSpec, VmWish
from virtuary.qemu import usernet
from virtuary.qemu.argv import command
from virtuary.qemu.describe import describe
from virtuary.qemu.devices import control, memory
from virtuary.qemu.devices.balloon import Balloon
from virtuary.qemu.devices.disk import Disk
from virtuary.qemu.devices.firmware import Flash
from virtuary.qemu.devices.generation import Generation
from virtuary.qemu.devices.kernel import Kernel
from virtuary.qemu.devices.memory import Memory, RamFile
from virtuary.qemu.devices.nic import Nic
from virtuary.qemu.devices.processor import Cpus
from virtuary.qemu.devices.seed import Seed
from virtuary.qemu.devices.state import State
from virtuary.qemu.machine import Machine
from virtuary.qemu.parts import FIRST_DESCRIPTOR
from virtuary.qemu.platforms.platform import Place
from virtuary.qemu.platforms.q35 import Q35, SLOTS
from virtuary.qemu.platforms.table import PLATFORMS, USUAL

Golden = Callable[[str, str], None]
ID = "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"
HOME, IMAGE, RUN = Path("/state/vms") / ID, Path("/state/images/f00d"), Path("/run/vms") / ID
TEMPLATE = Path("/state/templates/beef")

DISK = Disk(HOME / "disk.qcow2", 8 * GIB, (IMAGE / "disk.qcow2",))
NIC = Nic("52:54:00:12:34:56")
MEMORY = Memory(2 * GIB, most=10 * GIB)
CPUS = Cpus(2, most=8)
UEFI = Flash(
    Path("/usr/share/OVMF/CODE.fd"), HOME / "firmware-vars.fd", Path("/usr/share/OVMF/VARS.fd")
)
KERNEL = Kernel(IMAGE / "kernel", IMAGE / "initrd", "root=/dev/vda console=ttyS0")
PLAIN = Machine(
    uuid=ID, platform=USUAL, type="pc-q35-10.0", accel="tcg", cpus=CPUS, memory=MEMORY,
    disks=(DISK,), nics=(NIC,), runtime=RUN,
)  # fmt: skip
WITH_UEFI: dict[str, Any] = {"firmware": UEFI}
WITH_KERNEL: dict[str, Any] = {"kernel": KERNEL, "disks": (replace(DISK, bootindex=None),)}
WITH_SEED: dict[str, Any] = {"seed": Seed(HOME / "seed.iso")}
CASES = {
    f"{accel}-{firmware}-{boot}{'-seed' if seed else ''}": replace(
        PLAIN,
        accel=accel,  # type: ignore[arg-type]
        **(WITH_UEFI if firmware == "uefi" else {}),
        **(WITH_KERNEL if boot == "direct" else {}),
        **(WITH_SEED if seed else {}),
    )
    for accel in ("tcg", "kvm")
    for firmware in ("bios", "uefi")
    for boot in ("disk", "direct")
    for seed in (False, True)
}


def saved(machine: Machine, *, copy: bool) -> Machine:
    """The machine as a template, or as a copy of one."""
    return replace(
        machine,
        cpus=replace(machine.cpus, count=1),
        memory=replace(machine.memory, file=RamFile(TEMPLATE / "ram", copy)),
        balloon=Balloon(reporting=False),
        wakes=True,
        state=State(TEMPLATE / "state", arrives=copy),
    )


def resumed(machine: Machine) -> Machine:
    layers = (IMAGE / "disk.qcow2", TEMPLATE / "disk.qcow2")
    return replace(
        saved(machine, copy=True),
        generation=Generation("5f3c5a80-2a6b-5a5e-9d8e-0123456789ab"),
        disks=(replace(machine.root, layers=layers),),
    )


COPY = resumed(PLAIN)
OTHERS = (
    Disk(Path("/var/lib/virtuary/disks/a/disk.qcow2"), 20 * GIB, number=1, serial="data", bootindex=None),
    Disk(Path("/var/lib/virtuary/disks/b/disk.qcow2"), GIB, number=8, serial="b", bootindex=None,
    read_only=True),
)  # fmt: skip
LIVE = State(HOME / "state", arrives=True)
CASES |= {
    "tcg-bios-disk-template": saved(PLAIN, copy=False),
    "tcg-bios-disk-copy": COPY,
    "kvm-uefi-direct-copy": resumed(replace(PLAIN, accel="kvm", **WITH_UEFI, **WITH_KERNEL)),
    "tcg-bios-disk-live": replace(PLAIN, state=LIVE),
    "tcg-bios-disk-copy-live": replace(COPY, memory=MEMORY, state=LIVE),
    "tcg-bios-disk-full": replace(PLAIN, disks=(replace(DISK, layers=()),)),
    "tcg-bios-disks": replace(PLAIN, disks=(DISK, *OTHERS)),
    "tcg-bios-disk-fixed": replace(PLAIN, cpus=Cpus(2), memory=Memory(2 * GIB, merge=True, node=0)),
    "kvm-bios-disk-tap": replace(PLAIN, accel="kvm", nics=(replace(NIC, tap="vt0123456789n0"),)),
    "kvm-uefi-disk-huge": replace(
        PLAIN,
        accel="kvm",
        cpus=Cpus(4, most=7, sockets=2, threads=2),
        memory=replace(MEMORY, huge_pages=True),
        **WITH_UEFI,
    ),
}


def line_of(machine: Machine) -> list[str]:
    return command("/usr/bin/qemu-system-x86_64", describe(machine))


def shown(line: list[str]) -> str:
    """One option a line, as a reviewer wants to read it."""
    text = line[0]
    for word in line[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return text + "\n"


def whole(machine: Machine) -> str:
    parts = describe(machine)
    grants = "".join(f"# {grant.number} {grant.mode} {grant.path}\n" for grant in parts.grants)
    bounds = (
        f"# at most {parts.memory} bytes of memory, {parts.bounds.processes} threads, "
        f"{parts.bounds.file_size} bytes a file\n"
    )
    return (
        shown(line_of(machine))
        + grants
        + "".join(f"# by path {path}\n" for path in parts.readable)
        + bounds
    )


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_is_the_one_that_was_reviewed(case: str, golden: Golden) -> None:
    golden(f"qemu-{case}.txt", whole(CASES[case]))


class Roomy(Q35):
    """A platform of another file: each role that it does not know has a place all the same."""

    def slot(self, role: str) -> Place:
        return super().slot(role) if role in SLOTS else {"bus": "pcie.0", "addr": "0x1f"}


OTHER: dict[type[Any], dict[str, Any]] = {
    Machine: {
        "uuid": "00000000-0000-4000-8000-000000000000", "platform": Q35(tcg_cpu="qemu64"),
        "type": "pc-q35-9.2", "accel": "kvm", "cpus": Cpus(3), "memory": Memory(3 * GIB),
        "disks": (Disk(Path("/other/disk"), GIB),), "nics": (Nic("52:54:00:00:00:01"),),
        "runtime": Path("/other/run"), "firmware": UEFI, "kernel": KERNEL,
        "seed": Seed(Path("/other/seed")), "balloon": Balloon(reporting=False),
        "generation": Generation("x"), "wakes": True, "state": State(Path("/other"), arrives=True),
    },
    Cpus: {"count": 3, "most": 4, "sockets": 2, "threads": 2},
    Memory: {
        "size": 3 * GIB, "wished": 8 * GIB, "most": 20 * GIB, "node": 1, "huge_pages": True,
        "merge": True, "file": RamFile(Path("/other/ram"), copy=False),
    },
    RamFile: {"path": Path("/other/ram"), "copy": False},
    Disk: {
        "file": Path("/other/disk"), "size": 64 * GIB, "layers": (Path("/other/base"),),
        "number": 1, "serial": "data", "bootindex": 7, "read_only": True,
    },
    Nic: {"mac": "52:54:00:00:00:01", "tap": "vtother0000n0", "number": 1},
    Flash: {"code": Path("/other/code"), "variables": Path("/other/vars")},
    Kernel: {"file": Path("/other/kernel"), "initrd": Path("/other/initrd"), "arguments": "other"},
    Seed: {"file": Path("/other/seed")},
    Balloon: {"reporting": False},
    Generation: {"guid": "x"},
    State: {"file": Path("/other/state"), "arrives": False},
}  # fmt: skip
PACKAGE = control.__package__
ELSEWHERE = {(Flash, "template")}
"""Fields that say nothing to QEMU, but what its files are made from."""


def changed(value: Any, kind: type[Any], field: str) -> Any:
    """The machine, or the part of one, with this field another one wherever this kind is in it."""
    if isinstance(value, kind):
        return replace(value, **{field: OTHER[kind][field]})
    if isinstance(value, tuple):
        return tuple(changed(item, kind, field) for item in value)
    if type(value) in OTHER:
        inner = {item.name: getattr(value, item.name) for item in fields(value)}
        return replace(value, **{name: changed(one, kind, field) for name, one in inner.items()})
    return value


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(kind, field.name, id=f"{kind.__name__}.{field.name}")
        for kind in OTHER
        for field in fields(kind)
        if (kind, field.name) not in ELSEWHERE
    ],
)
def test_no_field_of_a_machine_goes_untested(kind: type[Any], field: str) -> None:
    """Changing any field changes some golden line; a field that changes none is dead, or has no
    golden case.
    """
    machines = [replace(machine, platform=Roomy()) for machine in CASES.values()]
    assert any(whole(changed(machine, kind, field)) != whole(machine) for machine in machines)


def test_every_value_that_a_machine_is_made_of_is_tested() -> None:
    """Those that have fields: what is the same in every machine has none."""
    made = {
        value
        for path in Path(control.__file__).parent.glob("*.py")
        for value in vars(importlib.import_module(f"{PACKAGE}.{path.stem}")).values()
        if is_dataclass(value) and value.__module__.startswith(PACKAGE) and fields(value)
    }
    assert made == {*OTHER, memory.Growth, control.Control} - {Machine}


def test_a_copy_meets_the_machine_its_template_was() -> None:
    """What QEMU compares when it reads a state: every device with its place, and how far the
    machine can grow.
    """
    template, copy = (describe(CASES[f"tcg-bios-disk-{kind}"]) for kind in ("template", "copy"))
    devices = [
        [
            part.args
            for part in parts.parts
            if part.kind == "device" and part.args["driver"] != "vmgenid"
        ]
        for parts in (template, copy)
    ]
    assert devices[0] == devices[1]
    alike = [
        {name: value for name, value in parts.settings if name != "incoming"}
        for parts in (template, copy)
    ]
    assert alike[0] == alike[1]


@pytest.mark.parametrize(
    ("source", "live"), [("disk", "disk-live"), ("disk-copy", "disk-copy-live")]
)
def test_a_live_copy_meets_the_machine_its_source_is(source: str, live: str) -> None:
    before, after = (describe(CASES[f"tcg-bios-{case}"]) for case in (source, live))
    devices = [
        [part.args for part in parts.parts if part.kind == "device"] for parts in (before, after)
    ]
    assert devices[0] == devices[1]
    alike = [
        {name: value for name, value in parts.settings if name != "incoming"}
        for parts in (before, after)
    ]
    assert alike[0] == alike[1]


def test_a_live_copy_needs_nothing_of_a_template_but_its_disk() -> None:
    live = describe(CASES["tcg-bios-disk-copy-live"])
    assert live.readable == [] and [
        grant.path for grant in live.grants if grant.role == "state"
    ] == [HOME / "state"]
    assert {grant.path for grant in live.grants if grant.path.is_relative_to(TEMPLATE)} == {
        TEMPLATE / "disk.qcow2"
    }
    assert (
        next(part.args for part in live.parts if part.args.get("id") == "ram0")["qom-type"]
        == "memory-backend-ram"
    )


def test_a_disk_that_stands_alone_never_asks_its_header_what_lies_below() -> None:
    disk = next(
        part.args
        for part in describe(CASES["tcg-bios-disk-full"]).parts
        if part.args.get("node-name") == "disk0"
    )
    assert disk["backing"] is None


def test_nothing_may_write_to_a_template_but_the_template() -> None:
    copy = describe(CASES["tcg-bios-disk-copy"])
    ram = next(part.args for part in copy.parts if part.args.get("id") == "ram0")
    assert (ram["share"], ram["readonly"], ram["rom"]) == (False, True, "off")
    assert {grant.mode for grant in copy.grants if grant.path.is_relative_to(TEMPLATE)} == {"ro"}
    balloon = next(part.args for part in copy.parts if part.args.get("id") == "balloon0")
    assert balloon["free-page-reporting"] is False


@pytest.mark.parametrize(
    "field", ["machine_options", "tcg_cpu", "kvm_cpu", "serial_device", "nic_ports", "disk_ports"]
)
def test_no_field_of_a_platform_goes_untested(field: str) -> None:
    others: dict[str, Any] = {"machine_options": (("smm", "on"),), "nic_ports": 5, "disk_ports": 7}
    other = replace(Q35(), **{field: others.get(field, "other")})
    assert any(
        whole(replace(machine, platform=other)) != whole(machine) for machine in CASES.values()
    )


def test_the_same_machine_gives_the_same_line() -> None:
    assert line_of(PLAIN) == line_of(replace(PLAIN))


@pytest.mark.parametrize("case", CASES)
def test_the_machine_starts_stopped_sandboxed_and_without_defaults(case: str) -> None:
    line = line_of(CASES[case])
    assert {"-S", "-nodefaults", "-no-user-config"} <= set(line)
    sandbox = line[line.index("-sandbox") + 1]
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@pytest.mark.parametrize("case", CASES)
def test_ids_nodes_and_descriptors_are_distinct(case: str) -> None:
    parts = describe(CASES[case])
    for key in ("id", "node-name"):
        found = [part.args[key] for part in parts.parts if key in part.args]
        assert len(set(found)) == len(found)
    numbers = [grant.number for grant in parts.grants]
    assert numbers == list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + len(numbers)))


@pytest.mark.parametrize("case", CASES)
def test_every_device_has_its_own_slot_and_every_block_node_its_format(case: str) -> None:
    parts = describe(CASES[case]).parts
    places = [part.args["addr"] for part in parts if "addr" in part.args and part.kind == "device"]
    assert len(set(places)) == len(places) > 4
    assert all(
        part.args["driver"] in ("qcow2", "raw", "file") for part in parts if part.kind == "blockdev"
    )
    files = [part.args.get("file", part.args) for part in parts if part.kind == "blockdev"]
    assert all(
        str(file["filename"]).startswith("/dev/fdset/")
        for file in files
        if isinstance(file, dict) and "filename" in file
    )


def test_adding_a_seed_moves_no_other_device() -> None:
    def places(machine: Machine) -> dict[str, str]:
        return {
            part.args["id"]: part.args["addr"]
            for part in describe(machine).parts
            if part.kind == "device" and "addr" in part.args
        }

    before, after = places(PLAIN), places(replace(PLAIN, **WITH_SEED))
    assert after == {**before, "seed0-device": USUAL.slot("seed0")["addr"]}


def test_slots_of_the_bus_are_distinct_and_leave_room_for_hot_plug() -> None:
    assert len(set(SLOTS.values())) == len(SLOTS)
    assert all(0x02 <= number < 0x10 for number in SLOTS.values())


# ---- no string of a user gets in

HOSTILE = st.text(min_size=1, max_size=40) | st.sampled_from(
    [
        "q35,accel=kvm",
        "a -drive file=/etc/shadow",
        "x,id=y",
        "/dev/fdset/1",
        '{"a":1}',
        "a\n-S",
        "::1%a,b",
        "$(id)",
    ]
)
FIELDS = [
    name
    for name, field in VmWish.model_fields.items()
    if name not in ("name", "image", "labels", "user_data", "ssh_keys")
]


@given(st.sampled_from(FIELDS), HOSTILE)
def test_no_field_that_reaches_the_engine_takes_a_free_string(field: str, text: str) -> None:
    for value in (
        text,
        [{"host": 80, "guest": 80, "address": text}],
        [{"host": 80, "guest": 80, "protocol": text}],
    ):
        try:
            wish = VmWish.model_validate({"image": "tiny", field: value})
        except ValidationError:
            continue
        kept = getattr(wish, field)
        words = [port.address for port in kept] if field == "publish" else [kept]
        assert all(
            not isinstance(word, str)
            or set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.:")
            for word in words
        )


@given(
    st.builds(
        VmWish,
        image=st.just("tiny"),
        cpu=st.integers(1, 255),
        memory=st.integers(64, 1024).map(lambda n: n * MIB),
        labels=st.dictionaries(st.text(), st.text(), max_size=2),
        login=st.fixed_dictionaries({"user_data": st.none() | st.text()}),
    )
)
def test_what_is_text_in_a_wish_is_nowhere_in_the_line(wish: VmWish) -> None:
    plain = line_of(replace(PLAIN, cpus=Cpus(2, most=256)))
    cpus, memory = (
        Cpus(wish.cpu.count or 1, most=256),
        replace(MEMORY, size=wish.memory.size or GIB),
    )
    line = line_of(replace(PLAIN, cpus=cpus, memory=memory))
    for before, after in zip(plain, line, strict=True):
        assert before == after or "".join(char for char in after if not char.isdigit()) == "".join(
            char for char in before if not char.isdigit()
        )


def test_a_name_is_no_part_of_the_line() -> None:
    vm = Vm(meta=Meta(name="web1", labels={"role": "frontend"}), spec=VmSpec(image="tiny"))
    assert not any(
        word in " ".join(line_of(replace(PLAIN, uuid=vm.id))) for word in ("web1", "frontend")
    )


# ---- the helper of QEMU's own user network


def test_the_helpers_command_line_is_the_one_that_was_reviewed(golden: Golden) -> None:
    forwards = (("tcp", "127.0.0.1", 2222, 22), ("udp", "0.0.0.0", 53, 5353))
    golden("usernet.txt", shown(usernet.command("/usr/bin/qemu-system-x86_64", ID, forwards)))
    golden("uplink.txt", shown(usernet.uplink("/usr/bin/qemu-system-x86_64", ID)))


def test_a_device_is_json_that_qemu_would_take_at_run_time_as_well() -> None:
    line = line_of(PLAIN)
    devices = [json.loads(line[index + 1]) for index, word in enumerate(line) if word == "-device"]
    assert {device["driver"] for device in devices} >= {"virtio-blk-pci", "virtio-net-pci"}


def test_each_platform_stands_under_its_own_name() -> None:
    assert all(name == platform.arch for name, platform in PLATFORMS.items())
