"""The asynchronous client: the same calls over httpx2.

What is asked and what becomes of the answer says `calls`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import httpx2

from virtuary.base.errors import PeerAway, from_problem
from virtuary.client import calls
from virtuary.client.exchange import Exchange, Request, T
from virtuary.client.results import Outcome
from virtuary.client.start import connect
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


class AsyncClient:
    """Every method raises the kinds of `virtuary.base.errors`. Use it as a context manager."""

    def __init__(self, socket: str | None = None) -> None:
        path = socket or connect().path
        transport = httpx2.AsyncHTTPTransport(uds=path)
        self._http = httpx2.AsyncClient(
            transport=transport, base_url="http://virtuary", timeout=330
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    # ---- servers

    async def launch(
        self, image: str, name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Create a server, start it, and wait until a shell is possible. `fields` are those of
        `model.vm.VmWish`.
        """
        return await self._do(calls.launch(image, name, timeout, fields))

    async def create(self, image: str, name: str | None = None, **fields: Any) -> Vm:
        """Create a server without starting it; returns once its disk is there."""
        return await self.launch(image, name, power="stopped", **fields)

    async def vm(self, name: str) -> Vm:
        return await self._do(calls.vm(name))

    async def vms(self, *, trash: bool = False) -> list[Vm]:
        return await self._do(calls.vms(trash).whole())

    async def change(self, name: str, *, revision: int | None = None, **fields: Any) -> Vm:
        """Change fields (those of `model.vm.VmChange`); only if the server is still at `revision`,
        when given. Waits until the guest of one that runs has followed.
        """
        return await self._do(calls.change(name, revision, fields))

    async def start(self, name: str, *, wait: str = "ready", timeout: float | None = None) -> Vm:
        return await self._do(calls.start(name, wait, timeout))

    async def stop(
        self,
        name: str,
        *,
        grace: float = STOP_TIMEOUT,
        force: bool = False,
        timeout: float | None = None,
    ) -> Vm:
        """Shut down; after `grace` seconds the plug is pulled."""
        return await self._do(calls.stop(name, grace, force, timeout))

    async def restart(
        self,
        name: str,
        *,
        grace: float = STOP_TIMEOUT,
        force: bool = False,
        timeout: float | None = None,
    ) -> Vm:
        return await self._do(calls.restart(name, grace, force, timeout))

    async def pause(self, name: str) -> Vm:
        return await self._do(calls.pause(name))

    async def resume(self, name: str) -> Vm:
        return await self._do(calls.resume(name))

    async def copy(
        self, name: str, new_name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Copy a server and wait for the copy. `fields` are those of `model.vm.VmCopy`: mode is
        overlay, full or live.
        """
        return await self._do(calls.copy(name, new_name, timeout, fields))

    async def trim(self, name: str) -> int:
        """Have the guest tell which blocks it does not use; bytes the pool got back."""
        return await self._do(calls.trim(name))

    async def delete(self, name: str, *, now: bool = False, force: bool = False) -> None:
        """Move to the trash, or with `now` remove for good."""
        await self._do(calls.delete(name, now, force))

    async def undelete(self, name: str, new_name: str | None = None) -> Vm:
        return await self._do(calls.undelete(name, new_name))

    async def way_in(self, name: str) -> dict[str, Any]:
        """How to log in by SSH: host, port, user, key, known_hosts, known (whether its host key is
        there), alias (of that), ready.
        """
        return await self._do(calls.way_in(name))

    async def execute(
        self, name: str, command: list[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> Outcome:
        """Run a command in the guest through its agent."""
        return await self._do(calls.execute(name, command, stdin, timeout))

    # ---- disks

    async def disks(self, *, trash: bool = False) -> list[Volume]:
        """Disks besides servers' root disks; `trash`: the deleted ones instead."""
        return await self._do(calls.disks(trash).whole())

    async def disk(self, name: str) -> Volume:
        return await self._do(calls.disk(name))

    async def create_disk(
        self, name: str, size: int, *, pool: str = DEFAULT_POOL, **labels: str
    ) -> Volume:
        """Have an empty disk of `size` bytes made and wait for it."""
        return await self._do(calls.create_disk(name, size, pool, labels))

    async def resize_disk(self, name: str, size: int) -> Volume:
        """Grow a disk to `size` bytes, also while a server has it."""
        return await self._do(calls.resize_disk(name, size))

    async def attach_disk(self, name: str, server: str, **wish: Any) -> Volume:
        """Give a server a disk, `wish` being the other fields of AttachWish; wait until its machine
        has it. Its guest finds it a moment later.
        """
        return await self._do(calls.attach_disk(name, server, wish))

    async def detach_disk(self, name: str, *, force: bool = False) -> Volume:
        """Take a disk from its server, and wait until its guest let go of it. `force`: also one
        that its guest uses.
        """
        return await self._do(calls.detach_disk(name, force))

    async def delete_disk(self, name: str, *, now: bool = False) -> None:
        """Move a disk to the trash, or with `now` remove it for good."""
        await self._do(calls.delete_disk(name, now))

    async def undelete_disk(self, name: str, new_name: str | None = None) -> Volume:
        return await self._do(calls.undelete_disk(name, new_name))

    async def pools(self) -> list[Pool]:
        """Pools besides the default one."""
        return await self._do(calls.pools().whole())

    async def create_pool(self, name: str, path: str, **wish: Any) -> Pool:
        """Make an empty directory of the host a pool, `wish` being the other fields of PoolWish."""
        return await self._do(calls.create_pool(name, path, wish))

    async def delete_pool(self, name: str) -> None:
        """Forget a pool that no disk lies in; its directory stays."""
        await self._do(calls.delete_pool(name))

    # ---- networks

    async def networks(self) -> list[Network]:
        return await self._do(calls.networks().whole())

    async def create_network(self, name: str, **wish: Any) -> Network:
        """Have a network made, `wish` being the other fields of NetworkWish; its status tells when
        it is ready, a moment later.
        """
        return await self._do(calls.create_network(name, wish))

    async def delete_network(self, name: str) -> None:
        """Have a network removed that no server is on; it is gone a moment later."""
        await self._do(calls.delete_network(name))

    async def firewalls(self) -> list[Firewall]:
        return await self._do(calls.firewalls().whole())

    async def create_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Make a firewall group; NICs are attached to it by their `groups`."""
        return await self._do(calls.create_firewall(name, rules))

    async def change_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Give a firewall group other rules, which hold for new connections at once."""
        return await self._do(calls.change_firewall(name, rules))

    async def delete_firewall(self, name: str) -> None:
        await self._do(calls.delete_firewall(name))

    # ---- images and operations

    async def images(self) -> list[Image]:
        return await self._do(calls.images().whole())

    async def make_image(
        self, name: str, source: ImageSource, *, timeout: float | None = None
    ) -> Image:
        """Build, pull or fetch an image and wait for it."""
        return await self._do(calls.make_image(name, source, timeout))

    async def delete_image(self, name: str) -> None:
        await self._do(calls.delete_image(name))

    async def warm_image(
        self, name: str, memory: int | None = None, *, timeout: float | None = None
    ) -> Template:
        """Have a warm template made of an image, of `memory` bytes or its default, and wait for
        it.
        """
        return await self._do(calls.warm_image(name, memory, timeout))

    async def cool_image(self, name: str) -> None:
        """Remove an image's warm templates."""
        await self._do(calls.cool_image(name))

    async def templates(self) -> list[Template]:
        return await self._do(calls.templates().whole())

    async def operation(self, identity: str) -> Operation:
        return await self._do(calls.operation(identity))

    async def wait(self, identity: str, timeout: float | None = None) -> Operation:
        """Wait for the end of an operation; raises what it failed with, GuestSilent after `timeout`
        seconds.
        """
        return await self._do(calls.wait(identity, timeout))

    async def cancel(self, identity: str) -> Operation:
        return await self._do(calls.cancel(identity))

    async def events(self, since: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Changes as they happen, for ever."""
        params = {} if since is None else {"since": since}
        async with self._http.stream("GET", "/v1/events", params=params) as answer:
            if answer.status_code >= 400:
                raise from_problem(json.loads(await answer.aread()))
            event: dict[str, Any] = {}
            async for line in answer.aiter_lines():
                field, _, value = line.partition(": ")
                if not line and "data" in event:
                    yield event
                    event = {}
                elif field in ("id", "event", "data"):
                    event[field] = json.loads(value) if field in ("id", "data") else value

    # ---- what is used

    async def usage(self, name: str) -> Usage:
        """What a server uses, as last seen."""
        return await self._do(calls.usage(name))

    async def overview(self) -> Overview:
        """What the host and each of its servers use."""
        return await self._do(calls.overview())

    async def history(
        self, name: str | None, resolution: Resolution = "minute", since: int = 0
    ) -> list[Point]:
        """What a server used, or the host (None), oldest first, from the second `since` (after
        1970) on.
        """
        return await self._do(calls.history(name, resolution, since))

    async def advice(self, name: str, *, enough: float = 86400) -> Advice:
        """Whether a server is too big or too small; `enough`: seconds it must have been watched to
        be called too big.
        """
        return await self._do(calls.advice(name, enough))

    async def host(self) -> dict[str, Any]:
        return await self._do(calls.host())

    async def plan_consolidation(
        self, servers: Iterable[ServerLoad], host: HostShape, **fields: Any
    ) -> ConsolidationPlan:
        """Which servers go onto how many hosts of this shape. `fields` are those of
        `model.consolidation.ConsolidationWish`.
        """
        return await self._do(calls.plan_consolidation(servers, host, fields))

    async def plan_placement(
        self, servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]
    ) -> PlacementPlan:
        """Where servers could go on hosts that are partly full, and why not where they can't."""
        return await self._do(calls.plan_placement(servers, hosts))

    async def _do(self, exchange: Exchange[T]) -> T:
        """Carry requests until the exchange has its result."""
        answer = None
        while True:
            try:
                request = exchange.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._carry(request)

    async def _carry(self, request: Request) -> Any:
        """The decoded answer. Raises the error the daemon answered, or PeerAway."""
        method, target, body, query, headers = request
        try:
            answer = await self._http.request(
                method, target, json=body, params=query, headers=headers
            )
        except httpx2.HTTPError as error:
            raise PeerAway(f"the daemon does not answer: {error}") from error
        if answer.status_code >= 400:
            raise from_problem(answer.json())
        return answer.json() if answer.content else None
