"""A copy that is not to be leaves its template as it is, unless the template is what went wrong."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from virtuary.base.errors import Failed
from virtuary.base.paths import Paths
from virtuary.model.meta import Meta
from virtuary.model.template import Template, TemplateSpec
from virtuary.node.server.server import Server
from virtuary.node.site import Site
from virtuary.node.warm.steps import go_cold
from virtuary.node.warm.templates import TemplateDamaged
from virtuary.storage.own import Damaged
from virtuary.store.documents import every
from virtuary.store.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parent))
from worlds import ID, ME, at_rest


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (TemplateDamaged("its files are not what they were"), False),
        (Damaged("the disk disk.qcow2 was marked as damaged by QEMU"), True),
        (Failed("the guest told a tale of damaged goods"), True),
    ],
)
async def test_a_template_is_removed_for_what_happened_and_not_for_a_word(
    paths: Paths, error: Failed, kept: bool
) -> None:
    store = MemoryStore()
    spec = TemplateSpec(image="tiny", image_id="f00d", memory=1 << 28, accel="tcg", firmware="bios")
    template = Template(meta=Meta(name="tiny"), spec=spec)
    template = template.but(status=template.status.but(state="ready"))
    world = at_rest()
    vm = world.vm.but(status=world.vm.status.but(warm={"template": template.id}))
    revision = await store.txn({}, {template.key: template.dump(), vm.key: vm.dump()})
    vm = vm.but(meta=vm.meta.but(revision=revision))
    await go_cold(Server(Site(paths, store, ME), ID), replace(world, vm=vm), error)
    left = {item.id: item.meta.purge for item in every(store, Template)}
    assert left[template.id] is not kept
