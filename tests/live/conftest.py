"""Live tests boot real guests: one prepared image for the session, a daemon for each module, the leak audit at its end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; instances.py is shared

from instances import Instance, make_template


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_qemu = pytest.mark.skip(reason="QEMU is not installed")
    for item in items:
        if item.get_closest_marker("live") and not shutil.which("qemu-system-x86_64"):
            item.add_marker(no_qemu)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """The folder of an instance that has made the tiny image."""
    instance = Instance()
    try:
        yield make_template(instance)
    finally:
        instance.remove()


@pytest.fixture(scope="session")
def warm_tiny() -> Iterator[Path]:
    """The folder of an instance whose tiny image is warm."""
    instance = Instance()
    try:
        yield make_template(instance, warm=True)
    finally:
        instance.remove()


@pytest.fixture(scope="session")
def warm_debian() -> Iterator[Path]:
    """The folder of an instance with a warm Debian: a real server then costs a test seconds."""
    instance = Instance()
    try:
        yield make_template(instance, "debian:12", warm=True)
    finally:
        instance.remove()


@pytest.fixture(scope="module")
def debian(warm_debian: Path) -> Iterator[Instance]:
    """A daemon with a warm Debian."""
    yield from serve(warm_debian)


def serve(template: Path) -> Iterator[Instance]:
    """An instance with the tiny image; at its end it is emptied and audited."""
    instance = Instance(template=template)
    try:
        instance.start()
        before = instance.descriptors()
        yield instance
        if instance.process and instance.process.poll() is not None:
            instance.start()
        instance.wipe()
        instance.audit(before)
        instance.stop()
        instance.audit()
    finally:
        keep = os.environ.get("VIRTUARY_TEST_KEEP")
        if keep:
            shutil.copy(instance.log, keep)
        instance.remove()


@pytest.fixture(scope="module")
def instance(template: Path) -> Iterator[Instance]:
    """The daemon most tests of a module share; each cleans up after itself or leaves it to the end."""
    yield from serve(template)


@pytest.fixture
def own_instance(template: Path) -> Iterator[Instance]:
    """A daemon of the test's own, to be killed and restarted at will."""
    yield from serve(template)
