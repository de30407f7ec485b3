"""What the daemon does to its own process."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
from virtuary.daemon import _open_many
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
_open_many()
_open_many()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_daemon_may_open_as_many_files_as_hundreds_of_servers_need() -> None:
    said = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=True
    ).stdout.split()
    assert int(said[0]) == min(int(said[1]), 65_536)
