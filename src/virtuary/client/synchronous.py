"""The synchronous client: typed, over the daemon's socket, which is started if need be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

from virtuary.base.errors import GuestSilent
from virtuary.client.results import Outcome, exec_body, idempotency, judged, outcome, vm_change, vm_copy, vm_wish
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part
from virtuary.model.image import Image, ImageSource
from virtuary.model.operation import Operation
from virtuary.model.template import Template
from virtuary.model.vm import Vm


class Client:
    """Every method raises the kinds of `virtuary.base.errors`. Not for use by two threads at once."""

    def __init__(self, socket: str | None = None) -> None:
        """Connect to the daemon at `socket`; to this user's own, started if need be, when none is named."""
        self._wire = Wire(socket) if socket else connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # ---- servers

    def launch(self, image: str, name: str | None = None, *, timeout: float | None = None, **fields: Any) -> Vm:
        """Create a server, start it, and wait until a shell is possible. `fields` are those of `model.vm.VmWish`."""
        answer = self._wire.call("POST", "/v1/vms", vm_wish(image, name, fields), headers=idempotency())
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
        """Change fields (those of `model.vm.VmChange`); only if the server is still at `revision`, when given."""
        headers = {"If-Match": f'"{revision}"'} if revision is not None else None
        return Vm.model_validate(self._wire.call("PATCH", f"/v1/vms/{path_part(name)}", vm_change(fields), headers=headers))

    def start(self, name: str, *, wait: str = "ready", timeout: float | None = None) -> Vm:
        return self._deed(name, "start", {"wait": wait}, timeout)

    def stop(self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None) -> Vm:
        """Shut down; after `grace` seconds the plug is pulled."""
        return self._deed(name, "stop", {"timeout": grace, "force": force}, timeout)

    def restart(self, name: str, *, grace: float = 90, force: bool = False, timeout: float | None = None) -> Vm:
        return self._deed(name, "restart", {"timeout": grace, "force": force}, timeout)

    def pause(self, name: str) -> Vm:
        return self._deed(name, "pause", {}, None)

    def resume(self, name: str) -> Vm:
        return self._deed(name, "resume", {}, None)

    def copy(self, name: str, new_name: str | None = None, *, timeout: float | None = None, **fields: Any) -> Vm:
        """Copy a server and wait for the copy. `fields` are those of `model.vm.VmCopy`: mode is overlay, full or live."""
        body = vm_copy(new_name, fields)
        answer = self._wire.call("POST", f"/v1/vms/{path_part(name)}/actions/copy", body, headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return self.vm(answer["vm"]["meta"]["name"])

    def delete(self, name: str, *, now: bool = False, force: bool = False) -> None:
        """Move to the trash, or with `now` remove for good."""
        query = {"now": str(now).lower(), "force": str(force).lower()}
        answer = self._wire.call("DELETE", f"/v1/vms/{path_part(name)}", query=query, headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"])

    def undelete(self, name: str, new_name: str | None = None) -> Vm:
        return Vm.model_validate(self._wire.call("POST", f"/v1/vms/{path_part(name)}/actions/undelete", {"name": new_name}))

    def way_in(self, name: str) -> dict[str, Any]:
        """How to log in by SSH: host, port, user, key, known_hosts, alias (of its host key), ready."""
        found: dict[str, Any] = self._wire.call("GET", f"/v1/vms/{path_part(name)}/ssh")
        return found

    def execute(self, name: str, command: list[str], *, stdin: bytes = b"", timeout: float = 60) -> Outcome:
        """Run a command in the guest through its agent."""
        return outcome(self._wire.call("POST", f"/v1/vms/{path_part(name)}/exec", exec_body(command, stdin, timeout)))

    # ---- images and operations

    def images(self) -> Iterator[Image]:
        for item in self._pages("/v1/images"):
            yield Image.model_validate(item)

    def make_image(self, name: str, source: ImageSource, *, timeout: float | None = None) -> Image:
        """Build, pull or fetch an image and wait for it."""
        body = {"name": name, "source": source.model_dump(mode="json", exclude_defaults=True) | {"kind": source.kind}}
        answer = self._wire.call("POST", "/v1/images", body, headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return Image.model_validate(self._wire.call("GET", f"/v1/images/{path_part(answer['image']['meta']['name'])}"))

    def delete_image(self, name: str) -> None:
        answer = self._wire.call("DELETE", f"/v1/images/{path_part(name)}", headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"])

    def warm_image(self, name: str, memory: int | None = None, *, timeout: float | None = None) -> Template:
        """Have a warm template made of an image, of `memory` bytes or its default, and wait for it."""
        body = {} if memory is None else {"memory": memory}
        answer = self._wire.call("POST", f"/v1/images/{path_part(name)}/actions/warm", body, headers=idempotency())
        self.wait(answer["operation"]["meta"]["id"], timeout)
        return next(template for template in self.templates() if template.id == answer["template"]["meta"]["id"])

    def cool_image(self, name: str) -> None:
        """Remove an image's warm templates."""
        self._wire.call("POST", f"/v1/images/{path_part(name)}/actions/cool", {})

    def templates(self) -> Iterator[Template]:
        for item in self._pages("/v1/templates"):
            yield Template.model_validate(item)

    def operation(self, identity: str) -> Operation:
        return Operation.model_validate(self._wire.call("GET", f"/v1/operations/{identity}"))

    def wait(self, identity: str, timeout: float | None = None) -> Operation:
        """Wait for the end of an operation; raises what it failed with, GuestSilent after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 60.0 if until is None else max(0.0, min(60.0, until - time.monotonic()))
            operation = Operation.model_validate(
                self._wire.call("GET", f"/v1/operations/{identity}/wait", query={"timeout": round(left, 3)})
            )
            if operation.ended:
                return judged(operation)
            if until is not None and time.monotonic() >= until:
                raise GuestSilent(f"{operation.spec.kind} {operation.spec.target_name} has not ended after {timeout} s")

    def cancel(self, identity: str) -> Operation:
        return Operation.model_validate(self._wire.call("POST", f"/v1/operations/{identity}/actions/cancel", {}))

    def events(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they happen, for ever."""
        for event in self._wire.events(since=since):
            if event is not None:
                yield event

    def host(self) -> dict[str, Any]:
        found: dict[str, Any] = self._wire.call("GET", "/v1/host")
        return found

    def _deed(self, name: str, deed: str, body: dict[str, Any], timeout: float | None) -> Vm:
        answer = self._wire.call("POST", f"/v1/vms/{path_part(name)}/actions/{deed}", body, headers=idempotency())
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
