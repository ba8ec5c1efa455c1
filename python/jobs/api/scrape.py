"""The metrics on a TCP port, for Prometheus, which speaks no Unix sockets: nothing else is answered there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web

from jobs.api.metrics import CONTENT_TYPE
from jobs.sockets import SocketError

logger = logging.getLogger(__name__)

PATH: Final = "/metrics"
MAX_CONNECTIONS: Final = 16
IDLE_S: Final = 75.0


class ScrapeServer:
    """Answers `GET /metrics` to whoever can connect."""

    def __init__(self, exposition: Callable[[], bytes]) -> None:
        self._exposition = exposition
        self._server = web.Server(
            self._handle, access_log=None, keepalive_timeout=IDLE_S, max_line_size=4_096, max_field_size=4_096
        )
        self._listener: asyncio.Server | None = None

    async def start(self, address: str) -> None:
        """Listen. Raises SocketError for an address that cannot be had."""
        host, _, port = address.rpartition(":")
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, host.strip("[]"), int(port), reuse_address=True
            )
        except OSError as error:
            raise SocketError(f"metrics.listen: {address} cannot be listened on: {error.strerror or error}") from error
        logger.info("metrics are served", extra={"address": address})

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            await self._server.shutdown(1.0)

    def _connection(self) -> asyncio.Protocol:
        return _Closed() if len(self._server.connections) >= MAX_CONNECTIONS else self._server()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != PATH:
            return web.Response(status=404, text=f"only {PATH} is here\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="GET\n", headers={"Allow": "GET, HEAD"})
        return web.Response(body=self._exposition(), headers={"Content-Type": CONTENT_TYPE})


class _Closed(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
