"""User data as cloud-init takes it: told apart by how it begins, looked through part by part, and
refused with the reason where that can't go well.

What kinds there are and how they are told: cloud-init's user_data.py and handlers/__init__.py. The
user's own words are passed on as they are, but for what only carries them: base64 around all of it,
and a byte order mark.

A #cloud-config is gone through event by event, and given up at the first that is too much, before
anything is made of it: no text that a user may send holds up the daemon.
"""

from __future__ import annotations

import base64
import binascii
import email
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from virtuary.base.errors import Invalid
from virtuary.base.jsontext import find_excess
from virtuary.base.units import KIB, format_size

KINDS = {
    "#include": "include",
    "#!": "script",
    "#cloud-config": "cloud-config",
    "#part-handler": "part-handler",
    "#cloud-boothook": "boothook",
    "#cloud-config-archive": "archive",
    "#cloud-config-jsonp": "jsonp",
    "## template: jinja": "jinja",
}
"""How a part begins, in any case and behind white space."""
TYPES = {
    "text/x-include-url": "include",
    "text/x-include-once-url": "include",
    "text/x-shellscript": "script",
    "text/x-shellscript-per-boot": "script",
    "text/x-shellscript-per-instance": "script",
    "text/x-shellscript-per-once": "script",
    "text/cloud-config": "cloud-config",
    "text/part-handler": "part-handler",
    "text/cloud-boothook": "boothook",
    "text/cloud-config-archive": "archive",
    "text/cloud-config-jsonp": "jsonp",
    "text/jinja2": "jinja",
}
UNTOLD = ("text/plain", "text/x-not-multipart", "text/x-shellscript")
"""Types that say less than how the part begins."""
LONGEST = 256 * KIB
"""Bytes of user data."""
UNPACKED_CAP = 1024 * 1024
"""Bytes that compressed user data may unpack to."""
BOUNDARIES_CAP = 16
"""Multiparts in a MIME message."""
DEPTH_CAP = 64
EVENTS_CAP = 8192
"""Parts of a #cloud-config: each word, and the beginning and end of each list and mapping."""
DIRECTIVES_CAP = 64
"""Lines that may be directives, each of which libyaml compares with all others."""
NUMBERS_CAP = 4096
"""Characters of all numbers that do not fit into 64 bits: to make them, and to keep them apart as
keys, takes their number squared.
"""
_NUMBER = re.compile(r"[-+0-9_.:]{19,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_LOGIN = re.compile(
    r"PermitRootLogin|AllowUsers|DenyUsers|AllowGroups|DenyGroups|AuthorizedKeysFile|PubkeyAuthentication|authorized_keys\b(?<!ssh_authorized_keys)"
    r"|(stop|disable|mask|remove|purge)\b.*\b(sshd?|openssh-server|dropbear)\b|^\s*users\s*:|ListenAddress|^\s*-?\s*Port\s+\d|\b(ufw|nft|iptables)\b"
)


class Part(NamedTuple):
    kind: str
    """One of KINDS' values; empty for one that only a part handler may know."""
    text: str
    name: str
    """What it is called in errors."""


def normalise(text: str) -> bytes:
    """What cloud-init is to be given: without a byte order mark, and without base64 around all of
    it. Pure.
    """
    text = text.removeprefix("\ufeff")
    if _BASE64.fullmatch(text):
        try:
            inner = base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error:
            return text.encode()
        if (
            inner.startswith(b"\x1f\x8b")
            or _is_mime(inner)
            or _kind_of(inner.decode("utf-8", "replace"))
        ):
            return inner
    raw = text.encode()
    # by the other header alone cloud-init would not take it for the message it is
    return (
        b"MIME-Version: 1.0\n" + raw
        if text[:13].lower() == "content-type:" and not _is_mime(raw)
        else raw
    )


def check_user_data(text: str) -> str:
    """User data that cloud-init will take, as it is; raises Invalid with the reason, for a
    #cloud-config that is not valid YAML with the line.
    """
    if len(text.encode()) > LONGEST:
        raise Invalid(
            f"user data of {len(text.encode())} bytes: {format_size(LONGEST)} are the most",
            "have it fetch what is longer",
        )
    found = [part for part in parts(normalise(text)) if not _check(part, 0)]
    if not found and not any(part.kind for part in parts(normalise(text))):
        raise Invalid(
            "no part of the user data is of a kind that cloud-init knows", "see cloud-init's manual"
        )
    return text


