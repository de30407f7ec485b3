"""Worlds to plan for, and a tiny host on which planned steps take effect: a simulation without
processes, files or clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from virtuary.model.disk import ROOT, Disk
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation, OperationSpec
from virtuary.model.runtime import Runtime, Shape
from virtuary.model.status import Crash, MemoryHold, VmStatus
from virtuary.model.vm import Origin, Sized, Vm, VmSpec
from virtuary.model.volume import Attachment, Volume, VolumeSpec, VolumeStatus
from virtuary.node.plan import plan
from virtuary.node.power.ends import CRASH_WINDOW
from virtuary.node.report.plan import Report
from virtuary.node.server import parts
from virtuary.node.server.pre_identity import never_handed_out
from virtuary.node.server.step import Step
from virtuary.node.server.world import (
    CopyFacts,
    DiskFacts,
    GuestFacts,
    NetworkFacts,
    ProcessFacts,
    SlowFacts,
    Tuning,
    TuningFacts,
    TurnFacts,
    VolumeFacts,
    World,
)
from virtuary.node.slow.plan import Finding
from virtuary.node.tuning.plan import untuned

ME = "this-host"
WALL = datetime(2026, 1, 1, tzinfo=UTC)
ID = "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"
BOOT = "boot"


SOURCE_ID = "6f3c5a80-2a6b-4a5e-9d8e-0123456789ab"


HOLD = MemoryHold(room=2**30, why="the host's memory ran out", since=WALL)


def image(**status: Any) -> Image:
    facts = {"state": "ready", "agent": True, "cloud_init": False, "virtual_size": 2**30, **status}
    return Image(
        meta=Meta(id="image-id", name="debian:12"),
        spec=ImageSpec(source=ImageSource(kind="build")),
        status=ImageStatus.model_validate(facts),
    )


def runtime(**changes: Any) -> Runtime:
    facts = {
        "generation": 1, "restarts": 0, "boot_id": BOOT, "pid": 7, "start": 7, "uid": 7,
        "accel": "tcg", "level": "L1",
        "network": "passt", "ssh_port": 2222, "started": WALL, "network_pid": 8, "network_start": 8,
    }  # fmt: skip
    return Runtime.model_validate({**facts, **changes})


def vm(spec: dict[str, Any] | None = None, meta: dict[str, Any] | None = None, **status: Any) -> Vm:
    wish = {"image": "debian:12", "image_id": "image-id", "owner": ME, **(spec or {})}
    return Vm(
        meta=Meta(id=ID, name="web1", created=WALL, **(meta or {})),
        spec=VmSpec(**wish),
        status=VmStatus().but(**status),
    )


def source(meta: dict[str, Any] | None = None) -> Vm:
    """The server that `copy` is a copy of."""
    spec = VmSpec(image="debian:12", image_id="image-id", owner=ME, power="stopped")
    return Vm(meta=Meta(id=SOURCE_ID, name="web0", created=WALL, **(meta or {})), spec=spec)


def origin(mode: str) -> dict[str, Any]:
    return {"origin": {"id": SOURCE_ID, "name": "web0", "mode": mode}}


def copy_of_it(mode: str) -> Vm:
    """A server that waits to be a copy of the one these worlds are about."""
    spec = VmSpec(image="debian:12", owner=ME, origin=Origin(id=ID, name="web1", mode=mode))  # type: ignore[arg-type]
    return Vm(meta=Meta(id="copy-id", name="web2", created=WALL), spec=spec)


def operation(kind: str, cancel: bool = False, **params: Any) -> Operation:
    if kind == "copy":
        params = {"source": SOURCE_ID, "mode": "overlay", "layer": "layer-id", **params}
    spec = OperationSpec.model_validate(
        {
            "deed": {"kind": kind, **params},
            "target": f"vm/{ID}",
            "target_name": "web1",
            "cancel": cancel,
        }
    )
    return Operation(meta=Meta(id="operation-id", name=kind, created=WALL), spec=spec)


def crashes(*minutes_ago: float) -> tuple[Crash, ...]:
    return tuple(Crash(at=WALL - timedelta(minutes=minutes), why="boom") for minutes in minutes_ago)


PARTS: dict[str, tuple[str, type[Any]]] = {
    name: (part, kind)
    for part, kind in (
        ("process", ProcessFacts),
        ("guest", GuestFacts),
        ("network", NetworkFacts),
        ("disks", DiskFacts),
        ("volumes", VolumeFacts),
        ("copies", CopyFacts),
        ("tuning", TuningFacts),
        ("turn", TurnFacts),
        ("slow", SlowFacts),
    )
    for name in (field.name for field in fields(kind))
}
"""Which part of a world a fact belongs to: no name is used twice, but for these below."""
RENAMED = {"network_alive": ("network", "served"), "network_failing": ("network", "failing")}


def world(machine: Vm, **facts: Any) -> World:
    """A world of facts by their names. `process`: its state; `network`: its state and why;
    `copies`: those that wait.
    """
    mine = machine.spec.owner == ME
    start = World(vm=machine, wall=WALL, now=1000.0, mine=mine, image=image())
    return changed(start, **facts)


def changed(seen: World, **facts: Any) -> World:
    """The same world with other facts."""
    parts: dict[str, dict[str, Any]] = {}
    whole = {}
    for name, value in facts.items():
        if name == "process":
            parts.setdefault("process", {})["state"] = value
        elif name == "network":
            parts.setdefault("network", {}).update(state=value[0], why=value[1])
        elif name == "copies":
            parts.setdefault("copies", {})["waiting"] = value
        elif name in RENAMED:
            part, inner = RENAMED[name]
            parts.setdefault(part, {})[inner] = value
        elif name in PARTS:
            parts.setdefault(PARTS[name][0], {})[name] = value
        else:
            whole[name] = value
    return replace(
        seen, **whole, **{part: replace(getattr(seen, part), **new) for part, new in parts.items()}
    )


def value_of(step: Step) -> Any:
    """What a step needs to know: nothing, one thing, or several."""
    if isinstance(step, Report):
        return step.values()
    values = [getattr(step, field.name) for field in fields(step)]
    return values[0] if len(values) == 1 else tuple(values) or None


def at_rest(
    spec: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    **facts: Any,
) -> World:
    """No process; the disk is made."""
    seen = {
        "state": "stopped",
        "disks": {ROOT: {"ready": True, "size": 2**30}},
        "power": {"applied": 1},
    }
    return world(
        vm(spec, meta, **seen).seen(**(status or {})), **{"files": frozenset({"disk"}), **facts}
    )


def alive(
    spec: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    **facts: Any,
) -> World:
    """A guest that runs, is reached and has its identity; all of it is written down."""
    stages = {"kernel": 1.0, "agent": 2.0, "network": 3.0, "ssh": 4.0}
    seen = {
        "state": "running", "disks": {ROOT: {"ready": True, "size": 2**30}}, "runtime": runtime(),
        "identity": {"given": "web1"}, "stages": stages, "power": {"applied": 1},
    }  # fmt: skip
    live = {
        "process": "alive",
        "connected": True,
        "qemu": "running",
        "network_alive": True,
        "signals": stages,
        "files": frozenset({"disk"}),
    }
    return world(vm(spec, meta, **seen).seen(**(status or {})), **{**live, **facts})


def volume(number: int = 1, wished: int = 2**30, held: bool = True, **seen: Any) -> Volume:
    """A disk of its own that this server holds."""
    by = (Attachment(server=ID, since=WALL),) if held else ()
    return Volume(
        meta=Meta(id=f"volume-{number}", name=f"data{number}", created=WALL),
        spec=VolumeSpec(size=wished, owner=ME, attached=by),
        status=VolumeStatus(**{"state": "ready", "size": 2**30, **seen}),
    )


def disk(number: int = 1, **fields: Any) -> dict[str, Any]:
    """Its place in the server's list."""
    return {"number": number, "volume": f"volume-{number}", "serial": f"data{number}", **fields}


