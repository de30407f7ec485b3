"""A machine's share of the processors, in folders that look like control groups of either
version.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from virtuary.host.cgroups import ensure_group, group_paths, remove_group
from virtuary.host.shares import (
    HIGHEST,
    Claim,
    apply_cpu,
    fair_weights,
    set_io_weight,
    set_weight,
    total_commands,
    weigh_all,
)
from virtuary.model.cpu import CpuShares


def host(root: Path, kind: int) -> Path:
    """A host's control groups with one machine's group and the files the kernel would make."""
    if kind == 2:
        (root / "cgroup.controllers").write_text("cpu io memory pids")
        parent = group_paths("ID", root)[0].parent  # below the group that this test itself is in
        parent.mkdir(parents=True)
        (parent / "cgroup.subtree_control").write_text("")
    if kind == 1:
        for name in ("cpu", "memory", "blkio"):
            (root / name).mkdir()
    ensure_group("ID", root)
    return root


FILES = {
    1: ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "tasks"),
    2: ("cpu.weight", "cpu.max", "cgroup.type", "cgroup.threads", "cgroup.subtree_control"),
}


def fill(group: Path, kind: int) -> None:
    for name in FILES[kind]:
        (group / name).write_text("")


@pytest.fixture(params=[1, 2])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, int]:
    kind: int = request.param
    root = host(tmp_path, kind)
    group = next(path for path in root.rglob("ID") if kind == 2 or path.parent.parent.name == "cpu")
    fill(group, kind)
    return root, group, kind


def test_an_ordinary_machine_has_no_group_below_its_own(place: tuple[Path, Path, int]) -> None:
    root, group, kind = place
    assert apply_cpu("ID", [os.getpid()], CpuShares(), 100, root) == []
    assert not (group / "vcpus").exists()
    assert (group / ("cpu.weight" if kind == 2 else "cpu.shares")).read_text() == (
        "100" if kind == 2 else "1024"
    )


def test_a_limit_holds_for_the_virtual_cpus_only(place: tuple[Path, Path, int]) -> None:
    root, group, kind = place
    (group / "vcpus").mkdir()
    fill(group / "vcpus", kind)
    assert apply_cpu("ID", [os.getpid()], CpuShares(limit=150), 300, root) == []
    child = group / "vcpus"
    if kind == 2:
        assert (child / "cpu.max").read_text() == "150000 100000" and (
            group / "cpu.weight"
        ).read_text() == "300"
        assert (child / "cgroup.threads").read_text() == str(os.getpid())
    else:
        assert (child / "cpu.cfs_quota_us").read_text() == "150000" and (
            group / "cpu.shares"
        ).read_text() == "3072"
        assert (child / "tasks").read_text() == str(os.getpid())
    fill(child, kind)
    apply_cpu("ID", [os.getpid()], CpuShares(), 100, root)
    assert (child / ("cpu.max" if kind == 2 else "cpu.cfs_quota_us")).read_text() == (
        "max 100000" if kind == 2 else "-1"
    )


async def test_without_systemd_all_machines_together_weigh_as_one_does(
    place: tuple[Path, Path, int],
) -> None:
    root, group, kind = place
    name = "cpu.weight" if kind == 2 else "cpu.shares"
    (group.parent / name).write_text("")
    await weigh_all(300, root)
    assert (group.parent / name).read_text() == ""
    await weigh_all(300, root / "nothing-there")


def test_systemd_is_told_what_they_weigh_and_the_daemon_weighs_as_much() -> None:
    first, second = total_commands(50_000, system=True)
    assert first == [
        "systemctl",
        "set-property",
        "--runtime",
        "virtuary-servers.scope",
        "CPUWeight=10000",
    ]
    assert second[-2:] == ["virtuary.service", "CPUWeight=10000"]
    assert (
        total_commands(10, system=False)[0][1] == "--user"
        and total_commands(10, system=False)[0][-1] == "CPUWeight=100"
    )


def test_a_group_of_threads_that_was_left_half_made_is_finished(tmp_path: Path) -> None:
    root = host(tmp_path, 2)
    group = group_paths("ID", root)[0]
    fill(group, 2)
    (group / "vcpus").mkdir()
    fill(group / "vcpus", 2)
    apply_cpu("ID", [], CpuShares(limit=50), 100, root)
    assert (group / "vcpus/cgroup.type").read_text() == "threaded"


def test_what_a_host_can_not_do_is_said(tmp_path: Path) -> None:
    assert apply_cpu("ID", [], CpuShares(), 100, tmp_path) == [], "nothing was wished"
    gaps = apply_cpu("ID", [], CpuShares(limit=50), 200, tmp_path)
    assert len(gaps) == 2 and all("this host has no control groups" in gap for gap in gaps)
    assert "no weight of storage traffic" in str(set_io_weight("ID", 200, tmp_path))
    root = tmp_path / "v2"
    root.mkdir()
    host(root, 2)
    assert "not delegated" in str(set_weight("ID", 200, root))


def test_pinning_keeps_a_thread_where_it_may_run() -> None:
    before = os.sched_getaffinity(0)
    first = min(before)
    try:
        apply_cpu("ID", [os.getpid()], CpuShares(pin=(first,)), 100, Path("/nowhere"))
        assert os.sched_getaffinity(0) == {first}
        apply_cpu("ID", [os.getpid()], CpuShares(), 100, Path("/nowhere"))
        assert os.sched_getaffinity(0) >= before
    finally:
        os.sched_setaffinity(0, before)
    assert apply_cpu("ID", [os.getpid()], CpuShares(pin=(9999,)), 100, Path("/nowhere"))[
        0
    ].startswith("not pinned")


def test_a_thread_that_is_gone_is_no_gap() -> None:
    assert apply_cpu("ID", [2**22 - 1], CpuShares(pin=(0,)), 100, Path("/nowhere")) == []


@pytest.mark.host
def test_the_kernel_takes_it(tmp_path: Path) -> None:
    """The groups of this host, whatever their version: real files, a process of ours."""
    name = f"test-{os.getpid()}"
    made, gap = ensure_group(name)
    if gap:
        pytest.skip(gap)
    try:
        assert apply_cpu(name, [], CpuShares(limit=50), 300) == []
        assert any((path / "vcpus").is_dir() for path in made)
    finally:
        remove_group(name)
    assert not any(path.exists() for path in made)


# ---- floors of processor time

CLAIMS = st.dictionaries(
    st.integers(0, 50).map(str), st.builds(Claim, st.integers(1, 10_000), st.one_of(st.just(0),
    st.integers(1, 400))), min_size=1, max_size=12
)  # fmt: skip


def parts(weights: dict[str, float], capacity: float) -> dict[str, float]:
    """What each gets while all spin."""
    return {name: capacity * weight / sum(weights.values()) for name, weight in weights.items()}


def test_where_nobody_has_a_floor_weights_are_as_they_were() -> None:
    assert fair_weights({"a": Claim(10), "b": Claim(10_000)}, 200) == {"a": 10, "b": 10_000}
    assert fair_weights({}, 200) == {}


def test_a_floor_is_had_by_a_higher_weight_and_the_others_keep_theirs() -> None:
    weights = fair_weights({"sure": Claim(10, 100), "a": Claim(100), "b": Claim(100)}, 200)
    assert weights == {"sure": pytest.approx(220), "a": pytest.approx(100), "b": pytest.approx(100)}
    assert parts(weights, 200)["sure"] == pytest.approx(100 + 100 * 10 / 210)


@given(CLAIMS, st.integers(1, 256))
def test_everybody_has_its_floor_and_its_weights_part_of_the_rest(
    claims: dict[str, Claim], cpus: int
) -> None:
    capacity, reserved = 100.0 * cpus, sum(claim.reserve for claim in claims.values())
    assume(0 < reserved <= capacity)
    weights = fair_weights(claims, capacity)
    got, total = parts(weights, capacity), sum(claim.weight for claim in claims.values())
    assert max(weights.values()) <= HIGHEST * 1.0001
    for name, claim in claims.items():
        assert got[name] == pytest.approx(
            claim.reserve + (capacity - reserved) * claim.weight / total
        )
        assert got[name] >= claim.reserve - 1e-6


@given(CLAIMS, st.integers(1, 256))
def test_ratios_are_kept_among_those_without_a_floor(claims: dict[str, Claim], cpus: int) -> None:
    capacity = 100.0 * cpus
    assume(sum(claim.reserve for claim in claims.values()) < capacity)
    weights = fair_weights(claims, capacity)
    plain = [name for name, claim in claims.items() if not claim.reserve]
    for one in plain:
        for other in plain:
            assert weights[one] * claims[other].weight == pytest.approx(
                weights[other] * claims[one].weight
            )


@given(CLAIMS, st.integers(1, 4))
@pytest.mark.slow
def test_floors_that_are_more_than_there_is_are_cut_alike(
    claims: dict[str, Claim], cpus: int
) -> None:
    assume(sum(claim.reserve for claim in claims.values()) > 100 * cpus)
    weights = fair_weights(claims, 100.0 * cpus)
    assert all(0 <= weight <= HIGHEST * 1.0001 for weight in weights.values())
    for one in claims:
        for other in claims:
            assert weights[one] * claims[other].reserve == pytest.approx(
                weights[other] * claims[one].reserve
            )
