"""Files out of a server, whose root user makes the archive: honest ones arrive as they are, and no
archive reaches anything but its target.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archives import Item, archive, header, stream
from virtuary.base.errors import Failed, Refused, VirtuaryError
from virtuary.cli.copying import unpack
from virtuary.cli.remote import LIST, as_pattern, is_pattern, literal, remote

Tree = dict[str, tuple[str, object]]


def tree(folder: Path) -> Tree:
    """All that can be seen of a folder without following a link."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        what: object = (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if stat.S_ISREG(facts.st_mode)
            else None
        )
        found[str(path.relative_to(folder))] = (stat.filemode(facts.st_mode), what)
    return found


def pack(folder: Path, name: str) -> io.BytesIO:
    """The archive that an honest server makes of a folder."""
    return io.BytesIO(
        subprocess.run(
            ["tar", "-C", str(folder / name), "-cf", "-", "."], capture_output=True, check=True
        ).stdout
    )


def arrived(place: Path) -> Tree:
    """What a copy of the folder `site` looks like: nothing is run as its owner."""
    return tree(place) | {"run": ("-rwxr-xr-x", (place / "run").read_bytes())}


def folder(*items: Item) -> io.BytesIO:
    return stream(Item(b"./", "folder", mode=0o755), *items)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


# ---- what an honest server sends


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "site"
    (place / "deep/er").mkdir(parents=True)
    (place / "index").write_bytes(os.urandom(100_000))
    (place / "index").chmod(0o640)
    (place / "run").write_text("#!/bin/sh\n")
    (place / "run").chmod(0o4755)
    (place / "deep/er/name ö\n").touch()
    (place / "deep/link").symlink_to("er/name ö\n")
    (place / "away").symlink_to("/nowhere")
    (place / "deep/same").hardlink_to(place / "index")
    (place / "closed").mkdir()
    (place / "closed/file").write_text("inside")
    (place / "closed").chmod(0o555)
    for path in (place / "index", place / "deep/er", place / "closed"):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    return place


PLACES = {
    "out": "out/site", "out/": "out/site", "out/.": "out/site", "link": "out/site",
    "link/": "out/site", "out/new": "out/new",
    "out/new/": "out/new",
}  # fmt: skip


@pytest.mark.parametrize("target", PLACES)
def test_a_folder_arrives_as_it_was(tmp_path: Path, site: Path, out: Path, target: str) -> None:
    # what the user names may be a link: that is the user's choice
    (tmp_path / "link").symlink_to("out")
    packed, expected = pack(tmp_path, "site"), arrived(site)
    site.rename(tmp_path / "elsewhere")
    unpack(packed, "/var/site", f"{tmp_path}/{target}")
    place = tmp_path / PLACES[target]
    assert tree(place) == expected
    assert {(place / name).stat().st_mtime for name in ("index", "deep/er", "closed")} == {
        1_500_000_000
    }
    assert (place / "index").stat().st_ino == (place / "deep/same").stat().st_ino


def test_a_second_copy_changes_nothing(tmp_path: Path, site: Path, out: Path) -> None:
    for _ in range(2):
        unpack(pack(tmp_path, "site"), "/var/site", str(out))
        assert tree(out / "site") == arrived(site)
        assert (out / "site/closed").stat().st_mtime == 1_500_000_000


def test_a_later_copy_brings_what_changed_and_leaves_what_else_is_there(
    tmp_path: Path, site: Path, out: Path
) -> None:
    unpack(pack(tmp_path, "site"), "site", str(out))
    (out / "site/mine").write_text("kept")
    (out / "site").chmod(0o700)
    (site / "index").unlink()
    (site / "index").symlink_to("run")
    (site / "away").unlink()
    (site / "away").write_text("no link any more")
    unpack(pack(tmp_path, "site"), "site", str(out))
    assert tree(out / "site") == arrived(site) | {"mine": ("-rw-r--r--", b"kept")}
    # a server does not say who may look into a folder that was there
    assert stat.S_IMODE((out / "site").stat().st_mode) == 0o700


@pytest.mark.parametrize("source", ["/etc/.", "/", "..", "."])
def test_a_folder_without_a_name_fills_its_target(out: Path, source: str) -> None:
    unpack(folder(Item(b"./a", content=b"1")), source, str(out))
    assert tree(out) == {"a": ("-rw-r--r--", b"1")}


