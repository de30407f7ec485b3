"""The account of a host: what it has, what is promised to servers, what is left, and who holds it.
Pure.

A promise is made when a server is created, started, grown or copied. What is promised is never kept
as a number of its own: it is the sum over the servers' documents, so it can't drift from them.
Whoever makes a promise also rewrites the host's *turn* document in the same transaction; of two who
counted the same room, one is refused by the store and counts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from virtuary.actions import overhead
from virtuary.base.errors import NoRoom, VirtuaryError
from virtuary.base.units import format_bandwidth, format_size
from virtuary.model.bandwidth import DIRECTIONS, Direction, usable
from virtuary.model.host import Balance, HostStatus, Link
from virtuary.model.image import Image
from virtuary.model.memory import LEAST_MEMORY
from virtuary.model.network import Network, link_speed
from virtuary.model.vm import Vm, VmSpec
from virtuary.model.volume import Volume

SOLE_CPUS = 4
"""So many times the host's CPUs a single server may have; more would only make it slower."""
HOLDERS = 3
"""How many of those who hold most a refusal names."""


class Claim(NamedTuple):
    """What one server takes of each resource."""

    cpus: int = 0
    floor_cpu: int = 0
    """Percent of one CPU it is sure of."""
    memory: int = 0
    """Bytes, with what its emulation needs."""
    floor_memory: int = 0
    disk: int = 0
    huge_pages: int = 0
    """Bytes of memory in huge pages, which are no part of `memory`."""


WORDS = {
    "cpus": "virtual CPUs", "floor_cpu": "guaranteed processor time", "memory": "memory",
    "floor_memory": "guaranteed memory",
    "disk": "disk space", "bandwidth": "bandwidth", "huge_pages": "memory in huge pages",
}  # fmt: skip
REMEDIES = {
    "cpus": "stop a server, or raise resources.cpu_overcommit",
    "floor_cpu": "lower --cpu-reserve here or elsewhere",
    "memory": "stop a server, ask for less --memory, or raise resources.memory_overcommit",
    "floor_memory": "lower --memory-min here or elsewhere",
    "disk": "delete or purge servers, ask for less --disk, or raise resources.disk_overcommit",
    "huge_pages": "set more of them aside (sysctl vm.nr_hugepages), or leave out --huge-pages",
    "bandwidth": "take floors from other servers of the network",
}
"""What each part of a claim is called, and what to do when there is not enough of it."""


def claim(
    spec: VmSpec, size: int | None, host: HostStatus, *, running: bool, began: int | None = None
) -> Claim:
    """What a server takes; `size`: of its disk as it is, when it is there; `began`: bytes of memory
    its process began with. One that does not run holds its disk only.
    """
    disk = max(spec.root.size or 0, size or 0)
    if not running:
        return Claim(disk=disk)
    extra = overhead.of(spec, host.accel if spec.accel == "auto" else spec.accel, began)
    if spec.memory.pages == "huge":
        return Claim(spec.cpu.count, spec.cpu.reserve, extra, extra, disk, spec.memory.size)
    floor = (
        spec.memory.min
        if spec.memory.min is not None
        else int(spec.memory.size / host.policy.memory_overcommit)
    )
    return Claim(spec.cpu.count, spec.cpu.reserve, spec.memory.size + extra, floor + extra, disk)


def claim_of(vm: Vm, host: HostStatus) -> Claim:
    """What a server that is there takes: also while it is being stopped, and its disk while it lies
    in the trash.
    """
    running = (vm.wanted != "stopped" and not vm.meta.deleted) or vm.status.runtime is not None
    runtime = vm.status.runtime
    began = runtime.shape.memory if runtime and runtime.shape else None
    found = claim(vm.spec, vm.status.disk.size, host, running=running, began=began)
    if runtime is None:
        return found
    # what it is to give back and has not yet
    kept = max((vm.status.memory or 0) - vm.spec.memory.size, 0)
    return found._replace(
        cpus=max(found.cpus, vm.status.cpus or 0),
        memory=found.memory + kept,
        floor_memory=found.floor_memory + kept,
    )


