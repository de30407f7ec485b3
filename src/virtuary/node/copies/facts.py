"""Who waits for a copy, of what a server is to be one, and what copying has left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from virtuary.base.paths import VmPaths
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.node.server.pre_identity import awaits_identity
from virtuary.node.server.server import Server
from virtuary.node.server.world import CopyFacts
from virtuary.node.site import Site
from virtuary.store import documents


def waiting(site: Site, source: Vm, copying: Sequence[Operation]) -> tuple[Vm, ...]:
    """The servers these operations make copies of `source`, as far as they still wait for it."""
    found = []
    for operation in copying:
        if operation.spec.cancel:
            continue
        copy = documents.at(site.store, Vm, operation.spec.target)
        if (
            copy
            and copy.spec.origin
            and copy.spec.origin.id == source.id
            and not copy.status.origin.copied
            and not copy.meta.purge
        ):
            found.append(copy)
    return tuple(found)


def source_of(site: Site, vm: Vm) -> Vm | None:
    """The server that `vm` waits to be a copy of; None when it waits for none, or when that is
    gone.
    """
    if vm.spec.origin is None or vm.status.origin.copied:
        return None
    return documents.get(site.store, Vm, vm.spec.origin.id)


def leftovers(paths: VmPaths, vm: Vm, names: Sequence[str]) -> list[Path]:
    """Disks among `names` in a server's folder that are not its own any more or were never
    finished, and memory it has taken over.
    """
    if not vm.status.disk.ready:
        return []
    disks = [
        name
        for name in names
        if name.startswith(("disk", ".disk")) and name.endswith((".qcow2", ".partial"))
    ]
    taken = (paths.state.name, paths.origin.name)
    memory = [] if awaits_identity(vm) else [name for name in names if name in taken]
    own = {disk.file for disk in vm.status.disks.values()}
    return [paths.home / name for name in (*disks, *memory) if name not in own]


def files_in(paths: VmPaths) -> list[str]:
    """What lies in a server's folder."""
    try:
        return os.listdir(paths.home)
    except OSError:
        return []


def look(server: Server, vm: Vm, copying: Sequence[Operation]) -> CopyFacts:
    """`copying`: open operations that copy this server."""
    site = server.site
    return CopyFacts(waiting(site, vm, copying), source_of(site, vm), vm.id in site.held)
