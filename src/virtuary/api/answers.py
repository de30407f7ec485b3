"""What each operation of the API answers, as the OpenAPI document tells it: shapes only, for who
generates a client.

Routes write their bodies themselves; that these fit is held by the contract's tests. An answer that
is a document stands in `model/`.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from virtuary.model.advice import Advice
from virtuary.model.firewall import Action, Direction, Firewall
from virtuary.model.host import Check, HostStatus
from virtuary.model.image import Image
from virtuary.model.network import Lease, Network
from virtuary.model.operation import Operation
from virtuary.model.pool import Pool
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume

Item = TypeVar("Item")


class Answer(BaseModel):
    """Fields may be added by later versions."""

    model_config = ConfigDict(frozen=True, defer_build=True)


class RequestFinding(Answer):
    pointer: str
    """JSON pointer into the request."""
    detail: str


class ProblemDetails(Answer):
    model_config = ConfigDict(frozen=True, extra="allow")
    errors: list[RequestFinding] = Field(default_factory=list)
    """Of a request that is not understood: what is wrong where."""


class Problem(Answer):
    """An error, as RFC 9457 has it (`application/problem+json`)."""

    type: str
    """urn:virtuary:problem:CODE"""
    title: str
    status: int
    code: str
    """The kind, in one word."""
    detail: str
    """What happened, for people."""
    retryable: bool
    """Whether the same request may succeed later."""
    hint: str | None = None
    """What can be done about it."""
    details: ProblemDetails | None = None
    instance: str = ""
    request_id: str = ""


class Page(Answer, Generic[Item]):
    """Documents by key. `next` is the cursor of the next page, null on the last one; `revision` is
    where events go on from here.
    """

    items: list[Item]
    next: str | None
    revision: int


class Vms(Page[Vm]): ...


class Images(Page[Image]): ...


class Templates(Page[Template]): ...


class Networks(Page[Network]): ...


class Disks(Page[Volume]): ...


class ShownPool(Pool):
    """A pool with its space as it is now."""

    state: Literal["ready", "away"]
    reason: str | None = None
    size: int | None = None
    free: int | None = None
    kept: int | None = None
    """Bytes that stay free."""
    promised: int
    """Bytes that its disks may come to take."""
    disks: int


class Pools(Answer):
    items: list[ShownPool]
    next: str | None = None


class Firewalls(Page[Firewall]): ...


class Operations(Page[Operation]): ...


class Accepted(Answer):
    """The operation that does it, to be followed at its Location."""

    operation: Operation


class AcceptedVm(Accepted):
    vm: Vm | None = None
    """Missing where the request was repeated with its Idempotency-Key."""


class AcceptedDisk(Accepted):
    disk: Volume | None = None


class ShownDisk(Volume):
    used: int | None = None
    """Bytes that its file occupies; null where that is not there."""


class DiskDraft(Answer):
    """What `dry_run` tells of a disk."""

    disk: Volume
    blockers: list[Problem]


class AcceptedImage(Accepted):
    image: Image | None = None


class AcceptedTemplate(Accepted):
    template: Template | None = None


class Draft(Answer):
    """What `dry_run` tells: the server as it would be, and all that is in the way."""

    vm: Vm
    blockers: list[Problem]
    notes: list[str] = Field(default_factory=list)
    """What is not in the way, and perhaps not as its user thinks."""
    plan: dict[str, Any] = Field(default_factory=dict)
    """Of a start: its steps, accelerator, isolation and command line."""
    waits_for_start: list[str] = Field(default_factory=list)
    """Fields of a change that take effect at the next start."""


class Cooled(Answer):
    """The templates that are removed."""

    items: list[Template]


class Leases(Answer):
    items: list[Lease]


class Nothing(Answer):
    """An empty object."""


class Checks(Answer):
    healthy: bool
    checks: list[Check]


class WayIn(Answer):
    """How to log in by SSH."""

    host: str
    port: int
    user: str
    key: str
    """Path on the daemon's host of the private key to show."""
    known_hosts: str
    """Path of the file in which its host keys are written down, under `alias`."""
    known: bool
    alias: str
    ready: bool
    failed: str | None = None
    """Why the start failed by which it is there, where nobody waits for it any more."""
    suspects: list[str]
    """Lines of the user data that may have taken this login away."""
    state: str
    stages: dict[str, float]


class Logs(Answer):
    console: str
    qemu: str


class Outcome(Answer):
    status: int
    truncated: bool
    stdout: str
    """Base64."""
    stderr: str
    """Base64."""


class Trimmed(Answer):
    trimmed: int | None
    freed: int | None


class FirewallVerdict(Answer):
    allowed: bool
    sentence: str
    action: Action
    direction: Direction | None = None
    server: str = ""
    group: str = ""
    number: int = 0
    network: str = ""
    why: str = ""


class HistoryPoint(Answer):
    at: int
    """Seconds since 1970."""
    covered: int
    mean: dict[str, float]
    peak: dict[str, float]


class History(Answer):
    resolution: str
    step: int
    """Seconds."""
    points: list[HistoryPoint]


class Advices(Answer):
    items: list[Advice]


HostAnswer = create_model(
    "HostAnswer",
    __base__=Answer,
    id=(str, ...),
    reserve_memory=(int, ...),
    reserve_disk=(int, ...),
    **{name: (field.annotation, field) for name, field in HostStatus.model_fields.items()},  # type: ignore[call-overload]
)
"""The host's status with its id, and what it keeps for itself: properties there."""


class Capacity(Answer):
    servers: int
    limit: str
    each: dict[str, int]
    by: dict[str, int]
    wanted: int | None
    fits: bool | None
    missing: str | None


class About(Answer):
    name: str
    version: str
    versions: list[str]
    extensions: list[str]


class Health(Answer):
    status: str
    revision: int | None = None
