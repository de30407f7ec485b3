"""Who asks, and how: every action gets a context and makes exactly one store transaction through
it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from virtuary.base.errors import Busy, Changed, Conflict, Invalid, NotFound, VirtuaryError
from virtuary.model.deeds import AnyDeed, Copy
from virtuary.model.host import Host
from virtuary.model.image import Image, ImageSource
from virtuary.model.meta import Document, Meta, check_name, utcnow
from virtuary.model.operation import LogLine, Operation, OperationSpec, OperationStatus
from virtuary.model.pool import Pool, PoolSpace
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.store import documents, marks, servers, volumes
from virtuary.store.api import Store
from virtuary.store.documents import every, open_operations
from virtuary.store.limits import check_wish


class Catalogue(Protocol):
    """What names of images mean before there is an image of that name; lent by the host."""

    def canonical(self, name: str) -> str: ...
    def find_source(self, name: str) -> ImageSource: ...


@dataclass(frozen=True)
class Context:
    store: Store
    actor: str
    host_id: str
    catalogue: Catalogue
    mark: tuple[str, str] | None = None
    """Key and body digest of an idempotent request; written in the same transaction as its effect.
    """
    disk_free: int | None = None
    """Bytes free now in the pool of this host, where the caller can look."""

    pool_space: Callable[[Pool], PoolSpace | None] = lambda pool: None
    """How much space there is in a pool of this host, where the caller can look. Raises PeerAway
    where it is not there.
    """
    routed: Callable[[], Sequence[str]] = tuple
    """Every prefix that this host routes, as CIDR, where the caller can look."""
    own_addresses: Callable[[], Collection[str]] = tuple
    """Every address this host has, where the caller can look."""
    leased: Callable[[str], Mapping[str, str]] = lambda network_id: {}
    """The MAC of who has a lease of an IPv4 address of a network, by address, where the caller can
    look.
    """

    held: Callable[[], Collection[tuple[str, str, int]]] = tuple
    """Ports of the host that are held because servers publish them (protocol, address, port), where
    the caller can look.
    """

    network_fault: Callable[[], str | None] = lambda: None
    """Why this host can have no networks that servers share, where the caller can look."""
    interface_fault: Callable[[str, bool], tuple[str, str] | None] = lambda interface, tagged: None
    """Why servers can't join this interface, or a VLAN of it, and what helps, where the caller can
    look.
    """

    async def commit(
        self,
        expect: Mapping[str, int],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        operation: Operation | None = None,
    ) -> int:
        """The action's one transaction: what it changes, its operation, and the mark that lets it
        be repeated harmlessly. Raises Invalid where a document would be too large.
        """
        check_wish(puts)
        wanted, written = dict(expect), dict(puts)
        if operation:
            written[operation.key] = operation.dump()
        if self.mark:
            key, digest = self.mark
            wanted[key] = 0
            mark = marks.Mark(digest, operation.id if operation else None)
            written[key] = mark.dump(utcnow())
        return await self.store.txn(wanted, written, deletes)


P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound=Document)
TRIES = 100
_turns: WeakKeyDictionary[Store, asyncio.Lock] = WeakKeyDictionary()


def decides(action: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """An action that looks, decides and writes, and waits for nothing else: done again when what it
    looked at changed before it wrote.

    Its first argument is the context. One at a time on each store: at once, all but one would have
    decided by what is not so any more.
    """

    @functools.wraps(action)
    async def again(*args: P.args, **kwargs: P.kwargs) -> T:
        async with _turns.setdefault(cast(Context, args[0]).store, asyncio.Lock()):
            for _ in range(TRIES):
                try:
                    return await action(*args, **kwargs)
                except Changed as error:
                    if marks.is_mark(str(error.details.get("key"))):
                        raise  # the same request, made twice at once
        raise Conflict("too much changes at once", "repeat in a moment")

    return again


def turn(context: Context) -> tuple[dict[str, int], dict[str, bytes]]:
    """What the transaction of a promise expects and writes, so that of two that counted the same
    room one counts again.
    """
    key = f"turn/{context.host_id}"
    record = context.store.get(key)
    return {key: record.revision if record else 0}, {key: b"taken"}


def new_operation(
    context: Context,
    deed: AnyDeed,
    target: Vm | Image | Template | Volume,
    *,
    notes: Sequence[str] = (),
    why: str = "",
) -> Operation:
    """An operation that is to begin. `notes` are told at once to whoever follows it; `why` says
    what is known from the start of why it will take long.
    """
    spec = OperationSpec(deed=deed, target=target.key, target_name=target.name, actor=context.actor)
    told = (*notes, *([why] if why else []))
    log = tuple(LogLine(text=text) for text in told)
    return Operation(meta=Meta(name=deed.kind), spec=spec, status=OperationStatus(log=log, why=why))


def find_vm(store: Store, name: str, suggest: bool = True) -> Vm:
    """The server of this name, or id; raises NotFound with what was perhaps meant, which nobody
    suggests who is to delete it.
    """
    found = documents.find(store, Vm, name)
    if found is None:
        hint = meant(store, Vm, name) if suggest else None
        raise NotFound(
            f"there is no server named {name[:80]!r}", hint or "virtuary list shows them"
        )
    return found


def trashed(store: Store, kind: type[D], name: str, noun: str, hint: str) -> D:
    """What of a kind has this name or id and lies in the trash. Raises NotFound;
    Conflict where several have the name, with their ids."""
    found = [
        item
        for item in every(store, kind)
        if item.meta.deleted and not item.meta.purge and name.lower() in (item.name, item.id)
    ]
    if not found:
        raise NotFound(f"no {noun} named {name[:80]!r} lies in the trash", hint)
    if len(found) > 1:
        found.sort(key=lambda item: item.meta.deleted or utcnow())
        words = ", ".join(
            f"{item.id} (deleted {item.meta.deleted:%Y-%m-%d %H:%M:%S} UTC)" for item in found
        )
        raise Conflict(
            f"{len(found)} {noun}s named {name} lie in the trash: {words}",
            "name the one that is meant by its id",
        )
    return found[0]


def find_image(store: Store, name: str, suggest: bool = True) -> Image:
    """The image of this name or id; raises NotFound."""
    found = documents.find(store, Image, name)
    if found is None:
        hint = meant(store, Image, name) if suggest else None
        raise NotFound(
            f"there is no image named {name[:80]!r}", hint or "virtuary image list shows them"
        )
    return found


def find_operation(store: Store, identity: str) -> Operation:
    """The operation with this id, or the only one whose id begins so; raises NotFound."""
    found = documents.begun(store, Operation, identity)
    if len(found) != 1:
        raise NotFound(
            f"there is no operation {identity[:80]!r}", "virtuary operation list shows them"
        )
    return found[0]


def all_vms(store: Store) -> list[Vm]:
    """Every server, those in the trash too."""
    return every(store, Vm)


def own_vms(context: Context) -> list[Vm]:
    """Every server of this host, those in the trash too: what it has is promised to them alone."""
    return servers.of_host(context.store, context.host_id)


def own_volumes(context: Context) -> list[Volume]:
    """Every disk of this host that is a document of its own, those in the trash too."""
    return volumes.of_host(context.store, context.host_id)


def find_host(store: Store, host_id: str) -> Host:
    host = documents.get(store, Host, host_id)
    if host is None:
        raise NotFound("this host has not described itself yet")
    return host


def meant(store: Store, kind: type[Document], name: str) -> str | None:
    """What was perhaps meant by a name that nobody has, as a question."""
    import difflib

    close = difflib.get_close_matches(name.lower(), documents.names(store, kind), 1)
    return f"did you mean {close[0]}?" if close else None


def wanted_name(text: str) -> str:
    """The name that a user asks for, as it is kept. Raises Invalid."""
    try:
        return check_name(text)
    except ValueError as error:
        raise Invalid(str(error)) from None


def active(store: Store, target: str) -> list[Operation]:
    """Operations on `target` that have not ended."""
    return [item for item in open_operations(store) if item.spec.target == target]


def check_free(store: Store, target: Vm | Image | Volume) -> None:
    """Raise Busy, naming it, when an operation is under way on `target`."""
    for operation in active(store, target.key):
        raise Busy(
            f"{target.name} is busy: {operation.spec.deed.kind} is under way",
            f"virtuary operation wait {operation.id[:8]}, or cancel it",
            operation=operation.id,
        )


def check_not_read(store: Store, source: Vm) -> None:
    """Raise Busy, naming it, while a full copy reads the disk of `source`."""
    for operation in open_operations(store):
        deed = operation.spec.deed
        if isinstance(deed, Copy) and deed.source == source.id and deed.mode == "full":
            raise Busy(
                f"{source.name} is being copied to {operation.spec.target_name}",
                f"virtuary operation wait {operation.id[:8]}, or cancel it",
                operation=operation.id,
            )


def raise_all(blockers: Sequence[VirtuaryError]) -> None:
    """Tell all blockers at once: the first one's kind, every one's sentence."""
    if not blockers:
        return
    first = blockers[0]
    if len(blockers) == 1:
        raise first
    hints = [blocker.hint for blocker in blockers if blocker.hint]
    details = {**first.details, "blockers": [blocker.problem() for blocker in blockers]}
    raise type(first)(
        "; ".join(blocker.sentence for blocker in blockers), hints[0] if hints else None, **details
    )
