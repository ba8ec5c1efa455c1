"""Routes a request and has it answered by a control plane, wherever the request came from."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from msgspec import Struct
from msgspec.structs import replace

from jobs.api.answer import Answer
from jobs.api.call import Ask, Call, Incoming, decode_body, decode_query
from jobs.api.config import ApiConfig
from jobs.api.handlers import Handlers
from jobs.api.outlet import Outlet
from jobs.api.routes import Router, Target
from jobs.api.streams import StreamSlots
from jobs.errors import MethodNotAllowed, NotFound, OutcomeUnknown
from jobs.protocol.ids import REQUEST_ID_HEADER
from jobs.requestid import request_id
from jobs.service import Backend, Caller, Reads, Service
from jobs.tracing.context import PARENT_HEADER, from_headers

CONSISTENCY: Final = "Jobs-Consistency"
REVISION: Final = "Jobs-Revision"
"""Headers of a stale answer: what it is, and of which revision of the store at least."""


class Routed(Struct, frozen=True):
    """A request whose route is known and whose query is right."""

    ask: Ask
    target: Target
    path: str
    """What stands in the path's placeholder."""
    query: Any

    @property
    def is_stale(self) -> bool:
        """Whether any node may answer, from its own store."""
        return getattr(self.query, "consistency", None) == "stale"


class Desk:
    def __init__(self, backend: Backend, config: ApiConfig) -> None:
        self.slots = StreamSlots(config.max_streams_per_uid)
        self.transfers = StreamSlots(config.max_transfers_per_uid, config.max_transfers, "uploads or downloads")
        self.config = config
        self._backend = backend
        self._router = Router()

    def in_pieces(self, method: str, path: str) -> bool:
        """Whether the body of a request or its answer may go on."""
        try:
            target, _ = self._router.find(method, path)
        except (NotFound, MethodNotAllowed):
            return False
        return target.route.in_pieces

    def route(self, ask: Ask) -> Routed:
        """Raises NotFound, MethodNotAllowed, and InvalidRequest for a query."""
        target, path = self._router.find(ask.method, ask.path)
        return Routed(ask, target, path, decode_query(target.route.query, target.lists, ask.query))

    async def perform(
        self, routed: Routed, body: bytes, service: Reads | None, outlet: Outlet, incoming: Incoming | None = None
    ) -> Answer:
        """Have a request answered. Raises what the answer is to say instead, and ConnectionError when nobody takes it.

        `service` has to be a `Service` unless the route makes do with less; `incoming` is for those that take the body
        as it comes.
        """
        target = routed.target
        decoded = None
        if target.decoder is not None:
            content_type = routed.ask.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            decoded = decode_body(target.decoder, content_type, body)
        call = Call(routed.ask, outlet, _caller(routed.ask, body), routed.path, routed.query, decoded, incoming)
        handlers = Handlers(cast("Service", service), self._backend, self.config, self.slots, self.transfers)
        try:
            return await target.route.handler(handlers, call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # What this waited for was part of a control plane that has ended.
            raise OutcomeUnknown(
                "the node ceased to lead the cluster while it worked on the request",
                expected="the same request a little later",
                retry_after_s=0.1,
            ) from None


def _caller(ask: Ask, body: bytes) -> Caller:
    """Return who asks; raise InvalidRequest for a change whose id is none."""
    if ask.method in ("GET", "HEAD"):
        return ask.caller
    caller, given = ask.caller, ask.headers.get(REQUEST_ID_HEADER)
    if given is not None:
        target = f"{ask.path}?{ask.query}" if ask.query else ask.path
        caller = replace(caller, request_id=request_id(given, caller.uid, ask.method, target, body))
    if PARENT_HEADER in ask.headers:
        caller = replace(caller, trace=from_headers(ask.headers))
    return caller
