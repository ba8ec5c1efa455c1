"""The worker's way to its node: requests on the API socket for the owner of a job, bodies of any size both ways.

A request has a connection of its own, so that giving it up closes that, by which the node gives up what it does for it.
"""

from __future__ import annotations

import asyncio
import socket
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

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
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
        data = await self._loop.sock_recv(self._connection, READ_BYTES)
        if not data:
            self._response.end()
        return self._response.feed(data)


class NodeApi:
    """Asks for one user. Raises the errors of `jobs.errors` by the node's code, and ConnectionFailed."""

    def __init__(self, path: Path, owner: int, *, admin: bool) -> None:
        self.owner = owner
        self._socket = str(path)
        self._headers = {ACT_FOR_HEADER: f"{owner};admin" if admin else str(owner)}

    async def get(self, path: str, answer: type[T], query: Mapping[str, Any] | None = None) -> T:
        async with self.exchange("GET", path, query) as got:
            return decode(answer, await got.body())

    async def post(self, path: str, answer: type[T], body: Any) -> T:
        async with self.exchange("POST", path, body=encode(body)) as got:
            return decode(answer, await got.body())

    async def put(self, path: str, answer: type[T], body: Any) -> T:
        async with self.exchange("PUT", path, body=encode(body)) as got:
            return decode(answer, await got.body())

    async def delete(self, path: str) -> None:
        async with self.exchange("DELETE", path) as got:
            await got.body()

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
        # Not by asyncio's streams: their reader forgets an answer that has come when the writer meets a broken pipe.
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with connection:
            try:
                await asyncio.get_running_loop().sock_connect(connection, self._socket)
            except OSError as error:
                raise unreachable(self._socket, error) from error
            wanted = {**self._headers, **(headers or {})}
            async with _asked(connection, method, target(path, query or {}), wanted, body) as answer:
                yield answer


@asynccontextmanager
async def _asked(
    connection: socket.socket,
    method: str,
    where: str,
    headers: Mapping[str, str],
    body: bytes | AsyncGenerator[bytes] | None,
) -> AsyncIterator[Answer]:
    answer = Answer(connection)
    sending: asyncio.Future[None] | None = None
    try:
        if body is None or isinstance(body, bytes):
            sending = asyncio.ensure_future(
                _send_all(connection, encode_request(method, where, {**headers, **(_JSON if body else {})}, body))
            )
        else:
            head = encode_request(method, where, {**headers, "Transfer-Encoding": "chunked"}, None)
            sending = asyncio.ensure_future(_send_pieces(connection, head, body))
        await _head(answer, sending)
        yield answer
    except (OSError, ProtocolError) as error:
        raise gone(error) from error
    finally:
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


async def _send_pieces(connection: socket.socket, head: bytes, pieces: AsyncGenerator[bytes]) -> None:
    await _send_all(connection, head)
    async with aclosing(pieces):
        async for piece in pieces:
            if piece:
                await _send_all(connection, b"%x\r\n%b\r\n" % (len(piece), piece))
    await _send_all(connection, b"0\r\n\r\n")


async def _send_all(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)