def balances(
    host: HostStatus, vms: Iterable[Vm], volumes: Iterable[Volume] = ()
) -> dict[str, Balance]:
    """What there is of each resource, what may be promised of it, what is, and who holds most."""
    claims = [(vm.name, claim_of(vm, host)) for vm in vms]
    claims += [
        (volume.name, Claim(disk=volume.promised)) for volume in volumes if not volume.spec.pool
    ]
    policy = host.policy
    memory = max(host.ordinary_memory - host.reserve_memory, 0)
    may = Claim(
        int(host.cpus * policy.cpu_overcommit),
        max(host.cpus * 100 - policy.reserve_cpu, 0),
        int(memory * policy.memory_overcommit),
        memory,
        int((host.disk - host.reserve_disk) * policy.disk_overcommit),
        host.huge_memory,
    )
    total = Claim(
        host.cpus,
        host.cpus * 100,
        host.ordinary_memory,
        host.ordinary_memory,
        host.disk,
        host.huge_memory,
    )
    return {
        field: _balance(total[index], may[index], [(item[index], name) for name, item in claims])
        for index, field in enumerate(Claim._fields)
    }


def _balance(total: int, usable: int, held: Iterable[tuple[int, str]]) -> Balance:
    holders = sorted((item for item in held if item[0]), reverse=True)
    return Balance(
        total=total,
        usable=usable,
        promised=sum(amount for amount, _ in holders),
        holders={name: amount for amount, name in holders[:HOLDERS]},
    )


def bandwidths(
    networks: Iterable[Network], links: Sequence[Link], vms: Sequence[Vm]
) -> dict[str, dict[Direction, Balance]]:
    """The floors promised of each network's link, bits a second; without networks whose link's
    speed nobody knows.

    Stopped servers keep theirs, so that they can always be started; those in the trash do not.
    """
    found: dict[str, dict[Direction, Balance]] = {}
    for network in networks:
        speed = link_speed(network, links)
        if speed is None:
            continue
        found[network.name] = {
            direction: _balance(
                speed, usable(speed), [(_floor(vm, network, direction), vm.name) for vm in vms]
            )
            for direction in DIRECTIONS
        }
    return found


def _floor(vm: Vm, network: Network, direction: Direction) -> int:
    rates = (
        nic.bandwidth.rate(direction)
        for nic in vm.spec.nics
        if nic.network_id == network.id and not vm.meta.deleted
    )
    return sum(rate.floor or 0 for rate in rates)


def shortage(
    wanted: Claim, account: dict[str, Balance], held: Claim | None = None
) -> list[VirtuaryError]:
    """Everything there is not enough of for a claim, with the number that is missing and who holds
    it; `held`: what the same server has.
    """
    short: dict[str, VirtuaryError] = {}
    for field, asked, has in zip(Claim._fields, wanted, held or Claim(), strict=True):
        balance = account[field]
        told = field.removeprefix("floor_") in short  # of memory the floor is a part
        if asked > has and asked - has > balance.free and not told:
            short[field] = _no_room(field, asked - has, balance)
    return list(short.values())


def bandwidth_shortage(asked: int, link: Mapping[Direction, Balance]) -> list[VirtuaryError]:
    """Why a link can't promise so many more bits a second in both directions."""
    balance = min(link.values(), key=lambda balance: balance.free)
    return [_no_room("bandwidth", asked, balance)] if asked > balance.free else []


def _no_room(field: str, asked: int, balance: Balance) -> NoRoom:
    missing = asked - max(balance.free, 0)
    held = ", ".join(f"{name} {say(field, amount)}" for name, amount in balance.holders.items())
    sentence = (
        f"{say(field, asked)} of {WORDS[field]} were asked for and this host has "
        f"{say(field, max(balance.free, 0))} left of "
        f"{say(field, balance.usable)}: {say(field, missing)} are missing"
    )
    return NoRoom(
        sentence + (f" (most is held by {held})" if held else ""), REMEDIES[field],
        resource=field, asked=asked, free=max(balance.free, 0), missing=missing,
        holders=balance.holders,
    )  # fmt: skip


