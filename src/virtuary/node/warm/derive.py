"""Which template a server can start from, and the machine its copy is. Decides and describes;
`templates.py` makes them.

A copy must meet exactly the machine its template was. Everything that must match is in the command
line and in the builds of image and engine: their digest, with what differs between copies left out,
is a template's key. So a new device, flag, QEMU or image makes another key, never a wrong resume.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, HostLacks, VirtuaryError
from virtuary.base.proc import run
from virtuary.base.units import format_size
from virtuary.guest import identity
from virtuary.guest.hostkeys import alias, known_hosts
from virtuary.guest.seed import HostKey, seed_files
from virtuary.model.image import Image
from virtuary.model.memory import Memory, default_memory
from virtuary.model.meta import Meta
from virtuary.model.network import own_mac
from virtuary.model.template import Template, TemplateSpec
from virtuary.model.vm import Vm, VmSpec
from virtuary.node.machine.resolve import firmware_of, growth, machine_of, place_of
from virtuary.node.site import Site
from virtuary.qemu.argv import command
from virtuary.qemu.describe import describe
from virtuary.qemu.devices.balloon import Balloon
from virtuary.qemu.devices.generation import Generation
from virtuary.qemu.devices.kernel import Kernel
from virtuary.qemu.devices.memory import RamFile
from virtuary.qemu.devices.state import State
from virtuary.qemu.machine import Machine
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.qemu.probe import Binary
from virtuary.qemu.warm import STEP
from virtuary.store import documents, servers, userdata


class Match(NamedTuple):
    """The template a server can start from, or why there is none."""

    template: Template | None
    why: str


def templates_of(site: Site, image_id: str) -> list[Template]:
    found = documents.here(site.store, Template)
    return [template for template in found if template.spec.image_id == image_id]


async def choose_template(site: Site, vm: Vm, image: Image) -> Match:
    """The ready template that needs the least growth to be this server; the reason in words where
    none fits.
    """
    if vm.spec.cold:
        return Match(None, "a boot was asked for")
    if not image.status.agent:
        return Match(None, f"the image {image.name} has no guest agent")
    if image.status.makes_login:
        return Match(
            None, f"cloud-init makes the login of {image.name} ({image.status.user}) at a boot"
        )
    try:
        accel = (await site.accel(PLATFORMS[vm.spec.arch], vm.spec.accel)).accel
        wanted = TemplateSpec(
            image=image.name,
            image_id=image.id,
            memory=vm.spec.memory.size,
            accel=accel,
            firmware=firmware_of(vm, image).kind,
        )
    except VirtuaryError as error:
        return Match(None, error.sentence)
    why = f"no warm template of {image.name} is there yet"
    for template in sorted(templates_of(site, image.id), key=lambda item: -item.spec.memory):
        if template.spec.but(memory=vm.spec.memory.size) != wanted or template.meta.purge:
            continue
        if template.status.state != "ready":
            why = f"its warm template is {template.status.state}" + (
                f": {template.status.reason}" if template.status.reason else ""
            )
        elif reason := out_of_reach(site, vm.spec, template):
            why = reason
        elif template.status.key != await key_of(site, template, image, vm.spec.machine):
            why = "its warm template was made by another QEMU or for another machine"
        else:
            return Match(
                template,
                f"a copy of the warm template of {image.name}, {format_size(template.spec.memory)}",
            )
    return Match(None, why)


def out_of_reach(site: Site, spec: VmSpec, template: Template) -> str | None:
    """Why this server can't be reached from the template by growth, None when it can."""
    most = growth(site)
    if spec.memory.pages == "huge" or spec.memory.merge:
        return "its memory is to lie in huge pages, or to be merged, and a copy's is the template's"
    if spec.cpu.node is not None:
        return "its memory is to lie in one NUMA node, and a copy's is the template's"
    if spec.cpu.sockets * spec.cpu.threads > 1:
        return "its CPUs are to be arranged otherwise than the warm template's"
    if spec.cpu.count > most.cpus:
        return f"{spec.cpu.count} CPUs are more than the {most.cpus} a copy can be grown to"
    if spec.memory.size < template.spec.memory:
        return (
            f"{format_size(spec.memory.size)} of memory are less than the warm template's "
            f"{format_size(template.spec.memory)}"
        )
    if spec.memory.size - template.spec.memory > most.memory:
        return f"{format_size(spec.memory.size)} of memory are more than a copy can be grown to"
    if (
        spec.root.size is not None
        and template.status.disk_size
        and spec.root.size < template.status.disk_size
    ):
        return "its disk would be smaller than the warm template's"
    return None


def base_memory(spec: VmSpec) -> int:
    """The size of the template that serves a server like this one: the image's default, or less
    where less was asked for.
    """
    return min(spec.memory.size, default_memory(spec.image))


def template_machine(
    site: Site, template: Template, image: Image, folder: Path, qemu: Binary, machine: str = ""
) -> Machine:
    """The machine a template is while it is made in `folder`."""
    spec = VmSpec(
        image=image.name, image_id=image.id, memory=Memory(size=template.spec.memory),
        accel=template.spec.accel,
        firmware=template.spec.firmware, machine=machine,
    )  # fmt: skip
    vm = Vm(meta=Meta(id=template.id, name="template"), spec=spec)
    own = machine_of(site, vm, image, template.spec.accel, qemu)
    flash = own.firmware and replace(own.firmware, variables=folder / "firmware-vars.fd")
    disk = replace(own.root, file=folder / "disk.qcow2", size=image.status.virtual_size)
    return replace(
        _saved(site, own, template.spec.memory, folder, copy=False), disks=(disk,), firmware=flash
    )


