"""What only QEMU and the guest can tell: memory as the guest sees it, operations of its disk,
traffic of its card.

Questions stand beside the sampling and never hold it up: each is a task with a short deadline,
about one machine. QEMU answers from its own memory; only traffic asks the guest, by its agent,
while somebody looks. So many questions a second are asked in all, those that waited longest first,
so that a large host costs no more than a small one: its answers are older, and say so.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from virtuary.base.answers import read
from virtuary.base.clock import Clock
from virtuary.base.errors import Misbehaves, VirtuaryError
from virtuary.base.log import say
from virtuary.host.metrics import Meter
from virtuary.node.machine.run import Run
from virtuary.qemu.qmp import CommandFailed

logger = logging.getLogger("virtuary.asking")
BUDGET = 4
"""Questions a second, to all machines together."""
DEADLINE = 2.0
REFUSAL = 30.0
"""Seconds for which one that did not answer is not asked the same again."""
EARLY, EARLY_TRIES = 3.0, 10
"""Seconds between two looks for the first words of a guest that is only coming up, and how many
looks.
"""
BALLOON = "/machine/peripheral/balloon0"
BALLOON_POLL = 10
"""Seconds after which the balloon asks the guest again, by itself."""
WATCHED = {"memory": 10.0, "blocks": 5.0, "traffic": 5.0}
UNWATCHED = {"memory": 60.0}
"""Seconds between two questions of a kind; what nobody looks at is asked for the history alone."""
FRESH = {"memory": 150.0, "blocks": 45.0, "traffic": 45.0}
"""Seconds for which an answer tells how things are; what is older does not go into the history."""
WITHIN = 120.0
"""Seconds between two answers that still make a rate: on a large host the next one takes its time.
"""
SECOND = 2.0
"""Seconds after a first answer until the second one, which makes a rate of it."""
STEADY = 5
"""Seconds over which pages that are read again are counted at least: what wakes after a while reads
many at once, and lacks no memory.
"""
UNKNOWN = 2**62
"""The guest did not say: QEMU shows all bits set."""


class Memory(NamedTuple):
    total: int
    available: int
    free: int | None
    cached: int | None
    at: int
    """When the guest said so, in seconds since 1970."""


class Told:
    """What one machine, or its QEMU, said last."""

    def __init__(self, run: Run, mac: str) -> None:
        self.run, self.mac = run, mac
        self.memory: Memory | None = None
        self.swap, self.faults = Meter(), Meter()
        self.reads, self.writes, self.read_time, self.write_time = (
            Meter(),
            Meter(),
            Meter(),
            Meter(),
        )
        self.received, self.sent = Meter(), Meter()
        self.asked: dict[str, float] = {}
        """Kind of question -> when it was asked last, by the monotonic clock."""
        self.next: dict[str, float] = {}
        """Kind of question -> when it is to be asked again, where that is not a matter of pace."""
        self.tries = 0
        self.answered: dict[str, float] = {}
        """Kind of question -> when it was answered last."""
        self.busy: set[str] = set()
        self.polls = False
        self.mute: set[str] = set()
        """Questions this QEMU does not know."""
        self.odd: set[str] = set()
        """Questions it has answered in a way that makes no sense, which is said once."""

    def rest(self) -> None:
        """The machine does not run: nothing moves."""
        for meter in (
            self.swap,
            self.faults,
            self.reads,
            self.writes,
            self.read_time,
            self.write_time,
            self.received,
            self.sent,
        ):
            meter.rest()

    def count_traffic(self, received: float, sent: float, now: float) -> None:
        """Note counters of its network. Whoever can read them on the host's side calls this, and
        the guest need not be asked.
        """
        for meter, total in ((self.received, received), (self.sent, sent)):
            if meter.read(total, now, WITHIN) is None:
                self.next["traffic"] = now + SECOND
        self.answered["traffic"] = now

    def due(self, question: str, pace: float) -> float:
        """When it is to be asked."""
        return self.next.get(question, self.asked.get(question, -math.inf) + pace)

    def fresh(self, question: str, now: float) -> bool:
        """Whether its last answer still tells how things are."""
        return now - self.answered.get(question, -math.inf) <= FRESH[question]

    def can(self, question: str) -> bool:
        """Whether there is somebody to ask just now."""
        run = self.run
        if (
            run.ended
            or run.silent
            or run.monitor is None
            or question in self.busy
            or question in self.mute
        ):
            return False
        if question == "traffic" and run.runtime.network == "tap":
            return False  # counted on the host's side
        if question == "traffic":
            return run.agent is not None and "agent" in run.signals and run.may_be_asked
        return question != "memory" or run.may_be_asked


async def ask_memory(told: Told, clock: Clock) -> None:
    """What the guest last told its balloon. The first time the balloon is only asked to ask."""
    assert told.run.monitor
    if not told.polls:
        await told.run.monitor.run(
            "qom-set",
            DEADLINE,
            path=BALLOON,
            property="guest-stats-polling-interval",
            value=BALLOON_POLL,
        )
        told.polls = True
        told.next["memory"] = clock.now() + 1
        return
    answer = await told.run.monitor.run("qom-get", DEADLINE, path=BALLOON, property="guest-stats")
    note_memory(told, answer)
    told.tries += 1
    if told.memory:
        told.answered["memory"] = clock.now()
    elif told.tries < EARLY_TRIES:
        told.next["memory"] = clock.now() + EARLY


def note_memory(told: Told, value: object) -> None:
    """What `guest-stats` says, as far as it makes sense: a guest may say anything."""
    answer = read(value)
    stats = {
        name: found
        for name, item in answer.fields("stats").items()
        if (found := item.sensible(limit=UNKNOWN)) is not None
    }
    total, at = stats.get("stat-total-memory"), answer.sensible("last-update")
    available = stats.get("stat-available-memory", stats.get("stat-free-memory"))
    if not at or total is None or available is None or available > total:
        return
    told.memory = Memory(
        total, available, stats.get("stat-free-memory"), stats.get("stat-disk-caches"), at
    )
    swapped = [stats[name] for name in ("stat-swap-in", "stat-swap-out") if name in stats]
    if swapped:
        told.swap.read(sum(swapped), at, WITHIN)
    if told.faults.at is None or at - told.faults.at >= STEADY:
        told.faults.read(stats.get("stat-major-faults"), at, WITHIN)


async def ask_blocks(told: Told, clock: Clock) -> None:
    assert told.run.monitor
    answer = await told.run.monitor.run("query-blockstats", DEADLINE)
    note_blocks(told, answer, clock.now())


def note_blocks(told: Told, answer: object, now: float) -> None:
    """Operations of all the machine's disks together, and the time they took."""
    stats = [item.inner("stats") for item in read(answer).items()]
    meters = {
        "rd_operations": told.reads, "wr_operations": told.writes,
        "rd_total_time_ns": told.read_time, "wr_total_time_ns": told.write_time
    }  # fmt: skip
    for name, meter in meters.items():
        if meter.read(sum(item.number(name, 0) for item in stats), now, WITHIN) is None:
            told.next["blocks"] = now + SECOND
    told.answered["blocks"] = now


