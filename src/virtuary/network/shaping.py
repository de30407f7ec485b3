"""Bandwidth of servers on a bridge: limits, floors and shares, by the kernel's traffic control.

What a server sends arrives at its tap, what it receives leaves there. Both are led through a device
of the network (IFB), one for each direction, and return to where they were. On it stands one HTB
tree: the root is the link, below it every server has a class whose rate is its floor, whose ceiling
is its limit, and whose quantum is its weight; the class is told by the tap that a frame came by
(u32's `indev`), which no guest can forge. A direction in which nobody asks for a floor or a share
has no link to share, and only servers with a limit are led through it. Where nobody asks for
anything, nothing is there: no device, no qdisc.

What should be there and what is there are told in the same facts; their difference is a list of
lines for `ip` and `tc`. A class or a queue is changed in place and loses no frame. Frames between
two servers of a bridge count like those of its link. Rules of nftables' netdev family would not see
what a server sends, as it does not pass there twice; those of the bridge family see everything.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from virtuary.base.errors import Bug, Failed, HostLacks
from virtuary.model.bandwidth import DIRECTIONS, MAX_RATE, Bandwidth, Direction, Rate, usable
from virtuary.network.iproute import ask, batch, change

Leaf = Literal["fq_codel", "bfifo"]
ROOT, FIRST_NUMBER, LAST_NUMBER = 1, 2, 0xFFE
UNBOUNDED = MAX_RATE
"""Bits a second of what has no limit, where no link is shared."""
LEAST = 8_000
"""Bits a second of a class without a floor, because HTB wants some; promised to nobody."""
PACKET = 72 * 1024
"""The biggest thing that passes at once: 64 KiB that the NIC cuts into frames (GSO), with the
headers of all of them.
"""
BURST_SECONDS = 0.01
"""What a class may make up for when a timer of the kernel comes late."""
QUEUE_SECONDS, QUEUE_LEAST, QUEUE_MOST = 0.1, 3 * PACKET, 16 * 1024 * 1024
"""How much may wait: so long at the class's ceiling, within these bytes."""
ROUND_SECONDS = 0.25
"""How long one class may send at most before the others have their turn."""
IFB_QUEUE, PREFERENCE = 1000, 10
_HOOKS: dict[Direction, str] = {"inbound": "egress", "outbound": "ingress"}
_PREFERENCES = {"egress": PREFERENCE, "ingress": PREFERENCE + 1}
_INTERFACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}")


class Port(NamedTuple):
    """A server's NIC on the bridge."""

    name: str
    """Its interface on the host, a tap."""
    number: int
    """Its class: 2 to 4094, on this network its own, and the same as long as it lives."""
    bandwidth: Bandwidth


class Segment(NamedTuple):
    """A bridge with everything that shares its link."""

    bridge: str
    link: int | None
    """Bits a second, stated or measured; unknown, there are neither floors nor shares."""
    ports: tuple[Port, ...]


# ---- facts: each with the place that only one can have, and the lines that make and remove it


class Device(NamedTuple):
    """The IFB that a direction of a network is led through."""

    name: str

    def make(self) -> str:
        return f"ip link add {self.name} type ifb"

    def remove(self) -> str:
        return f"ip link del {self.name}"


class Up(NamedTuple):
    name: str

    def make(self) -> str:
        return f"ip link set {self.name} txqueuelen {IFB_QUEUE} up"


class Tree(NamedTuple):
    """The HTB qdisc of a device."""

    device: str

    def make(self) -> str:
        return f"tc qdisc replace dev {self.device} root handle 1: htb default 0"


class Class(NamedTuple):
    """A class of the tree; rates in bits a second, the rest in bytes. The root has no quantum."""

    device: str
    number: int
    rate: int
    ceiling: int
    burst: int
    ceiling_burst: int
    quantum: int

    def make(self) -> str:
        parent = "1:" if self.number == ROOT else f"1:{ROOT}"
        rates = (
            f"rate {self.rate}bit ceil {self.ceiling}bit burst {self.burst} cburst "
            f"{self.ceiling_burst}"
        )
        return (
            f"tc class replace dev {self.device} parent {parent} classid 1:{self.number:x} "
            f"htb {rates} quantum {self.quantum or PACKET}"
        )

    def remove(self) -> str:
        return f"tc class del dev {self.device} classid 1:{self.number:x}"


