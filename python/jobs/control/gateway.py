"""The leader's end of workers' connections: frames in, transitions out.

Whose a connection is, the node has found out that has the worker's socket. What it sends is bounded and checked before
anything is done with it, and a peer that breaks the protocol is cut off with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.control.blobs.references import Referred
from jobs.control.fleet import Fleet
from jobs.control.jobreferences import NOTHING as NO_REFERENCES
from jobs.control.jobreferences import JobReferences
from jobs.control.tables import NOTHING, TableWrites, write_bytes
from jobs.control.tasks import Spawn
from jobs.control.transitions import Change, Transitions
from jobs.errors import Gone, JobsError, NotFound
from jobs.jobs import Refusal
from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import Execution, JobState, Reason
from jobs.records import JobRecord, LogChunk, ProgressRecord, ResultRecord
from jobs.service import WorkerProcess
from jobs.store import Op, Put

logger = logging.getLogger(__name__)

REGISTER_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 1_024
"""Of the workers of all nodes."""
MAX_ENDED: Final = 256
"""Ended processes that are remembered while a registration of theirs may be under way."""
MAX_OUTSTANDING: Final = 1_024
"""Reports of one worker that may wait to be written before nothing more is read from it."""
SEGMENT_OVERHEAD_BYTES: Final = 64
OUTPUT_BYTES: Final = 1_024
"""About what it takes to say of a file that it was left, and to refer to it."""
PROGRESS_BYTES: Final = 256
"""About what a command takes that stores progress."""


class Gateway:
    """Takes workers' connections."""

    def __init__(
        self,
        transitions: Transitions,
        fleet: Fleet,
        tables: TableWrites,
        references: JobReferences,
        spawn: Spawn,
        *,
        types: frozenset[str],
    ) -> None:
        self.transitions = transitions
        self.fleet = fleet
        self.tables = tables
        self.references = references
        self.spawn = spawn
        self.types = types
        self.connections: set[WorkerConnection] = set()
        self.refused_reports_total = 0
        self._ended: deque[tuple[str, str]] = deque(maxlen=MAX_ENDED)

    def connection(self, process: WorkerProcess) -> WorkerConnection:
        """Return the protocol of a connection that a process has made."""
        return WorkerConnection(self, process)

    async def tell_process_end(self, process: WorkerProcess) -> None:
        """A process that was connected has ended: a worker which it was is lost at once."""
        self._ended.append((process.node, process.process))
        self.fleet.died(process.node, process.process)

    def on_registered(self, process: WorkerProcess) -> None:
        """A worker was taken in; its process may have ended meanwhile."""
        if (process.node, process.process) in self._ended:
            self.fleet.died(process.node, process.process)

    def stop(self) -> None:
        """Cut the connections; the workers keep their jobs and come back."""
        for connection in list(self.connections):
            connection.abort()


