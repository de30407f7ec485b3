"""The disk of a server, and what else lies beside it: made from the image, grown, seeded. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.image import Image
from virtuary.model.operation import Operation
from virtuary.model.vm import NO_CLOUD_INIT
from virtuary.node.power.plan import Fail
from virtuary.node.server.pre_identity import undecided
from virtuary.node.server.step import Step, Wait
from virtuary.node.server.world import World

IMAGES = "virtuary image list shows the images"


@dataclass(frozen=True)
class FollowImage(Step):
    """Tell how far the image is, and sleep a little."""

    operation: Operation


@dataclass(frozen=True)
class MakeDisk(Step):
    """Make the root disk, on a warm template's where one fits."""

    image: Image


@dataclass(frozen=True)
class GrowDisk(Step):
    size: int


@dataclass(frozen=True)
class MakeSeed(Step):
    """Write the volume with which cloud-init is told about the server."""


def await_image(world: World) -> Step | None:
    """Its image is there, and can be what is asked of it."""
    vm, image = world.vm, world.image
    if image is None:
        return Fail(f"the image {vm.spec.image} is gone", IMAGES)
    if image.status.state == "failed":
        why = f"the image {vm.spec.image} could not be made: {image.status.reason}"
        return Fail(why, IMAGES)
    if image.status.state != "ready":
        return FollowImage(world.operation) if world.operation else Wait()
    made = vm.status.disk.ready or vm.spec.origin is not None
    if vm.spec.login.user_data and not image.status.cloud_init and not made:
        return Fail(NO_CLOUD_INIT.format(image=vm.spec.image), IMAGES)
    return None


def make(world: World) -> Step | None:
    """The disk is made once: an empty one in the place of a lost one would hide the loss."""
    vm, image = world.vm, world.image
    wanted = not vm.status.disk.ready or (undecided(vm) and vm.wanted != "stopped")
    if wanted and image:
        return MakeDisk(image)
    if "disk" in world.disks.files:
        return None
    return Wait() if vm.wanted == "stopped" else Fail(f"the disk of {vm.name} is gone")


def grow(world: World) -> Step | None:
    """The disk of a stopped server has its wished size; that of a warm copy grows once it runs."""
    spec, status = world.vm.spec, world.vm.status
    warm = status.warm.template is not None and status.identity.given is None
    if warm or not spec.root.size or not status.disk.size or spec.root.size <= status.disk.size:
        return None
    return GrowDisk(spec.root.size)


def seed(world: World) -> Step | None:
    image = world.image
    if image is None or not image.status.cloud_init or "seed" in world.disks.files:
        return None
    wanted = world.vm.spec.login.user_data or not image.status.agent or image.status.makes_login
    return MakeSeed() if wanted else None


def is_made(world: World) -> bool:
    return world.vm.status.disk.ready
