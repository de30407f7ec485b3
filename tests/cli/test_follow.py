"""Following an operation: what it failed with is told once, and a daemon that goes away meanwhile
is waited for, and started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from virtuary.base.errors import NotFound, PeerAway
from virtuary.cli import follow as following
from virtuary.cli.follow import follow
from virtuary.client import start
from virtuary.client.wire import Wire

ID = "0123456789abcdef"


def operation(phase: str = "running", *log: str, **status: Any) -> dict[str, Any]:
    facts = {"progress": None, "stage": "", "error": None, "why": "", **status}
    return {
        "meta": {"id": ID, "revision": 1},
        "spec": {"target_name": "web1"},
        "status": {"phase": phase, "log": [{"text": text} for text in log], **facts},
    }


class Daemon(Wire):
    """Answers with one state of the operation after the other; where that is an error, by it."""

    def __init__(self, *states: dict[str, Any] | PeerAway, path: str = "/nowhere") -> None:
        super().__init__(path)
        self.states = list(states)

    def call(self, *words: Any, **given: Any) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, PeerAway):
            raise state
        return state

    def events(self, *words: Any, **given: Any) -> Iterator[dict[str, Any] | None]:
        yield {"event": "operation.changed", "data": self.call()}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following.time, "sleep", lambda seconds: None)


def test_what_an_operation_failed_with_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    error = NotFound("it is no disk image").problem()
    failed = operation("failed", "reading the file", "it is no disk image", error=error)
    with pytest.raises(NotFound, match="it is no disk image"):
        follow(Daemon(failed), operation())
    told = capsys.readouterr().err
    assert "reading the file" in told and "no disk image" not in told


def test_an_operation_is_followed_on_when_its_daemon_is_there_again() -> None:
    away = PeerAway("the daemon went away in the middle of an answer")
    daemon = Daemon(operation(), away, away, away, operation(), operation("done"))
    assert follow(daemon, operation())["status"]["phase"] == "done"


def test_a_daemon_that_stays_away_leaves_the_operation_to_be_followed_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "AWAY", 0.0)
    with pytest.raises(PeerAway, match="the operation goes on as soon as") as raised:
        follow(Daemon(operation(), PeerAway("no daemon answers at /nowhere")), operation())
    assert raised.value.hint and "operation wait 01234567" in raised.value.hint


def test_only_the_user_s_own_daemon_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    begun: list[Any] = []
    monkeypatch.setenv("VIRTUARY_ROOT", str(tmp_path))
    monkeypatch.delenv("VIRTUARY_HOST", raising=False)
    monkeypatch.setattr(start, "start", begun.append)
    start.start_again(Wire("/somebody/else"))
    assert not begun
    start.start_again(Wire(start.find_socket()))
    assert len(begun) == 1
    monkeypatch.setenv("VIRTUARY_HOST", f"unix://{start.find_paths().socket}")
    start.start_again(Wire(start.find_socket()))
    assert len(begun) == 1
