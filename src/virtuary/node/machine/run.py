"""The live side of one running machine: its process, monitor, console and agent, and the signals
heard from them.

Nothing here decides or writes documents. A `Run` is made when a machine is started or adopted,
wakes the worker when something happened, and is closed when the process has ended or the daemon
goes; the machine does not notice either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, auto
from typing import Any

from virtuary.base.answers import Answer, read
from virtuary.base.clock import Clock
from virtuary.base.errors import Misbehaves, VirtuaryError
from virtuary.base.known import adopt
from virtuary.base.log import say
from virtuary.base.pace import Bucket
from virtuary.base.paths import VmPaths
from virtuary.base.proc import Identity, bury_ended
from virtuary.base.watched import Watched, watch
from virtuary.guest import cloudinit
from virtuary.guest.agent import Agent, open_agent
from virtuary.guest.clock import set_clock
from virtuary.guest.wake import Port
from virtuary.model.runtime import Runtime
from virtuary.model.status import CloudInit
from virtuary.node.machine.console import Console
from virtuary.node.site import Site
from virtuary.qemu import plug
from virtuary.qemu.process import open_errors, read_errors
from virtuary.qemu.qmp import LOOK, Monitor, open_monitor
from virtuary.qemu.tune import Size, find_size

logger = logging.getLogger("virtuary.run")
KERNEL_WORDS = re.compile(
    rb"Linux version|\[ +\d+\.\d{6}\]|Loading Linux|Loading initial|systemd\[1\]|: clean, |init: "
    rb"|login:"
)
SILENT_AFTER = 3
"""Deadlines missed in a row after which a machine counts as unresponsive."""
STANDSTILL = 0.2
"""Seconds for which a guest may have stood still in all before its clock is set."""
CLOUD_INIT_ASKED = 2.0
"""Seconds between two looks at what became of the user data, which takes an emulated guest half a
minute.
"""
SETTLING = 5.0
"""Seconds for which a guest that has just become a machine of its own is asked nothing that can
wait: its processor may be an emulated one.
"""
HEARTBEAT, HEARTBEAT_DEADLINE = 10.0, 2.0
"""Seconds between two questions to a monitor that answers, and how long an answer may take: a QEMU
that hangs tells nobody.
"""

SOON, LATER, LIES_LATER = 0.02, 1.0, 30.0
"""Seconds until somebody is listened to again: the least, the most, and the most where they lie."""
STEADY = 10.0
"""Seconds after which all went well."""
LAST_WORDS = 4000
"""Characters of them that are kept."""
EVENTS = (50, 20)
"""Events that are heeded at once, and a second for long."""
COMPLAINTS = (3, 1 / 60)
"""Lines in the log about one machine, at once and a second for long."""


class Phase(Enum):
    """How far a machine is on its way to be one of its own, and what may be asked of its guest."""

    AWAITS_WORD = auto()
    """It waits at its port to be told who it is. Its agent is not asked before: that takes an
    emulated processor a while.
    """
    BECOMING = auto()
    """It is no machine of its own yet: nothing but its agent's pulse is felt."""
    OWN = auto()
    """Everything may be asked."""
    OVER = auto()
    """Its process has ended."""

    @property
    def has_agent(self) -> bool:
        """Whether an agent may be listened to."""
        return self in (Phase.BECOMING, Phase.OWN)


