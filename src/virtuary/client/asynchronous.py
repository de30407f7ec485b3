"""The asynchronous client: the same calls over httpx2."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import httpx2

from virtuary.base.errors import GuestSilent, PeerAway, from_problem
from virtuary.client.results import (
    Outcome,
    consolidation_wish,
    exec_body,
    history_path,
    idempotency,
    judged,
    outcome,
    placement_wish,
    points,
    vm_change,
    vm_copy,
    vm_wish,
)
from virtuary.client.start import connect
from virtuary.client.wire import path_part
from virtuary.model.advice import Advice
from virtuary.model.consolidation import ConsolidationPlan, HostShape, ServerLoad
from virtuary.model.firewall import Firewall, Rule
from virtuary.model.image import Image, ImageSource
from virtuary.model.network import Network, NetworkWish
from virtuary.model.operation import Operation
from virtuary.model.placement import HostRoom, PlacementPlan, ServerNeed
from virtuary.model.template import Template
from virtuary.model.usage import Overview, Point, Resolution, Usage
from virtuary.model.vm import Vm


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

    async def _call(self, method: str, target: str, body: Any = None, **options: Any) -> Any:
        try:
            answer = await self._http.request(method, target, json=body, **options)
        except httpx2.HTTPError as error:
            raise PeerAway(f"the daemon does not answer: {error}") from error
        if answer.status_code >= 400:
            raise from_problem(answer.json())
        return answer.json() if answer.content else None

    # ---- servers

    async def launch(
        self, image: str, name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Create a server, start it, and wait until a shell is possible. `fields` are those of
        `model.vm.VmWish`.
        """
        answer = await self._call(
            "POST", "/v1/vms", vm_wish(image, name, fields), headers=idempotency()
        )
        await self.wait(answer["operation"]["meta"]["id"], timeout)
        return await self.vm(answer["vm"]["meta"]["name"])

    async def create(self, image: str, name: str | None = None, **fields: Any) -> Vm:
        """Create a server without starting it; returns once its disk is there."""
        return await self.launch(image, name, power="stopped", **fields)

    async def vm(self, name: str) -> Vm:
        return Vm.model_validate(await self._call("GET", f"/v1/vms/{path_part(name)}"))

    async def vms(self, *, trash: bool = False) -> list[Vm]:
        return [
            Vm.model_validate(item)
            for item in await self._pages("/v1/vms", trash=str(trash).lower())
        ]

    async def change(self, name: str, *, revision: int | None = None, **fields: Any) -> Vm:
        """Change fields (those of `model.vm.VmChange`); only if the server is still at `revision`,
        when given. Waits until the guest of one that runs has followed.
        """
        headers = {"If-Match": f'"{revision}"'} if revision is not None else {}
        answer = await self._call(
            "PATCH", f"/v1/vms/{path_part(name)}", vm_change(fields), headers=headers
        )
        if "operation" not in answer:
            return Vm.model_validate(answer)
        await self.wait(answer["operation"]["meta"]["id"])
        return await self.vm(answer["vm"]["meta"]["id"])

    async def start(self, name: str, *, wait: str = "ready", timeout: float | None = None) -> Vm:
        return await self._deed(name, "start", {"wait": wait}, timeout)

    async def stop(
        self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None
    ) -> Vm:
        """Shut down; after `grace` seconds the plug is pulled."""
        return await self._deed(name, "stop", {"timeout": grace, "force": force}, timeout)

    async def restart(
        self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None
    ) -> Vm:
        return await self._deed(name, "restart", {"timeout": grace, "force": force}, timeout)

    async def pause(self, name: str) -> Vm:
        return await self._deed(name, "pause", {}, None)

    async def resume(self, name: str) -> Vm:
        return await self._deed(name, "resume", {}, None)

    async def copy(
        self, name: str, new_name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Copy a server and wait for the copy. `fields` are those of `model.vm.VmCopy`: mode is
        overlay, full or live.
        """
        body = vm_copy(new_name, fields)
        answer = await self._call(
            "POST", f"/v1/vms/{path_part(name)}/actions/copy", body, headers=idempotency()
        )
        await self.wait(answer["operation"]["meta"]["id"], timeout)
        return await self.vm(answer["vm"]["meta"]["name"])

    async def trim(self, name: str) -> int:
        """Have the guest tell which blocks it does not use; bytes the pool got back."""
        return int(
            (await self._call("POST", f"/v1/vms/{path_part(name)}/actions/trim", {}))["freed"]
        )

    async def delete(self, name: str, *, now: bool = False, force: bool = False) -> None:
        """Move to the trash, or with `now` remove for good."""
        query = {"now": str(now).lower(), "force": str(force).lower()}
        answer = await self._call(
            "DELETE", f"/v1/vms/{path_part(name)}", params=query, headers=idempotency()
        )
        await self.wait(answer["operation"]["meta"]["id"])

    async def undelete(self, name: str, new_name: str | None = None) -> Vm:
        return Vm.model_validate(
            await self._call(
                "POST", f"/v1/vms/{path_part(name)}/actions/undelete", {"name": new_name}
            )
        )

    async def way_in(self, name: str) -> dict[str, Any]:
        """How to log in by SSH: host, port, user, key, known_hosts, known (whether its host key is
        there), alias (of that), ready.
        """
        found: dict[str, Any] = await self._call("GET", f"/v1/vms/{path_part(name)}/ssh")
        return found

    async def execute(
        self, name: str, command: list[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> Outcome:
        """Run a command in the guest through its agent."""
        return outcome(
            await self._call(
                "POST", f"/v1/vms/{path_part(name)}/exec", exec_body(command, stdin, timeout)
            )
        )

    # ---- networks

    async def networks(self) -> list[Network]:
        return [Network.model_validate(item) for item in await self._pages("/v1/networks")]

    async def create_network(self, name: str, **wish: Any) -> Network:
        """Have a network made, `wish` being the other fields of NetworkWish; its status tells when
        it is ready, a moment later.
        """
        body = NetworkWish(name=name, **wish).model_dump(mode="json", exclude_defaults=True)
        return Network.model_validate(
            await self._call("POST", "/v1/networks", body, headers=idempotency())
        )

    async def delete_network(self, name: str) -> None:
        """Have a network removed that no server is on; it is gone a moment later."""
        await self._call("DELETE", f"/v1/networks/{path_part(name)}", headers=idempotency())

    async def firewalls(self) -> list[Firewall]:
        return [Firewall.model_validate(item) for item in await self._pages("/v1/firewalls")]

    async def create_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Make a firewall group; NICs are attached to it by their `groups`."""
        body = {"name": name, "rules": [rule.model_dump(mode="json") for rule in rules]}
        return Firewall.model_validate(
            await self._call("POST", "/v1/firewalls", body, headers=idempotency())
        )

    async def change_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Give a firewall group other rules, which hold for new connections at once."""
        body = {"rules": [rule.model_dump(mode="json") for rule in rules]}
        return Firewall.model_validate(
            await self._call(
                "PATCH", f"/v1/firewalls/{path_part(name)}", body, headers=idempotency()
            )
        )

    async def delete_firewall(self, name: str) -> None:
        await self._call("DELETE", f"/v1/firewalls/{path_part(name)}", headers=idempotency())

    # ---- images and operations

    async def images(self) -> list[Image]:
        return [Image.model_validate(item) for item in await self._pages("/v1/images")]

    async def make_image(
        self, name: str, source: ImageSource, *, timeout: float | None = None
    ) -> Image:
        """Build, pull or fetch an image and wait for it."""
        body = {
            "name": name,
            "source": source.model_dump(mode="json", exclude_defaults=True) | {"kind": source.kind},
        }
        answer = await self._call("POST", "/v1/images", body, headers=idempotency())
        await self.wait(answer["operation"]["meta"]["id"], timeout)
        return Image.model_validate(
            await self._call("GET", f"/v1/images/{path_part(answer['image']['meta']['name'])}")
        )

    async def delete_image(self, name: str) -> None:
        answer = await self._call("DELETE", f"/v1/images/{path_part(name)}", headers=idempotency())
        await self.wait(answer["operation"]["meta"]["id"])

    async def warm_image(
        self, name: str, memory: int | None = None, *, timeout: float | None = None
    ) -> Template:
        """Have a warm template made of an image, of `memory` bytes or its default, and wait for
        it.
        """
        body = {} if memory is None else {"memory": memory}
        answer = await self._call(
            "POST", f"/v1/images/{path_part(name)}/actions/warm", body, headers=idempotency()
        )
        await self.wait(answer["operation"]["meta"]["id"], timeout)
        return next(
            template
            for template in await self.templates()
            if template.id == answer["template"]["meta"]["id"]
        )

    async def cool_image(self, name: str) -> None:
        """Remove an image's warm templates."""
        await self._call("POST", f"/v1/images/{path_part(name)}/actions/cool", {})

    async def templates(self) -> list[Template]:
        return [Template.model_validate(item) for item in await self._pages("/v1/templates")]

    async def operation(self, identity: str) -> Operation:
        return Operation.model_validate(await self._call("GET", f"/v1/operations/{identity}"))

    async def wait(self, identity: str, timeout: float | None = None) -> Operation:
        """Wait for the end of an operation; raises what it failed with, GuestSilent after `timeout`
        seconds.
        """
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            left = 60.0 if until is None else max(0.0, min(60.0, until - loop.time()))
            found = await self._call(
                "GET", f"/v1/operations/{identity}/wait", params={"timeout": round(left, 3)}
            )
            operation = Operation.model_validate(found)
            if operation.ended:
                return judged(operation)
            if until is not None and loop.time() >= until:
                raise GuestSilent(
                    f"{operation.spec.deed.kind} {operation.spec.target_name} has not ended after "
                    f"{timeout} s"
                )

    async def cancel(self, identity: str) -> Operation:
        return Operation.model_validate(
            await self._call("POST", f"/v1/operations/{identity}/actions/cancel", {})
        )

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
        return Usage.model_validate(await self._call("GET", f"/v1/vms/{path_part(name)}/usage"))

    async def overview(self) -> Overview:
        """What the host and each of its servers use."""
        return Overview.model_validate(await self._call("GET", "/v1/usage"))

    async def history(
        self, name: str | None, resolution: Resolution = "minute", since: int = 0
    ) -> list[Point]:
        """What a server used, or the host (None), oldest first, from the second `since` (after
        1970) on.
        """
        return points(
            await self._call(
                "GET", history_path(name), params={"resolution": resolution, "since": since}
            )
        )

    async def advice(self, name: str, *, enough: float = 86400) -> Advice:
        """Whether a server is too big or too small; `enough`: seconds it must have been watched to
        be called too big.
        """
        return Advice.model_validate(
            await self._call("GET", f"/v1/vms/{path_part(name)}/advice", params={"enough": enough})
        )

    async def host(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("GET", "/v1/host")
        return found

    async def plan_consolidation(
        self, servers: Iterable[ServerLoad], host: HostShape, **fields: Any
    ) -> ConsolidationPlan:
        """Which servers go onto how many hosts of this shape. `fields` are those of
        `model.consolidation.ConsolidationWish`.
        """
        body = consolidation_wish(servers, host, fields)
        return ConsolidationPlan.model_validate(
            await self._call("POST", "/v1/plans/consolidation", body)
        )

    async def plan_placement(
        self, servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]
    ) -> PlacementPlan:
        """Where servers could go on hosts that are partly full, and why not where they can't."""
        return PlacementPlan.model_validate(
            await self._call("POST", "/v1/plans/placement", placement_wish(servers, hosts))
        )

    async def _deed(self, name: str, deed: str, body: dict[str, Any], timeout: float | None) -> Vm:
        answer = await self._call(
            "POST", f"/v1/vms/{path_part(name)}/actions/{deed}", body, headers=idempotency()
        )
        await self.wait(answer["operation"]["meta"]["id"], timeout)
        return await self.vm(name)

    async def _pages(self, target: str, **query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self._call("GET", target, params={**query, "limit": 100, "cursor": cursor})
            items += page["items"]
            cursor = page["next"] or ""
            if not cursor:
                return items
