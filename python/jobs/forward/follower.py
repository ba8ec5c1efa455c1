"""The side of the node that was asked: passes requests on to the leader, and answers from there back to clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from jobs.api import answer as api
from jobs.api.desk import Desk, Routed
from jobs.api.outlet import Outlet
from jobs.api.streams import CutShort, StreamAnswer
from jobs.cluster import Opened
from jobs.errors import InternalError, OutcomeUnknown, TooManyRequests, Unavailable
from jobs.forward.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_UNARY_BYTES,
    PASSED_HEADERS,
    Answer,
    Envelope,
    EnvelopeError,
    Head,
    NotLeading,
    Request,
    TooLarge,
    decode,
    encode,
)
from jobs.forward.framing import read_framed
from jobs.forward.lots import ANSWER_S, Lots
from jobs.forward.metrics import ForwardMetrics
from jobs.forward.reach import Reach
from jobs.forward.whereabouts import NotCarriedOut, Unanswered, while_it_leads
from jobs.net import RequestFailed, Stream, StreamBroken
from jobs.service import Whereabouts

MAX_UNDER_WAY: Final = 4_096
"""Requests that are passed on at a time; one more is refused."""
NOT_BEGUN: Final = frozenset({"unreachable", "refused", "busy", "limit"})
"""How a stream fails of which the other side knows nothing."""
REQUEST_ROOM_BYTES: Final = 256 << 10
"""What a request takes beside its body: far less than this."""


class Forwarder:
    """Passes requests on. What may have been carried out is never sent again unless that does no harm."""

    def __init__(self, reach: Reach, node: str, site: Whereabouts, desk: Desk, metrics: ForwardMetrics) -> None:
        self._reach = reach
        self._lots = Lots(reach, site)
        self._node = node
        self._site = site
        self._desk = desk
        self._metrics = metrics
        self._under_way = 0

    async def pass_on(self, leader: str, routed: Routed, body: bytes, outlet: Outlet) -> api.Answer:
        """Have the leader answer. Raises NotCarriedOut when another try does no harm, and what is to be said instead
        of an answer."""
        if self._under_way >= MAX_UNDER_WAY:
            raise TooManyRequests(f"{MAX_UNDER_WAY} requests are on their way to the leader", retry_after_s=1)
        self._under_way += 1
        self._metrics.sent.inc()
        try:
            if routed.target.is_slow:
                return await self._follow(leader, routed, body, outlet)
            if len(body) + REQUEST_ROOM_BYTES <= MAX_UNARY_BYTES:
                answered = await self._ask(leader, routed, self._request(routed, body))
                if answered is not None:
                    return _opened(answered)
            return await self._on_stream(leader, routed, body)
        except NotCarriedOut:
            self._metrics.failed("not_carried_out")
            raise
        except OutcomeUnknown:
            self._metrics.failed("outcome_unknown")
            raise
        finally:
            self._under_way -= 1

    async def _follow(self, leader: str, routed: Routed, body: bytes, outlet: Outlet) -> api.Answer:
        """Ask for an answer that takes long, or goes on, for as long as somebody waits for it."""
        exchange = _Exchange(self._reach, leader, self._request(routed, b""), body)
        with self._desk.slots.take(routed.ask.caller.uid, self._site.reads.ended, outlet.gone) as place:
            try:
                head = await place.result(exchange.head(self._site))
                if isinstance(head, Answer):
                    return _opened(head)
                answer = StreamAnswer(outlet, self._desk.config, place, at_once=True)
                return await answer.send(exchange.pieces(), head.headers.get("Content-Type", ""))
            finally:
                exchange.end()

    def _request(self, routed: Routed, body: bytes) -> Request:
        ask, caller = routed.ask, routed.ask.caller
        headers = {name: value for name in PASSED_HEADERS if (value := ask.headers.get(name)) is not None}
        return Request(self._node, ask.method, ask.path, ask.query, headers, caller.uid, caller.gid, caller.admin, body)

    async def _ask(self, leader: str, routed: Routed, request: Request) -> Answer | None:
        """Return the answer to a request in one piece; None when it is to be asked for on a stream."""
        try:
            reply = await self._lots.ask(leader, request)
        except Unanswered as unanswered:
            raise _unknown_or_again(routed.ask.method, str(unanswered)) from unanswered
        except RequestFailed as failed:
            if not failed.maybe_done:
                raise NotCarriedOut(f"{failed.kind}: {failed.detail}") from failed
            raise _unknown_or_again(routed.ask.method, f"{failed.kind}: {failed.detail}") from failed
        if isinstance(reply, TooLarge):
            if routed.ask.method == "GET":
                return None
            raise OutcomeUnknown(
                f"it was carried out, and the answer of {reply.size_bytes} bytes is more than a node passes on",
                expected="a request with a smaller answer, or the same to the node that leads (jobctl cluster members)",
            )
        return _answered(reply)

    async def _on_stream(self, leader: str, routed: Routed, body: bytes) -> api.Answer:
        """Ask for an answer, which is in one piece but may be large, or follows a large request."""
        exchange = _Exchange(self._reach, leader, self._request(routed, b""), body)
        try:
            async with asyncio.timeout(ANSWER_S):
                head = await exchange.head(self._site)
            if isinstance(head, Head):
                raise InternalError(
                    f"the leader answers {routed.ask.path} with a stream, as this node does not know it"
                )
            return _opened(head)
        except TimeoutError:
            raise _unknown_or_again(routed.ask.method, f"no answer within {ANSWER_S:g} s") from None
        finally:
            exchange.end()


class _Exchange:
    """One request on a stream of its own."""

    def __init__(self, reach: Reach, leader: str, request: Request, body: bytes) -> None:
        self._reach = reach
        self._leader = leader
        self._request = request
        self._body = body
        self._stream: Stream | None = None

    async def head(self, site: Whereabouts) -> Answer | Head:
        """Send the request, and return what comes first. Raises NotCarriedOut, OutcomeUnknown."""
        try:
            reply = await while_it_leads(site, self._leader, self._exchange())
        except Unanswered as unanswered:
            raise _unknown_or_again(self._request.method, str(unanswered)) from unanswered
        except StreamBroken as broken:
            if broken.kind in NOT_BEGUN:
                raise NotCarriedOut(f"{broken.kind}: {broken.detail}") from broken
            raise _unknown_or_again(self._request.method, f"{broken.kind}: {broken.detail}") from broken
        except EOFError as error:
            raise _unknown_or_again(self._request.method, "the leader ended before it had answered") from error
        except EnvelopeError as error:
            raise InternalError(f"the leader's answer cannot be read: {error}") from error
        return reply if isinstance(reply, Head) else _answered(reply)

    async def _exchange(self) -> Envelope:
        self._stream = stream = await self._reach.open_stream(self._leader, Opened.FORWARD, encode(self._request))
        if self._body:
            await stream.write(self._body)
        await stream.finish()
        return _read(await read_framed(stream, MAX_ENVELOPE_BYTES))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body that follows a head. Raises Unavailable when it breaks off, CutShort when it ends short."""
        assert self._stream is not None
        try:
            while size := int.from_bytes(await self._stream.read_exactly(4), "big"):
                if size > MAX_UNARY_BYTES:
                    raise Unavailable(f"the leader sends a piece of {size} bytes")
                yield await self._stream.read_exactly(size)
        except EOFError:
            raise CutShort from None
        except StreamBroken as broken:
            raise Unavailable(
                f"the stream from the leader broke off: {broken.kind}: {broken.detail}",
                expected="the same again",
                retry_after_s=0.1,
            ) from broken

    def end(self) -> None:
        """Give the stream up, unless it has come to its end."""
        if self._stream is not None:
            self._stream.reset("nobody takes the answer any more")


def _read(data: bytes) -> Envelope:
    try:
        return decode(data)
    except EnvelopeError as error:
        raise InternalError(f"the leader's answer cannot be read: {error}") from error


def _answered(reply: Envelope) -> Answer:
    """Return an answer. Raises NotCarriedOut when the node that was asked does not lead."""
    if isinstance(reply, NotLeading):
        raise NotCarriedOut("the node that was asked does not lead", reply.leader)
    if not isinstance(reply, Answer):
        raise InternalError(f"the leader answers with {type(reply).__name__}")
    return reply


def _opened(answer: Answer) -> api.Answer:
    return api.Answer(answer.status, answer.headers, answer.body)


def _unknown_or_again(method: str, detail: str) -> Exception:
    """Return what follows from a request that may have been carried out: a read may be tried again."""
    return NotCarriedOut(detail) if method == "GET" else _unknown(detail)


def _unknown(detail: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"the request was passed on to the leader, and may have been carried out: {detail}",
        expected="the same request with the same request id a little later",
        retry_after_s=0.5,
    )
