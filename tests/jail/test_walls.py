"""Bounds of jailed programs, as the kernel is told them."""

from __future__ import annotations

import resource
import struct

import pytest

from virtuary.jail.syscalls import AUDIT, REFUSED, Grants, program
from virtuary.jail.walls import Bounds, Capabilities, choose_jail

ROOT = choose_jail(Capabilities(True, True, 6), 4711)
USER = choose_jail(Capabilities(False, True, 6), 1000)
FSIZE = resource.RLIMIT_FSIZE
NO_GRANTS = Grants()


def test_a_bound_that_need_not_grow_is_hard_for_everybody() -> None:
    for jail in (ROOT, USER):
        for raised in (True, False):
            assert Bounds(file_size=7).file_limit(7, jail, raised) == {FSIZE: (7, 7)}


def test_a_bound_that_may_have_to_grow_is_as_hard_as_it_can_be_raised_again() -> None:
    growing = Bounds(file_size=7, growing=True)
    assert growing.file_limit(7, ROOT, True) == {FSIZE: (7, 7)}
    assert growing.file_limit(7, ROOT, False) == {}
    assert growing.file_limit(7, USER, True) == {FSIZE: (7, resource.RLIM_INFINITY)}


def test_what_is_not_bounded_is_left_as_it_is() -> None:
    assert set(Bounds().order(ROOT)) == {resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE}
    everything = Bounds(file_size=1, memory=2, cpu=3, processes=4, files=5).order(ROOT)
    assert everything[resource.RLIMIT_AS] == (2, 2) and everything[resource.RLIMIT_CPU] == (3, 3)


@pytest.mark.parametrize("machine", AUDIT)
def test_a_filter_refuses_what_its_table_names_on_each_architecture(machine: str) -> None:
    """The instructions, run here as the kernel would."""
    column = list(AUDIT).index(machine)
    for name, numbers in REFUSED.items():
        if (number := numbers[column]) is not None:
            assert verdict(machine, number) >> 16 == 5, f"{name} passes"
    # read, write, poll, futex and the like
    for number in (0, 1, 2, 3, 7, 202) if machine == "x86_64" else (57, 63, 64, 98, 222):
        assert verdict(machine, number) == 0x7FFF0000
    assert verdict(machine, 451) >> 16 == 5 and verdict(machine, 0x40000001) >> 16 == 5
    assert verdict(machine, 0, architecture=0x40000003) == 0x80000000


def test_only_who_was_granted_page_faults_may_ask_for_them() -> None:
    ioctl = 16
    assert verdict("x86_64", ioctl, (5, 0xAA00)) >> 16 == 5
    assert verdict("x86_64", ioctl, (5, 0xAA00), grants=Grants(userfaults=True)) == 0x7FFF0000
    assert verdict("x86_64", ioctl, (5, 0xAE80)) == 0x7FFF0000, "a virtual CPU runs"


def test_what_is_granted_beyond_the_ordinary_is_told() -> None:
    host = Capabilities(True, True, 6)
    assert choose_jail(host, 4711).gaps == () and choose_jail(host, 4711).grants == NO_GRANTS
    granted = choose_jail(host, 4711, userfaults=True)
    assert granted.grants.userfaults and granted.gaps == (
        "it handles page faults of its own memory (/dev/userfaultfd)",
    )


def test_an_unknown_architecture_has_no_filter() -> None:
    assert program(machine="sparc64") == b""


def verdict(
    machine: str, number: int, arguments: tuple[int, ...] = (), *, architecture: int | None = None,
    grants: Grants = NO_GRANTS
) -> int:  # fmt: skip
    words = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack(
        "<IIQ6Q", number, AUDIT[machine] if architecture is None else architecture, 0, *words
    )
    steps = list(struct.iter_unpack("=HBBI", program(grants, machine)))
    place = held = 0
    while True:
        code, hit, miss, value = steps[place]
        place += 1
        if code == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            held &= value
        elif code == 0x06:
            return value
        else:
            true = {
                0x15: held == value,
                0x25: held > value,
                0x35: held >= value,
                0x45: bool(held & value),
            }[code]
            place += hit if true else miss
