"""Images from the network: to a checked address, resumable, hashed whole, published at once.

The other side is spoken to by programs in the jail (remote.py); what is asked, which addresses are
connected to, and what of the answer is kept is decided here. Promises: only http and https; each
address, also behind each redirect, is checked before a byte is sent, and the connection goes to
that very address; nothing of the machine (proxy settings, passwords, cookies) is sent along; size,
silence and rate have limits. A file appears under its name complete, with the right digest, synced
and mode 0400, or not at all. What an interrupted fetch left behind (NAME.partial and
NAME.partial.json) is used by the next one if the server still has the same file. Error texts never
contain what the other side sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, Invalid, NotFound, PeerAway, Refused, VirtuaryError
from virtuary.base.files import publish, remove
from virtuary.base.units import MIB, format_size
from virtuary.images.addresses import Url, check_addresses, follow, literal, parse_url
from virtuary.images.catalogue import KEYRING_FOLDERS, Entry, find_keyring, mirrored
from virtuary.images.checksums import Digest, clear_text, hash_file, parse_checksums
from virtuary.images.header import Report
from virtuary.images.partial import AGAIN, Partial, open_partial
from virtuary.images.remote import Answer, Remote, connect, look_up, open_remote
from virtuary.images.signatures import verify_signature
from virtuary.images.special import Network
from virtuary.storage.directory import check_space, reserving

__all__ = [
    "Fetched",
    "Patience",
    "Pulled",
    "Rules",
    "fetch",
    "fetch_small",
    "pull",
    "verify_signature",
]

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
MAX_IMAGE = 64 * 1024 * MIB
BUFFER = 1 * MIB
_HEADERS = {"User-Agent": "virtuary", "Accept": "*/*", "Accept-Encoding": "identity"}
_RANGE = re.compile(r"^bytes (\d{1,18})-(\d{1,18})/(\d{1,18})$")

declare("image-fetched")


class Patience(NamedTuple):
    """How long and how little is put up with, in seconds and bytes a second."""

    connect: float = 15
    silence: float = 30
    slowest: float = 2048
    window: float = 60  # the rate is judged over this long


PATIENCE = Patience()


class Rules(NamedTuple):
    """Where a fetch may go."""

    allow_private: bool = False
    deny: Sequence[Network] = ()  # the cluster's own networks
    allow_downgrade: bool = False  # from https to http; harmless only when a digest is known
    trust: str = ""
    """Certificates to be trusted besides the host's, in PEM."""
    kept: int | None = None
    """Bytes of the pool that stay free; None: by rule."""


class Fetched(NamedTuple):
    sha256: str
    size: int
    source: str  # the URL it finally came from


@dataclass(frozen=True)
class Pulled:
    """An image of the catalogue and what vouches for it."""

    fetched: Fetched
    digest: Digest
    vouched: Literal["signature", "https"]


async def fetch(
    url: str,
    target: Path,
    *,
    digest: Digest | None,
    max_size: int,
    report: Report,
    allow_private: bool = False,
    deny: Sequence[Network] = (),
    patience: Patience = PATIENCE,
    trust: str = "",
    kept: int | None = None,
) -> Fetched:
    """Fetch `url` into `target`, which is replaced when it exists.

    Raises Invalid when the file is too large or has another digest (nothing is kept then), PeerAway
    when the network fails (what came so far is kept), Refused, NotFound, NoRoom, and Busy when the
    same target is being fetched. `report` hears a sentence and the fraction done, None where it is
    not known.
    """
    rules = Rules(allow_private, deny, digest is not None, trust, kept)
    with open_partial(target) as partial:
        try:
            source = await _download(parse_url(url), partial, max_size, report, rules, patience)
        except BaseException:
            if not partial.size and not partial.discarded:
                partial.discard()
            raise
        report("checking the file", None)
        hashes = await asyncio.to_thread(
            hash_file, partial.descriptor, [digest.algorithm] if digest else []
        )
        if digest is not None and not digest.matches(hashes):
            partial.discard()
            raise Invalid(
                f"the file fetched is not the one wanted: its {digest.algorithm} digest differs",
                "if the publisher has just renewed it, repeat; otherwise do not trust this source",
                wanted=digest.value,
                found=hashes[digest.algorithm],
            )
        crashpoint("image-fetched")
        publish(partial.path, target, 0o400)
        remove(partial.note)
        return Fetched(hashes["sha256"], partial.size, str(source))


