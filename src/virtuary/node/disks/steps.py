"""The disk of a server, and what else lies beside it: made, grown, seeded."""

from __future__ import annotations

import asyncio

from virtuary.base.crash import crashpoint, declare
from virtuary.base.files import remove, write_whole
from virtuary.guest import seed
from virtuary.guest.hostkeys import alias, known_hosts
from virtuary.model.disk import ROOT
from virtuary.node.disks.plan import FollowImage, GrowDisk, MakeDisk, MakeSeed
from virtuary.node.machine.keys import seed_keys
from virtuary.node.machine.resolve import layers_of
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does
from virtuary.node.server.world import World
from virtuary.node.warm.derive import choose_template, make_host_key
from virtuary.storage import directory
from virtuary.store import userdata

declare("seed.after_write")


async def follow_image(server: Server, world: World, step: FollowImage) -> None:
    """While the image is being made, show its progress as ours; then sleep until something
    changes.
    """
    followed = step.operation.status
    source = world.image_operation.status if world.image_operation else None
    text = source.stage if source and source.stage else "waiting for the image"
    fraction = source.progress if source else None
    told = (followed.log[-1].text if followed.log else "", followed.progress)
    if (text, fraction) != told:
        await note_on(server, world, text, stage="image", progress=fraction)
    await server.sleep(1)


async def make_disk(server: Server, world: World, step: MakeDisk) -> None:
    """The root disk: an overlay on a warm template's where one fits, else on the image. What a
    broken start left is not kept.
    """
    image, site = step.image, server.site
    if world.vm.status.warm.cold or world.vm.wanted == "stopped":
        template, why = None, world.vm.status.warm.cold
    else:
        template, why = await choose_template(site, world.vm, image)
    await note_on(server, world, "making the disk", stage="disk", progress=None)
    server.paths.home.mkdir(mode=0o700, exist_ok=True)
    disk = server.paths.home / world.vm.status.disk.file
    remove(disk)
    if template is None:
        base = site.paths.image(image.id) / "disk.qcow2"
        size = await directory.ensure_overlay(
            disk, base, image.status.virtual_size, world.vm.spec.root.size, site.kept
        )
        made = {"ready": True, "size": size, "layers": ()}
        await server.write(disks={ROOT: made}, **parts.boots(why))
        return
    base = site.paths.state / template.layer
    size = await directory.ensure_overlay(disk, base, template.status.disk_size, None, site.kept)
    await server.write(
        {template.key: template.meta.revision},
        disks={ROOT: {"ready": True, "size": size, "layers": (template.layer,)}},
        **parts.resumes(template.id),
    )


async def grow_disk(server: Server, world: World, step: GrowDisk) -> None:
    await note_on(server, world, "growing the disk", stage="disk")
    await directory.grow(
        server.paths.home / world.vm.status.disk.file,
        layers_of(server.site, world.vm),
        step.size,
        server.site.kept,
    )
    await server.write(**parts.grown(ROOT, step.size))


async def make_seed(server: Server, world: World, step: MakeSeed) -> None:
    """The cloud-init seed, from the user data that is kept apart, and for a first boot a host key
    that is known from then on.
    """
    text = userdata.read(server.site.store, world.vm.id) or ""
    # cloud-init writes host keys once, and a copy had its own before it had a seed
    first = world.vm.status.identity.given is None
    key = await make_host_key(server.paths.home) if first and not seed.has_host_keys(text) else None
    files = seed.seed_files(
        world.vm.id, world.vm.name, seed_keys(server.site, world.vm, world.image), text, key
    )
    if key:  # before the seed: where that is, this step is over
        write_whole(server.paths.known_hosts, known_hosts(alias(world.vm.id), (key.public,)))
    await asyncio.to_thread(seed.write_seed, server.paths.seed, files)
    crashpoint("seed.after_write")


CAPABILITY = capability(
    does(FollowImage, follow_image),
    does(MakeDisk, make_disk),
    does(GrowDisk, grow_disk),
    does(MakeSeed, make_seed),
)
