"""Documents survive the store: what is dumped is loaded again as it was, and nothing unknown slips
in.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.units import MIB
from virtuary.model.deeds import Change, Launch, Stop
from virtuary.model.disk import ROOT, Disk
from virtuary.model.host import Host
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus, ImageWish
from virtuary.model.meta import Document, Meta, Model, utcnow
from virtuary.model.network import Nic
from virtuary.model.operation import LogLine, Operation, OperationSpec, OperationStatus
from virtuary.model.publish import Publish
from virtuary.model.runtime import Runtime
from virtuary.model.status import Crash, DiskStatus, MemoryHold, PowerStatus, VmStatus
from virtuary.model.vm import Vm, VmChange, VmSpec, VmWish

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
printable = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=30)
labels = st.dictionaries(
    st.from_regex(r"[a-z0-9]([a-z0-9./_-]{0,10}[a-z0-9])?", fullmatch=True), printable, max_size=4
)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
metas = st.builds(
    Meta,
    id=st.uuids().map(str),
    name=names,
    labels=labels,
    created=moments,
    deleted=st.none() | moments,
    generation=st.integers(1, 99),
)
ports = st.builds(
    Publish, host=st.integers(1, 65535), guest=st.integers(1, 65535),
    protocol=st.sampled_from(["tcp", "udp"]),
    address=(st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(str),
)  # fmt: skip
specs = st.builds(
    VmSpec, image=names, power=st.sampled_from(["running", "paused", "stopped"]),
    cpu=st.integers(1, 255),
    memory=st.integers(64, 4096).map(lambda n: n * MIB),
    disks=st.builds(Disk, size=st.none() | st.integers(1, 4096).map(lambda n: n * MIB)).map(
        lambda disk: (disk,)
    ),
    publish=st.lists(ports, max_size=3, unique_by=lambda port: (port.host,
    port.protocol)).map(tuple),
)  # fmt: skip
runtimes = st.builds(
    Runtime, generation=st.integers(1, 9), restarts=st.integers(0, 9), boot_id=names,
    pid=st.integers(1, 2**22), start=st.integers(0, 2**40),
    uid=st.integers(0, 2**31), accel=st.just("tcg"), level=st.just("L1"), started=moments,
    end=st.none() | st.just("stop"),
)  # fmt: skip
statuses = st.builds(
    VmStatus, reason=st.none() | st.text(max_size=40), stages=st.dictionaries(names, st.floats(0,
    1e6), max_size=3),
    runtime=st.none() | runtimes, power=st.builds(PowerStatus, crashes=st.lists(st.builds(Crash,
    at=moments, why=st.text(max_size=20)), max_size=2).map(tuple)),
    disks=st.dictionaries(st.integers(1, 3), st.builds(DiskStatus, size=st.integers(1, 2**40)),
    max_size=2).map(lambda others: {ROOT: DiskStatus(), **others}),
)  # fmt: skip
deeds = st.one_of(
    st.just(Launch()),
    st.builds(Stop, timeout=st.floats(0, 86400), force=st.booleans()),
    st.builds(Change, cpus=st.one_of(st.none(), st.integers(1, 64))),
)
documents: st.SearchStrategy[Document] = st.one_of(
    st.builds(Vm, meta=metas, spec=specs, status=statuses),
    st.builds(Image, meta=metas, spec=st.builds(ImageSpec, source=st.builds(ImageSource,
    kind=st.just("build"))), status=st.builds(ImageStatus)),
    st.builds(
        Operation, meta=metas, spec=st.builds(OperationSpec, deed=deeds, target=names,
        target_name=names),
        status=st.builds(OperationStatus, log=st.lists(st.builds(LogLine, at=moments,
        text=st.text(max_size=30)), max_size=3).map(tuple)),
    ),
    st.builds(Host, meta=metas),
)  # fmt: skip


@given(documents, st.integers(1, 2**53))
@pytest.mark.slow
def test_a_document_survives_the_store(document: Document, revision: int) -> None:
    again = type(document).load(document.dump(), revision)
    assert again == document.but(meta=document.meta.but(revision=revision))
    assert again.dump() == document.dump(), "the revision is the store's own"


@given(documents)
@pytest.mark.slow
def test_the_stored_bytes_are_compact_json_without_the_revision(document: Document) -> None:
    body = json.loads(document.dump())
    assert "revision" not in body["meta"]
    assert document.dump().startswith(b'{"meta":{"id":')
    assert document.key == f"{document.prefix}/{document.id}"


@pytest.mark.parametrize(
    "model",
    [VmWish, VmChange, ImageWish, VmSpec, VmStatus, Publish, ImageSource, Meta, OperationSpec],
)
def test_unknown_fields_are_refused(model: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"surprise": 1})
    assert "extra_forbidden" in {error["type"] for error in caught.value.errors()}


def grown(value: object, body: Any) -> Any:
    """The JSON of a document as a newer version writes it: every part has fields more."""
    if isinstance(value, Model):
        for name, item in value.__dict__.items():
            if name in body:
                body[name] = grown(item, body[name])
        return {**body, "teleport": {"to": [1, None]}, "Mode": "x"}
    if isinstance(value, tuple) and value and isinstance(value[0], Model):
        return [grown(item, part) for item, part in zip(value, body, strict=True)]
    return body


@given(documents)
@pytest.mark.slow
def test_a_document_of_a_newer_virtuary_is_read_and_written_back_whole(document: Document) -> None:
    kind, body = type(document), grown(document, json.loads(document.dump()))
    found = kind.load(json.dumps(body).encode(), 0)
    assert json.loads(found.dump()) == body == found.body() | {"meta": body["meta"]}
    changed = found.but(meta=found.meta.but(labels={"a": "b"}))
    body["meta"]["labels"] = {"a": "b"}
    assert json.loads(changed.dump()) == body
    assert kind.load(changed.dump(), 0) == changed and changed != document


def test_what_is_not_known_stays_where_it_was_through_every_change() -> None:
    back = [Nic(number=number, network="back", network_id="net2") for number in (1, 2)]
    nics = Nic(), *back
    vm = Vm(meta=Meta(name="web1"), spec=VmSpec(image="tiny", nics=nics))
    body = json.loads(vm.dump())
    body["spec"]["cpu"]["turbo"] = 3
    body["spec"]["nics"][2]["lanes"] = 2
    body["status"]["mood"] = "good"
    found = Vm.load(json.dumps(body).encode(), 7)
    assert found.meta == vm.meta.but(revision=7) and found.spec.nics[0] == nics[0]
    assert found.spec.memory == vm.spec.memory, "parts that hold nothing more are the same"
    later = found.seen(state="running").but(spec=found.spec.but(cpu=found.spec.cpu.but(weight=7)))
    later = later.but(spec=later.spec.but(nics=later.spec.nics[::2]))
    after = json.loads(later.dump())
    assert after["spec"]["cpu"] == body["spec"]["cpu"] | {"weight": 7}
    assert after["spec"]["nics"] == body["spec"]["nics"][::2]
    assert after["status"]["mood"] == "good" and after["status"]["state"] == "running"
    with pytest.raises(ValidationError):
        found.seen(mood="better")
    for wrong in ({"cpu": 0}, {"cpu": 0, "teleport": True}):
        with pytest.raises(ValidationError):
            Vm.from_body(body | {"spec": body["spec"] | wrong})


def test_documents_are_frozen_and_changed_copies_are_checked() -> None:
    vm = Vm(meta=Meta(name="web1"), spec=VmSpec(image="tiny"))
    with pytest.raises(ValidationError):
        vm.spec.cpu.count = 2  # type: ignore[misc]
    assert vm.spec.but(cpu=2).cpu.count == 2 and vm.spec.cpu.count == 1
    with pytest.raises(ValidationError):
        vm.spec.but(cpu=0)


def test_what_a_user_may_wish_holds_nothing_that_is_decided_by_us() -> None:
    ours = {"image_id", "owner", "machine", "restarts"}
    assert ours <= set(VmSpec.model_fields)
    assert not ours & set(VmWish.model_fields) and not ours & set(VmChange.model_fields)


def test_a_document_that_holds_the_numbers_of_plugged_nics_is_still_read() -> None:
    nics = (
        Nic(network="lan", network_id="net", ipv4="10.1.0.2"),
        Nic(number=1, network="back", network_id="net2"),
    )
    began = Runtime(
        generation=1, restarts=0, boot_id="b", pid=7, start=7, uid=7, accel="tcg", level="L1",
        nics=nics, started=datetime.now(UTC)
    )  # fmt: skip
    vm = Vm(
        meta=Meta(name="a"), spec=VmSpec(image="tiny", nics=nics), status=VmStatus(runtime=began)
    )
    body = json.loads(vm.dump())
    assert Vm.load(json.dumps(body).encode(), 0) == vm
    body["status"]["runtime"]["nics"] = [0, 1]
    assert Vm.load(json.dumps(body).encode(), 0) == vm, "as the spec has them"
    body["status"]["runtime"]["nics"] = [0, 3]
    found = Vm.load(json.dumps(body).encode(), 0).status.runtime
    assert found and found.nics == (nics[0], Nic(number=3, network="none")), (
        "one that was to be taken out"
    )
    del body["status"]["runtime"]["nics"], body["spec"]["nics"]
    assert Vm.load(json.dumps(body).encode(), 0).nics == (Nic(),)


def test_what_is_true_of_a_process_ends_with_it_in_the_parts_of_a_status_too() -> None:
    moment = utcnow()
    crash = Crash(at=moment, why="QEMU died")
    status = VmStatus().but(
        addresses=("10.0.2.15",), cpus=2, tuning={"gaps": ("no weight",)},
        pressure={"reclaimed": True, "held": MemoryHold(room=1, why="short", since=moment)},
        power={"applied": 3}, identity={"given": "web1"},
    )  # fmt: skip
    over = status.without_process(power={"crashes": (crash,)})
    assert over == VmStatus().but(
        power={"applied": 3, "crashes": (crash,)}, identity={"given": "web1"}
    )


def test_a_dict_changes_only_what_it_names_of_a_part_and_of_a_disk() -> None:
    status = VmStatus().but(disks={0: {"size": 5}, 1: DiskStatus(file="data.qcow2")})
    changed = status.but(disks={1: {"ready": True}}, identity={"renew": True})
    assert changed.disk == DiskStatus(size=5)
    assert changed.disks[1] == DiskStatus(file="data.qcow2", ready=True)
    assert changed.identity.renew and changed.identity.given is None
    assert list(changed.but(disks={1: None}).disks) == [0]
    with pytest.raises(ValidationError, match="nothing"):
        status.but(identity={"nothing": 1})
