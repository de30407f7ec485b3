"""From a server's documents to the machine QEMU is told to be; shared by the start, the plan shown
by `--dry-run`, and tests.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from virtuary.base.errors import HostLacks, NoRoom
from virtuary.base.units import GIB
from virtuary.guest.identity import Place
from virtuary.model.image import Image
from virtuary.model.network import NONE, USER, Network, own_mac, tap_of
from virtuary.model.vm import Shape, Vm, VmSpec
from virtuary.network.passt import Forward
from virtuary.node.site import Site, memory_facts
from virtuary.qemu.describe import Machine
from virtuary.qemu.firmware import BIOS, Firmware, find_uefi
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.qemu.probe import Binary
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.documents import every


def firmware_of(vm: Vm, image: Image) -> Firmware:
    """BIOS or UEFI as the server wishes and the image allows; the image's first when nobody said.
    Raises HostLacks.
    """
    kind = image.status.firmware[0] if vm.spec.firmware == "auto" else vm.spec.firmware
    if kind not in image.status.firmware:
        raise HostLacks(
            f"the image {image.name} can't start by {kind.upper()}", f"leave out --firmware {kind}"
        )
    return BIOS if kind == "bios" else find_uefi(PLATFORMS[vm.spec.arch])


def layers_of(site: Site, vm: Vm) -> tuple[Path, ...]:
    """The files below the server's own disk, the lowest first."""
    image = (site.paths.image(vm.spec.image_id) / "disk.qcow2",) if vm.status.base else ()
    return (*image, *(site.paths.state / layer for layer in vm.status.layers))


def forwards_of(vm: Vm) -> tuple[Forward, ...]:
    return tuple(
        Forward(port.protocol, port.address, port.host, port.guest) for port in vm.spec.publish
    )


def ssh_forward(port: int) -> Forward:
    """Virtuary's own way in: the guest's SSH on a loopback port of the host."""
    return Forward("tcp", "127.0.0.1", port, 22)


def on_bridge(vm: Vm) -> bool:
    """Whether its first NIC is on a network of the host's, and not served by a process of its
    own.
    """
    return vm.spec.nics[0].network not in (USER, NONE)


def place_of(store: Store, vm: Vm) -> Place | None:
    """Where its first NIC is, when that is on a network of the host's."""
    nic = vm.spec.nics[0]
    network = documents.get(store, Network, nic.network_id)
    if network is None:
        return None
    if nic.ipv4 is None or network.spec.ipv4 is None:
        return Place()
    gateway = network.gateways[0]
    length = network.spec.ipv4.partition("/")[2]
    outside = gateway if network.spec.kind == "nat" else None
    return Place(f"{nic.ipv4}/{length}", outside, gateway, network.spec.domain)


MAX_CPUS, MAX_GROWTH = 32, 256 * GIB


class Growth(NamedTuple):
    cpus: int
    memory: int
    """Bytes that can be plugged besides the base."""


def growth(site: Site) -> Growth:
    """How far a machine can grow here while it runs."""
    total, _ = memory_facts()
    return Growth(
        min(4 * (os.cpu_count() or 1), MAX_CPUS), min(max(total // GIB, 1) * GIB, MAX_GROWTH)
    )


def shape_of(machine: Machine) -> Shape:
    """What this machine begins with, and how it can grow. Pure."""
    return Shape(
        memory=machine.memory, cpus=machine.cpus, max_cpus=machine.max_cpus,
        max_memory=machine.max_memory,
        reporting=machine.reporting, wakes=machine.wakes,
        borrowed=bool(machine.warm or machine.state),
    )  # fmt: skip


def shaped(machine: Machine, shape: Shape) -> Machine:
    """The machine with the shape that its process, or the one whose memory it takes over, began
    with. Pure.
    """
    return replace(
        machine,
        memory=shape.memory,
        cpus=shape.cpus,
        max_cpus=shape.max_cpus,
        max_memory=shape.max_memory,
        reporting=shape.reporting,
        wakes=shape.wakes,
    )


async def find_qemu(site: Site, vm: Vm) -> Binary:
    """The QEMU of this host that runs this server; raises HostLacks."""
    return await site.binary(PLATFORMS[vm.spec.arch])


def machine_of(site: Site, vm: Vm, image: Image, accel: str, qemu: Binary) -> Machine:
    """Everything resolved; a dry run gives the same as the start. A server that was never started
    gets the newest machine type of this QEMU.
    """
    most = growth(site)
    paths = site.paths.vm(vm.id)
    folder = site.paths.image(image.id)
    firmware = firmware_of(vm, image)
    direct = image.status.boot == "direct"
    seeded = image.status.cloud_init and (vm.spec.user_data or not image.status.agent)
    return Machine(
        uuid=vm.id,
        platform=PLATFORMS[vm.spec.arch],
        machine_type=vm.spec.machine or qemu.machine,
        accel="kvm" if accel == "kvm" else "tcg",
        cpus=vm.spec.cpus,
        memory=vm.spec.memory,
        wished=vm.spec.memory,
        disk=paths.home / vm.status.disk_file,
        disk_size=max(vm.status.disk_size or 0, vm.spec.disk or 0),
        layers=layers_of(site, vm),
        firmware=firmware,
        runtime=paths.runtime,
        mac=own_mac(vm.id, vm.spec.nics[0]),
        tap=tap_of(vm.id, 0) if on_bridge(vm) else None,
        vars_file=paths.firmware_vars if firmware.kind == "uefi" else None,
        seed=paths.seed if seeded else None,
        kernel=folder / "kernel" if direct else None,
        initrd=folder / "initrd" if direct else None,
        kernel_args=image.status.kernel_args,
        max_cpus=max(most.cpus, vm.spec.cpus),
        max_memory=_most_memory(vm.spec, most),
        sockets=vm.spec.cpu.sockets,
        threads=vm.spec.cpu.threads,
        node=vm.spec.cpu.node,
        huge_pages=vm.spec.memory_pages == "huge",
        merge=vm.spec.memory_merge,
    )


def _most_memory(spec: VmSpec, most: Growth) -> int:
    """How far its memory can be grown while it runs. In huge pages it can't: those are taken at the
    start, and never more. Pure.
    """
    return (
        spec.memory if spec.memory_pages == "huge" else spec.memory_max or spec.memory + most.memory
    )


def user_of(site: Site, vm: Vm) -> int | None:
    """The user that this server's processes have, or had in this daemon's life."""
    return vm.status.runtime.uid if vm.status.runtime else site.uids.get(vm.id)


def free_uid(site: Site, vm_id: str) -> int:
    """A user of its own for this machine in system mode: one no other server's record names. The
    caller's own in user mode.
    """
    if not site.capabilities.root:
        return os.getuid()
    running = every(site.store, Vm)
    taken = {vm.status.runtime.uid for vm in running if vm.status.runtime and vm.id != vm_id}
    taken |= {uid for other, uid in site.uids.items() if other != vm_id}
    first = int(hashlib.sha256(vm_id.encode()).hexdigest(), 16) % len(site.users)
    for offset in range(len(site.users)):
        uid = site.users[(first + offset) % len(site.users)]
        if uid not in taken:
            site.uids[vm_id] = uid
            return uid
    raise NoRoom("every user reserved for virtual machines is taken")
