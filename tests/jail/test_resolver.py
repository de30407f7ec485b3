"""The host's resolvers as programs in a jail see them: whatever becomes of the host's file, the
copy follows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virtuary.base import resolv
from virtuary.jail import tool
from virtuary.jail.resolver import RESOLVER, Resolver
from virtuary.jail.walls import Bounds

ONE, TWO = "nameserver 192.0.2.53\n", "nameserver 2001:db8::53\n"
ODD = (
    "# by hand\nnameserver 198.51.100.1,\nnameserver\nnameserver 198.51.100.2 # the "
    "other\noptions ndots:1\nnameserver fe80::1%eth0\n\x00\xff\nnonsense 1\n"
)


def test_lines_that_mean_nothing_are_passed_over() -> None:
    assert resolv.nameservers(ODD) == ["198.51.100.2", "fe80::1%eth0"]
    assert resolv.sift(ODD) == "options ndots:1\nnameserver 198.51.100.2\nnameserver fe80::1%eth0\n"


def renamed(host: Path) -> None:
    host.with_name("new").write_text(TWO)
    host.with_name("new").replace(host)


def led_elsewhere(host: Path) -> None:
    (host.parent / "made").mkdir()
    (host.parent / "made" / "stub").write_text(TWO)
    host.unlink()
    host.symlink_to("made/stub")


CHANGES: dict[str, Callable[[Path], object]] = {
    "written anew": lambda host: host.write_text(TWO),
    "renewed by renaming": renamed,
    "a link elsewhere": led_elsewhere,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_renewed_is_followed(tmp_path: Path, change: str) -> None:
    host = tmp_path / "resolv.conf"
    host.write_text(ONE)
    resolver = Resolver(host)
    resolver.begin(tmp_path / "ours")
    assert resolver.file.read_text() == ONE and not resolver.follow()
    CHANGES[change](host)
    assert resolver.follow() and resolver.file.read_text() == TWO
    host.unlink()
    assert resolver.follow() and resolver.file.read_text() == "", (
        "who is asked no more is forgotten"
    )


@pytest.mark.parametrize("dangling", [False, True])
def test_a_file_that_is_not_there_yet_is_found_later(tmp_path: Path, dangling: bool) -> None:
    host = tmp_path / "resolv.conf"
    if dangling:
        host.symlink_to("later/stub")
    resolver = Resolver(host)
    resolver.begin(tmp_path / "ours")
    assert resolver.file.read_text() == ""
    host.unlink(missing_ok=True)
    host.write_text(ONE)
    assert resolver.follow() and resolver.file.read_text() == ONE


@pytest.fixture
def copied(short: Path) -> Iterator[Path]:
    """The copy that jails show."""
    before = RESOLVER.folder
    RESOLVER.begin(short / "resolvers")
    yield RESOLVER.file
    RESOLVER.folder = before


@pytest.mark.qemu
async def test_a_program_in_a_jail_sees_the_newest(copied: Path) -> None:
    """It was started while the one before was there."""
    renamed(copied)
    show = 'while read -r line; do echo "$line"; done </etc/resolv.conf'
    script = (
        f'{show}; while read -r line </etc/resolv.conf && [ "${{line%::53}}" != "$line" ]; '
        f"do :; done; {show}"
    )
    running = asyncio.create_task(
        tool.run(["sh", "-c", script], Bounds(cpu=20), 20, tool.Surroundings(reach="internet"))
    )
    await asyncio.sleep(0.5)
    copied.with_name("new").write_text(ONE)
    copied.with_name("new").replace(copied)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            done = await running
            assert done.stdout.decode() == TWO + ONE, done
            return
    pytest.fail("it sees the old one")
