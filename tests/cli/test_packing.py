"""Files into a server: what the archive holds, tried with tar, and the paths and scripts that are
said to a shell there.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import NotFound, Refused
from virtuary.cli.copying import copy_all_out, find_place
from virtuary.cli.packing import Packing, leads_out
from virtuary.cli.progress import Progress
from virtuary.cli.remote import GET, LIST, PUT, PUT_STREAM, remote


def packed(*sources: Path | str) -> tuple[bytes, Packing]:
    stream = io.BytesIO()
    packing = Packing(stream, lambda name, size: None)
    for source in sources:
        packing.add(str(source))
    packing.close()
    return stream.getvalue(), packing


def put(
    told: bytes, target: str, name: str, many: bool = False, folder: bool = True, home: str = "/"
) -> subprocess.CompletedProcess[bytes]:
    """What a server does with an archive."""
    script = PUT.format(target=remote(target), many=int(many), folder=int(folder), base=name)
    return subprocess.run(
        ["sh", "-c", script], input=told, capture_output=True, env={**os.environ, "HOME": home}
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "site"
    (place / "deep").mkdir(parents=True)
    (place / "index").write_text("hello")
    (place / "deep/run").write_text("#!/bin/sh\n")
    (place / "deep/run").chmod(0o6755)
    (place / "deep/same").hardlink_to(place / "index")
    (place / "in").symlink_to("deep/run")
    (place / "deep/away").symlink_to("../../else")
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "deep/socket"))
    return place


def test_a_folder_goes_with_links_as_links_and_without_what_is_no_file(
    tmp_path: Path, site: Path
) -> None:
    told, packing = packed(site)
    (tmp_path / "there").mkdir()
    for _ in range(2):
        assert put(told, str(tmp_path / "there"), "site").returncode == 0
    there = tmp_path / "there/site"
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*")) == [
        "deep", "deep/away", "deep/run", "deep/same", "in", "index",
    ]  # fmt: skip
    assert (
        os.readlink(there / "in") == "deep/run" and os.readlink(there / "deep/away") == "../../else"
    )
    assert stat.S_IMODE((there / "deep/run").stat().st_mode) == 0o755, "nothing is run as its owner"
    assert (there / "index").stat().st_ino == (there / "deep/same").stat().st_ino
    assert packing.special == [f"{site}/deep/socket (socket)", f"{site}/pipe (pipe)"]
    assert packing.leading_out == [f"{site}/deep/away"] and packing.refused == []


@pytest.mark.host
def test_what_goes_belongs_to_whoever_unpacks_it(tmp_path: Path, site: Path) -> None:
    os.chown(site / "index", 1234, 1234)
    told, _ = packed(site)
    put(told, str(tmp_path / "new"), "site")
    assert ((tmp_path / "new/index").stat().st_uid, (tmp_path / "new/index").stat().st_gid) == (
        0,
        0,
    )


def test_a_link_that_is_named_itself_is_followed(tmp_path: Path, site: Path) -> None:
    (tmp_path / "to-file").symlink_to("site/index")
    (tmp_path / "to-folder").symlink_to("site")
    told, _ = packed(tmp_path / "to-file", tmp_path / "to-folder")
    (tmp_path / "there").mkdir()
    assert put(told, str(tmp_path / "there"), "x", many=True).returncode == 0
    assert (tmp_path / "there/to-file").read_text() == "hello" and not (
        tmp_path / "there/to-file"
    ).is_symlink()
    assert (tmp_path / "there/to-folder/index").read_text() == "hello"


def test_what_can_t_be_had_is_said_by_name(tmp_path: Path, site: Path) -> None:
    (tmp_path / "nowhere").symlink_to("gone")
    for name, kind, words in (
        ("nowhere", NotFound, "leads nowhere"),
        ("gone", NotFound, "No such file"),
        ("site/pipe", Refused, "is a pipe"),
    ):
        with pytest.raises(kind, match=words):
            packed(tmp_path / name)


def test_files_whose_size_is_not_what_is_shown_go_as_they_are_read() -> None:
    for name in ("/proc/self/mounts", "/sys/kernel/mm/transparent_hugepage/enabled"):
        if os.path.exists(name):
            told, _ = packed(name)
            with subprocess.Popen(
                ["tar", "-xOf", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as tar:
                assert tar.communicate(told)[0] == Path(name).read_bytes() != b""


def test_a_file_that_becomes_shorter_is_said(tmp_path: Path) -> None:
    place = tmp_path / "big"
    place.write_bytes(bytes(3 * 2**20))
    stream = io.BytesIO()
    packing = Packing(stream, lambda name, size: os.truncate(place, 2**20))
    packing.add(str(place))
    packing.close()
    assert packing.refused == [f"{place}: became shorter while it was read"]


@pytest.mark.parametrize(
    ("target", "folder", "place"),
    [
        ("new", True, "new/index"),
        ("new/", True, "new/index"),
        ("there", True, "there/site/index"),
        ("there/", True, "there/site/index"),
        ("~", True, "site/index"),
    ],
)
def test_a_copy_gets_the_name_of_its_target_or_lies_in_it(
    tmp_path: Path, site: Path, target: str, folder: bool, place: str
) -> None:
    home = tmp_path / "home"
    (home / "there").mkdir(parents=True)
    told, _ = packed(site)
    done = put(
        told, target if target == "~" else f"~/{target}", "site", folder=folder, home=str(home)
    )
    assert (done.returncode, done.stderr) == (0, b"") and (home / place).read_text() == "hello"


@pytest.mark.parametrize(
    ("target", "many", "folder"),
    [("typo/x", False, True), ("typo/", False, False), ("typo", True, False)],
)
def test_a_folder_that_is_not_there_is_not_made(
    tmp_path: Path, site: Path, target: str, many: bool, folder: bool
) -> None:
    done = put(packed(site / "index")[0], f"{tmp_path}/{target}", "index", many, folder)
    assert (
        done.returncode == 1
        and b"there is no folder" in done.stderr
        and not (tmp_path / "typo").exists()
    )
    with pytest.raises(NotFound, match="there is no folder"):
        if many:
            copy_all_out({"host": "none"}, ["a", "b"], f"{tmp_path}/{target}", Progress(quiet=True))
        else:
            find_place("/index", f"{tmp_path}/{target}", folder)


def test_standard_input_becomes_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        subprocess.run(
            ["sh", "-c", PUT_STREAM.format(target=remote(f"{tmp_path}/{name}"))],
            input=b"told",
            check=True,
        )
        assert (tmp_path / name).read_text() == "told"
    done = subprocess.run(
        ["sh", "-c", PUT_STREAM.format(target=remote(str(tmp_path)))],
        input=b"x",
        capture_output=True,
    )
    assert done.returncode == 1 and b"is a folder" in done.stderr


def test_a_pattern_stands_for_what_is_there_and_a_name_for_itself(tmp_path: Path) -> None:
    for name in ("a b.log", "c.log", "d.txt", "*.odd", "x.odd"):
        (tmp_path / name).touch()

    def listed(pattern: str) -> set[str]:
        told = subprocess.run(
            ["sh", "-c", LIST.format(source=remote(f"{tmp_path}/{pattern}"))],
            capture_output=True,
            check=True,
        ).stdout
        return {os.path.basename(path.decode()) for path in told.split(b"\0") if path}

    assert (
        listed("*.log") == {"a b.log", "c.log"}
        and listed("?.txt") == {"d.txt"}
        and listed("[cd].*") == {"c.log", "d.txt"}
    )
    assert listed("*.odd") == {"*.odd"} and listed("z*") == set()


@pytest.mark.parametrize("shell", [["sh"], ["dash"], ["busybox", "sh"]], ids=" ".join)
def test_every_shell_of_a_server_can_read_what_it_is_told(shell: list[str]) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    for script in (
        PUT.format(target="'a b'", many=0, folder=1, base="x"),
        GET.format(source="x"),
        LIST.format(source="x"),
        PUT_STREAM.format(target="x"),
    ):
        assert (
            subprocess.run([*shell, "-n"], input=script.encode(), capture_output=True).stderr == b""
        )


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("~", '"$HOME"'),
        ("~/a b", "\"$HOME\"'/a b'"),
        ("~web/x", "~web/x"),
        ("~a;b/x", "'~a;b/x'"),
        ("-x", "./-x"),
        ("$(id)", "'$(id)'"),
        ("x~", "'x~'"),
    ],
)
def test_a_path_is_one_word_and_nothing_in_it_is_run(path: str, word: str) -> None:
    assert remote(path) == word


@pytest.mark.parametrize(
    ("name", "target", "out"),
    [
        ("a", "b", False),
        ("d/a", "../b", False),
        ("d/a", "../../b", True),
        ("a", "/b", True),
        ("a", "..", True),
        ("a", "d/../..", True),
    ],
)
def test_a_link_leads_out_by_its_words(name: str, target: str, out: bool) -> None:
    assert leads_out(name, target) is out
