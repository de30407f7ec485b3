"""Everything a launch depends on, looked at one by one, each with what was found and how to mend
it.
"""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from virtuary.base.errors import VirtuaryError
from virtuary.base.units import GIB, format_size
from virtuary.host import cgroups as groups
from virtuary.host.cgroups import SYSTEMD
from virtuary.model.host import Check
from virtuary.node.site import Site, default_network, memory_facts
from virtuary.qemu.firmware import find_uefi
from virtuary.qemu.platforms.table import USUAL
from virtuary.storage.directory import free_space

LINGER = Path("/var/lib/systemd/linger")
"""A file for each user whose programs run on after the last session, which is the user's to have
(loginctl enable-linger).
"""


async def examine(site: Site) -> list[Check]:
    """All checks; none raises."""
    found: list[Check] = []
    looks: list[Callable[[Site], Awaitable[Check]]] = [
        qemu, accelerator, firmware, network, networks, isolation, cgroups, session, tools, sources,
        memory, disk
    ]  # fmt: skip
    for look in looks:
        try:
            found.append(await look(site))
        except VirtuaryError as error:
            found.append(
                Check(name=look.__name__, state="missing", found=error.sentence, remedy=error.hint)
            )
    return found


async def qemu(site: Site) -> Check:
    binary = await site.binary(USUAL)
    return Check(
        name="qemu",
        state="ok",
        found=f"QEMU {binary.version} ({binary.package or 'no package'}), {binary.machine}",
    )


async def accelerator(site: Site) -> Check:
    verdict = await site.verdict(USUAL)
    if verdict.works:
        return Check(
            name="accelerator",
            state="ok",
            found=f"KVM works with CPU model {verdict.cpu}: {verdict.reason}",
        )
    remedy = (
        "turn on virtualization in the firmware, or nested virtualization on the host; "
        "emulation works meanwhile"
    )
    found = (
        f"KVM can't be used ({verdict.reason}); machines are emulated: many times slower, "
        "and not isolated by hardware"
    )
    return Check(name="accelerator", state="note", found=found, remedy=remedy)


async def firmware(site: Site) -> Check:
    return Check(
        name="firmware", state="ok", found=f"SeaBIOS of QEMU; UEFI at {find_uefi(USUAL).code}"
    )


async def network(site: Site) -> Check:
    if site.network == "passt":
        return Check(
            name="network", state="ok", found="passt works: a test guest was reached through it"
        )
    found = (
        f"passt is not used: {site.network_fault}. QEMU's user network serves instead, and "
        "lets guests reach the host's loopback"
    )
    return Check(
        name="network", state="note", found=found, remedy="install a passt of 2023-06 or later"
    )


async def isolation(site: Site) -> Check:
    level, gaps = site.level()
    best = "L3" if site.capabilities.root else "L1"
    what = {
        "L3": "own user, namespaces, empty root, Landlock, system-call filter",
        "L2": "own user, namespaces, system-call filter",
        "L1": "namespaces, empty root, Landlock, system-call filter",
        "L0": "the system-call filter alone",
    }[level]
    found = f"level {level}: {what}" + (f"; {'; '.join(gaps)}" if gaps else "")
    remedy = None if level == best else "use a kernel with Landlock and user namespaces"
    return Check(
        name="isolation",
        state="ok" if level == best and not gaps else "note",
        found=found,
        remedy=remedy,
    )


async def networks(site: Site) -> Check:
    """Whether servers can join networks, and not only have one of their own each."""
    if other := site.networks.find_fault():
        remedy = "use --network user, or the other one; they are free once it has no networks"
        return Check(
            name="networks",
            state="note",
            found=f"each server has one of its own, and shares none: {other}",
            remedy=remedy,
        )
    if site.nat_fault:
        remedy = "apt install nftables dnsmasq-base iproute2" + (
            ""
            if site.capabilities.root
            else ", and let users have user namespaces and open /dev/net/tun"
        )
        found = f"each server has one of its own, and shares none: {site.nat_fault}"
        return Check(name="networks", state="note", found=found, remedy=remedy)
    if site.networks.netns.private:
        found = "your servers can share networks of your own: virtuary network create NAME"
        return Check(name="networks", state="ok", found=found)
    return Check(
        name="networks",
        state="ok",
        found=f"bridges, dnsmasq and nftables work; a new server joins {default_network(site)}",
    )


async def cgroups(site: Site) -> Check:
    kind, missing = groups.version(), groups.find_missing()
    if gap := groups.find_gap():
        remedy = (
            "machines run all the same; a session of systemd (an ordinary login) or a "
            "delegated group would allow limits"
        )
        return Check(
            name="cgroups", state="note", found=f"{gap}: limits can't be applied", remedy=remedy
        )
    found = f"version {kind}; each machine has a group of its own"
    if "cpu" in missing:
        found += (
            ", without a share and a limit of processor time (the cpu controller is not delegated)"
        )
    if "io" in missing:
        found += ", without a weight of storage traffic (the io controller is not delegated)"
    mend = None
    if missing and site.paths.mode == "user":
        mend = (
            "systemctl edit user@.service, and there: [Service] Delegate=cpu cpuset io memory pids"
        )
    return Check(
        name="cgroups", state="note" if "cpu" in missing else "ok", found=found, remedy=mend
    )


async def session(site: Site) -> Check:
    """Whether servers of an ordinary user run on when that user has logged out."""
    user = getpass.getuser() if site.paths.mode == "user" else ""
    if user and SYSTEMD.is_dir() and not (LINGER / user).exists():
        found = f"your servers end when {user} has logged out: systemd ends all that a user runs"
        return Check(
            name="session", state="note", found=found, remedy=f"loginctl enable-linger {user}"
        )
    return Check(
        name="session", state="ok", found="servers run on when whoever started them has logged out"
    )


async def tools(site: Site) -> Check:
    missing = [name for name in ("ssh", "ssh-keygen") if not shutil.which(name)]
    if missing:
        return Check(
            name="tools",
            state="missing",
            found=f"missing: {', '.join(missing)}",
            remedy="apt install openssh-client",
        )
    return Check(name="tools", state="ok", found="ssh, ssh-keygen")


async def sources(site: Site) -> Check:
    from virtuary.images import build

    missing = build.missing_programs(build.Recipe(kind="debian"))
    if missing:
        return Check(
            name="image-sources",
            state="note",
            found=f"images can't be built here: {', '.join(missing)} missing",
            remedy="./run installs them",
        )
    return Check(
        name="image-sources", state="ok", found="debian and tiny can be built from signed packages"
    )


async def memory(site: Site) -> Check:
    total, available = memory_facts()
    state = "ok" if available > GIB else "note"
    remedy = None if state == "ok" else "stop something, or launch smaller servers"
    return Check(
        name="memory",
        state=state,
        found=f"{format_size(available)} of {format_size(total)} available",
        remedy=remedy,
    )


async def disk(site: Site) -> Check:
    free = free_space(site.paths.state)
    if free < 2 * GIB:
        found = f"{format_size(max(free, 0))} can be used in {site.paths.state}, after the reserve"
        return Check(
            name="disk-space",
            state="missing",
            found=found,
            remedy="free some space: building an image needs 4 GiB",
        )
    return Check(
        name="disk-space",
        state="ok",
        found=f"{format_size(free)} can be used in {site.paths.state}, after the reserve",
    )
