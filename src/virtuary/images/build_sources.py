"""Where packages come from: the host's own apt configuration, read once and turned into one-line
entries.

A Debian host tells its mirror, its security mirror and its keyring; anything else (another vendor's
archive, backports, disabled entries) is left out. A host that isn't Debian tells nothing, and
mmdebstrap's own default is used. Nothing here turns off the check of the archive's signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CODENAMES = {"12": "bookworm", "13": "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_URI = re.compile(r"^https?://[A-Za-z0-9.\-_~:/%@+\[\]]+$")
_OPTION = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Entry:
    """One mirror with one suite, as the host's configuration has it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None


def parse_list(text: str) -> Iterator[Entry]:
    """Entries of a one-line-style file (sources.list)."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line.startswith(("deb ", "deb\t")):
            continue
        options = _OPTION.search(line)
        words = _OPTION.sub(" ", line, count=1).split()[1:]
        if len(words) < 3:
            continue
        signed = None
        for option in options.group(1).split() if options else []:
            if option.lower().startswith("signed-by="):
                signed = option.partition("=")[2]
        yield Entry(words[0].rstrip("/"), words[1], tuple(words[2:]), signed)


def parse_deb822(text: str) -> Iterator[Entry]:
    """Entries of a deb822-style file (*.sources)."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = _fields(paragraph)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in (
            "no",
            "false",
        ):
            continue
        signed = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Entry(
                    uri.rstrip("/"), suite, components, signed if signed.startswith("/") else None
                )


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def read_host(etc: Path = Path("/etc")) -> list[Entry]:
    """Every entry of the host's apt configuration below `etc`; empty when there is none."""
    entries: list[Entry] = []
    folder = etc / "apt/sources.list.d"
    files = [etc / "apt/sources.list", *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    for path in files:
        parse = {".list": parse_list, ".sources": parse_deb822}.get(path.suffix)
        if parse and path.is_file():
            entries += parse(path.read_text(encoding="utf-8", errors="replace"))
    return entries


def is_debian(etc: Path = Path("/etc")) -> bool:
    """Whether the host itself is Debian (not one of its descendants, whose archives are their
    own).
    """
    try:
        text = (etc / "os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(line.strip().replace('"', "") == "ID=debian" for line in text.splitlines())


def choose_entries(entries: Iterable[Entry], release: str) -> list[Entry]:
    """Entries for the guest's release: main, then updates and security as far as the host shows a
    way to them.

    The host's own release doesn't matter: a mirror has all of them, so its codename is replaced.
    """
    codename = CODENAMES[release]
    usable = [entry for entry in entries if "main" in entry.components and _URI.match(entry.uri)]
    chosen: list[Entry] = []
    for ending in ("", "-updates", "-security"):
        pattern = re.compile(
            rf"^({'|'.join(CODENAMES.values())}|stable|oldstable){ending}(/updates)?$"
        )
        for entry in usable:
            if pattern.match(entry.suite):
                chosen.append(Entry(entry.uri, codename + ending, ("main",), entry.signed_by))
                break
    return chosen if chosen and chosen[0].suite == codename else []


def one_line(entry: Entry, keyring: str | None) -> str:
    """The entry as a line for apt inside the guest (without a keyring) or for the build (with
    one).
    """
    signed = f"[signed-by={keyring}] " if keyring else ""
    return f"deb {signed}{entry.uri} {entry.suite} {' '.join(entry.components)}"


def host_entries(release: str, etc: Path = Path("/etc")) -> list[Entry]:
    """What this host's configuration offers for `release`; empty means: use mmdebstrap's
    default.
    """
    return choose_entries(read_host(etc), release) if is_debian(etc) else []


def keyring_of(entries: list[Entry]) -> str | None:
    """The keyring to check the archive with: the host's Signed-By, else Debian's own; None when the
    host has neither.
    """
    for candidate in [*(entry.signed_by for entry in entries), KEYRING]:
        if candidate and Path(candidate).is_file():
            return candidate
    return None
