"""A start that hangs is looked into when it takes thrice as long as usual, and told in words; one
of which nothing can come ends.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from virtuary.model.operation import Operation
from virtuary.node.plan import plan
from virtuary.node.server.world import World
from virtuary.node.slow.plan import TIMES, Explain, Finding, TellWhy, explain
from virtuary.node.slow.steps import SIGNS
from virtuary.node.usual import FIRST, LEAST, Usual, durations

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from worlds import alive, at_rest, changed, operation, runtime, vm

USUAL = FIRST["tcg"]
STARTING: dict[str, Any] = {"runtime": runtime(), "state": "starting", "stages": {}}


def at_stage(stage: str, why: str = "", kind: str = "launch") -> Operation:
    found = operation(kind)
    return found.but(status=found.status.but(stage=stage, why=why, phase="running"))


def hanging(stage: str, seconds: float, kind: str = "launch", **facts: Any) -> World:
    signals = {
        "firmware": {},
        "kernel": {"kernel": 4.0},
        "ssh": {"kernel": 4.0, "agent": 20.0, "network": 21.0},
    }[stage]
    heard = max(signals.values(), default=0.0)
    return changed(
        alive(status=STARTING, signals=signals, operation=at_stage(stage, kind=kind)),
        age=heard + seconds, usual=USUAL, now=1000.0, **facts,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["firmware", "kernel", "ssh"])
def test_a_stage_is_looked_into_after_thrice_its_usual_time_and_again_later(stage: str) -> None:
    late = USUAL[stage] * TIMES
    assert explain(hanging(stage, late - 1)) is None
    assert explain(hanging(stage, late + 1)) == Explain(stage)
    assert explain(hanging(stage, late + 1, explained=990.0)) is None
    assert explain(hanging(stage, late + 20, explained=980.0)) == Explain(stage)
    assert plan(hanging(stage, late + 1)) is not None


def test_only_starts_that_somebody_waits_for_are_looked_into() -> None:
    assert explain(hanging("kernel", 999, kind="stop")) is None
    assert explain(replace(hanging("kernel", 999), operation=None)) is None
    assert explain(changed(hanging("kernel", 999), qemu="paused")) is None
    stopping = hanging("kernel", 999, kind="restart")
    assert (
        explain(replace(stopping, vm=stopping.vm.but(spec=stopping.vm.spec.but(restarts=1))))
        is None
    ), "the one before is meant"


def test_a_start_that_waits_for_its_network_says_so_at_once_and_once() -> None:
    waiting = at_rest(
        network=("failed", "the network lan is not there"), operation=at_stage("disk")
    )
    assert explain(waiting) == TellWhy(Finding("the network lan is not there"))
    assert (
        explain(replace(waiting, operation=at_stage("disk", "the network lan is not there")))
        is None
    )


def test_what_is_usual_is_learned_from_servers_of_the_same_image_and_accelerator() -> None:
    usual = Usual()
    started = vm(
        runtime=runtime(), stages={"kernel": 8.0, "agent": 50.0, "network": 50.5, "ssh": 51.0}
    )
    assert usual.of(started) == FIRST["tcg"]
    usual.learn(started)
    assert usual.of(started) == {
        "firmware": 8.0,
        "kernel": 42.0,
        "agent": 10.0,
        "network": LEAST,
        "ssh": LEAST,
    }
    usual.learn(vm(runtime=runtime(), stages={"kernel": 4.0, "agent": 50.0}))
    assert usual.of(started)["firmware"] == 6.0
    for other in (
        vm({"image_id": "other"}, runtime=runtime()),
        vm(runtime=runtime(template="t")),
        vm(runtime=runtime(accel="kvm")),
    ):
        assert (
            usual.of(other)
            == FIRST[
                "kvm" if other.status.runtime and other.status.runtime.accel == "kvm" else "tcg"
            ]
        )
    usual.learn(vm())  # it has ended meanwhile


def test_stages_last_from_one_signal_to_the_next() -> None:
    assert durations({}) == {}
    assert durations({"kernel": 4.0, "ssh": 9.0}) == {"firmware": 4.0, "ssh": 5.0}
    assert durations({"kernel": 4.0, "agent": 9.0, "network": 7.0, "ssh": 9.5})["network"] == 0.0


CONSOLES = {
    b"Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable "
    b"device.\r\n": ("boot from", True),
    b"BdsDxe: No bootable option or device was found.\r\n": ("boot from", True),
    b"[    1.2] VFS: Unable to mount root fs on unknown-block(0,0)\r\n[    1.2] Kernel panic - "
    b"not syncing: VFS": ("root file system", True),
    b"[    3.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009": ("panicked", True),
    b"[    0.9] Initramfs unpacking failed: write error": ("memory is too small", False),
    b"error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ": ("boot loader",
    False),
    b"You are in emergency mode. After logging in, type": ("emergency mode", False),
    b"BusyBox v1.36 built-in shell (ash)\r\n(initramfs) ": ("emergency mode", False),
    b"systemd[1]: Failed to write /run/x: No space left on device": ("disk is full", False),
}  # fmt: skip


@pytest.mark.parametrize("said", CONSOLES)
def test_what_a_console_says_is_understood(said: bytes) -> None:
    words, hopeless = CONSOLES[said]
    found = next(finding for sign, finding in SIGNS if sign.search(said))
    assert words in found.why and found.hopeless is hopeless


def test_an_ordinary_console_says_nothing_of_the_kind() -> None:
    said = (
        b"[    0.0] Linux version 6.1\r\n[  OK  ] Reached target multi-user.target\r\nDebian "
        b"GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: "
    )
    assert not [finding for sign, finding in SIGNS if sign.search(said)]
