"""A virtual machine as data: model in, parts out. Pure; opens nothing, asks nothing.

`describe(wanted)` gives everything QEMU is told; `argv.command` turns it into the exact line. No
user's string ever stands in an argument: what comes from users is numbers, enumerations and files
named by us.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virtuary.model.memory import translation_buffer
from virtuary.qemu.bounds import bounds_of, memory_of
from virtuary.qemu.devices import processor
from virtuary.qemu.devices.channels import Agent, Wake
from virtuary.qemu.devices.control import Control
from virtuary.qemu.devices.device import Device
from virtuary.qemu.devices.memory import Growth
from virtuary.qemu.devices.panic import Panic
from virtuary.qemu.devices.ports import RootPorts
from virtuary.qemu.devices.rng import Rng
from virtuary.qemu.devices.serial import Serial
from virtuary.qemu.machine import Machine
from virtuary.qemu.parts import Grants, Parts

MONITORS = (Control("qmp"), Control("rescue"))


def describe(machine: Machine) -> Parts:
    """The machine as settings, parts and grants, in the order QEMU needs them."""
    grants = Grants(machine.runtime)
    settings = settings_of(machine, grants)
    parts = [part for each in devices_of(machine) for part in each.parts(machine.platform, grants)]
    settings += [monitor.setting for monitor in MONITORS]
    return Parts(
        settings, parts, grants.all, readable(machine), bounds_of(machine), memory_of(machine)
    )


def devices_of(machine: Machine) -> Sequence[Device]:
    """All of them, in the order in which they stand on the line and take their descriptors.

    The order is part of every command line that runs: another one is another machine to whoever
    compares.
    """
    every: tuple[Device | None, ...] = (
        machine.memory,
        machine.firmware,
        machine.root,
        machine.seed,
        Serial(),
        Agent(),
        Wake() if machine.wakes else None,
        *machine.nics,
        Rng(),
        machine.balloon,
        machine.generation,
        Panic(),
        Growth(machine.memory),
        RootPorts(),
        *machine.disks[1:],  # each sits behind a port of its own
        machine.state,
        *MONITORS,
    )
    return [device for device in every if device]


def settings_of(machine: Machine, grants: Grants) -> list[tuple[str, str]]:
    """What QEMU takes as plain options: numbers and words of our own only."""
    accel, buffer = machine.accel, translation_buffer(machine.memory.size)
    return [
        ("uuid", machine.uuid),
        ("machine", _keyval(options_of(machine))),
        ("accel", processor.accelerator(accel, buffer, grants)),
        ("cpu", processor.model(accel, machine.platform)),
        ("smp", machine.cpus.option),
        ("m", machine.memory.option),
        ("rtc", "base=utc,clock=host"),
        ("action", "reboot=reset,shutdown=pause,panic=pause"),
        *(machine.kernel.settings if machine.kernel else []),
        *(machine.state.settings if machine.state else []),
    ]


def options_of(machine: Machine) -> dict[str, str]:
    """What is said of the machine type."""
    return {
        "type": machine.type,
        **dict(machine.platform.machine_options),
        "memory-backend": "ram0",
        "mem-merge": "on" if machine.memory.merge else "off",
        **(machine.firmware.options if machine.firmware else {}),
    }


def readable(machine: Machine) -> list[Path]:
    """Files that QEMU opens itself, by path."""
    return [*(machine.kernel.readable if machine.kernel else []), *machine.memory.readable]


def _keyval(options: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())
