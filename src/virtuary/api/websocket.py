"""A WebSocket that knows the uid of the process at the other end: uvicorn gives it the bare
application again.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from virtuary.api.auth import with_peer


class PeerWebSocket(WebSocketsSansIOProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = with_peer(self.app, transport)
