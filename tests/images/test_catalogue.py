"""The catalogue's table, its lookup, and the parsers of the publishers' checksum files."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtuary.base.errors import Invalid, NotFound
from virtuary.images import catalogue
from virtuary.images.checksums import Digest, Kind, clear_text, hash_file, parse_checksums

A, B = "a" * 64, "b" * 64
LONG = "c" * 128


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("debian", "debian:13"), ("debian:12", "debian:12"), ("bookworm", "debian:12"), ("Debian", "debian:13"),
        ("ubuntu", "ubuntu:24.04"), ("ubuntu:24.04", "ubuntu:24.04"), ("ubuntu:22.04", "ubuntu:22.04"), ("noble", "ubuntu:24.04"),
        ("fedora", "fedora:43"), ("fedora:41", "fedora:41"), ("almalinux", "almalinux:10"), ("alma:9", "almalinux:9"),
        ("rocky", "rocky:10"), ("rocky:9", "rocky:9"), ("alpine", "alpine:3.22"), ("alpine:3.21", "alpine:3.21"),
    ],
)  # fmt: skip
def test_names_and_aliases_lead_to_an_entry_on_both_architectures(asked: str, found: str) -> None:
    for arch in catalogue.ARCHES:
        entry = catalogue.find(asked, arch)
        assert (entry.name, entry.arch) == (found, arch)


def test_an_unknown_name_is_answered_with_what_comes_close() -> None:
    with pytest.raises(NotFound) as caught:
        catalogue.find("debain")
    assert "debian" in (caught.value.hint or "")
    with pytest.raises(NotFound) as caught:
        catalogue.find("ubuntu:18.04")
    assert "ubuntu:2" in (caught.value.hint or "")
    with pytest.raises(NotFound) as caught:
        catalogue.find("zzz")
    assert "known are" in (caught.value.hint or "")
    with pytest.raises(Invalid, match="architecture"):
        catalogue.find("debian", "s390x")
    assert catalogue.find("debian", "x86_64").arch == "amd64"


def test_names_are_unique_and_never_hide_an_alias() -> None:
    assert len(set(catalogue.names())) == len(catalogue.names())
    aliases = [alias for release in catalogue._RELEASES for alias in release.aliases]
    assert len(set(aliases)) == len(aliases) and not set(aliases) & set(catalogue.names())


@pytest.mark.parametrize(
    "entry", catalogue.entries(), ids=lambda entry: f"{entry.name}-{entry.arch}"
)
def test_every_entry_is_complete(entry: catalogue.Entry) -> None:
    for folder in entry.folders:
        assert urlsplit(folder).scheme == "https" and folder.endswith("/")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+\.(qcow2|img)", entry.image)
    assert entry.url == entry.folders[0] + entry.image
    theirs = {"amd64": ("amd64", "x86_64"), "arm64": ("arm64", "aarch64")}[entry.arch]
    assert any(word in entry.image for word in theirs)
    assert entry.user in entry.name and entry.cloud_init and entry.format == "qcow2"
    assert entry.firmware and ("bios" not in entry.firmware or entry.arch == "amd64")
    assert entry.checksum_kind in ("sums", "bsd", "single") and entry.checksums
    if entry.signature:
        assert (
            re.fullmatch(r"[0-9A-F]{40}", entry.signature.fingerprint) and entry.signature.keyrings
        )
        assert (entry.signature.kind == "clearsigned") == (entry.signature.file == entry.checksums)


def test_a_mirror_takes_the_place_of_the_publishers_host() -> None:
    url = catalogue.find("debian:12").url
    assert catalogue.mirrored(url, {}) == url
    assert catalogue.mirrored(url, {"cloud.debian.org": "http://127.0.0.1:8080/m/"}) == (
        "http://127.0.0.1:8080/m/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2"
    )


def test_a_keyring_is_found_in_the_folders_given(tmp_path: Path) -> None:
    signature = catalogue.find("ubuntu").signature
    assert signature and catalogue.find_keyring(signature, [tmp_path]) is None
    (tmp_path / "ubuntu-cloudimage-keyring.gpg").write_bytes(b"key")
    assert (
        catalogue.find_keyring(signature, [tmp_path / "absent", tmp_path])
        == tmp_path / "ubuntu-cloudimage-keyring.gpg"
    )


SUMS = f"{A} *disk-amd64.img\n{B}  disk-arm64.img\n".encode()
BSD = f"# disk.qcow2: 645988352 bytes\nSHA256 (disk.qcow2) = {A}\nSHA256 (other.qcow2) = {B}\n".encode()


def test_checksum_files_of_each_kind_are_read() -> None:
    assert parse_checksums("sums", SUMS, "disk-amd64.img") == Digest("sha256", A)
    assert parse_checksums("sums", f"{LONG}  ./x.qcow2\n".encode(), "x.qcow2") == Digest(
        "sha512", LONG
    )
    assert parse_checksums("bsd", BSD, "disk.qcow2") == Digest("sha256", A)
    assert parse_checksums(
        "bsd", BSD + f"SHA512 (disk.qcow2) = {LONG}\n".encode(), "disk.qcow2"
    ) == Digest("sha512", LONG)
    assert parse_checksums("single", LONG.upper().encode(), "x") == Digest("sha512", LONG)
    assert parse_checksums("single", f"{LONG}  x\n".encode(), "x") == Digest("sha512", LONG)


@pytest.mark.parametrize(
    ("kind", "content", "name", "sentence"),
    [
        ("sums", SUMS, "disk", "does not name disk"),
        ("sums", SUMS, "absent.img", "does not name absent.img"),
        ("sums", SUMS + f"{B} *disk-amd64.img\n".encode(), "disk-amd64.img", "twice"),
        ("sums", b"<html>404</html>", "x", "not understood"),
        ("sums", SUMS + b"abc  x\n", "disk-amd64.img", "not understood"),
        ("sums", f"{'a' * 65}  x\n".encode(), "x", "hexadecimal|not accepted"),
        ("sums", b"\xff\xfe\x00", "x", "not text"),
        ("sums", b"#\n" * 20_000, "x", "longer than any"),
        ("sums", b"#" * 5000, "x", "longer than any"),
        ("sums", b"", "x", "does not name"),
        ("bsd", SUMS, "disk-amd64.img", "not understood"),
        ("bsd", f"MD5 (x) = {A}\n".encode(), "x", "not understood"),
        ("bsd", f"SHA512 (x) = {A}\n".encode(), "x", "128 hexadecimal"),
        ("single", f"{LONG}  y\n".encode(), "x", "about another file"),
        ("single", f"{LONG}\n{LONG}\n".encode(), "x", "not one line"),
        ("single", b"", "x", "not one line"),
    ],
)
def test_anything_else_in_a_checksum_file_is_refused(
    kind: Kind, content: bytes, name: str, sentence: str
) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_checksums(kind, content, name)


def test_clearsigned_text_is_unwrapped_strictly() -> None:
    signed = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# x\n- -dash\n"
    signed += b"-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    assert clear_text(signed) == b"# x\n-dash\n"
    assert clear_text(SUMS) == SUMS
    for bad in (
        signed.replace(b"\n\n", b"\n"),
        signed.split(b"-----BEGIN PGP SIGNATURE")[0],
        signed.replace(b"Hash: SHA256", b"x y"),
    ):
        with pytest.raises(Invalid):
            clear_text(bad)


def test_digests_are_parsed_by_prefix_or_length(tmp_path: Path) -> None:
    assert Digest.parse(f"sha256:{A}") == Digest.parse(A.upper()) == Digest("sha256", A)
    assert Digest.parse(LONG).algorithm == "sha512"
    for bad in (
        "",
        "md5:" + "a" * 32,
        "sha256:" + LONG,
        "a" * 63,
        "sha256:" + "g" * 64,
        "sha256:" + A + "\n1",
    ):
        with pytest.raises(Invalid):
            Digest.parse(bad)
    file = tmp_path / "f"
    file.write_bytes(b"abc" * 1_000_000)
    with file.open("rb") as handle:
        hashes = hash_file(handle.fileno(), ["sha512"])
    assert Digest("sha256", hashes["sha256"]).matches(hashes) and not Digest("sha256", A).matches(
        hashes
    )
    assert not Digest("sha512", LONG).matches({"sha256": A})


@settings(max_examples=200, deadline=500)
@given(
    st.sampled_from(["sums", "bsd", "single"]),
    st.one_of(st.binary(max_size=400), st.text(max_size=400).map(str.encode)),
)
def test_fuzz_checksum_files(kind: Kind, content: bytes) -> None:
    for text in (content, SUMS + content, BSD + content):
        try:
            assert parse_checksums(kind, text, "disk.qcow2").value
        except Invalid as error:
            assert error.sentence
    try:
        clear_text(b"-----BEGIN PGP SIGNED MESSAGE-----\n" + content)
    except Invalid as error:
        assert error.sentence
