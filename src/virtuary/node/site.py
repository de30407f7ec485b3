"""What a host knows about itself and lends to its workers: places, store, engine, verdicts. Found
once per daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform as host_platform
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from virtuary import __version__
from virtuary.base.clock import Clock, SystemClock
from virtuary.base.errors import HostLacks, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.paths import Paths
from virtuary.base.proc import boot_id, find_program
from virtuary.host import capacity, neighbours, shares
from virtuary.jail.walls import Capabilities, choose_jail, find_capabilities
from virtuary.model.host import Check, Host, HostStatus
from virtuary.model.meta import Meta
from virtuary.model.network import DEFAULT, USER
from virtuary.model.settings import Settings
from virtuary.model.vm import Vm
from virtuary.network import bridge, netns, passt
from virtuary.node.networks.networks import Networks
from virtuary.node.networks.uplink import Uplink
from virtuary.node.usual import Usual
from virtuary.qemu.accel import Choice, Verdict, choose, prove
from virtuary.qemu.platforms.platform import Platform
from virtuary.qemu.platforms.table import USUAL
from virtuary.qemu.probe import Binary, find_binary
from virtuary.store import documents, servers
from virtuary.store.api import Store

UIDS = range(2_000_000_000, 2_000_060_000)
"""Users of virtual machines in system mode, one each; above every range that distributions hand
out. Each instance has a part of them.
"""


@dataclass
class Turns:
    """Who goes down and comes up with the host, and whose turn it is not yet."""

    going_down: bool = False
    """Whether the host goes down: nothing is started any more."""
    leaving: set[str] = field(default_factory=set)
    """Servers whose turn it is to shut down."""
    waiting: dict[str, int] = field(default_factory=dict)
    """Servers that are started when those of lower orders are there, and their orders."""

    def why_not(self, vm_id: str) -> Literal["", "down", "boot"]:
        """Why a server is not to be started now."""
        return "down" if self.going_down else "boot" if vm_id in self.waiting else ""


@dataclass
class Site:
    paths: Paths
    store: Store
    host_id: str
    settings: Settings = field(default_factory=Settings)
    clock: Clock = field(default_factory=SystemClock)
    boot: str = field(default_factory=boot_id)
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(False, False, 0, "not asked yet")
    )
    network: Literal["passt", "qemu-user"] = "qemu-user"
    network_fault: str | None = None
    """Why passt is not used, in words."""
    nat_fault: str | None = "not asked yet"
    """Why this host lets no networks be made besides those of single servers, in words."""
    networks: Networks = field(init=False)
    users: range = UIDS
    """Those that are this instance's to give."""
    uids: dict[str, int] = field(default_factory=dict)
    """Users given to servers in this daemon's life; they own no file, so nothing is left when one
    is given again.
    """
    held: set[str] = field(default_factory=set)
    """Servers to which their source is handing over what they are made of just now."""
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    """How many machines may be starting QEMU at once."""
    renewals: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(2 * (os.cpu_count() or 1))
    )
    """How many copies may be becoming machines of their own at once: more only make each other wait
    until all of them are too late.
    """
    makings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """One warm template is made at a time: it costs a processor for a boot."""
    claims: dict[str, shares.Claim] = field(default_factory=dict)
    """What the servers that run are to have of the processors, by their ids."""
    turns: Turns = field(default_factory=Turns)
    usual: Usual = field(default_factory=Usual)
    examine: Callable[[Vm], Awaitable[list[Check]]] | None = None
    """Tries a server's network from inside its guest; given by who puts the daemon together."""
    verified: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Templates whose files were read through in this daemon's life, and what they looked like
    then.
    """

    def __post_init__(self) -> None:
        documents.look_from(self.store, self.host_id)
        folder = self.paths.run / "networks"
        own = netns.Private(folder) if self.paths.mode == "user" else None
        self.networks = Networks(self.store, folder, own, Uplink(self, own) if own else None)

    @property
    def networks_fault(self) -> str | None:
        """Why no networks can be made here now, in words."""
        return self.nat_fault or self.networks.find_fault()

    async def binary(self, platform: Platform) -> Binary:
        return await find_binary(platform, self.paths.probes)

    async def verdict(self, platform: Platform) -> Verdict:
        """The proof, or refutation, of KVM with the CPU model we would use."""
        program = Path((await self.binary(platform)).program)
        return await prove(program, platform, "kvm", platform.kvm_cpu, self.paths.probes)

    async def accel(self, platform: Platform, wanted: str) -> Choice:
        return choose(wanted, await self.verdict(platform))

    @property
    def kept(self) -> int | None:
        """Bytes of the pool that stay free; None: by rule."""
        return self.settings.resources.reserve_disk

    def weight_of(self, vm: Vm) -> float:
        """Its share of the processors beside the others that run, in hundredths of an ordinary
        one.
        """
        claim = shares.Claim(vm.spec.cpu.weight, vm.spec.cpu.reserve)
        return shares.fair_weights({**self.claims, vm.id: claim}, self.capacity)[vm.id]

    @property
    def capacity(self) -> int:
        """Percent of one CPU that the host has."""
        return 100 * (os.cpu_count() or 1)

    def level(self) -> tuple[str, tuple[str, ...]]:
        """The isolation a machine started now would get, and what it lacks."""
        jail = choose_jail(self.capabilities, UIDS.start if self.capabilities.root else os.getuid())
        return jail.level, jail.gaps


async def open_site(
    paths: Paths, store: Store, host_id: str, settings: Settings | None = None
) -> Site:
    """Find out what this host is."""
    site = Site(paths, store, host_id, settings or Settings())
    root = os.getuid() == 0
    # each is tried by programs, which are waited for together
    site.capabilities, site.network_fault, site.nat_fault = await asyncio.gather(
        find_capabilities(),
        prove_passt(paths.probes),
        bridge.prove() if root else netns.prove(),
    )
    site.network = "qemu-user" if site.network_fault else "passt"
    if root:
        site.users = neighbours.take_users(paths.instances, paths.state, paths.vms, UIDS)
        site.networks.claim = neighbours.claim_networks(
            paths.instances, paths.state, paths.run / "networks"
        )
    return site


async def prove_passt(cache: Path) -> str | None:
    """Why passt can't serve machines here, None when it can: a test guest was reached through it.
    Cached per build and kernel.
    """
    try:
        facts = Path(find_program("passt")).resolve().stat()
    except HostLacks:
        return "passt is not installed"
    place = cache / f"passt-{facts.st_size}-{facts.st_mtime_ns}-{os.uname().release}"
    if place.exists():
        return place.read_text(encoding="utf-8") or None
    fault = await passt.prove()
    with contextlib.suppress(OSError):
        write_whole(place, (fault or "").encode())
    return fault


def memory_facts() -> tuple[int, int]:
    """Bytes of memory the host has, and that are available now."""
    facts: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        facts[name] = int(rest.split()[0]) * 1024
    return facts["MemTotal"], facts["MemAvailable"]


FLEETING = ("memory_available", "disk_free", "pressure", "vms", "vms_running", "memory_promised")
"""What of a host's status changes all the time, and decides nothing that is kept."""


