"""Whether the host goes down: what systemd and the run level say, in their own words."""

from __future__ import annotations

import pytest

from virtuary.node.turns import goes_down, host_goes_down

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
