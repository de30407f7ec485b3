"""An operation is told open or ended without being parsed, and no user's text can pretend."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.model.deeds import Change, Copy, Delete, Launch, MakeImage, Restart, Start, Stop
from virtuary.model.meta import Meta
from virtuary.model.operation import ENDED, Operation, OperationSpec, OperationStatus


def operation(phase: str, target: str = "vm/1", name: str = "web1", stage: str = "") -> Operation:
    spec = OperationSpec(deed=Start(), target=target, target_name=name)
    return Operation(
        meta=Meta(name="start"),
        spec=spec,
        status=OperationStatus.model_validate({"phase": phase, "stage": stage}),
    )


@pytest.mark.parametrize("phase", ["pending", "running", *ENDED])
def test_stored_bytes_tell_what_the_parsed_operation_tells(phase: str) -> None:
    found = operation(phase)
    assert Operation.looks_open(found.dump()) == (not found.ended)
    assert Operation.looks_open(found.dump(), "vm/1") == (not found.ended)
    assert not Operation.looks_open(found.dump(), "vm/2")


@given(st.text(max_size=60), st.sampled_from(["pending", "done"]))
def test_no_text_makes_an_ended_operation_look_open(text: str, phase: str) -> None:
    forged = '"status":{"phase":"running"' + text + '"target":"vm/9"'
    found = operation(phase, name=forged, stage=forged)
    assert Operation.looks_open(found.dump()) == (phase == "pending")
    assert not Operation.looks_open(found.dump(), "vm/9")


OLDER = {
    "launch": ({}, Launch()),
    "stop": ({"timeout": 5.0, "force": True}, Stop(timeout=5.0, force=True)),
    "restart": ({"timeout": 90.0, "force": False, "wait": "ready"}, Restart(wait="ready")),
    "set": ({"memory": 2**30}, Change(memory=2**30)),
    "delete": ({"force": True}, Delete()),
    "copy": (
        {"source": "a", "mode": "live", "layer": "b"},
        Copy(source="a", mode="live", layer="b"),
    ),
    "image-pull": ({}, MakeImage(kind="image-pull")),
}


@pytest.mark.parametrize("kind", OLDER)
def test_an_operation_of_before_is_read_as_the_deed_it_was(kind: str) -> None:
    params, deed = OLDER[kind]
    body = json.loads(operation("running").dump())
    body["spec"].pop("deed")
    body["spec"] |= {"kind": kind, "params": params}
    assert Operation.load(json.dumps(body).encode(), 1).spec.deed == deed