FILE = stream(Item(b"hosts", content=b"new")).getvalue()


@pytest.mark.parametrize(
    ("target", "place"),
    [("out", "out/hosts"), ("out/", "out/hosts"), ("out/new", "out/new"), ("out/old", "out/old")],
)
def test_a_file_goes_where_it_is_sent(tmp_path: Path, out: Path, target: str, place: str) -> None:
    (out / "old").write_text("old, and longer")
    with (out / "old").open() as before:
        unpack(io.BytesIO(FILE), "/etc/hosts", f"{tmp_path}/{target}")
        assert before.read() == "old, and longer"
    assert (tmp_path / place).read_bytes() == b"new"


def test_a_file_goes_to_a_name_in_the_folder_one_stands_in(out: Path) -> None:
    with contextlib.chdir(out):
        unpack(io.BytesIO(FILE), "/etc/hosts", ".")
        unpack(io.BytesIO(FILE), "/etc/hosts", "new")
    assert sorted(os.listdir(out)) == ["hosts", "new"]


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_file_is_written_to_standard_output(target: str, tmp_path: Path) -> None:
    code = (
        "import sys; from virtuary.cli.copying import unpack; unpack(sys.stdin.buffer, "
        f"'hosts', {target!r})"
    )
    before = os.lstat("/dev/stdout")
    done = subprocess.run([sys.executable, "-c", code], input=FILE, capture_output=True, check=True)
    with (tmp_path / "file").open("wb") as handle:
        subprocess.run([sys.executable, "-c", code], input=FILE, stdout=handle, check=True)
    assert done.stdout == (tmp_path / "file").read_bytes() == b"new"
    assert os.path.samestat(before, os.lstat("/dev/stdout"))