def full(host: HostStatus, asked: int, free: int) -> NoRoom:
    """Why no disk is made or grown, however much may be promised: too little of the pool is
    free.
    """
    return NoRoom(
        f"the pool has {format_size(free)} free, and {format_size(host.reserve_disk)} are kept: "
        "no disk is made or grown",
        "delete and purge servers, or images nobody uses; resources.reserve_disk is what is kept",
        resource="disk", asked=asked, free=0, missing=host.reserve_disk - free,
    )  # fmt: skip


def say(field: str, amount: int) -> str:
    """An amount of a resource for people."""
    match field:
        case "cpus":
            return str(amount)
        case "floor_cpu":
            return f"{amount} %"
        case "bandwidth":
            return format_bandwidth(amount)
    return format_size(amount)


def alone(spec: VmSpec, host: HostStatus) -> list[VirtuaryError]:
    """What no such host could ever give one server, whatever else runs on it."""
    blockers: list[VirtuaryError] = []
    most = SOLE_CPUS * host.cpus
    if spec.cpu.count > most:
        blockers.append(
            NoRoom(
                f"{spec.cpu.count} virtual CPUs were asked for and this host has {host.cpus} CPUs, "
                f"which allow {most}",
                f"ask for at most --cpus {most}",
                resource="cpus",
                asked=spec.cpu.count,
                free=most,
                missing=spec.cpu.count - most,
            )
        )
    if absent := [number for number in spec.cpu.pin if number >= host.cpus]:
        blockers.append(
            NoRoom(
                f"CPU {absent[0]} to pin to is not there: this host has CPUs 0 to {host.cpus - 1}",
                f"--pin 0-{host.cpus - 1}",
                resource="cpus",
            )
        )
    nodes = [node.number for node in host.numa] or [0]
    if spec.cpu.node is not None and spec.cpu.node not in nodes:
        blockers.append(
            NoRoom(
                f"NUMA node {spec.cpu.node} is not there: this host has "
                f"{', '.join(map(str, nodes))}",
                f"--numa {nodes[0]}",
                resource="cpus",
            )
        )
    return blockers


WATCHED = 6 * 3600
"""Seconds the pool must have been watched before its end is foretold."""


def forecast(used: Sequence[tuple[int, float]], free: int) -> float | None:
    """Seconds until `free` more bytes are used, by the straight line through what was in use at
    which second; None when it does not fill.
    """
    if len(used) < 3 or used[-1][0] - used[0][0] < WATCHED:
        return None
    middle = sum(at for at, _ in used) / len(used)
    mean = sum(amount for _, amount in used) / len(used)
    pace = sum((at - middle) * (amount - mean) for at, amount in used) / sum(
        (at - middle) ** 2 for at, _ in used
    )
    return max(free, 0) / pace if pace > 0 else None


class Fit(NamedTuple):
    """How many more such servers there is room for, and what runs out first."""

    servers: int
    limit: str
    each: Claim
    by: dict[str, int]
    """How many each resource would allow."""


def fit(
    spec: VmSpec,
    host: HostStatus,
    vms: Iterable[Vm],
    floor: int = 0,
    link: Mapping[Direction, Balance] | None = None,
    volumes: Iterable[Volume] = (),
) -> Fit:
    """How often a server like this could be added, by the same rules by which one is admitted.

    `floor`: bits a second that each is sure of in both directions on a network of whose link `link`
    is promised.
    """
    each = claim(spec, None, host, running=True)
    account = balances(host, vms, volumes)
    never = {str(error.details["resource"]): 0 for error in alone(spec, host)}
    by = {
        field: max(account[field].free, 0) // amount
        for field, amount in zip(Claim._fields, each, strict=True)
        if amount > 0
    }
    if floor and link:
        by["bandwidth"] = min(max(balance.free, 0) for balance in link.values()) // floor
    if host.disk_free < host.reserve_disk:
        never["disk"] = 0
    by |= never
    limit = min(by, key=lambda field: by[field])
    return Fit(by[limit], limit, each, by)


def too_little(memory: int, image: Image | None) -> str:
    """That so much memory is known to be less than a server of this image needs; empty where it is
    not. Pure.
    """
    least = LEAST_MEMORY.get(image.spec.source.recipe or "", 0) if image else 0
    if image is None or memory >= least:
        return ""
    return (
        f"{format_size(memory)} of memory are less than the {format_size(least)} that "
        f"{image.name} needs: its start takes minutes, or fails"
    )
