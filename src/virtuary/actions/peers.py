"""The servers that firewall rules name: by id where the rules are kept, so that a rule means the
same server whatever that one is called, and nobody once that one is gone; by name where people and
the API look.

Documents of before this held names: `bring_over` finds out whom these meant, once, before anything
is made of the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from virtuary.actions.context import all_vms, raise_all
from virtuary.base.errors import NotFound, VirtuaryError
from virtuary.model.firewall import (
    Firewall,
    Rule,
    with_servers,
)
from virtuary.model.meta import new_id
from virtuary.model.vm import Vm
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.documents import every


def kept(
    store: Store, own: str, rules: tuple[Rule, ...], purged: Collection[str] = ()
) -> tuple[Rule, ...]:
    """The rules of a wish as they are kept. `own` is the name of the group they are of, `purged`
    the ids of servers that are gone and that it may go on naming. Raises NotFound for peers that
    are not there.
    """
    blockers: list[VirtuaryError] = []
    ids: dict[str, str] = {}
    for peer in dict.fromkeys(peer for rule in rules for peer in rule.peers):
        kind, _, name = peer.partition(":")
        if kind == "group" and name != own and not store.get(Firewall.name_key(name)):
            blockers.append(
                NotFound(
                    f"there is no firewall group named {name}", "virtuary firewall list shows them"
                )
            )
        elif kind == "server":
            if found := name if name in purged else _find_id(store, name):
                ids[name] = found
            else:
                blockers.append(
                    NotFound(f"there is no server named {name}", "virtuary list shows them")
                )
    raise_all(blockers)
    return with_servers(rules, ids.__getitem__)


def _find_id(store: Store, name: str) -> str | None:
    """The id of the server of this name, or of this id, be it in the trash."""
    if found := documents.named(store, Vm, name):
        return found
    vm = documents.get(store, Vm, name)
    return name if vm and not vm.meta.purge else None


def tidied(group: Firewall) -> Firewall:
    """A group that remembers only those servers that are gone which its rules still name."""
    named = group.servers()
    purged = {key: name for key, name in group.status.purged.items() if key in named}
    return group.seen(purged=purged, trashed={})


# ---- showing


def shown(group: Firewall, vms: Iterable[Vm]) -> Firewall:
    """A group as people and the API see it. Its rules name a server by its name where that one has
    it now, else by its id, of which the status tells the last name. Pure.
    """
    named = {vm.id: vm for vm in vms if vm.id in group.servers()}
    names = {key: vm.name for key, vm in named.items() if not vm.meta.deleted}
    trashed = {key: vm.name for key, vm in named.items() if vm.meta.deleted and not vm.meta.purge}
    gone = group.servers() - names.keys() - trashed.keys()
    purged = {
        key: named[key].name if key in named else group.status.purged.get(key, key) for key in gone
    }
    rules = with_servers(group.spec.rules, lambda key: names.get(key, key))
    return group.but(
        spec=group.spec.but(rules=rules), status=group.status.but(purged=purged, trashed=trashed)
    )


def show(store: Store, group: Firewall) -> Firewall:
    """A group as people and the API see it now."""
    return shown(group, every(store, Vm))


def show_kept(store: Store, group: Firewall) -> Firewall:
    """The same of a group as it was read; one of before rules held ids stays as it is."""
    return group if _holds_names(group) else show(store, group)


# ---- documents of before


async def bring_over(store: Store) -> None:
    """Have rules that were kept with names hold ids. Done again, it changes nothing."""
    for group in every(store, Firewall):
        if _holds_names(group):
            changed = with_ids(group, all_vms(store))
            await store.txn({group.key: group.meta.revision}, {group.key: changed.dump()})


def _holds_names(group: Firewall) -> bool:
    """Whether it was written before rules held ids: none of those had a status. Of one as it was
    read.
    """
    return "status" not in group.model_fields_set


def with_ids(group: Firewall, vms: Iterable[Vm]) -> Firewall:
    """A group whose rules name servers by name, as it is kept now. A name is that of the server
    which has it, else of the one in the trash that had it last, else of one that is gone. Pure.
    """
    present = [vm for vm in vms if not vm.meta.purge]
    deleted = sorted(
        (vm for vm in present if vm.meta.deleted), key=lambda vm: vm.meta.deleted or vm.meta.created
    )
    ids = {vm.name: vm.id for vm in (*deleted, *(vm for vm in present if not vm.meta.deleted))}
    gone = {name: new_id() for name in sorted(group.servers() - ids.keys())}
    rules = with_servers(group.spec.rules, lambda name: ids.get(name) or gone[name])
    return group.but(
        spec=group.spec.but(rules=rules),
        status=group.status.but(purged={key: name for name, key in gone.items()}),
    )
