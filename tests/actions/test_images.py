"""Images: what goes with them goes however much it is."""

from __future__ import annotations

import pytest

from virtuary.actions import images
from virtuary.actions.context import Context
from virtuary.base.errors import NotFound
from virtuary.base.units import MIB
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta
from virtuary.model.template import Template, TemplateSpec
from virtuary.store import documents
from virtuary.store.memory import MemoryStore

TEMPLATES = 150


class Nothing:
    """A catalogue that knows no image but those that are there."""

    def canonical(self, name: str) -> str:
        return name

    def find_source(self, name: str) -> ImageSource:
        raise NotFound("no such image")


@pytest.fixture
async def ctx() -> Context:
    """An image with more templates than one transaction holds."""
    store = MemoryStore()
    source = ImageSource(kind="build", recipe="tiny")
    image = Image(
        meta=Meta(id="i", name="tiny"), spec=ImageSpec(source=source),
        status=ImageStatus(state="ready", agent=True),
    )  # fmt: skip
    await store.txn({}, {image.key: image.dump(), image.named: image.id.encode()})
    for number in range(TEMPLATES):
        spec = TemplateSpec(
            image="tiny", image_id="i", memory=(number + 64) * MIB, accel="tcg", firmware="bios"
        )
        template = Template(meta=Meta(name="tiny"), spec=spec)
        await store.txn({}, {template.key: template.dump()})
    return Context(store, "tester", "here", Nothing(), ("idempotency/a", "digest"))


async def test_all_templates_of_an_image_are_removed_however_many_there_are(ctx: Context) -> None:
    assert len(await images.cool(ctx, "tiny")) == TEMPLATES
    assert all(item.meta.purge for item in documents.every(ctx.store, Template))
    assert ctx.store.get("idempotency/a")


async def test_an_image_goes_with_all_its_templates(ctx: Context) -> None:
    await images.delete(ctx, "tiny")
    assert all(item.meta.purge for item in documents.every(ctx.store, Template))
    (image,) = documents.every(ctx.store, Image)
    assert image.meta.purge
