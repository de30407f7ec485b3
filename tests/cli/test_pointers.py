"""On the command line an error names what the user typed, and no field of a request."""

from __future__ import annotations

from typing import Any

import click
import pytest

from virtuary.base.errors import Invalid
from virtuary.cli.main import group
from virtuary.cli.pointers import in_users_words, option_of, options_of
from virtuary.model.cpu import CpuChange, CpuWish
from virtuary.model.disk import DiskIo, DiskWish
from virtuary.model.firewall import FirewallChange
from virtuary.model.login import LoginWish
from virtuary.model.memory import MemoryChange, MemoryWish
from virtuary.model.meta import Model
from virtuary.model.network import NetworkChange, NetworkWish
from virtuary.model.policy import Policy, PolicyChange
from virtuary.model.vm import VmChange, VmWish


def told(words: str, *findings: tuple[str, str], dotted: bool = False) -> str:
    """The sentence that a command ends with when the API found this wrong with its request."""
    errors = [{"pointer": f"/{place}", "detail": detail} for place, detail in findings]
    places = [place.replace("/", ".") if dotted else place for place, _ in findings]
    sentence = "; ".join(
        f"{place}: {detail}" for place, (_, detail) in zip(places, findings, strict=True)
    )
    typed = words.split()
    return in_users_words(Invalid(sentence, errors=errors), options_of(group, typed), typed)


SAID: dict[str, tuple[str, str, str]] = {
    "the value that was typed": ("launch tiny -p 99999:80", "publish/0/host",
    "--publish 99999:80: is wrong"),
    "the one of several": ("launch tiny -p 80:80 --publish=99999:80", "publish/1/host",
    "--publish 99999:80: is wrong"),
    "by an option of another name": ("launch tiny --network a,mac=x", "nics/0/mac",
    "--network a,mac=x: is wrong"),
    "a part of a part": ("launch tiny --cpu-limit 5%", "cpu/limit", "--cpu-limit 5%: is wrong"),
    "in a group of commands": ("image build foo", "source/recipe", "--from: is wrong"),
    "of a rule": ("firewall create x --rule a", "rules/0/ports/1", "--rule a: is wrong"),
    "of an argument": ("image pull x", "source/entry", "IMAGE: is wrong"),
    "of nothing that was typed": ("launch tiny", "odd_thing", "odd thing: is wrong"),
}  # fmt: skip


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("case", SAID)
def test_an_error_names(case: str, dotted: bool) -> None:
    words, place, sentence = SAID[case]
    assert told(words, (place, "is wrong"), dotted=dotted) == sentence


def test_each_of_several_findings_is_named() -> None:
    findings = (("memory", "must be at least 16 MiB"), ("cpus", "must be at most 256"))
    assert told("launch tiny --memory 1MiB --cpus 900", *findings) == (
        "--memory 1MiB: must be at least 16 MiB; --cpus 900: must be at most 256"
    )


FILLED: dict[str, tuple[str, type[Model]]] = {
    "a launch": ("launch", VmWish),
    "a change": ("set", VmChange),
    "the processors of a launch": ("launch", CpuWish),
    "the memory of a launch": ("launch", MemoryWish),
    "the disk of a launch": ("launch", DiskWish),
    "the traffic of its disk": ("launch", DiskIo),
    "the policy of a launch": ("launch", Policy),
    "who may log in": ("launch", LoginWish),
    "the processors of a change": ("set", CpuChange),
    "the memory of a change": ("set", MemoryChange),
    "the policy of a change": ("set", PolicyChange),
    "a new network": ("network create", NetworkWish),
    "a network's change": ("network set", NetworkChange),
    "a group's change": ("firewall set", FirewallChange),
}
PLACES: dict[type[Model], str] = {
    CpuWish: "cpu/", CpuChange: "cpu/", MemoryWish: "memory/", MemoryChange: "memory/",
    DiskWish: "disks/0/", DiskIo: "disks/0/io/", Policy: "policy/", PolicyChange: "policy/",
    LoginWish: "login/",
}  # fmt: skip
NOT_OPTIONS = {"name", "image", "power", "cpu", "memory", "disks", "io", "policy", "login"}


@pytest.mark.parametrize("case", FILLED)
def test_every_field_that_an_option_fills_is_told_by_that_option(case: str) -> None:
    words, model = FILLED[case]
    options: list[click.Option] = options_of(group, words.split())
    known: Any = {name for option in options for name in option.opts}
    lost = [
        field
        for field in model.model_fields
        if field not in NOT_OPTIONS
        and not option_of(PLACES.get(model, "") + field, known).startswith("--")
    ]
    assert not lost
