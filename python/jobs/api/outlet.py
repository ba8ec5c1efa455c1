"""Where the answer to a request goes that is not one piece: the client's connection, or the node that passed it on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from jobs.api.connection import Connection
from jobs.errors import InternalError


class Outlet(Protocol):
    """Takes the head of an answer, its pieces, and its end."""

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done once nobody takes anything any more."""

    @property
    def has_begun(self) -> bool: ...

    async def begin(self, headers: Mapping[str, str], status: int = 200) -> None:
        """Send the head of a success. Raises ConnectionError, as do the others when nobody takes it."""

    async def write(self, piece: bytes) -> None:
        """Return when there is room for the next one."""

    async def end(self) -> None:
        """The answer is whole."""

    def cut(self) -> None:
        """Send what was written, and no mark of the end: nobody shall take the answer for whole."""

    def abort(self) -> None:
        """Whoever takes the answer has been too slow: send nothing more."""


class HttpOutlet:
    """The connection on which the request came."""

    def __init__(self, request: web.BaseRequest) -> None:
        assert isinstance(request.protocol, Connection)
        self.gone = request.protocol.gone
        self.headers: Mapping[str, str] = {}
        """For the head of an answer, besides those that are said by whoever answers."""
        self.response: web.StreamResponse | None = None
        """What has begun."""
        self._request = request

    @property
    def has_begun(self) -> bool:
        return self.response is not None

    async def begin(self, headers: Mapping[str, str], status: int = 200) -> None:
        self.response = web.StreamResponse(status=status, headers={**self.headers, **headers})
        await self.response.prepare(self._request)

    async def write(self, piece: bytes) -> None:
        assert self.response is not None
        await self.response.write(piece)

    async def end(self) -> None:
        assert self.response is not None
        await self.response.write_eof()

    def cut(self) -> None:
        self._request.protocol.force_close()

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


class NoOutlet:
    """For a request whose answer has to be in one piece."""

    has_begun = False

    def __init__(self, gone: asyncio.Future[None]) -> None:
        self.gone = gone

    async def begin(self, headers: Mapping[str, str], status: int = 200) -> None:
        raise InternalError("whoever passed the request on does not know that its answer is a stream")

    async def write(self, piece: bytes) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError
