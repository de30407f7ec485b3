"""Digests, and the checksum files distributions publish: strict, pure parsers with limits.

Three kinds are read: `sums` (SHA256SUMS, SHA512SUMS: "DIGEST  NAME"), `bsd` (Fedora, Rocky: "SHA256
(NAME) = DIGEST") and `single` (one file's own: "DIGEST" or "DIGEST  NAME"). A line that is none of
these refuses the whole file: what half understands a checksum file may be made to overlook a line.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from virtuary.base.errors import Invalid

Kind = Literal["sums", "bsd", "single"]
LENGTHS = {"sha256": 64, "sha512": 128}
MAX_LINES = 10_000
MAX_LINE = 1024
PIECE = 1024 * 1024

_SUMS = re.compile(r"^([0-9A-Fa-f]{64,128}) [ *](?:\./)?([A-Za-z0-9][^\x00-\x1f\\]{0,511})$")
_BSD = re.compile(
    r"^(SHA256|SHA512) \(([A-Za-z0-9][^\x00-\x1f\\]{0,511})\) = ([0-9A-Fa-f]{64,128})$"
)
_SINGLE = re.compile(r"^([0-9A-Fa-f]{64,128})(?: [ *]([^\x00-\x1f]{1,512}))?$")
_ARMOR = "-----BEGIN PGP SIGNED MESSAGE-----"
_ARMOR_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"


@dataclass(frozen=True)
class Digest:
    """A hash a file must have; the hexadecimal form is lower case."""

    algorithm: str  # "sha256" | "sha512"
    value: str

    def __post_init__(self) -> None:
        if self.algorithm not in LENGTHS:
            raise Invalid(
                f"{self.algorithm!r} digests are not accepted", "give a sha256 or sha512 digest"
            )
        if len(self.value) != LENGTHS[self.algorithm] or not re.fullmatch(r"[0-9a-f]+", self.value):
            raise Invalid(
                f"a {self.algorithm} digest has {LENGTHS[self.algorithm]} hexadecimal digits"
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest meant by "sha256:HEX", or by bare HEX of a length that tells the algorithm.
        Raises Invalid.
        """
        name, _, value = text.strip().lower().rpartition(":")
        by_length = {length: algorithm for algorithm, length in LENGTHS.items()}
        return cls(name or by_length.get(len(value), "unknown"), value)

    def matches(self, hashes: dict[str, str]) -> bool:
        return hmac.compare_digest(hashes.get(self.algorithm, ""), self.value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


def hash_file(descriptor: int, algorithms: Iterable[str] = ("sha256",)) -> dict[str, str]:
    """Hashes of the whole file behind `descriptor`, read once; blocks, so call it in a thread for
    large files.
    """
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in {"sha256", *algorithms}}
    offset = 0
    while piece := os.pread(descriptor, PIECE, offset):
        for value in hashes.values():
            value.update(piece)
        offset += len(piece)
    return {algorithm: value.hexdigest() for algorithm, value in hashes.items()}


def parse_checksums(kind: Kind, content: bytes, name: str) -> Digest:
    """The digest the checksum file `content` gives for the file `name`; raises Invalid when it
    gives none, or two.
    """
    lines = _lines(content)
    if kind == "single":
        return _parse_single(lines, name)
    table: dict[str, set[Digest]] = {}
    for line in lines:
        found, digest = _parse_sums(line) if kind == "sums" else _parse_bsd(line)
        table.setdefault(found, set()).add(digest)
    digests = table.get(name, set())
    if len({digest.algorithm for digest in digests}) < len(digests):
        raise Invalid(f"the checksum file names {name} twice, with different digests")
    if not digests:
        raise Invalid(
            f"the checksum file does not name {name}",
            "the publisher may be in the middle of an update; try again later",
        )
    return max(digests, key=lambda digest: len(digest.value))


def clear_text(content: bytes) -> bytes:
    """What a clearsigned document says, its signature NOT checked; a document that is not
    clearsigned is returned as it is.

    For use only where no keyring is at hand. Text before or after the signed part is refused.
    """
    lines = _decode(content).splitlines()
    if not lines or lines[0].rstrip() != _ARMOR:
        return content
    if "" not in lines or _ARMOR_SIGNATURE not in lines:
        raise Invalid("the signed checksum file is cut")
    start, end = lines.index("") + 1, lines.index(_ARMOR_SIGNATURE)
    if (
        any(not re.fullmatch(r"Hash: [A-Za-z0-9, -]+", line) for line in lines[1 : start - 1])
        or start > end
    ):
        raise Invalid("the signed checksum file has headers that do not belong there")
    return "\n".join(line.removeprefix("- ") for line in lines[start:end]).encode() + b"\n"


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("the checksum file is not text") from error


def _lines(content: bytes) -> list[str]:
    """The lines that say something; comments and blank lines are left out."""
    lines = [line.rstrip("\r") for line in _decode(content).split("\n")]
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE for line in lines):
        raise Invalid("the checksum file is longer than any sound one")
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _parse_sums(line: str) -> tuple[str, Digest]:
    match = _SUMS.match(line)
    if not match:
        raise Invalid(f"the checksum file has a line that is not understood: {line[:60]!r}")
    return match[2], Digest.parse(match[1])


def _parse_bsd(line: str) -> tuple[str, Digest]:
    match = _BSD.match(line)
    if not match:
        raise Invalid(f"the checksum file has a line that is not understood: {line[:60]!r}")
    return match[2], Digest(match[1].lower(), match[3].lower())


def _parse_single(lines: list[str], name: str) -> Digest:
    match = _SINGLE.match(lines[0]) if len(lines) == 1 else None
    if not match:
        raise Invalid(f"the checksum file of {name} is not one line with a digest")
    if match[2] and match[2].rpartition("/")[2] != name:
        raise Invalid(f"the checksum file of {name} is about another file")
    return Digest.parse(match[1])
