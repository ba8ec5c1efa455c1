"""One connection: whose it is, how long each of its steps may take, and answers where there is no request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from jobs.api.answer import Answer
from jobs.api.config import ApiConfig
from jobs.api.identity import Identities
from jobs.api.metrics import ApiMetrics
from jobs.api.plain import SERVER, write
from jobs.api.problem import answer_of, as_jobs_error
from jobs.errors import HeadersTooLarge, InvalidRequest, JobsError, RequestTimeout, TooManyRequests
from jobs.invalid import MAX_DETAIL_CHARS
from jobs.service import Caller
from jobs.sockets import peer_credentials

MAX_HEAD_LINE_BYTES: Final = 8_190
MAX_HEAD_FIELDS: Final = 64
MAX_REFUSED: Final = 64
"""Connections past the limit that are told so at a time; further ones are closed without a word."""
LINGER_S: Final = 1.0
"""A refused client may write its request for this long: a socket closed under it would lose it the answer."""
_TOO_MANY_FIELDS: Final = "Too many headers"
"""How aiohttp's complaint begins; it has no type of its own."""


class Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER


def web_response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


class Gate:
    """What the connections of a server share."""

    def __init__(self, config: ApiConfig, identities: Identities, metrics: ApiMetrics) -> None:
        self.config = config
        self.identities = identities
        self.metrics = metrics
        self.limit = config.max_connections
        self.open = 0
        self.refused = 0


class Connection(RequestHandler):
    """aiohttp's connection with its peer's identity, and with limits on time that aiohttp lacks: for a request's head,
    and for a client that does not take its answer."""

    def __init__(self, manager: web.Server, gate: Gate, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None
        self._head_begun = False
        self._counted = False
        self._refused = False
        self.caller: Caller
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done once the client has gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        gate = self._gate
        if gate.open >= gate.limit:
            self._refuse()
            return
        self._counted = True
        gate.open += 1
        gate.metrics.connections.set(gate.open)
        _, uid, gid = peer_credentials(cast("asyncio.Transport", transport))
        self.caller = gate.identities.caller(uid, gid)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        if not self.gone.done():
            self.gone.set_result(None)
        if self._counted:
            self._counted = False
            self._gate.open -= 1
            self._gate.metrics.connections.set(self._gate.open)
        if self._refused:
            self._refused = False
            self._gate.refused -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._counted:
            return
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._disarm()
        elif data and not self._head_begun and not self._force_close:
            self._head_begun = True
            self._timer = self._loop.call_later(self._gate.config.header_timeout_s, self._on_head_timeout)

    def force_close(self) -> None:
        """Close once what was written is sent, in bounded time."""
        transport = self.transport
        super().force_close()
        if transport is not None:
            self._disarm()
            self._timer = self._loop.call_later(self._gate.config.write_timeout_s, transport.abort)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; a client that does not take it in time is cut off, and gets no other before it did."""
        try:
            with self._in_time():
                done = await super().finish_response(request, resp, start_time)
                if self.writing_paused:
                    await self._drain_helper()
            return done
        except ConnectionError:
            return resp, True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, and a client that has gone, which is no fault."""
        error: JobsError
        if isinstance(exc, ConnectionError):
            error = RequestTimeout("the connection was lost before the request was answered")
        elif isinstance(exc, LineTooLong) or (message or "").startswith(_TOO_MANY_FIELDS):
            error = HeadersTooLarge(
                "the request's head is too large",
                expected=f"at most {MAX_HEAD_FIELDS} lines of at most {MAX_HEAD_LINE_BYTES} bytes",
            )
        elif isinstance(exc, BadHttpMessage) or status == 400:
            error = InvalidRequest(f"this is not HTTP as it should be: {message or exc}"[:MAX_DETAIL_CHARS])
        else:
            error = as_jobs_error(exc if isinstance(exc, Exception) else RuntimeError(message))
        response = web_response(answer_of(error))
        response.force_close()
        return response

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Cut off a client that does not take what is written within the context in time."""
        # A timer costs a fraction of what `asyncio.timeout` does, and nearly always nobody waits.
        transport, timeout_s = self.transport, self._gate.config.write_timeout_s
        timer = None if transport is None else self._loop.call_later(timeout_s, transport.abort)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _disarm(self) -> None:
        self._head_begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_head_timeout(self) -> None:
        limit_s = self._gate.config.header_timeout_s
        self._write_answer(RequestTimeout(f"the request's head did not arrive within {limit_s:g} s"))
        self.force_close()

    def _refuse(self) -> None:
        """Say that there are too many connections, and close when the client has read it, or soon."""
        gate = self._gate
        gate.metrics.refused.inc()
        assert self.transport is not None
        if gate.refused >= MAX_REFUSED:
            self.transport.abort()
            return
        self._refused = True
        gate.refused += 1
        self._write_answer(
            TooManyRequests(f"{gate.limit} connections are open", expected="fewer at a time", retry_after_s=1)
        )
        self.transport.write_eof()
        self._timer = self._loop.call_later(LINGER_S, self.force_close)

    def _write_answer(self, error: JobsError) -> None:
        """Answer without a request."""
        if self.transport is not None:
            self.transport.write(write(answer_of(error), int(time.time()), closes=True))
