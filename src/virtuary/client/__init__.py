"""The client library: `Client` and `AsyncClient` speak the API with the daemon's own models.

    from virtuary.client import Client

    with Client() as virtuary:
        vm = virtuary.launch("debian", "web1", memory=2 << 30)
        print(virtuary.execute("web1", ["uname", "-a"]).stdout.decode())

The names are loaded when they are first used: the command line, which needs little of it, has to
stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtuary.client.asynchronous import AsyncClient
    from virtuary.client.results import Outcome
    from virtuary.client.synchronous import Client

__all__ = ["AsyncClient", "Client", "Outcome"]


def __getattr__(name: str) -> Any:
    import importlib

    homes = {"Client": "synchronous", "AsyncClient": "asynchronous", "Outcome": "results"}
    if name not in homes:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"virtuary.client.{homes[name]}"), name)
