"""Every platform that servers can have, by the architecture they ask for."""

from __future__ import annotations

from virtuary.qemu.platforms.platform import Platform
from virtuary.qemu.platforms.q35 import Q35

USUAL: Platform = Q35()
"""The one that a host is looked at for, and whose QEMU its helpers are."""
PLATFORMS: dict[str, Platform] = {platform.arch: platform for platform in (USUAL,)}
