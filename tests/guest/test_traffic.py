"""The guest's own count of its traffic: hostile text, of which only sensible numbers are taken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.answers import LINE_CAP
from virtuary.base.errors import Misbehaves
from virtuary.guest.agent import Agent

MAC = "52:54:00:00:00:01"


class Channel:
    """A guest that answers every question alike."""

    def __init__(self, answer: Any) -> None:
        self.reader, self.answer = asyncio.StreamReader(), answer
        self.transport = self

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        if not data.endswith(b"\n"):
            return
        request = json.loads(data)
        if request["execute"] == "guest-sync-delimited":
            self.reader.feed_data(b"\xff")
            self.reader.feed_data(
                json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
            )
        else:
            self.reader.feed_data(json.dumps({"return": self.answer}).encode() + b"\n")


async def traffic(answer: Any) -> tuple[int, int] | None:
    channel = Channel(answer)
    return await Agent(channel.reader, channel).traffic(MAC, deadline=2)  # type: ignore[arg-type]


def link(name: str, mac: str = MAC, **counters: Any) -> dict[str, Any]:
    return {
        "name": name,
        "hardware-address": mac,
        "statistics": {name.replace("_", "-"): value for name, value in counters.items()},
    }


async def test_only_the_card_we_gave_is_counted() -> None:
    links = [
        link("lo", rx_bytes=9, tx_bytes=9),
        link("eth0", MAC.upper(), rx_bytes=5, tx_bytes=7),
        link("docker0", "aa", rx_bytes=1),
    ]
    assert await traffic(links) == (5, 7)


async def test_where_no_card_has_our_address_all_but_the_loopback_are_counted() -> None:
    assert await traffic(
        [
            link("lo", "", rx_bytes=9),
            link("a", "x", rx_bytes=1, tx_bytes=2),
            link("b", "y", rx_bytes=3),
        ]
    ) == (
        4,
        2,
    )


@pytest.mark.parametrize(
    "answer", [[], [{"name": "eth0"}], [{"name": "eth0", "hardware-address": MAC}]], ids=str
)
async def test_a_guest_that_counts_nothing_is_understood(answer: Any) -> None:
    assert await traffic(answer) is None


@pytest.mark.parametrize(
    "answer",
    [None, 5, "x", [1], [{"name": "eth0", "statistics": 5}], [{"name": []}], {"a": 1}],
    ids=str,
)
async def test_what_is_no_list_of_cards_is_refused(answer: Any) -> None:
    with pytest.raises(Misbehaves):
        await traffic(answer)


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "9", None, [1], True])
async def test_a_number_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(Misbehaves):
        await traffic([link("eth0", rx_bytes=value, tx_bytes=3)])


async def test_a_flood_is_not_parsed() -> None:
    with pytest.raises(Misbehaves, match="more than"):
        await traffic([link("x" * LINE_CAP)])


FIELDS = st.sampled_from(["name", "hardware-address", "statistics", "rx-bytes", "tx-bytes"])
words = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=4),
)


@given(words)
@pytest.mark.slow
def test_whatever_it_says_is_numbers_or_nothing(answer: Any) -> None:
    try:
        found = asyncio.run(traffic(answer))
    except Misbehaves:
        return
    assert found is None or all(isinstance(value, int) and value >= 0 for value in found)
