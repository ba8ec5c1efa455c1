"""A node's end of the worker protocol, driven by the test: real frames over a real socket, every step under control."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, JobId, uuid7

T = TypeVar("T")
STEP_S = 20.0
_numbers = itertools.count(1)


class NodePeer:
    """Takes in one worker at a time and does exactly what the test says. Heartbeats are acknowledged only."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "worker.sock"
        self._connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def listen(self) -> None:
        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connections.put((reader, writer))

        self._server = await asyncio.start_unix_server(on_connection, str(self.path))

    async def vanish(self) -> None:
        """Stop listening and cut the connection, as a node that ends does."""
        assert self._server is not None
        self._server.close()
        self.path.unlink()
        self.hang_up()

    def hang_up(self) -> None:
        assert self.writer is not None
        self.writer.transport.abort()

    async def accept(self) -> wire.Register:
        """Wait for a connection and its first frame."""
        async with asyncio.timeout(STEP_S):
            self.reader, self.writer = await self._connections.get()
        return await self.expect(wire.Register)

    async def register(
        self, *, lease_ttl_s: float = 20.0, heartbeat_s: float | None = None, fenced: Sequence[wire.JobRef] = ()
    ) -> wire.Register:
        """Take a worker in; return what it said of itself."""
        frame = await self.accept()
        beat_s = heartbeat_s or lease_ttl_s / 4
        self.send(wire.Registered(node="n", heartbeat_s=beat_s, lease_ttl_s=lease_ttl_s, fenced=list(fenced)))
        return frame

    def send(self, frame: wire.NodeFrame) -> None:
        self.send_bytes(wire.encode_frame(frame))

    def send_bytes(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)

    async def receive(self) -> wire.WorkerFrame:
        """Return the next frame that is no heartbeat; raises EOFError when the worker has closed."""
        async with asyncio.timeout(STEP_S):
            while True:
                size = int.from_bytes(await self.reader.readexactly(4), "big")
                frame: wire.WorkerFrame = wire.decode_worker_frame(await self.reader.readexactly(size))
                if not isinstance(frame, wire.Heartbeat):
                    return frame
                self.send(wire.HeartbeatAck())

    async def heartbeat(self) -> wire.Heartbeat:
        """Return the next heartbeat; no other frame may come before."""
        async with asyncio.timeout(STEP_S):
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            frame = wire.decode_worker_frame(await self.reader.readexactly(size))
            assert isinstance(frame, wire.Heartbeat), frame
            self.send(wire.HeartbeatAck())
            return frame

    async def expect(self, kind: type[T]) -> T:
        frame = await self.receive()
        assert isinstance(frame, kind), f"expected {kind.__name__}, got {frame}"
        return frame

    def assign(self, *, timeout_s: float | None = None, raw: bytes | None = None, **payload: Any) -> wire.JobRef:
        """Give the worker a job with this payload."""
        ref = wire.JobRef(job=new_job(), attempt=Attempt(1))
        data = msgspec.json.encode(payload) if raw is None else raw
        item = wire.Assignment(job=ref.job, attempt=ref.attempt, payload=data, timeout_s=timeout_s, owner=0)
        self.send(wire.Assign(jobs=[item]))
        return ref

    def ack_output(self, frame: wire.Output) -> None:
        self.send(wire.OutputAck(job=frame.job, attempt=frame.attempt, seq=frame.seq))

    def ack_finished(self, frame: wire.Finished, *, accepted: bool = True) -> None:
        self.send(wire.FinishedAck(job=frame.job, attempt=frame.attempt, accepted=accepted))

    async def until_output(self, ref: wire.JobRef, text: bytes) -> wire.Output:
        """Acknowledge output of the job up to the frame that holds `text`; return that one, not acknowledged."""
        while True:
            frame = await self.expect(wire.Output)
            assert frame.job == ref.job
            if any(text in data for _, data in frame.segments):
                return frame
            self.ack_output(frame)

    async def finished(self, ref: wire.JobRef, *, ack: bool = True) -> tuple[wire.Outcome, bytes, bytes]:
        """Acknowledge everything of the only job that runs until it ends; return how, and both streams."""
        streams = {1: bytearray(), 2: bytearray()}
        seq: int | None = None
        while True:
            frame = await self.receive()
            assert isinstance(frame, wire.Output | wire.Finished), frame
            assert (frame.job, frame.attempt) == (ref.job, ref.attempt)
            assert seq is None or frame.seq == seq + 1, "output frames are counted without gaps"
            seq = frame.seq
            for stream, data in frame.segments:
                streams[stream] += data
            if isinstance(frame, wire.Finished):
                if ack:
                    self.ack_finished(frame)
                return frame.outcome, bytes(streams[1]), bytes(streams[2])
            self.ack_output(frame)


def new_job() -> JobId:
    return uuid7(1_800_000_000_000, next(_numbers))