async def host_status(site: Site) -> HostStatus:
    """The host as `virtuary host` shows it."""
    total, available = memory_facts()
    usage = shutil.disk_usage(site.paths.vms)
    accel = reason = qemu = ""
    try:
        binary = await site.binary(USUAL)
        choice = await site.accel(USUAL, "auto")
        qemu, accel, reason = binary.version, choice.accel, choice.why
    except VirtuaryError as error:
        reason = error.sentence
    vms = servers.of_host(site.store, site.host_id)
    alive = [vm for vm in vms if vm.status.runtime]
    return HostStatus(
        vms=sum(vm.meta.deleted is None for vm in vms),
        vms_running=len(alive),
        memory_promised=sum(vm.spec.memory.size for vm in alive),
        mode=site.paths.mode,
        version=__version__,
        cpus=os.cpu_count() or 1,
        memory=total,
        memory_available=available,
        disk=usage.total,
        disk_free=usage.free,
        accel=accel,
        accel_reason=reason,
        qemu=qemu,
        level=site.level()[0],
        kernel=os.uname().release,
        system=_system_name(),
        cores=capacity.find_cores(),
        numa=capacity.find_numa(),
        huge_pages=capacity.find_huge_pages(),
        links=capacity.find_links(),
        pressure=capacity.find_pressure(),
        policy=site.settings.resources,
        default_network=default_network(site),
    )


async def describe_host(site: Site) -> None:
    """Write down what this host has, by which servers are admitted, unless it is written already.
    To be repeated: it may change.
    """
    status = await host_status(site)
    known = documents.get(site.store, Host, site.host_id)
    if known and known.status:
        fleeting = {name: getattr(status, name) for name in FLEETING}
        lasting = known.status.but(**dict(status))  # with what is not known here
        if known.status.but(**fleeting) == lasting:
            return
        status = lasting
    name = socket.gethostname().split(".")[0].lower()[:63] or "host"
    meta = known.meta.but(name=name) if known else Meta(id=site.host_id, name=name)
    host = Host(meta=meta, status=status) if known is None else known.but(meta=meta, status=status)
    await site.store.txn({}, {host.key: host.dump()})


def default_network(site: Site) -> str:
    """The network that a server joins when nobody says which."""
    wanted = site.settings.network.default
    joins = USER if site.networks_fault or site.networks.netns.private else DEFAULT
    return joins if wanted == "auto" else wanted


def allocated(site: Site, vms: list[Vm]) -> int:
    """Bytes of the pool that the servers' own disks take now."""
    total = 0
    for vm in vms:
        for disk in vm.status.disks.values():
            with contextlib.suppress(OSError):
                total += (site.paths.vm(vm.id).home / disk.file).stat().st_blocks * 512
    return total


def _system_name() -> str:
    try:
        return host_platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
