"""The crash harness: two runs at a time, because each mostly waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # stories.py, forked.py

from forked import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the daemons of the runs are born."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="session")
def pool(nursery: Nursery) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found
        found.shutdown(wait=True, cancel_futures=True)
