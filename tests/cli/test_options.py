"""What options stand for, and files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtuary.base.errors import Invalid
from virtuary.cli.options import read_keys

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHc0 ada@home"


def test_a_file_of_public_keys_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(
        f'# mine\n{KEY}\n\nfrom="10.0.0.1" ecdsa-sha2-nistp256 AAAAE2 '
        "x\nsk-ssh-ed25519@openssh.com AAAAGn y\n"
    )
    assert len(read_keys(str(tmp_path / "keys"))) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no SSH public key"),
        ("# none\n", "holds no SSH"),
        ("hello\n", "something that is no SSH"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key"),
    ],
)
def test_a_file_without_one_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(Invalid, match=words):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(Invalid, match="/dev/null holds no SSH public key"):
        read_keys("/dev/null")
