"""What a user may ask of images. Each function checks and makes one transaction; of more templates
than one holds, those that go go before it.
"""

from __future__ import annotations

from virtuary.actions.context import Context, active, decides, find_host, find_image, new_operation
from virtuary.base.errors import Busy, Conflict, Exists
from virtuary.base.units import format_size
from virtuary.model.deeds import DeleteImage, MakeImage, WarmImage
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageWish
from virtuary.model.memory import default_memory
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation
from virtuary.model.template import Template, TemplateSpec
from virtuary.model.vm import Vm
from virtuary.store import documents, servers
from virtuary.store.api import Store
from virtuary.store.documents import every

MOST = 40
"""So many templates of an image are removed in one transaction."""


@decides
async def create(context: Context, wish: ImageWish) -> tuple[Image, Operation]:
    """Ask for an image to be made. Raises Exists."""
    name = check_new(context, wish)
    image, operation = prepare(context, name, wish.source)
    puts = keys_of(context.store, image)
    await context.commit({Image.name_key(name): 0}, puts, operation=operation)
    return image, operation


def check_new(context: Context, wish: ImageWish) -> str:
    """The name a new image will have; raises Exists."""
    name = context.catalogue.canonical(wish.name)
    if context.store.get(Image.name_key(name)):
        raise Exists(
            f"an image named {name} is there already", f"virtuary image delete {name} removes it"
        )
    return name


def prepare(context: Context, name: str, source: ImageSource) -> tuple[Image, Operation]:
    """The documents of an image to be made, not yet written."""
    image = Image(meta=Meta(name=name), spec=ImageSpec(source=source))
    return image, new_operation(context, making(source), image)


def making(source: ImageSource) -> MakeImage:
    """The deed of making an image from there."""
    return MakeImage.model_validate({"kind": f"image-{source.kind}"})


def keys_of(store: Store, image: Image) -> dict[str, bytes]:
    return {**documents.written(store, image), image.named: image.id.encode()}


def resolve(context: Context, name: str) -> Image | ImageSource:
    """The image of this name, or how it can be had; raises NotFound."""
    wanted = context.catalogue.canonical(name)
    if context.store.get(Image.name_key(wanted)):
        return find_image(context.store, wanted)
    return context.catalogue.find_source(wanted)


@decides
async def delete(context: Context, name: str) -> Operation:
    """Remove an image that no server uses. Raises Conflict naming the users, Busy while it is being
    made.
    """
    image = deletable(context, name)
    changed = image.but(meta=image.meta.but(purge=True))
    operation = new_operation(context, DeleteImage(), image)
    expect, puts = await _cooled(context, image)
    await context.commit(
        {image.key: image.meta.revision, **expect},
        {**documents.wished(context.store, changed), **puts},
        operation=operation,
    )
    return operation


def deletable(context: Context, name: str) -> Image:
    """The image, if it can be deleted. Raises as `delete`."""
    image = find_image(context.store, context.catalogue.canonical(name), suggest=False)
    users = users_of(context.store, image.id)
    if users:
        names = ", ".join(
            vm.name + (" (in the trash)" if vm.meta.deleted else "") for vm in users[:10]
        )
        raise Conflict(
            f"the image {image.name} is used by {names}", "delete and purge these servers first"
        )
    for operation in active(context.store, image.key):
        raise Busy(
            f"the image {image.name} is being made", f"virtuary operation cancel {operation.id[:8]}"
        )
    return image


@decides
async def warm(
    context: Context, name: str, memory: int | None = None
) -> tuple[Template, Operation]:
    """Have a warm template made of an image, of `memory` bytes or the image's default. Raises
    Conflict when it is there, or can't be.
    """
    image = find_image(context.store, context.catalogue.canonical(name))
    if image.status.state != "ready" or image.meta.purge:
        raise Conflict(f"the image {image.name} is {image.status.state}", "repeat when it is ready")
    if not image.status.agent:
        raise Conflict(
            f"the image {image.name} has no guest agent, which a warm template needs",
            "its servers boot at every start",
        )
    if image.status.makes_login:
        raise Conflict(
            f"cloud-init makes the login of {image.name} ({image.status.user}) at a boot",
            "its servers boot at every start",
        )
    host = find_host(context.store, context.host_id).status
    spec = TemplateSpec(
        image=image.name,
        image_id=image.id,
        memory=memory or default_memory(image.name),
        accel="kvm" if host and host.accel == "kvm" else "tcg",
        firmware="uefi" if image.status.firmware[0] == "uefi" else "bios",
    )
    same = [
        template
        for template in _present(context.store, image)
        if template.spec == spec and documents.is_here(context.store, template)
    ]
    there = [template for template in same if template.status.state != "failed"]
    if there:
        raise Conflict(
            f"a warm template of {image.name} with {format_size(spec.memory)} is "
            f"{there[0].status.state} already",
            f"virtuary image cool {image.name} removes it",
        )
    template = Template(meta=Meta(name=image.name), spec=spec)
    operation = new_operation(context, WarmImage(), template)
    expect, puts = _purged(context.store, same)
    await context.commit(
        {image.key: image.meta.revision, **expect},
        {**documents.written(context.store, template), **puts},
        operation=operation,
    )
    return template, operation


@decides
async def cool(context: Context, name: str) -> list[Template]:
    """Remove the warm templates of an image; servers that run from them run on. Those that were
    there.
    """
    image = find_image(context.store, context.catalogue.canonical(name))
    found = _present(context.store, image)
    if found:
        expect, puts = await _cooled(context, image)
        await context.commit(expect, puts)
    return found


async def _cooled(context: Context, image: Image) -> tuple[dict[str, int], dict[str, bytes]]:
    """What a transaction expects and writes to have the last templates of an image removed; of
    more than that they are removed already.
    """
    while len(found := _present(context.store, image)) > MOST:
        await context.store.txn(*_purged(context.store, found[:MOST]))
    return _purged(context.store, found)


def _present(store: Store, image: Image) -> list[Template]:
    """The templates of an image that are not being removed."""
    return [template for template in templates_of(store, image.id) if not template.meta.purge]


def templates_of(store: Store, image_id: str) -> list[Template]:
    found = every(store, Template)
    return [template for template in found if template.spec.image_id == image_id]


def _purged(store: Store, found: list[Template]) -> tuple[dict[str, int], dict[str, bytes]]:
    """What a transaction expects and writes to have these templates removed."""
    puts: dict[str, bytes] = {}
    for template in found:
        puts |= documents.wished(store, template.but(meta=template.meta.but(purge=True)))
    return {template.key: template.meta.revision for template in found}, puts


def users_of(store: Store, image_id: str) -> list[Vm]:
    """Servers, those in the trash too, whose disks lie on this image."""
    return servers.on_image(store, image_id)