class WorkerConnection(asyncio.Protocol):
    """One worker's connection: a `fleet.Session`."""

    def __init__(self, gateway: Gateway, process: WorkerProcess) -> None:
        self._gateway = gateway
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._worker: WorkerId | None = None
        self._incarnation: Incarnation | None = None
        self._registering = False
        self._is_lost = False
        self._register_timer: asyncio.TimerHandle | None = None
        self._outstanding = 0
        self._tails: dict[JobId, asyncio.Task[None]] = {}
        """Last report of each job that is being written: what a job reports is written in the order it came."""

    # --- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if len(self._gateway.connections) >= MAX_CONNECTIONS:
            self._refuse("too_many_connections", f"{MAX_CONNECTIONS} workers are connected already")
        else:
            self._gateway.connections.add(self)
            loop = asyncio.get_running_loop()
            self._register_timer = loop.call_later(REGISTER_TIMEOUT_S, self._on_register_timeout)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position = 0
        view = memoryview(self._buffer)
        try:
            while len(view) - position >= 4:
                size = int.from_bytes(view[position : position + 4], "big")
                if size > wire.MAX_FRAME_BYTES:
                    self._refuse("frame_too_large", f"a frame of {size} bytes; the limit is {wire.MAX_FRAME_BYTES}")
                    return
                if len(view) - position - 4 < size:
                    break
                self._on_frame(wire.decode_worker_frame(view[position + 4 : position + 4 + size]))
                position += 4 + size
        except (msgspec.MsgspecError, ValueError) as error:
            self._refuse("bad_frame", f"a frame cannot be read: {error}")
            return
        finally:
            view.release()
        del self._buffer[:position]

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.connections.discard(self)
        if self._register_timer is not None:
            self._register_timer.cancel()
        self._is_lost = True
        if not self._registering:
            self._let_go()

    def _let_go(self) -> None:
        if self._worker is not None and self._incarnation is not None:
            self._gateway.fleet.disconnected(self._worker, self._incarnation, self)

    # --- what the fleet tells the worker --------------------------------------------------------------------------

    def assign(self, assignments: list[wire.Assignment]) -> None:
        """Send the jobs, in as many frames as their payloads need."""
        batch: list[wire.Assignment] = []
        size = 0
        for item in assignments:
            added = sum(map(len, item.files.values())) + sum(len(value.encode()) for value in item.env.values())
            added += sum(len(secret.data) for secret in item.secrets.values())
            item_bytes = len(item.payload) + added
            if batch and size + item_bytes > wire.MAX_FRAME_BYTES // 2:
                self._send(wire.Assign(jobs=batch))
                batch, size = [], 0
            batch.append(item)
            size += item_bytes
        self._send(wire.Assign(jobs=batch))

    def cancel(self, job: JobId, attempt: Attempt) -> None:
        self._send(wire.Cancel(job=job, attempt=attempt))

    def confirm_stop(self) -> None:
        self._send(wire.DrainConfirmed())

    def supersede(self) -> None:
        self._refuse("superseded", "this life of the worker is no longer registered")

    def close(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever the worker has not taken."""
        if self._transport is not None:
            self._transport.abort()

    # --- frames ---------------------------------------------------------------------------------------------------

    def _on_frame(self, frame: wire.WorkerFrame) -> None:
        if isinstance(frame, wire.Register):
            self._on_register(frame)
        elif self._worker is None or self._incarnation is None:
            self._refuse("not_registered", f"{type(frame).__name__} before Register was answered")
        elif isinstance(frame, wire.Heartbeat):
            if self._gateway.fleet.heartbeat(self._worker, self._incarnation, frame):
                self._send(wire.HeartbeatAck())
            else:
                self.supersede()
        elif isinstance(frame, wire.Output):
            self._in_order(frame.job, partial(self._on_output, frame, self._incarnation))
        elif isinstance(frame, wire.Progress):
            self._in_order(frame.job, partial(self._on_progress, frame, self._incarnation))
        elif isinstance(frame, wire.Finished):
            self._in_order(frame.job, partial(self._on_finished, frame, self._worker, self._incarnation))
        else:
            self._gateway.spawn(self._gateway.fleet.stops(self._worker, self._incarnation))

    def _in_order(self, job: JobId, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        before = self._tails.get(job)

        async def run() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await work()
            except JobsError as error:
                # Not written, so not acknowledged: the worker sends it again when it has come back.
                logger.warning("a worker's report could not be written: %s", error, extra={"job": job})
                self.close()
            finally:
                if self._tails.get(job) is asyncio.current_task():
                    del self._tails[job]
                self._outstanding -= 1
                if self._outstanding == MAX_OUTSTANDING // 2 and self._transport is not None:
                    self._transport.resume_reading()

        self._outstanding += 1
        if self._outstanding == MAX_OUTSTANDING and self._transport is not None:
            self._transport.pause_reading()
        self._tails[job] = self._gateway.spawn(run())

    def _on_register(self, frame: wire.Register) -> None:
        problem = self._registration_problem(frame)
        if problem is not None:
            self._refuse(*problem)
            return
        self._registering = True
        self._gateway.spawn(self._register(frame))

    def _registration_problem(self, frame: wire.Register) -> tuple[str, str] | None:
        if self._worker is not None or self._registering:
            return "already_registered", "a connection registers once"
        if frame.protocol != wire.PROTOCOL_VERSION:
            return "protocol", f"protocol {frame.protocol}; this node speaks {wire.PROTOCOL_VERSION}"
        if frame.type not in self._gateway.types:
            return "unknown_type", f"type {frame.type!r}; known are {', '.join(sorted(self._gateway.types))}"
        if not 1 <= frame.slots <= 65_536:
            return "bad_slots", f"{frame.slots} slots; from 1 to 65536 are possible"
        name = frame.worker.encode()
        if not name or len(name) > 128 or b"\x00" in name or b"/" in name:
            return "bad_name", "a worker's name has 1 to 128 bytes, none of them zero or a slash"
        return None

    async def _register(self, frame: wire.Register) -> None:
        try:
            answer = await self._gateway.fleet.register(frame, self._process, self)
            self._worker, self._incarnation = frame.worker, frame.incarnation
            self._gateway.on_registered(self._process)
        except JobsError as error:
            self._refuse(error.code, str(error))
            return
        finally:
            self._registering = False
            if self._is_lost:
                self._let_go()
        if self._register_timer is not None:
            self._register_timer.cancel()
        if not self._is_lost:
            self._send(answer)
            self._gateway.fleet.resume(frame, self)

    async def _on_output(self, frame: wire.Output, incarnation: Incarnation) -> None:
        held = await self._gateway.transitions.append(
            frame.job,
            lambda record: jobs.is_current(record, frame.attempt, incarnation),
            log_ops(frame.job, frame.attempt, frame.seq, frame.segments),
            weight(frame.segments),
        )
        if held:
            self._send(wire.OutputAck(job=frame.job, attempt=frame.attempt, seq=frame.seq))
        else:
            self._gateway.refused_reports_total += 1
            self._send(wire.Fence(job=frame.job, attempt=frame.attempt))

    async def _on_progress(self, frame: wire.Progress, incarnation: Incarnation) -> None:
        record = ProgressRecord(attempt=frame.attempt, percent=frame.percent, message=frame.message, at_ms=wall_ms())
        try:
            await self._gateway.transitions.append(
                frame.job,
                lambda record: jobs.is_current(record, frame.attempt, incarnation),
                (Put(keys.progress(frame.job), records.encode(record)),),
                PROGRESS_BYTES,
            )
        except JobsError as error:
            # The next one says more: nothing is sent again for this.
            logger.info("progress could not be written: %s", error, extra={"job": frame.job})

    async def _on_finished(self, frame: wire.Finished, worker: WorkerId, incarnation: Incarnation) -> None:
        now_ms, chance = wall_ms(), random.random()  # noqa: S311 - jitter
        queued_ms = 0

        outcome, written, referred = frame.outcome, NOTHING, NO_REFERENCES

        def decide(record: JobRecord) -> jobs.Step:
            nonlocal queued_ms, outcome, written, referred
            queued_ms = record.ready_ms
            if frame.artefacts:
                outcome, referred = self._refer(frame, record.owner)
            if frame.write is not None and frame.outcome.reason is None:
                outcome, written = self._gateway.tables.decide(frame.job, record.owner, frame, now_ms)
            return jobs.on_finished(record, frame.attempt, incarnation, outcome, now_ms, chance)

        def extra(record: JobRecord) -> tuple[Op, ...]:
            execution = execution_of(frame, outcome, worker, incarnation, self._process.node, queued_ms)
            kept = bool(referred[1]) or not frame.artefacts
            result = result_of(record, outcome, execution)
            if kept:
                result = replace(result, artefacts=frame.artefacts, skipped=frame.skipped)
            put = Put(keys.result(frame.job, frame.attempt), records.encode(result))
            return (put, *log_ops(frame.job, frame.attempt, frame.seq, frame.segments), *written.ops, *referred[1])

        done: Change | Refusal
        try:
            size_bytes = 1024 + weight(frame.segments) + write_bytes(frame.write)
            size_bytes += OUTPUT_BYTES * (len(frame.artefacts) + len(frame.skipped))
            done = await self._gateway.transitions.apply(
                frame.job, decide, extra, size_bytes, lambda: (*written.compares, *referred[0])
            )
        except (Gone, NotFound) as error:
            # It ended, by an earlier report, and has been deleted since: there is nothing to send again.
            done = Refusal(error.detail)
        if isinstance(done, Refusal):
            self._gateway.refused_reports_total += 1
            logger.warning("late report refused: %s", done.why, extra={"job": frame.job, "attempt": frame.attempt})
        else:
            fields = {"job": frame.job, "attempt": frame.attempt, "state": done.new.state, "reason": done.new.reason}
            logger.info("attempt ended", extra=fields)
        accepted = not isinstance(done, Refusal)
        self._send(wire.FinishedAck(job=frame.job, attempt=frame.attempt, accepted=accepted))

    def _refer(self, frame: wire.Finished, owner: int) -> tuple[wire.Outcome, Referred]:
        """Return the outcome, and what refers to the files that the attempt has left: it has failed without them."""
        try:
            return frame.outcome, self._gateway.references.of_outputs(frame.job, owner, frame.artefacts)
        except NotFound as error:
            # It was stored a moment ago; somebody has the grace period at nothing.
            message = f"its outputs are gone: {error.detail}"
            lost = replace(frame.outcome, reason=frame.outcome.reason or Reason.BLOB_ERROR, message=message)
            return lost, NO_REFERENCES

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self, frame: wire.NodeFrame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode_frame(frame))

    def _on_register_timeout(self) -> None:
        if self._worker is None and not self._registering:
            self._refuse("register_timeout", f"no Register within {REGISTER_TIMEOUT_S:.0f} s")

    def _refuse(self, code: str, detail: str) -> None:
        logger.warning("worker connection refused: %s", detail, extra={"code": code, "worker": self._worker})
        self._send(wire.Refused(code=code, detail=detail))
        self.close()


def log_ops(job: JobId, attempt: Attempt, seq: int, segments: list[tuple[int, bytes]]) -> tuple[Op, ...]:
    """Return what stores a chunk of output; nothing for an empty one."""
    if not segments:
        return ()
    return (Put(keys.log(job, attempt, seq), records.encode(LogChunk(segments=segments))),)


def weight(segments: list[tuple[int, bytes]]) -> int:
    """Return about how many bytes the segments take in a command."""
    return sum(len(data) for _, data in segments) + SEGMENT_OVERHEAD_BYTES


def execution_of(
    frame: wire.Finished,
    outcome: wire.Outcome,
    worker: WorkerId,
    incarnation: Incarnation,
    node: str,
    queued_ms: int,
) -> Execution:
    return Execution(
        attempt=frame.attempt,
        worker=worker,
        incarnation=incarnation,
        node=node,
        queued_ms=queued_ms,
        started_ms=outcome.started_ms,
        finished_ms=outcome.finished_ms,
        wall_s=outcome.wall_s,
        cpu_user_s=outcome.cpu_user_s,
        cpu_system_s=outcome.cpu_system_s,
        peak_memory_bytes=outcome.peak_memory_bytes,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        sandbox=outcome.sandbox,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        root=outcome.root,
    )


def result_of(record: JobRecord, outcome: wire.Outcome, execution: Execution) -> ResultRecord:
    """Return the record of an attempt that has ended; `record` is the job's after it (a retry makes it pending)."""
    if record.state is JobState.FAILED:
        return ResultRecord(state=record.state, reason=record.reason, message=record.message, execution=execution)
    state = JobState.COMPLETED if outcome.reason is None else JobState.FAILED
    return ResultRecord(
        state=state,
        reason=outcome.reason,
        message=outcome.message,
        execution=execution,
        query=outcome.query,
        blob=outcome.blob,
        maintenance=outcome.maintenance,
        replication=outcome.replication,
    )
