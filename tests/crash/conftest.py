"""The crash harness: a prepared image shared by all runs, and two runs at a time, because each mostly waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))  # instances.py
sys.path.insert(0, str(Path(__file__).parent))

from instances import Instance, make_template


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """The folder of an instance that has made the tiny image."""
    instance = Instance()
    try:
        yield make_template(instance)
    finally:
        instance.remove()


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found
        found.shutdown(wait=True, cancel_futures=True)
