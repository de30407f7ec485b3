"""Every call of the API that the clients make: what is asked, and what becomes of the answer.

Each function gives the exchange of one method of `Client` and `AsyncClient`, where its promise is
told. Bodies are checked by the daemon's own models before anything is sent.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any

from virtuary.base.errors import GuestSilent
from virtuary.client.exchange import Exchange, Listing, Request, get, once
from virtuary.client.results import Outcome, judged, outcome, points
from virtuary.client.wire import path_part
from virtuary.model.advice import Advice
from virtuary.model.consolidation import (
    ConsolidationPlan,
    ConsolidationWish,
    HostShape,
    ServerLoad,
)
from virtuary.model.firewall import Firewall, Rule
from virtuary.model.image import Image, ImageSource
from virtuary.model.network import Network, NetworkWish
from virtuary.model.operation import Operation
from virtuary.model.placement import HostRoom, PlacementPlan, PlacementWish, ServerNeed
from virtuary.model.pool import Pool, PoolWish
from virtuary.model.template import Template
from virtuary.model.usage import Overview, Point, Resolution, Usage
from virtuary.model.vm import Vm, VmChange, VmCopy, VmWish
from virtuary.model.volume import AttachWish, Volume, VolumeWish

Fields = dict[str, Any]


def _vm_path(name: str, rest: str = "") -> str:
    return f"/v1/vms/{path_part(name)}{rest}"


def _image_path(name: str, rest: str = "") -> str:
    return f"/v1/images/{path_part(name)}{rest}"


# ---- servers


def launch(image: str, name: str | None, timeout: float | None, fields: Fields) -> Exchange[Vm]:
    wish = VmWish(image=image, name=name, **fields)
    body = wish.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    answer = yield once("POST", "/v1/vms", body | {"image": image})
    yield from _ended(answer, timeout)
    return (yield from vm(answer["vm"]["meta"]["name"]))


def vm(name: str) -> Exchange[Vm]:
    return Vm.from_body((yield get(_vm_path(name))))


def vms(trash: bool) -> Listing[Vm]:
    return Listing("/v1/vms", Vm.from_body, {"trash": _flag(trash)})


def change(name: str, revision: int | None, fields: Fields) -> Exchange[Vm]:
    body = VmChange(**fields).model_dump(mode="json", exclude_unset=True)
    headers = {"If-Match": f'"{revision}"'} if revision is not None else None
    answer = yield Request("PATCH", _vm_path(name), body, headers=headers)
    if "operation" not in answer:
        return Vm.from_body(answer)
    yield from _ended(answer, None)
    return (yield from vm(answer["vm"]["meta"]["id"]))


def start(name: str, wait: str, timeout: float | None) -> Exchange[Vm]:
    return _act(name, "start", {"wait": wait}, timeout)


def stop(name: str, grace: float, force: bool, timeout: float | None) -> Exchange[Vm]:
    return _act(name, "stop", {"timeout": grace, "force": force}, timeout)


def restart(name: str, grace: float, force: bool, timeout: float | None) -> Exchange[Vm]:
    return _act(name, "restart", {"timeout": grace, "force": force}, timeout)


def pause(name: str) -> Exchange[Vm]:
    return _act(name, "pause", {}, None)


def resume(name: str) -> Exchange[Vm]:
    return _act(name, "resume", {}, None)


def copy(name: str, new_name: str | None, timeout: float | None, fields: Fields) -> Exchange[Vm]:
    body = VmCopy(name=new_name, **fields).model_dump(mode="json", exclude_unset=True)
    answer = yield once("POST", _vm_path(name, "/actions/copy"), body)
    yield from _ended(answer, timeout)
    return (yield from vm(answer["vm"]["meta"]["name"]))


def trim(name: str) -> Exchange[int]:
    return int((yield Request("POST", _vm_path(name, "/actions/trim"), {}))["freed"])


def delete(name: str, now: bool, force: bool) -> Exchange[None]:
    query = {"now": _flag(now), "force": _flag(force)}
    yield from _ended((yield once("DELETE", _vm_path(name), query=query)), None)


def undelete(name: str, new_name: str | None) -> Exchange[Vm]:
    body = {"name": new_name}
    return Vm.from_body((yield Request("POST", _vm_path(name, "/actions/undelete"), body)))


def way_in(name: str) -> Exchange[dict[str, Any]]:
    found: dict[str, Any] = yield get(_vm_path(name, "/ssh"))
    return found


def execute(name: str, command: list[str], stdin: bytes, timeout: float) -> Exchange[Outcome]:
    body = {"command": command, "stdin": base64.b64encode(stdin).decode(), "timeout": timeout}
    return outcome((yield Request("POST", _vm_path(name, "/exec"), body)))


# ---- disks


def _disk_path(name: str, rest: str = "") -> str:
    return f"/v1/disks/{path_part(name)}{rest}"


def disks(trash: bool) -> Listing[Volume]:
    return Listing("/v1/disks", Volume.from_body, {"trash": _flag(trash)})


def disk(name: str) -> Exchange[Volume]:
    answer = yield get(_disk_path(name))
    return Volume.from_body({part: answer[part] for part in ("meta", "spec", "status")})


def create_disk(name: str, size: int, pool: str, labels: Fields) -> Exchange[Volume]:
    wish = VolumeWish(name=name, size=size, pool=pool, labels=labels)
    answer = yield once("POST", "/v1/disks", wish.model_dump(mode="json", exclude_defaults=True))
    yield from _ended(answer, None)
    return (yield from disk(answer["disk"]["meta"]["id"]))


def resize_disk(name: str, size: int) -> Exchange[Volume]:
    answer = yield Request("PATCH", _disk_path(name), {"size": size})
    if "operation" in answer:
        yield from _ended(answer, None)
    return (yield from disk(name))


def attach_disk(name: str, server: str, fields: Fields) -> Exchange[Volume]:
    wish = AttachWish(server=server, **fields)
    body = wish.model_dump(mode="json", exclude_defaults=True)
    yield from _ended((yield once("POST", _disk_path(name, "/actions/attach"), body)), None)
    return (yield from disk(name))


def detach_disk(name: str, force: bool) -> Exchange[Volume]:
    answer = yield once(
        "POST", _disk_path(name, "/actions/detach"), {}, query={"force": _flag(force)}
    )
    yield from _ended(answer, None)
    return (yield from disk(name))


def delete_disk(name: str, now: bool) -> Exchange[None]:
    answer = yield once("DELETE", _disk_path(name), query={"now": _flag(now)})
    if "operation" in answer:
        yield from _ended(answer, None)


def undelete_disk(name: str, new_name: str | None) -> Exchange[Volume]:
    body = {"name": new_name} if new_name else {}
    return Volume.from_body((yield once("POST", _disk_path(name, "/actions/undelete"), body)))


def pools() -> Listing[Pool]:
    return Listing("/v1/pools", _pool, {})


def _pool(body: Any) -> Pool:
    return Pool.from_body({part: body[part] for part in ("meta", "spec")})


def create_pool(name: str, path: str, fields: Fields) -> Exchange[Pool]:
    wish = PoolWish(name=name, path=path, **fields)
    body = wish.model_dump(mode="json", exclude_defaults=True)
    return _pool((yield once("POST", "/v1/pools", body)))


def delete_pool(name: str) -> Exchange[None]:
    yield once("DELETE", f"/v1/pools/{path_part(name)}")


# ---- networks


def networks() -> Listing[Network]:
    return Listing("/v1/networks", Network.from_body, {})


def create_network(name: str, wish: Fields) -> Exchange[Network]:
    body = NetworkWish(name=name, **wish).model_dump(mode="json", exclude_defaults=True)
    return Network.from_body((yield once("POST", "/v1/networks", body)))


def delete_network(name: str) -> Exchange[None]:
    yield once("DELETE", f"/v1/networks/{path_part(name)}")


def firewalls() -> Listing[Firewall]:
    return Listing("/v1/firewalls", Firewall.from_body, {})


def create_firewall(name: str, rules: Iterable[Rule]) -> Exchange[Firewall]:
    body = {"name": name, "rules": [rule.model_dump(mode="json") for rule in rules]}
    return Firewall.from_body((yield once("POST", "/v1/firewalls", body)))


def change_firewall(name: str, rules: Iterable[Rule]) -> Exchange[Firewall]:
    body = {"rules": [rule.model_dump(mode="json") for rule in rules]}
    return Firewall.from_body((yield once("PATCH", f"/v1/firewalls/{path_part(name)}", body)))


def delete_firewall(name: str) -> Exchange[None]:
    yield once("DELETE", f"/v1/firewalls/{path_part(name)}")


# ---- images and operations


def images() -> Listing[Image]:
    return Listing("/v1/images", Image.from_body, {})


def make_image(name: str, source: ImageSource, timeout: float | None) -> Exchange[Image]:
    told = source.model_dump(mode="json", exclude_defaults=True) | {"kind": source.kind}
    answer = yield once("POST", "/v1/images", {"name": name, "source": told})
    yield from _ended(answer, timeout)
    return Image.from_body((yield get(_image_path(answer["image"]["meta"]["name"]))))


def delete_image(name: str) -> Exchange[None]:
    yield from _ended((yield once("DELETE", _image_path(name))), None)


def warm_image(name: str, memory: int | None, timeout: float | None) -> Exchange[Template]:
    body = {} if memory is None else {"memory": memory}
    answer = yield once("POST", _image_path(name, "/actions/warm"), body)
    yield from _ended(answer, timeout)
    every, made = (yield from templates().whole()), answer["template"]["meta"]["id"]
    return next(template for template in every if template.id == made)


def cool_image(name: str) -> Exchange[None]:
    yield Request("POST", _image_path(name, "/actions/cool"), {})


def templates() -> Listing[Template]:
    return Listing("/v1/templates", Template.from_body, {})


def operation(identity: str) -> Exchange[Operation]:
    return Operation.from_body((yield get(f"/v1/operations/{identity}")))


def wait(identity: str, timeout: float | None) -> Exchange[Operation]:
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = 60.0 if until is None else max(0.0, min(60.0, until - time.monotonic()))
        answer = yield get(f"/v1/operations/{identity}/wait", timeout=round(left, 3))
        found = Operation.from_body(answer)
        if found.ended:
            return judged(found)
        if until is not None and time.monotonic() >= until:
            raise GuestSilent(
                f"{found.spec.deed.kind} {found.spec.target_name} has not ended after {timeout} s"
            )


def cancel(identity: str) -> Exchange[Operation]:
    answer = yield Request("POST", f"/v1/operations/{identity}/actions/cancel", {})
    return Operation.from_body(answer)


# ---- what is used


def usage(name: str) -> Exchange[Usage]:
    return Usage.from_body((yield get(_vm_path(name, "/usage"))))


def overview() -> Exchange[Overview]:
    return Overview.from_body((yield get("/v1/usage")))


def history(name: str | None, resolution: Resolution, since: int) -> Exchange[list[Point]]:
    target = "/v1/host/history" if name is None else _vm_path(name, "/history")
    return points((yield get(target, resolution=resolution, since=since)))


def advice(name: str, enough: float) -> Exchange[Advice]:
    return Advice.from_body((yield get(_vm_path(name, "/advice"), enough=enough)))


def host() -> Exchange[dict[str, Any]]:
    found: dict[str, Any] = yield get("/v1/host")
    return found


def plan_consolidation(
    servers: Iterable[ServerLoad], shape: HostShape, fields: Fields
) -> Exchange[ConsolidationPlan]:
    wish = ConsolidationWish(servers=tuple(servers), host=shape, **fields)
    body = wish.model_dump(mode="json", exclude_none=True)
    return ConsolidationPlan.from_body((yield Request("POST", "/v1/plans/consolidation", body)))


def plan_placement(
    servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]
) -> Exchange[PlacementPlan]:
    wish = PlacementWish(servers=tuple(servers), hosts=tuple(hosts))
    body = wish.model_dump(mode="json", exclude_none=True)
    answer = yield Request("POST", "/v1/plans/placement", body)
    return PlacementPlan.from_body(answer)


def _act(name: str, action: str, body: Fields, timeout: float | None) -> Exchange[Vm]:
    """An action on a server, followed to its end, and the server after that."""
    yield from _ended((yield once("POST", _vm_path(name, f"/actions/{action}"), body)), timeout)
    return (yield from vm(name))


def _ended(answer: Any, timeout: float | None) -> Exchange[Operation]:
    """The end of the operation that an answer says was begun."""
    return wait(answer["operation"]["meta"]["id"], timeout)


def _flag(value: bool) -> str:
    return str(value).lower()