def test_a_file_is_written_into_a_pipe_or_device_that_is_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
            unpack(io.BytesIO(FILE), "hosts", str(tmp_path / name))
            assert reader.communicate()[0] == b"new"
    unpack(io.BytesIO(FILE), "hosts", str(tmp_path / "null"))
    assert (
        (tmp_path / "pipe").is_fifo()
        and os.readlink(tmp_path / "link") == "pipe"
        and os.readlink(tmp_path / "null") == "/dev/null"
    )


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/null", "pipe", "file"])
def test_a_folder_is_not_written_into_what_is_none(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("kept")
    before = tree(tmp_path)
    with pytest.raises(Refused, match=r"can't become one|in the way"):
        unpack(
            folder(Item(b"./a")),
            "/d",
            target if target.startswith(("/", "-")) else str(tmp_path / target),
        )
    assert tree(tmp_path) == before


# ---- what a hostile one sends


def test_special_files_are_left_out_and_said_in_one_line(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("character device", "block device", "pipe", "pipe")
    unpack(
        folder(
            Item(b"./kept"), *(Item(b"./%d\x1b[2J" % at, kind) for at, kind in enumerate(kinds))
        ),
        "/d",
        str(out),
    )
    assert list(tree(out)) == ["d", "d/kept"]
    said = capsys.readouterr().err
    assert (
        said.startswith("4 special files were left out: ")
        and said.count("\n") == 1
        and "\x1b" not in said
    )


def test_a_second_copy_does_not_follow_links_that_the_first_brought(
    tmp_path: Path, out: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("original")
    links = [
        Item(b"./x", "link", target=os.fsencode(victim)),
        Item(b"./y", "link", target=os.fsencode(victim / "file")),
    ]
    unpack(folder(*links), "/root/d", str(out))
    again = [
        Item(b"./x/", "folder"),
        Item(b"./x/new", content=b"evil"),
        Item(b"./y", content=b"evil"),
        Item(b"./z", content=b"well"),
    ]
    with pytest.raises(Failed, match="2 of the files"):
        unpack(folder(*again), "/root/d", str(out))
    assert tree(victim) == {"file": ("-rw-r--r--", b"original")}
    assert (
        os.readlink(out / "d/x") == str(victim)
        and (out / "d/y").read_bytes() == b"evil"
        and (out / "d/z").read_bytes() == b"well"
    )


def test_what_is_refused_is_named_once(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "d").mkdir()
    (out / "d/x").symlink_to("/")
    with pytest.raises(Failed, match="30 of the files of /d"):
        unpack(folder(*(Item(b"./x/%d" % at) for at in range(30))), "/d", str(out))
    assert (
        capsys.readouterr().err
        == "not copied: 'd/x' is in the way: it is no folder, and no link is followed\n"
    )


@pytest.mark.parametrize("name", ["d", "file"])
def test_a_link_that_lies_under_the_name_of_the_copy_is_not_followed(
    tmp_path: Path, out: Path, name: str
) -> None:
    (tmp_path / "victim").mkdir()
    (out / "d").symlink_to(tmp_path / "victim")
    (out / "file").symlink_to(tmp_path / "victim/file")
    if name == "file":
        unpack(io.BytesIO(FILE), "/file", str(out))
        assert (out / "file").read_bytes() == b"new" and not (out / "file").is_symlink()
    else:
        with pytest.raises(Refused, match="'d' is in the way"):
            unpack(folder(Item(b"./a")), "/d", str(out))
    assert tree(tmp_path / "victim") == {}


def test_no_bits_but_permissions_are_taken_over(out: Path) -> None:
    unpack(folder(Item(b"./a", mode=0o7777), Item(b"./b/", "folder", mode=0o7777)), "/d", str(out))
    assert [mode for mode, _ in tree(out / "d").values()] == ["-rwxr-xr-x", "drwxr-xr-x"]


HARD = {
    "before its file": [Item(b"./b", "hard link", target=b"./a"), Item(b"./a")],
    "of what is outside": [Item(b"./b", "hard link", target=b"../secret")],
    "of an absolute name": [Item(b"./b", "hard link", target=b"/etc/hostname")],
    "of what was there before": [Item(b"./b", "hard link", target=b"./mine")],
    "of a link": [
        Item(b"./a", "link", target=b"/etc/hostname"),
        Item(b"./c"),
        Item(b"./b", "hard link", target=b"./c/x"),
    ],
    "of a folder": [Item(b"./b", "hard link", target=b"./")],
}


@pytest.mark.parametrize("case", HARD)
def test_a_hard_link_to_anything_but_a_file_of_this_copy_is_refused(out: Path, case: str) -> None:
    (out / "secret").write_text("secret")
    (out / "d").mkdir()
    (out / "d/mine").write_text("mine")
    with pytest.raises(Failed, match="1 of the files"):
        unpack(folder(*HARD[case]), "/d", str(out))
    assert (
        not (out / "d/b").exists()
        and (out / "d/mine").stat().st_nlink == (out / "secret").stat().st_nlink == 1
    )


def test_of_two_things_of_one_name_the_later_one_counts_and_a_folder_stays(out: Path) -> None:
    items = [
        Item(b"./a", "link", target=b"/x"),
        Item(b"./a", content=b"1"),
        Item(b"./b", content=b"1"),
        Item(b"./b", "link", target=b"/x"),
    ]
    unpack(folder(*items, Item(b"./c"), Item(b"./c", "hard link", target=b"./c")), "/d", str(out))
    assert (
        (out / "d/a").read_bytes() == b"1"
        and os.readlink(out / "d/b") == "/x"
        and sorted(os.listdir(out / "d")) == ["a", "b", "c"]
    )
    with pytest.raises(Failed, match="1 of the files"):
        unpack(
            folder(
                Item(b"./e/", "folder", mode=0o755),
                Item(b"./e", "link", target=b"/"),
                Item(b"./e/f", content=b"1"),
            ),
            "/d",
            str(out),
        )
    assert (out / "d/e/f").read_bytes() == b"1"


@pytest.mark.parametrize(
    "more", [Item(b"b"), Item(b"hosts/", "folder"), Item(b"l", "link", target=b"/")]
)
def test_where_one_file_was_asked_for_one_file_comes(out: Path, more: Item) -> None:
    with pytest.raises(Failed, match="where one file was asked for"):
        unpack(stream(Item(b"../../whatever", content=b"1"), more), "/hosts", str(out))
    assert list(tree(out)) == ["hosts"]


@pytest.mark.parametrize("kind", ["link", "hard link", "character device", "pipe"])
def test_what_is_neither_file_nor_folder_is_not_copied(out: Path, kind: str) -> None:
    with pytest.raises(Failed, match="neither"):
        unpack(stream(Item(b"x", kind, target=b"/etc/hostname")), "/x", str(out))
    assert tree(out) == {}


@pytest.mark.parametrize("begin", [[], [Item(b"./", "folder")]])
def test_a_cut_archive_is_an_error_and_leaves_no_half_of_a_file(
    out: Path, begin: list[Item]
) -> None:
    cut = archive(*begin, Item(b"./a", content=b"x" * 3000), end=False)[:-1500]
    with pytest.raises(Failed, match="cut"):
        unpack(io.BytesIO(cut), "/d", str(out))
    assert not [name for name in tree(out) if name != "d"]


WAY = {
    "host": "127.0.0.1",
    "port": 1,
    "user": "root",
    "key": "/k",
    "known_hosts": "/h",
    "alias": "a",
    "known": True,
}


@contextlib.contextmanager
def copying(short: Path, out: Path, server: str, sent: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """The command's own way out of a server, with a shell script that stands for ssh; `$SENT` is a
    file with this content.
    """
    (short / "ssh").write_text(f"#!/bin/sh\n{server}\n")
    (short / "ssh").chmod(0o755)
    (short / "sent").write_bytes(sent)
    env = os.environ | {"PATH": f"{short}:{os.environ['PATH']}", "SENT": str(short / "sent")}
    code = (
        "import sys; from virtuary.cli import copying; copying.heed_ends(); "
        f"copying.copy_out({WAY}, '/d', sys.argv[1])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], env=env, stderr=subprocess.PIPE
    ) as process:
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_copy_leaves_no_half_of_a_file(
    out: Path, short: Path, number: signal.Signals
) -> None:
    sent = (
        archive(Item(b"./", "folder"), end=False) + header(b"./a", b"0", 10**9) + bytes(3 * 2**20)
    )
    with copying(short, out, 'cat "$SENT"; exec sleep 60', sent) as process:
        end = time.monotonic() + 10
        while (
            not any(path.stat().st_size for path in out.rglob(".virtuary-*"))
            and time.monotonic() < end
        ):
            time.sleep(0.02)
        assert list(out.rglob(".virtuary-*"))
        process.send_signal(number)
        assert process.wait(10) != 0
    assert tree(out / "d") == {}


def test_what_a_server_complains_of_steers_no_terminal(out: Path, short: Path) -> None:
    with copying(short, out, "printf 'no \\033[2Jsuch\\007 file\\n' >&2; exit 2", b"") as process:
        said = process.communicate()[1]
    assert (
        said.startswith(b"no [2Jsuch file\n")
        and b"/d could not be copied" in said
        and process.returncode
    )


def test_a_server_that_fails_after_all_was_sent_is_not_believed(out: Path, short: Path) -> None:
    with copying(short, out, 'cat "$SENT"; exit 1', folder(Item(b"./a")).getvalue()) as process:
        assert b"could not be copied" in process.communicate()[1] and process.returncode


NAMES = [b"a", b"b", b"a/b", b"a/b/c", b"b/a", b"l", b"l/a", b"l/l/x"]
BAD = [
    b"..", b"../canary", b"a/../../canary", b"/CANARY/file", b"", b"/", b".", b"a\0b", b"\0",
    b"x" * 300, b"a/" * 2040 + b"x", b"a/" * 3000, b"l/../../x",
    b"\xff\xfe", b"\n", b"-rf", b"d", b"d/..", b"l/canary", b"l/sub/file",
]  # fmt: skip
TARGETS = [
    b"..",
    b"../..",
    b"/",
    b"/CANARY",
    b"/CANARY/file",
    b"a",
    b"l",
    b".",
    b"../canary",
    b"",
    b"x\0y",
    b"y" * 5000,
    b"/proc/self/fd/1",
    b"/proc/self/root",
]
ITEMS = st.builds(
    Item,
    st.sampled_from(NAMES + BAD).flatmap(
        lambda name: st.sampled_from([name, b"./" + name, name + b"/"])
    ),
    st.sampled_from(
        [
            "file",
            "file",
            "link",
            "link",
            "folder",
            "folder",
            "hard link",
            "character device",
            "block device",
            "pipe",
        ]
    ),
    st.sampled_from([b"", b"evil", b"x" * 600]),
    st.sampled_from(TARGETS + NAMES),
    st.sampled_from([0o644, 0o777, 0o4755, 0o7777, 0o000, 0o555]),
    st.sampled_from([None, None, None, None, None, 7, 2**40]),
)


@settings(max_examples=400)
@given(st.lists(st.lists(ITEMS, max_size=8), min_size=1, max_size=3), st.booleans())
def test_no_archive_reads_or_writes_anything_outside_its_target(
    copies: list[list[Item]], rooted: bool
) -> None:
    base = Path(tempfile.mkdtemp(prefix="vi-cp-"))
    try:
        canary = base / "canary"
        (canary / "sub").mkdir(parents=True)
        for path in (canary / "file", canary / "sub/file", base / "CANARY"):
            path.write_text("secret")
            path.chmod(0o640)
        (base / "out").mkdir()
        (base / "out/other").write_text("kept")
        for items in copies:
            named = [
                item._replace(
                    target=item.target.replace(b"/CANARY", os.fsencode(canary)),
                    name=item.name.replace(b"/CANARY", os.fsencode(canary)),
                )
                for item in items
            ]
            begin = [Item(b"./", "folder", mode=0o755)] if rooted else []
            before = watched(base)
            with contextlib.suppress(VirtuaryError):
                unpack(stream(*begin, *named), "/root/d", str(base / "out"))
            assert watched(base) == before
            assert sorted(os.listdir(base / "out")) in (["other"], ["d", "other"])
            check_inside(base / "out")
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(base)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(base)


def watched(base: Path) -> list[object]:
    """What lies around the target, with all that would show a touch; reading shows in nothing, and
    so the content is looked for inside.
    """
    places = [
        base,
        base / "CANARY",
        base / "canary",
        *sorted((base / "canary").rglob("*")),
        base / "out/other",
    ]
    return [
        (
            str(path),
            facts.st_mode,
            facts.st_ino,
            facts.st_nlink,
            facts.st_mtime_ns,
            facts.st_ctime_ns,
        )
        for path in places
        if (facts := path.lstat()) and path != base / "out"
    ]


def check_inside(out: Path) -> None:
    """Nothing but files, folders and links, without bits that give rights away, with nothing of
    what lies outside, and nothing half done.
    """
    for folder, folders, files in os.walk(out):
        for name in (*folders, *files):
            facts = os.lstat(os.path.join(folder, name))
            assert stat.S_IFMT(facts.st_mode) in (
                stat.S_IFREG,
                stat.S_IFDIR,
                stat.S_IFLNK,
            ) and not name.startswith(".virtuary-")
            assert stat.S_ISLNK(facts.st_mode) or not facts.st_mode & 0o7022
            if stat.S_ISREG(facts.st_mode) and facts.st_mode & stat.S_IRUSR:
                assert b"secret" not in Path(folder, name).read_bytes()


def test_a_socket_in_the_way_is_left_where_it_is(out: Path) -> None:
    (out / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(out / "d/s"))
        with pytest.raises(Failed, match="1 of the files"):
            unpack(folder(Item(b"./s", content=b"x")), "/d", str(out))
    assert (out / "d/s").is_socket()


# ---- patterns in a server


@pytest.mark.parametrize("path", ["*.log", "a?", "[ab]", r"\\*", r"a\*b*"])
def test_letters_that_choose_files_make_a_pattern(path: str) -> None:
    assert is_pattern(path)


MEANT = {
    r"a\*b": "a*b",
    r"\[x]": "[x]",
    r"what\?": "what?",
    r"my\ file": "my file",
    r"back\\slash": r"back\slash",
    r"\~/x": "./~/x",
    "plain": "plain",
    "end\\": "end\\",
}


@pytest.mark.parametrize("path", MEANT)
def test_a_backslash_takes_the_letter_after_it_as_it_is(path: str) -> None:
    assert not is_pattern(path) and literal(path) == MEANT[path]


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"a\*b*", ["a*b1", "a*b2"]),
        (r"*\?", ["what?"]),
        (r"\[*", ["[x]"]),
        (r"b\\*", [r"b\c"]),
        (r"my\ *", ["my file"]),
        ("axb?", ["axb3"]),
    ],
)
def test_an_escaped_letter_in_a_pattern_is_itself_for_every_shell(
    tmp_path: Path, shell: str, pattern: str, found: list[str]
) -> None:
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"{shell} is not here")
    for name in ("a*b1", "a*b2", "axb3", "what?", "whatx", "[x]", "x", r"b\c", "bc", "my file"):
        (tmp_path / name).touch()
    script = LIST.format(source=remote(as_pattern(pattern)))
    told = subprocess.run(
        [*shell.split(), "-c", script], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert [os.fsdecode(path) for path in told.split(b"\0") if path] == found
    last = as_pattern(pattern)
    assert all(fnmatch.fnmatchcase(name, last) for name in found)
