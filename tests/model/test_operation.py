"""Operations of before are read as what they were."""

from __future__ import annotations

import json

import pytest

from virtuary.model.deeds import Change, Copy, Delete, Launch, MakeImage, Restart, Start, Stop
from virtuary.model.meta import Meta
from virtuary.model.operation import Operation, OperationSpec, OperationStatus


def operation(phase: str) -> Operation:
    spec = OperationSpec(deed=Start(), target="vm/1", target_name="web1")
    status = OperationStatus.model_validate({"phase": phase})
    return Operation(meta=Meta(name="start"), spec=spec, status=status)


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