class Queue(NamedTuple):
    """What waits in a class, and how many bytes at most."""

    device: str
    number: int
    kind: str
    limit: int

    def make(self) -> str:
        limit = (
            f"limit 10240 memory_limit {self.limit}"
            if self.kind == "fq_codel"
            else f"limit {self.limit}"
        )
        return f"tc qdisc replace dev {self.device} parent 1:{self.number:x} {self.kind} {limit}"


class Entry(NamedTuple):
    """That frames of an interface belong to a class. The kernel knows the interface by its index: a
    new one of the same name is another.
    """

    device: str
    number: int
    port: str

    @property
    def _handle(self) -> str:
        return f"handle 800::{self.number:x} protocol all pref {PREFERENCE} u32"

    def make(self) -> str:
        match = f"match u32 0 0 indev {self.port} flowid 1:{self.number:x}"
        return f"tc filter replace dev {self.device} parent 1: {self._handle} {match}"

    def remove(self) -> str:
        return f"tc filter del dev {self.device} parent 1: {self._handle}"


class Hook(NamedTuple):
    """The place of an interface where filters can be put."""

    port: str

    def make(self) -> str:
        return f"tc qdisc replace dev {self.port} clsact"

    def remove(self) -> str:
        return f"tc qdisc del dev {self.port} clsact"


class Detour(NamedTuple):
    """That the frames of a direction are led from an interface through a device.

    It can't be replaced, only removed and made: both hooks of an interface share their handles, and
    which one is whose is chance. For the same reason each has its own preference: with a common one
    the kernel tells the filters of both at each.
    """

    port: str
    hook: str
    device: str

    def make(self) -> str:
        put = (
            f"protocol all pref {_PREFERENCES[self.hook]} u32 match u32 0 0 action mirred "
            f"egress redirect dev {self.device}"
        )
        return f"tc filter add dev {self.port} {self.hook} {put}"

    def remove(self) -> str:
        return f"tc filter del dev {self.port} {self.hook} pref {_PREFERENCES[self.hook]}"


Fact = Device | Up | Tree | Class | Queue | Entry | Hook | Detour
Removable = Device | Class | Entry | Hook | Detour


class Found(NamedTuple):
    """What the kernel has of a network."""

    interfaces: frozenset[str]
    """All there are."""
    facts: tuple[Fact, ...]


def _place(fact: Fact) -> tuple[object, ...]:
    """What of a fact there can be only one: of a class its number, of a detour its interface and
    direction.
    """
    return (type(fact), *fact[: 2 if isinstance(fact, Class | Queue | Entry | Detour) else 1])


def _alike(one: Fact, other: Fact | None) -> bool:
    """Equal, but for what the kernel's own rounding makes of numbers."""
    return other is not None and all(
        math.isclose(mine, theirs, rel_tol=0.002)
        if isinstance(mine, int) and isinstance(theirs, int)
        else mine == theirs
        for mine, theirs in zip(one, other, strict=True)
    )


# ---- what should be there


def device_of(bridge: str, direction: Direction) -> str:
    """The IFB of a bridge's direction; a name that is too long for this is shortened."""
    short = (
        bridge
        if len(bridge) <= 13
        else bridge[:4] + hashlib.sha256(bridge.encode()).hexdigest()[:9]
    )
    return f"{short}-{direction[0]}"


def is_shared(segment: Segment, direction: Direction) -> bool:
    """Whether servers share the link in this direction: its speed is known, and somebody asks for a
    floor or a weight.
    """
    return segment.link is not None and any(
        port.bandwidth.rate(direction).shares for port in segment.ports
    )


def describe(segment: Segment, leaf: Leaf) -> list[Fact]:
    """Everything that should be there, in the order in which it can be made. Pure."""
    _check(segment)
    facts = itertools.chain.from_iterable(
        _describe(segment, direction, leaf) for direction in DIRECTIONS
    )
    # both directions have the same hook
    return list({_place(fact): fact for fact in facts}.values())


