"""Right-sizing: from a made-up past to the advice, with the reasons; nothing is advised on little
evidence.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.actions.advise import DAY, HOUR, Limits, advise, rounded, smallest, weighted
from virtuary.base.units import GIB, MIB
from virtuary.model.advice import Advice, Finding
from virtuary.model.meta import Meta
from virtuary.model.usage import Point
from virtuary.model.vm import Vm, VmChange, VmSpec

HOST = Limits(cpus=8, memory=16 * GIB)
NOW = 1_800_000_000 // 3600 * 3600
IDLE = {
    "cpu": 0.05,
    "steal": 0.0,
    "resident": 1.0 * GIB,
    "guest_used": 0.5 * GIB,
    "guest_total": 3.9 * GIB,
    "swap": 0.0,
}


def server(cpus: int = 4, memory: int = 4 * GIB, image: str = "debian:12") -> Vm:
    return Vm(
        meta=Meta(id="v", name="db1", revision=7),
        spec=VmSpec(image=image, cpu=cpus, memory=memory),
    )


def past(seconds: int = 8 * DAY, **figures: float) -> tuple[list[Point], list[Point]]:
    """A past in which every minute was the same; a figure of -1 is one nobody could tell."""
    mean = {name: value for name, value in (IDLE | figures).items() if value >= 0}
    minutes = [Point(NOW - 60 * (n + 1), 60, mean, mean) for n in range(min(seconds, DAY) // 60)][
        ::-1
    ]
    hours = [Point(NOW - 3600 * (n + 1), 3600, mean, mean) for n in range(seconds // HOUR)][::-1]
    return minutes, hours


def busy_part(share: float, **figures: float) -> tuple[list[Point], list[Point]]:
    """Like `past`, and for a share of the minutes and hours otherwise."""
    minutes, hours = past()
    other = IDLE | figures

    def some(points: list[Point]) -> list[Point]:
        count = round(len(points) * share)
        return [
            point._replace(mean=other, peak=other) if index < count else point
            for index, point in enumerate(points)
        ]

    return some(minutes), some(hours)


def judged(advice: Advice, resource: str) -> Finding:
    return next(finding for finding in advice.findings if finding.resource == resource)


def test_an_idle_server_is_too_big_and_the_change_is_told() -> None:
    advice = advise(server(), *past(), HOST)
    cpus, memory = advice.findings
    assert (cpus.verdict, cpus.wanted, cpus.confidence) == ("too-big", 1, "high")
    assert (memory.verdict, memory.wanted, memory.confidence) == ("too-big", 1 * GIB, "high")
    assert advice.change == {"cpu": {"count": 1}, "memory": {"size": GIB}} and advice.saves == {
        "cpus": 3,
        "memory": 3 * GIB,
    }
    assert advice.command == "virtuary set db1 --cpus 1 --memory 1024MiB" and advice.revision == 7
    assert "busy 1 %" in cpus.evidence[0] and "512 MiB at most in 8 d" in memory.evidence[0]


def test_a_server_of_the_right_size_is_left_alone() -> None:
    advice = advise(server(), *past(cpu=2.2, guest_used=2.6 * GIB), HOST)
    assert [finding.verdict for finding in advice.findings] == ["right", "right"]
    assert advice.change == {} and advice.command is None and advice.saves == {}


@pytest.mark.parametrize("seconds", [0, 300, 599])
def test_of_a_server_nobody_knows_nothing_is_said(seconds: int) -> None:
    minutes, _ = past(seconds)
    advice = advise(server(), minutes, [], HOST)
    assert [finding.verdict for finding in advice.findings] == [
        "unknown",
        "unknown",
    ] and advice.change == {}
    assert all("not enough history" in finding.evidence[0] for finding in advice.findings)


def test_it_takes_a_day_to_call_a_server_too_big_or_what_the_user_thinks_enough() -> None:
    minutes, hours = past(3 * HOUR)
    assert [finding.verdict for finding in advise(server(), minutes, hours, HOST).findings] == [
        "unknown",
        "unknown",
    ]
    early = advise(server(), minutes, hours, Limits(cpus=8, memory=16 * GIB, enough=HOUR))
    assert [(finding.verdict, finding.confidence) for finding in early.findings] == [
        ("too-big", "low")
    ] * 2


def test_time_in_which_nobody_looked_does_not_count() -> None:
    minutes, hours = past()
    barely = [point._replace(covered=1) for point in minutes]
    assert advise(server(), barely, [], HOST).watched == 1440
    assert advise(server(), minutes, hours, HOST).watched == 8 * DAY


@pytest.mark.parametrize(
    ("seconds", "confidence"),
    [(20 * 60, "low"), (5 * HOUR, "medium"), (2 * DAY, "high")],
    ids=["minutes", "hours", "days"],
)
def test_a_saturated_server_is_too_small_soon(seconds: int, confidence: str) -> None:
    cpus = judged(advise(server(cpus=2), *past(seconds, cpu=1.97), HOST), "cpus")
    assert (cpus.verdict, cpus.wanted, cpus.confidence) == ("too-small", 4, confidence)


def test_no_more_processors_are_advised_than_there_are() -> None:
    assert judged(advise(server(cpus=6), *past(cpu=6.0), HOST), "cpus").wanted == 8
    cpus = judged(advise(server(cpus=8), *past(cpu=8.0), HOST), "cpus")
    assert (cpus.verdict, cpus.wanted) == ("too-small", None) and "no more than 8" in cpus.evidence[
        1
    ]


@pytest.mark.parametrize(
    ("figures", "why"),
    [({"steal": 0.8}, "host, which is too busy"), ({"throttled": 1.0}, "a limit")],
)
def test_a_server_that_is_held_back_needs_something_else(
    figures: dict[str, float], why: str
) -> None:
    cpus = judged(advise(server(cpus=2), *past(cpu=1.1, **figures), HOST), "cpus")
    assert (cpus.verdict, cpus.wanted) == ("too-small", None) and why in cpus.evidence[1]


def test_a_busy_twentieth_decides_and_a_rarer_hour_still_has_room() -> None:
    assert judged(advise(server(), *busy_part(0.10, cpu=2.0), HOST), "cpus").verdict == "right"
    assert judged(advise(server(), *busy_part(0.03, cpu=2.6), HOST), "cpus").wanted == 3
    assert judged(advise(server(), *busy_part(0.005, cpu=4.0), HOST), "cpus").wanted == 1


def test_one_peak_of_memory_is_enough_to_keep_it() -> None:
    minutes, hours = past()
    hours[3] = hours[3]._replace(peak=IDLE | {"guest_used": 3.0 * GIB})
    assert judged(advise(server(), minutes, hours, HOST), "memory").verdict == "right"


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [({"guest_used": 3.7 * GIB}, 6 * GIB), ({"swap": 2e6, "guest_used": 3.0 * GIB}, 8 * GIB)],
    ids=["full", "swapping"],
)
def test_a_guest_that_is_short_of_memory_gets_more(figures: dict[str, float], wanted: int) -> None:
    memory = judged(advise(server(), *past(**figures), HOST), "memory")
    assert (memory.verdict, memory.wanted, memory.confidence) == ("too-small", wanted, "high")


def test_no_more_memory_is_advised_than_the_host_can_give() -> None:
    small = Limits(cpus=8, memory=4 * GIB)
    memory = judged(advise(server(), *past(guest_used=3.8 * GIB), small), "memory")
    assert (memory.verdict, memory.wanted) == (
        "too-small",
        None,
    ) and "no more than" in memory.evidence[-1]


@pytest.mark.slow
def test_a_guest_that_tells_nothing_is_judged_by_what_it_touched() -> None:
    silent = {"guest_used": -1.0, "guest_total": -1.0, "swap": -1.0}
    memory = judged(advise(server(), *past(resident=0.6 * GIB, **silent), HOST), "memory")
    assert (memory.verdict, memory.wanted) == (
        "too-big",
        1 * GIB,
    ) and "says nothing" in memory.evidence[0]
    assert (
        judged(advise(server(), *past(resident=3.9 * GIB, **silent), HOST), "memory").verdict
        == "right"
    )
    assert (
        judged(advise(server(), *past(resident=-1.0, **silent), HOST), "memory").verdict
        == "unknown"
    )


@pytest.mark.parametrize(("image", "least"), [("debian:12", 512 * MIB), ("tiny", 128 * MIB)])
def test_nothing_smaller_is_advised_than_boots(image: str, least: int) -> None:
    vm = server(image=image)
    nothing = past(guest_used=1.0 * MIB, guest_total=4.0 * GIB)
    assert smallest(vm) == least and judged(advise(vm, *nothing, HOST), "memory").wanted == least


sizes = st.floats(0, 64.0 * GIB)


@given(
    st.integers(1, 64),
    st.integers(128, 65536),
    st.floats(0, 64),
    st.floats(0, 8),
    sizes,
    sizes,
    st.integers(0, 10) | st.just(200),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]),
    st.tuples(st.floats(0.1, 1), st.floats(1, 3)) | st.none(),
)
@pytest.mark.slow
def test_what_is_advised_is_sane(
    cores: int,
    mib: int,
    cpu: float,
    steal: float,
    used: float,
    total: float,
    hours: int,
    shape: tuple[int, int],
    bounds: tuple[float, float] | None,
) -> None:
    """Whatever the history: what is advised can be applied as it is."""
    vm = server(cores * shape[0] * shape[1], mib * MIB)
    spec: dict[str, Any] = {"cpu": {"sockets": shape[0], "threads": shape[1]}}
    if bounds:
        spec["memory"] = {
            "min": max(64, int(mib * bounds[0])) * MIB,
            "max": int(mib * bounds[1]) * MIB,
        }
    vm = vm.but(spec=vm.spec.overlaid(VmChange.model_validate(spec)))
    figures: dict[str, Any] = {
        "cpu": cpu,
        "steal": steal,
        "guest_used": min(used, total),
        "guest_total": total,
    }
    advice = advise(vm, *past(hours * HOUR, **figures), HOST)
    for finding in advice.findings:
        assert finding.evidence
        if finding.wanted is not None:
            assert (finding.wanted < finding.now) == (finding.verdict == "too-big")
            assert (finding.wanted > finding.now) == (finding.verdict == "too-small")
    change = VmChange.model_validate(advice.change)
    assert (change.cpu.count or 1) >= 1 and (change.memory.size or 0) % MIB == 0
    vm.spec.overlaid(change)


@given(st.floats(1, 2**50))
def test_sizes_are_rounded_up_to_what_people_write(size: float) -> None:
    assert size <= rounded(size) <= max(1.5 * size, 64 * MIB) and rounded(size) % (32 * MIB) == 0


def test_a_quantile_counts_by_weight() -> None:
    assert weighted([(5.0, 10), (1.0, 90)], 0.95) == 5.0
    assert weighted([(5.0, 5), (1.0, 95)], 0.95) == 1.0
    assert weighted([], 0.5) is None
