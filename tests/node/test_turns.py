"""Whether the host goes down, in the words of systemd and the run level; and what comes up with
it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.paths import Paths
from virtuary.model.vm import Vm
from virtuary.node.site import Site
from virtuary.node.turns import after_boot, goes_down, host_goes_down
from virtuary.store import documents, here
from virtuary.store.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from worlds import ID, ME, at_rest

BOOTED = "         run-level 5  2026-11-29 19:00"
DOWN = "         run-level 0  2026-11-29 22:00                   last=5"


@pytest.mark.parametrize(
    ("manager", "level", "down"),
    [
        ("stopping", BOOTED, True), ("stopping", "", True), ("offline", DOWN, True), ("", DOWN, True), ("", DOWN.replace("0", "6", 1), True),
        ("running", BOOTED, False), ("degraded", "", False), ("starting", BOOTED, False), ("", "", False), ("offline", "", False),
    ],
)  # fmt: skip
def test_the_host_goes_down_where_it_is_said(manager: str, level: str, down: bool) -> None:
    assert goes_down(manager, level) is down


@pytest.mark.parametrize("system", [True, False])
async def test_this_host_stays(system: bool) -> None:
    """Asked in earnest, whatever of both programs there is here."""
    assert not await host_goes_down(system)


HALT = {"halted": {"why": "it crashed", "since": "2026-01-01T00:00:00Z", "asked": 0}}
BOOTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, int, str]]] = {
    # wish, status of its power -> what is wished then, how often it was asked for, what is to be
    "it ran": ({}, {}, ("running", 0, "stopped")),
    "it ran, and is to always": ({"policy": {"restart": "always"}}, {}, ("running", 0, "running")),
    "it had crashed, and is to run always": ({"policy": {"restart": "always"}}, HALT,
    ("running", 0, "stopped")),
    "it was stopped": ({"power": "stopped"}, {}, ("stopped", 0, "stopped")),
    "it starts with its host": ({"policy": {"autostart": True}}, {}, ("running", 0, "running")),
    "it was stopped and starts with its host": ({"power": "stopped",
    "policy": {"autostart": True}}, {}, ("running", 1, "running")),
    "it had crashed and starts with its host": ({"policy": {"autostart": True}}, HALT,
    ("running", 1, "running")),
    "it was paused": ({"power": "paused"}, {}, ("paused", 0, "stopped")),
}  # fmt: skip


@pytest.mark.parametrize("case", BOOTS)
async def test_after_a_boot_what_is_to_come_up_is_asked_for_and_the_rest_halts(
    paths: Paths, case: str
) -> None:
    wish, power, then = BOOTS[case]
    store = MemoryStore()
    vm = at_rest(wish, status={"power": power}).vm
    await store.txn({}, {vm.key: vm.dump(), here.key_of(ME, "boot"): b"another boot"})
    site = Site(paths, store, ME)
    await after_boot(site)
    found = documents.get(store, Vm, ID)
    assert found
    assert (found.spec.power, found.spec.asked, found.wanted) == then
    assert (ID in site.turns.waiting) is (then[2] == "running")
