"""Documents that an older version wrote, as they are now: a function a kind, each saying what it
reads. Pure.

A store says which format its documents have (`store/documents.py`), so that all of them are brought
over once, at the first start of a newer daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 5
"""1: operations had a kind and parameters by name; the numbers of plugged NICs stood for NICs;
servers had a stage beside the stages. 2: what is wished of a server was a flat table.
3: so was its status. 4: what only one host has of images, networks and templates stood with what is
true everywhere.
"""
BOOT = "host-boot"
"""Where the only host there was kept the boot in which servers were last brought up."""
SET_APART = {
    "image": ("state", "reason", "size", "made", "used"),
    "network": (
        "state", "reason", "bridge", "pid", "start", "boot_id", "was_up", "external", "speed",
        "mtu", "gaps",
    ),
    "template": ("state", "reason", "key", "size", "disk_size", "made", "took"),
}  # fmt: skip
"""What stood in a status and is one host's, by kind."""


def set_apart(body: dict[str, Any], own: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is one host's of a document where all stood together, and the rest of it."""
    status: dict[str, Any] = body.get("status") or {}
    mine = {name: value for name, value in status.items() if name in own}
    rest = {name: value for name, value in status.items() if name not in own}
    return mine, {**body, "status": rest}


def as_now(prefix: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a document of this kind in today's format."""
    upgrade = UPGRADES.get(prefix)
    return upgrade(body) if upgrade else body


def operation(body: dict[str, Any]) -> dict[str, Any]:
    """What was asked for was a kind, and a table of anything."""
    spec = body.get("spec")
    if not isinstance(spec, dict) or "kind" not in spec:
        return body
    rest = {name: value for name, value in spec.items() if name not in ("kind", "params")}
    params = {} if spec["kind"] == "delete" else spec.get("params") or {}
    return {**body, "spec": {**rest, "deed": {"kind": spec["kind"], **params}}}


def vm(body: dict[str, Any]) -> dict[str, Any]:
    return _with_parts(_with_nouns(_with_nics(body)))


NOUNS = {
    "cpu": {"cpus": "count"},
    "memory": {
        "memory": "size", "memory_max": "max", "memory_min": "min", "memory_pages": "pages",
        "memory_merge": "merge", "priority": "priority",
    },
    "login": {"ssh_keys": "ssh_keys", "user_data": "user_data"},
    "policy": {
        "autostart": "autostart", "boot_order": "boot_order", "protect": "protect",
        "on_host_shutdown": "on_host_shutdown", "shutdown_timeout": "shutdown_timeout",
        "restart_policy": "restart",
    },
}  # fmt: skip
"""What fields of the flat table became, by noun."""
ROOT = {"disk": "size", "disk_io": "io"}


def _with_nouns(body: dict[str, Any]) -> dict[str, Any]:
    spec = body.get("spec")
    if not isinstance(spec, dict) or "disks" in spec or "cpus" not in spec:
        return body
    flat = dict(spec)
    nouns: dict[str, Any] = {"cpu": flat.pop("cpu", None) or {}}
    for noun, fields in NOUNS.items():
        moved = {new: flat.pop(old) for old, new in fields.items() if old in flat}
        nouns[noun] = {**nouns.get(noun, {}), **moved}
    nouns["disks"] = [
        {"number": 0, **{new: flat.pop(old) for old, new in ROOT.items() if old in flat}}
    ]
    return {**body, "spec": flat | nouns}


def _with_nics(body: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = body.get("status") or {}
    runtime: dict[str, Any] | None = status.get("runtime")
    if "stage" not in status and not _has_numbers(runtime):
        return body
    if runtime and _has_numbers(runtime):
        wished = {nic.get("number", 0): nic for nic in body["spec"].get("nics", ({},))}
        nics = [
            wished.get(number, {"number": number, "network": "none"})
            for number in runtime.get("nics", (0,))
        ]
        runtime = {**runtime, "nics": nics}
    rest = {name: value for name, value in status.items() if name not in ("stage", "runtime")}
    return {**body, "status": {**rest, "runtime": runtime}}


def _with_parts(body: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = body.get("status") or {}
    if not isinstance(status.get("identity"), str) and not STATUS_PARTS.keys() & status.keys():
        return body
    return {**body, "status": _in_parts(status, body["meta"]["name"])}


STATUS_PARTS = {
    "applied": ("power", "applied"), "crashes": ("power", "crashes"), "gaps": ("tuning", "gaps"),
    "reclaimed": ("pressure", "reclaimed"), "held_for_memory": ("pressure", "held"),
    "disk_ready": ("disks", "ready"), "disk_size": ("disks", "size"),
    "disk_file": ("disks", "file"), "layers": ("disks", "layers"), "base": ("disks", "base"),
    "copied": ("origin", "copied"), "template": ("warm", "template"), "cold": ("warm", "cold"),
    "identity_refused": ("identity", "refused"), "renew": ("identity", "renew"),
}  # fmt: skip
"""Where in the status of a server is now what stood at its top; its one disk is number 0."""


def _in_parts(status: dict[str, Any], name: str) -> dict[str, Any]:
    moved = STATUS_PARTS | {"identity": ("identity", "given")}
    now = {kept: value for kept, value in status.items() if kept not in moved}
    parts: dict[str, dict[str, Any]] = {}
    for old in moved.keys() & status.keys():
        part, field = moved[old]
        parts.setdefault(part, {})[field] = status[old]
    if why := status.get("identity_refused"):
        parts["identity"]["refused"] = {"name": name, "why": why}
    if "disks" in parts:
        now["disks"] = {"0": parts.pop("disks")}
    return {**now, **parts}


def _has_numbers(runtime: dict[str, Any] | None) -> bool:
    """Whether NICs that are plugged are told by their numbers: those are as the spec has them."""
    return runtime is not None and all(isinstance(nic, int) for nic in runtime.get("nics", (0,)))


UPGRADES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"operation": operation, "vm": vm}
