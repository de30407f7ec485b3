"""Fetching against a real server on this machine: resume, cuts, lies, redirects, addresses (SF1),
signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import http.server
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import (
    Busy,
    Failed,
    Invalid,
    NoRoom,
    NotFound,
    PeerAway,
    Refused,
    VirtuaryError,
)
from virtuary.images import catalogue
from virtuary.images import fetch as module
from virtuary.images.addresses import Url, parse_url
from virtuary.images.checksums import Digest
from virtuary.images.fetch import (
    Fetched,
    Patience,
    fetch,
    fetch_small,
    pull,
    resolve,
    verify_signature,
)
from virtuary.images.partial import drop_abandoned, open_partial
from virtuary.images.remote import BOUNDS, LONGEST, NAMING, TRUSTING, Remote
from virtuary.images.signatures import dearmored
from virtuary.jail.tool import Surroundings, run
from virtuary.storage.directory import free_space, reserving

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DIGEST = Digest("sha256", SHA256)
QUICK = Patience(connect=2, silence=1, slowest=100_000, window=0.5)


class Server:
    """A threaded HTTP server. `files` are served with Range support; `acts` replace the answer to
    one path.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {"/disk": CONTENT}
        self.acts: dict[str, Callable[[Any], None]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.etag = '"v1"'
        self.cut: int | None = None  # bytes of a body after which the connection is cut, once
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.http.server_port}"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                server.seen.append(
                    (self.path, {key.lower(): value for key, value in self.headers.items()})
                )
                with contextlib.suppress(OSError):
                    server.acts.get(self.path, server._serve)(self)

        return Handler

    def _serve(self, handler: Any) -> None:
        content = self.files.get(handler.path)
        if content is None:
            return answer(handler, 404, b"remote-secret")
        asked = re.match(r"bytes=(\d+)-$", handler.headers.get("Range", ""))
        begin = int(asked[1]) if asked and handler.headers.get("If-Range") == self.etag else 0
        if begin >= len(content):
            return answer(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
        more = {"ETag": self.etag}
        if begin:
            more["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut, self.cut = self.cut, None
        return answer(handler, 206 if begin else 200, content[begin:], more, cut)


def answer(
    handler: Any,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    cut: int | None = None,
) -> None:
    handler.send_response(status)
    for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        handler.send_header(key, value)
    handler.end_headers()
    handler.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        handler.wfile.flush()
        handler.close_connection = True


def redirect(location: str) -> Callable[[Any], None]:
    return lambda handler: answer(handler, 302, b"", {"Location": location, "Set-Cookie": "a=b"})


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def silent(text: str, fraction: float | None) -> None: ...


async def get(url: str, target: Path, **more: Any) -> Fetched:
    wanted: dict[str, Any] = {
        "digest": DIGEST,
        "max_size": 10**8,
        "report": silent,
        "allow_private": True,
    }
    return await fetch(url, target, **(wanted | more))


async def test_a_file_arrives_whole_read_only_and_alone(server: Server, tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    target = tmp_path / "image"
    result = await get(server.url + "/disk", target, report=lambda *words: said.append(words))
    assert result == Fetched(SHA256, len(CONTENT), server.url + "/disk")
    assert target.read_bytes() == CONTENT and stat.S_IMODE(target.stat().st_mode) == 0o400
    assert os.listdir(tmp_path) == ["image"]
    fractions = [fraction for text, fraction in said if text.startswith("fetching")]
    assert fractions[-1] == 1.0 and fractions == sorted(fractions)
    _, headers = server.seen[0]
    assert (
        headers["host"] == server.url.removeprefix("http://")
        and "cookie" not in headers
        and "authorization" not in headers
    )


async def test_an_interrupted_fetch_is_continued(server: Server, tmp_path: Path) -> None:
    target, server.cut = tmp_path / "image", 1_000_000
    with pytest.raises(PeerAway) as caught:
        await get(server.url + "/disk", target)
    assert "continues" in (caught.value.hint or "") and caught.value.retry
    kept = (tmp_path / "image.partial").stat().st_size
    assert 0 < kept <= 1_000_000 and not target.exists()
    await get(server.url + "/disk", target)
    assert (
        server.seen[1][1]["range"] == f"bytes={kept}-" and server.seen[1][1]["if-range"] == '"v1"'
    )
    assert target.read_bytes() == CONTENT and os.listdir(tmp_path) == ["image"]


async def test_a_file_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.cut = 1_000_000
    with pytest.raises(PeerAway):
        await get(server.url + "/disk", tmp_path / "image")
    server.etag, server.files["/disk"] = '"v2"', CONTENT[::-1]
    result = await get(server.url + "/disk", tmp_path / "image", digest=None)
    assert result.sha256 == hashlib.sha256(CONTENT[::-1]).hexdigest()


async def test_a_part_of_another_url_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.cut, server.files["/other"] = 1_000_000, CONTENT
    with pytest.raises(PeerAway):
        await get(server.url + "/other", tmp_path / "image")
    await get(server.url + "/disk", tmp_path / "image")
    assert "range" not in server.seen[1][1]


async def test_a_part_that_was_whole_already_is_only_checked(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "image.partial").write_bytes(CONTENT)
    (tmp_path / "image.partial").chmod(0o400)  # the end came between chmod and rename
    (tmp_path / "image.partial.json").write_text(
        json.dumps({"url": server.url + "/disk", "validator": '"v1"'})
    )
    await get(server.url + "/disk", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "note", ["", "[]", "{", '{"url": 1}', '{"url": "URL", "validator": 7}', '{"url": "URL"}']
)
async def test_a_note_that_is_not_understood_means_a_fresh_start(
    server: Server, tmp_path: Path, note: str
) -> None:
    (tmp_path / "image.partial").write_bytes(b"rubbish")
    (tmp_path / "image.partial.json").write_text(note.replace("URL", server.url + "/disk"))
    await get(server.url + "/disk", tmp_path / "image")
    assert "range" not in server.seen[0][1]


async def test_a_server_that_answers_with_another_part_is_not_believed(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "image.partial").write_bytes(CONTENT[:1000])
    (tmp_path / "image.partial.json").write_text(
        json.dumps({"url": server.url + "/disk", "validator": '"v1"'})
    )
    server.acts["/disk"] = lambda handler: answer(
        handler, 206, b"xx", {"Content-Range": "bytes 5-6/7"}
    )
    with pytest.raises(PeerAway, match="can't continue"):
        await get(server.url + "/disk", tmp_path / "image")
    assert os.listdir(tmp_path) == []


async def test_a_wrong_digest_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/disk"] = CONTENT + b"!"
    for digest in (DIGEST, Digest("sha512", hashlib.sha512(CONTENT).hexdigest())):
        with pytest.raises(Invalid, match="not the one wanted"):
            await get(server.url + "/disk", tmp_path / "image", digest=digest)
        assert os.listdir(tmp_path) == []


async def test_a_target_that_is_there_is_replaced_only_by_the_right_file(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(b"old")
    server.files["/wrong"] = b"wrong"
    with pytest.raises(Invalid):
        await get(server.url + "/wrong", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == b"old"
    await get(server.url + "/disk", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == CONTENT


async def test_im7_too_large_is_refused_by_announcement_and_by_count(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="larger than the 1000 B"):
        await get(server.url + "/disk", tmp_path / "image", max_size=1000)

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    server.acts["/endless"] = endless
    with pytest.raises(Invalid, match="larger than"):
        await get(server.url + "/endless", tmp_path / "image", max_size=3_000_000)
    with pytest.raises(Invalid, match="larger than"):
        await fetch_small(server.url + "/endless", allow_private=True)
    assert os.listdir(tmp_path) == []


async def test_a_server_that_announces_more_than_it_sends_is_network_loss(
    server: Server, tmp_path: Path
) -> None:
    server.acts["/lie"] = lambda handler: answer(
        handler, 200, CONTENT, {"Content-Length": "9000000"}, cut=len(CONTENT)
    )
    with pytest.raises(PeerAway):
        await get(server.url + "/lie", tmp_path / "image")
    assert not (tmp_path / "image").exists()


async def test_a_server_that_announces_less_than_the_file_fails_the_digest(
    server: Server, tmp_path: Path
) -> None:
    server.acts["/lie"] = lambda handler: answer(
        handler, 200, CONTENT, {"Content-Length": "1000", "Connection": "close"}
    )
    with pytest.raises((Invalid, PeerAway)):
        await get(server.url + "/lie", tmp_path / "image")
    assert not (tmp_path / "image").exists()


async def test_a_compressed_answer_nobody_asked_for_is_refused(
    server: Server, tmp_path: Path
) -> None:
    server.acts["/gz"] = lambda handler: answer(
        handler, 200, b"\x1f\x8b", {"Content-Encoding": "gzip"}
    )
    with pytest.raises(Failed, match="encoding"):
        await get(server.url + "/gz", tmp_path / "image")


@pytest.mark.slow
async def test_silence_and_dripping_are_ended(server: Server, tmp_path: Path) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    def sleep(handler: Any) -> None:
        time.sleep(3)

    server.acts |= {"/drip": drip, "/sleep": sleep}
    begin = time.monotonic()
    with pytest.raises(PeerAway, match="a second"):
        await get(server.url + "/drip", tmp_path / "image", patience=QUICK)
    with pytest.raises(PeerAway):
        await get(server.url + "/sleep", tmp_path / "image", patience=QUICK)
    assert time.monotonic() - begin < 4


async def test_nobody_listening_is_peer_away(tmp_path: Path) -> None:
    with pytest.raises(PeerAway, match="can't be reached"):
        await get("http://127.0.0.1:1/disk", tmp_path / "image")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, NotFound),
        (403, Refused),
        (500, PeerAway),
        (503, PeerAway),
        (418, Failed),
        (204, Failed),
        (304, Failed),
    ],
)
async def test_each_status_is_an_error_that_does_not_echo_the_server(
    server: Server, tmp_path: Path, status: int, kind: type[VirtuaryError]
) -> None:
    body = b"" if status in (204, 304) else b"remote-secret"
    server.acts["/x"] = lambda handler: answer(handler, status, body, {"X-Note": "remote-secret"})
    with pytest.raises(kind) as caught:
        await get(server.url + "/x", tmp_path / "image")
    assert "remote-secret" not in json.dumps(caught.value.problem())


@pytest.mark.slow
async def test_redirects_are_followed_five_times_and_carry_nothing_along(
    server: Server, tmp_path: Path
) -> None:
    for number in range(6):
        server.acts[f"/{number}"] = redirect(f"/{number - 1}" if number else "/disk")
    result = await get(server.url + "/4", tmp_path / "image")
    assert result.source == server.url + "/disk" and len(server.seen) == 6
    assert not any("cookie" in headers for _, headers in server.seen)


@pytest.mark.parametrize(
    "onward",
    ["http://10.0.0.1/x", "http://169.254.169.254/latest/", "http://[::1]:1/x", "http://0.0.0.0/x"],
)
async def test_sf1_a_redirect_to_a_private_address_is_refused_before_a_byte_is_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: str
) -> None:
    server.acts["/x"] = redirect(onward)

    # this server stands for a public one
    async def first_public(url: Url, *more: Any) -> list[str]:
        return ["127.0.0.1"] if str(url).startswith(server.url) else await resolve(url, *more)

    monkeypatch.setattr(module, "resolve", first_public)
    with pytest.raises(Refused):
        await get(server.url + "/x", tmp_path / "image", allow_private=False)


@pytest.mark.parametrize(
    "onward", ["file:///etc/passwd", "ftp://x/", "//", "http://u:p@127.0.0.1/", "gopher://x"]
)
async def test_sf1_redirects_to_other_schemes_are_refused(
    server: Server, tmp_path: Path, onward: str
) -> None:
    server.acts["/x"] = redirect(onward)
    with pytest.raises(Invalid):
        await get(server.url + "/x", tmp_path / "image")


SF1_PRIVATE = [
    "http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f000001/",
    "http://0177.0.0.1/", "http://127.1/",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.1.1/", "http://169.254.169.254/", "http://100.64.0.1/", "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://[::127.0.0.1]/",
    "http://0.0.0.0/", "http://[::]/",
    "http://224.0.0.1/", "http://[ff02::1]/", "http://255.255.255.255/", "http://0/",
    "http://192.0.2.1/",
]  # fmt: skip


@pytest.mark.parametrize("url", SF1_PRIVATE)
async def test_sf1_private_addresses_in_every_notation_are_refused(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises((Refused, Invalid)):
        await get(url, tmp_path / "image", allow_private=False)


async def test_sf1_the_name_is_resolved_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def rebinding(url: Url, *_: Any) -> list[str]:
        asked.append(url.host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    monkeypatch.setattr(module, "resolve", rebinding)
    port = server.http.server_port
    await get(f"http://images.test:{port}/disk", tmp_path / "image")
    assert asked == ["images.test"] and server.seen[0][1]["host"] == f"images.test:{port}"


async def test_sf1_the_clusters_own_networks_are_refused_even_where_private_ones_are_allowed(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="belongs to this cluster"):
        await get(
            server.url + "/disk", tmp_path / "image", deny=[ipaddress.ip_network("127.0.0.0/8")]
        )
    assert server.seen == []


async def test_two_fetches_of_one_target_do_not_meet(server: Server, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "image.partial", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Busy):
        await get(server.url + "/disk", tmp_path / "image")
    os.close(descriptor)


async def test_a_link_in_place_of_the_partial_file_is_not_followed(
    server: Server, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"canary")
    (tmp_path / "image.partial").symlink_to(canary)
    with pytest.raises(OSError):
        await get(server.url + "/disk", tmp_path / "image")
    assert canary.read_bytes() == b"canary"


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        f"/CN={name}",
        "-addext",
        f"subjectAltName=DNS:{name}",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
async def test_https_goes_to_the_checked_address_with_the_name_in_sni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path, "images.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server, plain = Server(context), Server()
    port = server.http.server_port

    async def here(*_: Any) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(module, "resolve", here)
    trust = certificate.read_text()
    await get(f"https://images.test:{port}/disk", tmp_path / "image", trust=trust)
    assert names == ["images.test"] and server.seen[0][1]["host"] == f"images.test:{port}"
    with pytest.raises(Refused, match="could not prove"):
        await get(f"https://other.test:{port}/disk", tmp_path / "image", trust=trust)
    with pytest.raises(Refused, match="could not prove"):
        await get(f"https://images.test:{port}/disk", tmp_path / "image")
    server.acts["/down"] = redirect(plain.url + "/disk")
    # the digest makes up for it
    await get(f"https://images.test:{port}/down", tmp_path / "image", trust=trust)
    with pytest.raises(Refused, match="from https to http"):
        await get(f"https://images.test:{port}/down", tmp_path / "image", trust=trust, digest=None)
    with pytest.raises(Refused, match="from https to http"):
        await fetch_small(f"https://images.test:{port}/down", trust=trust)
    for one in (server, plain):
        one.http.shutdown()
        one.http.server_close()


class Signer:
    """A throw-away OpenPGP key."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)
        self.gpg(
            "--passphrase",
            "",
            "--quick-gen-key",
            "Test <test@example.invalid>",
            "ed25519",
            "sign",
            "never",
        )
        listing = self.gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = next(
            line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:")
        )

    def gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--yes",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            *arguments,
        ]
        return subprocess.run(command, input=stdin, check=True, capture_output=True).stdout

    def keyring(self, path: Path, armored: bool = False) -> Path:
        path.write_bytes(self.gpg(*(["--armor"] if armored else []), "--export"))
        return path

    def close(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"],
            check=False,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signer, Signer]]:
    if not (shutil.which("gpg") and shutil.which("gpgv")):
        pytest.skip("gpg or gpgv is not installed")
    folder = tmp_path_factory.mktemp("gpg")
    pair = (Signer(folder / "a"), Signer(folder / "b"))
    yield pair
    for signer in pair:
        signer.close()


@pytest.mark.slow
async def test_detached_signatures_are_checked(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    ours, other = signers
    data = b"some sums\n"
    good, foreign = (signer.gpg("--detach-sign", stdin=data) for signer in signers)
    for armored in (False, True):
        keyring = ours.keyring(tmp_path / "keys", armored)
        assert await verify_signature(data, good, keyring, ours.fingerprint) == data
    assert (
        await verify_signature(data, ours.gpg("--armor", "--detach-sign", stdin=data), keyring)
        == data
    )
    with pytest.raises(Invalid, match="is bad"):
        await verify_signature(data + b"!", good, keyring)
    with pytest.raises(Invalid, match="not signed by a key"):
        await verify_signature(data, foreign, keyring)
    with pytest.raises(Invalid, match="another key"):
        await verify_signature(data, good, keyring, other.fingerprint)
    for rubbish in (b"", b"rubbish", data):
        with pytest.raises(Invalid):
            await verify_signature(data, rubbish, keyring)


async def test_a_signed_message_is_no_signature_of_other_data(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    """A document with its own text inside must not pass for a detached signature over data chosen
    by somebody else.
    """
    ours, _ = signers
    keyring = ours.keyring(tmp_path / "keys")
    for message in (
        ours.gpg("--sign", stdin=b"true sums\n"),
        ours.gpg("--clearsign", stdin=b"true sums\n"),
    ):
        with pytest.raises(Invalid):
            await verify_signature(b"evil sums\n", message, keyring, ours.fingerprint)


async def test_clearsigned_text_comes_back_as_it_was_signed(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    ours, other = signers
    keyring = ours.keyring(tmp_path / "keys")
    document = ours.gpg("--clearsign", stdin=b"# a comment\n-dash\nSHA256 (x) = y\n")
    assert (
        await verify_signature(document, None, keyring, ours.fingerprint)
        == b"# a comment\n-dash\nSHA256 (x) = y\n"
    )
    with pytest.raises(Invalid):
        await verify_signature(document.replace(b"= y", b"= z"), None, keyring)
    with pytest.raises(Invalid):
        await verify_signature(other.gpg("--clearsign", stdin=b"x\n"), None, keyring)
    with_more = b"evil\n" + document + b"evil\n"
    with contextlib.suppress(Invalid):
        assert b"evil" not in await verify_signature(with_more, None, keyring)


def test_an_armored_keyring_is_read_with_all_its_blocks(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    binary = [signer.gpg("--export") for signer in signers]
    armored = b"comment\n".join(signer.gpg("--armor", "--export") for signer in signers)
    assert dearmored(armored) == b"".join(binary) and dearmored(binary[0]) == binary[0]
    with pytest.raises(Invalid, match="damaged"):
        dearmored(armored.replace(b"\n=", b"\n!!=", 1))


def publish(server: Server, entry: catalogue.Entry, sums: bytes, folder: int = 0) -> dict[str, str]:
    """Serve the entry's image and checksum file where its publisher has them; returns the mirror
    table.
    """
    host = entry.folders[folder].split("/")[2]
    path = entry.folders[folder].removeprefix(f"https://{host}")
    server.files |= {path + entry.image: CONTENT, path + entry.checksums: sums}
    return {host: server.url}


async def test_an_image_of_the_catalogue_is_pulled_by_its_checksum(
    server: Server, tmp_path: Path
) -> None:
    entry = catalogue.find("debian")
    mirrors = publish(
        server, entry, f"{hashlib.sha512(CONTENT).hexdigest()}  {entry.image}\n".encode()
    )
    pulled = await pull(
        entry, tmp_path / "image", report=silent, mirrors=mirrors, allow_private=True
    )
    assert (
        pulled.vouched == "https"
        and pulled.fetched.sha256 == SHA256
        and pulled.digest.algorithm == "sha512"
    )
    server.files[next(path for path in server.files if path.endswith(entry.image))] = b"other"
    with pytest.raises(Invalid, match="not the one wanted"):
        await pull(entry, tmp_path / "second", report=silent, mirrors=mirrors, allow_private=True)
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize("name", ["alpine", "rocky:9", "almalinux", "ubuntu:22.04", "fedora:42"])
async def test_every_kind_of_checksum_file_serves_a_pull(
    server: Server, tmp_path: Path, name: str
) -> None:
    entry = catalogue.find(name, "arm64")
    sums = {
        "single": hashlib.sha512(CONTENT).hexdigest(),
        "bsd": f"# {entry.image}: 1 bytes\nSHA256 ({entry.image}) = {SHA256}\n",
        "sums": f"{SHA256} *{entry.image}\n",
    }[entry.checksum_kind]
    mirrors = publish(server, entry, sums.encode())
    pulled = await pull(
        entry, tmp_path / "image", report=silent, mirrors=mirrors, keyrings=[], allow_private=True
    )
    assert pulled.fetched.sha256 == SHA256 and pulled.vouched == "https"


async def test_a_release_that_moved_to_the_archive_is_found_there(
    server: Server, tmp_path: Path
) -> None:
    entry = catalogue.find("fedora:41")
    mirrors = publish(server, entry, f"SHA256 ({entry.image}) = {SHA256}\n".encode(), folder=1)
    pulled = await pull(
        entry, tmp_path / "image", report=silent, mirrors=mirrors, keyrings=[], allow_private=True
    )
    assert "/archive/" in pulled.fetched.source
    server.files.clear()
    with pytest.raises(NotFound, match="no longer has it"):
        await pull(
            entry,
            tmp_path / "image",
            report=silent,
            mirrors=mirrors,
            keyrings=[],
            allow_private=True,
        )


@pytest.mark.slow
async def test_where_a_keyring_is_found_the_signature_must_be_there_and_right(
    server: Server, tmp_path: Path, signers: tuple[Signer, Signer], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = signers
    keyrings = tmp_path / "keyrings"
    keyrings.mkdir()
    target = tmp_path / "image"
    wanted: dict[str, Any] = {"report": silent, "keyrings": [keyrings], "allow_private": True}

    async def pull_signed(
        name: str,
        sums: Callable[[catalogue.Entry], bytes],
        signature: Callable[[bytes], bytes] | None,
    ) -> str:
        found = catalogue.find(name)
        assert found.signature
        mine = found.signature.__class__(
            found.signature.kind, found.signature.file, ours.fingerprint, ("test.gpg",)
        )
        entry = found.__class__(**{**found.__dict__, "signature": mine})
        content = sums(entry)
        mirrors = publish(server, entry, content)
        if signature:
            path = next(
                path for path in server.files if path.endswith(entry.checksums)
            ).removesuffix(entry.checksums)
            server.files[path + mine.file] = signature(content)
        return (await pull(entry, target, mirrors=mirrors, **wanted)).vouched

    def detach(signer: Signer) -> Callable[[bytes], bytes]:
        return lambda content: signer.gpg("--detach-sign", stdin=content)

    def sums(entry: catalogue.Entry) -> bytes:
        return f"{SHA256} *{entry.image}\n".encode()

    def clear(entry: catalogue.Entry) -> bytes:
        return ours.gpg("--clearsign", stdin=f"SHA256 ({entry.image}) = {SHA256}\n".encode())

    assert await pull_signed("ubuntu", sums, None) == "https"  # no keyring yet
    ours.keyring(keyrings / "test.gpg")
    with pytest.raises(NotFound):
        await pull_signed("ubuntu", sums, None)
    assert await pull_signed("ubuntu", sums, detach(ours)) == "signature"
    assert await pull_signed("fedora", clear, None) == "signature"
    with pytest.raises(Invalid):
        await pull_signed("ubuntu", sums, detach(other))
    with pytest.raises(Invalid):
        await pull_signed(
            "fedora", lambda entry: clear(entry).replace(SHA256.encode(), b"0" * 64), None
        )


async def test_what_a_server_announces_is_reserved_before_its_first_byte(
    server: Server, tmp_path: Path
) -> None:
    with (
        reserving(tmp_path, free_space(tmp_path) - 1_000_000, "others"),
        pytest.raises(NoRoom, match="are missing"),
    ):
        await get(server.url + "/disk", tmp_path / "image")
    assert os.listdir(tmp_path) == []
    await get(server.url + "/disk", tmp_path / "image")


def test_what_nobody_goes_on_with_is_removed_after_a_while(tmp_path: Path) -> None:
    for name in ("old", "new", "held"):
        (tmp_path / f"{name}.partial").write_bytes(b"x")
        (tmp_path / f"{name}.partial.json").write_bytes(b"{}")
    for name in ("old", "held"):
        os.utime(tmp_path / f"{name}.partial", (1, 1))
    (tmp_path / "link.partial").symlink_to(tmp_path / "new.partial")
    (tmp_path / "whole").write_bytes(b"x")
    os.utime(tmp_path / "whole", (1, 1))
    with open_partial(tmp_path / "held"):
        drop_abandoned(tmp_path, time.time() - 86400)
    assert {path.name for path in tmp_path.iterdir()} == {
        "new.partial", "new.partial.json", "held.partial", "held.partial.json", "link.partial",
        "whole",
    }  # fmt: skip


HOSTILE = {
    "a line without an end": b"x" * 200_000,
    "no line": b"",
    "no object": b"[1]\n",
    "deep": b"[" * 60_000 + b"\n",
    "a status that is none": b'{"status": "200", "headers": {}}\n',
    "headers that are none": b'{"status": 200, "headers": [1]}\n',
    "another kind of error": b'{"error": {"a": 1}}\n',
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_fetcher_that_was_taken_over_is_not_believed(case: str) -> None:
    class Over:
        async def wait(self) -> int:
            return -9

    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
    theirs.setblocking(True)
    threading.Thread(
        target=lambda: (theirs.recv(4096), theirs.sendall(HOSTILE[case]), theirs.close()),
        daemon=True,
    ).start()
    remote = Remote(reader, writer, Over())  # type: ignore[arg-type]
    with pytest.raises((Failed, PeerAway)):
        await remote.get(parse_url("http://h/"), {}, silence=1, trust="")
    writer.close()


@pytest.mark.parametrize("around", [TRUSTING, NAMING], ids=["reads", "looks names up"])
async def test_what_speaks_to_others_reaches_nothing_of_the_host(around: Surroundings) -> None:
    """Programs in the jail: no files of the host, no sockets of its services, a user of their own,
    no connections.
    """
    code = (
        "import os, socket, sys\n"
        "for path in ('/etc/passwd', '/etc/shadow', '/run', '/proc/self/status', '/root'):\n"
        "    try: os.stat(path); print('saw', path)\n"
        "    except OSError: pass\n"
        "try: socket.socket(socket.AF_UNIX); print('unix')\n"
        "except OSError: pass\n"
        "try: socket.socket(); print('connections')\n"
        "except OSError: pass\n"
        "try: socket.socket(type=socket.SOCK_DGRAM); print('datagrams', file=sys.stderr)\n"
        "except OSError: pass\n"
        "print(os.getuid())"
    )
    done = await run([os.path.realpath(sys.executable), "-I", "-S", "-c", code], BOUNDS, 20, around)
    assert (
        done.stderr == (b"datagrams\n" if around is NAMING else b"")
        and done.stdout.decode().split()[:-1] == []
    )
    assert int(done.stdout) >= 2_000_061_000 or os.getuid() != 0
