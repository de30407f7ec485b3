"""Keys of a #cloud-config that cloud-init passes over are told, with those that were perhaps meant."""

from __future__ import annotations

import pytest

from virtuary.guest.cloudkeys import KNOWN, MOST, passed_over

ARCHIVE = """#cloud-config-archive
- type: text/cloud-config
  content: |
    write_file: []
- "#!/bin/sh\\necho pakages: no"
- |
  runcmds: [ls]
"""
TOLD: dict[str, tuple[str, list[str]]] = {
    "nothing": ("#cloud-config\npackages: [vim]\nruncmd: [ls]\n", []),
    "an empty one": ("#cloud-config\n", []),
    "a misspelt key": (
        "#cloud-config\npakages: [vim]\n",
        ["cloud-init knows no key 'pakages', and passes over it: was packages meant?"],
    ),
    "one that is like none": (
        "#cloud-config\nzzz-9: 1\n", ["cloud-init knows no key 'zzz-9', and passes over it"],
    ),
    "in another case": (
        "#cloud-config\nRunCmd: [ls]\n",
        ["cloud-init knows no key 'RunCmd', and passes over it: was runcmd meant?"],
    ),
    "in an archive": (
        ARCHIVE,
        ["cloud-init knows no key 'write_file', and passes over it: was write_files meant?",
         "cloud-init knows no key 'runcmds', and passes over it: was runcmd meant?"],
    ),
    "in a script": ("#!/bin/sh\necho pakages: x\n", []),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_of_user_data_is_told(case: str) -> None:
    text, words = TOLD[case]
    assert passed_over(text) == words


def test_a_few_keys_are_told_of_many() -> None:
    assert len(passed_over("#cloud-config\n" + "".join(f"a{n}: 1\n" for n in range(99)))) == MOST


def test_what_is_known_is_what_people_write() -> None:
    assert {"users", "write_files", "ca_certs", "ssh_pwauth", "power_state"} <= KNOWN
