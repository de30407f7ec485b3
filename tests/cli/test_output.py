"""Nothing that a guest, an image or another user wrote reaches a terminal but through the door."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import virtuary
from virtuary.base.errors import Failed, Invalid
from virtuary.base.text import shown_lines, shown_value
from virtuary.cli import output
from virtuary.cli.follow import _Screen
from virtuary.cli.main import show_error
from virtuary.cli.output import as_json

HOSTILE = "one\x1b]0;title\x07\u009b2J\u202e\x07two"
SOURCES = sorted((Path(virtuary.__file__).parent / "cli").glob("*.py"))
RAW = {
    "access.py": "a guest's own terminal: console and exec",
    "follow.py": "the live line",
    "gather.py": "a table for programs",
    "main.py": "closes a broken pipe",
    "output.py": "the door",
    "progress.py": "the live line of a copy",
    "top.py": "the screen",
}


@pytest.mark.parametrize("form", output.FORMATS)
def test_every_form_of_an_answer_is_harmless(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"meta": {"name": HOSTILE}, "list": [HOSTILE], HOSTILE: 1}
    output.emit(value, form, lambda: output.print_table(["HEAD"], [[HOSTILE]], "none"))
    printed = capsys.readouterr().out
    assert (
        all(char.isprintable() or char == "\n" for char in printed)
        and "one" in printed
        and "two" in printed
    )


def test_json_and_yaml_are_read_back_without_what_is_harmful(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"console": f"a\tb\n{HOSTILE}", "number": 5}
    for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        output.emit(value, form)
        assert load(capsys.readouterr().out) == {"console": "a\tb\nonetwo", "number": 5}


def test_words_beside_the_answer_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(HOSTILE)
    output.tell(HOSTILE)
    output.print_fields([("name", HOSTILE)])
    output.print_title(HOSTILE)
    found = capsys.readouterr()
    assert all(char.isprintable() or char == "\n" for char in found.out + found.err)


@pytest.mark.parametrize("words", [["virtuary", "list"], ["virtuary", "list", "-o", "json"]])
def test_an_error_is_harmless(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    show_error(Failed(HOSTILE, HOSTILE, why=HOSTILE))
    printed = capsys.readouterr().err
    assert (
        all(char.isprintable() or char == "\n" for char in printed)
        and "u202e" not in printed
        and "u001b" not in printed
    )


def test_what_an_operation_says_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    screen = _Screen(quiet=False)
    screen.show({"progress": None, "stage": "x", "log": [{"text": HOSTILE}]})
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().err)


def test_bold_type_is_for_heads_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    output.print_table(["HEAD"], [["\x1b[1mcell"]], "none")
    output.print_title("title")
    assert capsys.readouterr().out == "\x1b[1mHEAD\x1b[0m\n[1mcell\n\n\x1b[1mtitle\x1b[0m\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.name))
def test_nobody_goes_round_the_door(path: Path) -> None:
    tree = ast.parse(path.read_text())
    printing = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo")
    ]
    streams: list[Any] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
    ]
    ours = [node for node in streams if ast.unparse(node.value) == "sys"]
    assert not printing or path.name == "output.py"
    assert not ours or path.name in RAW


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@example(["\x7f"])
@example({"name\x9b": "a\u202eb\x1b[31m", "lines": 'a\nb\t"\\u'})
def test_json_for_programs_says_what_json_for_people_says(value: Any) -> None:
    for text in (as_json(value, True), as_json(value, False)):
        assert json.loads(text) == shown_value(value)
        assert shown_lines(text) == text


def test_what_has_no_name_says_so() -> None:
    for value in ({"a": 1}, [{"b": 2}], [3]):
        with pytest.raises(Invalid, match="has no name"):
            output.emit(value, "name")
