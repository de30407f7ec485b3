"""A guest's clock after it stood still: set as exactly as the agent is quick, left alone where it
is right, and said where it can't be set.
"""

from __future__ import annotations

from typing import Any

import pytest

from virtuary.base.errors import Failed
from virtuary.guest.clock import find_offset, set_clock


class Guest:
    """An agent and its clock; time goes on by what each answer takes."""

    def __init__(
        self, behind: float, takes: float = 0.01, sets: bool = True, says: bool = True
    ) -> None:
        self.host, self.behind, self.takes, self.sets, self.says = 1e9, behind, takes, sets, says
        self.asked: list[str] = []

    def wall(self) -> float:
        return self.host

    async def run(self, command: str, deadline: float = 10, **given: Any) -> object:
        self.asked.append(command)
        self.host += self.takes / 2
        told = self.host - self.behind
        if command == "guest-set-time" and self.sets:
            self.behind = self.host - given["time"] / 1e9
        self.host += self.takes / 2
        if command == "guest-set-time" and not self.says:
            raise Failed("hwclock failed to set hardware clock to system time")
        return int(told * 1e9) if command == "guest-get-time" else {}


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("takes", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("behind", [11.6, -3600.0, 5e8])
async def test_a_clock_that_differs_is_set(behind: float, takes: float, says: bool) -> None:
    guest = Guest(behind, takes, says=says)
    assert abs(await set_clock(guest, guest.wall)) < 0.1 and abs(guest.behind) < 0.1  # type: ignore[arg-type]


async def test_a_clock_that_is_right_is_left_alone() -> None:
    guest = Guest(0.05)
    assert await set_clock(guest, guest.wall) == pytest.approx(-0.05, abs=0.01)  # type: ignore[arg-type]
    assert guest.asked == ["guest-get-time"]


async def test_a_clock_that_can_t_be_set_is_an_error_with_the_reason() -> None:
    guest = Guest(60, sets=False, says=False)
    with pytest.raises(Failed, match="hwclock failed"):
        await set_clock(guest, guest.wall)  # type: ignore[arg-type]
    assert await find_offset(guest, guest.wall) == pytest.approx(-60, abs=0.1)  # type: ignore[arg-type]
