"""What a user may ask of images. Each function checks and makes exactly one transaction."""

from __future__ import annotations

from virtuary.actions.context import Context, active, find_image, new_operation
from virtuary.base.errors import Busy, Conflict, Exists, NotFound
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageWish
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.store.api import Store

DEFAULT_DEBIAN = "12"
BUILT: dict[str, ImageSource] = {
    "tiny": ImageSource(kind="build", recipe="tiny", release=DEFAULT_DEBIAN),
    "debian:12": ImageSource(kind="build", recipe="debian", release="12"),
    "debian:13": ImageSource(kind="build", recipe="debian", release="13"),
}
"""Images that this host can make by itself, from signed packages."""
ALIASES = {"debian": f"debian:{DEFAULT_DEBIAN}"}


def canonical(name: str) -> str:
    """The name an image is kept under: `debian` is a version's alias."""
    lowered = name.strip().lower()
    return ALIASES.get(lowered, lowered)


async def create(context: Context, wish: ImageWish) -> tuple[Image, Operation]:
    """Ask for an image to be made. Raises Exists."""
    name = canonical(wish.name)
    if context.store.get(f"image-name/{name}"):
        raise Exists(f"an image named {name} is there already", f"virtuary image delete {name} removes it")
    image, operation = prepare(context, name, wish.source)
    await context.commit({f"image-name/{name}": 0}, keys_of(image), operation=operation)
    return image, operation


def prepare(context: Context, name: str, source: ImageSource) -> tuple[Image, Operation]:
    """The documents of an image to be made, not yet written."""
    image = Image(meta=Meta(name=name), spec=ImageSpec(source=source))
    return image, new_operation(context, f"image-{source.kind}", image)


def keys_of(image: Image) -> dict[str, bytes]:
    return {image.key: image.dump(), f"image-name/{image.name}": image.id.encode()}


def resolve(store: Store, name: str) -> Image | ImageSource:
    """The image of this name, or how it can be made; raises NotFound."""
    wanted = canonical(name)
    try:
        return find_image(store, wanted)
    except NotFound as error:
        source = BUILT.get(wanted)
        if source is None:
            raise NotFound(
                f"there is no image named {name[:80]!r}", error.hint if error.hint and "did you" in error.hint else _offer()
            ) from None
        return source


def _offer() -> str:
    return f"{', '.join(['debian', *BUILT])} can be built here; virtuary image list shows what is there"


async def delete(context: Context, name: str) -> Operation:
    """Remove an image that no server uses. Raises Conflict naming the users, Busy while it is being made."""
    image = find_image(context.store, canonical(name))
    users = users_of(context.store, image.id)
    if users:
        names = ", ".join(vm.name + (" (in the trash)" if vm.meta.deleted else "") for vm in users[:10])
        raise Conflict(f"the image {image.name} is used by {names}", "delete and purge these servers first")
    for operation in active(context.store, image.key):
        raise Busy(f"the image {image.name} is being made", f"virtuary operation cancel {operation.id[:8]}")
    changed = image.but(meta=image.meta.but(purge=True))
    operation = new_operation(context, "image-delete", image)
    await context.commit({image.key: image.meta.revision}, {image.key: changed.dump()}, operation=operation)
    return operation


def users_of(store: Store, image_id: str) -> list[Vm]:
    """Servers, those in the trash too, whose disks lie on this image."""
    vms = [Vm.load(record.value, record.revision) for record in store.list("vm/").records]
    return [vm for vm in vms if vm.spec.image_id == image_id]
