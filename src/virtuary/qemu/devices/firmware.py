"""UEFI in flash: code that all machines share and only read, and variables of each one's own.

A machine with BIOS has none of it: QEMU brings that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virtuary.qemu.devices.backends import raw_node
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform

CODE, VARIABLES = "firmware-code", "firmware-vars"


@dataclass(frozen=True)
class Flash:
    code: Path
    variables: Path
    template: Path
    """What the variables are made from, where there are none yet."""

    @property
    def options(self) -> dict[str, str]:
        """Of `-machine`."""
        return {"pflash0": CODE, "pflash1": VARIABLES}

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        code = grants.add(CODE, self.code, "ro")
        variables = grants.add(VARIABLES, self.variables, "rw")
        return [
            raw_node(CODE, code, read_only=True),
            raw_node(VARIABLES, variables, read_only=False),
        ]
