"""UEFI is found by the descriptors distributions install; the first that fits wins, a broken one is
passed over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import HostLacks
from virtuary.qemu.firmware import find_uefi
from virtuary.qemu.platforms.table import USUAL


def descriptor(folder: Path, name: str, **changes: Any) -> None:
    """A descriptor as edk2 packages have it, with its two files, changed at the named places."""
    folder.mkdir(exist_ok=True)
    code, variables = folder / f"{name}.code", folder / f"{name}.vars"
    code.touch()
    variables.touch()
    body: dict[str, Any] = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
    }
    mapping = changes.pop("mapping", {})
    (folder / f"{name}.json").write_text(
        json.dumps({**body, **changes, "mapping": {**body["mapping"], **mapping}})
    )


def found(*folders: Path) -> str:
    return (find_uefi(USUAL, folders=folders).code or Path()).stem


def test_the_first_in_order_of_names_wins(tmp_path: Path) -> None:
    for name in ("60-b", "50-a", "70-c"):
        descriptor(tmp_path, name)
    firmware = find_uefi(USUAL, folders=(tmp_path,))
    assert (firmware.kind, firmware.code, firmware.vars_template) == (
        "uefi",
        tmp_path / "50-a.code",
        tmp_path / "50-a.vars",
    )


def test_the_administrators_folder_masks_a_name(tmp_path: Path) -> None:
    descriptor(tmp_path / "usr", "50-a")
    descriptor(tmp_path / "usr", "60-b")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "50-a.json").write_text("")
    assert found(tmp_path / "etc", tmp_path / "usr") == "60-b"


UNFIT: dict[str, dict[str, Any]] = {
    "legacy bios": {"interface-types": ["bios"]},
    "another architecture": {"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]},
    "another machine": {"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]},
    "needs system management mode": {"features": ["requires-smm", "secure-boot"]},
    "has keys": {"features": ["enrolled-keys"]},
    "memory device": {"mapping": {"device": "memory"}},
    "qcow2": {"mapping": {"executable": {"filename": "/bin/sh", "format": "qcow2"}}},
    "file is gone": {"mapping": {"executable": {"filename": "/no/such/file", "format": "raw"}}},
    "no variables": {"mapping": {"nvram-template": None}},
    "features of a strange type": {"features": None},
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_passed_over(tmp_path: Path, case: str) -> None:
    descriptor(tmp_path, "10-unfit", **UNFIT[case])
    descriptor(tmp_path, "90-fit")
    assert found(tmp_path) == "90-fit"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\xff"])
def test_a_broken_descriptor_is_passed_over(tmp_path: Path, text: str) -> None:
    descriptor(tmp_path, "90-fit")
    (tmp_path / "10-broken.json").write_bytes(text.encode("latin-1"))
    assert found(tmp_path) == "90-fit"


def test_where_there_is_none_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostLacks) as caught:
        find_uefi(USUAL, folders=(tmp_path, tmp_path / "nowhere"))
    assert caught.value.hint == "apt install ovmf"
