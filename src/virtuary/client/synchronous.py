"""The synchronous client: typed, over the daemon's socket, which is started if need be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

from virtuary.base.errors import GuestSilent
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
from virtuary.client.wire import Wire, path_part
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
        answer = self._wire.call(
            "POST", "/v1/vms", vm_wish(image, name, fields), headers=idempotency()
        )
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return self.vm(answer["vm"]["meta"]["name"])

    def create(self, image: str, name: str | None = None, **fields: Any) -> Vm:
        """Create a server without starting it; returns once its disk is there."""
        return self.launch(image, name, power="stopped", **fields)

    def vm(self, name: str) -> Vm:
        return Vm.model_validate(self._wire.call("GET", f"/v1/vms/{path_part(name)}"))

    def vms(self, *, trash: bool = False) -> Iterator[Vm]:
        """All servers, page by page."""
        for item in self._pages("/v1/vms", trash=str(trash).lower()):
            yield Vm.model_validate(item)

    def change(self, name: str, *, revision: int | None = None, **fields: Any) -> Vm:
        """Change fields (those of `model.vm.VmChange`); only if the server is still at `revision`,
        when given. Waits until the guest of one that runs has followed.
        """
        headers = {"If-Match": f'"{revision}"'} if revision is not None else None
        answer = self._wire.call(
            "PATCH", f"/v1/vms/{path_part(name)}", vm_change(fields), headers=headers
        )
        if "operation" not in answer:
            return Vm.model_validate(answer)
        self.wait(answer["operation"]["meta"]["id"])
        return self.vm(answer["vm"]["meta"]["id"])

    def start(self, name: str, *, wait: str = "ready", timeout: float | None = None) -> Vm:
        return self._deed(name, "start", {"wait": wait}, timeout)

    def stop(
        self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None
    ) -> Vm:
        """Shut down; after `grace` seconds the plug is pulled."""
        return self._deed(name, "stop", {"timeout": grace, "force": force}, timeout)

    def restart(
        self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None
    ) -> Vm:
        return self._deed(name, "restart", {"timeout": grace, "force": force}, timeout)

    def pause(self, name: str) -> Vm:
        return self._deed(name, "pause", {}, None)

    def resume(self, name: str) -> Vm:
        return self._deed(name, "resume", {}, None)

    def copy(
        self, name: str, new_name: str | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Vm:
        """Copy a server and wait for the copy. `fields` are those of `model.vm.VmCopy`: mode is
        overlay, full or live.
        """
        body = vm_copy(new_name, fields)
        answer = self._wire.call(
            "POST", f"/v1/vms/{path_part(name)}/actions/copy", body, headers=idempotency()
        )
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return self.vm(answer["vm"]["meta"]["name"])

    def trim(self, name: str) -> int:
        """Have the guest tell which blocks it does not use; bytes the pool got back."""
        return int(
            (self._wire.call("POST", f"/v1/vms/{path_part(name)}/actions/trim", {}))["freed"]
        )

    def delete(self, name: str, *, now: bool = False, force: bool = False) -> None:
        """Move to the trash, or with `now` remove for good."""
        query = {"now": str(now).lower(), "force": str(force).lower()}
        answer = self._wire.call(
            "DELETE", f"/v1/vms/{path_part(name)}", query=query, headers=idempotency()
        )
        self.wait(answer["operation"]["meta"]["id"])

    def undelete(self, name: str, new_name: str | None = None) -> Vm:
        return Vm.model_validate(
            self._wire.call(
                "POST", f"/v1/vms/{path_part(name)}/actions/undelete", {"name": new_name}
            )
        )

    def way_in(self, name: str) -> dict[str, Any]:
        """How to log in by SSH: host, port, user, key, known_hosts, known (whether its host key is
        there), alias (of that), ready.
        """
        found: dict[str, Any] = self._wire.call("GET", f"/v1/vms/{path_part(name)}/ssh")
        return found

    def execute(
        self, name: str, command: list[str], *, stdin: bytes = b"", timeout: float = 60
    ) -> Outcome:
        """Run a command in the guest through its agent."""
        return outcome(
            self._wire.call(
                "POST", f"/v1/vms/{path_part(name)}/exec", exec_body(command, stdin, timeout)
            )
        )

    # ---- networks

    def networks(self) -> Iterator[Network]:
        for item in self._pages("/v1/networks"):
            yield Network.model_validate(item)

    def create_network(self, name: str, **wish: Any) -> Network:
        """Have a network made, `wish` being the other fields of NetworkWish; its status tells when
        it is ready, a moment later.
        """
        body = NetworkWish(name=name, **wish).model_dump(mode="json", exclude_defaults=True)
        return Network.model_validate(
            self._wire.call("POST", "/v1/networks", body, headers=idempotency())
        )

    def delete_network(self, name: str) -> None:
        """Have a network removed that no server is on; it is gone a moment later."""
        self._wire.call("DELETE", f"/v1/networks/{path_part(name)}", headers=idempotency())

    def firewalls(self) -> Iterator[Firewall]:
        for item in self._pages("/v1/firewalls"):
            yield Firewall.model_validate(item)

    def create_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Make a firewall group; NICs are attached to it by their `groups`."""
        body = {"name": name, "rules": [rule.model_dump(mode="json") for rule in rules]}
        return Firewall.model_validate(
            self._wire.call("POST", "/v1/firewalls", body, headers=idempotency())
        )

    def change_firewall(self, name: str, rules: Iterable[Rule]) -> Firewall:
        """Give a firewall group other rules, which hold for new connections at once."""
        body = {"rules": [rule.model_dump(mode="json") for rule in rules]}
        return Firewall.model_validate(
            self._wire.call(
                "PATCH", f"/v1/firewalls/{path_part(name)}", body, headers=idempotency()
            )
        )

    def delete_firewall(self, name: str) -> None:
        self._wire.call("DELETE", f"/v1/firewalls/{path_part(name)}", headers=idempotency())

    # ---- images and operations

    def images(self) -> Iterator[Image]:
        for item in self._pages("/v1/images"):
            yield Image.model_validate(item)

    def make_image(self, name: str, source: ImageSource, *, timeout: float | None = None) -> Image:
        """Build, pull or fetch an image and wait for it."""
        body = {
            "name": name,
            "source": source.model_dump(mode="json", exclude_defaults=True) | {"kind": source.kind},
        }
        answer = self._wire.call("POST", "/v1/images", body, headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return Image.model_validate(
            self._wire.call("GET", f"/v1/images/{path_part(answer['image']['meta']['name'])}")
        )

    def delete_image(self, name: str) -> None:
        answer = self._wire.call("DELETE", f"/v1/images/{path_part(name)}", headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"])

    def warm_image(
        self, name: str, memory: int | None = None, *, timeout: float | None = None
    ) -> Template:
        """Have a warm template made of an image, of `memory` bytes or its default, and wait for
        it.
        """
        body = {} if memory is None else {"memory": memory}
        answer = self._wire.call(
            "POST", f"/v1/images/{path_part(name)}/actions/warm", body, headers=idempotency()
        )
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return next(
            template
            for template in self.templates()
            if template.id == answer["template"]["meta"]["id"]
        )

    def cool_image(self, name: str) -> None:
        """Remove an image's warm templates."""
        self._wire.call("POST", f"/v1/images/{path_part(name)}/actions/cool", {})

    def templates(self) -> Iterator[Template]:
        for item in self._pages("/v1/templates"):
            yield Template.model_validate(item)

    def operation(self, identity: str) -> Operation:
        return Operation.model_validate(self._wire.call("GET", f"/v1/operations/{identity}"))

    def wait(self, identity: str, timeout: float | None = None) -> Operation:
        """Wait for the end of an operation; raises what it failed with, GuestSilent after `timeout`
        seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 60.0 if until is None else max(0.0, min(60.0, until - time.monotonic()))
            operation = Operation.model_validate(
                self._wire.call(
                    "GET", f"/v1/operations/{identity}/wait", query={"timeout": round(left, 3)}
                )
            )
            if operation.ended:
                return judged(operation)
            if until is not None and time.monotonic() >= until:
                raise GuestSilent(
                    f"{operation.spec.deed.kind} {operation.spec.target_name} has not ended after "
                    f"{timeout} s"
                )

    def cancel(self, identity: str) -> Operation:
        return Operation.model_validate(
            self._wire.call("POST", f"/v1/operations/{identity}/actions/cancel", {})
        )

    def events(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they happen, for ever."""
        for event in self._wire.events(since=since):
            if event is not None:
                yield event

    # ---- what is used

    def usage(self, name: str) -> Usage:
        """What a server uses, as last seen."""
        return Usage.model_validate(self._wire.call("GET", f"/v1/vms/{path_part(name)}/usage"))

    def overview(self) -> Overview:
        """What the host and each of its servers use."""
        return Overview.model_validate(self._wire.call("GET", "/v1/usage"))

    def history(
        self, name: str | None, resolution: Resolution = "minute", since: int = 0
    ) -> list[Point]:
        """What a server used, or the host (None), oldest first, from the second `since` (after
        1970) on.
        """
        return points(
            self._wire.call(
                "GET", history_path(name), query={"resolution": resolution, "since": since}
            )
        )

    def advice(self, name: str, *, enough: float = 86400) -> Advice:
        """Whether a server is too big or too small; `enough`: seconds it must have been watched to
        be called too big.
        """
        return Advice.model_validate(
            self._wire.call("GET", f"/v1/vms/{path_part(name)}/advice", query={"enough": enough})
        )

    def host(self) -> dict[str, Any]:
        found: dict[str, Any] = self._wire.call("GET", "/v1/host")
        return found

    def plan_consolidation(
        self, servers: Iterable[ServerLoad], host: HostShape, **fields: Any
    ) -> ConsolidationPlan:
        """Which servers go onto how many hosts of this shape. `fields` are those of
        `model.consolidation.ConsolidationWish`.
        """
        body = consolidation_wish(servers, host, fields)
        return ConsolidationPlan.model_validate(
            self._wire.call("POST", "/v1/plans/consolidation", body)
        )

    def plan_placement(
        self, servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]
    ) -> PlacementPlan:
        """Where servers could go on hosts that are partly full, and why not where they can't."""
        return PlacementPlan.model_validate(
            self._wire.call("POST", "/v1/plans/placement", placement_wish(servers, hosts))
        )

    def _deed(self, name: str, deed: str, body: dict[str, Any], timeout: float | None) -> Vm:
        answer = self._wire.call(
            "POST", f"/v1/vms/{path_part(name)}/actions/{deed}", body, headers=idempotency()
        )
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return self.vm(name)

    def _pages(self, target: str, **query: Any) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            page = self._wire.call("GET", target, query={**query, "limit": 100, "cursor": cursor})
            yield from page["items"]
            cursor = page["next"] or ""
            if not cursor:
                return
