"""The planner, told as scenarios: a world goes in, the next step comes out. Then a small host on
which the steps take effect.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtuary.model.cpu import CpuShares
from virtuary.model.disk import DiskIo
from virtuary.model.operation import Operation
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.runtime import Shape
from virtuary.model.vm import Sized, VmSpec
from virtuary.model.volume import Volume
from virtuary.node.copies.plan import SILENT_LIMIT, why_no_machine
from virtuary.node.plan import plan
from virtuary.node.power.ends import CRASH_LIMIT, CRASH_WINDOW, End, after_end
from virtuary.node.power.plan import ASK_AGAIN, LeaveToOwner
from virtuary.node.report.plan import LESS_MEMORY, NO_SSH, current_stage, state_of
from virtuary.node.server.world import Tuning, World
from virtuary.node.tuning.plan import shortfall, untuned
from virtuary.node.tuning.steps import _wish_before
from virtuary.node.worker import CAPABILITIES, DOES

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))
import worlds
from worlds import (
    HOLD,
    WALL,
    Host,
    alive,
    at_rest,
    attached,
    changed,
    copy_of_it,
    crashes,
    disk,
    disks,
    image,
    operation,
    origin,
    runtime,
    source,
    vm,
    volume,
    world,
)

STOPPED: dict[str, Any] = {"power": "stopped"}
LAN = [
    {"number": 0, "network": "lan", "network_id": "net"},
    {"number": 1, "network": "back", "network_id": "net2"},
]
BOTH = {"runtime": runtime(network="tap", nics=LAN)}
ON_LAN, ON_TWO = {"nics": LAN[:1]}, {"nics": LAN}
PAUSED: dict[str, Any] = {"power": "paused"}
HALTED = {"halted": {"why": "it crashed", "since": worlds.WALL, "asked": 0}}
COPIED, FULL = {"copied": True}, {"name": "web1", "why": "full"}

SHAPED = {
    "runtime": runtime(disks=[disk()], shape=Shape(memory=2**30, max_cpus=8, max_memory=2**33))
}
WITH_DISK = {"runtime": runtime(disks=[disk()])}
DETACH = operation("disk-detach", number=1, volume="volume-1", disk=disk())


def on(seen: World, *volumes: Volume) -> World:
    """The world with these disks."""
    return changed(seen, **attached(seen.vm, *volumes))


REFUSED = "its guest did not take the name web1: full"
COPY: dict[str, Any] = {
    "status": {
        "runtime": runtime(template="t"),
        "warm": {"template": "t"},
        "identity": {"given": None},
        "state": "starting",
    }
}

LIVE: dict[str, Any] = {
    "status": {
        "runtime": runtime(live=True),
        "origin": COPIED,
        "identity": {"given": None},
        "state": "starting",
    }
}
LEFT, WITH_STATE = frozenset({"disk", "leftover"}), frozenset({"disk", "state"})

SHAPE = Shape(memory=2**30, cpus=1, max_cpus=8, max_memory=2**33)
BORROWED = Shape(memory=2**30, cpus=1, max_cpus=8, max_memory=2**33, borrowed=True)


def sized(
    spec: dict[str, Any], shape: Shape = SHAPE, cpus: int = 1, memory: int = 2**30, **facts: Any
) -> World:
    """A guest that runs and has so much, with limits and shares as a process has that was just
    started.
    """
    seen = {"runtime": runtime(shape=shape), "cpus": cpus, "memory": memory}
    return alive(
        spec, status=seen, **{"tuned": untuned(cpus), "cpus": cpus, "memory": memory, **facts}
    )


def reclaimed(spec: dict[str, Any], **facts: Any) -> World:
    """The same, where the host took some of its memory for a while."""
    seen = sized(spec, **facts)
    status = seen.vm.status.but(pressure={"reclaimed": True}, reason=LESS_MEMORY)
    return replace(seen, vm=seen.vm.but(status=status))


LIMITED = Tuning(CpuShares(limit=50), DiskIo(), 1)
NO_LAN = ("failed", "the network lan is not there")
WAITING = "the network lan is not there; it is started as soon as that is"


def asked(kind: str, ago: float, failing: float) -> World:
    """A server whose network has been failing for so long, and of which something was asked so long
    ago.
    """
    meanwhile = WALL + timedelta(seconds=ago)
    return at_rest(
        network=NO_LAN, network_failing=failing, wall=meanwhile, operation=operation(kind)
    )


def staged(stage: str) -> Operation:
    """A launch that is in this stage."""
    found = operation("launch")
    return found.but(status=found.status.but(stage=stage, phase="running"))


NAMES = {re.sub(r"(?<!^)(?=[A-Z])", "_", step.__name__).lower() for step in DOES}
"""The steps that somebody does."""


SCENARIOS: dict[str, tuple[World, str | None]] = {
    # ---- from nothing to a shell
    "created: the image is gone": (world(vm(), image=None, operation=operation("launch")), "fail"),
    "created: the image could not be made": (world(vm(), image=image(state="failed"),
    operation=operation("launch")), "fail"),
    "created: the image is being made": (world(vm(), image=image(state="making"),
    operation=operation("launch")), "follow_image"),
    "created: the image is being made and nobody follows": (world(vm(),
    image=image(state="making")), None),
    "created: the image is ready": (world(vm(), operation=operation("launch")), "make_disk"),
    "the disk was made, its record was lost": (world(vm(), files=frozenset({"disk"})), "make_disk"),
    "the record is there, the disk is not: it is never made anew": (at_rest(files=frozenset()),
    "fail"),
    "the disk is there": (at_rest(operation=operation("launch")), "start"),
    "the disk is wished larger": (at_rest({"disks": (2**31,)}), "grow_disk"),
    "the disk has its wished size": (at_rest({"disks": (2**30,)}), "start"),
    "user data was given": (at_rest({"login": {"user_data": True}}, image=image(cloud_init=True)),
    "make_seed"),
    "the seed is there": (at_rest({"login": {"user_data": True}}, image=image(cloud_init=True),
    files=frozenset({"disk", "seed"})), "start"),
    "an image without an agent gets a seed": (at_rest(image=image(cloud_init=True, agent=False)),
    "make_seed"),
    "an image whose login cloud-init makes gets a seed": (at_rest(image=image(cloud_init=True,
    user="fedora")), "make_seed"),
    "an image without cloud-init gets none": (at_rest({"login": {"user_data": True}}), "start"),
    "user data for an image that turned out to have no cloud-init": (at_rest({"login": {"user_data": True}},
    status={"disks": {0: {"ready": False}}}), "fail"),
    "the guest would not take its name: it is left in peace": (
        alive(status={"identity": {"given": "old", "refused": FULL}, "reason": REFUSED},
        refused={"identity": "web1"}), None
    ),
    "it stood still, and nobody can set its clock": (alive(image=image(agent=False), behind=5.0),
    "report"),
    "it stood still, and its agent sets its clock": (alive(behind=5.0), None),
    "and is asked again by another name": (alive(status={"identity": {"given": "old",
    "refused": FULL}}, refused={"identity": "web0"}), "give_identity"),
    "started: its monitor is not connected yet": (alive(qemu=None, connected=False,
    status={"state": "starting"}), None),
    "started: nobody serves its network yet": (alive(qemu="prelaunch", network_alive=False),
    "start_network"),
    "started: all is ready for release": (alive(qemu="prelaunch"), "resume"),
    "its network is being made": (at_rest(network=("creating", "waiting for the network lan")),
    None),
    "its network is gone": (at_rest(network=("gone", "the network lan is gone")), "fail"),
    "nobody asked, and its network fails: it waits, and says why": (at_rest(network=NO_LAN,
    network_failing=9999), "report"),
    "nobody asked, and it says why it waits": (at_rest(status={"state": "starting",
    "reason": WAITING}, network=NO_LAN), None),
    "a start waits for a network that fails": (asked("start", 29, 29), "report"),
    "a start was just asked for where its network fails for long": (asked("start", 1, 9999),
    "report"),
    "a start has waited long for a network that failed just now": (asked("start", 9999, 1),
    "report"),
    "a start has waited for its network": (asked("start", 30, 30), "fail"),
    "a change is no start, and fails with no network": (asked("set", 9999, 9999), "report"),
    "its network came while it waited": (at_rest(status={"state": "starting", "reason": WAITING}),
    "start"),
    "it is not wished any more while it waits": (
        at_rest(STOPPED, status={"state": "starting", "reason": WAITING}, network=NO_LAN), "report"
    ),
    "its network is gone, and it is wished stopped": (at_rest(STOPPED, network=("gone",
    "it is gone")), None),
    "on a network of the host's nobody has to serve it": (
        alive(ON_LAN, status={"runtime": runtime(network="tap")}, network_alive=False), None,
    ),
    "started: its second NIC is plugged before it runs": (alive(ON_TWO,
    status={"runtime": runtime(network="tap")}, qemu="prelaunch"), "plug_nic"),
    "a copy has its state first, then its second NIC": (
        alive(ON_TWO, status={"runtime": runtime(network="tap", template="t")}, qemu="inmigrate"),
        "load_state",
    ),
    "a NIC was added while it runs": (alive(ON_TWO, status={"runtime": runtime(network="tap")}),
    "plug_nic"),
    "a NIC was taken away while it runs": (alive(ON_LAN, status={"runtime": runtime(network="tap",
    nics=LAN)}), "unplug_nic"),
    "a NIC is to lead elsewhere": (alive({"nics": [LAN[0], {**LAN[1], "network": "lan",
    "network_id": "net"}]}, status=BOTH), "unplug_nic"),
    "a NIC is to have another address": (alive({"nics": [LAN[0], {**LAN[1], "ipv4": "10.1.0.9"}]},
    status=BOTH), "unplug_nic"),
    "a NIC is to have another MAC": (alive({"nics": [LAN[0], {**LAN[1],
    "mac": "52:54:00:00:00:09"}]}, status=BOTH), "unplug_nic"),
    "a NIC is to be in other groups": (alive({"nics": [LAN[0], {**LAN[1], "groups": ["web"]}]},
    status=BOTH), None),
    "the first NIC is to lead elsewhere": (alive({"nics": [{**LAN[0], "network_id": "net3"},
    LAN[1]]}, status=BOTH), None),
    "what leaves makes room for what comes": (
        alive({"nics": [LAN[0], {**LAN[1], "number": 2}]}, status=BOTH), "unplug_nic",
    ),
    "it has the NICs it is to have": (alive(ON_TWO, status={"runtime": runtime(network="tap",
    nics=LAN)}), None),
    "what is stopped gets no NIC": (alive({**ON_TWO, **STOPPED},
    status={"runtime": runtime(network="tap")}), "ask_shutdown"),
    "the guest's agent is there, its identity not given": (alive(status={"identity": {"given": None}}),
    "give_identity"),
    "renamed: the guest learns its new name": (alive(status={"identity": {"given": "old"}}), "give_identity"),
    "something new was seen": (alive(status={"state": "starting"}), "report"),
    "an address was learned": (alive(addresses=("10.0.2.15",)), "report"),
    "launched and ready": (alive(operation=operation("launch")), "finish"),
    "launched, SSH not heard for long": (
        alive(
            signals={}, status={"stages": {}, "state": "starting", "identity": {"given": None}},
            usual={"firmware": 1.0}, operation=staged("firmware"),
            age=9.0,
        ), "explain",
    ),
    "its network is being made, and somebody waits": (
        at_rest(network=("creating", "waiting for the network lan"), operation=operation("start")),
        "tell_why",
    ),
    "launched, SSH not heard yet": (alive(signals={"kernel": 1.0, "agent": 2.0, "network": 3.0},
    operation=operation("launch")), "note"),
    "all is as wished": (alive(), None),
    "created stopped": (at_rest(STOPPED, operation=operation("create")), "finish"),
    "stopped and wished so": (at_rest(STOPPED), None),
    # ---- halted, whatever is wished
    "it crashed for good": (at_rest(status={"power": HALTED, "state": "crashed"}), None),
    "it is asked for again": (at_rest({"asked": 1}, status={"power": HALTED}), "start"),
    "its start was given up as it ran": (alive(status={"power": HALTED, "state": "stopping"}),
    "ask_shutdown"),
    "and it is asked for before it has ended": (alive({"asked": 1}, status={"power": HALTED}), None),
    "it halted before it had a disk that is lost": (at_rest(status={"power": HALTED},
    files=frozenset()), None),
    # ---- a copy of a warm template
    "its disk lies on a template": (at_rest(status={"warm": {"template": "t"}},
    operation=operation("launch")), "start_warm"),
    "created, and now to be started for the first time": (at_rest(status={"power": {"applied": 0}},
    operation=operation("start")), "make_disk"),
    "created, and its disk was being made anew": (at_rest(status={"power": {"applied": 0}}, files=frozenset(),
    operation=operation("start")), "make_disk"),
    "created, started, stopped by force before it was anybody": (at_rest(), "start"),
    "its disk lies on a template and is to be larger": (at_rest({"disks": (2**31,)},
    status={"warm": {"template": "t"}}), "start_warm"),
    "a copy that became a machine of its own boots": (at_rest(status={"warm": {"template": "t"},
    "identity": {"given": "web1"}}), "start"),
    "a copy waits for its state": (alive(qemu="inmigrate", **COPY), "load_state"),
    "a copy has its state": (alive(qemu="paused", **COPY), "resume"),
    "a copy runs, its agent answers": (alive(**COPY), "renew_identity"),
    "a copy runs, its agent is silent": (alive(signals={}, **COPY), None),
    "a copy runs, and waits to be told who it is": (alive(signals={}, wakes=True, **COPY),
    "renew_identity"),
    "a copy that is wished stopped is not asked": (alive(STOPPED, **COPY,
    operation=operation("stop")), "kill"),
    # ---- copies, seen from the source
    "a copy waits": (at_rest(STOPPED, copies=(copy_of_it("overlay"),)), "share_disk"),
    "a copy waits, and a start was asked for since: the disk first": (at_rest(copies=(copy_of_it("overlay"),)), "share_disk"),
    "a full copy waits": (at_rest(STOPPED, copies=(copy_of_it("full"),)), "convert_disk"),
    "a copy waits, the last one left a disk": (at_rest(STOPPED, copies=(copy_of_it("full"),),
    files=LEFT), "tidy_home"),
    "a copy left a disk": (at_rest(STOPPED, files=LEFT), "tidy_home"),
    "it runs, what it was made of is still there": (alive(files=LEFT), "tidy_home"),
    "a copy waits, its disk is gone": (at_rest(STOPPED, copies=(copy_of_it("overlay"),),
    files=frozenset()), "refuse_copy"),
    "a copy waits, and it is being stopped": (alive(STOPPED, copies=(copy_of_it("overlay"),)),
    "ask_shutdown"),
    "a copy waits, but it runs": (alive(copies=(copy_of_it("overlay"),)), "refuse_copy"),
    "a copy waits, its process is over": (at_rest(STOPPED, status={"runtime": runtime(end="stop")},
    copies=(copy_of_it("overlay"),)), "collect"),
    "a live copy waits": (alive(copies=(copy_of_it("live"),)), "save_live"),
    "a live copy waits, the agent was not heard since the daemon came": (alive(copies=(copy_of_it("live"),), signals={}), None),
    "a live copy waits, but it is stopped": (at_rest(STOPPED, copies=(copy_of_it("live"),)),
    "refuse_copy"),
    "a live copy waits, but it is paused": (alive(PAUSED, qemu="paused", copies=(copy_of_it("live"),
    )), "refuse_copy"),
    "a live copy waits, but it is being restarted": (alive({"restarts": 1},
    copies=(copy_of_it("live"),)), "refuse_copy"),
    "it stands still since a daemon died that was saving it": (alive(qemu="finish-migrate"),
    "end_save"),
    "it stands still after it was saved, and is to stop": (alive(STOPPED, qemu="postmigrate"),
    "end_save"),
    # ---- copies, seen from the copy
    "it waits for its source": (world(vm(origin("overlay")), source=source(),
    operation=operation("copy")), None),
    "it waits, its source is gone": (world(vm(origin("overlay")), operation=operation("copy")),
    "drop_copy"),
    "it waits, its source is deleted": (world(vm(origin("live")),
    source=source({"deleted": worlds.WALL}), operation=operation("copy")), "drop_copy"),
    "it waits, and nobody wants it": (world(vm(origin("full")), source=source()), "drop_copy"),
    "it waits, and is cancelled": (world(vm(origin("full")), source=source(),
    operation=operation("copy", cancel=True)), "cancel_operation"),
    "its source is just giving, and it is cancelled": (world(vm(origin("full")), held=True,
    operation=operation("copy", cancel=True)), None),
    "its source is just giving, and it is to go": (world(vm(origin("full"), {"purge": True}),
    held=True), None),
    "it knows its layers": (world(vm({**origin("overlay"), **STOPPED}, origin=COPIED),
    operation=operation("copy")), "stand_on_layer"),
    "it stands on them": (at_rest({**origin("overlay"), **STOPPED}, status={"origin": COPIED},
    operation=operation("copy")), "finish"),
    "it is started": (at_rest(origin("overlay"), status={"origin": COPIED, "identity": {"renew": True}}), "start"),
    "its guest is up and believes to be its source": (alive(origin("overlay"),
    status={"origin": COPIED, "identity": {"renew": True, "given": None}}), "renew_copy"),
    "a live copy has the memory": (at_rest(origin("live"), status={"origin": COPIED},
    files=WITH_STATE, operation=operation("copy")), "start_live"),
    "a live copy has the memory, and is stopped": (at_rest({**origin("live"), **STOPPED},
    status={"origin": COPIED}, files=WITH_STATE), "drop_copy"),
    "a live copy has lost the memory": (at_rest(origin("live"), status={"origin": COPIED},
    operation=operation("copy")), "drop_copy"),
    "a live copy waits for its memory": (alive(origin("live"), qemu="inmigrate", **LIVE),
    "load_live"),
    "a live copy has read its memory": (alive(origin("live"), qemu="paused", **LIVE), "resume"),
    "a live copy runs, its agent answers": (alive(origin("live"), **LIVE), "renew_live"),
    "a live copy runs, its agent is silent": (alive(origin("live"), signals={}, age=SILENT_LIMIT,
    **LIVE), None),
    "a live copy runs, its agent is silent for too long": (alive(origin("live"), signals={},
    age=2 * SILENT_LIMIT, **LIVE), "kill"),
    "a live copy died on its way": (at_rest(origin("live"), **LIVE, operation=operation("copy")),
    "drop_copy"),
    "a live copy that became a machine of its own": (at_rest(origin("live"), status={"origin": COPIED,
    "identity": {"given": "web1"}}), "start"),
    # ---- pause and resume
    "wished paused, runs": (alive(PAUSED), "pause"),
    "wished paused, is": (alive(PAUSED, qemu="paused", status={"state": "paused"},
    operation=operation("pause")), "finish"),
    "wished running, is paused": (alive(qemu="paused", status={"state": "paused"}), "resume"),
    "launched paused": (at_rest(PAUSED), "start"),
    "launched paused: it is never released, and that is what was wished": (
        alive(PAUSED, qemu="prelaunch", status={"state": "paused"}, operation=operation("launch")),
        "finish",
    ),
    "started, then wished paused before it was released": (
        alive(PAUSED, qemu="prelaunch", status={"state": "paused"}, operation=operation("start")),
        "finish",
    ),
    # ---- the host's memory ran out
    "it is to be paused for lack of memory": (alive(status={"pressure": {"held": HOLD}}), "pause"),
    "it is, and that is written down": (alive(qemu="paused", status={"pressure": {"held": HOLD},
    "state": "paused", "reason": HOLD.why}), None),
    "there is memory again": (alive(qemu="paused", status={"state": "paused", "reason": HOLD.why}),
    "resume"),
    "its owner has it go on": (alive(qemu="paused", status={"pressure": {"held": HOLD},
    "state": "paused"}, operation=operation("resume")), "let_go"),
    "its owner pauses it": (alive(PAUSED, qemu="paused", status={"pressure": {"held": HOLD}},
    operation=operation("pause")), "let_go"),
    "its owner stops it": (alive(STOPPED, qemu="paused", status={"pressure": {"held": HOLD}},
    operation=operation("stop")), "ask_shutdown"),
    "some of its memory was taken": (alive(status={"pressure": {"reclaimed": True}}), "report"),
    "what was taken is given back": (alive(status={"reason": LESS_MEMORY}), "report"),
    # ---- stop
    "its start failed while it booted": (alive(STOPPED, status={"state": "starting"}), "kill"),
    "it boots and is to stop": (alive(STOPPED, status={"state": "starting"},
    operation=operation("stop")), "ask_shutdown"),
    "wished stopped": (alive(STOPPED, operation=operation("stop")), "ask_shutdown"),
    "asked a moment ago": (alive(STOPPED, asked_to_stop=995.0, asked_last=995.0,
    status={"state": "stopping"}, operation=operation("stop")), None),
    "asked a while ago": (alive(STOPPED, asked_to_stop=970.0, asked_last=1000.0 - ASK_AGAIN,
    operation=operation("stop")), "ask_shutdown"),
    "asked too long ago": (alive(STOPPED, asked_to_stop=1000.0 - STOP_TIMEOUT, asked_last=999.0,
    operation=operation("stop")), "kill"),
    "its time was short": (alive(STOPPED, asked_to_stop=995.0, asked_last=995.0,
    operation=operation("stop", timeout=5.0)), "kill"),
    "its time is long": (alive(STOPPED, asked_to_stop=800.0, asked_last=999.0,
    status={"state": "stopping"}, operation=operation("stop", timeout=3600.0)), None),
    "by force": (alive(STOPPED, operation=operation("stop", force=True)), "kill"),
    "the guest shut itself down": (alive(qemu="shutdown"), "kill"),
    "the kill was noted but did not happen": (alive(status={"runtime": runtime(end="stop")}),
    "kill"),
    "stopped: clean up": (at_rest(STOPPED, status={"runtime": runtime(end="stop")}), "collect"),
    "its host goes down: it is asked first": (alive(leaving=True, waits="down"), "ask_shutdown"),
    "its host goes down, and its time is over": (
        alive({"policy": {"shutdown_timeout": 20}}, leaving=True, asked_to_stop=979.0, asked_last=999.0,
        status={"state": "stopping"}), "kill",
    ),
    "its host goes down, and its time is not over": (
        alive({"policy": {"shutdown_timeout": 200}}, leaving=True, asked_to_stop=979.0, asked_last=999.0,
        status={"state": "stopping"}), None,
    ),
    "its host goes down, and it is just to be off": (alive({"policy": {"on_host_shutdown": "off"}},
    leaving=True), "kill"),
    "its host goes down, others first": (alive(waits="down"), None),
    "it does not begin while its host goes down": (at_rest(status={"state": "stopped"},
    waits="down"), None),
    "its host has booted, others first": (at_rest(status={"state": "stopped"}, waits="boot"),
    "report"),
    "stopped: done": (at_rest(STOPPED, operation=operation("stop")), "finish"),
    "a monitor that is silent is no reason to wait with the plug": (
        alive(STOPPED, connected=False, qemu=None, silent=True, asked_to_stop=900.0,
        operation=operation("stop")), "kill",
    ),
    # ---- restart
    "wished to restart": (alive({"restarts": 1}, operation=operation("restart")), "ask_shutdown"),
    "restarted": (alive({"restarts": 1}, status={"runtime": runtime(restarts=1)},
    operation=operation("restart")), "finish"),
    "restart of one that hangs": (alive({"restarts": 1}, asked_to_stop=1.0,
    operation=operation("restart")), "kill"),
    "not yet restarted is not done": (alive({"restarts": 1}, asked_to_stop=999.0, asked_last=999.0,
    status={"state": "stopping"}, operation=operation("restart")), "note"),
    # ---- what it is given while it runs
    "it has what is wished": (sized({}), None),
    "its limits are not the wished ones": (sized({"cpu": {"limit": 50}}), "tune"),
    "what its process was given is not known": (sized({}, tuned=None), "tune"),
    "limits hold before it runs": (sized({"cpu": {"limit": 50}}, qemu="prelaunch", signals={}),
    "tune"),
    "wished more CPUs": (sized({"cpu": 2}, operation=operation("set", cpus=1)), "resize_cpus"),
    "wished fewer CPUs": (sized({"cpu": 1}, cpus=2, operation=operation("set", cpus=2)),
    "resize_cpus"),
    "wished fewer CPUs than it began with": (sized({"cpu": 1}, SHAPE.but(cpus=2), cpus=2), None),
    "wished more CPUs than it can have": (sized({"cpu": 9}), None),
    "wished more memory": (sized({"memory": 2**31}, operation=operation("set", memory=2**30)),
    "resize_memory"),
    "wished more memory than it can have": (sized({"memory": 2**34}), None),
    "wished less memory": (sized({"memory": 2**29}), "resize_memory"),
    "its guest would not have more memory": (sized({"memory": 2**31}, refused={"memory": 2**31}),
    "report"),
    "its guest refused less than is wished now": (sized({"memory": 2**31},
    refused={"memory": 2**30}), "resize_memory"),
    "its guest would not have more CPUs, but a disk": (sized({"cpu": 2, "disks": (2**31,)},
    refused={"cpus": 2}), "resize_disk"),
    "its limits hold, somebody waits": (sized({"cpu": {"limit": 50}}, tuned=LIMITED, memory=None,
    operation=operation("set")), "finish"),
    "wished less memory than a template's": (sized({"memory": 2**29}, BORROWED), None),
    "a guest keeps a little": (sized({}, memory=2**30 + 2**21), None),
    "the host took memory from it": (reclaimed({}, memory=2**29), None),
    "wished a larger disk": (sized({"disks": (2**31,)}), "resize_disk"),
    "it is paused: it follows when it goes on": (sized({"cpu": 2, **PAUSED}, qemu="paused",
    operation=operation("set", cpus=1)), "report"),
    "it has what was asked for": (sized({"cpu": 2}, cpus=2, operation=operation("set", cpus=1)),
    "finish"),
    "it stopped before it could follow": (at_rest({"cpu": 2, **STOPPED}, operation=operation("set",
    cpus=1)), "finish"),
    # ---- what goes wrong
    "the process died": (at_rest(status={"runtime": runtime()}), "collect"),
    "the guest's kernel panicked": (alive(qemu="guest-panicked"), "kill"),
    "QEMU met an internal error": (alive(qemu="internal-error"), "kill"),
    "a QEMU runs that nobody recorded": (at_rest(process="stray"), "end_stray"),
    "a live copy that takes itself for its source is served by nobody": (
        alive(origin("live"), **LIVE, network_alive=False), "renew_live",
    ),
    "a live copy is a machine of its own": (
        alive(origin("live"), status=LIVE["status"] | {"identity": {"given": "web1"}}, network_alive=False),
        "start_network",
    ),
    "nobody serves its network any more": (alive(network_alive=False), "start_network"),
    "paused, because the disk is full": (alive(qemu="io-error", space=False), "report"),
    "paused, and there is room again": (alive(qemu="io-error", space=True), "resume"),
    "its monitor is silent": (alive(silent=True), "report"),
    "crashed and wished stopped": (at_rest(STOPPED, status={"state": "crashed", "reason": "boom"}),
    None),
    # ---- disks of their own
    "a disk is attached": (on(alive(disks(disk()), operation=operation("disk-attach", number=1,
    volume="volume-1")), volume()), "plug_disk"),
    "a disk is there": (on(alive(disks(disk()), status=WITH_DISK, operation=operation("disk-attach",
    number=1, volume="volume-1")), volume()), "finish"),
    "a disk is attached to a server that is off": (on(at_rest({**disks(disk()), **STOPPED},
    operation=operation("disk-attach", number=1, volume="volume-1")), volume()), "finish"),
    "a disk is being made": (on(alive(disks(disk())), volume(state="creating", size=None)), None),
    "a disk is to go": (on(alive(disks(), status=WITH_DISK, operation=DETACH), volume()),
    "unplug_disk"),
    "a disk is gone from the machine": (on(alive(disks(), operation=DETACH), volume()),
    "release_volume"),
    "a disk is gone, and let go": (on(alive(disks(), operation=DETACH), volume(held=False)),
    "finish"),
    "a disk is to go that its machine had when it ended": (on(at_rest({**disks(), **STOPPED},
    operation=DETACH), volume()), "release_volume"),
    "a disk is to be read-only": (on(alive(disks(disk(read_only=True)), status=WITH_DISK), volume()
    ), "unplug_disk"),
    "a disk is not to be attached any more": (on(alive(disks(disk()), operation=operation(
    "disk-attach", cancel=True, number=1, volume="volume-1")), volume()), "cancel_disk"),
    "nobody knows yet what the machine has": (changed(on(alive(disks(disk())), volume()),
    plugged_known=False), None),
    "a disk that could not be plugged is left for a while": (changed(on(alive(disks(disk())),
    volume()), refused={"disk1": 1}), None),
    "a disk is to go, and its guest stands still": (on(alive({**disks(), **PAUSED},
    status={**WITH_DISK, "state": "paused"}, qemu="paused", operation=DETACH), volume()), None),
    "a server goes on whose disk can't go": (changed(on(alive(disks(), status=WITH_DISK,
    qemu="paused"), volume()), refused={"disk1": 1}), "resume"),
    "a guest let go of a disk unasked": (changed(on(alive(disks(disk()), status=WITH_DISK), volume()
    ), lost=frozenset({1})), "plug_disk"),
    "a guest let go of a disk late": (changed(on(alive(disks(), status=WITH_DISK), volume()),
    lost=frozenset({1})), "unplug_disk"),
    "a disk is limited": (on(alive(disks(disk(io={"iops": 500})), status=SHAPED), volume()), "tune"),
    "a disk is to be larger": (on(alive(disks(disk()), status=WITH_DISK), volume(1, 2**31)),
    "grow_volume"),
    "a disk is to be larger before a start": (on(at_rest(disks(disk())), volume(1, 2**31)), None),
    "a disk is being made before a start": (on(at_rest(disks(disk())), volume(state="creating",
    size=None)), None),
    "a disk could not be made": (on(at_rest(disks(disk())), volume(state="failed", reason="full")),
    "fail"),
    "a disk is gone before a start": (on(at_rest(disks(disk()))), "fail"),
    "a disk's file is gone before a start": (changed(on(at_rest(disks(disk())), volume()),
    away={"volume-1": "its file is gone"}), "fail"),
    "its disks are there": (on(at_rest(disks(disk())), volume()), "start"),
    "purged, and still holds a disk": (on(at_rest({**disks(disk()), **STOPPED}, {"purge": True}),
    volume()), "release_volume"),
    # ---- cancel and delete
    "a launch is cancelled": (alive(operation=operation("launch", cancel=True)),
    "cancel_operation"),
    "a launch is cancelled before it began": (world(vm(), operation=operation("launch",
    cancel=True)), "cancel_operation"),
    "deleted while it runs": (alive(STOPPED, {"deleted": worlds.WALL}, operation=operation("delete"
    )), "kill"),
    "in the trash": (at_rest(STOPPED, {"deleted": worlds.WALL}, status={"state": "trashed"},
    operation=operation("delete")), "finish"),
    "in the trash nothing is started": (at_rest({"power": "running"}, {"deleted": worlds.WALL},
    status={"state": "trashed"}), None),
    "purged while it runs": (alive(STOPPED, {"purge": True}), "kill"),
    "purged with a stray": (at_rest(STOPPED, {"purge": True}, process="stray"), "end_stray"),
    "purged": (at_rest(STOPPED, {"purge": True}), "forget"),
    # ---- not ours
    "another host owns it": (alive({"owner": "another-host", **STOPPED}, operation=operation("stop",
    force=True)), "leave_to_owner"),
    "nobody owns it": (at_rest({"owner": ""}), None),
    "another host owns what is purged": (at_rest({"owner": "another-host"}, {"purge": True}), None),
}  # fmt: skip


@pytest.mark.parametrize("case", SCENARIOS)
def test_the_next_step_is(case: str) -> None:
    seen, wanted = SCENARIOS[case]
    step = plan(seen)
    assert (step.name if step else None) == wanted


def test_no_step_is_of_two_capabilities() -> None:
    assert sum(len(capability.effects) for capability in CAPABILITIES) == len(DOES)


def test_every_step_has_an_effect_and_a_scenario() -> None:
    named = {name for _, name in SCENARIOS.values() if name}
    assert named == NAMES
    assert {name for name in vars(Host) if name in NAMES} | {"follow_image"} == NAMES, (
        "and one in the simulation"
    )


@pytest.mark.parametrize("case", SCENARIOS)
def test_planning_changes_nothing_and_repeats(case: str) -> None:
    seen, _ = SCENARIOS[case]
    before = repr(seen)
    assert plan(seen) == plan(seen) and repr(seen) == before


def test_a_report_that_was_written_is_not_written_again() -> None:
    seen = alive(status={"state": "starting"}, addresses=("10.0.2.15",))
    step = plan(seen)
    assert step and plan(worlds.after(seen, step)) is None


# ---- what becomes of one whose process is over

PANIC = "the guest's kernel panicked"
ENDS: dict[
    str, tuple[dict[str, Any], str | None, tuple[float, ...], dict[str, Any], tuple[Any, ...]]
] = {
    # policy and power, why it was ended, crashes minutes ago, facts -> state, crashed, again
    "stopped": (STOPPED, "stop", (), {}, ("stopped", False, False)),
    "stopped, though always": (
        {**STOPPED, "policy": {"restart": "always"}},
        "stop",
        (),
        {},
        ("stopped", False, False),
    ),
    "cancelled": ({}, "cancel", (), {}, ("stopped", False, False)),
    "deleted": ({"policy": {"restart": "always"}}, "delete", (), {}, ("stopped", False, False)),
    "restarted": ({}, "restart", (), {}, ("stopped", False, True)),
    "stopped during a restart": (STOPPED, "restart", (), {}, ("stopped", False, False)),
    "guest shut down, no policy": ({}, "shutdown", (), {}, ("stopped", False, False)),
    "guest shut down, on failure": (
        {"policy": {"restart": "on-failure"}},
        "shutdown",
        (),
        {},
        ("stopped", False, False),
    ),
    "guest shut down, always": (
        {"policy": {"restart": "always"}},
        "shutdown",
        (),
        {},
        ("stopped", False, True),
    ),
    "guest shut down while being stopped": (
        {**STOPPED, "policy": {"restart": "always"}},
        "shutdown",
        (),
        {},
        ("stopped", False, False),
    ),
    "panic, no policy": ({}, "panic", (), {}, ("crashed", True, False)),
    "panic, on failure": (
        {"policy": {"restart": "on-failure"}},
        "panic",
        (),
        {},
        ("crashed", True, True),
    ),
    "died, always": (
        {"policy": {"restart": "always"}},
        None,
        (),
        {"exit_status": -9},
        ("crashed", True, True),
    ),
    "fourth crash in ten minutes": (
        {"policy": {"restart": "always"}},
        None,
        (1, 2, 3),
        {},
        ("crashed", True, True),
    ),
    "fifth crash in ten minutes": (
        {"policy": {"restart": "always"}},
        None,
        (1, 2, 3, 4),
        {},
        ("crashed", True, False),
    ),
    "fifth crash, the first long ago": (
        {"policy": {"restart": "always"}},
        None,
        (1, 2, 3, 11),
        {},
        ("crashed", True, True),
    ),
    "crashed while wished stopped": (
        {**STOPPED, "policy": {"restart": "always"}},
        None,
        (),
        {},
        ("crashed", True, False),
    ),
}


BOOTS: dict[str, tuple[dict[str, Any], str, tuple[float, ...], int | None, bool]] = {
    # policy and power, state, crashes minutes ago, exit status -> again
    "QEMU aborts": ({}, "starting", (), -6, True),
    "QEMU meets a bad address": ({}, "starting", (), -11, True),
    "for the second time": ({}, "starting", (1,), -6, False),
    "after its guest was there": ({}, "running", (), -6, False),
    "killed by somebody": ({}, "starting", (), -9, False),
    "nobody saw how": ({}, "starting", (), None, False),
    "wished stopped": (STOPPED, "starting", (), -6, False),
}


@pytest.mark.parametrize("case", BOOTS)
def test_a_boot_that_a_defect_of_qemus_ends_is_begun_once_more(case: str) -> None:
    spec, state, before, status, again = BOOTS[case]
    seen = at_rest(
        spec,
        status={"runtime": runtime(), "state": state, "power": {"crashes": crashes(*before)}},
        exit_status=status,
    )
    end = after_end(seen)
    assert (end.state, end.crashed, end.again) == ("crashed", True, again)
    assert ("it is started once more" in str(end.reason)) == again


@pytest.mark.parametrize("case", ENDS)
def test_what_becomes_of_it(case: str) -> None:
    spec, why, before, facts, wanted = ENDS[case]
    seen = at_rest(
        spec, status={"runtime": runtime(end=why), "power": {"crashes": crashes(*before)}}, **facts
    )
    end = after_end(seen)
    assert (end.state, end.crashed, end.again) == wanted


def test_the_fifth_crash_says_why_there_is_no_sixth() -> None:
    seen = at_rest(
        {"policy": {"restart": "always"}},
        status={"runtime": runtime(), "power": {"crashes": crashes(*range(1, CRASH_LIMIT))}},
    )
    assert "not restarted, because it crashed 5 times within 10 minutes" in str(
        after_end(seen).reason
    )


REASONS = {
    "QEMU's last words": ({"exit_status": 1,
    "last_words": "early\n2026-01-01T00:00:00.1Z qemu-system-x86_64: no memory"}, None,
    "QEMU died: no memory"),
    "a signal, long after a warning": (
        {"exit_status": -9,
        "last_words": "2026-01-01T00:00:00.1Z qemu-system-x86_64: -accel kvm: warning: Number of hotpluggable cpus"}, None,
        "QEMU died: killed by signal 9",
    ),
    "a signal": ({"exit_status": -11}, None, "QEMU died: killed by signal 11"),
    "a status": ({"exit_status": 3}, None, "QEMU died: exit status 3"),
    "a panic": ({"exit_status": -9}, "panic", PANIC),
    "an internal error": ({"exit_status": -9}, "internal-error", "QEMU ended: internal-error"),
    "nobody watched": ({}, None,
    "QEMU ended while nobody watched (the host was restarted, or the process was killed)"),
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
    "a guest without an agent is running at once": (alive(signals={}, status={"stages": {}},
    image=image(agent=False)), "running"),
    "running": (alive(), "running"),
    "paused": (alive(PAUSED, qemu="paused"), "paused"),
    "no space": (alive(qemu="io-error"), "paused"),
    "the host's memory ran out": (alive(qemu="paused", status={"pressure": {"held": HOLD}}), "paused"),
    "stopping": (alive(STOPPED), "stopping"),
    "restarting": (alive({"restarts": 1}), "stopping"),
    "silent": (alive(silent=True), "unresponsive"),
    "adopted, not heard yet": (alive(qemu=None), "running"),
    "adopted, was unresponsive": (alive(qemu=None, status={"state": "unresponsive"}), "unknown"),
}  # fmt: skip


def test_of_a_guest_without_an_agent_that_was_never_heard_and_is_waited_for_no_more_it_is_said() -> (
    None
):
    facts: Any = {"signals": {}, "status": {"stages": {}}, "image": image(agent=False)}
    assert state_of(alive(**facts)) == ("running", NO_SSH)
    assert state_of(alive(**facts, operation=operation("start"))) == ("running", None)
    assert state_of(alive(**{**facts, "signals": {"ssh": 9.0}})) == ("running", None)


@pytest.mark.parametrize("case", STATES)
def test_people_are_shown(case: str) -> None:
    seen, wanted = STATES[case]
    assert state_of(seen)[0] == wanted


STAGES = [
    ({}, True, "firmware"), ({"kernel"}, True, "kernel"), ({"kernel", "agent"}, True, "network"),
    ({"kernel", "agent", "network"}, True, "ssh"),
    ({"kernel"}, False, "kernel"), ({"kernel", "network", "ssh"}, False, "ssh"),
]  # fmt: skip


@pytest.mark.parametrize(("heard", "agent", "stage"), STAGES)
def test_the_stage_shown_is_the_one_being_waited_for(
    heard: set[str], agent: bool, stage: str
) -> None:
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
    assert road == [
        "make_disk",
        "start_warm",
        "start_network",
        "load_state",
        "resume",
        "renew_identity",
        "finish",
    ]
    assert host.vm and host.vm.status.state == "running" and host.vm.status.warm.cold is None


@pytest.mark.parametrize("said", [0, 4096, 2**29, 2**30 + 1, 2**40])
def test_what_a_guest_says_about_its_memory_never_becomes_its_server_s_wish(said: int) -> None:
    """A guest writes the size of its balloon itself, and nobody asked for a change: the wish stays,
    and people are told.
    """
    before = sized({"memory": 2**31}, memory=said)
    assert _wish_before(before, "memory") == (2**31, False)
    assert _wish_before(replace(before, operation=operation("start")), "memory") == (2**31, False)
    assert _wish_before(replace(before, operation=operation("set", memory=2**30)), "memory") == (
        2**30,
        True,
    )
    words = shortfall(changed(before, refused={"memory": 2**31}))
    assert (words is None) == (said == 2**40) and (
        words is None or "of its 2 GiB of memory" in words
    )


@pytest.mark.parametrize("fault", ["breaks", "refuses"])
def test_a_copy_that_fails_is_ended_and_booted_from_a_fresh_disk(fault: str) -> None:
    host = Host(vm(), operation=operation("launch"), warm=fault)
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road[-7:] == [
        "collect",
        "make_disk",
        "start",
        "start_network",
        "resume",
        "give_identity",
        "finish",
    ]
    assert host.vm and (
        host.vm.status.state,
        host.vm.status.warm.template,
        host.vm.status.warm.cold,
    ) == (
        "running",
        None,
        "it failed",
    )


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_copy_that_dies_on_the_way_is_booted_from_a_fresh_disk(moment: int) -> None:
    host = Host(vm(), operation=operation("launch"), warm="good")
    for _ in range(moment):
        seen = host.look()
        step = plan(seen) if seen else None
        if step and seen:
            host.do(seen, step)
        else:
            host.pass_time()
    if host.vm and host.vm.status.identity.given is None and host.process == "alive":
        host.die()
        host.settle()
        assert (
            host.vm.status.state == "running"
            and host.vm.status.warm.template is None
            and host.vm.status.warm.cold
        )


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
    host = Host(vm({"policy": {"restart": "always"}}))
    for _ in range(CRASH_LIMIT):
        host.settle()
        assert host.process == "alive"
        host.die()
    host.settle()
    assert host.process == "absent" and host.vm
    assert (host.vm.status.state, host.vm.wanted, len(host.vm.status.power.crashes)) == (
        "crashed",
        "stopped",
        CRASH_LIMIT,
    )


def test_a_cancelled_launch_leaves_nothing_at_any_moment() -> None:
    total = 12
    for moment in range(total):
        host = Host(vm(), operation=operation("launch"))
        for _ in range(moment):
            seen = host.look()
            step = plan(seen) if seen else None
            if step and seen:
                host.do(seen, step)
            else:
                host.pass_time()
        if host.operation is None:
            break
        host.operation = operation("launch", cancel=True)
        host.settle()
        assert host.vm is None and host.process == "absent" and not host.files
    assert moment > 4


EVENTS = [
    "start", "stop", "stop by force", "restart", "pause", "resume", "rename", "delete", "die",
    "guest shuts down", "guest panics", "network dies",
    "disk full", "copied", "copied live", "left standing", "left a disk", "stray", "deaf", "warm",
    "warm breaks", "warm refuses", "one step", "daemon restarts", "time passes",
    "memory runs out",
]  # fmt: skip


def happen(host: Host, event: str) -> None:
    """A wish or a misfortune, as the actions and the world bring them."""
    assert host.vm
    runs = host.vm.status.runtime is not None
    match event:
        case "start":
            host.ask("running")
            host.operation = operation("start")
        case "stop" | "stop by force":
            host._spec(power="stopped")
            host.operation = operation("stop", force=event != "stop")
        case "restart" if runs:
            host.ask("running", restarts=host.vm.spec.restarts + 1)
            host.operation = operation("restart")
        case "pause" if runs:
            host.ask("paused")
        case "resume" if runs:
            host.ask("running")
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
        case "memory runs out" if host.qemu == "running":
            host._status(pressure={"held": HOLD})
        case "one step":
            seen = host.look()
            step = plan(seen) if seen else None
            if step and seen:
                host.do(seen, step)
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
@pytest.mark.slow
def test_whatever_happens_the_wish_comes_true_and_then_it_is_quiet(
    events: list[str], policy: str, power: str, agent: bool, seed: bool
) -> None:
    spec = {"policy": {"restart": policy}, "power": power, "login": {"user_data": seed}}
    host = Host(
        vm(spec),
        image=image(agent=agent, cloud_init=seed),
        operation=operation("launch" if power != "stopped" else "create"),
    )
    for event in events:
        if host.vm is None:
            return
        happen(host, event)
    if host.vm and host.vm.status.pressure.held:
        # there is memory again
        host.vm = host.vm.but(status=host.vm.status.but(pressure={"held": None}))
    host.settle(400)
    if host.vm is None:
        assert not host.files and host.process == "absent"
        return
    assert host.operation is None, "nobody waits for ever"
    assert host.process == ("absent" if host.vm.wanted == "stopped" else "alive")
    assert (
        host.qemu
        in {
            "stopped": [None],
            "running": ["running"],
            "paused": ["paused", "prelaunch", "io-error"],
        }[host.vm.wanted]
    )
    seen = host.look()
    assert seen and state_of(seen)[0] == host.vm.status.state, "what is written is what is"
    assert not host.copies or not host.vm.status.disk.ready or not agent, (
        "a copy is given what it waits for, or told why not"
    )
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
@pytest.mark.slow
def test_a_copy_becomes_a_machine_of_its_own_or_nothing(
    events: list[str], mode: str, power: str, fault: str
) -> None:
    wish = {**origin(mode), "power": "running" if mode == "live" else power}
    host = Host(vm(wish), source=source(), operation=operation("copy"), live=fault)
    for event in events:
        if host.vm is None:
            break
        if event == "source goes":
            host.source = None
        elif event == "cancel" and host.operation and host.operation.spec.deed.kind == "copy":
            host.operation = operation("copy", cancel=True)
        elif event not in ("source goes", "cancel"):
            happen(host, event)
    host.settle(400)
    assert host.operation is None, "nobody waits for ever"
    if host.vm is None:
        assert not host.files and host.process == "absent"
        return
    assert host.vm.status.disk.ready and (host.vm.status.identity.given or mode != "live"), (
        "a live copy that is no machine is nothing"
    )
    if host.process == "alive":
        assert host.vm.status.identity.given == host.vm.name and not host.vm.status.identity.renew
    assert "state" not in host.files, "nothing is kept of its source's memory"


def test_a_live_copy_takes_the_road_that_was_designed() -> None:
    host = Host(vm(origin("live")), source=source(), operation=operation("copy"))
    host.settle()
    road = [name for name in host.steps if name not in ("note", "report")]
    assert road == ["start_live", "load_live", "resume", "renew_live", "start_network", "finish"]
    assert host.vm and host.vm.status.state == "running"


def test_a_copy_of_a_stopped_server_takes_a_short_road() -> None:
    host = Host(vm({**origin("overlay"), **STOPPED}), source=source(), operation=operation("copy"))
    host.settle()
    assert [name for name in host.steps if name not in ("note", "report")] == [
        "stand_on_layer",
        "finish",
    ]
    host.ask("running")
    host.settle()
    assert host.steps.count("renew_copy") == 1 and host.vm and not host.vm.status.identity.renew


def test_why_a_live_copy_ended_is_told() -> None:
    def why(**facts: Any) -> str:
        found = runtime(live=True, end=facts.pop("end", None))
        return why_no_machine(
            at_rest(origin("live"), status={"runtime": found, "identity": {"given": None}}, **facts)
        )

    assert why(end="silent") == "its guest agent did not answer within 120 s"
    assert why(end="stop") == "it was ended before it was a machine of its own"
    assert why(exit_status=-11) == "QEMU died: killed by signal 11"


@given(st.sampled_from(sorted(SCENARIOS)), st.sampled_from(["running", "paused", "stopped"]))
def test_one_of_another_host_is_never_touched(case: str, power: str) -> None:
    seen, _ = SCENARIOS[case]
    other = seen.vm.but(spec=seen.vm.spec.but(owner="another-host", power=power))
    assert plan(replace(seen, vm=other, mine=False)) == (LeaveToOwner() if seen.alive else None)


def test_the_table_of_ends_covers_every_reason_the_planner_gives() -> None:
    given_reasons = {"stop", "restart", "shutdown", "panic", "internal-error", "delete", "cancel"}
    for why in given_reasons:
        assert isinstance(after_end(at_rest(status={"runtime": runtime(end=why)})), End)


def test_time_limits_are_what_the_manual_says() -> None:
    assert (STOP_TIMEOUT, ASK_AGAIN, CRASH_LIMIT, timedelta(minutes=10)) == (
        90.0,
        15.0,
        5,
        CRASH_WINDOW,
    )
    assert VmSpec(image="a").policy.restart == "no"


# ---- what it is given while it runs


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize(
    "wish", [{"cpu": 3}, {"memory": 2**31}, {"disks": (2**31,)}, {"cpu": 2, "memory": 3 * 2**30}]
)
def test_a_server_that_runs_is_given_what_is_wished_or_is_as_it_was(
    wish: dict[str, Any], stubborn: bool
) -> None:
    host = Host(vm(), operation=operation("launch"), stubborn=stubborn)
    host.settle()
    assert host.vm
    before = host.vm.spec
    host._spec(**wish)
    host.operation = operation("set")
    host.settle()
    assert host.operation is None and host.qemu == "running" and host.vm.status.state == "running"
    for field, value in wish.items():
        part: Sized = {"cpu": "cpus", "disks": "disk"}.get(field, field)  # type: ignore[assignment]
        has = host.vm.status.disk.size if part == "disk" else getattr(host, part)
        wanted = value[0] if part == "disk" else value
        follows = wanted if part == "disk" or not stubborn else before.sizes[part]
        assert has == follows == host.vm.spec.sizes[part]
    assert "kill" not in host.steps and host.steps.count("start") == 1


def test_what_was_changed_below_it_is_begun_with_at_the_next_start() -> None:
    host = Host(vm(), operation=operation("launch"))
    host.settle()
    host._spec(cpu=2, memory=2**31, restarts=1)
    host.operation = operation("restart")
    host.settle()
    assert (host.cpus, host.memory, host.operation) == (2, 2**31, None)


def test_disks_come_go_and_grow_whatever_else_happens() -> None:
    host = Host(vm(disks(disk())), operation=operation("launch"), volumes=[volume(1, 2**31)])
    host.volumes[0] = host.volumes[0].seen(size=2**31)
    host.settle()
    assert host.vm and host.vm.status.runtime
    assert [item.number for item in host.vm.status.runtime.disks] == [1]
    host.volumes = [host.volumes[0].but(spec=host.volumes[0].spec.but(size=2**32))]
    host.settle()
    assert host.volumes[0].status.size == 2**32
    host._spec(disks=({"number": 0},))
    host.operation = DETACH
    host.settle()
    assert host.vm.status.runtime and host.vm.status.runtime.disks == ()
    assert host.operation is None and host.volumes[0].spec.attached == ()