def parts(raw: bytes) -> Iterator[Part]:
    """What user data is made of. Raises Invalid where that can't be told."""
    if raw.startswith(b"\x1f\x8b"):
        raw = _unpacked(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Invalid(
            f"the user data is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}",
            "convert it: iconv -t utf-8",
        ) from error
    if _is_mime(raw):
        yield from _mime(text)
        return
    kind = _kind_of(text)
    if not kind:
        raise Invalid(
            "user data must begin with '#cloud-config', '#!' or another header cloud-init knows",
            "'# cloud-config' with a space is none; see cloud-init's manual"
            if text.lstrip().startswith("# ")
            else "see cloud-init's manual",
        )
    yield Part(kind, text, "the user data")


def _is_mime(raw: bytes) -> bool:
    return b"mime-version:" in raw[:4096].lower()


def _kind_of(text: str) -> str:
    begin = text[:4096].lstrip().lower()
    return next(
        (KINDS[start] for start in sorted(KINDS, key=len, reverse=True) if begin.startswith(start)),
        "",
    )


def _unpacked(raw: bytes) -> bytes:
    unpacking = zlib.decompressobj(wbits=31)
    try:
        text = unpacking.decompress(raw, UNPACKED_CAP)
    except zlib.error as error:
        raise Invalid(f"the user data begins as gzip does, and is damaged: {error}") from error
    if unpacking.unconsumed_tail:
        raise Invalid(f"the user data unpacks to more than {UNPACKED_CAP} bytes")
    if not unpacking.eof:
        raise Invalid("the user data begins as gzip does, and was cut: it ends before its end")
    return text


def _mime(text: str) -> Iterator[Part]:
    if text.lower().count("boundary") > BOUNDARIES_CAP:
        raise Invalid("the user data is a MIME message with too many multiparts")
    try:
        message = email.message_from_string(text)
        leaves = [part for part in message.walk() if part.get_content_maintype() != "multipart"]
        for number, part in enumerate(leaves, 1):
            payload = part.get_payload(decode=True)
            inner = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
            told = part.get_content_type()
            kind = (_kind_of(inner) if told in UNTOLD else "") or TYPES.get(told, "")
            yield Part(kind, inner, f"part {number} of the user data")
    except (ValueError, LookupError, RecursionError, TypeError) as error:
        raise Invalid(f"the user data is no MIME message that can be read: {error}") from error


def _check(part: Part, depth: int) -> bool:
    """Raise Invalid for a part that can't go well; whether there is something cloud-init does
    nothing with.
    """
    if part.kind == "cloud-config":
        body = _load(part)
        if body is not None and not isinstance(body, dict):
            raise Invalid(
                f"{part.name} is a #cloud-config, which must be a mapping of keys to values"
            )
    elif part.kind == "archive":
        _check_archive(part, depth)
    elif part.kind == "jsonp":
        _check_patch(part)
    elif part.kind == "script" and part.text.lstrip().partition("\n")[0].endswith("\r"):
        raise Invalid(
            f"the first line of {part.name}, a script, ends with a carriage return: no "
            "interpreter has such a name",
            "convert it: dos2unix FILE",
        )
    return not part.kind


def _load(part: Part) -> Any:
    try:
        _check_extent(part.text)
        return _loader()(part.text).get_single_data()
    except Exception as error:
        # besides YAMLError whatever a broken date, number or tag makes of it
        why = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise Invalid(f"{part.name} is not valid YAML: {why[:300]}") from error


def mappings(text: str) -> Iterator[dict[Any, Any]]:
    """Each #cloud-config of user data that `check_user_data` accepts, also those in an archive."""
    for part in parts(normalise(text)):
        if part.kind == "cloud-config" and isinstance(body := _load(part), dict):
            yield body
        elif part.kind == "archive":
            for entry in _entries(part):
                if entry.kind == "cloud-config" and isinstance(body := _load(entry), dict):
                    yield body


def _check_archive(part: Part, depth: int) -> None:
    if depth:
        raise _no_archive(part)
    for entry in _entries(part):
        _check(entry, depth + 1)


def _no_archive(part: Part) -> Invalid:
    return Invalid(f"{part.name} is a #cloud-config-archive, which must be a list of parts")


def _entries(part: Part) -> Iterator[Part]:
    """What an archive is made of. Raises Invalid where that can't be told."""
    body = _load(part)
    if body is not None and not isinstance(body, list):
        raise _no_archive(part)
    for number, entry in enumerate(body or (), 1):
        name = f"part {number} of the archive"
        entry = {"content": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("content", ""), str | bytes):
            raise Invalid(f"{name} must be a text, or a mapping with its content")
        content = entry.get("content", "")
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        told = entry.get("type")
        kind = (
            TYPES.get(str(told), "")
            if told
            else _kind_of(text) or ("" if isinstance(content, bytes) else "cloud-config")
        )
        yield Part(kind, text, name)


def _check_patch(part: Part) -> None:
    text = part.text.lstrip()
    if text.lower().startswith("#cloud-config-jsonp"):
        text = text[len("#cloud-config-jsonp") :]
    try:
        if excess := find_excess(text.encode()):
            raise ValueError(f"it holds {excess}")
        steps = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{part.name} is not valid JSON: {error}") from error
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and {"op", "path"} <= set(step) for step in steps
    ):
        raise Invalid(
            f"{part.name} is a #cloud-config-jsonp, which must be a list of steps with op and path"
        )


def _loader() -> Any:
    """Loaded with the first user data: the daemon starts without."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_extent(text: str) -> None:
    """Raise ValueError for YAML that would take long to make something of; in time that goes by
    what is accepted.
    """
    import yaml

    if text.count("\n%") > DIRECTIVES_CAP:
        raise ValueError("it has too many directives")
    depth = numbers = 0
    for count, event in enumerate(yaml.parse(text, Loader=_loader())):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if isinstance(event, yaml.ScalarEvent) and _NUMBER.fullmatch(event.value):
            numbers += len(event.value)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}: write out what that stands for")
        if depth > DEPTH_CAP or count > EVENTS_CAP or numbers > NUMBERS_CAP:
            raise ValueError(
                f"it has more than {DEPTH_CAP} levels, {EVENTS_CAP} parts or {NUMBERS_CAP} "
                "characters of long numbers"
            )


def _readable(text: str) -> list[Part]:
    try:
        return list(parts(normalise(text)))
    except Invalid:
        return []


def has_host_keys(text: str) -> bool:
    """Whether the user data may bring host keys of its own, which then are the server's. Pure."""
    return any("ssh_keys" in part.text for part in _readable(text))


def login_lines(text: str) -> list[str]:
    """Lines of the user data that may have taken away the login by which shell and cp come in:
    `line 4: PermitRootLogin no`. Pure.
    """
    found = []
    for part in _readable(text):
        where = "" if part.name == "the user data" else f"{part.name}, "
        for number, line in enumerate(part.text.splitlines(), 1):
            if _LOGIN.search(line):
                found.append(f"{where}line {number}: {line.strip()[:120]}")
    return found[:10]
