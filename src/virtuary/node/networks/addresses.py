"""What addresses guests go by: those they asked for and were given, and on the physical network
those they are heard to use.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from virtuary.base.errors import VirtuaryError
from virtuary.model.network import own_mac, tap_of
from virtuary.model.vm import Vm
from virtuary.network import leases, ruleset
from virtuary.node.networks.members import Membership
from virtuary.store.api import Store

LEASES, UNKNOWN, KNOWN = 0.5, 0.9, 10.0
"""Seconds between two looks at what was asked for; at what is heard, while a server there has no
address; and when all have some.
"""
SETTLED = 1_000_000_000
"""Nanoseconds after which a file's time tells a later write from an earlier one, whatever clock the
kernel marks it with.
"""


class Addresses:
    def __init__(self, networks: Membership, store: Store, folder: Path) -> None:
        """`folder`: that of the networks, each of which has its leases in one of its own."""
        self._networks, self._store, self._folder = networks, store, folder
        self.leased: dict[str, tuple[str, ...]] = {}
        """Addresses that were asked for, by MAC."""
        self._written: dict[str, tuple[int, int] | None] = {}
        """When they were written last, by network."""
        self.heard: dict[str, tuple[str, ...]] = {}
        """Addresses that servers on the physical network go by there, by tap, the newest first."""
        self._listened = 0.0
        self._strangers: dict[str, Vm] = {}
        """Those servers, and the revision of the store they were found at."""
        self._strange_at = -1

    def of(self, vm: Vm) -> tuple[str, ...]:
        """Those of a server's NICs."""
        places = (
            (
                self.leased.get(own_mac(vm.id, nic), ()),
                self.heard.get(tap_of(vm.id, nic.number), ()),
            )
            for nic in vm.nics
        )
        return tuple(dict.fromkeys(one for leased, heard in places for one in (*leased, *heard)))

    def learn_leases(self) -> set[str]:
        """Look at what was asked for since the last time; the ids of the servers that did."""
        folders = list(self._folder.iterdir()) if self._folder.is_dir() else []
        written = {folder.name: leases.written(folder) for folder in folders}
        newest = max((stamp[0] for stamp in written.values() if stamp), default=0)
        if written == self._written and time.time_ns() - newest > SETTLED:
            return set()
        self._written = written
        found: dict[str, tuple[str, ...]] = {}
        for folder in folders:
            for item in leases.read(folder):
                if item.mac:
                    found[item.mac] = (*found.get(item.mac, ()), item.address)
        changed = {
            mac
            for mac in found.keys() | self.leased.keys()
            if found.get(mac) != self.leased.get(mac)
        }
        self.leased = found
        return (
            {member.vm.id for member in self._networks.members() if member.mac in changed}
            if changed
            else set()
        )

    async def learn_heard(self, now: float) -> set[str]:
        """Hear what servers call themselves to which nobody here gives addresses; the ids of those
        that changed. Costs nothing without any.

        Within a second where one has no address yet, else within ten.
        """
        if self._strange_at != self._store.revision:
            self._strange_at, self._strangers = self._store.revision, self._find_strangers()
            self.heard = {tap: found for tap, found in self.heard.items() if tap in self._strangers}
        strangers = self._strangers
        unknown = any(not vm.status.addresses for vm in strangers.values())
        if not strangers or now - self._listened < (UNKNOWN if unknown else KNOWN):
            return set()
        self._listened = now
        found = {
            tap: told
            for tap, told in (await self._networks.netns.call(ruleset.find_heard)).items()
            if tap in strangers
        }
        changed = {tap for tap, told in found.items() if set(told) != set(self.heard.get(tap, ()))}
        self.heard |= found
        return {strangers[tap].id for tap in changed}

    def _find_strangers(self) -> dict[str, Vm]:
        """Servers that run on the physical network, by their taps there."""
        there = {network.id for network in self._networks.all() if network.spec.kind == "bridge"}
        members = self._networks.members() if there else []
        return {
            member.tap: member.vm
            for member in members
            if member.nic.network_id in there and member.vm.status.runtime
        }


async def keep_addresses(addresses: Addresses, wake: Callable[[str], None]) -> None:
    """Notice what addresses guests ask for, within a second."""
    while True:
        await asyncio.sleep(LEASES)
        changed = addresses.learn_leases()
        with contextlib.suppress(VirtuaryError):
            changed |= await addresses.learn_heard(asyncio.get_running_loop().time())
        for vm_id in changed:
            wake(Vm.key_of(vm_id))
