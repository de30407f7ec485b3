"""Questions that can't be taken back are asked only about what is there, and what can't be answered
in the form that is wanted is said before anything is done.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from click.testing import CliRunner

from virtuary.base.errors import Invalid, NotFound
from virtuary.cli.images import source_words
from virtuary.cli.main import group


class Empty:
    """A daemon that has nothing, and is asked to change nothing."""

    def call(self, method: str, target: str, body: Any = None, **given: Any) -> Any:
        assert method == "GET" or given["query"]["dry_run"] == "true", f"{method} {target}"
        raise NotFound(f"there is nothing at {target}")


@pytest.mark.parametrize(
    ("room", "words"),
    [
        ("lifecycle", ["purge", "nosuch"]),
        ("lifecycle", ["delete", "nosuch", "--now"]),
        ("images", ["image", "delete", "nosuch"]),
    ],
)
def test_nobody_is_asked_about_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch, room: str, words: list[str]
) -> None:
    monkeypatch.setattr(importlib.import_module(f"virtuary.cli.{room}"), "connect", Empty)
    done = CliRunner().invoke(group, words, input="n\n")
    assert isinstance(done.exception, NotFound) and "good?" not in done.output


def test_a_command_inside_has_no_name_and_is_not_run_for_it() -> None:
    done = CliRunner().invoke(group, ["exec", "-o", "name", "web1", "--", "reboot"])
    assert isinstance(done.exception, Invalid) and "has no name" in done.exception.sentence


SOURCES: dict[str, tuple[dict[str, Any], str]] = {
    "built": ({"kind": "build", "recipe": "debian", "release": "12"}, "built of debian:12"),
    "with more": (
        {"kind": "build", "recipe": "debian", "packages": ["vim", "nginx"]},
        "built of debian; packages vim, nginx",
    ),
    "pulled": ({"kind": "pull", "entry": "ubuntu:24.04"}, "pulled as ubuntu:24.04"),
    "fetched": (
        {"kind": "url", "url": "https://a.example/x", "sha256": "ab", "user": "core"},
        "fetched from https://a.example/x; sha256 ab; user core",
    ),
    "imported": ({"kind": "file", "path": "upload-1", "format": "raw"}, "imported from a file; "
    "format raw"),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_the_source_of_an_image_is_told_in_words(case: str) -> None:
    given, words = SOURCES[case]
    empty = dict.fromkeys(("release", "entry", "url", "sha256", "format", "firmware", "user"), "")
    assert source_words({**empty, "packages": [], "recipe": None, **given}) == words
