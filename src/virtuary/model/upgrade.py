"""Documents that an older version wrote, as they are now: a function a kind, each saying what it
reads. Pure.

A store says which format its documents have (`store/documents.py`), so that all of them are brought
over once, at the first start of a newer daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
"""1: operations had a kind and parameters by name; the numbers of plugged NICs stood for NICs;
servers had a stage beside the stages.
"""


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


def _has_numbers(runtime: dict[str, Any] | None) -> bool:
    """Whether NICs that are plugged are told by their numbers: those are as the spec has them."""
    return runtime is not None and all(isinstance(nic, int) for nic in runtime.get("nics", (0,)))


UPGRADES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"operation": operation, "vm": vm}
