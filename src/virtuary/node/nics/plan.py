"""The NICs besides the first are plugged and unplugged while a server runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.network import Nic
from virtuary.node.server.step import Step
from virtuary.node.server.world import World


@dataclass(frozen=True)
class PlugNic(Step):
    nic: Nic


@dataclass(frozen=True)
class UnplugNic(Step):
    number: int


def plug(world: World) -> Step | None:
    """A NIC that is wished and not there, or there and not so wished: those besides the first.

    All that go are taken out before any is plugged in, which may be given an address that one of
    them had.
    """
    runtime = world.vm.status.runtime
    if runtime is None or runtime.end or not world.takes_devices:
        return None
    wished = {nic.number: nic for nic in world.vm.spec.nics if nic.number}
    there = {nic.number: nic for nic in runtime.nics if nic.number}
    for number, nic in there.items():
        if number not in wished or wished[number].wiring != nic.wiring:
            return UnplugNic(number)
    return next((PlugNic(nic) for number, nic in wished.items() if number not in there), None)
