"""Which warm templates the host keeps: made when an image is launched again, within a budget,
dropped when damaged or too old.
"""

from __future__ import annotations

import contextlib
import logging
import os

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.base.log import say
from virtuary.model.image import Image
from virtuary.model.meta import Meta
from virtuary.model.template import Template, TemplateSpec
from virtuary.model.vm import Vm
from virtuary.node.machine.resolve import firmware_of
from virtuary.node.site import Site, memory_facts
from virtuary.node.warm import derive
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.store import documents, servers

logger = logging.getLogger("virtuary.templates")


async def consider(site: Site, vm: Vm, image: Image) -> None:
    """After a cold launch: have a template made in the background, unless there is one or it was
    tried already.
    """
    if (
        not site.settings.templates.auto
        or not image.status.agent
        or image.status.makes_login
        or vm.spec.cold
    ):
        return
    try:
        accel = await site.accel(PLATFORMS[vm.spec.arch], vm.spec.accel)
        memory = derive.base_memory(vm.spec)
        spec = TemplateSpec(
            image=image.name,
            image_id=image.id,
            memory=memory,
            accel=accel.accel,
            firmware=firmware_of(vm, image).kind,
        )
        template = Template(meta=Meta(name=image.name), spec=spec)
        key = await derive.key_of(site, template, image)
    except VirtuaryError:
        return
    for other in derive.templates_of(site, image.id):
        if other.spec == spec and (
            other.status.state in ("absent", "making") or other.status.key in ("", key)
        ):
            return
    total, available = memory_facts()
    # nobody asked for it: it is made after a later launch
    if available < memory + site.settings.resources.memory_kept(total):
        say(logger, "no template now", image=image.name, why="the host's memory is short")
        return
    await site.store.txn({}, documents.written(site.store, template))
    say(logger, "template wished", image=image.name)


def standing_on(site: Site, layer: str) -> list[Vm]:
    """Servers whose disks lie on this file."""
    return servers.on_layer(site.store, layer)


async def damaged(site: Site, template: Template, why: str) -> None:
    """A template that can't be trusted any more: removed, and made anew."""
    say(logger, "template removed", logging.WARNING, image=template.spec.image, why=why)
    changed = template.but(meta=template.meta.but(purge=True))
    again = Template(meta=Meta(name=template.name), spec=template.spec)
    puts = documents.wished(site.store, changed)
    if site.settings.templates.auto:
        puts |= documents.written(site.store, again)
    with contextlib.suppress(Conflict):
        await site.store.txn({template.key: template.meta.revision}, puts)


def touch(site: Site, template: Template) -> None:
    """Remember that it was used now."""
    with contextlib.suppress(OSError):
        os.utime(site.paths.template(template.id))


async def keep_budget(site: Site, keep: str = "") -> None:
    """Remove templates, the one used longest ago first, until the others fit into
    `templates.max_disk`.
    """
    found = documents.here(site.store, Template)
    ready = [
        template
        for template in found
        if template.status.state == "ready" and not template.meta.purge
    ]
    sizes = sum(template.status.size for template in ready)
    for template in sorted(ready, key=lambda item: _used(site, item)):
        if sizes <= site.settings.templates.max_disk:
            return
        if template.id != keep:
            say(logger, "template removed", image=template.spec.image, why="templates.max_disk")
            with contextlib.suppress(Conflict):
                await site.store.txn(
                    {template.key: template.meta.revision},
                    documents.wished(site.store, template.but(meta=template.meta.but(purge=True))),
                )
            sizes -= template.status.size


def _used(site: Site, template: Template) -> float:
    with contextlib.suppress(OSError):
        return site.paths.template(template.id).stat().st_mtime
    return 0.0


async def renew(site: Site) -> None:
    """Replace templates that nothing can be resumed from any more, after an upgrade of QEMU say, by
    ones of today.
    """
    for template in documents.here(site.store, Template):
        if template.meta.purge or template.status.state not in ("ready", "failed"):
            continue
        image = documents.get(site.store, Image, template.spec.image_id)
        with contextlib.suppress(VirtuaryError):
            now = await derive.key_of(site, template, image) if image else ""
            if template.status.state == "ready" and now != template.status.key:
                await damaged(site, template, "QEMU, the machine or the image is another one now")
