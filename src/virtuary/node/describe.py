"""From a server's documents to the machine QEMU is told to be; shared by the start, the plan shown by `--dry-run`, and tests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from virtuary.base.errors import HostLacks, NoRoom
from virtuary.model.image import Image
from virtuary.model.vm import Vm
from virtuary.network.passt import Forward
from virtuary.node.site import UIDS, Site
from virtuary.qemu.describe import Machine
from virtuary.qemu.firmware import BIOS, Firmware, find_uefi
from virtuary.qemu.platform import PLATFORMS


def mac_of(vm_id: str) -> str:
    """The server's MAC address, from its id: locally administered, in QEMU's customary range."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def firmware_of(vm: Vm, image: Image) -> Firmware:
    """BIOS or UEFI as the server wishes and the image allows; the image's first when nobody said. Raises HostLacks."""
    kind = image.status.firmware[0] if vm.spec.firmware == "auto" else vm.spec.firmware
    if kind not in image.status.firmware:
        raise HostLacks(f"the image {image.name} can't start by {kind.upper()}", f"leave out --firmware {kind}")
    return BIOS if kind == "bios" else find_uefi(vm.spec.arch)


def layers_of(site: Site, vm: Vm) -> tuple[Path, ...]:
    """The files below the server's own disk, the lowest first."""
    image = (site.paths.image(vm.spec.image_id) / "disk.qcow2",) if vm.status.base else ()
    return (*image, *(site.paths.state / layer for layer in vm.status.layers))


def forwards_of(vm: Vm) -> tuple[Forward, ...]:
    return tuple(Forward(port.protocol, port.address, port.host, port.guest) for port in vm.spec.publish)


def ssh_forward(port: int) -> Forward:
    """Virtuary's own way in: the guest's SSH on a loopback port of the host."""
    return Forward("tcp", "127.0.0.1", port, 22)


async def machine_of(site: Site, vm: Vm, image: Image, accel: str) -> Machine:
    """Everything resolved; a dry run gives the same as the start."""
    platform = PLATFORMS[vm.spec.arch]
    paths = site.paths.vm(vm.id)
    folder = site.paths.image(image.id)
    firmware = firmware_of(vm, image)
    direct = image.status.boot == "direct"
    seeded = image.status.cloud_init and (vm.spec.user_data or not image.status.agent)
    return Machine(
        uuid=vm.id,
        platform=platform,
        machine_type=vm.spec.machine or (await site.binary(platform)).machine,
        accel="kvm" if accel == "kvm" else "tcg",
        cpus=vm.spec.cpus,
        memory=vm.spec.memory,
        disk=paths.home / vm.status.disk_file,
        layers=layers_of(site, vm),
        firmware=firmware,
        runtime=paths.runtime,
        mac=mac_of(vm.id),
        vars_file=paths.firmware_vars if firmware.kind == "uefi" else None,
        seed=paths.seed if seeded else None,
        kernel=folder / "kernel" if direct else None,
        initrd=folder / "initrd" if direct else None,
        kernel_args=image.status.kernel_args,
    )


def free_uid(site: Site, vm_id: str) -> int:
    """A user of its own for this machine in system mode: one no other server's record names. The caller's own in user mode."""
    if not site.capabilities.root:
        return os.getuid()
    running = [Vm.load(record.value, record.revision) for record in site.store.list("vm/").records]
    taken = {vm.status.runtime.uid for vm in running if vm.status.runtime and vm.id != vm_id}
    taken |= {uid for other, uid in site.uids.items() if other != vm_id}
    first = int(hashlib.sha256(vm_id.encode()).hexdigest(), 16) % len(UIDS)
    for offset in range(len(UIDS)):
        uid = UIDS[(first + offset) % len(UIDS)]
        if uid not in taken:
            site.uids[vm_id] = uid
            return uid
    raise NoRoom("every user reserved for virtual machines is taken")
