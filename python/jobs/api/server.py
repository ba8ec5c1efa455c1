"""Connections and requests: bounds, identity, routing, and errors on their way out."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from jobs.api.call import Call, decode_body, decode_query, read_body
from jobs.api.config import ApiConfig
from jobs.api.handlers import Handlers
from jobs.api.identity import Identities
from jobs.api.metrics import CONTENT_TYPE as METRICS_TYPE
from jobs.api.metrics import ApiMetrics
from jobs.api.openapi import document
from jobs.api.problem import as_jobs_error, response_of
from jobs.api.routes import Router
from jobs.errors import InvalidRequest, JobsError, MethodNotAllowed, RequestTimeout, TooManyRequests
from jobs.service import Caller, Service
from jobs.sockets import listen_unix, peer_credentials

logger = logging.getLogger(__name__)

MAX_HEAD_LINE_BYTES: Final = 8_190
MAX_HEAD_FIELDS: Final = 64
_UNROUTED: Final = "(none)"
_SLOW_ROUTES: Final = ("wait", "result", "logs", "watch_job", "watch_jobs", "kv_watch")


async def serve(service: Service, socket_path: str, config: ApiConfig) -> ApiServer:
    """Serve on a Unix socket; raises SocketError when it cannot be had."""
    server = ApiServer(service, config)
    await server.start(Path(socket_path))
    return server


class ApiServer(web.Server):
    """One listening socket and its connections."""

    def __init__(self, service: Service, config: ApiConfig) -> None:
        super().__init__(
            self._handle,
            request_factory=self._make_request,
            access_log=None,
            keepalive_timeout=config.idle_timeout_s,
            max_line_size=MAX_HEAD_LINE_BYTES,
            max_field_size=MAX_HEAD_LINE_BYTES,
            max_headers=MAX_HEAD_FIELDS,
            lingering_time=1.0,
        )
        self.config = config
        self.metrics = ApiMetrics(service)
        self.identities = Identities(config.admin_group)
        self._handlers = Handlers(service, config)
        self._router = Router()
        self._openapi = document()
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        listener = listen_unix(path, self.config.mode, self.config.group)
        self._path = path
        self._listener = await asyncio.get_running_loop().create_unix_server(self, sock=listener)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let what is under way finish for `grace_s`, then close."""
        if self._listener is not None:
            self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.pre_shutdown()
        await self.shutdown(grace_s)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, self._loop, client_max_size=self.config.max_body_bytes
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        route = _UNROUTED
        slow = False
        try:
            special = self._special(request)
            if special is not None:
                return special
            target, filled = self._router.find(request.method, request.path)
            route, slow = target.route.path, target.route.handler.__name__ in _SLOW_ROUTES
            query = decode_query(target.route.query, target.lists, request)
            body = None
            if target.decoder is not None:
                body = decode_body(target.decoder, _content_type(request), await read_body(request, self.config))
            call = Call(request, _caller(request), filled, query, body)
            response = await target.route.handler(self._handlers, call)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            response = self._problem(request, error)
        self.metrics.requests.labels(route, response.status).inc()
        if not slow:
            self.metrics.latency.labels(route).observe(time.perf_counter() - started)
        return response

    def _special(self, request: web.BaseRequest) -> web.Response | None:
        """Answer the two routes that are not JSON."""
        if request.method != "GET":
            return None
        if request.path == "/metrics":
            return web.Response(body=self.metrics.exposition(), headers={"Content-Type": METRICS_TYPE})
        if request.path == "/openapi.json":
            return web.Response(body=self._openapi, content_type="application/json")
        return None

    def _problem(self, request: web.BaseRequest, error: Exception) -> web.Response:
        known = as_jobs_error(error)
        response = response_of(known)
        if isinstance(known, MethodNotAllowed) and known.expected is not None:
            response.headers["Allow"] = known.expected
        if not request.content.is_eof():
            # What is left of the body is not read, so the connection cannot carry another request.
            response.force_close()
        return response


def _caller(request: web.BaseRequest) -> Caller:
    assert isinstance(request.protocol, _Connection)
    return request.protocol.caller


def _content_type(request: web.BaseRequest) -> str:
    return request.content_type if "Content-Type" in request.headers else ""


class _Connection(RequestHandler):
    """aiohttp's connection with its peer's identity, and with a time limit on a request's head."""

    def __init__(self, server: ApiServer, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server
        self._head_timer: asyncio.TimerHandle | None = None
        self._counted = False
        self._head_begun = False
        self.caller: Caller

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > self._server.config.max_connections:
            self._server.metrics.refused.inc()
            limit = self._server.config.max_connections
            self._end(TooManyRequests(f"{limit} connections are open", expected="fewer at a time", retry_after_s=1))
            return
        _, uid, gid = peer_credentials(cast("asyncio.Transport", transport))
        self.caller = self._server.identities.caller(uid, gid)
        self._counted = True
        self._server.metrics.connections.inc()
        self._arm(self._server.config.idle_timeout_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        if self._counted:
            self._counted = False
            self._server.metrics.connections.dec()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._disarm()
        elif self._head_timer is None or not self._head_begun:
            self._arm(self._server.config.header_timeout_s)
            self._head_begun = True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse."""
        if isinstance(exc, BadHttpMessage) or status == 400:
            error: JobsError = InvalidRequest(f"this is not HTTP as it should be: {message or exc}")
        else:
            error = as_jobs_error(exc if isinstance(exc, Exception) else RuntimeError(message))
        response = response_of(error)
        response.force_close()
        return response

    def _arm(self, timeout_s: float) -> None:
        self._disarm()
        self._head_timer = self._loop.call_later(timeout_s, self._on_timeout)

    def _disarm(self) -> None:
        self._head_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_timeout(self) -> None:
        if self._head_begun:
            limit_s = self._server.config.header_timeout_s
            self._end(RequestTimeout(f"the request's head did not arrive within {limit_s:g} s"))
        else:
            self.force_close()

    def _end(self, error: JobsError) -> None:
        """Answer without a request, and close."""
        response = response_of(error)
        assert isinstance(response.body, bytes)
        retry = f"Retry-After: {response.headers['Retry-After']}\r\n" if "Retry-After" in response.headers else ""
        head = (
            f"HTTP/1.1 {error.status} {error.title}\r\nContent-Type: {response.content_type}\r\n{retry}"
            f"Content-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + response.body)
            self.transport.close()
