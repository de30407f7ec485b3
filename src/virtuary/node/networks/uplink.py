"""The way out of a user's own networks, and into them: one helper for all of them, kept alive, with
the ports that are published.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from typing import Protocol

from virtuary.base.answers import LINE_CAP, read
from virtuary.base.errors import PeerAway, VirtuaryError
from virtuary.base.known import RECORD, end_recorded, recorded
from virtuary.base.log import say
from virtuary.base.paths import Paths
from virtuary.base.proc import Identity
from virtuary.base.text import shown
from virtuary.base.watched import Watched, watch
from virtuary.jail.walls import Capabilities, choose_jail
from virtuary.network import uplink
from virtuary.network.netns import Private
from virtuary.qemu import process, usernet
from virtuary.qemu.parts import Grant
from virtuary.qemu.platforms.platform import Platform
from virtuary.qemu.platforms.table import USUAL
from virtuary.qemu.probe import Binary
from virtuary.qemu.qmp import DEADLINE, Monitor, open_monitor

logger = logging.getLogger("virtuary.uplink")


class HostFacts(Protocol):
    """What it has to know of the host."""

    @property
    def host_id(self) -> str: ...
    @property
    def paths(self) -> Paths: ...
    @property
    def capabilities(self) -> Capabilities: ...
    async def binary(self, platform: Platform) -> Binary: ...


class Uplink:
    def __init__(self, site: HostFacts, netns: Private) -> None:
        self._site, self._netns = site, netns
        self._uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{site.host_id} uplink"))
        self._folder = site.paths.run / "uplink"
        self._process: Watched | None = None
        self._monitor: Monitor | None = None
        netns.served.append(self._folder / RECORD)
        self.faults: dict[str, str] = {}
        """Ports that could not be published, and why."""
        self.held: set[tuple[str, str, int]] = set()
        """Those that are: protocol, address, number."""
        self.on_end: Callable[[], None] = lambda: None

    async def keep(self, forwards: Iterable[uplink.Held]) -> None:
        """Have the way out, and exactly these ports forwarded. Costs little where it is so; raises
        VirtuaryError.
        """
        monitor = (
            self._monitor
            if self._process and self._monitor and self._monitor.alive
            else await self._open()
        )
        wanted, there = set(forwards), uplink.parse_held(await _tell(monitor, "info usernet"))
        for held in there - wanted:
            await _tell(monitor, held.remove())
        faults = {}
        for held in sorted(wanted - there):
            if refused := shown(await _tell(monitor, held.add()), 200):
                faults[held.place] = refused
                if held.place not in self.faults:
                    say(
                        logger,
                        "a port can't be published",
                        logging.WARNING,
                        port=held.place,
                        why=refused,
                    )
        self.faults = faults
        self.held = {
            (held.protocol, held.address, held.host) for held in wanted if held.place not in faults
        }

    async def _open(self) -> Monitor:
        """The monitor of the helper there is, or of a new one."""
        await self.part()
        for identity in recorded(self._folder / RECORD):
            if self._watch(identity):
                with contextlib.suppress(VirtuaryError):
                    self._monitor = await open_monitor(self._folder / "qmp")
                    return self._monitor
        await self.end()
        started = await self._start()
        self._watch(started.identity)
        try:
            self._monitor = await open_monitor(self._folder / "qmp")
        except VirtuaryError as error:
            words = process.read_errors(started.errors) or error.sentence
            raise PeerAway(f"the way out of your networks is not served: {words}") from error
        finally:
            os.close(started.errors)
        say(logger, "the way out of networks is there")
        return self._monitor

    async def _start(self) -> process.Started:
        binary = await self._site.binary(USUAL)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        jail = choose_jail(self._site.capabilities, os.getuid(), reach="internet")
        grants = [Grant("qmp", usernet.MONITOR, self._folder / "qmp", "socket")]
        link = await self._netns.open(uplink.open_link)
        try:
            argv = usernet.uplink(binary.program, self._uuid)
            return await process.start(
                process.Launch(argv, grants, [], jail, self._folder, links=((link, usernet.LINK),))
            )
        finally:
            os.close(link)

    def _watch(self, identity: Identity) -> bool:
        """Hear of the end of this process, and of no other any more; whether it lives."""
        self._let_go()
        self._process = watch(identity, self._on_end)
        return self._process is not None

    def _on_end(self) -> None:
        self._process = None
        self.on_end()

    def _let_go(self) -> None:
        if self._process:
            self._process.let_go()
        self._process = None

    async def end(self) -> None:
        """Nothing of it stays."""
        await self.part()
        await end_recorded(self._folder / RECORD)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def part(self) -> None:
        """Listen to it no more; it runs on."""
        self._let_go()
        monitor, self._monitor = self._monitor, None
        if monitor:
            await monitor.close()


async def _tell(monitor: Monitor, words: str) -> str:
    return read(
        await monitor.run("human-monitor-command", DEADLINE, **{"command-line": words})
    ).text(most=LINE_CAP)
