"""Servers go down and come up with their host: in order, each in its time, the next ones when those
before can be used.

When the host goes down servers are asked to shut down, the highest `boot_order` first; what is
wished of them stays as it is. After a boot those marked `autostart`, and those that ran and are to
run always, are started, the lowest order first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from virtuary.base import proc
from virtuary.base.errors import Failed, HostLacks
from virtuary.base.log import say
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.server import parts
from virtuary.node.site import Site
from virtuary.store import documents, here, servers

logger = logging.getLogger("virtuary.turns")
GATE = 180.0
"""Seconds for which servers of one order are waited for before the next ones are started; one that
fails is not waited for.
"""
GRACE = 15.0
"""Seconds that a server may take to end once its plug was pulled."""
LOOK = 0.25


def all_servers(site: Site) -> list[Vm]:
    found = servers.of_host(site.store, site.host_id)
    return [vm for vm in found if not vm.meta.deleted and not vm.meta.purge]


async def after_boot(site: Site) -> None:
    """In the first daemon after a boot of the host: ask for what is to come up with it, and have
    whatever else ran stand still.
    """
    place = here.key_of(site.host_id, "boot")  # that in which servers were last brought up
    record = site.store.get(place)
    servers = all_servers(site)
    lost = {vm.id for vm in servers if vm.status.runtime and vm.status.runtime.boot_id != site.boot}
    fresh = record is not None and record.value.decode() != site.boot
    for vm in servers:
        if fresh or vm.id in lost:
            await _wish_after_boot(site, vm, vm.id in lost)
        elif (
            vm.wanted == "running" and vm.status.runtime is None
        ):  # the host's shutdown was called off, or it was the daemon's alone
            site.turns.waiting[vm.id] = vm.spec.policy.boot_order
    if record is None or fresh:
        await site.store.txn({}, {place: site.boot.encode()})


async def _wish_after_boot(site: Site, vm: Vm, lost: bool) -> None:
    ran = vm.wanted != "stopped"
    wanted = (
        "running"
        if vm.spec.policy.autostart or (ran and vm.spec.policy.restart == "always")
        else "stopped"
    )
    if wanted == "running":
        site.turns.waiting[vm.id] = vm.spec.policy.boot_order
    if not lost and wanted == vm.wanted:
        return
    why = "the host was restarted"
    over = operations.open_operations(site.store, vm.key) if wanted == "stopped" else []
    end = Failed(why, f"virtuary start {vm.name}")
    status = vm.status.without_process(state="stopped", reason=why) if lost else vm.status
    if wanted == "running":
        asked = vm.spec.asked + (vm.wanted == "stopped")
        changed = vm.but(status=status, spec=vm.spec.but(power=wanted, asked=asked))
    else:
        changed = vm.but(status=status.but(**parts.halts(vm, why, site.clock.wall())))
    puts = {item.key: operations.finished(item, end).dump() for item in over}
    await site.store.txn({vm.key: vm.meta.revision}, {vm.key: changed.dump(), **puts})
    say(logger, "host was restarted", vm=vm.name, wanted=wanted)


async def bring_up(site: Site, wake: Callable[[str], None]) -> None:
    """Let those that wait start, order by order."""
    turns = site.turns
    for order in sorted(set(turns.waiting.values())):
        group = {vm_id for vm_id, at in turns.waiting.items() if at == order}
        for vm_id in group:
            turns.waiting.pop(vm_id, None)
            wake(Vm.key_of(vm_id))
        until = site.clock.now() + GATE
        while (
            turns.waiting
            and site.clock.now() < until
            and not all(map(_is_settled, _of(site, group)))
        ):
            await site.clock.sleep(LOOK)


def _is_settled(vm: Vm) -> bool:
    """Whether nobody has to wait for it any more: it can be used, or does not come. Pure."""
    if vm.wanted != "running" or vm.status.state == "crashed":
        return True
    return vm.status.state == "running" and "ssh" in vm.status.stages


async def shut_down(site: Site, wake: Callable[[str], None], tell: Callable[[str], None]) -> None:
    """Ask all servers to shut down, order by order; at the end none runs. `tell` hears a sentence
    now and then.
    """
    site.turns.going_down = True
    ids = {vm.id for vm in all_servers(site) if vm.status.runtime}
    say(logger, "the host goes down", servers=len(ids))
    while running := [vm for vm in _of(site, ids) if vm.status.runtime]:
        order = max(vm.spec.policy.boot_order for vm in running)
        group = [vm for vm in running if vm.spec.policy.boot_order == order]
        for vm in group:
            site.turns.leaving.add(vm.id)
            wake(vm.key)
        until = site.clock.now() + max(vm.spec.policy.shutdown_timeout for vm in group) + GRACE
        while left := [vm for vm in _of(site, {vm.id for vm in group}) if vm.status.runtime]:
            if site.clock.now() > until:
                say(
                    logger,
                    "servers do not end",
                    logging.ERROR,
                    servers=" ".join(vm.name for vm in left),
                )
                ids -= {vm.id for vm in left}
                break
            tell(f"shutting down {', '.join(sorted(vm.name for vm in left)[:5])}")
            await site.clock.sleep(LOOK)


def _of(site: Site, ids: Iterable[str]) -> list[Vm]:
    found = (documents.get(site.store, Vm, vm_id) for vm_id in ids)
    return [vm for vm in found if vm]


async def host_goes_down(system: bool) -> bool:
    """Whether the host, or an ordinary user's session with all that it runs, is going down: systemd
    says so, or the run level.
    """
    manager = await _said("systemctl", *([] if system else ["--user"]), "is-system-running")
    return goes_down(manager, await _said("who", "-r"))


def goes_down(manager: str, level: str) -> bool:
    """What `systemctl is-system-running` and `who -r` say of it; empty where there is none.
    Pure.
    """
    return manager == "stopping" or level.split()[:2] in (["run-level", "0"], ["run-level", "6"])


async def _said(*command: str) -> str:
    try:
        done = await proc.run(*command, env=proc.session(), deadline=5, check=False)
    except (Failed, HostLacks):
        return ""
    return done.stdout.decode(errors="replace").strip()