def _check(segment: Segment) -> None:
    numbers = [port.number for port in segment.ports]
    if len(set(numbers)) < len(numbers) or any(
        not FIRST_NUMBER <= number <= LAST_NUMBER for number in numbers
    ):
        raise Bug(
            f"classes on {segment.bridge} are different numbers from {FIRST_NUMBER} to "
            f"{LAST_NUMBER}, found {numbers}"
        )
    for name in (segment.bridge, *(port.name for port in segment.ports)):
        if not _INTERFACE.fullmatch(name):
            raise Bug(f"{name!r} is no name of a network interface")


def _describe(segment: Segment, direction: Direction, leaf: Leaf) -> Iterator[Fact]:
    shared = is_shared(segment, direction)
    rates = {
        port: port.bandwidth.rate(direction)
        for port in segment.ports
        if shared or port.bandwidth.rate(direction).limit
    }
    if not rates:
        return
    device = device_of(segment.bridge, direction)
    capacity = usable(segment.link) if shared and segment.link else UNBOUNDED
    yield from (Device(device), Up(device), Tree(device), _root(device, capacity))
    floors, quanta = _floors(rates, capacity), _quanta(rates, capacity)
    for port, rate in rates.items():
        ceiling = min(rate.limit or capacity, capacity)
        floor = min(floors[port], ceiling) if shared else ceiling
        bursts = (_burst(floor), max(_burst(ceiling), rate.burst or 0))
        yield Class(device, port.number, floor, ceiling, *bursts, quanta[port])
        yield Queue(device, port.number, leaf, _queue(ceiling))
        yield Entry(device, port.number, port.name)
        yield Hook(port.name)
        yield Detour(port.name, _HOOKS[direction], device)


def _root(device: str, capacity: int) -> Class:
    return Class(device, ROOT, capacity, capacity, _burst(capacity), _burst(capacity), 0)


def _floors(rates: dict[Port, Rate], capacity: int) -> dict[Port, int]:
    """Floors as they are kept. A link that became slower than what was promised takes from all
    alike.
    """
    promised = sum(rate.floor or 0 for rate in rates.values())
    kept = min(1.0, capacity / promised) if promised else 1.0
    return {port: max(LEAST, int((rate.floor or 0) * kept)) for port, rate in rates.items()}


