"""Live tests boot real guests: a daemon for each module, the leak audit at its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, prepared, serve
from lans import SPEAK, Place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_qemu = pytest.mark.skip(reason="QEMU is not installed")
    for item in items:
        if item.get_closest_marker("live") and not shutil.which("qemu-system-x86_64"):
            item.add_marker(no_qemu)


@pytest.fixture(scope="session")
def warm_debian() -> Iterator[Path]:
    """The folder of an instance with a warm Debian: a real server then costs a test seconds."""
    with prepared("debian", image="debian:12", warm=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def debian(warm_debian: Path) -> Iterator[Instance]:
    """A daemon with a warm Debian."""
    yield from serve(warm_debian)


@pytest.fixture(scope="module")
def instance(template: Path) -> Iterator[Instance]:
    """The daemon most tests of a module share; each cleans up after itself or leaves it to the
    end.
    """
    yield from serve(template)


@pytest.fixture
def own_instance(template: Path) -> Iterator[Instance]:
    """A daemon of the test's own, to be killed and restarted at will."""
    yield from serve(template)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    found = Place()
    try:
        found.make()
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def lan(warm_tiny: Path, place: Place) -> Iterator[Instance]:
    """A daemon in the host's namespace."""
    yield from serve(warm_tiny, namespace=place.host)


@pytest.fixture(scope="module")
def one(lan: Instance) -> Iterator[str]:
    """A server on the default network that says its name on port 7, and publishes that."""
    lan.ok(
        "launch",
        "tiny",
        "one",
        "-p",
        "0.0.0.0:8007:7",
        "-p",
        "127.0.0.1:8008:7",
        "-p",
        "[::]:8007:7",
    )
    lan.in_guest("one", SPEAK.format(name="one"))
    yield "one"
    lan.ok("delete", "one", "--now", "--force", "--yes")


@pytest.fixture(scope="module")
def two(lan: Instance) -> Iterator[str]:
    lan.ok("launch", "tiny", "two")
    lan.in_guest("two", SPEAK.format(name="two"))
    yield "two"
    lan.ok("delete", "two", "--now", "--force", "--yes")
