"""An operation is told open or ended without being parsed, and no user's text can pretend."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.model.meta import Meta
from virtuary.model.operation import ENDED, Operation, OperationSpec, OperationStatus


def operation(phase: str, target: str = "vm/1", name: str = "web1", stage: str = "") -> Operation:
    spec = OperationSpec(kind="start", target=target, target_name=name)
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
