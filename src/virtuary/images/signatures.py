"""OpenPGP signatures of checksum files, checked by gpgv in the jail."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path

from virtuary.base import proc
from virtuary.base.errors import Invalid
from virtuary.jail import tool
from virtuary.jail.walls import Bounds

MAX_KEYRING = 4 * 1024 * 1024
LIMITS = Bounds(memory=512 * 1024 * 1024, cpu=20, file_size=0, processes=4, files=64)
_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_VALID = re.compile(r"^\[GNUPG:\] VALIDSIG ([0-9A-F]{40}) .*? ([0-9A-F]{40})$", re.MULTILINE)
_BAD = re.compile(r"^\[GNUPG:\] (BADSIG|EXPSIG|EXPKEYSIG|REVKEYSIG) ", re.MULTILINE)


async def verify_signature(
    data: bytes, signature: bytes | None, keyring: Path, fingerprint: str | None = None
) -> bytes:
    """The text that was signed by a key of `keyring`; raises Invalid when it was not.

    With `signature` it is a detached one over `data`; without, `data` is clearsigned and what was
    signed is returned, free of the frame around it. With `fingerprint` only that primary key
    counts. The keyring may be armored.
    """
    with tempfile.TemporaryDirectory(prefix="virtuary-gpgv-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "keys.gpg").write_bytes(dearmored(_read_keyring(keyring)))
        (folder / "data").write_bytes(data)
        if signature is not None:
            (folder / "signature").write_bytes(signature)
        result = await _gpgv(folder, detached=signature is not None)
        _judge(result.stderr.decode(errors="replace"), fingerprint)
        if signature is None and result.status != 0:
            raise Invalid(
                "the signed checksum file has more in it than one signed text",
                "do not use these files",
            )
        return data if signature is not None else result.stdout


async def _gpgv(folder: Path, detached: bool) -> proc.Result:
    """A run of gpgv, its status lines alone on stderr, the signed text on stdout; what lies in
    `folder` is all it can reach.
    """
    operands = [folder / "signature", folder / "data"] if detached else [folder / "data"]
    output = [] if detached else ["--output", "-"]
    words = (
        "gpgv",
        "--homedir",
        str(folder),
        "--logger-fd",
        "0",
        "--status-fd",
        "2",
        "--keyring",
        str(folder / "keys.gpg"),
        *output,
        "--",
    )
    return await tool.run(
        [*words, *map(str, operands)], LIMITS, 30, tool.Surroundings(readable=[folder])
    )


def _judge(status: str, fingerprint: str | None) -> None:
    """Raise Invalid unless the status lines tell of a valid signature (by the wanted key) and of no
    bad one.
    """
    if _BAD.search(status):
        raise Invalid(
            "the signature of the checksum file is bad or its key is no longer valid",
            "do not use these files",
        )
    signers = {key for match in _VALID.findall(status) for key in match}
    if not signers:
        raise Invalid(
            "the checksum file is not signed by a key of the keyring",
            "the publisher may have a new key: update the keyring",
        )
    if fingerprint is not None and fingerprint.upper() not in signers:
        raise Invalid(
            f"the checksum file is signed by another key than {fingerprint}",
            "do not use these files",
        )


def _read_keyring(keyring: Path) -> bytes:
    with keyring.open("rb") as handle:
        content = handle.read(MAX_KEYRING + 1)
    if len(content) > MAX_KEYRING:
        raise Invalid(f"the keyring {keyring} is too large")
    return content


def dearmored(content: bytes) -> bytes:
    """The keys of an armored file (all its blocks) in binary; a file that is not armored is
    returned as it is.
    """
    blocks = [match[1].replace(b"\r", b"") for match in _ARMOR.finditer(content)]
    try:
        return b"".join(_decoded(block) for block in blocks) if blocks else content
    except binascii.Error as error:
        raise Invalid("the keyring is damaged") from error


def _decoded(block: bytes) -> bytes:
    """One block: headers, an empty line, base64, and a checksum line that begins with "="."""
    _, _, body = block.rpartition(b"\n\n") if b"\n\n" in block else (b"", b"", block)
    lines = [
        line
        for line in body.split(b"\n")
        if line and not (line.startswith(b"=") and len(line) == 5)
    ]
    return base64.b64decode(b"".join(lines), validate=True)
