"""What the API says of a field of its request, said of what the user typed: the option, with its
value where that can be told. On the command line nobody knows the names of fields. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import click

from virtuary.base.errors import VirtuaryError

OPTIONS = {
    "nics": "--network",
    "labels": "--label",
    "rules": "--rule",
    "login/ssh_keys": "--ssh-key",
    "cpu/count": "--cpus",
    "memory/size": "--memory",
    "memory/pages": "--huge-pages",
    "memory/merge": "--merge-pages",
    "disks": "--disk",
    "disks/size": "--disk",
    "disks/io/weight": "--disk-weight",
    "policy/restart": "--restart-policy",
    "cpu/pin": "--pin",
    "cpu/node": "--numa",
    "source/recipe": "--from",
    "source/release": "--from",
    "source/packages": "--package",
    "power": "--start",
}
"""Options that are called otherwise than the fields they fill, by the field's place."""
ARGUMENTS = {"size": "SIZE", "source/entry": "IMAGE", "source/url": "IMAGE"}


def option_of(pointer: str, known: Collection[str]) -> str:
    """The option that fills a field, of those `known`; else the field in plain words."""
    parts = [part for part in pointer.split("/") if part and not part.isdigit()]
    for length in range(len(parts), 0, -1):
        place = "/".join(parts[:length])
        named = OPTIONS.get(place, "")
        spelt = (named, f"--{'-'.join(parts[:length])}", f"--{parts[length - 1]}")
        for option in (text.replace("_", "-") for text in spelt):
            if option in known:
                return option
        if named or place in ARGUMENTS:
            return named or ARGUMENTS[place]
    return parts[-1].replace("_", " ") if parts else "the request"


def typed(names: Collection[str], words: Sequence[str]) -> list[str]:
    """The values that an option, by any of its names, was given on the command line."""
    found = []
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if word in names and at + 1 < len(words):
            found.append(words[at + 1])
        elif equals and name in names:
            found.append(value)
    return found


def words_for(pointer: str, options: Iterable[click.Option], words: Sequence[str]) -> str:
    """What a user knows the field by: `--publish 99999:80`."""
    named = {name: option for option in options for name in option.opts}
    option = option_of(pointer, named)
    values = typed(named[option].opts, words) if option in named else []
    number = next((int(part) for part in pointer.split("/") if part.isdigit()), 0)
    if len(values) == 1 or number < len(values):
        return f"{option} {values[0] if len(values) == 1 else values[number]}"
    return option


def in_users_words(
    error: VirtuaryError, options: Iterable[click.Option], words: Sequence[str]
) -> str:
    """The sentence of an error with each field in it as the user knows it."""
    sentence, known = error.sentence, list(options)
    findings: list[dict[str, Any]] = error.details.get("errors") or []
    for finding in findings:
        pointer, detail = finding["pointer"].strip("/"), finding["detail"]
        for where in (pointer, pointer.replace("/", ".")):
            if where:
                said = words_for(pointer, known, words)
                sentence = sentence.replace(f"{where}: {detail}", f"{said}: {detail}")
    return sentence


def options_of(group: click.Group, words: Sequence[str]) -> list[click.Option]:
    """The options of the command that these words call."""
    command: click.Command = group
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), word) or command
    return [option for option in command.params if isinstance(option, click.Option)]
