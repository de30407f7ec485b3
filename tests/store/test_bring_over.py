"""Documents of an older format are brought over once, and mean what they meant."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from virtuary.base.units import GIB, MIB
from virtuary.model import upgrade
from virtuary.model.cpu import Cpu
from virtuary.model.deeds import Stop
from virtuary.model.disk import Disk, DiskIo
from virtuary.model.login import Login
from virtuary.model.memory import Memory
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation, OperationSpec
from virtuary.model.policy import Policy
from virtuary.model.status import (
    Crash,
    DiskStatus,
    IdentityStatus,
    MemoryHold,
    PowerStatus,
    Refusal,
)
from virtuary.model.upgrade import FORMAT
from virtuary.model.vm import Vm, VmSpec
from virtuary.store import documents
from virtuary.store.memory import MemoryStore


def older(store: MemoryStore) -> dict[str, bytes]:
    """A store as the version before wrote it."""
    stop = Operation(
        meta=Meta(id="one", name="stop"),
        spec=OperationSpec(deed=Stop(timeout=5.0), target="vm/a", target_name="web1"),
    )
    body = json.loads(stop.dump())
    deed = body["spec"].pop("deed")
    body["spec"] |= {"kind": deed.pop("kind"), "params": deed}
    server = json.loads(Vm(meta=Meta(id="a", name="web1"), spec=VmSpec(image="tiny")).dump())
    server["status"]["stage"] = None
    return {"operation/one": json.dumps(body).encode(), "vm/a": json.dumps(server).encode()}


async def test_an_older_store_is_brought_over_once() -> None:
    store = MemoryStore()
    await store.txn({}, older(store))
    await documents.bring_over(store)
    kept, server = store.get("operation/one"), store.get("vm/a")
    assert kept and json.loads(kept.value)["spec"]["deed"] == {
        "kind": "stop", "timeout": 5.0, "force": False,
    }  # fmt: skip
    assert server and "stage" not in json.loads(server.value)["status"]
    found = documents.get(store, Operation, "one")
    assert found and found.spec.deed == Stop(timeout=5.0)
    before = store.revision
    await documents.bring_over(store)
    assert store.revision == before


FLAT = {
    "state": "stopped", "reason": "the guest shut itself down", "since": "2026-01-01T00:00:00Z",
    "stages": {"ssh": 4.0}, "addresses": [], "cpus": None, "memory": None, "cloud_init": None,
    "applied": 3, "runtime": None,
    "crashes": [{"at": "2026-01-01T00:00:00Z", "why": "QEMU died"}], "gaps": ["no weight"],
    "reclaimed": True,
    "held_for_memory": {"room": 5, "why": "short", "since": "2026-01-01T00:00:00Z"},
    "disk_ready": True, "disk_size": 2**30, "disk_file": "disk-2.qcow2", "layers": ["layers/x"],
    "base": False, "copied": True, "template": "t", "cold": "a boot", "identity": "web0",
    "identity_refused": "full", "renew": True,
}  # fmt: skip
"""A status as format 3 wrote it."""


def test_a_status_without_parts_becomes_one_of_parts() -> None:
    body = json.loads(Vm(meta=Meta(id="a", name="web1"), spec=VmSpec(image="tiny")).dump())
    status = Vm.load(json.dumps({**body, "status": FLAT}).encode(), 1).status
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert (status.state, status.stages) == ("stopped", {"ssh": 4.0})
    assert status.power == PowerStatus(applied=3, crashes=(Crash(at=at, why="QEMU died"),))
    assert status.tuning.gaps == ("no weight",)
    assert status.pressure.reclaimed and status.pressure.held
    assert status.pressure.held == MemoryHold(room=5, why="short", since=at)
    assert status.disks == {
        0: DiskStatus(ready=True, size=2**30, file="disk-2.qcow2", layers=("layers/x",), base=False)
    }
    assert status.origin.copied
    assert (status.warm.template, status.warm.cold) == ("t", "a boot")
    assert status.identity == IdentityStatus(
        given="web0", refused=Refusal(name="web1", why="full"), renew=True
    )


def test_a_status_of_parts_stays_as_it_is() -> None:
    body = json.loads(Vm(meta=Meta(id="a", name="web1"), spec=VmSpec(image="tiny")).dump())
    assert upgrade.as_now("vm", body) == body


async def test_an_older_document_is_read_before_it_is_brought_over_too() -> None:
    store = MemoryStore()
    await store.txn({}, older(store))
    found = documents.get(store, Operation, "one")
    assert found and found.spec.deed == Stop(timeout=5.0)
    assert documents.get(store, Vm, "a")


async def test_a_store_of_a_newer_virtuary_is_read_and_stays_as_it_is() -> None:
    store, kept = MemoryStore(), older(MemoryStore())
    await store.txn({}, {**kept, documents.FORMAT_KEY: str(FORMAT + 1).encode()})
    before = store.list("")
    await documents.bring_over(store)
    assert store.list("") == before
    assert documents.get(store, Vm, "a")


async def test_what_was_wished_in_a_flat_table_is_wished_in_nouns() -> None:
    text = (Path(__file__).parent / "older/vm-2.json").read_bytes()
    store = MemoryStore()
    await store.txn({}, {"vm/a": text})
    found = documents.get(store, Vm, "a")
    assert found
    spec = found.spec
    assert spec.cpu == Cpu(count=2, limit=150)
    assert spec.memory == Memory(size=256 * MIB, max=GIB, priority=70)
    assert spec.disks == (Disk(size=2 * GIB, io=DiskIo(iops=500)),)
    assert spec.login == Login(user_data=True)
    assert spec.policy == Policy(autostart=True, restart="always")
    await documents.bring_over(store)
    kept = store.get("vm/a")
    assert kept and Vm.load(kept.value, found.meta.revision) == found