async def fetch_small(
    url: str,
    max_size: int = MIB,
    *,
    allow_private: bool = False,
    deny: Sequence[Network] = (),
    patience: Patience = PATIENCE,
    trust: str = "",
) -> bytes:
    """The content of a small file; raises as `fetch` does. An https URL is never followed to
    http.
    """
    content = bytearray()
    async with _answer(parse_url(url), {}, Rules(allow_private, deny, False, trust), patience) as (
        _,
        answer,
        chunks,
    ):
        _check_status(answer, (200,))
        async for chunk in chunks:
            content += chunk
            if len(content) > max_size:
                raise Invalid(f"the file is larger than the {format_size(max_size)} expected of it")
    return bytes(content)


async def pull(
    entry: Entry,
    target: Path,
    *,
    report: Report,
    mirrors: Mapping[str, str] | None = None,
    keyrings: Iterable[Path] = KEYRING_FOLDERS,
    max_size: int = MAX_IMAGE,
    allow_private: bool = False,
    deny: Sequence[Network] = (),
    kept: int | None = None,
) -> Pulled:
    """Fetch an image of the catalogue: checksum file, its signature where a keyring is found, then
    the image.

    `mirrors` maps a publisher's host to the base URL of a mirror with the same layout. Where there
    is a keyring, a missing or wrong signature is an error, never a reason to go on without.
    """
    missing: NotFound | None = None
    for folder in entry.folders:
        base = mirrored(folder, mirrors or {})
        try:
            report(f"reading the checksums of {entry.title}", None)
            content = await fetch_small(
                base + entry.checksums, allow_private=allow_private, deny=deny
            )
        except NotFound as error:
            missing = error
            continue
        text, vouched = await _vouched(entry, base, content, keyrings, allow_private, deny)
        digest = parse_checksums(entry.checksum_kind, text, entry.image)
        fetched = await fetch(
            *(base + entry.image, target),
            digest=digest,
            max_size=max_size,
            report=report,
            allow_private=allow_private,
            deny=deny,
            kept=kept,
        )
        return Pulled(fetched, digest, vouched)
    raise NotFound(
        f"the publisher of {entry.title} no longer has it where it was",
        "fetch the image by its URL, or update Virtuary",
    ) from missing


async def _vouched(
    entry: Entry,
    base: str,
    content: bytes,
    keyrings: Iterable[Path],
    allow_private: bool,
    deny: Sequence[Network],
) -> tuple[bytes, Literal["signature", "https"]]:
    """The text of the checksum file and what vouches for it."""
    signature = entry.signature
    keyring = find_keyring(signature, keyrings) if signature else None
    if signature is None or keyring is None:
        return clear_text(content), "https"
    detached = None
    if signature.kind == "detached":
        detached = await fetch_small(base + signature.file, allow_private=allow_private, deny=deny)
    return await verify_signature(content, detached, keyring, signature.fingerprint), "signature"


async def _download(
    url: Url, partial: Partial, max_size: int, report: Report, rules: Rules, patience: Patience
) -> Url:
    """Bring the partial file to its end, from where it is if the server allows; returns where it
    came from.
    """
    validator = partial.validator(str(url))
    have = partial.size if validator else 0
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if validator else {}
    async with _answer(url, headers, rules, patience) as (source, answer, chunks):
        _check_status(answer, (200, 206, 416) if validator else (200,))
        if answer.status == 200:
            have = 0
            partial.restart(str(url), _validator(answer))
        total = _total(answer, have)
        complete = answer.status == 416 and total == have
        if not complete and (answer.status == 416 or (answer.status == 206 and total is None)):
            partial.discard()
            raise PeerAway(
                "the server can't continue the file that was begun",
                "repeat the command: it starts anew",
            )
        _check_size(total or have, max_size, partial)
        if not complete:
            with reserving(
                partial.path.parent, max((total or 0) - have, 0), "the file", rules.kept
            ):
                await _receive(chunks, partial, have, total, max_size, report)
        return source


async def _receive(
    chunks: AsyncIterator[bytes],
    partial: Partial,
    have: int,
    total: int | None,
    max_size: int,
    report: Report,
) -> None:
    """Append what comes; what was received is in the file also when this ends in an error."""
    buffer = bytearray()
    told = -1.0
    try:
        async for chunk in chunks:
            buffer += chunk
            have += len(chunk)
            _check_size(have, max_size, partial)
            if len(buffer) >= BUFFER:
                piece, buffer = bytes(buffer), bytearray()
                if total is None:  # nothing was announced, so nothing is reserved
                    check_space(partial.path.parent, BUFFER, "the file")
                await asyncio.to_thread(partial.append, piece)
            fraction = min(1.0, have / total) if total else None
            if fraction is None or fraction - told >= 0.01 or fraction == 1.0:
                told = fraction or told
                report(
                    f"fetching {format_size(total)}"
                    if total
                    else f"fetching, {format_size(have)} so far",
                    fraction,
                )
    finally:
        if buffer and not partial.discarded:
            partial.append(bytes(buffer))
    if total is not None and have != total:
        raise PeerAway(
            f"the connection ended after {format_size(have)} of {format_size(total)}", AGAIN
        )


