"""Everything a launch depends on, looked at one by one, each with what was found and how to mend it."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable

from virtuary.base.errors import VirtuaryError
from virtuary.base.units import GIB, format_size
from virtuary.host.cgroups import version as cgroup_version
from virtuary.images import build
from virtuary.model.host import Check
from virtuary.node.site import Site, default_network, memory_facts
from virtuary.qemu.firmware import find_uefi
from virtuary.qemu.platform import PLATFORMS
from virtuary.storage.directory import free_space

X86 = PLATFORMS["x86_64"]


async def examine(site: Site) -> list[Check]:
    """All checks; none raises."""
    found: list[Check] = []
    looks: list[Callable[[Site], Awaitable[Check]]] = [
        qemu, accelerator, firmware, network, networks, isolation, cgroups, tools, sources, memory, disk
    ]  # fmt: skip
    for look in looks:
        try:
            found.append(await look(site))
        except VirtuaryError as error:
            found.append(Check(name=look.__name__, state="missing", found=error.sentence, remedy=error.hint))
    return found


async def qemu(site: Site) -> Check:
    binary = await site.binary(X86)
    return Check(name="qemu", state="ok", found=f"QEMU {binary.version} ({binary.package or 'no package'}), {binary.machine}")


async def accelerator(site: Site) -> Check:
    verdict = await site.verdict(X86)
    if verdict.works:
        return Check(name="accelerator", state="ok", found=f"KVM works with CPU model {verdict.cpu}: {verdict.reason}")
    remedy = "turn on virtualization in the firmware, or nested virtualization on the host; emulation works meanwhile"
    found = f"KVM can't be used ({verdict.reason}); machines are emulated: many times slower, and not isolated by hardware"
    return Check(name="accelerator", state="note", found=found, remedy=remedy)


async def firmware(site: Site) -> Check:
    return Check(name="firmware", state="ok", found=f"SeaBIOS of QEMU; UEFI at {find_uefi('x86_64').code}")


async def network(site: Site) -> Check:
    if site.network == "passt":
        return Check(name="network", state="ok", found="passt works: a test guest was reached through it")
    found = (
        f"passt is not used: {site.network_fault}. QEMU's user network serves instead, and lets guests reach the host's loopback"
    )
    return Check(name="network", state="note", found=found, remedy="install a passt of 2023-06 or later")


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
    return Check(name="isolation", state="ok" if level == best and not gaps else "note", found=found, remedy=remedy)


async def networks(site: Site) -> Check:
    """Whether servers can join networks, and not only have one of their own each."""
    if site.nat_fault:
        remedy = "apt install nftables dnsmasq-base iproute2" + (
            "" if site.capabilities.root else ", and let users have user namespaces and open /dev/net/tun"
        )
        found = f"each server has one of its own, and shares none: {site.nat_fault}"
        return Check(name="networks", state="note", found=found, remedy=remedy)
    if site.networks.ground.private:
        found = "your servers can share networks of your own: virtuary network create NAME"
        return Check(name="networks", state="ok", found=found)
    return Check(
        name="networks", state="ok", found=f"bridges, dnsmasq and nftables work; a new server joins {default_network(site)}"
    )


async def cgroups(site: Site) -> Check:
    kind = cgroup_version()
    if kind and site.capabilities.root:
        return Check(name="cgroups", state="ok", found=f"version {kind}; each machine has a group of its own")
    found = "this user has no control groups of its own: limits can't be applied" if kind else "this host has no control groups"
    return Check(
        name="cgroups", state="note", found=found, remedy="machines run all the same; a delegated group would allow limits"
    )


async def tools(site: Site) -> Check:
    missing = [name for name in ("qemu-img", "ssh", "ssh-keygen") if not shutil.which(name)]
    if missing:
        return Check(
            name="tools", state="missing", found=f"missing: {', '.join(missing)}", remedy="apt install qemu-utils openssh-client"
        )
    return Check(name="tools", state="ok", found="qemu-img, ssh, ssh-keygen")


async def sources(site: Site) -> Check:
    missing = build.missing_programs(build.Recipe(kind="debian"))
    if missing:
        return Check(
            name="image-sources",
            state="note",
            found=f"images can't be built here: {', '.join(missing)} missing",
            remedy="./run installs them",
        )
    return Check(name="image-sources", state="ok", found="debian and tiny can be built from signed packages")


async def memory(site: Site) -> Check:
    total, available = memory_facts()
    state = "ok" if available > GIB else "note"
    remedy = None if state == "ok" else "stop something, or launch smaller servers"
    return Check(name="memory", state=state, found=f"{format_size(available)} of {format_size(total)} available", remedy=remedy)


async def disk(site: Site) -> Check:
    free = free_space(site.paths.state)
    if free < 2 * GIB:
        found = f"{format_size(max(free, 0))} can be used in {site.paths.state}, after the reserve"
        return Check(name="disk-space", state="missing", found=found, remedy="free some space: building an image needs 4 GiB")
    return Check(name="disk-space", state="ok", found=f"{format_size(free)} can be used in {site.paths.state}, after the reserve")
