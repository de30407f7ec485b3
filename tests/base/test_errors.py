"""One tree of errors: a problem body and the error it stands for are the same thing seen from two
sides.
"""

from __future__ import annotations

import errno
import json

import pytest

from virtuary.base import errors
from virtuary.base.errors import KINDS, Bug, Failed, NoRoom, VirtuaryError, from_problem, of_system


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_kind_survives_the_way_over_the_wire(kind: type[VirtuaryError]) -> None:
    error = kind("web1 is not there", "look for it", missing=3, where={"host": "a"})
    again = from_problem(json.loads(json.dumps(error.problem())))
    assert type(again) is kind
    assert (again.sentence, again.hint, again.details) == (
        error.sentence,
        error.hint,
        error.details,
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_kind_says_what_it_is_and_how_it_ends(kind: type[VirtuaryError]) -> None:
    body = kind("sentence").problem()
    assert body["type"] == f"urn:virtuary:problem:{kind.code}"
    assert body["title"].endswith(".") and body["detail"] == "sentence"
    assert 400 <= body["status"] < 600 and 1 <= kind.exit_code <= 8
    assert "hint" not in body and "details" not in body


def test_every_kind_in_the_file_can_come_back() -> None:
    found = {
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, VirtuaryError) and item is not VirtuaryError
    }
    assert found == set(KINDS.values())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "from-the-future", "detail": "what"},
        {"code": ["x"]},
        {"code": "invalid", "details": [1]},
    ],
)
def test_a_strange_problem_still_becomes_an_error(body: dict[str, object]) -> None:
    error = from_problem(body)
    assert isinstance(error, VirtuaryError) and error.sentence
    assert type(error) is Bug or body["code"] == "invalid"


def test_details_may_have_any_name() -> None:
    error = from_problem(
        {"code": "busy", "detail": "it is busy", "details": {"sentence": 1, "hint": 2, "self": 3}}
    )
    assert (error.sentence, error.hint, error.details) == (
        "it is busy",
        None,
        {"sentence": 1, "hint": 2, "self": 3},
    )


def test_only_kinds_that_heal_by_waiting_are_retried() -> None:
    assert {code for code, kind in KINDS.items() if kind.retry} == {
        "guest-silent",
        "misbehaves",
        "store-away",
        "peer-away",
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_room(number: int) -> None:
    assert isinstance(of_system(OSError(number, "full", "/somewhere")), NoRoom)


def test_another_system_error_is_a_failure_that_names_the_file() -> None:
    error = of_system(OSError(errno.EIO, "Input/output error", "/somewhere"))
    assert isinstance(error, Failed) and error.sentence == "Input/output error: /somewhere"
