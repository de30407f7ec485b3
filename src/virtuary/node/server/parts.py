"""What becomes of a part of a server's status when one that is not its writer sees it happen, said
once for each. Pure; in the form that `Server.write` takes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from virtuary.model.status import DiskStatus, Halt
from virtuary.model.vm import Vm


def known_as(name: str) -> dict[str, Any]:
    """Its guest is a machine of its own, with this name."""
    return {"identity": {"given": name, "refused": None, "renew": False}}


def comes_as_another(*, renew: bool) -> dict[str, Any]:
    """Its guest is who another one is, and whether its first start is to change that."""
    return {"identity": {"renew": renew}}


def let_go() -> dict[str, Any]:
    """It is not held any more for want of memory."""
    return {"pressure": {"held": None}}


def halts(vm: Vm, why: str, since: datetime) -> dict[str, Any]:
    """It stands still from now on, until somebody asks for it again. `vm`: as it was judged, which
    says how often it had been asked for.
    """
    if vm.wanted == "stopped":
        return {}
    return {"power": {"halted": Halt(why=why, since=since, asked=vm.spec.asked)}}


# ---- disks


def lies_there(number: int, size: int) -> dict[str, Any]:
    """The disk with this number is made."""
    return {"disks": {number: {"ready": True, "size": size}}}


def grown(number: int, size: int) -> dict[str, Any]:
    """The disk with this number is larger."""
    return {"disks": {number: {"size": size}}}


def lies_on(number: int, layers: tuple[str, ...], *, file: str) -> dict[str, Any]:
    """What it had became a layer, and it goes on in another file."""
    return {"disks": {number: {"layers": layers, "file": file}}}


def like(number: int, source: DiskStatus, **otherwise: object) -> dict[str, Any]:
    """What lies below it is what lies below another one, but for what is otherwise."""
    below = {"layers": source.layers, "base": source.base, "size": source.size}
    return {"disks": {number: below | otherwise}}


def unused(number: int, why: str) -> dict[str, Any]:
    """Nobody has used its disk: that is made anew, for a boot."""
    none = {"ready": False, "size": None, "layers": ()}
    return {"disks": {number: none}, **boots(why)}


# ---- how its first start goes


def boots(why: str | None) -> dict[str, Any]:
    """Its first start is a boot, and why; None where nothing was in its way but the wish."""
    return {"warm": {"template": None, "cold": why}}


def resumes(template: str) -> dict[str, Any]:
    """Its first start resumes a copy of this warm template."""
    return {"warm": {"template": template, "cold": None}}


def began_before() -> dict[str, Any]:
    """Its first start is over, and how that went nobody asks any more."""
    return {"warm": {"cold": None}}
