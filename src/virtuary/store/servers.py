"""What servers are asked for by, many times a second: the network they are on, the image and the
layers their disks lie on, the volumes they have, the host that runs them.
"""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.documents import Index


def _networks(vm: Vm) -> set[str]:
    return {nic.network_id for nic in (*vm.spec.nics, *vm.nics) if nic.network_id}


def _volumes(vm: Vm) -> set[str]:
    there = vm.status.runtime.disks if vm.status.runtime else ()
    return {disk.volume for disk in (*vm.spec.disks, *there) if disk.volume}


_ON_NETWORK = Index(Vm, _networks)
_ON_IMAGE = Index(Vm, lambda vm: (vm.spec.image_id,))
_OF_HOST = Index(Vm, lambda vm: (vm.spec.owner,))
_ON_LAYER = Index(Vm, lambda vm: vm.status.layers)
_WITH_VOLUME = Index(Vm, _volumes)


def of_host(store: Store, host: str) -> list[Vm]:
    """Servers that this host runs, those in the trash too: what a host has is promised to them, and
    what is done to them nobody else does.
    """
    return documents.by(store, _OF_HOST, host)


def with_volume(store: Store, volume_id: str) -> list[Vm]:
    """Servers that have this volume, or are to; those in the trash too."""
    return documents.by(store, _WITH_VOLUME, volume_id)


def on_network(store: Store, network_id: str) -> list[Vm]:
    """Servers with a NIC on it, as they are or as they are wished; those in the trash too."""
    return documents.by(store, _ON_NETWORK, network_id)


def is_networked(vm: Vm) -> bool:
    """Whether one of its NICs, as they are or as they are wished, is on a network."""
    return bool(_networks(vm))


def on_image(store: Store, image_id: str) -> list[Vm]:
    """Servers of this image, those in the trash too."""
    return documents.by(store, _ON_IMAGE, image_id)


def on_layer(store: Store, layer: str) -> list[Vm]:
    """Servers whose disks lie on this file."""
    return documents.by(store, _ON_LAYER, layer)
