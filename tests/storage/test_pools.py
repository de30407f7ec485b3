"""A directory that is a pool is known by its mark, and what is not mounted is not taken for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virtuary.base.errors import Invalid, PeerAway
from virtuary.storage import pools


def test_only_what_is_marked_is_the_pool(tmp_path: Path) -> None:
    place = tmp_path / "fast"
    place.mkdir()
    (place / "lost+found").mkdir()
    pools.mark(place, "pool-1")
    pools.check_there(place, "pool-1", "fast")
    with pytest.raises(PeerAway, match="does not hold it"):
        pools.check_there(place, "pool-2", "other")
    (place / pools.MARK).unlink()  # what an unmounted directory looks like
    with pytest.raises(PeerAway, match="the pool fast is not there"):
        pools.check_there(place, "pool-1", "fast")
    pools.mark(place, "pool-1")
    pools.unmark(place, "pool-2")
    pools.check_there(place, "pool-1", "fast")
    pools.unmark(place, "pool-1")
    pools.unmark(place, "pool-1")


@pytest.mark.parametrize(
    ("path", "why"),
    [("relative", "not absolute"), ("/nowhere/at/all", "not there"), ("/etc/passwd", "no directory"),
     ("/etc", "not empty")],
)  # fmt: skip
def test_what_can_t_be_a_pool_is_told(path: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        pools.mark(Path(path), "pool-1")


def test_a_pool_is_not_made_twice(tmp_path: Path) -> None:
    pools.mark(tmp_path, "pool-1")
    with pytest.raises(Invalid, match="a pool already"):
        pools.mark(tmp_path, "pool-2")


def test_the_file_system_of_a_path_is_known() -> None:
    assert pools.kind_of(Path("/proc/self")) == "proc" and pools.kind_of(Path("/")) != ""


@pytest.mark.host
@pytest.mark.parametrize("name", ["größe", "two words", "a\\b"])
def test_the_file_system_of_a_path_is_known_by_any_name(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    look = "import sys; from pathlib import Path; from virtuary.storage import pools\n"
    look += "print(pools.kind_of(Path(sys.argv[1])))"
    script = 'mount -t proc none "$1" && exec "$2" -c "$3" "$1"'
    told = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", str(place), sys.executable, look],
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.strip() == "proc", told.stderr
