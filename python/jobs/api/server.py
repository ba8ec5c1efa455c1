"""The listening socket and what happens to a request: routing, typed values, the handler, errors on their way out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from jobs.api.acting import acting
from jobs.api.answer import Answer
from jobs.api.call import Ask, Incoming
from jobs.api.config import ApiConfig
from jobs.api.connection import MAX_HEAD_FIELDS, MAX_HEAD_LINE_BYTES, Connection, Gate, Request, web_response
from jobs.api.desk import CONSISTENCY, REVISION, Desk, Routed
from jobs.api.identity import Identities
from jobs.api.metrics import CONTENT_TYPE as METRICS_TYPE
from jobs.api.metrics import ApiMetrics
from jobs.api.openapi import document
from jobs.api.outlet import HttpOutlet, NoOutlet
from jobs.api.problem import problem
from jobs.api.quick import QuickConnection
from jobs.errors import MethodNotAllowed, NotLeader
from jobs.forward.metrics import ForwardMetrics
from jobs.forward.whereabouts import NotCarriedOut, Search
from jobs.service import Backend
from jobs.sockets import BACKLOG, listen, reserve_descriptors

if TYPE_CHECKING:
    from jobs.forward.follower import Forwarder

logger = logging.getLogger(__name__)

RESERVED_DESCRIPTORS: Final = 1_024
"""For files, those of blobs among them, workers, peers, and connections that are told that there are too many."""
_UNROUTED: Final = "(none)"


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
        self.forwarded = ForwardMetrics(self.metrics.registry)
        self._backend = backend
        self._gate = Gate(config, Identities(config.admin_group), self.metrics)
        self.desk = Desk(backend, config)
        self.forwarder: Forwarder | None = None
        """For a member of a cluster: how others are asked."""
        openapi = document()
        self._documents = {
            "/metrics": _document(METRICS_TYPE, self.metrics.exposition),
            "/openapi.json": _document("application/json", lambda: openapi),
        }
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        self._gate.limit = reserve_descriptors(self.config.max_connections, RESERVED_DESCRIPTORS)
        if self._gate.limit < self.config.max_connections:
            logger.warning(
                "the limit of open files allows %d connections, fewer than api.max_connections", self._gate.limit
            )
        listener = listen(path, self.config.mode, self.config.group)
        self._path = path if listener.is_own else None
        self._listener = await asyncio.get_running_loop().create_unix_server(
            self, sock=listener.socket, backlog=BACKLOG
        )

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, end streams and long polls, let the rest finish for `grace_s`, then close."""
        if self._listener is not None:
            self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.desk.slots.close()
        self.desk.transfers.close()
        self.pre_shutdown()
        await self.shutdown(grace_s)

    def __call__(self) -> RequestHandler:
        return QuickConnection(self, self._gate, self.answer, self.desk.in_pieces, loop=self._loop, **self._kwargs)

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
        """Answer what aiohttp has read."""
        assert isinstance(request.protocol, Connection)
        url = request.rel_url
        ask = Ask(request.method, url.raw_path, url.raw_query_string, request.headers, request.protocol.caller)
        outlet = HttpOutlet(request)
        answer = await self.answer(ask, Incoming(request, self.config), outlet)
        if outlet.response is not None:
            return outlet.response
        response = web_response(answer)
        if answer.status >= 400 and not request.content.is_eof():
            # What is left of the body is not read, so the connection cannot carry another request.
            response.force_close()
        return response

    async def answer(self, ask: Ask, body: bytes | Incoming, outlet: HttpOutlet | NoOutlet) -> Answer:
        """Answer a request that came on the node's own socket.

        Raises ConnectionError when nobody takes the answer.
        """
        started = time.perf_counter()
        route = _UNROUTED
        slow = False
        try:
            document = self._documents.get(ask.path)
            if document is not None:
                return document(ask)
            routed = self.desk.route(acting(ask, self.config.worker_uids))
            route, slow = routed.target.route.path, routed.target.is_slow
            incoming = None if isinstance(body, bytes) else body
            data = b""
            if routed.target.decoder is not None:
                data = await incoming.whole() if incoming is not None else cast("bytes", body)
            answer = await self._answer(routed, data, outlet, incoming)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            answer = problem(error)
        self.metrics.answered(route, answer.status)
        if not slow:
            self.metrics.took(route, time.perf_counter() - started)
        return answer

    async def _answer(
        self, routed: Routed, body: bytes, outlet: HttpOutlet | NoOutlet, incoming: Incoming | None
    ) -> Answer:
        """Have a request answered here, or by the node that leads: whoever can, and at once if possible."""
        backend, route = self._backend, routed.target.route
        if route.local:
            # It asks the backend alone, which answers also when there is no control plane anywhere.
            return await self.desk.perform(routed, body, None, outlet, incoming)
        if routed.is_stale:
            return await self._answer_stale(routed, body, outlet)
        whereabouts = backend.whereabouts
        search = Search(whereabouts)
        while True:
            leader = await search.next()
            try:
                if not isinstance(leader, str):
                    return await self.desk.perform(routed, body, leader, outlet)
                assert self.forwarder is not None, "only a member of a cluster has another leader"
                return await self.forwarder.pass_on(leader, routed, body, outlet)
            except NotLeader as error:
                # What of a request was written before does no harm when it is carried out again.
                if isinstance(leader, str) or outlet.has_begun:
                    raise
                search.refused(whereabouts.member, NotCarriedOut(error.detail))
            except NotCarriedOut as refusal:
                search.refused(str(leader), refusal)

    async def _answer_stale(self, routed: Routed, body: bytes, outlet: HttpOutlet | NoOutlet) -> Answer:
        reads = self._backend.whereabouts.reads
        said = {CONSISTENCY: "stale", REVISION: str(reads.revision)}
        if isinstance(outlet, HttpOutlet):
            outlet.headers = said
        return (await self.desk.perform(routed, body, reads, outlet)).saying(said)


def _document(content_type: str, content: Callable[[], bytes]) -> Callable[[Ask], Answer]:
    """Return what answers requests for a document that is there for everybody, whoever leads."""

    def answer(ask: Ask) -> Answer:
        if ask.method != "GET":
            raise MethodNotAllowed(f"{ask.method} is not for {ask.path}", expected="GET")
        return Answer(200, {"Content-Type": content_type}, content())

    return answer
