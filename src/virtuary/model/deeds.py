"""What can be asked of a document and takes a while: a closed set of types with their parameters.

Each deed says of itself what everybody has to know of it: whether it ends when a server can be
used, what else may go on meanwhile, and what a cancel undoes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from virtuary.model.disk import Disk
from virtuary.model.meta import Model
from virtuary.model.patience import STOP_TIMEOUT


class Deed(Model):
    kind: str
    starts: ClassVar[bool] = False
    """It ends when a server can be used."""
    runs: ClassVar[bool] = False
    """It is about a machine that runs: the end of the process is the end of the deed."""
    overrides: ClassVar[bool] = False
    """Whatever else is under way on the same document is pointless now."""
    undo: ClassVar[Literal["", "stop", "remove"]] = ""
    """What a cancel leaves of the server: as it is, stopped, or nothing."""

    def goes_beside(self, other: Deed) -> bool:
        """Whether it may begin while the other one is under way on a server that runs."""
        return False


class Launch(Deed):
    kind: Literal["launch"] = "launch"
    starts, runs, undo = True, True, "remove"


class Create(Deed):
    kind: Literal["create"] = "create"
    undo = "remove"


class Copy(Deed):
    kind: Literal["copy"] = "copy"
    starts, runs, undo = True, True, "remove"
    source: str
    """The id of the server that is copied."""
    mode: Literal["overlay", "full", "live"]
    layer: str
    """The id of the layer that its disk becomes, where the copy shares it."""


class Start(Deed):
    kind: Literal["start"] = "start"
    starts, runs, undo = True, True, "stop"
    wait: Literal["running", "ready"] = "running"
    """When it is done: once the machine runs, or once a shell is possible."""


class Stop(Deed):
    kind: Literal["stop"] = "stop"
    overrides = True
    timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=86400)
    """Seconds the guest is given before the plug is pulled."""
    force: bool = False


class Restart(Deed):
    kind: Literal["restart"] = "restart"
    starts, runs, undo = True, True, "stop"
    timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=86400)
    """Seconds the guest is given before the plug is pulled."""
    force: bool = False
    wait: Literal["running", "ready"] = "running"
    """When it is done: once the machine runs, or once a shell is possible."""


class Hold(Deed):
    """A machine is paused, or goes on: also while its guest still starts."""

    runs = True

    def goes_beside(self, other: Deed) -> bool:
        return isinstance(other, (Launch, Start, Restart))


class Pause(Hold):
    kind: Literal["pause"] = "pause"


class Resume(Hold):
    kind: Literal["resume"] = "resume"


class Change(Deed):
    """A change that a server which runs is given at once, or by its guest's leave."""

    kind: Literal["set"] = "set"
    cpus: int | None = None
    """What was wished before, where that changes; null where it does not."""
    memory: int | None = None
    disk: int | None = None

    @property
    def resizes(self) -> bool:
        """Whether the guest has to take or to give something."""
        return bool(self.model_fields_set & {"cpus", "memory", "disk"})


class Delete(Deed):
    kind: Literal["delete"] = "delete"
    overrides = True


class Purge(Deed):
    kind: Literal["purge"] = "purge"


class AttachDisk(Deed):
    kind: Literal["disk-attach"] = "disk-attach"
    number: int
    """Its place among the server's disks."""
    volume: str


class DetachDisk(Deed):
    kind: Literal["disk-detach"] = "disk-detach"
    number: int
    volume: str
    disk: Disk
    """How it was attached, and is again where the guest does not let go."""


class CreateDisk(Deed):
    kind: Literal["disk-create"] = "disk-create"


class ResizeDisk(Deed):
    kind: Literal["disk-resize"] = "disk-resize"
    before: int
    """Bytes."""


class DeleteDisk(Deed):
    kind: Literal["disk-delete"] = "disk-delete"


class MakeImage(Deed):
    kind: Literal["image-build", "image-pull", "image-url", "image-file"]


class DeleteImage(Deed):
    kind: Literal["image-delete"] = "image-delete"


class WarmImage(Deed):
    kind: Literal["image-warm"] = "image-warm"


AnyDeed = Annotated[
    Launch
    | Create
    | Copy
    | Start
    | Stop
    | Restart
    | Pause
    | Resume
    | Change
    | Delete
    | Purge
    | AttachDisk
    | DetachDisk
    | CreateDisk
    | ResizeDisk
    | DeleteDisk
    | MakeImage
    | DeleteImage
    | WarmImage,
    Field(discriminator="kind"),
]
Stopping = Stop | Restart | Delete
"""What ends a machine because somebody asked."""
