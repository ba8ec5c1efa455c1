"""Connections that answer plain requests themselves, and leave the others to aiohttp.

Of the processor time of a small request, reading and answering it with aiohttp is the largest part. A request that is
read in one piece and is plain (`jobs.api.plain`) needs none of its machinery.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from jobs.api.answer import Answer
from jobs.api.call import Ask
from jobs.api.connection import Connection, Gate
from jobs.api.outlet import NoOutlet
from jobs.api.plain import PlainRequest, read, write

logger = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 16
"""Requests of a connection that are answered in one turn of the event loop: one read may bring thousands."""
MAX_HELD_BYTES: Final = 64 << 10
"""Of the requests behind one that is answered: when there is so much, nothing more is read."""


class QuickConnection(Connection):
    """A connection on which each request is answered here or by aiohttp, one after the other.

    Who reads what is decided where a request begins, and only when aiohttp has answered all it was given. A plain
    request that is not for here, since its answer goes on or it is not whole, is lent to aiohttp: its length is known,
    so where the next one begins is known too. After any other bytes only aiohttp knows that, and the rest is its own.
    """

    def __init__(
        self,
        manager: web.Server,
        gate: Gate,
        answer: Callable[[Ask, bytes, NoOutlet], Awaitable[Answer]],
        in_pieces: Callable[[str, str], bool],
        **settings: Any,
    ) -> None:
        super().__init__(manager, gate, **settings)
        self._answer = answer
        self._in_pieces = in_pieces
        self._outlet = NoOutlet(self.gone)
        self._max_body_bytes = gate.config.max_body_bytes
        self._has_lent = False
        self._is_foreign = False
        """Only aiohttp knows where the next request begins."""
        self._owed_bytes = 0
        """Of the request that aiohttp was lent: what is still to come."""
        self._serving: asyncio.Task[None] | None = None
        self._held = b""
        """What came while a request was answered here."""

    def data_received(self, data: bytes) -> None:
        if self._is_foreign or not data:
            super().data_received(data)
        elif self._serving is not None:
            self._hold(data)
        elif self._owed_bytes:
            self._lend(data, self._owed_bytes)
        elif not self._counted or self._close or self._force_close:
            pass
        elif not self._is_idle:
            self._lend(data, 0)
        else:
            request = read(data)
            if request is None:
                self._lend(data, 0)
            elif self._is_for_here(request, data):
                self._request_in_progress = True
                self._serving = self._loop.create_task(self._serve(request, data))
            else:
                self._lend(data, request.end)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._held = b""
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's
        await super().shutdown(timeout)
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    def _process_keepalive(self) -> None:
        if self._serving is not None:
            self._put_off_keepalive()
        super()._process_keepalive()

    def _put_off_keepalive(self) -> None:
        """The connection is in use: it is closed for being idle only so long after now."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    @property
    def _is_idle(self) -> bool:
        """Whether aiohttp has answered all that it was given."""
        if not self._has_lent:
            return True
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def _is_for_here(self, request: PlainRequest, data: bytes) -> bool:
        if request.end > len(data) or request.end - request.body > self._max_body_bytes:
            return False
        return not self._in_pieces(request.method, request.path)

    def _lend(self, data: bytes, size: int) -> None:
        """Give aiohttp what begins with `size` bytes of a request; if more came, the connection is its own."""
        self._has_lent = True
        self._owed_bytes = size - len(data)
        if self._owed_bytes < 0:
            self._is_foreign = True
        super().data_received(data)

    def _hold(self, data: bytes) -> None:
        """Keep what came until the request before it is answered. While there is room, more is read: only who reads
        notices that the client has gone."""
        self._held += data
        if self.transport is not None and len(self._held) >= MAX_HELD_BYTES:
            self.transport.pause_reading()

    async def _serve(self, request: PlainRequest, data: bytes) -> None:
        """Answer a request, and those after it as long as they are for here; then take whatever else has come."""
        at = answered = 0
        following: PlainRequest | None = request
        try:
            while following is not None:
                at = following.end
                if not await self._serve_one(following, data):
                    return
                answered += 1
                if answered % MAX_AT_ONCE == 0:
                    await asyncio.sleep(0)
                following = read(data, at) if at < len(data) else None
                if following is not None and not self._is_for_here(following, data):
                    following = None
        except Exception:
            logger.exception("a request could not be answered")
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            self._serving = None
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
        self._go_on(data[at:])

    async def _serve_one(self, request: PlainRequest, data: bytes) -> bool:
        """Answer a request; tell whether the connection can carry another one."""
        ask = Ask(request.method, request.path, request.query, request.headers, self.caller)
        try:
            answer = await self._answer(ask, data[request.body : request.end], self._outlet)
            if self.transport is None:
                return False
            self.transport.write(write(answer, int(time.time())))
            if self.writing_paused:
                with self._in_time():
                    await self._drain_helper()
        except ConnectionError:
            self.force_close()
            return False
        self._put_off_keepalive()
        if self._close and self.transport is not None:
            self.transport.close()
        return not (self._close or self._force_close)

    def _go_on(self, rest: bytes) -> None:
        """Take what came while requests were answered."""
        held, self._held = self._held, b""
        if self.transport is None:
            return
        if held:
            self.transport.resume_reading()
        if rest or held:
            self.data_received(rest + held)
