"""Answers that go on: server-sent events and raw output, in bounded memory and with a bound on patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from jobs.api.config import ApiConfig
from jobs.api.problem import as_jobs_error, problem_of
from jobs.errors import JobsError, TooManyRequests, Unavailable

T = TypeVar("T")
EVENT_STREAM: Final = "text/event-stream"
_PING: Final = b": still here\n\n"
_encode = msgspec.json.Encoder().encode


class StreamSlots:
    """Counts the streams and long polls of each user, and ends them all when the node stops."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used: Counter[int] = Counter()
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextmanager
    def take(self, uid: int) -> Iterator[None]:
        """Hold one place; raise TooManyRequests when the user has none left, Unavailable after `close`."""
        self._check_open()
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

    def close(self) -> None:
        """End every stream and long poll: they would wait for what this node will no longer tell."""
        if not self.closing.done():
            self.closing.set_result(None)

    async def unless_closed(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns; raise Unavailable as soon as the streams are closed."""
        task = asyncio.ensure_future(work)
        try:
            await self.first(task)
            self._check_open(task)
            return task.result()
        finally:
            task.cancel()

    async def first(self, task: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
        """Wait for the task, the end of all streams, or the time; tell whether the task is done."""
        await asyncio.wait([task, self.closing], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self._check_open(task)
        return task.done()

    def _check_open(self, task: asyncio.Future[Any] | None = None) -> None:
        if self.closing.done() and (task is None or not task.done()):
            raise Unavailable("the node stops", expected="the same request a little later", retry_after_s=1)


def event(data: Any, event_id: str) -> bytes:
    """Return one server-sent event with JSON data."""
    return f"id: {event_id}\ndata: ".encode() + _encode(data) + b"\n\n"


def problem_event(error: JobsError) -> bytes:
    """Return the event that ends a stream; it has no id, so that a client resumes after the last one it had."""
    return b"event: problem\ndata: " + _encode(problem_of(error)) + b"\n\n"


def seen(event_id: str) -> bytes:
    """Return an event that only says how far the stream has come."""
    return f"id: {event_id}\n\n".encode()


class StreamAnswer:
    """Sends pieces as they come.

    The first piece is awaited before the head, so that an error still has its status; `at_once` sends the head before.
    A client that takes nothing for `write_timeout_s` is cut off; one that has gone is noticed at the next ping.
    """

    def __init__(self, request: web.BaseRequest, config: ApiConfig, slots: StreamSlots, *, at_once: bool) -> None:
        self._request = request
        self._config = config
        self._slots = slots
        self._at_once = at_once

    async def send(self, pieces: AsyncIterator[bytes], content_type: str) -> web.StreamResponse:
        """Answer with the pieces; raise what came instead of the first one."""
        response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-store"})
        ping = _PING if content_type == EVENT_STREAM else b""
        upcoming = asyncio.ensure_future(_next(pieces))
        try:
            if not self._at_once:
                await self._slots.first(upcoming)
                upcoming.result()
            await response.prepare(self._request)
            await self._pump(response, pieces, upcoming, ping)
        except TimeoutError:
            self._abort()
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            if not response.prepared:
                raise
            await self._end_short(response, error, events=bool(ping))
        finally:
            upcoming.cancel()
            await asyncio.wait([upcoming])
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        return response

    async def _pump(
        self,
        response: web.StreamResponse,
        pieces: AsyncIterator[bytes],
        upcoming: asyncio.Future[bytes | None],
        ping: bytes,
    ) -> None:
        """Write until the pieces end or the client has gone."""
        try:
            while True:
                done = await self._slots.first(upcoming, self._config.ping_s)
                piece = upcoming.result() if done else ping
                if piece is None:
                    await response.write_eof()
                    return
                if self._request.transport is None:
                    return
                if piece:
                    async with asyncio.timeout(self._config.write_timeout_s):
                        await response.write(piece)
                if done:
                    upcoming = asyncio.ensure_future(_next(pieces))
        finally:
            upcoming.cancel()
            await asyncio.wait([upcoming])

    async def _end_short(self, response: web.StreamResponse, error: Exception, *, events: bool) -> None:
        """End a stream whose status has gone out already: the error travels as an event, and the body lacks its end
        mark, so that nobody takes it for whole."""
        if events:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._config.write_timeout_s):
                    await response.write(problem_event(as_jobs_error(error)))
        self._request.protocol.force_close()

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
