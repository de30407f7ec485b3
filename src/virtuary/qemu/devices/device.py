"""What every device is: a small frozen value that says its parts, and what they need of the host.

Pure: nothing here opens a file, binds a socket or asks QEMU. A device names the files and sockets
it needs to `Grants`; whoever starts the machine opens them. In each file the fields come first,
then the parts.
"""

from __future__ import annotations

from typing import Protocol

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


class Device(Protocol):
    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        """Its parts in the order QEMU needs them, with descriptors taken from `grants`."""
