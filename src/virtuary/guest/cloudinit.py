"""What became of a server's user data: cloud-init writes that into two files, which the guest agent
reads; no process is started for it.

A guest's words: bounded, and read by their types. Source: cloud-init's cmd/status.py and its boot
stages.
"""

from __future__ import annotations

import asyncio
import contextlib

from virtuary.base.answers import Answer, parse, read
from virtuary.base.errors import Failed, Misbehaves
from virtuary.base.text import shown
from virtuary.guest.agent import Agent
from virtuary.model.status import CloudInit

STATUS, RESULT = "/run/cloud-init/status.json", "/run/cloud-init/result.json"
FILE_CAP = 64 * 1024
ERRORS_CAP, ERROR_CAP = 10, 300
WHO = "the guest's cloud-init"
UNITS = {
    "init-local": "cloud-init-local.service", "init": "cloud-init.service",
    "modules-config": "cloud-config.service",
    "modules-final": "cloud-final.service",
}  # fmt: skip
"""Which unit of systemd runs each stage."""


async def ask(agent: Agent) -> CloudInit:
    """How far cloud-init is. Raises GuestSilent, Misbehaves; a guest in which it never ran says
    that it has not begun.
    """
    async with asyncio.timeout(20):
        return outcome(await _read(agent, STATUS), await _read(agent, RESULT))


async def _read(agent: Agent, path: str) -> bytes:
    try:
        return await agent.read_file(path, FILE_CAP)
    except Failed:
        return b""


def outcome(status: bytes, result: bytes) -> CloudInit:
    """What the two files say; empty where they are not there. Pure. Raises Misbehaves."""
    if not status:
        return CloudInit(state="not begun")
    stages = read(parse(status.strip(), WHO), WHO).inner("v1")
    errors, units = list[str](), list[str]()
    for stage, unit in UNITS.items():
        with contextlib.suppress(Misbehaves):  # a stage that was not reached may be null
            found = _errors(stages.inner(stage))
            errors += found
            units += [unit] if found else []
    if not result:
        return CloudInit(state="running", errors=tuple(errors[:ERRORS_CAP]), units=tuple(units))
    for error in _errors(read(parse(result.strip(), WHO), WHO).inner("v1")):
        errors += [] if error in errors else [error]
    return CloudInit(
        state="error" if errors else "done", errors=tuple(errors[:ERRORS_CAP]), units=tuple(units)
    )


def _errors(part: Answer) -> list[str]:
    found = [item.value() for item in part.items("errors")]
    for kind, told in (
        part.fields("recoverable_errors").items() if "recoverable_errors" in part else ()
    ):
        if kind in ("ERROR", "CRITICAL", "WARNING"):
            found += [item.value() for item in told.items()]
    return [shown(item[: 4 * ERROR_CAP])[:ERROR_CAP] for item in found if isinstance(item, str)]
