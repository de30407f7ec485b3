"""VLANs of a physical interface, with real frames, where the kernel has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = ("unshare", "-n", "-m", "sh", "-ec")
KNOWS = """
ip link add v0 type veth peer name v1
ip link add link v0 name v2 type vlan id 7
ip link add v3 type bridge vlan_filtering 1
"""


@pytest.mark.host
def test_a_server_is_in_its_vlan_and_in_those_of_its_trunk_and_in_no_other() -> None:
    if subprocess.run([*INSIDE, KNOWS], capture_output=True, check=False).returncode:
        pytest.skip("this kernel knows no VLANs, or none on bridges")
    script = (
        f"mount -t sysfs sysfs /sys; exec {sys.executable} "
        f"{Path(__file__).with_name('vlan_story.py')}"
    )
    done = subprocess.run(
        [*INSIDE, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "vlan 7": {"in": ["for 7"], "out": [7]}, "left behind": [],
        "trunk": {"in": ["for 10 tagged", "for 21 tagged"], "out": [0]},
    }  # fmt: skip
