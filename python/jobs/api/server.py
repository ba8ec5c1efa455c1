"""The listening socket and what happens to a request: routing, typed values, the handler, errors on their way out."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from msgspec.structs import replace

from jobs.api.call import Call, decode_body, decode_query, read_body
from jobs.api.config import ApiConfig
from jobs.api.connection import MAX_HEAD_FIELDS, MAX_HEAD_LINE_BYTES, Connection, Gate, Request
from jobs.api.handlers import Handlers
from jobs.api.identity import Identities
from jobs.api.metrics import CONTENT_TYPE as METRICS_TYPE
from jobs.api.metrics import ApiMetrics
from jobs.api.openapi import document
from jobs.api.problem import as_jobs_error, response_of
from jobs.api.routes import Route, Router
from jobs.api.streams import StreamSlots, leads_no_more
from jobs.errors import MethodNotAllowed
from jobs.protocol.ids import REQUEST_ID_HEADER
from jobs.requestid import request_id
from jobs.service import Backend, Caller, Service
from jobs.sockets import BACKLOG, listen_unix, reserve_descriptors

logger = logging.getLogger(__name__)

RESERVED_DESCRIPTORS: Final = 256
"""For files, workers, peers, and connections that are told that there are too many."""
_UNROUTED: Final = "(none)"
_SLOW_ROUTES: Final = ("wait", "result", "logs", "watch_array", "watch_job", "watch_jobs", "kv_watch")


async def serve(backend: Backend, socket_path: str, config: ApiConfig) -> ApiServer:
    """Serve on a Unix socket; raises SocketError when it cannot be had."""
    server = ApiServer(backend, config)
    await server.start(Path(socket_path))
    return server


class ApiServer(web.Server):
    """One listening socket and its connections."""

    def __init__(self, backend: Backend, config: ApiConfig) -> None:
        super().__init__(
            self._handle,
            request_factory=self._make_request,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=config.idle_timeout_s,
            max_line_size=MAX_HEAD_LINE_BYTES,
            max_field_size=MAX_HEAD_LINE_BYTES,
            max_headers=MAX_HEAD_FIELDS,
            lingering_time=1.0,
        )
        self.config = config
        self.metrics = ApiMetrics(backend)
        self._backend = backend
        self._gate = Gate(config, Identities(config.admin_group), self.metrics)
        self._slots = StreamSlots(config.max_streams_per_uid)
        self._router = Router()
        self._openapi = document()
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        self._gate.limit = reserve_descriptors(self.config.max_connections, RESERVED_DESCRIPTORS)
        if self._gate.limit < self.config.max_connections:
            logger.warning(
                "the limit of open files allows %d connections, fewer than api.max_connections", self._gate.limit
            )
        listener = listen_unix(path, self.config.mode, self.config.group)
        self._path = path
        self._listener = await asyncio.get_running_loop().create_unix_server(self, sock=listener, backlog=BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, end streams and long polls, let the rest finish for `grace_s`, then close."""
        if self._listener is not None:
            self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._slots.close()
        self.pre_shutdown()
        await self.shutdown(grace_s)

    def __call__(self) -> RequestHandler:
        return Connection(self, self._gate, loop=self._loop, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return Request(message, payload, protocol, writer, task, self._loop, client_max_size=self.config.max_body_bytes)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        route = _UNROUTED
        slow = False
        try:
            special = self._special(request)
            if special is not None:
                return special
            target, filled = self._router.find(request.method, request.rel_url.raw_path)
            route, slow = target.route.path, target.route.handler.__name__ in _SLOW_ROUTES
            query = decode_query(target.route.query, target.lists, request)
            data, body = b"", None
            if target.decoder is not None:
                data = await read_body(request, self.config)
                body = decode_body(target.decoder, target.tags, _content_type(request), data)
            call = Call(request, _caller(request, data), filled, query, body)
            response = await target.route.handler(await self._handlers(target.route), call)
        except ConnectionError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # What this waited for was part of a control plane that has ended.
            response = self._problem(request, leads_no_more())
        except Exception as error:
            response = self._problem(request, error)
        self.metrics.requests.labels(route, response.status).inc()
        if not slow:
            self.metrics.latency.labels(route).observe(time.perf_counter() - started)
        return response

    async def _handlers(self, route: Route) -> Handlers:
        """Return what answers a route. Raises Unavailable."""
        # A local route asks the backend alone, which answers it also when there is no control plane anywhere.
        service = cast("Service", None) if route.local else await self._backend.service()
        return Handlers(service, self._backend, self.config, self._slots)

    def _special(self, request: web.BaseRequest) -> web.Response | None:
        """Answer the two routes that are not JSON."""
        if request.path not in ("/metrics", "/openapi.json"):
            return None
        if request.method != "GET":
            raise MethodNotAllowed(f"{request.method} is not for {request.path}", expected="GET")
        if request.path == "/metrics":
            return web.Response(body=self.metrics.exposition(), headers={"Content-Type": METRICS_TYPE})
        return web.Response(body=self._openapi, content_type="application/json")

    def _problem(self, request: web.BaseRequest, error: Exception) -> web.Response:
        known = as_jobs_error(error)
        response = response_of(known)
        if isinstance(known, MethodNotAllowed) and known.expected is not None:
            response.headers["Allow"] = known.expected
        if not request.content.is_eof():
            # What is left of the body is not read, so the connection cannot carry another request.
            response.force_close()
        return response


def _caller(request: web.BaseRequest, body: bytes) -> Caller:
    """Return who asks; raise InvalidRequest for a change whose id is none."""
    assert isinstance(request.protocol, Connection)
    caller, given = request.protocol.caller, request.headers.get(REQUEST_ID_HEADER)
    if given is None or request.method == "GET":
        return caller
    known_by = request_id(given, caller.uid, request.method, request.rel_url.raw_path_qs, body)
    return replace(caller, request_id=known_by)


def _content_type(request: web.BaseRequest) -> str:
    return request.content_type if "Content-Type" in request.headers else ""
