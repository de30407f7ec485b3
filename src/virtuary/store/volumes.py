"""Volumes by the host in whose pool they lie, and by the server that holds them."""

from __future__ import annotations

from virtuary.model.volume import Volume
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.documents import Index

_HELD = Index(Volume, lambda volume: {item.server for item in volume.spec.attached})
_OF_HOST = Index(Volume, lambda volume: (volume.spec.owner,))


def of_host(store: Store, host: str) -> list[Volume]:
    """The volumes of this host, those in the trash too."""
    return documents.by(store, _OF_HOST, host)


def held_by(store: Store, vm_id: str) -> list[Volume]:
    """The volumes that a server holds: those it has, is to have, or has not let go of."""
    return documents.by(store, _HELD, vm_id)