def disks(*others: dict[str, Any]) -> dict[str, Any]:
    """A wish for the root disk and these."""
    return {"disks": [{"number": 0}, *others]}


def attached(machine: Vm, *volumes: Volume) -> dict[str, Any]:
    """The facts about these disks of the server's."""
    known = {item.id: item for item in volumes}
    return {
        "listed": {
            item.number: known.get(item.volume) for item in machine.spec.disks if item.volume
        },
        "holding": tuple(item for item in volumes if item.spec.holds(ID)),
        "plugged_known": True,
    }


@dataclass
class Host:
    """One server on one host. `apply` does to this value what the step of that name does to a real
    machine.
    """

    vm: Vm | None
    image: Image = field(default_factory=image)
    operation: Operation | None = None
    process: str = "absent"
    qemu: str | None = None
    connected: bool = False
    network: bool = False
    signals: dict[str, float] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    asked: float | None = None
    asked_last: float = 0.0
    now: float = 1000.0
    warm: str = ""
    """Whether a template is there, and whether copies of it are good: "", "good", "breaks",
    "refuses".
    """
    used: bool = False
    """Whether a guest has run on the disk that is there."""
    copies: list[Vm] = field(default_factory=list)
    """Copies that wait for what this server has to give; those that were told why not, and those
    that got it.
    """
    refused: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    source: Vm | None = None
    gives: bool = True
    """Whether the source of this server, while it is there, gives what is waited for."""
    live: str = ""
    """What happens to a live copy on its way: "", "breaks", "refuses"."""
    deaf: bool = False
    """A guest that ignores every wish to shut down."""
    tuned: Tuning | None = None
    cpus: int | None = None
    memory: int | None = None
    """What the machine has."""
    stubborn: bool = False
    """A guest that neither takes nor gives CPUs and memory."""
    volumes: list[Volume] = field(default_factory=list)
    """Disks that are documents of their own, and whose files are there."""
    steps: list[str] = field(default_factory=list)

    def look(self) -> World | None:
        if self.vm is None:
            return None
        return world(
            self.vm, wall=WALL + timedelta(seconds=self.now), now=self.now, image=self.image,
            operation=self.operation,
            process=self.process,
            connected=self.connected, qemu=self.qemu, network_alive=self.network,
            signals=dict(self.signals), files=frozenset(self.files),
            asked_to_stop=self.asked, asked_last=self.asked_last, copies=tuple(self.copies),
            source=self.source,
            tuned=self.tuned, cpus=self.cpus, memory=self.memory,
            **attached(self.vm, *self.volumes),
        )  # fmt: skip

    def settle(self, limit: int = 200) -> int:
        """Look, plan, one step, until there is nothing to do even after waiting; how many steps it
        took.
        """
        idle = 0
        for number in range(limit):
            seen = self.look()
            step = plan(seen) if seen else None
            if step is None:
                if seen is None or (not self.pass_time() and idle):
                    return number
                idle += 1
                continue
            idle = 0
            assert seen
            self.steps.append(step.name)
            self.do(seen, step)
        raise AssertionError(f"it never settles: {self.steps[-12:]}")

    def do(self, seen: World, step: Step) -> None:
        """The step takes effect."""
        getattr(self, step.name)(seen, value_of(step))

    def pass_time(self) -> bool:
        """What happens by itself while the worker sleeps; says whether anything did."""
        self.now += 20
        if self.source and self.gives and self._waits():
            self._get()
            return True
        if self.process != "alive":
            return False
        assert self.vm
        if self.asked is not None:
            if not self.deaf and self.qemu == "running":
                self.qemu = "shutdown"
            return True
        stages = [
            stage for stage in ("kernel", "agent", "network", "ssh") if stage not in self.signals
        ]
        if self.qemu == "running" and stages:
            self.signals[stages[0]] = self.now
            return True
        return False

    def _waits(self) -> bool:
        vm, operation = self.vm, self.operation
        return bool(
            vm
            and vm.spec.origin
            and not vm.status.origin.copied
            and not vm.meta.purge
            and operation
            and operation.spec.deed.kind == "copy"
        )

    def _get(self) -> None:
        """The source gives: what it does is one transaction."""
        assert self.vm and self.vm.spec.origin
        mode = self.vm.spec.origin.mode
        self._status(
            origin={"copied": True},
            identity={"renew": mode != "live" and self.image.status.agent},
            disks={ROOT: {"size": 2**30, "ready": mode != "overlay"}},
        )
        self.files |= {"disk", "state"} if mode == "live" else {"disk"} if mode == "full" else set()
        self.used = True

    def die(self) -> None:
        self.tuned = self.cpus = self.memory = None
        self.process, self.qemu, self.connected, self.network = "absent", None, False, False

    def _status(self, **changes: Any) -> None:
        assert self.vm
        self.vm = self.vm.but(status=self.vm.status.but(**changes))

    def _spec(self, **changes: Any) -> None:
        assert self.vm
        self.vm = self.vm.but(spec=self.vm.spec.but(**changes))

    def ask(self, power: str, **changes: Any) -> None:
        """Somebody asks that it runs or is paused, as the actions take it."""
        assert self.vm
        self._spec(power=power, asked=self.vm.spec.asked + (self.vm.wanted == "stopped"), **changes)

    # ---- the effects, by the names of steps

    def make_disk(self, seen: World, _: Any) -> None:
        self.files.add("disk")
        template = "template-id" if self.warm and not seen.vm.status.warm.cold else None
        cold = (
            None
            if template or seen.vm.wanted == "stopped"
            else seen.vm.status.warm.cold or "there is no template"
        )
        self._status(
            disks={ROOT: {"ready": True, "size": seen.vm.spec.root.size or 2**30}},
            warm={"template": template, "cold": cold},
        )

    def grow_disk(self, _: World, size: int) -> None:
        self._status(**parts.grown(ROOT, size))

    def make_seed(self, *_: Any) -> None:
        self.files.add("seed")

    def start(self, seen: World, _: Any) -> None:
        assert self.process == "absent", "a machine is never started twice"
        self.process, self.qemu, self.connected, self.network, self.signals = (
            "alive",
            "prelaunch",
            True,
            False,
            {},
        )
        spec = seen.vm.spec
        self.tuned, self.cpus, self.memory = (
            untuned(spec.cpu.count),
            spec.cpu.count,
            spec.memory.size,
        )
        shape = Shape(
            memory=spec.memory.size,
            cpus=spec.cpu.count,
            max_cpus=8,
            max_memory=spec.memory.size + 2**33,
        )
        begun = runtime(restarts=spec.restarts, started=seen.wall, shape=shape)
        self._status(runtime=begun, state="starting", stages={}, reason=None)

    def start_warm(self, seen: World, _: Any) -> None:
        assert seen.vm.status.identity.given is None and not self.used, (
            "a copy is only ever resumed on a disk that nobody used"
        )
        self.start(seen, None)
        self.qemu = "inmigrate"
        assert self.vm and self.vm.status.runtime
        self._status(runtime=self.vm.status.runtime.but(template="template-id"))

    def load_state(self, seen: World, _: Any) -> None:
        if self.warm == "breaks":
            self._go_cold(seen)
        else:
            self.qemu = "paused"

    def renew_identity(self, seen: World, _: Any) -> None:
        assert seen.process.qemu == "running"
        if self.warm == "refuses":
            self._go_cold(seen)
        else:
            self._status(**parts.known_as(seen.vm.name))

    def _go_cold(self, seen: World) -> None:
        self._status(warm={"cold": "it failed"})
        self.kill(seen, "cold")

    # ---- what it is given while it runs

    def tune(self, _: World, wanted: Tuning) -> None:
        assert self.process == "alive"
        self.tuned = wanted

    def resize_cpus(self, seen: World, wanted: int) -> None:
        self._resize(seen, "cpus", wanted)

    def resize_memory(self, seen: World, wanted: int) -> None:
        self._resize(seen, "memory", wanted)

    def resize_disk(self, seen: World, wanted: int) -> None:
        assert seen.process.qemu == "running"
        self._status(**parts.grown(ROOT, wanted))

    def _resize(self, seen: World, what: Sized, wanted: int) -> None:
        assert seen.process.qemu == "running" and seen.vm.status.identity.given is not None, (
            "a guest is asked only when it is up and itself"
        )
        if self.stubborn:
            assert self.vm
            self.vm = self.vm.but(spec=self.vm.spec.resized(what, getattr(self, what)))
            self.operation = None
        else:
            setattr(self, what, wanted)

    # ---- volumes

    def plug_disk(self, seen: World, wanted: tuple[Disk, Volume]) -> None:
        assert self.process == "alive"
        self._disks(lambda there: (*there, wanted[0]))

    def unplug_disk(self, seen: World, number: int) -> None:
        assert self.process == "alive"
        self._disks(lambda there: tuple(disk for disk in there if disk.number != number))

    def _disks(self, change: Callable[[tuple[Disk, ...]], tuple[Disk, ...]]) -> None:
        assert self.vm and self.vm.status.runtime
        there = self.vm.status.runtime
        self._status(runtime=there.but(disks=change(there.disks)))

    def grow_volume(self, seen: World, wanted: tuple[Disk, Volume]) -> None:
        volume = wanted[1]
        self._volume(volume.seen(size=volume.spec.size))

    def cancel_disk(self, seen: World, wanted: Any) -> None:
        self.operation = None

    def release_volume(self, seen: World, volume: Volume) -> None:
        self._volume(volume.let_go(ID))

    def _volume(self, changed: Volume) -> None:
        self.volumes = [changed if item.id == changed.id else item for item in self.volumes]

    # ---- copies

    def share_disk(self, seen: World, copy: Vm) -> None:
        assert self.process == "absent" and "leftover" not in self.files, (
            "nobody writes to what becomes a layer"
        )
        self.given.append(self.copies.pop(0).spec.origin.mode)  # type: ignore[union-attr]

    def convert_disk(self, seen: World, copy: Vm) -> None:
        self.share_disk(seen, copy)

    def save_live(self, seen: World, copy: Vm) -> None:
        assert (
            self.qemu == "running" and seen.vm.status.identity.given is not None
        ) or not self.image.status.agent
        self.given.append(self.copies.pop(0).spec.origin.mode)  # type: ignore[union-attr]

    def refuse_copy(self, _: World, refused: tuple[Vm, str]) -> None:
        self.refused.append(refused[1])
        self.copies.pop(0)

    def end_save(self, *_: Any) -> None:
        self.qemu = "running"

    def leave_to_owner(self, *_: Any) -> None:
        self.die()

    def tidy_home(self, *_: Any) -> None:
        self.files.discard("leftover")

    def stand_on_layer(self, seen: World, _: Any) -> None:
        assert seen.vm.status.origin.copied
        self.files.add("disk")
        self._status(disks={ROOT: {"ready": True}})

    def renew_copy(self, seen: World, _: Any) -> None:
        assert seen.vm.status.identity.renew
        self._status(**parts.known_as(seen.vm.name))

    def start_live(self, seen: World, _: Any) -> None:
        assert seen.vm.status.identity.given is None and "state" in self.files
        self.start(seen, None)
        self.qemu = "inmigrate"
        assert self.vm and self.vm.status.runtime
        self._status(runtime=self.vm.status.runtime.but(live=True))

    def load_live(self, seen: World, _: Any) -> None:
        if self.live == "breaks":
            self._fail_live(seen)
        else:
            self.qemu = "paused"

    def renew_live(self, seen: World, _: Any) -> None:
        assert (
            seen.process.qemu == "running"
            and seen.vm.status.runtime
            and seen.vm.status.runtime.live
        )
        if self.live == "refuses":
            self._fail_live(seen)
        else:
            self._status(**parts.known_as(seen.vm.name))
            self.files.discard("state")

    def _fail_live(self, seen: World) -> None:
        self.kill(seen, "failed")
        self.drop_copy(seen, "it failed")

    def drop_copy(self, _: World, why: str) -> None:
        assert self.process == "absent" and self.vm and self.vm.status.identity.given is None, (
            "one that was handed out is never dropped"
        )
        self.operation = None
        self.vm = self.vm.but(meta=self.vm.meta.but(purge=True))

    def start_network(self, *_: Any) -> None:
        assert self.process == "alive"
        self.network = True

    def plug_nic(self, seen: World, nic: Any) -> None:
        assert self.process == "alive" and seen.vm.status.runtime
        self._status(runtime=seen.vm.status.runtime.but(nics=(*seen.vm.status.runtime.nics, nic)))

    def unplug_nic(self, seen: World, number: int) -> None:
        assert seen.vm.status.runtime
        left = tuple(other for other in seen.vm.status.runtime.nics if other.number != number)
        self._status(runtime=seen.vm.status.runtime.but(nics=left))

    def resume(self, seen: World, _: Any) -> None:
        assert seen.vm.spec.owner == ME and seen.vm.status.runtime, "only with a durable record"
        self.qemu = "running"
        self.used = True

    def pause(self, *_: Any) -> None:
        self.qemu = "paused"

    def let_go(self, *_: Any) -> None:
        self._status(pressure={"held": None})

    def give_identity(self, seen: World, _: Any) -> None:
        self._status(**parts.known_as(seen.vm.name))

    def ask_shutdown(self, seen: World, _: Any) -> None:
        self.asked, self.asked_last = self.asked or self.now, self.now
        if self.qemu in ("paused", "prelaunch"):
            self.qemu = "running"

    def kill(self, seen: World, why: str) -> None:
        assert seen.vm.status.runtime
        if seen.vm.status.runtime.end is None:
            self._status(runtime=seen.vm.status.runtime.but(end=why))
        self.die()

    def end_stray(self, *_: Any) -> None:
        self.process = "absent"

    def collect(self, seen: World, end: Any) -> None:
        assert self.process == "absent" and self.vm
        self.asked = None
        recent = tuple(
            crash for crash in self.vm.status.power.crashes if seen.wall - crash.at < CRASH_WINDOW
        )
        if end.crashed:
            recent += (Crash(at=seen.wall, why=end.reason or ""),)
        if never_handed_out(self.vm):
            self._status(**parts.unused(ROOT, self.vm.status.warm.cold or "it ended"))
            self.files.discard("disk")
            self.used = False
        status = self.vm.status.without_process(
            state=end.state, reason=end.reason, power={"crashes": recent}
        )
        self.vm = self.vm.but(status=status)
        if not end.again:
            self._status(**parts.halts(seen.vm, end.reason or "it was stopped", seen.wall))
        if (
            not end.again
            and self.operation
            and self.operation.spec.deed.kind
            in ("launch", "copy", "start", "restart", "resume", "pause")
        ):
            self.operation = None

    def report(self, _: World, seen: dict[str, Any]) -> None:
        self._status(**seen)

    def note(self, _: World, stage: str) -> None:
        assert self.operation
        self.operation = self.operation.but(
            status=self.operation.status.but(stage=stage, phase="running")
        )

    def explain(self, seen: World, _: str) -> None:
        self.tell_why(seen, Finding("nobody knows"))

    def tell_why(self, _: World, found: Finding) -> None:
        assert self.operation
        self.operation = self.operation.but(status=self.operation.status.but(why=found.why))

    def finish(self, *_: Any) -> None:
        self.operation = None

    def fail(self, seen: World, told: tuple[str, str | None]) -> None:
        assert self.vm
        self.operation = None
        self._status(reason=told[0], **parts.halts(seen.vm, told[0], seen.wall))
        if not self.vm.status.disk.ready:
            self.vm = self.vm.but(meta=self.vm.meta.but(purge=True))

    def cancel_operation(self, seen: World, found: Operation) -> None:
        assert self.vm
        if self.process == "alive":
            self.kill(seen, "cancel")
        self._status(**parts.halts(seen.vm, "cancelled", seen.wall))
        self.vm = self.vm.but(
            meta=self.vm.meta.but(
                purge=self.vm.meta.purge or found.spec.deed.kind in ("launch", "create", "copy")
            )
        )
        self.operation = None

    def forget(self, *_: Any) -> None:
        assert self.process == "absent"
        self.vm, self.operation, self.files = None, None, set()


def after(found: World, step: Step) -> World:
    """The world with one planned report written down."""
    return replace(found, vm=found.vm.but(status=found.vm.status.but(**value_of(step))))
