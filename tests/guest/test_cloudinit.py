"""What became of user data, from the two files that cloud-init writes; a guest may write anything
into them.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Misbehaves
from virtuary.guest.cloudinit import outcome
from virtuary.model.status import CloudInit


def files(stages: dict[str, Any], errors: list[str] | None) -> tuple[bytes, bytes]:
    status = {"v1": {"datasource": "DataSourceNoCloud", "stage": None, **stages}}
    return json.dumps(status, indent=1).encode() + b"\n", b"" if errors is None else json.dumps(
        {"v1": {"errors": errors}}
    ).encode()


FINE = {"errors": [], "finished": 5.0, "start": 1.0}
FAILED = {**FINE, "errors": ["('scripts_user', RuntimeError('1 failed'))"]}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ((b"", b""), CloudInit(state="not begun")),
        (files({"init-local": FINE, "init": FINE, "modules-final": None}, None), CloudInit(state="running")),
        (files({"init-local": FINE, "modules-final": FINE}, []), CloudInit(state="done")),
        (
            files({"init": FINE, "modules-final": FAILED}, FAILED["errors"]),
            CloudInit(state="error", errors=tuple(FAILED["errors"]), units=("cloud-final.service",)),
        ),
        (
            files({"init": {**FINE, "recoverable_errors": {"WARNING": ["Failed loading yaml blob"], "DEBUG": ["x"]}}}, []),
            CloudInit(state="error", errors=("Failed loading yaml blob",), units=("cloud-init.service",)),
        ),
        (files({"init": {**FINE, "errors": ["\x1b[2Jred" * 500]}}, None), None),
    ],
)  # fmt: skip
def test_the_outcome_is_told_with_its_errors_and_the_unit(
    told: tuple[bytes, bytes], found: CloudInit | None
) -> None:
    seen = outcome(*told)
    assert (
        seen == found
        if found
        else all(len(text) <= 300 and text.isprintable() for text in seen.errors) and seen.errors
    )


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["v1", "init", "errors", "recoverable_errors", "WARNING"]), inner
            )
        ),
    )
)
def test_whatever_a_guest_writes_is_an_outcome_or_an_error_of_ours(value: object) -> None:
    for told in (json.dumps(value).encode(), json.dumps({"v1": value}).encode()):
        with contextlib.suppress(Misbehaves):
            assert isinstance(outcome(told, told), CloudInit)
