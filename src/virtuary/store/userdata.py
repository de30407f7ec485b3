"""Where user data is kept: apart from its server, since nobody is shown it."""

from __future__ import annotations

from virtuary.store.api import SECRETS, Store


def key_of(vm_id: str) -> str:
    """The key of a server's user data."""
    return f"{SECRETS}{vm_id}"


def read(store: Store, vm_id: str) -> str | None:
    """The user data of a server; None where there is none."""
    record = store.get(key_of(vm_id))
    return record.value.decode() if record else None
