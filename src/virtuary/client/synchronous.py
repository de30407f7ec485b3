"""The synchronous client: typed, over the socket of the daemon, which is started if need be.

What is asked and what becomes of the answer says `calls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from virtuary.client import calls
from virtuary.client.exchange import Exchange, Listing, T
from virtuary.client.results import Outcome
from virtuary.client.start import connect
from virtuary.client.wire import Wire
from virtuary.model.advice import Advice
from virtuary.model.consolidation import ConsolidationPlan, HostShape, ServerLoad
from virtuary.model.firewall import Firewall, Rule
from virtuary.model.image import Image, ImageSource
from virtuary.model.network import Network
from virtuary.model.operation import Operation
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.placement import HostRoom, PlacementPlan, ServerNeed
from virtuary.model.pool import DEFAULT_POOL, Pool
from virtuary.model.template import Template
from virtuary.model.usage import Overview, Point, Resolution, Usage
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume


class Client:
    """Every method raises the kinds of `virtuary.base.errors`. Not for use by two threads at
    once.
    """

    def __init__(self, socket: str | None = None) -> None:
        """Connect to the daemon at `socket`; to this user's own, started if need be, when none is
        named.
        """
        self._wire = Wire(socket) if socket else connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # ---- servers

    def launch(
        self, image: str, name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Create a server, start it, and wait until a shell is possible. `fields` are those of
        `model.vm.VmWish`.
        """
        return self._do(calls.launch(image, name, timeout, fields))

    def create(self, image: str, name: str | None = None, **fields: Any) -> Vm:
        """Create a server without starting it; returns once its disk is there."""
        return self.launch(image, name, power="stopped", **fields)

    def vm(self, name: str) -> Vm:
        return self._do(calls.vm(name))

    def vms(self, *, trash: bool = False) -> Iterator[Vm]:
        """All servers, page by page."""
        return self._each(calls.vms(trash))

    def change(self, name: str, *, revision: int | None = None, **fields: Any) -> Vm:
        """Change fields (those of `model.vm.VmChange`); only if the server is still at `revision`,
        when given. Waits until the guest of one that runs has followed.
        """
        return self._do(calls.change(name, revision, fields))

    def start(self, name: str, *, wait: str = "ready", timeout: float | None = None) -> Vm:
        return self._do(calls.start(name, wait, timeout))

    def stop(
        self,
        name: str,
        *,
        grace: float = STOP_TIMEOUT,
        force: bool = False,
        timeout: float | None = None,
    ) -> Vm:
        """Shut down; after `grace` seconds the plug is pulled."""
        return self._do(calls.stop(name, grace, force, timeout))

    def restart(
        self,
        name: str,
        *,
        grace: float = STOP_TIMEOUT,
        force: bool = False,
        timeout: float | None = None,
    ) -> Vm:
        return self._do(calls.restart(name, grace, force, timeout))

    def pause(self, name: str) -> Vm:
        return self._do(calls.pause(name))

    def resume(self, name: str) -> Vm:
        return self._do(calls.resume(name))

    def copy(
        self, name: str, new_name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Copy a server and wait for the copy. `fields` are those of `model.vm.VmCopy`: mode is
        overlay, full or live.
        """
        return self._do(calls.copy(name, new_name, timeout, fields))

    def trim(self, name: str) -> int:
        """Have the guest tell which blocks it does not use; bytes the pool got back."""
        return self._do(calls.trim(name))

    def delete(self, name: str, *, now: bool = False, force: bool = False) -> None:
        """Move to the trash, or with `now` remove for good."""
        self._do(calls.delete(name, now, force))

    def undelete(self, name: str, new_name: str | None = None) -> Vm:
        return self._do(calls.undelete(name, new_name))

    def way_in(self, name: str) -> dict[str, Any]:
        """How to log in by SSH: host, port, user, key, known_hosts, known (whether its host key is
        there), alias (of that), ready.
        """
        return self._do(calls.way_in(name))

    def execute(
        self, name: str, command: list[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> Outcome:
        """Run a command in the guest through its agent."""
        return self._do(calls.execute(name, command, stdin, timeout))

    # ---- disks

    def disks(self, *, trash: bool = False) -> Iterator[Volume]:
        """Disks besides servers' root disks; `trash`: the deleted ones instead."""
        return self._each(calls.disks(trash))

    def disk(self, name: str) -> Volume:
        return self._do(calls.disk(name))

    def create_disk(
        self, name: str, size: int, *, pool: str = DEFAULT_POOL, **labels: str
    ) -> Volume:
        """Have an empty disk of `size` bytes made and wait for it."""
        return self._do(calls.create_disk(name, size, pool, labels))

    def resize_disk(self, name: str, size: int) -> Volume:
        """Grow a disk to `size` bytes, also while a server has it."""
        return self._do(calls.resize_disk(name, size))

    def attach_disk(self, name: str, server: str, **wish: Any) -> Volume:
        """Give a server a disk, `wish` being the other fields of AttachWish; wait until its machine
        has it. Its guest finds it a moment later.
        """
        return self._do(calls.attach_disk(name, server, wish))

    def detach_disk(self, name: str, *, force: bool = False) -> Volume:
        """Take a disk from its server, and wait until its guest let go of it. `force`: also one
        that its guest uses.
        """
        return self._do(calls.detach_disk(name, force))

    def delete_disk(self, name: str, *, now: bool = False) -> None:
        """Move a disk to the trash, or with `now` remove it for good."""
        self._do(calls.delete_disk(name, now))

    def undelete_disk(self, name: str, new_name: str | None = None) -> Volume:
        return self._do(calls.undelete_disk(name, new_name))

    def pools(self) -> Iterator[Pool]:
        """Pools besides the default one."""
        return self._each(calls.pools())

    def create_pool(self, name: str, path: str, **wish: Any) -> Pool:
        """Make an empty directory of the host a pool, `wish` being the other fields of PoolWish."""
        return self._do(calls.create_pool(name, path, wish))

    def delete_pool(self, name: str) -> None:
        """Forget a pool that no disk lies in; its directory stays."""
        self._do(calls.delete_pool(name))

    # ---- networks

    def networks(self) -> Iterator[Network]:
        return self._each(calls.networks())

    def create_network(self, name: str, **wish: Any) -> Network:
        """Have a network made, `wish` being the other fields of NetworkWish; its status tells when
        it is ready, a moment later.
        """
        return self._do(calls.create_network(name, wish))

    def delete_network(self, name: str) -> None:
        """Have a network removed that no server is on; it is gone a moment later."""
        self._do(calls.delete_network(name))

    def firewalls(self) -> Iterator[Firewall]:
        return self._each(calls.firewalls())

    def create_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Make a firewall group; NICs are attached to it by their `groups`."""
        return self._do(calls.create_firewall(name, rules))

    def change_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Give a firewall group other rules, which hold for new connections at once."""
        return self._do(calls.change_firewall(name, rules))

    def delete_firewall(self, name: str) -> None:
        self._do(calls.delete_firewall(name))

    # ---- images and operations

    def images(self) -> Iterator[Image]:
        return self._each(calls.images())

    def make_image(self, name: str, source: ImageSource, *, timeout: float | None = None) -> Image:
        """Build, pull or fetch an image and wait for it."""
        return self._do(calls.make_image(name, source, timeout))

    def delete_image(self, name: str) -> None:
        self._do(calls.delete_image(name))

    def warm_image(
        self, name: str, memory: int | None = None, *, timeout: float | None = None
    ) -> Template:
        """Have a warm template made of an image, of `memory` bytes or its default, and wait for
        it.
        """
        return self._do(calls.warm_image(name, memory, timeout))

    def cool_image(self, name: str) -> None:
        """Remove an image's warm templates."""
        self._do(calls.cool_image(name))

    def templates(self) -> Iterator[Template]:
        return self._each(calls.templates())

    def operation(self, identity: str) -> Operation:
        return self._do(calls.operation(identity))

    def wait(self, identity: str, timeout: float | None = None) -> Operation:
        """Wait for the end of an operation; raises what it failed with, GuestSilent after `timeout`
        seconds.
        """
        return self._do(calls.wait(identity, timeout))

    def cancel(self, identity: str) -> Operation:
        return self._do(calls.cancel(identity))

    def events(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they happen, for ever."""
        for event in self._wire.events(since=since):
            if event is not None:
                yield event

    # ---- what is used

    def usage(self, name: str) -> Usage:
        """What a server uses, as last seen."""
        return self._do(calls.usage(name))

    def overview(self) -> Overview:
        """What the host and each of its servers use."""
        return self._do(calls.overview())

    def history(
        self, name: str | None, resolution: Resolution = "minute", since: int = 0
    ) -> list[Point]:
        """What a server used, or the host (None), oldest first, from the second `since` (after
        1970) on.
        """
        return self._do(calls.history(name, resolution, since))

    def advice(self, name: str, *, enough: float = 86400) -> Advice:
        """Whether a server is too big or too small; `enough`: seconds it must have been watched to
        be called too big.
        """
        return self._do(calls.advice(name, enough))

    def host(self) -> dict[str, Any]:
        return self._do(calls.host())

    def plan_consolidation(
        self, servers: Iterable[ServerLoad], host: HostShape, **fields: Any
    ) -> ConsolidationPlan:
        """Which servers go onto how many hosts of this shape. `fields` are those of
        `model.consolidation.ConsolidationWish`.
        """
        return self._do(calls.plan_consolidation(servers, host, fields))

    def plan_placement(
        self, servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]
    ) -> PlacementPlan:
        """Where servers could go on hosts that are partly full, and why not where they can't."""
        return self._do(calls.plan_placement(servers, hosts))

    def _do(self, exchange: Exchange[T]) -> T:
        """Carry requests until the exchange has its result."""
        answer = None
        while True:
            try:
                request = exchange.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._wire.call(*request)

    def _each(self, listing: Listing[T]) -> Iterator[T]:
        """The items of a list; a page is asked for when the one before is used up."""
        cursor = ""
        while True:
            page = self._wire.call(*listing.page(cursor))
            yield from map(listing.read, page["items"])
            cursor = page["next"] or ""
            if not cursor:
                return