def copy_machine(site: Site, own: Machine, template: Template, generation: str) -> Machine:
    """The machine that resumes a copy of `template`, from the one this server would boot as."""
    folder = site.paths.template(template.id)
    grown = _saved(site, own, template.spec.memory, folder, copy=True)
    return replace(grown, generation=Generation(generation))


def _saved(site: Site, machine: Machine, memory: int, folder: Path, *, copy: bool) -> Machine:
    """What a template and its copies have alike, of the template in `folder`.

    Each begins small and grows to what is wished; all of them to the same limits. The guest reports
    no free pages: they are the template's.
    """
    most = growth(site)
    ram = RamFile(folder / "ram", copy)
    return replace(
        machine,
        cpus=replace(machine.cpus, count=1, most=most.cpus),
        memory=replace(machine.memory, size=memory, most=memory + most.memory, file=ram),
        balloon=Balloon(reporting=False),
        seed=None,
        wakes=True,
        state=State(folder / "state", arrives=copy),
    )


async def key_of(site: Site, template: Template, image: Image, machine: str = "") -> str:
    """Digest of everything a copy of this template must match as things are now; see the top of
    this file.
    """
    binary = await site.binary(PLATFORMS[template.spec.arch])
    own = template_machine(site, template, image, Path("/template"), binary, machine)
    build = Path(binary.program).stat()
    facts: dict[str, Any] = {
        "command": command("qemu", describe(_neutral(own))),
        "qemu": [binary.version, binary.package, build.st_size, build.st_mtime_ns],
        "image": [image.id, image.status.sha256],
        "guest": hashlib.sha256(identity.settle_script() + identity.strip_script()).hexdigest(),
        "host": _processor() if own.accel == "kvm" else "",
    }
    if own.firmware:
        code = own.firmware.code.stat()
        facts["firmware"] = [code.st_size, code.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _neutral(machine: Machine) -> Machine:
    """The machine without what differs between copies."""
    kernel = machine.kernel and Kernel(Path("/kernel"), Path("/initrd"), machine.kernel.arguments)
    return replace(
        machine,
        uuid="0",
        runtime=Path("/run"),
        disks=(replace(machine.root, layers=(Path("/image"),)),),
        nics=(replace(machine.nics[0], mac="0", tap=None),),
        kernel=kernel,
    )


def _processor() -> str:
    """Model and flags of the host's processor, which a guest with `-cpu host` sees."""
    wanted = ("vendor_id", "model name", "stepping", "microcode", "flags")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError as error:
        raise HostLacks("the host's processor can't be described", "is /proc mounted?") from error
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))


def more_memory(spec: VmSpec, template: Template) -> int:
    """Bytes to plug into a copy, in whole steps."""
    return max(-(-(spec.memory.size - template.spec.memory) // STEP) * STEP, 0)


def copy_of(site: Site, vm: Vm, image: Image | None, template: Template, qemu: Binary) -> Machine:
    """The machine that resumes a copy of `template` as this server."""
    if image is None:
        raise Failed("its image is gone")
    own = machine_of(site, vm, image, template.spec.accel, qemu)
    return copy_machine(site, own, template, generation_of(vm))


def generation_of(vm: Vm) -> str:
    """The generation id its first start shows: never the template's, the same however often it is
    described.
    """
    return str(uuid.uuid5(uuid.UUID(vm.id), "generation"))


async def renewal_of(
    site: Site, vm: Vm, template: Template, keys: tuple[str, ...], key: HostKey
) -> tuple[identity.Renewal, tuple[str, ...], bytes]:
    """What makes a copy this server, new and random where it must be; the addresses it has then,
    where they are known; and the line by which its host key is known. `keys`: what cloud-init is
    handed.
    """
    facts = json.loads(
        (site.paths.template(template.id) / "manifest.json").read_text(encoding="utf-8")
    )
    text = (userdata.read(site.store, vm.id) if vm.spec.login.user_data else None) or ""
    place, size = place_of(site.store, vm), vm.spec.root.size
    addresses = tuple(facts["addresses"])
    if place:
        addresses = (place.address.partition("/")[0],) if place.address else ()
    renewal = identity.Renewal(
        uuid=vm.id,
        old_mac=facts["mac"],
        mac=own_mac(vm.id, vm.spec.nics[0]),
        place=place,
        machine_id=uuid.uuid4().hex,
        boot_id=str(uuid.uuid4()),
        host_key=key.private,
        host_key_public=key.public,
        entropy=secrets.token_hex(128),
        now=site.clock.wall().timestamp(),
        lag=facts["lag"],
        dmi=identity.renewed_dmi(base64.b64decode(facts["dmi"]), facts["uuid"], vm.id),
        crowd=sum(
            other.status.state == "starting" for other in servers.of_host(site.store, site.host_id)
        ),
        cpus=vm.spec.cpu.count,
        grown=size if size and size > template.status.disk_size else None,
        seed=tuple(seed_files(vm.id, vm.name, keys, text, key).items()) if text else (),
    )
    return renewal, addresses, known_hosts(alias(vm.id), (key.public,))


async def make_host_key(scratch: Path) -> HostKey:
    """A new SSH host key."""
    place = scratch / "host-key"
    public = place.with_name("host-key.pub")
    place.unlink(missing_ok=True)
    try:
        await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(place))
        return HostKey(
            place.read_text(encoding="ascii").rstrip("\n"),
            public.read_text(encoding="ascii").strip(),
        )
    finally:
        place.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
