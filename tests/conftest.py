"""What the whole suite shares: folders, golden files, prepared images, and who may run what.

`host` tests need root and `qemu` tests need QEMU; where that is missing they are skipped with the
reason. Doubles live in `fakes.py` and are real implementations. Property tests are derandomised:
two runs do the same.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from virtuary.base.paths import Paths, find_paths

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE / "live"),
    # test folders are no packages; they share netlab.py, liar.py, freestanding.py, instances.py and
    # lans.py
]

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="rewrite tests/golden from what the code does now",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_root = pytest.mark.skip(reason="needs root")
    no_qemu = pytest.mark.skip(reason="QEMU is not installed")
    for item in items:
        if item.get_closest_marker("host") and os.getuid() != 0:
            item.add_marker(no_root)
        if item.get_closest_marker("qemu") and not shutil.which("qemu-system-x86_64"):
            item.add_marker(no_qemu)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Holds a text against tests/golden/NAME; with --rewrite-golden it becomes the file, and the
    diff is the review.
    """

    def check(name: str, text: str) -> None:
        place = HERE / "golden" / name
        if request.config.getoption("--rewrite-golden"):
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")
        assert place.exists(), f"{name} is not there yet: run pytest with --rewrite-golden"
        assert text == place.read_text(encoding="utf-8"), (
            f"{name} differs: if that is meant, run pytest with --rewrite-golden"
        )

    return check


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path holds 107 bytes. Passable, so that other
    users may be let in.
    """
    folder = Path(tempfile.mkdtemp(prefix="vt-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def paths(short: Path) -> Paths:
    """All of Virtuary's places below one folder, made."""
    found = find_paths({"VIRTUARY_ROOT": str(short)})
    found.ensure()
    return found


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """The folder of an instance that has made the tiny image."""
    from instances import prepared

    with prepared("tiny") as folder:
        yield folder


@pytest.fixture(scope="session")
def warm_tiny(template: Path) -> Iterator[Path]:
    """The folder of an instance whose tiny image is warm."""
    from instances import prepared

    with prepared("warm-tiny", template, warm=True) as folder:
        yield folder
