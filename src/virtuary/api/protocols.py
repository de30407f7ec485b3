"""What uvicorn speaks with whoever connects: HTTP and WebSockets that know the uid of the process
at the other end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from virtuary.api.auth import with_peer


class PeerProtocol(H11Protocol):
    """HTTP that knows the uid of the process at the other end."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = with_peer(self.app, transport)


class PeerWebSocket(asyncio.Protocol):
    """The same for a connection that becomes a WebSocket. The real class is loaded for the first
    one: only a console is one.
    """

    def __new__(cls, **options: Any) -> Any:
        from virtuary.api.websocket import PeerWebSocket

        return PeerWebSocket(**options)
