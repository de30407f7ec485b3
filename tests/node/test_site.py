"""What a host finds out about itself when its daemon starts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from virtuary.base.paths import Paths
from virtuary.jail.walls import Capabilities
from virtuary.node import site
from virtuary.store.memory import MemoryStore


async def test_what_programs_have_to_try_is_tried_at_once(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that comes back is waited for, and the host has another processor."""
    begun, all_begun = list[str](), asyncio.Event()

    def trying(name: str, answer: Any) -> Any:
        async def attempt(*_: object) -> Any:
            begun.append(name)
            if len(begun) == 3:
                all_begun.set()
            async with asyncio.timeout(5):
                await all_begun.wait()
            return answer

        return attempt

    found = Capabilities(os.getuid() == 0, True, 4, "")
    monkeypatch.setattr(site, "find_capabilities", trying("namespaces", found))
    monkeypatch.setattr(site, "prove_passt", trying("passt", None))
    monkeypatch.setattr(site.bridge, "prove", trying("networks", "none here"))
    monkeypatch.setattr(site.netns, "prove", trying("networks", "none here"))
    here = await site.open_site(paths, MemoryStore(), "host")
    assert sorted(begun) == ["namespaces", "networks", "passt"]
    assert (here.capabilities, here.network, here.nat_fault) == (found, "passt", "none here")
