"""The cloud-init seed: found by its label, read back under both naming schemes; user data is
checked at the door.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cost import cost
from virtuary.base.errors import Invalid
from virtuary.guest.seed import HostKey, check_user_data, seed_files, write_seed


@pytest.mark.parametrize("scheme", ["rr_path", "joliet_path"])
def test_a_seed_is_read_back_as_it_was_written(tmp_path: Path, scheme: str) -> None:
    import pycdlib

    place = tmp_path / "seed.iso"
    files = seed_files(
        "ID", "web1", ("ssh-ed25519 AAAA",), "#!/bin/sh\necho ü\n" + "x" * 10_000, HostKey("a", "b")
    )
    write_seed(place, files)
    iso = pycdlib.PyCdlib()
    iso.open(str(place))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    for name, content in files.items():
        found = io.BytesIO()
        iso.get_file_from_iso_fp(found, **{scheme: f"/{name}"})
        assert found.getvalue() == content
    iso.close()


def test_a_seed_is_the_daemons_alone_and_of_whole_blocks(tmp_path: Path) -> None:
    write_seed(tmp_path / "seed.iso", seed_files("ID", "web1", (), ""))
    facts = (tmp_path / "seed.iso").stat()
    assert (
        facts.st_mode & 0o777 == 0o600
        and facts.st_size % 65536 == 0
        and os.listdir(tmp_path) == ["seed.iso"]
    )


def test_a_seed_names_the_instance_the_host_and_the_keys() -> None:
    files = seed_files("ID", "web1", ("a", "b"), "")
    assert json.loads(files["meta-data"]) == {
        "instance-id": "ID",
        "local-hostname": "web1",
        "public-keys": ["a", "b"],
    }
    assert check_user_data(files["user-data"].decode())


def test_a_seed_brings_a_host_key_behind_what_the_user_data_says() -> None:
    key = HostKey("-----BEGIN\nEND-----", "ssh-ed25519 AAAA")
    files = seed_files("ID", "web1", (), "#!/bin/sh\n", key)
    told = yaml.safe_load(files["vendor-data"])
    assert (
        files["vendor-data"].startswith(b"#cloud-config\n") and files["user-data"] == b"#!/bin/sh\n"
    )
    assert told.pop("ssh_deletekeys") is False, (
        "between its removal and its return nobody could log in"
    )
    assert told == {
        "ssh_keys": {
            "ed25519_private": "-----BEGIN\nEND-----\n",
            "ed25519_public": "ssh-ed25519 AAAA\n",
        }
    }
    assert "vendor-data" not in seed_files(
        "ID", "web1", (), "#cloud-config\nssh_keys: {rsa_private: x}\n", key
    )


GOOD = [
    "#cloud-config\n",
    "#cloud-config\npackages: [vim]\n",
    "#!/bin/sh\nreboot\n",
    "#include\nhttp://x\n",
    "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: "
    "text/x-shellscript\n\n#!/bin/sh\n--x--\n",
    "## template: jinja\n#cloud-config\n",
    "#cloud-config\r\npackages: [vim]\r\n",
    "#cloud-config\nhostname: zoë\nruncmd:\n- echo é > /root/utf8\n",
    "#cloud-config\nruncmd: not-a-list\nfoo: bar\nusers: 12\n",
    "#cloud-config\nruncmd:\n- rm /tmp/*.log && echo *\n- '*'\n- [sh, -c, 'a && b &']\n- |\n  ls "
    "*\n  *x &y\n  [[[[\n- >\n  {{{{ *a\n",
    "#cloud-config\na: &name x\nb: A&B\nc: 2*3\n",
    "#cloud-config\nk: " + "[" * 60 + "]" * 60,
    "#cloud-config\npackages:\n" + "- vim\n" * 8000,
    "#cloud-config\nid: 123456789012345678901234567890\n",
]
BAD = {
    "nothing": ("", "must begin with"),
    "plain words": ("hello", "must begin with"),
    "a list": ("#cloud-config\n- a\n", "must be a mapping"),
    "a word": ("#cloud-config\nhello\n", "must be a mapping"),
    "broken": ("#cloud-config\na: [\n", "not valid YAML"),
    "an unknown tag": (
        "#cloud-config\na: !!python/object/apply:os.system [id]\n",
        "not valid YAML",
    ),
    "a date that is none": ("#cloud-config\na: 2001-99-99\n", "not valid YAML"),
    "a truth that is none": ("#cloud-config\na: !!bool maybe\n", "not valid YAML"),
    "a number that is none": ("#cloud-config\na: !!int ''\n", "not valid YAML"),
    "a time that is none": ("#cloud-config\na: !!timestamp x\n", "not valid YAML"),
    "deeper than anybody writes": ("#cloud-config\n" + "[" * 3000, "not valid YAML"),
    "an alias": ("#cloud-config\na: &a [x]\nb: *a\n", "has an alias, \\*a"),
    "an alias that is merged": ("#cloud-config\na: &a {x: y}\nb: {<<: [*a, *a]}\n", "has an alias"),
    "a key that is a list": ("#cloud-config\n? [a]\n: b\n", "not valid YAML"),
}


@pytest.mark.parametrize("text", GOOD)
def test_good_user_data_is_passed_on_as_it_is(text: str) -> None:
    assert check_user_data(text) is text


@pytest.mark.parametrize("case", BAD)
def test_bad_user_data_is_refused_with_the_reason(case: str) -> None:
    text, words = BAD[case]
    with pytest.raises(Invalid, match=words):
        check_user_data(text)


MOST = 256 * 1024 - 30
LONG = {
    "brackets": "a: " + "[" * 5000,
    "brackets to the end": "[" * MOST,
    "brackets in lines": "[\n " * (MOST // 3),
    "closed brackets": "a: " + "[" * 1000 + "]" * 1000,
    "braces": "{a: " * (MOST // 4),
    "dashes": "- " * (MOST // 2),
    "question marks": "? " * (MOST // 2),
    "indentation": "".join(" " * depth + "a:\n" for depth in range(700)),
    "aliases of aliases": "a: &a [x, x]\n"
    + "".join(f"b{number}: &b{number} [*a, *a]\n" for number in range(1000)),
    "merged aliases": "a: &a {x: y}\n" + "b: {<<: [" + "*a, " * 1000 + "]}\n",
    "directives": "%TAG !a! x\n" * (MOST // 11) + "---\na: b\n",
    "a number of base 60": "a: 1" + ":1" * (MOST // 2),
    "keys of one hash": "\n".join(f"{number * (2**61 - 1)}: 1" for number in range(1, 8000)),
}


@pytest.mark.parametrize("case", LONG)
def test_user_data_that_would_take_long_is_refused_within_5_ms(case: str) -> None:
    def check() -> None:
        with pytest.raises(Invalid, match="not valid YAML: it has"):
            check_user_data("#cloud-config\n" + LONG[case])

    assert cost(check, 0.005) < 0.005


@given(st.text(max_size=60))
def test_any_user_data_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        check_user_data("#cloud-config\n" + text)
