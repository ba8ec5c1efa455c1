"""Answers that go on: server-sent events and raw output, in bounded memory and with a bound on patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec

from jobs.api.answer import GONE_OUT, Answer
from jobs.api.config import ApiConfig
from jobs.api.outlet import Outlet
from jobs.api.problem import as_jobs_error, problem_of
from jobs.errors import JobsError, NotLeader, TooManyRequests, Unavailable
from jobs.protocol.model import OperationFailed

T = TypeVar("T")
EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
"""One JSON object a line; an empty line says that there is nothing new."""
NOT_STORED: Final = {"Cache-Control": "no-store"}
_encode = msgspec.json.Encoder().encode


class Place:
    """The right to one stream or long poll, for as long as there is somebody to talk to and something to tell."""

    def __init__(self, closing: asyncio.Future[None], ended: asyncio.Future[None], gone: asyncio.Future[None]) -> None:
        self._closing = closing
        self._ended = ended
        self._gone = gone

    async def first(self, task: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
        """Wait for the task or the time; tell whether the task is done.

        Raises Unavailable when the node stops or no longer has what is asked, ConnectionResetError when the client
        has gone.
        """
        over = (task, self._closing, self._ended, self._gone)
        await asyncio.wait(over, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return True
        if self._gone.done():
            raise ConnectionResetError("the client has gone")
        check_open(self._closing)
        if self._ended.done():
            raise leads_no_more()
        return False

    async def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns; raises as `first`, and then gives the work up."""
        task = asyncio.ensure_future(work)
        try:
            await self.first(task)
            return task.result()
        finally:
            task.cancel()


class StreamSlots:
    """Counts the streams and long polls of each user, or what else takes long, and ends all when the node stops."""

    def __init__(self, limit: int, total: int | None = None, what: str = "streams or long polls") -> None:
        """`limit`: of a user; `total`: of all."""
        self._limit = limit
        self._total = total
        self._what = what
        self._used: Counter[int] = Counter()
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def used(self) -> int:
        return self._used.total()

    @contextmanager
    def take(self, uid: int, ended: asyncio.Future[None], gone: asyncio.Future[None]) -> Iterator[Place]:
        """Hold one place until the end, or until the service has `ended`, or the client has `gone`.

        Raises TooManyRequests when the user, or anybody, has none left, Unavailable after `close`.
        """
        check_open(self._closing)
        taken = f"{self._limit} {self._what} of uid {uid}" if self._used[uid] >= self._limit else ""
        if self._total is not None and self.used >= self._total:
            taken = f"{self._total} {self._what}"
        if taken:
            raise TooManyRequests(f"{taken} are open", expected="fewer at a time", retry_after_s=1)
        self._used[uid] += 1
        try:
            yield Place(self._closing, ended, gone)
        finally:
            self._used[uid] -= 1
            if not self._used[uid]:
                del self._used[uid]

    def close(self) -> None:
        """End every stream and long poll: they would wait for what this node will no longer tell."""
        if not self._closing.done():
            self._closing.set_result(None)


def check_open(closing: asyncio.Future[None]) -> None:
    if closing.done():
        raise Unavailable("the node stops", expected="the same request a little later", retry_after_s=1)


def leads_no_more() -> NotLeader:
    """Return what is to be raised where the control plane that was asked has ended."""
    return NotLeader(
        "the node ceased to lead the cluster", expected="the same request a little later", retry_after_s=0.1
    )


def event(data: Any, event_id: str) -> bytes:
    """Return one server-sent event with JSON data."""
    return f"id: {event_id}\ndata: ".encode() + _encode(data) + b"\n\n"


def problem_event(error: JobsError) -> bytes:
    """Return the event that ends a stream; it has no id, so that a client resumes after the last one it had."""
    return b"event: problem\ndata: " + _encode(problem_of(error)) + b"\n\n"


def line(data: Any) -> bytes:
    """Return JSON on a line of its own."""
    return _encode(data) + b"\n"


def failed_line(error: JobsError) -> bytes:
    """Return the line that ends a stream of lines with an error."""
    return line(OperationFailed(problem=problem_of(error)))


_WORDS: Final[dict[str, tuple[bytes, Callable[[JobsError], bytes]]]] = {
    EVENT_STREAM: (b": still here\n\n", problem_event),
    NDJSON: (b"\n", failed_line),
}
"""Content type of a stream → its sign of life, and how it ends with an error."""


def seen(event_id: str) -> bytes:
    """Return an event that only says how far the stream has come."""
    return f"id: {event_id}\n\n".encode()


class CutShort(Exception):
    """Raised by pieces that end short and have told why."""


class StreamAnswer:
    """Sends pieces as they come.

    The first piece is awaited before the head, so that an error still has its status; `at_once` sends the head before.
    A client that takes nothing for `write_timeout_s` is cut off.
    """

    def __init__(
        self,
        outlet: Outlet,
        config: ApiConfig,
        place: Place,
        *,
        at_once: bool,
        headers: Mapping[str, str] = NOT_STORED,
        status: int = 200,
    ) -> None:
        self._outlet = outlet
        self._config = config
        self._place = place
        self._at_once = at_once
        self._headers = headers
        self._status = status

    async def send(self, pieces: AsyncIterator[bytes], content_type: str) -> Answer:
        """Answer with the pieces; raise what came instead of the first one."""
        ping, last_word = _WORDS.get(content_type, (b"", None))
        upcoming = asyncio.ensure_future(_next(pieces))
        try:
            if not self._at_once:
                await self._place.first(upcoming)
                upcoming.result()
            await self._outlet.begin({"Content-Type": content_type, **self._headers}, self._status)
            await self._pump(pieces, upcoming, ping)
        except TimeoutError:
            self._outlet.abort()
        except CutShort:
            self._outlet.cut()
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            if not self._outlet.has_begun:
                raise
            await self._end_short(error, last_word)
        finally:
            upcoming.cancel()
            await asyncio.wait([upcoming])
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        return GONE_OUT

    async def _pump(self, pieces: AsyncIterator[bytes], upcoming: asyncio.Future[bytes | None], ping: bytes) -> None:
        """Write until the pieces end or the client has gone."""
        try:
            while True:
                done = await self._place.first(upcoming, self._config.ping_s)
                piece = upcoming.result() if done else ping
                if piece is None:
                    await self._outlet.end()
                    return
                if piece:
                    async with asyncio.timeout(self._config.write_timeout_s):
                        await self._outlet.write(piece)
                if done:
                    upcoming = asyncio.ensure_future(_next(pieces))
        finally:
            upcoming.cancel()
            await asyncio.wait([upcoming])

    async def _end_short(self, error: Exception, last_word: Callable[[JobsError], bytes] | None) -> None:
        """End a stream whose status has gone out already: the error travels as an event, and the body lacks its end
        mark, so that nobody takes it for whole."""
        if last_word is not None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._config.write_timeout_s):
                    await self._outlet.write(last_word(as_jobs_error(error)))
        self._outlet.cut()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