def _quanta(rates: dict[Port, Rate], capacity: int) -> dict[Port, int]:
    """Bytes in turn, by weight. One of less than the biggest packet would get a packet
    nevertheless; one of too much would keep others waiting.
    """
    lightest = min(rate.weight for rate in rates.values())
    most = max(PACKET, int(capacity / 8 * ROUND_SECONDS))
    return {port: min(most, PACKET * rate.weight // lightest) for port, rate in rates.items()}


def _burst(rate: int) -> int:
    return max(PACKET, int(rate / 8 * BURST_SECONDS))


def _queue(ceiling: int) -> int:
    return min(QUEUE_MOST, max(QUEUE_LEAST, int(ceiling / 8 * QUEUE_SECONDS)))


# ---- the difference


def plan(segment: Segment, found: Found, leaf: Leaf) -> list[str]:
    """The lines, each beginning with `ip` or `tc`, that make of what was found what should be
    there; none when it is so. Pure.

    A port whose interface is not there is left out: its server is not running. What is new is made
    before what is old goes.
    """
    present = segment._replace(
        ports=tuple(port for port in segment.ports if port.name in found.interfaces)
    )
    wanted = describe(present, leaf)
    there = {_place(fact): fact for fact in found.facts}
    lines = []
    for fact in wanted:
        before = there.get(_place(fact))
        if not _alike(fact, before):
            lines += [before.remove()] if isinstance(before, Detour) else []
            lines.append(fact.make())
    return lines + [fact.remove() for fact in _surplus(wanted, found)]


def _surplus(wanted: Sequence[Fact], found: Found) -> list[Removable]:
    """What is to be removed, in an order in which it can be; not what goes with the thing that it
    is on.

    A hook is ours if a detour of ours was on it: others may have made one for themselves.
    """
    kept = {_place(fact) for fact in wanted}
    surplus = [fact for fact in found.facts if _place(fact) not in kept]
    detours = [fact for fact in surplus if isinstance(fact, Detour)]
    ours = {detour.port for detour in detours}
    hooks = [fact for fact in surplus if isinstance(fact, Hook) and fact.port in ours]
    devices = [fact for fact in surplus if isinstance(fact, Device)]
    going = {hook.port for hook in hooks} | {device.name for device in devices}
    inner: list[Removable] = [fact for fact in detours if fact.port not in going]
    inner += [fact for fact in surplus if isinstance(fact, Entry) and fact.device not in going]
    inner += [fact for fact in surplus if isinstance(fact, Class) and fact.device not in going]
    return [*hooks, *inner, *devices]


# ---- the kernel's side


async def probe(namespace: str | None = None) -> Leaf:
    """What should wait in the classes: fq_codel where the kernel has it, else a plain queue. Raises
    HostLacks where shaping can't work.

    It is tried on a device that is gone afterwards; once in the life of a daemon is enough.
    """
    name = f"vtry{os.getpid() % 10**7}-o"
    entry, detour = Entry(name, FIRST_NUMBER, name), Detour(name, "egress", name)
    root, inner = (
        Class(name, ROOT, LEAST, LEAST, PACKET, PACKET, 0),
        Class(name, FIRST_NUMBER, LEAST, LEAST, PACKET, PACKET, PACKET),
    )
    facts: list[Fact] = [Device(name), Up(name), Tree(name), root, inner, entry, Hook(name), detour]
    try:
        await change([fact.make() for fact in facts], namespace)
        tried = await batch([Queue(name, FIRST_NUMBER, "fq_codel", QUEUE_LEAST).make()], namespace)
        if tried.status == 0:
            return "fq_codel"
        await change([Queue(name, FIRST_NUMBER, "bfifo", QUEUE_LEAST).make()], namespace)
        return "bfifo"
    except Failed as error:
        raise HostLacks(
            f"this host can't shape traffic: {error.sentence}",
            "its kernel needs ifb, sch_htb, cls_u32 and act_mirred",
        ) from error
    finally:
        await batch([Device(name).remove()], namespace)


async def apply(segment: Segment, leaf: Leaf, namespace: str | None = None) -> list[str]:
    """Make the kernel's side as `segment` says, and return the lines that this took. Repeats
    harmlessly, and takes none then.

    Raises Failed with the first line the kernel refused; the others are done. `namespace` names a
    network namespace, None is ours. Two at a time for one bridge would disturb each other.
    """
    lines = plan(segment, await read_back(segment, namespace), leaf)
    await change(lines, namespace)
    return lines


async def remove(bridge: str, namespace: str | None = None) -> list[str]:
    """Remove all that is there for a bridge; what lies in queues is lost. Nothing there is no
    failure.
    """
    return await apply(Segment(bridge, None, ()), "bfifo", namespace)


async def read_back(segment: Segment, namespace: str | None = None) -> Found:
    """What the kernel has of a network now. `plan` with it tells whether somebody removed
    something.
    """
    links = json.loads(await ask("ip", ["-j", "link", "show"], namespace))
    names = frozenset(str(link["ifname"]) for link in links)
    devices = [device_of(segment.bridge, direction) for direction in DIRECTIONS]
    facts: list[Fact] = []
    for link in links:
        if link["ifname"] in devices:
            facts += [
                Device(link["ifname"]),
                *([Up(link["ifname"])] if "UP" in link["flags"] else []),
            ]
    qdiscs = json.loads(await ask("tc", ["-j", "qdisc", "show"], namespace))
    facts += parse_qdiscs(qdiscs, devices)
    for fact in [fact for fact in facts if isinstance(fact, Tree)]:
        facts += parse_classes(
            fact.device, await ask("tc", ["-d", "class", "show", "dev", fact.device], namespace)
        )
        facts += parse_entries(
            fact.device,
            await ask("tc", ["filter", "show", "dev", fact.device, "parent", "1:"], namespace),
        )
    members = {str(link["ifname"]) for link in links if link.get("master") == segment.bridge}
    ports = {port.name for port in segment.ports}
    hooked = sorted(
        {str(qdisc["dev"]) for qdisc in qdiscs if qdisc["kind"] == "clsact"} & (members | ports)
    )
    return Found(
        names,
        (
            *facts,
            *(Hook(name) for name in hooked),
            *await _detours(hooked, ports, devices, namespace),
        ),
    )


async def _detours(
    hooked: Sequence[str], ports: set[str], devices: Sequence[str], namespace: str | None
) -> list[Detour]:
    """What is led elsewhere from these interfaces; from those that are no ports of ours only what
    is led through our devices.
    """
    asked = [(port, hook) for port in hooked for hook in _HOOKS.values()]
    if not asked:
        return []
    said = await batch(
        [f"tc filter show dev {port} {hook}" for port, hook in asked], namespace, "-j"
    )
    answers = re.split(r"^\[", said.stdout.decode(errors="replace"), flags=re.MULTILINE)[1:]
    if len(answers) != len(asked):
        raise Failed("a network interface vanished while its traffic control was looked at")
    found = []
    for (port, hook), answer in zip(asked, answers, strict=True):
        targets = re.findall(r'"to_dev":"([^"]+)"', answer)
        if f'"pref":{_PREFERENCES[hook]},' in answer and (
            port in ports or set(targets) & set(devices)
        ):
            found.append(Detour(port, hook, targets[0] if len(targets) == 1 else ""))
    return found


def parse_qdiscs(qdiscs: Sequence[dict[str, object]], devices: Sequence[str]) -> list[Fact]:
    """The trees and queues of these devices in what `tc -j qdisc show` says."""
    facts: list[Fact] = []
    for qdisc in qdiscs:
        device, kind, parent = str(qdisc["dev"]), str(qdisc["kind"]), str(qdisc.get("parent", ""))
        options = qdisc.get("options")
        if device not in devices:
            continue
        if kind == "htb" and qdisc.get("root") and qdisc.get("handle") == "1:":
            facts.append(Tree(device))
        elif parent.startswith("1:") and isinstance(options, dict):
            limit = options.get("memory_limit" if kind == "fq_codel" else "limit", 0)
            facts.append(Queue(device, int(parent[2:], 16), kind, int(limit)))
    return facts


_CLASS = re.compile(
    r"^class htb 1:(?P<number>[0-9a-f]+) .*?(?:quantum (?P<quantum>\d+) )?rate (?P<rate>\w+) "
    r"ceil (?P<ceiling>\w+) .*?"
    r"\bburst (?P<burst>[\w.]+).*? cburst (?P<ceiling_burst>[\w.]+)",
    re.MULTILINE,
)
_ENTRY = re.compile(
    r"^filter .*? fh 800::([0-9a-f]+) .*?flowid 1:([0-9a-f]+)(?:.*\n  match .*\n  input dev "
    r"(\S+))?",
    re.MULTILINE,
)
_UNITS = {
    "bit": 1,
    "Kbit": 10**3,
    "Mbit": 10**6,
    "Gbit": 10**9,
    "Tbit": 10**12,
    "b": 1,
    "Kb": 1024,
    "Mb": 1024**2,
    "Gb": 1024**3,
}


def parse_classes(device: str, text: str) -> list[Class]:
    """The classes in what `tc -d class show` says."""
    found = []
    for match in _CLASS.finditer(text):
        rate, ceiling, burst, ceiling_burst = (
            _number(match[name]) for name in ("rate", "ceiling", "burst", "ceiling_burst")
        )
        found.append(
            Class(
                device,
                int(match["number"], 16),
                rate,
                ceiling,
                burst,
                ceiling_burst,
                int(match["quantum"] or 0),
            )
        )
    return found


def _number(text: str) -> int:
    digits = re.match(r"[0-9.]+", text)
    assert digits, text
    return round(float(digits.group()) * _UNITS[text[digits.end() :]])


def parse_entries(device: str, text: str) -> list[Entry]:
    """Which interface belongs to which class, in what `tc filter show` says; none for one that is
    gone.
    """
    return [
        Entry(device, int(node, 16), port if node == number else "")
        for node, number, port in _ENTRY.findall(text)
    ]


# ---- the link
