"""Answers that go on: server-sent events and raw output, in bounded memory and with a bound on patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from aiohttp import web

from jobs.api.config import ApiConfig
from jobs.api.problem import as_jobs_error, problem_of
from jobs.errors import TooManyRequests

_PING: Final = b": still here\n\n"
_encode = msgspec.json.Encoder().encode


class StreamSlots:
    """Counts the streams and long polls of each user."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: Counter[int] = Counter()

    @contextmanager
    def take(self, uid: int) -> Iterator[None]:
        """Hold one place; raise TooManyRequests when the user has none left."""
        if self._used[uid] >= self._limit:
            raise TooManyRequests(
                f"{self._limit} streams or long polls of uid {uid} are open",
                expected="fewer at a time",
                retry_after_s=1,
            )
        self._used[uid] += 1
        try:
            yield
        finally:
            self._used[uid] -= 1
            if not self._used[uid]:
                del self._used[uid]


def event(data: Any, event_id: str, kind: str | None = None) -> bytes:
    """Return one server-sent event with JSON data."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}id: {event_id}\ndata: ".encode() + _encode(data) + b"\n\n"


def seen(event_id: str) -> bytes:
    """Return an event that only says how far the stream has come."""
    return f"id: {event_id}\n\n".encode()


async def send(
    request: web.BaseRequest,
    config: ApiConfig,
    pieces: AsyncIterator[bytes],
    *,
    content_type: str,
    ping: bytes = b"",
) -> web.StreamResponse:
    """Send pieces as they come. The first one is awaited before the head, so that an error still has its status; with
    a `ping` only for as long as it takes to find out that there is no error.

    A client that takes nothing for `write_timeout_s` is cut off; one that has gone is noticed at the next ping.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-store"})
    upcoming = asyncio.ensure_future(_next(pieces))
    try:
        await asyncio.wait([upcoming], timeout=0 if ping else None)
        if upcoming.done():
            upcoming.result()
        await response.prepare(request)
        await _pump(response, request, config, pieces, upcoming, ping)
    except TimeoutError:
        _cut(request)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as error:
        if not response.prepared:
            raise
        # The status has gone out already: the error travels as an event, and the stream ends short of its end mark.
        if ping:
            with contextlib.suppress(ConnectionError):
                await response.write(event(problem_of(as_jobs_error(error)), "", "problem"))
        _cut(request)
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
    return response


async def _pump(
    response: web.StreamResponse,
    request: web.BaseRequest,
    config: ApiConfig,
    pieces: AsyncIterator[bytes],
    upcoming: asyncio.Future[bytes | None],
    ping: bytes,
) -> None:
    """Write until the pieces end or the client has gone."""
    try:
        while True:
            done, _ = await asyncio.wait([upcoming], timeout=config.ping_s)
            piece = upcoming.result() if done else ping
            if piece is None:
                await response.write_eof()
                return
            if request.transport is None:
                return
            if piece:
                async with asyncio.timeout(config.write_timeout_s):
                    await response.write(piece)
            if done:
                upcoming = asyncio.ensure_future(_next(pieces))
    finally:
        upcoming.cancel()
        await asyncio.wait([upcoming])


async def send_events(request: web.BaseRequest, config: ApiConfig, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    return await send(request, config, pieces, content_type="text/event-stream", ping=_PING)


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
