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
from virtuary.model import disk as model
from virtuary.model.image import Image
from virtuary.model.network import NONE, USER, Network, own_mac, tap_of
from virtuary.model.runtime import Shape
from virtuary.model.vm import Vm, VmSpec
from virtuary.model.volume import Volume
from virtuary.network.passt import Forward
from virtuary.node import pools
from virtuary.node.site import Site, memory_facts
from virtuary.qemu.devices.balloon import Balloon
from virtuary.qemu.devices.disk import Disk
from virtuary.qemu.devices.firmware import Flash
from virtuary.qemu.devices.kernel import Kernel
from virtuary.qemu.devices.memory import Memory
from virtuary.qemu.devices.nic import Nic
from virtuary.qemu.devices.processor import Cpus
from virtuary.qemu.devices.seed import Seed
from virtuary.qemu.firmware import BIOS, Firmware, find_uefi
from virtuary.qemu.machine import Machine
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.qemu.probe import Binary
from virtuary.store import documents, servers
from virtuary.store.api import Store


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
    image = (site.paths.image(vm.spec.image_id) / "disk.qcow2",) if vm.status.disk.base else ()
    return (*image, *(site.paths.state / layer for layer in vm.status.disk.layers))


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
        memory=machine.memory.size, cpus=machine.cpus.count, max_cpus=machine.cpus.most,
        max_memory=machine.memory.most,
        reporting=machine.balloon.reporting, wakes=machine.wakes,
        borrowed=machine.state is not None,
    )  # fmt: skip


def shaped(machine: Machine, shape: Shape) -> Machine:
    """The machine with the shape that its process, or the one whose memory it takes over, began
    with. Pure.
    """
    return replace(
        machine,
        cpus=replace(machine.cpus, count=shape.cpus, most=shape.max_cpus),
        memory=replace(machine.memory, size=shape.memory, most=shape.max_memory),
        balloon=Balloon(shape.reporting),
        wakes=shape.wakes,
    )


async def find_qemu(site: Site, vm: Vm) -> Binary:
    """The QEMU of this host that runs this server; raises HostLacks."""
    return await site.binary(PLATFORMS[vm.spec.arch])


def machine_of(site: Site, vm: Vm, image: Image, accel: str, qemu: Binary) -> Machine:
    """Everything resolved that the machine begins with: NICs besides the first and disks besides
    the root disk are plugged before its guest runs. A dry run gives the same as the start. A
    server that was never started gets the newest machine type of this QEMU.
    """
    most = growth(site)
    return Machine(
        uuid=vm.id,
        platform=PLATFORMS[vm.spec.arch],
        type=vm.spec.machine or qemu.machine,
        accel="kvm" if accel == "kvm" else "tcg",
        cpus=_cpus(vm.spec, most),
        memory=_memory(vm.spec, most),
        disks=(_root(site, vm, image),),
        nics=(Nic(own_mac(vm.id, vm.spec.nics[0]), tap_of(vm.id, 0) if on_bridge(vm) else None),),
        runtime=site.paths.vm(vm.id).runtime,
        firmware=_flash(site, vm, image),
        kernel=_kernel(site, image),
        seed=_seed(site, vm, image),
    )


def _cpus(spec: VmSpec, most: Growth) -> Cpus:
    return Cpus(spec.cpu.count, max(most.cpus, spec.cpu.count), spec.cpu.sockets, spec.cpu.threads)


def _memory(spec: VmSpec, most: Growth) -> Memory:
    return Memory(
        spec.memory.size,
        wished=spec.memory.size,
        most=_most_memory(spec, most),
        node=spec.cpu.node,
        huge_pages=spec.memory.pages == "huge",
        merge=spec.memory.merge,
    )


def _root(site: Site, vm: Vm, image: Image) -> Disk:
    """The firmware looks for a system on it, unless QEMU loads the kernel."""
    return Disk(
        site.paths.vm(vm.id).home / vm.status.disk.file,
        max(vm.status.disk.size or 0, vm.spec.root.size or 0),
        layers_of(site, vm),
        bootindex=None if image.status.boot == "direct" else 0,
    )


def volume_disk(site: Site, disk: model.Disk, volume: Volume) -> Disk:
    """A volume as a machine has it."""
    return Disk(
        pools.file_of(site, volume),
        volume.status.size or 0,
        number=disk.number,
        serial=disk.serial,
        bootindex=None,
        read_only=disk.read_only,
    )


def _flash(site: Site, vm: Vm, image: Image) -> Flash | None:
    found = firmware_of(vm, image)
    if found.code is None or found.vars_template is None:
        return None
    return Flash(found.code, site.paths.vm(vm.id).firmware_vars, found.vars_template)


def _kernel(site: Site, image: Image) -> Kernel | None:
    folder = site.paths.image(image.id)
    direct = Kernel(folder / "kernel", folder / "initrd", image.status.kernel_args)
    return direct if image.status.boot == "direct" else None


def _seed(site: Site, vm: Vm, image: Image) -> Seed | None:
    seeded = image.status.cloud_init and (vm.spec.login.user_data or not image.status.agent)
    return Seed(site.paths.vm(vm.id).seed) if seeded else None


def _most_memory(spec: VmSpec, most: Growth) -> int:
    """How far its memory can be grown while it runs. In huge pages it can't: those are taken at the
    start, and never more. Pure.
    """
    memory = spec.memory
    return memory.size if memory.pages == "huge" else memory.max or memory.size + most.memory


def user_of(site: Site, vm: Vm) -> int | None:
    """The user that this server's processes have, or had in this daemon's life."""
    return vm.status.runtime.uid if vm.status.runtime else site.uids.get(vm.id)


def free_uid(site: Site, vm_id: str) -> int:
    """A user of its own for this machine in system mode: one no other server's record names. The
    caller's own in user mode.
    """
    if not site.capabilities.root:
        return os.getuid()
    running = servers.of_host(site.store, site.host_id)
    taken = {vm.status.runtime.uid for vm in running if vm.status.runtime and vm.id != vm_id}
    taken |= {uid for other, uid in site.uids.items() if other != vm_id}
    first = int(hashlib.sha256(vm_id.encode()).hexdigest(), 16) % len(site.users)
    for offset in range(len(site.users)):
        uid = site.users[(first + offset) % len(site.users)]
        if uid not in taken:
            site.uids[vm_id] = uid
            return uid
    raise NoRoom("every user reserved for virtual machines is taken")
