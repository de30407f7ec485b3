"""Every kind of error Virtuary raises, in one tree.

Domain code raises a kind with one sentence (what was expected, what was found) and, where there is
one, a hint (what to do). Edges translate once: the API by `status`, the command line by
`exit_code`, the worker by `retry`. The cause is kept with `raise ... from`.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class VirtuaryError(Exception):
    """Base of all kinds. `details` must be JSON-serialisable and free of secrets."""

    code: ClassVar[str] = "bug"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(self, sentence: str, hint: str | None = None, /, **details: Any) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint
        self.details = details

    def problem(self) -> dict[str, Any]:
        """RFC 9457 body of this error, without the request's own fields."""
        body: dict[str, Any] = {
            "type": f"urn:virtuary:problem:{self.code}",
            "title": " ".join((self.__class__.__doc__ or self.code).split("\n\n")[0].split()),
            "status": self.status,
            "code": self.code,
            "detail": self.sentence,
            "retryable": self.retry,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.details:
            body["details"] = self.details
        return body


class Invalid(VirtuaryError):
    """The request or the value is not valid."""

    code, status, exit_code = "invalid", 422, 2


class NotJson(Invalid):
    """The request's body is of another type than JSON."""

    code, status = "not-json", 415


class NotFound(VirtuaryError):
    """There is no such thing."""

    code, status, exit_code = "not-found", 404, 3


class Exists(VirtuaryError):
    """A thing of this name is there already."""

    code, status, exit_code = "exists", 409, 4


class Conflict(VirtuaryError):
    """The thing changed meanwhile, or its state does not allow this."""

    code, status, exit_code = "conflict", 409, 4


class Changed(Conflict):
    """What was looked at has changed before the decision could be written: look again."""

    code = "changed"


class Stale(Conflict):
    """The revision named in If-Match is not the current one."""

    code, status = "stale", 412


class Busy(VirtuaryError):
    """Another operation holds the thing."""

    code, status, exit_code = "busy", 409, 4


class NoRoom(VirtuaryError):
    """The host lacks capacity for this."""

    code, status, exit_code = "no-room", 507, 4


class HostLacks(VirtuaryError):
    """The host lacks a program or a capability."""

    code, status, exit_code = "host-lacks", 501, 4


class GuestSilent(VirtuaryError):
    """The guest did not answer in time."""

    code, status, exit_code, retry = "guest-silent", 504, 6, True


class Misbehaves(GuestSilent):
    """A guest, its QEMU or a helper answered something else than it may: that is no answer."""

    code, status = "misbehaves", 502


class StoreAway(VirtuaryError):
    """The store can't be reached or can't be written."""

    code, status, exit_code, retry = "store-away", 503, 7, True


class PeerAway(VirtuaryError):
    """The daemon or another host can't be reached."""

    code, status, exit_code, retry = "peer-away", 503, 7, True


class Refused(VirtuaryError):
    """Not allowed."""

    code, status, exit_code = "refused", 403, 5


class Failed(VirtuaryError):
    """The operation ended in failure."""

    code, status, exit_code = "failed", 500, 8


class Bug(VirtuaryError):
    """A defect of Virtuary."""

    code, status, exit_code = "bug", 500, 1


KINDS: dict[str, type[VirtuaryError]] = {
    kind.code: kind
    for kind in (
        Invalid,
        NotJson,
        NotFound,
        Exists,
        Conflict,
        Changed,
        Stale,
        Busy,
        NoRoom,
        HostLacks,
        GuestSilent,
        Misbehaves,
        StoreAway,
        PeerAway,
        Refused,
        Failed,
        Bug,
    )
}


def from_problem(body: dict[str, Any]) -> VirtuaryError:
    """The error a problem body stands for; an unknown code becomes `Bug`."""
    kind = KINDS.get(str(body.get("code")), Bug)
    details = body.get("details")
    return kind(
        str(body.get("detail", "no detail")),
        body.get("hint"),
        **(details if isinstance(details, dict) else {}),
    )


def of_system(error: OSError) -> VirtuaryError:
    """The kind of error an operating-system error is."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"the disk is full{where}", "free some space and repeat")
    return Failed(f"{error.strerror or error}{where}")