class Run:
    def __init__(
        self, paths: VmPaths, runtime: Runtime, pidfd: int, errors: int | None, clock: Clock,
        wake: Callable[[], None], phase: Phase = Phase.OWN,
    ) -> None:  # fmt: skip
        self.paths, self.runtime = paths, runtime
        identity = Identity(runtime.pid, runtime.start)
        self._process, self._errors = Watched(identity, pidfd, self._on_end), errors
        self.monitor: Monitor | None = None
        self.agent: Agent | None = None
        self.qemu_status: str | None = None
        self.base = runtime.shape.memory if runtime.shape else 0
        """Bytes of memory the machine began with."""
        self.size: Size | None = None
        self.devices: frozenset[str] | None = None
        """Which it has that can be plugged out; None while that is not known."""
        """What it has, once it was asked."""
        self.misses = 0
        self.signals: dict[str, float] = {}
        """Stage -> seconds from the start to its signal, heard in this daemon's life."""
        self.addresses: tuple[str, ...] = ()
        self.last_words = ""
        """The end of what QEMU wrote to stderr, once it has ended."""
        self._network: Watched | None = None
        self._wake, self._clock = wake, clock
        self._complaints = Bucket(*COMPLAINTS)
        self._began = clock.now() - (clock.wall() - runtime.started).total_seconds()
        self._tasks: set[asyncio.Task[None]] = set()
        self._agent_task: asyncio.Task[None] | None = None
        self._probing = False
        self.phase = phase
        self.wake_port: Port | None = None
        self.host_keys_told: float | None = None
        """Monotonic time at which its host keys were given or told last; None when another daemon
        knew.
        """
        self.behind = 0.0
        """Seconds for which the guest stood still and its clock was not set since; a lot, where
        that began before this daemon.
        """
        self.clock_fault: str | None = None
        """Why its clock could not be set."""
        self._stopped: float | None = None
        self._slept = clock.slept()
        self.cloud_init: CloudInit | None = None
        """How far its user data is, once that was asked."""
        self.console = Console(paths.console, self._heard)

    def open(self) -> None:
        """Begin to listen; returns at once."""
        for listen in (self._follow_monitor, self._follow_console, self._feel_pulse):
            self._spawn(self._keep(listen))
        if self.runtime.network_pid and self.runtime.network_start:
            self.watch_network(Identity(self.runtime.network_pid, self.runtime.network_start))

    def watch_network(self, identity: Identity) -> None:
        """Notice the end of the process that serves this machine's network."""
        if self._network:
            self._network.let_go()
        self._network = watch(identity, self._on_network_end)
        if not self._network:
            bury_ended(identity.pid)

    @property
    def age(self) -> float:
        """Seconds since its start, whatever the host's clock was set to meanwhile."""
        return self._clock.now() - self._began

    @property
    def network_alive(self) -> bool:
        return self._network is not None

    @property
    def exit_status(self) -> int | None:
        """Of an ended process that was the daemon's child; negative for a signal."""
        return self._process.exit_status

    async def close(self) -> None:
        """Stop listening; the machine runs on."""
        self._process.let_go()
        if self._network:
            self._network.let_go()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leave_port()
        if self.agent:
            await self.agent.close()
        if self.monitor:
            await self.monitor.close()
        if self._errors is not None:
            os.close(self._errors)

    def _leave_port(self) -> None:
        if self.wake_port:
            self.wake_port.close()
        self.wake_port = None

    def words(self) -> str:
        """What QEMU wrote to stderr since the last call."""
        return "" if self._errors is None else read_errors(self._errors)

    def kill(self) -> None:
        self._process.end()

    def note(self, stage: str) -> None:
        """A real signal showed that `stage` was reached."""
        if stage not in self.signals:
            self.signals[stage] = self._clock.now() - self._began
            self._wake()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        """Say that something unexpected was met, unless so much of it is that it would be a
        flood.
        """
        if self._complaints.left() < 1:
            return
        self._complaints.take(1)
        server = self.paths.home.name
        if isinstance(error, VirtuaryError):
            say(
                logger,
                "listening met something unexpected",
                logging.WARNING,
                vm=server,
                error=error.sentence,
            )
        else:
            logger.error("listening met a defect vm=%s", server, exc_info=error)

    @contextlib.contextmanager
    def _unanswered(self) -> Iterator[None]:
        """What fails in here is asked again, or is not that important; what makes no sense is
        said.
        """
        try:
            yield
        except Misbehaves as error:
            self._complain(error)
        except VirtuaryError:
            pass

    async def _keep(self, listen: Callable[[], Awaitable[None]]) -> None:
        """Listen until the process has ended: again whenever that breaks off, ever more seldom
        where nobody answers, and more so where somebody lies.
        """
        pause = SOON
        while not self.ended:
            began, most = self._clock.now(), LATER
            try:
                await listen()
            except Misbehaves as error:
                most = LIES_LATER
                self._complain(error)
            except (VirtuaryError, OSError):
                pass
            except Exception as error:
                most = LIES_LATER
                self._complain(error)
            pause = SOON if self._clock.now() - began > STEADY else min(pause * 2, most)
            await asyncio.sleep(pause)

    def _on_end(self) -> None:
        self.last_words = self.words()[-LAST_WORDS:]
        self.phase = Phase.OVER
        self._wake()

    @property
    def ended(self) -> bool:
        return self.phase is Phase.OVER

    @property
    def may_be_asked(self) -> bool:
        """Whether its guest is a machine of its own, so that more than its agent's pulse may be
        felt.
        """
        return self.phase is Phase.OWN

    async def wait_ended(self, seconds: float) -> bool:
        """Wait for the end of the process, at most so long; says whether it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self.ended

    def _on_network_end(self) -> None:
        self._network = None
        self._wake()

    async def _follow_monitor(self) -> None:
        """Connect, learn the state, follow the events until the session breaks."""
        try:
            self.monitor = await open_monitor(self.paths.socket("qmp"))
            self.qemu_status = await self.monitor.status()
            if self.qemu_status == "paused" and self._stopped is None:
                self._stopped = self._began  # when it was paused another daemon knew
            self.misses = 0
            self._spawn(self._ask_agent_port())
            self._spawn(self.look_for_devices())
            self._wake()
            pace = Bucket(*EVENTS)
            async for name, data in self.monitor.events():
                await self._on_event(name, data)
                await asyncio.sleep(pace.take(1))
        except VirtuaryError:
            self.misses += 1
            self._wake()
            raise
        finally:
            monitor, self.monitor = self.monitor, None
            if monitor:
                await monitor.close()

    async def _on_event(self, name: str, data: Answer) -> None:
        if name == "VSERPORT_CHANGE":
            self.note("kernel")
            if data.flag("open"):
                self.start_agent()
        elif name == "NIC_RX_FILTER_CHANGED":
            self.note("kernel")
            self._spawn(self._probe_ssh())
        elif name in ("MEMORY_DEVICE_SIZE_CHANGE", "BALLOON_CHANGE"):
            await self.measure()
        elif name == "DEVICE_DELETED":
            await self.measure()
            await self.look_for_devices()
        elif name in ("STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED", "BLOCK_IO_ERROR"):
            self._note_standstill(name)
            await self.refresh()
            self._wake()

    def _note_standstill(self, event: str) -> None:
        """For as long as it is stopped the guest's clock stands still."""
        if event == "STOP":
            self._stopped = self._clock.now()
        elif event == "RESUME" and self._stopped is not None:
            self.behind += self._clock.now() - self._stopped
            self._stopped = None
            if self.behind > STANDSTILL:
                self._spawn(self._set_clock())

    def _note_suspension(self) -> None:
        """While the host was suspended the guest's clock stood still too, and nobody tells."""
        before, self._slept = self._slept, self._clock.slept()
        if self._slept - before > STANDSTILL and self._stopped is None:
            self.behind += self._slept - before
            self._spawn(self._set_clock())

    async def _set_clock(self) -> None:
        """Set the guest's clock, if its agent is up; else that is done when it is."""
        if self.agent is None or not self.may_be_asked or "agent" not in self.signals:
            return
        try:
            await set_clock(self.agent, lambda: self._clock.wall().timestamp())
            self.behind, self.clock_fault = 0.0, None
        except VirtuaryError as error:
            self.clock_fault = error.sentence
            say(
                logger,
                "clock not set",
                logging.WARNING,
                vm=self.paths.home.name,
                why=error.sentence,
            )
        self._wake()

    async def _feel_pulse(self) -> None:
        """Notice a QEMU that hangs, and that it goes on: its silence makes no event."""
        while not self.ended:
            await asyncio.sleep(0.5 if self.misses else HEARTBEAT)
            self._note_suspension()
            before = (self.silent, self.qemu_status)
            await self.refresh(HEARTBEAT_DEADLINE)
            if (
                self.size is None and self.qemu_status == "running" and not self.misses
            ):  # a guest without an agent, or one that was adopted
                await self.measure()
            if self.devices is None and not self.misses:
                await self.look_for_devices()
            if before != (self.silent, self.qemu_status):
                self._wake()

    async def look_for_devices(self) -> None:
        """See which devices the machine has; a guest lets go of one whenever it likes."""
        if self.monitor:
            with contextlib.suppress(VirtuaryError):
                before, self.devices = self.devices, await plug.find_devices(self.monitor)
                if before != self.devices:
                    self._wake()

    async def refresh(self, deadline: float = LOOK) -> None:
        """Ask QEMU for its state, when it can be asked; an answer that makes no sense is none."""
        if self.monitor is None:
            return
        try:
            self.qemu_status = await self.monitor.status(deadline)
            self.misses = 0
        except VirtuaryError as error:
            self.misses += 1
            if isinstance(error, Misbehaves):
                self._complain(error)

    async def measure(self) -> None:
        """Ask QEMU what the machine has; wakes the worker when that is something else than
        before.
        """
        if self.monitor is None or not self.base:
            return
        with self._unanswered():
            before, self.size = self.size, await find_size(self.monitor, self.base)
            if before != self.size:
                self._wake()

    @property
    def silent(self) -> bool:
        return self.misses >= SILENT_AFTER

    async def _ask_agent_port(self) -> None:
        """After adoption the port may be open already; no event will tell."""
        if self.monitor is None:
            return
        with self._unanswered():
            if await has_opened(self.monitor, "agent"):
                self.note("kernel")
                self.start_agent()
                self._spawn(self._probe_ssh())

    def start_agent(self) -> None:
        if self.phase.has_agent and (self._agent_task is None or self._agent_task.done()):
            self._agent_task = self._spawn(self._keep_agent())

    async def _keep_agent(self) -> None:
        """Connect to the agent until it answers, then learn the guest's addresses."""
        pause = 0.05
        while not self.ended:
            try:
                if self.agent is None:
                    self.agent = await open_agent(self.paths.socket("agent"))
                await self.agent.run("guest-ping", deadline=5)
                await self.measure()  # first, so that one report tells both
                self.note("agent")
                if self.behind > STANDSTILL:
                    self._spawn(self._set_clock())
                if self.may_be_asked:
                    await self._learn_addresses()
                return
            except Misbehaves as error:
                self._complain(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LIES_LATER)
            except (VirtuaryError, OSError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2)

    async def speak(self, ssh_listens: bool, addresses: tuple[str, ...] = ()) -> None:
        """The guest has become a machine of its own: learn its addresses, look for its SSH where it
        was not seen from inside.

        `addresses`: what it was given; it is asked when whoever waited for it had time to log in.
        """
        if self.ended:
            return
        awaited, self.phase = self.phase is Phase.AWAITS_WORD, Phase.OWN
        self.addresses = addresses
        if awaited:
            self._leave_port()
            try:
                self.agent = await open_agent(self.paths.socket("agent"))
            except OSError:
                return  # its process has ended, and whoever watches that tells
            await self.measure()  # first, so that one report tells both
            self.note("agent")  # its template's was up
        if ssh_listens:
            self.note("network")
            self.note("ssh")
        else:
            self._spawn(self._probe_ssh())
        self._spawn(self._learn_addresses(SETTLING if addresses else 0))

    async def _learn_addresses(self, after: float = 0) -> None:
        await asyncio.sleep(after)
        assert self.agent
        for attempt in range(120):
            with self._unanswered():
                if found := await self.agent.addresses():
                    self.addresses = found
                    self.note("network")
                    self._spawn(self._probe_ssh())
                    return
            await asyncio.sleep(0.1 if attempt < 20 else 1)

    def follow_cloud_init(self) -> None:
        """Ask the guest from time to time what became of its user data, until that is over."""
        self._spawn(self._follow_cloud_init())

    async def _follow_cloud_init(self) -> None:
        while not self.ended:
            await asyncio.sleep(CLOUD_INIT_ASKED)
            if (
                self.agent is None
                or not self.may_be_asked
                or self.qemu_status != "running"
                or "agent" not in self.signals
            ):
                continue
            with self._unanswered(), contextlib.suppress(TimeoutError):
                found = await cloudinit.ask(self.agent)
                if found != self.cloud_init:
                    self.cloud_init = found
                    self._wake()
                if found.state in ("done", "error"):
                    return

    async def _probe_ssh(self) -> None:
        """Look for the banner of the guest's SSH server behind its published port."""
        port = self.runtime.ssh_port
        if port is None or self._probing or not self.may_be_asked:
            return
        self._probing = True
        patience = 0.5
        while not self.ended and "ssh" not in self.signals:
            if self.qemu_status != "running":
                await asyncio.sleep(1)  # a paused guest answers nobody
            elif await _banner(self.runtime.ssh_host, port, patience):
                self.note("network")
                self.note("ssh")
            else:
                await asyncio.sleep(patience / 5)
                patience = min(patience * 1.3, 10.0)

    async def _follow_console(self) -> None:
        await self.console.follow(self.paths.socket("serial"))

    def _heard(self, chunk: bytes) -> None:
        if "kernel" not in self.signals and KERNEL_WORDS.search(chunk):
            self.note("kernel")


async def has_opened(monitor: Monitor, port: str) -> bool:
    """Whether a program in the guest has this port of its machine open."""
    found = read(await monitor.run("query-chardev")).items()
    return any(item.text("label", None) == port and item.flag("frontend-open") for item in found)


async def _banner(host: str, port: int, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"SSH-2.0-virtuary\r\n")
                return (await reader.read(4)) == b"SSH-"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def open_run(
    paths: VmPaths, runtime: Runtime, site: Site, wake: Callable[[], None],
    errors: int | None = None, phase: Phase = Phase.OWN,
) -> Run | None:  # fmt: skip
    """Listen to the process `runtime` describes, if it still is that process, with that user; else
    None.

    `errors`: where its stderr is read, when it was just started; found again otherwise. `phase`:
    how far the machine is; `speak` says that it has become one of its own.
    """
    if runtime.boot_id != site.boot:
        return None
    pidfd = adopt(Identity(runtime.pid, runtime.start), runtime.uid)
    if pidfd is None:
        return None
    if errors is None:
        with contextlib.suppress(OSError):
            errors = open_errors(paths.runtime)
    run = Run(paths, runtime, pidfd, errors, site.clock, wake, phase)
    run.open()
    return run
