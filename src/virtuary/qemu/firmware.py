"""Firmware: SeaBIOS comes with QEMU; UEFI is found through the descriptor files that distributions
install.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from virtuary.base.errors import HostLacks
from virtuary.qemu.platforms.platform import Platform

DESCRIPTORS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))


@dataclass(frozen=True)
class Firmware:
    kind: Literal["bios", "uefi"]
    code: Path | None = None
    vars_template: Path | None = None


BIOS = Firmware("bios")


def find_uefi(platform: Platform, folders: tuple[Path, ...] = DESCRIPTORS) -> Firmware:
    """The distribution's preferred UEFI without secure-boot keys; raises HostLacks with the package
    to install.
    """
    names: dict[str, Path] = {}
    for folder in reversed(folders):
        if folder.is_dir():
            names |= {path.name: path for path in folder.glob("*.json")}
    for name in sorted(names):
        firmware = _usable(names[name], platform)
        if firmware:
            return firmware
    raise HostLacks("no UEFI firmware is installed", "apt install ovmf", package="ovmf")


def _usable(path: Path, platform: Platform) -> Firmware | None:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        mapping = body["mapping"]
        code, variables = (
            Path(mapping["executable"]["filename"]),
            Path(mapping["nvram-template"]["filename"]),
        )
        fits = (
            "uefi" in body["interface-types"]
            and mapping["device"] == "flash"
            and mapping["executable"]["format"] == "raw"
            and not {"requires-smm", "enrolled-keys"} & set(body["features"])
            and any(
                target["architecture"] == platform.arch
                and any(pattern.startswith(platform.family) for pattern in target["machines"])
                for target in body["targets"]
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        Firmware("uefi", code, variables)
        if fits and code.is_file() and variables.is_file()
        else None
    )
