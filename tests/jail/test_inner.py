"""A tool that reads files of many owners: it can read those that it is given, and do nothing
else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtuary.images.build_tree import BOUNDS, namespace
from virtuary.jail.inner import inner

pytestmark = pytest.mark.host
ACTS = """
import os, socket
def tried(name, act):
    try:
        act()
        print(name)
    except OSError:
        pass
tried("read", lambda: open("TREE/private").read())
tried("write", lambda: open("IMAGE", "r+b").write(b"made"))
tried("outside", lambda: open("CANARY").read())
tried("passwd", lambda: open("/etc/passwd").read())
tried("overwrite", lambda: open("TREE/private", "w"))
tried("new", lambda: open("TREE/new", "w"))
tried("chown", lambda: os.chown("IMAGE", 5, 5))
tried("unlink", lambda: os.unlink("TREE/private"))
tried("socket", lambda: socket.socket())
tried("fork", os.fork)
tried("mount", lambda: os.unshare(0x20000) if hasattr(os, "unshare") else os.open("/proc/1/root/etc/passwd", 0))
tried("kill", lambda: os.kill(-1, 9))
"""


def test_it_reads_what_is_anybodys_writes_its_image_and_does_nothing_else(tmp_path: Path) -> None:
    tree, image, canary = tmp_path / "tree", tmp_path / "image", tmp_path / "canary"
    tree.mkdir(mode=0o700)
    for path in (tree / "private", canary, image):
        path.write_text("secret")
        path.chmod(0o600)
    for path in (tree, tree / "private"):
        os.chown(path, 1234, 1234)
    script = (
        ACTS.replace("TREE", str(tree)).replace("IMAGE", str(image)).replace("CANARY", str(canary))
    )
    program = os.path.realpath(sys.executable)
    words = inner((program, "-I", "-S", "-c", script), BOUNDS, readable=[tree], writable=[image])
    done = subprocess.run(
        [*namespace("--net", "--ipc", "--uts"), *words], capture_output=True, text=True
    )
    assert done.stdout.split() == ["read", "write"], done
    assert image.read_text() == "madeet" and (tree / "private").read_text() == "secret"
