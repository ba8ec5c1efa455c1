"""The worker's way to its node: requests on the API socket for the owner of a job, bodies of any size both ways.

A request has a connection of its own, so that giving it up closes that, by which the node gives up what it does for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from jobs.client.failures import error_of, gone, unreachable
from jobs.client.http1 import ProtocolError, ResponseReader, encode_request
from jobs.client.requests import decode, encode, target
from jobs.protocol.ids import ACT_FOR_HEADER

T = TypeVar("T")
READ_BYTES: Final = 256 << 10
_JSON: Final = {"Content-Type": "application/json"}


class Answer:
    """A success that is being read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._response = ResponseReader()
        self._first = b""

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def head(self) -> None:
        """Return when it has begun. Raises the error that it is instead."""
        while not self._response.status:
            self._first = await self._receive()
        if self._response.status >= 400:
            raise error_of(self._response.status, await self.body(), self.headers.get("retry-after"))

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes."""
        first, self._first = self._first, b""
        if first:
            yield first
        while not self._response.is_complete:
            if piece := await self._receive():
                yield piece

    async def _receive(self) -> bytes:
        data = await self._reader.read(READ_BYTES)
        if not data:
            self._response.end()
        return self._response.feed(data)


class NodeApi:
    """Asks for one user. Raises the errors of `jobs.errors` by the node's code, and ConnectionFailed."""

    def __init__(self, socket: Path, owner: int, *, admin: bool) -> None:
        self.owner = owner
        self._socket = str(socket)
        self._headers = {ACT_FOR_HEADER: f"{owner};admin" if admin else str(owner)}

    async def get(self, path: str, answer: type[T], query: Mapping[str, Any] | None = None) -> T:
        async with self.exchange("GET", path, query) as got:
            return decode(answer, await got.body())

    async def post(self, path: str, answer: type[T], body: Any) -> T:
        async with self.exchange("POST", path, body=encode(body)) as got:
            return decode(answer, await got.body())

    async def upload(self, path: str, answer: type[T], query: Mapping[str, Any], pieces: AsyncGenerator[bytes]) -> T:
        """Send what comes, piece by piece; raises what the pieces raise, and then the node keeps nothing of it."""
        async with self.exchange("POST", path, query, body=pieces) as got:
            return decode(answer, await got.body())

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncGenerator[bytes] | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request, and give its answer once that has begun. At the end the connection is closed."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=2 * READ_BYTES)
        except OSError as error:
            raise unreachable(self._socket, error) from error
        sending: asyncio.Future[None] | None = None
        try:
            answer = Answer(reader)
            wanted = {**self._headers, **(headers or {})}
            where = target(path, query or {})
            if body is None or isinstance(body, bytes):
                writer.write(encode_request(method, where, {**wanted, **(_JSON if body else {})}, body))
                await answer.head()
            else:
                writer.write(encode_request(method, where, {**wanted, "Transfer-Encoding": "chunked"}, None))
                sending = asyncio.ensure_future(_send(writer, body))
                await _head(answer, sending)
            yield answer
        except (OSError, ProtocolError) as error:
            raise gone(error) from error
        finally:
            writer.transport.abort()
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.exception()  # told above where it matters


async def _head(answer: Answer, sending: asyncio.Future[None]) -> None:
    """Wait for an answer's head, which may come before all is sent: then it tells why. Raises what the pieces raise."""
    head = asyncio.ensure_future(answer.head())
    try:
        await asyncio.wait((head, sending), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            # That the node took no more of it is no failure: its answer tells.
            with suppress(ConnectionError):
                sending.result()
        await head
    finally:
        head.cancel()
        await asyncio.wait([head])


async def _send(writer: asyncio.StreamWriter, pieces: AsyncGenerator[bytes]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()