async def ask_traffic(told: Told, clock: Clock) -> None:
    assert told.run.agent
    found = await told.run.agent.traffic(told.mac, DEADLINE)
    if found:
        told.count_traffic(*found, clock.now())


Question = Callable[[Told, Clock], Awaitable[None]]
QUESTIONS: dict[str, Question] = {
    "memory": ask_memory,
    "blocks": ask_blocks,
    "traffic": ask_traffic,
}


def due(every: Iterable[Told], watched: bool, now: float) -> list[tuple[Told, str]]:
    """What is to be asked now, what waited longest first; never more than the budget. Pure."""
    pace = WATCHED if watched else UNWATCHED
    waiting = [
        (told.due(question, seconds), index, told, question)
        for index, told in enumerate(every)
        for question, seconds in pace.items()
        if told.due(question, seconds) <= now and told.can(question)
    ]
    waiting.sort(key=lambda item: item[:2])
    return [(told, question) for _, _, told, question in waiting[:BUDGET]]


def begin(group: asyncio.TaskGroup, every: Iterable[Told], watched: bool, clock: Clock) -> None:
    """Ask what is due; returns at once."""
    now = clock.now()
    for told, question in due(every, watched, now):
        told.asked[question] = now
        told.next.pop(question, None)
        told.busy.add(question)
        group.create_task(_ask(told, question, clock))


async def _ask(told: Told, question: str, clock: Clock) -> None:
    try:
        await QUESTIONS[question](told, clock)
    except CommandFailed:
        told.mute.add(question)
    except VirtuaryError as error:
        told.next[question] = clock.now() + REFUSAL
        if isinstance(error, Misbehaves) and question not in told.odd:
            told.odd.add(question)
            say(
                logger,
                "an odd answer",
                logging.WARNING,
                question=question,
                pid=told.run.runtime.pid,
                error=error.sentence,
            )
    except Exception:
        told.mute.add(question)
        logger.exception("question=%s: a defect", question)
    finally:
        told.busy.discard(question)
