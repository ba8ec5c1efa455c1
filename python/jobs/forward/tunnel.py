"""A worker's connection to a node that does not lead, carried on to the one that does: bytes both ways, in order.

The loss of either end is the loss of the connection, which the worker's protocol survives; nothing of it stands for a
sign of life of the leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, Final, cast

from jobs.cluster import Asked, Opened
from jobs.errors import NotLeader, Unavailable
from jobs.forward.envelope import MAX_UNARY_BYTES, Done, EnvelopeError, Worker, WorkerEnded, decode, encode
from jobs.forward.framing import read_framed
from jobs.forward.reach import Reach
from jobs.net import RequestFailed, Stream, StreamBroken
from jobs.service import WorkerProcess

logger = logging.getLogger(__name__)

HELD_BYTES: Final = 1 << 20
"""Of what a worker says that may wait for the stream before nothing more is read from it."""
MAX_HELD_BYTES: Final = 64 << 20
"""Of what the leader says to a worker that may wait for the stream; more is a worker that takes nothing."""
ANSWER_S: Final = 10.0
"""For the leader to take a worker's connection, or note of its end."""


class StreamTransport(asyncio.Transport):
    """A stream as the transport of a protocol."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._closing = False
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._news = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        self._held.append(bytes(data))
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self.abort()
        self._news.set()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._news.set()

    def abort(self) -> None:
        self._closing = True
        self._news.set()
        self._stream.reset("the connection is cut")

    def pause_reading(self) -> None:
        self._wanted.clear()

    def resume_reading(self) -> None:
        self._wanted.set()

    def get_write_buffer_size(self) -> int:
        return self._held_bytes

    async def carry_in(self, protocol: asyncio.Protocol) -> None:
        """Hand over what comes, until the stream ends."""
        while data := await self._stream.read():
            await self._wanted.wait()
            if self._closing:
                return
            protocol.data_received(data)

    async def carry_out(self) -> None:
        """Write what is said, until that is closed."""
        while True:
            held, self._held = self._held, []
            if held:
                await self._stream.write(b"".join(held))
                self._held_bytes -= sum(map(len, held))
            elif self._closing:
                await self._stream.finish()
                return
            else:
                self._news.clear()
                await self._news.wait()


async def serve_worker(protocol: asyncio.Protocol, stream: Stream) -> None:
    """Be the connection of a worker of another node; return when it has ended."""
    transport = StreamTransport(stream)
    protocol.connection_made(transport)
    try:
        await _first_of(transport.carry_in(protocol), transport.carry_out())
    finally:
        transport.close()
        protocol.connection_lost(None)


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Do things side by side until one of them has ended; raise what it raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(StreamBroken):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class RemoteWay:
    """Leads workers' connections to the node that leads; made anew for each one that does."""

    def __init__(self, reach: Reach, leader: str) -> None:
        self._reach = reach
        self.leader = leader
        self._ends: set[TunnelEnd] = set()

    def connection(self, process: WorkerProcess) -> TunnelEnd:
        return TunnelEnd(self._reach, self.leader, process, self._ends)

    async def tell_process_end(self, process: WorkerProcess) -> None:
        """Raises Unavailable when the leader has not taken note."""
        try:
            answer = decode(
                await self._reach.request(self.leader, Asked.FORWARD, encode(WorkerEnded(process)), ANSWER_S)
            )
        except (RequestFailed, EnvelopeError) as error:
            raise Unavailable(f"the leader did not take note of it: {error}") from error
        if not isinstance(answer, Done):
            raise NotLeader("the node that was asked does not lead")

    def close(self) -> None:
        """The leader is another, or not known: whoever is connected comes back."""
        for end in list(self._ends):
            end.cut()


class TunnelEnd(asyncio.Protocol):
    """The worker's end: what its connection says goes on the stream, and the other way round."""

    def __init__(self, reach: Reach, leader: str, process: WorkerProcess, ends: set[TunnelEnd]) -> None:
        self._reach = reach
        self._leader = leader
        self._process = process
        self._ends = ends
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._said = bytearray()
        self._is_lost = False
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ends.add(self)
        self._task = asyncio.get_running_loop().create_task(self._carry(self._transport))

    def data_received(self, data: bytes) -> None:
        self._said += data
        self._news.set()
        if len(self._said) > HELD_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._news.set()
        self._writable.set()

    def cut(self) -> None:
        """End the connection at once."""
        if self._task is not None:
            self._task.cancel()

    async def _carry(self, transport: asyncio.Transport) -> None:
        stream: Stream | None = None
        try:
            stream = await self._reach.open_stream(self._leader, Opened.WORKER, encode(Worker(self._process)))
            async with asyncio.timeout(ANSWER_S):
                answer = decode(await read_framed(stream, MAX_UNARY_BYTES))
            if isinstance(answer, Done):
                await _first_of(self._carry_in(stream), self._carry_out(stream, transport))
        except (StreamBroken, EOFError, EnvelopeError, TimeoutError) as error:
            logger.info("a worker's connection to the leader is lost: %s", error, extra={"pid": self._process.pid})
        finally:
            self._ends.discard(self)
            if stream is not None:
                stream.reset("the worker's connection has ended")
            transport.close()

    async def _carry_in(self, stream: Stream) -> None:
        """Write to the leader what the worker says; until it has gone and all that has been taken."""
        while True:
            said, self._said = bytes(self._said), bytearray()
            if said:
                if len(said) > HELD_BYTES and self._transport is not None and not self._is_lost:
                    self._transport.resume_reading()
                await stream.write(said)
            elif self._is_lost:
                await stream.finish()
                await stream.closed
                return
            else:
                self._news.clear()
                await self._news.wait()

    async def _carry_out(self, stream: Stream, transport: asyncio.Transport) -> None:
        """Write to the worker what the leader says."""
        while data := await stream.read():
            await self._writable.wait()
            if self._is_lost:
                continue
            transport.write(data)
