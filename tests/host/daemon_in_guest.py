"""Run inside a guest by systemd: what a daemon does with control groups, once with a machine that
outlives it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, "/tmp/virtuary-test")
from virtuary.host import cgroups

if why := cgroups.prepare():
    sys.exit(why)
note = Path("/tmp/virtuary-test/machine")
if not note.exists():
    groups, gap = cgroups.ensure_group("machine")
    machine = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (groups[0] / "cgroup.procs").write_text(str(machine.pid))
    note.write_text(str(machine.pid))
subprocess.run(["systemd-notify", "--ready"], check=True)
time.sleep(600)
