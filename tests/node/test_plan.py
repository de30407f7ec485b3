"""The planner, told as scenarios: a world goes in, the next step comes out. Then a small host on which the steps take effect."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtuary.model.vm import VmSpec
from virtuary.node import plan as module
from virtuary.node.plan import (
    ASK_AGAIN,
    CRASH_LIMIT,
    STOP_TIMEOUT,
    UNBORN_LIMIT,
    End,
    Step,
    after_end,
    current_stage,
    plan,
    state_of,
    why_unborn,
)  # fmt: skip
from virtuary.node.worker import STEPS
from virtuary.node.world import World

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; this one shares a file
import worlds
from worlds import ME, Host, alive, at_rest, copy_of_it, crashes, image, operation, origin, runtime, source, vm, world

STOPPED: dict[str, Any] = {"power": "stopped"}
PAUSED: dict[str, Any] = {"power": "paused"}

COPY: dict[str, Any] = {"status": {"runtime": runtime(template="t"), "template": "t", "identity": None, "state": "starting"}}

LIVE: dict[str, Any] = {"status": {"runtime": runtime(live=True), "copied": True, "identity": None, "state": "starting"}}
LEFT, WITH_STATE = frozenset({"disk", "leftover"}), frozenset({"disk", "state"})

SCENARIOS: dict[str, tuple[World, str | None]] = {
    # ---- from nothing to a shell
    "created: the image is gone": (world(vm(), image=None, operation=operation("launch")), "fail"),
    "created: the image could not be made": (world(vm(), image=image(state="failed"), operation=operation("launch")), "fail"),
    "created: the image is being made": (world(vm(), image=image(state="making"), operation=operation("launch")), "follow_image"),
    "created: the image is being made and nobody follows": (world(vm(), image=image(state="making")), None),
    "created: the image is ready": (world(vm(), operation=operation("launch")), "make_disk"),
    "the disk was made, its record was lost": (world(vm(), files=frozenset({"disk"})), "make_disk"),
    "the record is there, the disk is not: it is never made anew": (at_rest(files=frozenset()), "fail"),
    "the disk is there": (at_rest(operation=operation("launch")), "start"),
    "the disk is wished larger": (at_rest({"disk": 2**31}), "grow_disk"),
    "the disk has its wished size": (at_rest({"disk": 2**30}), "start"),
    "user data was given": (at_rest({"user_data": True}, image=image(cloud_init=True)), "make_seed"),
    "the seed is there": (at_rest({"user_data": True}, image=image(cloud_init=True), files=frozenset({"disk", "seed"})), "start"),
    "an image without an agent gets a seed": (at_rest(image=image(cloud_init=True, agent=False)), "make_seed"),
    "an image without cloud-init gets none": (at_rest({"user_data": True}), "start"),
    "started: its monitor is not connected yet": (alive(qemu=None, connected=False, status={"state": "starting"}), None),
    "started: nobody serves its network yet": (alive(qemu="prelaunch", network_alive=False), "start_network"),
    "started: all is ready for release": (alive(qemu="prelaunch"), "resume"),
    "the guest's agent is there, its identity not given": (alive(status={"identity": None}), "give_identity"),
    "renamed: the guest learns its new name": (alive(status={"identity": "old"}), "give_identity"),
    "something new was seen": (alive(status={"state": "starting"}), "report"),
    "an address was learned": (alive(addresses=("10.0.2.15",)), "report"),
    "launched and ready": (alive(operation=operation("launch")), "finish"),
    "launched, SSH not heard yet": (alive(signals={"kernel": 1.0, "agent": 2.0, "network": 3.0}, operation=operation("launch")), "note"),
    "all is as wished": (alive(), None),
    "created stopped": (at_rest(STOPPED, operation=operation("create")), "finish"),
    "stopped and wished so": (at_rest(STOPPED), None),
    # ---- a copy of a warm template
    "its disk lies on a template": (at_rest(status={"template": "t"}, operation=operation("launch")), "start_warm"),
    "created, and now to be started for the first time": (at_rest(status={"applied": 0}, operation=operation("start")), "make_disk"),
    "created, and its disk was being made anew": (at_rest(status={"applied": 0}, files=frozenset(), operation=operation("start")), "make_disk"),
    "created, started, stopped by force before it was anybody": (at_rest(), "start"),
    "its disk lies on a template and is to be larger": (at_rest({"disk": 2**31}, status={"template": "t"}), "start_warm"),
    "a copy that became a machine of its own boots": (at_rest(status={"template": "t", "identity": "web1"}), "start"),
    "a copy waits for its state": (alive(qemu="inmigrate", **COPY), "load_state"),
    "a copy has its state": (alive(qemu="paused", **COPY), "resume"),
    "a copy runs, its agent answers": (alive(**COPY), "renew_identity"),
    "a copy runs, its agent is silent": (alive(signals={}, **COPY), None),
    "a copy that is wished stopped is not asked": (alive(STOPPED, **COPY, operation=operation("stop")), "kill"),
    # ---- copies, seen from the source
    "a copy waits": (at_rest(STOPPED, copies=(copy_of_it("overlay"),)), "share_disk"),
    "a copy waits, and a start was asked for since: the disk first": (at_rest(copies=(copy_of_it("overlay"),)), "share_disk"),
    "a full copy waits": (at_rest(STOPPED, copies=(copy_of_it("full"),)), "convert_disk"),
    "a copy waits, the last one left a disk": (at_rest(STOPPED, copies=(copy_of_it("full"),), files=LEFT), "tidy_home"),
    "a copy left a disk": (at_rest(STOPPED, files=LEFT), "tidy_home"),
    "it runs, what it was made of is still there": (alive(files=LEFT), "tidy_home"),
    "a copy waits, its disk is gone": (at_rest(STOPPED, copies=(copy_of_it("overlay"),), files=frozenset()), "refuse_copy"),
    "a copy waits, and it is being stopped": (alive(STOPPED, copies=(copy_of_it("overlay"),)), "ask_shutdown"),
    "a copy waits, but it runs": (alive(copies=(copy_of_it("overlay"),)), "refuse_copy"),
    "a copy waits, its process is over": (at_rest(STOPPED, status={"runtime": runtime(end="stop")}, copies=(copy_of_it("overlay"),)), "collect"),
    "a live copy waits": (alive(copies=(copy_of_it("live"),)), "save_live"),
    "a live copy waits, the agent was not heard since the daemon came": (alive(copies=(copy_of_it("live"),), signals={}), None),
    "a live copy waits, but it is stopped": (at_rest(STOPPED, copies=(copy_of_it("live"),)), "refuse_copy"),
    "a live copy waits, but it is paused": (alive(PAUSED, qemu="paused", copies=(copy_of_it("live"),)), "refuse_copy"),
    "a live copy waits, but it is being restarted": (alive({"restarts": 1}, copies=(copy_of_it("live"),)), "refuse_copy"),
    "it stands still since a daemon died that was saving it": (alive(qemu="finish-migrate"), "end_save"),
    "it stands still after it was saved, and is to stop": (alive(STOPPED, qemu="postmigrate"), "end_save"),
    # ---- copies, seen from the copy
    "it waits for its source": (world(vm(origin("overlay")), source=source(), operation=operation("copy")), None),
    "it waits, its source is gone": (world(vm(origin("overlay")), operation=operation("copy")), "drop_copy"),
    "it waits, its source is deleted": (world(vm(origin("live")), source=source({"deleted": worlds.WALL}), operation=operation("copy")), "drop_copy"),
    "it waits, and nobody wants it": (world(vm(origin("full")), source=source()), "drop_copy"),
    "it waits, and is cancelled": (world(vm(origin("full")), source=source(), operation=operation("copy", cancel=True)), "cancel_operation"),
    "its source is just giving, and it is cancelled": (world(vm(origin("full")), held=True, operation=operation("copy", cancel=True)), None),
    "its source is just giving, and it is to go": (world(vm(origin("full"), {"purge": True}), held=True), None),
    "it knows its layers": (world(vm({**origin("overlay"), **STOPPED}, copied=True), operation=operation("copy")), "stand_on_layer"),
    "it stands on them": (at_rest({**origin("overlay"), **STOPPED}, status={"copied": True}, operation=operation("copy")), "finish"),
    "it is started": (at_rest(origin("overlay"), status={"copied": True, "renew": True}), "start"),
    "its guest is up and believes to be its source": (alive(origin("overlay"), status={"copied": True, "renew": True, "identity": None}), "renew_copy"),
    "a live copy has the memory": (at_rest(origin("live"), status={"copied": True}, files=WITH_STATE, operation=operation("copy")), "start_live"),
    "a live copy has the memory, and is stopped": (at_rest({**origin("live"), **STOPPED}, status={"copied": True}, files=WITH_STATE), "drop_copy"),
    "a live copy has lost the memory": (at_rest(origin("live"), status={"copied": True}, operation=operation("copy")), "drop_copy"),
    "a live copy waits for its memory": (alive(origin("live"), qemu="inmigrate", **LIVE), "load_live"),
    "a live copy has read its memory": (alive(origin("live"), qemu="paused", **LIVE), "resume"),
    "a live copy runs, its agent answers": (alive(origin("live"), **LIVE), "renew_live"),
    "a live copy runs, its agent is silent": (alive(origin("live"), signals={}, wall=worlds.WALL + UNBORN_LIMIT, **LIVE), None),
    "a live copy runs, its agent is silent for too long": (alive(origin("live"), signals={}, wall=worlds.WALL + 2 * UNBORN_LIMIT, **LIVE), "kill"),
    "a live copy died on its way": (at_rest(origin("live"), **LIVE, operation=operation("copy")), "drop_copy"),
    "a live copy that became a machine of its own": (at_rest(origin("live"), status={"copied": True, "identity": "web1"}), "start"),
    # ---- pause and resume
    "wished paused, runs": (alive(PAUSED), "pause"),
    "wished paused, is": (alive(PAUSED, qemu="paused", status={"state": "paused"}, operation=operation("pause")), "finish"),
    "wished running, is paused": (alive(qemu="paused", status={"state": "paused"}), "resume"),
    "launched paused": (at_rest(PAUSED), "start"),
    "launched paused: it is never released, and that is what was wished": (
        alive(PAUSED, qemu="prelaunch", status={"state": "paused"}, operation=operation("launch")), "finish",
    ),
    "started, then wished paused before it was released": (
        alive(PAUSED, qemu="prelaunch", status={"state": "paused"}, operation=operation("start")), "finish",
    ),
    # ---- stop
    "wished stopped": (alive(STOPPED, operation=operation("stop")), "ask_shutdown"),
    "asked a moment ago": (alive(STOPPED, asked_to_stop=995.0, asked_last=995.0, status={"state": "stopping"}, operation=operation("stop")), None),
    "asked a while ago": (alive(STOPPED, asked_to_stop=970.0, asked_last=1000.0 - ASK_AGAIN, operation=operation("stop")), "ask_shutdown"),
    "asked too long ago": (alive(STOPPED, asked_to_stop=1000.0 - STOP_TIMEOUT, asked_last=999.0, operation=operation("stop")), "kill"),
    "its time was short": (alive(STOPPED, asked_to_stop=995.0, asked_last=995.0, operation=operation("stop", timeout=5.0)), "kill"),
    "its time is long": (alive(STOPPED, asked_to_stop=800.0, asked_last=999.0, status={"state": "stopping"}, operation=operation("stop", timeout=3600.0)), None),
    "by force": (alive(STOPPED, operation=operation("stop", force=True)), "kill"),
    "the guest shut itself down": (alive(qemu="shutdown"), "kill"),
    "the kill was noted but did not happen": (alive(status={"runtime": runtime(end="stop")}), "kill"),
    "stopped: clean up": (at_rest(STOPPED, status={"runtime": runtime(end="stop")}), "collect"),
    "stopped: done": (at_rest(STOPPED, operation=operation("stop")), "finish"),
    "a monitor that is silent is no reason to wait with the plug": (
        alive(STOPPED, connected=False, qemu=None, silent=True, asked_to_stop=900.0, operation=operation("stop")), "kill",
    ),
    # ---- restart
    "wished to restart": (alive({"restarts": 1}, operation=operation("restart")), "ask_shutdown"),
    "restarted": (alive({"restarts": 1}, status={"runtime": runtime(restarts=1)}, operation=operation("restart")), "finish"),
    "restart of one that hangs": (alive({"restarts": 1}, asked_to_stop=1.0, operation=operation("restart")), "kill"),
    "not yet restarted is not done": (alive({"restarts": 1}, asked_to_stop=999.0, asked_last=999.0, status={"state": "stopping"}, operation=operation("restart")), "note"),
    # ---- what goes wrong
    "the process died": (at_rest(status={"runtime": runtime()}), "collect"),
    "the guest's kernel panicked": (alive(qemu="guest-panicked"), "kill"),
    "QEMU met an internal error": (alive(qemu="internal-error"), "kill"),
    "a QEMU runs that nobody recorded": (at_rest(process="stray"), "end_stray"),
    "nobody serves its network any more": (alive(network_alive=False), "start_network"),
    "paused, because the disk is full": (alive(qemu="io-error", space=False), "report"),
    "paused, and there is room again": (alive(qemu="io-error", space=True), "resume"),
    "its monitor is silent": (alive(silent=True), "report"),
    "crashed and wished stopped": (at_rest(STOPPED, status={"state": "crashed", "reason": "boom"}), None),
    # ---- cancel and delete
    "a launch is cancelled": (alive(operation=operation("launch", cancel=True)), "cancel_operation"),
    "a launch is cancelled before it began": (world(vm(), operation=operation("launch", cancel=True)), "cancel_operation"),
    "deleted while it runs": (alive(STOPPED, {"deleted": worlds.WALL}, operation=operation("delete", force=True)), "kill"),
    "in the trash": (at_rest(STOPPED, {"deleted": worlds.WALL}, status={"state": "trashed"}, operation=operation("delete")), "finish"),
    "in the trash nothing is started": (at_rest({"power": "running"}, {"deleted": worlds.WALL}, status={"state": "trashed"}), None),
    "purged while it runs": (alive(STOPPED, {"purge": True}), "kill"),
    "purged with a stray": (at_rest(STOPPED, {"purge": True}, process="stray"), "end_stray"),
    "purged": (at_rest(STOPPED, {"purge": True}), "forget"),
    # ---- not ours
    "another host owns it": (alive({"owner": "another-host", **STOPPED}, operation=operation("stop", force=True)), None),
    "nobody owns it": (at_rest({"owner": ""}), None),
    "another host owns what is purged": (at_rest({"owner": "another-host"}, {"purge": True}), None),
}  # fmt: skip


@pytest.mark.parametrize("case", SCENARIOS)
def test_the_next_step_is(case: str) -> None:
    seen, wanted = SCENARIOS[case]
    step = plan(ME, seen)
    assert (step.name if step else None) == wanted


def test_every_step_has_an_effect_and_a_scenario() -> None:
    named = {name for _, name in SCENARIOS.values() if name}
    assert named == set(STEPS)
    assert {name for name in vars(Host) if name in STEPS} | {"follow_image"} == set(STEPS), "and one in the simulation"


@pytest.mark.parametrize("case", SCENARIOS)
def test_planning_changes_nothing_and_repeats(case: str) -> None:
    seen, _ = SCENARIOS[case]
    before = repr(seen)
    assert plan(ME, seen) == plan(ME, seen) and repr(seen) == before


def test_a_report_that_was_written_is_not_written_again() -> None:
    seen = alive(status={"state": "starting"}, addresses=("10.0.2.15",))
    step = plan(ME, seen)
    assert step and plan(ME, worlds.after(seen, step)) is None


# ---- what becomes of one whose process is over

PANIC = "the guest's kernel panicked"
ENDS: dict[str, tuple[dict[str, Any], str | None, tuple[float, ...], dict[str, Any], tuple[Any, ...]]] = {
    # policy and power, why it was ended, crashes minutes ago, facts -> state, crashed, again
    "stopped": (STOPPED, "stop", (), {}, ("stopped", False, False)),
    "stopped, though always": ({**STOPPED, "restart_policy": "always"}, "stop", (), {}, ("stopped", False, False)),
    "cancelled": ({}, "cancel", (), {}, ("stopped", False, False)),
    "deleted": ({"restart_policy": "always"}, "delete", (), {}, ("stopped", False, False)),
    "restarted": ({}, "restart", (), {}, ("stopped", False, True)),
    "stopped during a restart": (STOPPED, "restart", (), {}, ("stopped", False, False)),
    "guest shut down, no policy": ({}, "shutdown", (), {}, ("stopped", False, False)),
    "guest shut down, on failure": ({"restart_policy": "on-failure"}, "shutdown", (), {}, ("stopped", False, False)),
    "guest shut down, always": ({"restart_policy": "always"}, "shutdown", (), {}, ("stopped", False, True)),
    "guest shut down while being stopped": (
        {**STOPPED, "restart_policy": "always"},
        "shutdown",
        (),
        {},
        ("stopped", False, False),
    ),
    "panic, no policy": ({}, "panic", (), {}, ("crashed", True, False)),
    "panic, on failure": ({"restart_policy": "on-failure"}, "panic", (), {}, ("crashed", True, True)),
    "died, always": ({"restart_policy": "always"}, None, (), {"exit_status": -9}, ("crashed", True, True)),
    "fourth crash in ten minutes": ({"restart_policy": "always"}, None, (1, 2, 3), {}, ("crashed", True, True)),
    "fifth crash in ten minutes": ({"restart_policy": "always"}, None, (1, 2, 3, 4), {}, ("crashed", True, False)),
    "fifth crash, the first long ago": ({"restart_policy": "always"}, None, (1, 2, 3, 11), {}, ("crashed", True, True)),
    "crashed while wished stopped": ({**STOPPED, "restart_policy": "always"}, None, (), {}, ("crashed", True, False)),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_becomes_of_it(case: str) -> None:
    spec, why, before, facts, wanted = ENDS[case]
    seen = at_rest(spec, status={"runtime": runtime(end=why), "crashes": crashes(*before)}, **facts)
    end = after_end(seen)
    assert (end.state, end.crashed, end.again) == wanted


def test_the_fifth_crash_says_why_there_is_no_sixth() -> None:
    seen = at_rest({"restart_policy": "always"}, status={"runtime": runtime(), "crashes": crashes(*range(1, CRASH_LIMIT))})
    assert "not restarted, because it crashed 5 times within 10 minutes" in str(after_end(seen).reason)


REASONS = {
    "QEMU's last words": ({"exit_status": 1, "last_words": "early\n2026-01-01T00:00:00.1Z qemu-system-x86_64: no memory"}, None, "QEMU died: no memory"),
    "a signal": ({"exit_status": -11}, None, "QEMU died: killed by signal 11"),
    "a status": ({"exit_status": 3}, None, "QEMU died: exit status 3"),
    "a panic": ({"exit_status": -9}, "panic", PANIC),
    "an internal error": ({"exit_status": -9}, "internal-error", "QEMU ended: internal-error"),
    "nobody watched": ({}, None, "QEMU ended while nobody watched (the host was restarted, or the process was killed)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_a_crash_is_told_with_its_reason(case: str) -> None:
    facts, why, sentence = REASONS[case]
    assert after_end(at_rest(status={"runtime": runtime(end=why)}, **facts)).reason == sentence


# ---- what people are shown

STATES: dict[str, tuple[World, str]] = {
    "new": (world(vm()), "creating"),
    "stopped": (at_rest(STOPPED), "stopped"),
    "crashed": (at_rest(STOPPED, status={"state": "crashed", "reason": "boom"}), "crashed"),
    "in the trash": (at_rest(STOPPED, {"deleted": worlds.WALL}), "trashed"),
    "QEMU starts": (alive(qemu="prelaunch"), "starting"),
    "the guest boots": (alive(signals={}, status={"stages": {}}), "starting"),
    "a guest without an agent is running at once": (alive(signals={}, status={"stages": {}}, image=image(agent=False)), "running"),
    "running": (alive(), "running"),
    "paused": (alive(PAUSED, qemu="paused"), "paused"),
    "no space": (alive(qemu="io-error"), "paused"),
    "stopping": (alive(STOPPED), "stopping"),
    "restarting": (alive({"restarts": 1}), "stopping"),
    "silent": (alive(silent=True), "unresponsive"),
    "adopted, not heard yet": (alive(qemu=None), "running"),
    "adopted, was unresponsive": (alive(qemu=None, status={"state": "unresponsive"}), "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_people_are_shown(case: str) -> None:
    seen, wanted = STATES[case]
    assert state_of(seen)[0] == wanted


STAGES = [
    ({}, True, "firmware"), ({"kernel"}, True, "kernel"), ({"kernel", "agent"}, True, "network"), ({"kernel", "agent", "network"}, True, "ssh"),
    ({"kernel"}, False, "kernel"), ({"kernel", "network", "ssh"}, False, "ssh"),
]  # fmt: skip


@pytest.mark.parametrize(("heard", "agent", "stage"), STAGES)
def test_the_stage_shown_is_the_one_being_waited_for(heard: set[str], agent: bool, stage: str) -> None:
    seen = alive(signals=dict.fromkeys(heard, 1.0), status={"stages": {}}, image=image(agent=agent))
    assert current_stage(seen) == stage


# ---- a host on which the steps take effect


def test_a_launch_takes_the_road_that_was_designed() -> None:
    host = Host(vm(), operation=operation("launch"))
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road == ["make_disk", "start", "start_network", "resume", "give_identity", "finish"]
    assert host.vm and host.vm.status.state == "running" and host.operation is None


def test_a_warm_launch_differs_by_few_steps() -> None:
    host = Host(vm(), operation=operation("launch"), warm="good")
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road == ["make_disk", "start_warm", "start_network", "load_state", "resume", "renew_identity", "finish"]
    assert host.vm and host.vm.status.state == "running" and host.vm.status.cold is None


@pytest.mark.parametrize("fault", ["breaks", "refuses"])
def test_a_copy_that_fails_is_ended_and_booted_from_a_fresh_disk(fault: str) -> None:
    host = Host(vm(), operation=operation("launch"), warm=fault)
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road[-7:] == ["collect", "make_disk", "start", "start_network", "resume", "give_identity", "finish"]
    assert host.vm and (host.vm.status.state, host.vm.status.template, host.vm.status.cold) == ("running", None, "it failed")


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_copy_that_dies_on_the_way_is_booted_from_a_fresh_disk(moment: int) -> None:
    host = Host(vm(), operation=operation("launch"), warm="good")
    for _ in range(moment):
        seen = host.look()
        step = plan(ME, seen) if seen else None
        if step and seen:
            getattr(host, step.name)(seen, step.value)
        else:
            host.pass_time()
    if host.vm and host.vm.status.identity is None and host.process == "alive":
        host.die()
        host.settle()
        assert host.vm.status.state == "running" and host.vm.status.template is None and host.vm.status.cold


def test_a_guest_that_ignores_the_power_button_is_asked_again_and_then_ended() -> None:
    host = Host(vm())
    host.settle()
    host.steps.clear()
    host._spec(power="stopped")
    host.deaf, host.operation = True, operation("stop")
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road[-3:] == ["kill", "collect", "finish"] and 3 <= road.count("ask_shutdown") <= 7
    assert host.vm and host.vm.status.state == "stopped"


def test_a_guest_that_dies_again_and_again_is_given_up() -> None:
    host = Host(vm({"restart_policy": "always"}))
    for _ in range(CRASH_LIMIT):
        host.settle()
        assert host.process == "alive"
        host.die()
    host.settle()
    assert host.process == "absent" and host.vm
    assert (host.vm.status.state, host.vm.spec.power, len(host.vm.status.crashes)) == ("crashed", "stopped", CRASH_LIMIT)


def test_a_cancelled_launch_leaves_nothing_at_any_moment() -> None:
    total = 12
    for moment in range(total):
        host = Host(vm(), operation=operation("launch"))
        for _ in range(moment):
            seen = host.look()
            step = plan(ME, seen) if seen else None
            if step and seen:
                getattr(host, step.name)(seen, step.value)
            else:
                host.pass_time()
        if host.operation is None:
            break
        host.operation = operation("launch", cancel=True)
        host.settle()
        assert host.vm is None and host.process == "absent" and not host.files
    assert moment > 4


EVENTS = [
    "start", "stop", "stop by force", "restart", "pause", "resume", "rename", "delete", "die", "guest shuts down", "guest panics", "network dies",
    "disk full", "copied", "copied live", "left standing", "left a disk", "stray", "deaf", "warm", "warm breaks", "warm refuses", "one step", "daemon restarts", "time passes",
]  # fmt: skip


def happen(host: Host, event: str) -> None:
    """A wish or a misfortune, as the actions and the world bring them."""
    assert host.vm
    runs = host.vm.status.runtime is not None
    match event:
        case "start":
            host._spec(power="running")
            host.operation = operation("start")
        case "stop" | "stop by force":
            host._spec(power="stopped")
            host.operation = operation("stop", force=event != "stop")
        case "restart" if runs:
            host._spec(power="running", restarts=host.vm.spec.restarts + 1)
            host.operation = operation("restart")
        case "pause" if runs:
            host._spec(power="paused")
        case "resume" if runs:
            host._spec(power="running")
        case "rename":
            host.vm = host.vm.but(meta=host.vm.meta.but(name=host.vm.name + "x"))
        case "delete":
            host._spec(power="stopped")
            host.vm = host.vm.but(meta=host.vm.meta.but(purge=True))
        case "die":
            host.die()
        case "guest shuts down" if host.qemu == "running":
            host.qemu = "shutdown"
        case "guest panics" if host.qemu == "running":
            host.qemu = "guest-panicked"
        case "disk full" if host.qemu == "running":
            host.qemu = "io-error"
        case "copied" | "copied live":
            host.copies.append(copy_of_it("live" if event == "copied live" else "overlay"))
        case "left standing" if host.qemu == "running":
            host.qemu = "finish-migrate"
        case "left a disk" if "disk" in host.files:
            host.files.add("leftover")
        case "warm" | "warm breaks" | "warm refuses":
            host.warm = event.partition(" ")[2] or "good"
        case "network dies":
            host.network = False
        case "stray" if not runs and host.process == "absent":
            host.process = "stray"
        case "deaf":
            host.deaf = True
        case "one step":
            seen = host.look()
            step = plan(ME, seen) if seen else None
            if step and seen:
                getattr(host, step.name)(seen, step.value)
        case "daemon restarts":
            host.asked, host.signals = None, {}
        case "time passes":
            host.pass_time()


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(EVENTS), max_size=12),
    st.sampled_from(["always", "on-failure", "no"]),
    st.sampled_from(["running", "paused", "stopped"]),
    st.booleans(),
    st.booleans(),
)
def test_whatever_happens_the_wish_comes_true_and_then_it_is_quiet(
    events: list[str], policy: str, power: str, agent: bool, seed: bool
) -> None:
    spec = {"restart_policy": policy, "power": power, "user_data": seed}
    host = Host(
        vm(spec), image=image(agent=agent, cloud_init=seed), operation=operation("launch" if power != "stopped" else "create")
    )
    for event in events:
        if host.vm is None:
            return
        happen(host, event)
    host.settle(400)
    if host.vm is None:
        assert not host.files and host.process == "absent"
        return
    assert host.operation is None, "nobody waits for ever"
    assert host.process == ("absent" if host.vm.spec.power == "stopped" else "alive")
    assert (
        host.qemu
        in {"stopped": [None], "running": ["running"], "paused": ["paused", "prelaunch", "io-error"]}[host.vm.spec.power]
    )
    seen = host.look()
    assert seen and state_of(seen)[0] == host.vm.status.state, "what is written is what is"
    assert not host.copies or not host.vm.status.disk_ready or not agent, "a copy is given what it waits for, or told why not"
    assert "leftover" not in host.files


COPY_EVENTS = [
    "stop",
    "stop by force",
    "start",
    "delete",
    "die",
    "one step",
    "time passes",
    "daemon restarts",
    "source goes",
    "cancel",
]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(COPY_EVENTS), max_size=10),
    st.sampled_from(["overlay", "full", "live"]),
    st.sampled_from(["running", "stopped"]),
    st.sampled_from(["", "breaks", "refuses"]),
)
def test_a_copy_becomes_a_machine_of_its_own_or_nothing(events: list[str], mode: str, power: str, fault: str) -> None:
    wish = {**origin(mode), "power": "running" if mode == "live" else power}
    host = Host(vm(wish), source=source(), operation=operation("copy"), live=fault)
    for event in events:
        if host.vm is None:
            break
        if event == "source goes":
            host.source = None
        elif event == "cancel" and host.operation and host.operation.spec.kind == "copy":
            host.operation = operation("copy", cancel=True)
        elif event not in ("source goes", "cancel"):
            happen(host, event)
    host.settle(400)
    assert host.operation is None, "nobody waits for ever"
    if host.vm is None:
        assert not host.files and host.process == "absent"
        return
    assert host.vm.status.disk_ready and (host.vm.status.identity or mode != "live"), "a live copy that is no machine is nothing"
    if host.process == "alive":
        assert host.vm.status.identity == host.vm.name and not host.vm.status.renew
    assert "state" not in host.files, "nothing is kept of its source's memory"


def test_a_live_copy_takes_the_road_that_was_designed() -> None:
    host = Host(vm(origin("live")), source=source(), operation=operation("copy"))
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road == ["start_live", "start_network", "load_live", "resume", "renew_live", "finish"]
    assert host.vm and host.vm.status.state == "running"


def test_a_copy_of_a_stopped_server_takes_a_short_road() -> None:
    host = Host(vm({**origin("overlay"), **STOPPED}), source=source(), operation=operation("copy"))
    host.settle()
    assert [name for name in host.steps if name not in ("note", "report")] == ["stand_on_layer", "finish"]
    host._spec(power="running")
    host.settle()
    assert host.steps.count("renew_copy") == 1 and host.vm and not host.vm.status.renew


def test_why_a_live_copy_ended_is_told() -> None:
    def why(**facts: Any) -> str:
        found = runtime(live=True, end=facts.pop("end", None))
        return why_unborn(at_rest(origin("live"), status={"runtime": found, "identity": None}, **facts))

    assert why(end="silent") == "its guest agent did not answer within 120 s"
    assert why(end="stop") == "it was ended before it was a machine of its own"
    assert why(exit_status=-11) == "QEMU died: killed by signal 11"


@given(st.sampled_from(sorted(SCENARIOS)), st.sampled_from(["running", "paused", "stopped"]))
def test_one_of_another_host_is_never_touched(case: str, power: str) -> None:
    seen, _ = SCENARIOS[case]
    other = seen.vm.but(spec=seen.vm.spec.but(owner="another-host", power=power))
    assert plan(ME, replace(seen, vm=other)) is None


def test_the_table_of_ends_covers_every_reason_the_planner_gives() -> None:
    given_reasons = {"stop", "restart", "shutdown", "panic", "internal-error", "delete", "cancel"}
    for why in given_reasons:
        assert isinstance(after_end(at_rest(status={"runtime": runtime(end=why)})), End)


def test_time_limits_are_what_the_manual_says() -> None:
    assert (STOP_TIMEOUT, ASK_AGAIN, CRASH_LIMIT, timedelta(minutes=10)) == (90.0, 15.0, 5, module.CRASH_WINDOW)
    assert VmSpec(image="a").restart_policy == "no" and Step("a").value is None