def _check_size(size: int, most: int, partial: Partial) -> None:
    if size > most:
        partial.discard()
        raise Invalid(
            f"the file is larger than the {format_size(most)} allowed",
            "raise the limit if you trust the source",
        )


def _validator(answer: Answer) -> str | None:
    """What identifies this version of the file for If-Range: a strong ETag, else the date;
    printable and short, or None.
    """
    tag = answer.headers.get("etag", "")
    value = tag if tag and not tag.startswith("W/") else answer.headers.get("last-modified", "")
    return value if value and len(value) < 512 and value.isascii() and value.isprintable() else None


def _total(answer: Answer, have: int) -> int | None:
    """Size of the whole file as far as the answer tells; None when it does not, or when a part does
    not begin at `have`.
    """
    ranges = answer.headers.get("content-range", "")
    if answer.status == 416:
        found = re.fullmatch(r"bytes \*/(\d{1,18})", ranges)
        return int(found[1]) if found else None
    if answer.status == 206:
        part = _RANGE.match(ranges)
        return (
            int(part[3])
            if part and int(part[1]) == have and int(part[2]) + 1 == int(part[3])
            else None
        )
    length = answer.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None


@contextlib.asynccontextmanager
async def _answer(
    url: Url, headers: Mapping[str, str], rules: Rules, patience: Patience
) -> AsyncIterator[tuple[Url, Answer, AsyncIterator[bytes]]]:
    """The answer to a GET and its body, redirects followed; a fetcher of its own for each hop, so
    nothing is carried from host to host.
    """
    for _ in range(MAX_REDIRECTS + 1):
        addresses = await resolve(url, rules.allow_private, rules.deny, patience.connect)
        async with open_remote(await connect(url, addresses, patience.connect)) as remote:
            answer = await remote.get(
                url, {**_HEADERS, **headers}, silence=patience.silence, trust=rules.trust
            )
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                yield url, answer, _chunks(answer, remote, patience)
                return
            onward = follow(url, answer.headers["location"])
        if url.scheme == "https" and onward.scheme == "http" and not rules.allow_downgrade:
            raise Refused(
                f"{url.host} leads from https to http",
                "give a digest, or the URL of a server that stays with https",
            )
        url = onward
    raise Invalid(f"the URL was redirected more than {MAX_REDIRECTS} times")


async def resolve(
    url: Url, allow_private: bool = False, deny: Sequence[Network] = (), patience: float = 15
) -> list[str]:
    """Addresses of the URL's host, all of them checked; raises Refused if a single one is not
    allowed.
    """
    address = literal(url.host)
    found = [address] if address else await look_up(url.host, url.port, patience)
    check_addresses(url, found, allow_private, deny)
    return [str(address) for address in found]


async def _chunks(answer: Answer, remote: Remote, patience: Patience) -> AsyncIterator[bytes]:
    """What the server sends, as long as it is not encoded and comes fast enough."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise Failed("the server sent the file in an encoding that was not asked for")
    begin, got = time.monotonic(), 0
    async for chunk in remote.chunks(patience.silence):
        yield chunk
        got += len(chunk)
        passed = time.monotonic() - begin
        if passed >= patience.window:
            if got / passed < patience.slowest:
                raise PeerAway(
                    f"the server sends less than {format_size(int(patience.slowest))} a second",
                    AGAIN,
                )
            begin, got = time.monotonic(), 0


def _check_status(answer: Answer, wanted: Sequence[int]) -> None:
    """Raise the kind of error a status stands for; the server's own words are not repeated."""
    status = answer.status
    if status in wanted:
        return
    kind: type[VirtuaryError] = Failed
    if status in (404, 410):
        kind = NotFound
    elif status in (401, 403):
        kind = Refused
    elif status in (408, 425, 429) or status >= 500:
        kind = PeerAway
    raise kind(
        f"the server answered with status {status}",
        "check the URL" if kind is NotFound else None,
        status=status,
    )
