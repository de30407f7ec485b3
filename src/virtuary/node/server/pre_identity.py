"""What a copy is before it is a machine of its own. Pure."""

from __future__ import annotations

from virtuary.model.vm import Vm


def never_handed_out(vm: Vm) -> bool:
    """Whether this run resumed a copy that has not become a machine of its own: nobody may have
    used it. Pure.
    """
    runtime = vm.status.runtime
    return (
        runtime is not None
        and (runtime.template is not None or runtime.live)
        and vm.status.identity.given is None
    )


def awaits_identity(vm: Vm) -> bool:
    """Whether this is a live copy that is no machine of its own yet: it becomes one in its first
    run, or it is nothing. Pure.
    """
    live = vm.spec.origin is not None and vm.spec.origin.mode == "live"
    return live and vm.status.identity.given is None


def undecided(vm: Vm) -> bool:
    """Whether it was created without being started: only now is it known whether its first start is
    warm. Its disk is unused. Pure.
    """
    status = vm.status
    warm, layers = status.warm, status.disk.layers
    return not (status.power.applied or warm.template or warm.cold or layers or vm.spec.origin)
