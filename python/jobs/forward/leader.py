"""The side of the node that leads: answers what other nodes pass on, as if it had come on its own socket.

What is passed on is carried out here or not at all: a node that does not lead says so, and passes nothing on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from jobs.api import answer as api
from jobs.api.call import Ask
from jobs.api.desk import Desk
from jobs.api.outlet import NoOutlet
from jobs.api.problem import problem
from jobs.errors import NotLeader, PayloadTooLarge
from jobs.forward.envelope import (
    MAX_UNARY_BYTES,
    Answer,
    Done,
    Envelope,
    EnvelopeError,
    Head,
    Lot,
    NotLeading,
    Replies,
    Request,
    TooLarge,
    Worker,
    WorkerEnded,
    decode,
    encode,
    framed,
)
from jobs.forward.metrics import ForwardMetrics
from jobs.forward.tunnel import serve_worker
from jobs.net import Declined, Stream, StreamBroken
from jobs.service import Caller, Service, Whereabouts
from jobs.workerdoor import Way

logger = logging.getLogger(__name__)


class LeaderSide:
    """Takes requests and streams of other members."""

    def __init__(
        self,
        site: Whereabouts,
        desk: Desk,
        gateway: Callable[[], Way | None],
        metrics: ForwardMetrics,
    ) -> None:
        self._site = site
        self._desk = desk
        self._gateway = gateway
        self._metrics = metrics

    async def on_request(self, peer: str, body: bytes) -> bytes:
        """Answer a request in one piece. Raises Declined for what is none."""
        envelope = self._open(body)
        if isinstance(envelope, WorkerEnded):
            gateway = self._gateway()
            if gateway is None:
                return encode(self._not_leading())
            await gateway.tell_process_end(envelope.process)
            return encode(Done())
        if not isinstance(envelope, Request | Lot):
            raise Declined(f"{type(envelope).__name__} is no request")
        control = self._site.control
        if control is None:
            return encode(self._not_leading())
        if isinstance(envelope, Request):
            return await self._reply(envelope, control)
        requests = [self._open(part) for part in envelope.parts]
        if not all(isinstance(request, Request) for request in requests):
            raise Declined("there is something else than requests in a lot")
        loop = asyncio.get_running_loop()
        answering = [loop.create_task(self._reply(request, control)) for request in requests]
        try:
            return encode(Replies(_bounded([await task for task in answering])))
        finally:
            for task in answering:
                task.cancel()

    async def _reply(self, request: Envelope, control: Service) -> bytes:
        assert isinstance(request, Request)
        answer = await self._answer(
            request, request.body, control, NoOutlet(asyncio.get_running_loop().create_future())
        )
        assert answer is not None
        if isinstance(answer, Answer) and len(answer.body) > MAX_UNARY_BYTES:
            return encode(TooLarge(len(answer.body)))
        return encode(answer)

    async def on_stream(self, peer: str, header: bytes, stream: Stream) -> None:
        """Answer a request on its stream, or be the other end of a worker's connection."""
        try:
            envelope = self._open(header)
        except Declined as declined:
            logger.warning("a stream of %s is refused: %s", peer, declined)
            stream.reset(str(declined))
            return
        with contextlib.suppress(StreamBroken, ConnectionError):
            if isinstance(envelope, Worker):
                await self._serve_worker(envelope, stream)
            elif isinstance(envelope, Request):
                await self._serve(envelope, stream)
            else:
                stream.reset(f"{type(envelope).__name__} opens no stream")

    def _open(self, data: bytes) -> Envelope:
        try:
            return decode(data)
        except EnvelopeError as error:
            self._metrics.failed("unreadable")
            raise Declined(str(error)) from error

    def _not_leading(self) -> NotLeading:
        return NotLeading(self._site.leader)

    async def _serve_worker(self, envelope: Worker, stream: Stream) -> None:
        gateway = self._gateway()
        if gateway is None:
            await stream.write(framed(self._not_leading()))
            return
        with self._metrics.tunnels.track_inprogress():
            await stream.write(framed(Done()))
            await serve_worker(gateway.connection(envelope.process), stream)

    async def _serve(self, request: Request, stream: Stream) -> None:
        # All of it is read before anything is said: the other side reads only once it has written.
        body = await self._read_body(stream)
        control = self._site.control
        if isinstance(body, Answer):
            await stream.write(framed(body))
            return
        if control is None:
            await stream.write(framed(self._not_leading()))
            return
        outlet = _StreamOutlet(stream)
        answer = await self._answer(request, body, control, outlet)
        if answer is not None:
            await stream.write(framed(answer))

    async def _read_body(self, stream: Stream) -> bytes | Answer:
        """Return what follows a request, or the answer to one that is too large."""
        limit = self._desk.config.max_body_bytes
        parts: list[bytes] = []
        size = 0
        while part := await stream.read():
            size += len(part)
            if size <= limit:
                parts.append(part)
        if size > limit:
            return _enclosed(problem(PayloadTooLarge(f"the body has {size} bytes", expected=f"at most {limit} bytes")))
        return b"".join(parts)

    async def _answer(
        self, request: Request, body: bytes, control: Service, outlet: _StreamOutlet | NoOutlet
    ) -> Answer | NotLeading | None:
        """Return the answer; None when it went out on the outlet. Raises ConnectionError when nobody takes it."""
        self._metrics.received.inc()
        caller = Caller(uid=request.uid, gid=request.gid, admin=request.admin)
        ask = Ask(request.method, request.path, request.query, request.headers, caller)
        try:
            answer = await self._desk.perform(self._desk.route(ask), body, control, outlet)
        except ConnectionError:
            raise
        except NotLeader:
            # What of a request was written before does no harm when it is carried out again.
            return self._not_leading()
        except Exception as error:
            answer = problem(error)
        return None if outlet.has_begun else _enclosed(answer)


def _bounded(replies: list[bytes]) -> list[bytes]:
    """Return the replies to a lot; those that are too large together are asked for again, as large ones are."""
    room = MAX_UNARY_BYTES
    bounded = []
    for reply in replies:
        fits = len(reply) <= room
        bounded.append(reply if fits else encode(TooLarge(len(reply))))
        room -= len(reply) if fits else 0
    return bounded


def _enclosed(answer: api.Answer) -> Answer:
    return Answer(answer.status, dict(answer.headers), answer.body)


class _StreamOutlet:
    """A stream to the node that passed the request on: a head, pieces with their lengths, and 0 where it is whole."""

    def __init__(self, stream: Stream) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_begun = False
        self._stream = stream
        stream.closed.add_done_callback(self._on_closed)

    def _on_closed(self, closed: asyncio.Future[None]) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    async def begin(self, headers: Mapping[str, str], status: int = 200) -> None:
        self.has_begun = True
        await self._write(framed(Head(status, dict(headers))))

    async def write(self, piece: bytes) -> None:
        for start in range(0, len(piece), MAX_UNARY_BYTES):
            part = piece[start : start + MAX_UNARY_BYTES]
            await self._write(len(part).to_bytes(4, "big") + part)

    async def end(self) -> None:
        await self._write(bytes(4))
        await self._stream.finish()

    def cut(self) -> None:
        """The stream is finished when its server returns: without the mark."""

    def abort(self) -> None:
        self._stream.reset("the answer was not taken in time")

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except StreamBroken as broken:
            raise ConnectionResetError(str(broken)) from broken
