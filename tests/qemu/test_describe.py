"""A machine is data: the exact command line for every case stands in tests/golden, and nobody's
string gets into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
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
from virtuary.qemu.describe import Machine, Warm, describe
from virtuary.qemu.firmware import BIOS, Firmware
from virtuary.qemu.parts import FIRST_DESCRIPTOR
from virtuary.qemu.platforms.q35 import Q35, SLOTS
from virtuary.qemu.platforms.table import PLATFORMS, USUAL

Golden = Callable[[str, str], None]
ID = "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"
HOME, IMAGE, RUN = Path("/state/vms") / ID, Path("/state/images/f00d"), Path("/run/vms") / ID
TEMPLATE = Path("/state/templates/beef")
UEFI = Firmware("uefi", Path("/usr/share/OVMF/CODE.fd"), Path("/usr/share/OVMF/VARS.fd"))

PLAIN = Machine(
    uuid=ID, platform=USUAL, machine_type="pc-q35-10.0", accel="tcg", cpus=2, memory=2 * GIB,
    disk=HOME / "disk.qcow2", disk_size=8 * GIB,
    layers=(IMAGE / "disk.qcow2",), firmware=BIOS, runtime=RUN, mac="52:54:00:12:34:56",
    max_cpus=8, max_memory=10 * GIB,
)  # fmt: skip
WITH_UEFI: dict[str, Any] = {"firmware": UEFI, "vars_file": HOME / "firmware-vars.fd"}
WITH_KERNEL: dict[str, Any] = {
    "kernel": IMAGE / "kernel",
    "initrd": IMAGE / "initrd",
    "kernel_args": "root=/dev/vda console=ttyS0",
}
WITH_SEED: dict[str, Any] = {"seed": HOME / "seed.iso"}
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
WARM = Warm(TEMPLATE / "ram", copy=False, state=TEMPLATE / "state")
COPY = {
    "warm": replace(WARM, copy=True),
    "generation": "5f3c5a80-2a6b-5a5e-9d8e-0123456789ab",
    "reporting": False,
    "wakes": True,
    "layers": (IMAGE / "disk.qcow2", TEMPLATE / "disk.qcow2"),
}
CASES |= {
    "tcg-bios-disk-template": replace(PLAIN, cpus=1, warm=WARM, reporting=False, wakes=True),
    "tcg-bios-disk-copy": replace(PLAIN, cpus=1, **COPY),
    "kvm-uefi-direct-copy": replace(PLAIN, cpus=1, accel="kvm", **WITH_UEFI, **WITH_KERNEL, **COPY),
    "tcg-bios-disk-live": replace(PLAIN, state=HOME / "state"),
    "tcg-bios-disk-copy-live": replace(PLAIN, cpus=1, state=HOME / "state", **COPY),
    "tcg-bios-disk-full": replace(PLAIN, layers=()),
    "tcg-bios-disk-fixed": replace(PLAIN, max_cpus=0, max_memory=0, merge=True, node=0),
    "kvm-bios-disk-tap": replace(PLAIN, accel="kvm", tap="vt0123456789n0"),
    "kvm-uefi-disk-huge": replace(
        PLAIN, accel="kvm", cpus=4, sockets=2, threads=2, max_cpus=7, huge_pages=True, **WITH_UEFI
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


OTHER: dict[str, Any] = {
    "uuid": "00000000-0000-4000-8000-000000000000", "platform": replace(Q35(), tcg_cpu="qemu64"),
    "machine_type": "pc-q35-9.2",
    "accel": "kvm", "cpus": 3, "memory": 3 * GIB, "disk": Path("/other/disk"),
    "disk_size": 64 * GIB, "layers": (Path("/other/base"),), "firmware": UEFI,
    "runtime": Path("/other/run"), "mac": "52:54:00:00:00:01", "vars_file": Path("/other/vars"),
    "seed": Path("/other/seed"),
    "kernel": Path("/other/kernel"), "initrd": Path("/other/initrd"), "kernel_args": "other",
    "warm": replace(WARM, ram=Path("/other/ram")),
    "state": Path("/other/state"), "wished": 8 * GIB, "max_cpus": 4, "max_memory": 20 * GIB,
    "sockets": 2, "threads": 2, "node": 1, "huge_pages": True, "merge": True,
    "reporting": False, "wakes": True, "generation": "x", "tap": "vtother0000n0",
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(Machine)])
def test_no_field_of_a_machine_goes_untested(field: str) -> None:
    """Changing any field changes some golden line; a field that changes none is dead, or has no
    golden case.
    """
    changed = []
    for case, machine in CASES.items():
        other = replace(machine, **{field: OTHER[field]})
        if other == machine:
            continue
        if other.firmware.kind == "uefi" and other.vars_file is None:
            other = replace(other, vars_file=HOME / "vars")
        if whole(other) != whole(machine):
            changed.append(case)
    assert changed


@pytest.mark.parametrize("field", [field.name for field in fields(Warm)])
def test_no_field_of_what_makes_a_machine_warm_goes_untested(field: str) -> None:
    other = {
        "ram": Path("/x/ram"),
        "copy": False,
        "state": Path("/x/state"),
    }
    machine = CASES["tcg-bios-disk-copy"]
    assert machine.warm
    assert whole(replace(machine, warm=replace(machine.warm, **{field: other[field]}))) != whole(
        machine
    )


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
    "field", ["machine_options", "tcg_cpu", "kvm_cpu", "serial_device", "ports"]
)
def test_no_field_of_a_platform_goes_untested(field: str) -> None:
    others: dict[str, Any] = {"machine_options": (("smm", "on"),), "ports": 5}
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
        cpus=st.integers(1, 255),
        memory=st.integers(64, 1024).map(lambda n: n * MIB),
        labels=st.dictionaries(st.text(), st.text(), max_size=2),
        user_data=st.none() | st.text(),
    )
)
def test_what_is_text_in_a_wish_is_nowhere_in_the_line(wish: VmWish) -> None:
    plain = line_of(replace(PLAIN, max_cpus=256))
    line = line_of(replace(PLAIN, max_cpus=256, cpus=wish.cpus or 1, memory=wish.memory or GIB))
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
