"""A worker's end of the protocol, driven by the test: real frames over a real socket, every step under control."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import Artefact, BlobResult, Reason, StreamInfo

T = TypeVar("T")
STEP_S = 10.0
LEAVES_LATER = """
import socket, sys
from jobs.protocol import wire
node = socket.socket(socket.AF_UNIX)
node.connect(sys.argv[1])
node.sendall(wire.encode_frame(wire.Register(
    protocol=wire.PROTOCOL_VERSION, worker="w", type="shell", incarnation="0" * 32, slots=1, labels={}, cpu_milli=0,
    memory_bytes=0, sandbox="strict", pid=0, running=[])))
node.recv(4096)
print("registered", flush=True)
node.close()
sys.stdin.read()
"""
"""A process that registers as a worker at the socket that it is told, hangs up, and ends with its input."""


class WorkerPeer:
    """Registers, receives, reports: exactly what the test says and nothing else."""

    def __init__(self, name: str = "shell-0", *, slots: int = 1, incarnation: str | None = None) -> None:
        self.name = WorkerId(name)
        self.slots = slots
        self.incarnation = Incarnation(incarnation or secrets.token_hex(16))
        self.labels: dict[str, str] = {}
        self._written: Counter[tuple[JobId, Attempt, int]] = Counter()

    async def connect(self, path: Path) -> WorkerPeer:
        self.reader, self.writer = await asyncio.open_unix_connection(str(path))
        return self

    async def register(self, path: Path, running: Sequence[wire.JobRef] = (), **changes: object) -> wire.NodeFrame:
        """Connect and register; return the node's answer."""
        await self.connect(path)
        fields: dict[str, object] = {
            "protocol": wire.PROTOCOL_VERSION,
            "worker": self.name,
            "type": "shell",
            "incarnation": self.incarnation,
            "slots": self.slots,
            "labels": self.labels,
            "cpu_milli": 2_000,
            "memory_bytes": 1 << 30,
            "sandbox": "strict",
            "pid": 1,
            "running": list(running),
        }
        fields.update(changes)
        self.send(wire.Register(**fields))  # type: ignore[arg-type]
        return await self.receive()

    def send(self, frame: wire.WorkerFrame) -> None:
        self.writer.write(wire.encode_frame(frame))

    async def receive(self) -> wire.NodeFrame:
        """Return the next frame that acknowledges no heartbeat; raises EOFError when the node has closed."""
        async with asyncio.timeout(STEP_S):
            while True:
                size = int.from_bytes(await self.reader.readexactly(4), "big")
                frame: wire.NodeFrame = wire.decode_node_frame(await self.reader.readexactly(size))
                if not isinstance(frame, wire.HeartbeatAck):
                    return frame

    async def expect(self, kind: type[T]) -> T:
        frame = await self.receive()
        assert isinstance(frame, kind), f"expected {kind.__name__}, got {frame}"
        return frame

    async def assigned(self) -> wire.Assignment:
        """Return the only job of the next frame, which has to be an assignment."""
        frame = await self.expect(wire.Assign)
        (item,) = frame.jobs
        return item

    def output(self, item: wire.Assignment, seq: int, *segments: tuple[int, bytes]) -> None:
        self._count(item, segments)
        self.send(wire.Output(job=item.job, attempt=item.attempt, seq=seq, segments=list(segments)))

    def finish(
        self,
        item: wire.Assignment,
        *,
        reason: Reason | None = None,
        exit_code: int | None = 0,
        seq: int = 0,
        segments: Sequence[tuple[int, bytes]] = (),
        write: wire.TableWrite | None = None,
        blob: BlobResult | None = None,
        artefacts: Sequence[Artefact] = (),
    ) -> None:
        self._count(item, segments)
        sizes = {stream: self._written[item.job, item.attempt, stream] for stream in (1, 2)}
        outcome = wire.Outcome(
            reason=reason,
            message=None if reason is None else f"{reason}",
            exit_code=exit_code,
            signal=None,
            started_ms=1,
            finished_ms=2,
            wall_s=0.001,
            cpu_user_s=0.0,
            cpu_system_s=0.0,
            peak_memory_bytes=0,
            sandbox="strict",
            stdout=StreamInfo(bytes=sizes[1], stored_bytes=sizes[1], truncated=False),
            stderr=StreamInfo(bytes=sizes[2], stored_bytes=sizes[2], truncated=False),
            blob=blob,
        )
        self.send(
            wire.Finished(
                job=item.job,
                attempt=item.attempt,
                outcome=outcome,
                seq=seq,
                segments=list(segments),
                write=write,
                artefacts=list(artefacts),
            )
        )

    def _count(self, item: wire.Assignment, segments: Sequence[tuple[int, bytes]]) -> None:
        for stream, data in segments:
            self._written[item.job, item.attempt, stream] += len(data)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
