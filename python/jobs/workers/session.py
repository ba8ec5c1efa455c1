"""What a worker knows of its attempts and owes its node: pure, frames, events and time in, frames and commands out.

Handlers change the state and add to what `take` returns. Everything that a node has not acknowledged is kept and sent
again after a reconnect: output by its sequence numbers, the end of an attempt until the node says that it has it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from heapq import heappop, heappush
from typing import Final, TypeAlias, assert_never

from msgspec import Struct, field

from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import PressureKind, Reason
from jobs.protocol.wire import (
    OUTPUT_CHUNK_BYTES,
    PROTOCOL_VERSION,
    Assign,
    Assignment,
    Cancel,
    DrainConfirmed,
    Draining,
    Fence,
    Finished,
    FinishedAck,
    Heartbeat,
    HeartbeatAck,
    JobRef,
    NodeFrame,
    Output,
    OutputAck,
    Progress,
    Refused,
    Register,
    Registered,
    WorkerFrame,
)
from jobs.workers.executor import Command, Credit, Ended, Event, Produced, Progressed, Segments, Start, Stop, never_ran

MAX_WAITING: Final = 65_536
"""Attempts beyond the slots that a node may assign; more is no honest node."""
PROGRESS_INTERVAL_S: Final = 1.0
"""The node is told of an attempt's progress no more often than this, and of the last before its end."""

_Key: TypeAlias = tuple[JobId, Attempt]


class ProtocolError(Exception):
    """The node sent what it must not; the connection is of no more use."""


class RefusedError(Exception):
    """The node does not take this worker."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code


class Identity(Struct, frozen=True, kw_only=True):
    """What the worker says of itself."""

    worker: WorkerId
    incarnation: Incarnation
    type: str
    slots: int
    labels: dict[str, str]
    cpu_milli: int
    memory_bytes: int
    sandbox: str
    pid: int
    resources: dict[str, int] = {}


class Effects(Struct, frozen=True):
    """What is to be done now: frames to send to the node, commands for the executor."""

    frames: list[WorkerFrame]
    commands: list[Command]


class _Phase(Enum):
    WAITING = auto()
    """Assigned, and no slot is free: one of a fenced attempt is still being cleared."""
    RUNNING = auto()
    ENDED = auto()
    """Over, and the node has not acknowledged it."""


class _Held(Struct):
    """One attempt."""

    assignment: Assignment | None
    """Only while it waits: a running job needs no copy of its payload."""
    phase: _Phase = _Phase.WAITING
    fenced: bool = False
    """No longer this worker's: nothing more is reported of it."""
    next_seq: int = 0
    unacked: deque[tuple[Output, int]] = field(default_factory=deque)
    """Output frames and their bytes, oldest first; bounded by the executor's window."""
    finished: Finished | None = None
    progress: Progress | None = None
    """The newest that is not sent; due at `progress_due_s`."""
    progress_due_s: float = 0.0


class Session:
    """One life of a worker, over any number of connections."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.registered = False
        """A connection is up and the node has answered."""
        self.draining = False
        self.heartbeat_s = 0.0
        self._drain_known = False
        """The node has confirmed that it assigns nothing more."""
        self._lease_ttl_s: float | None = None
        self._contact_s = 0.0
        """When that was sent by which the leader kept the lease last, as far as it has said so."""
        self._beats: deque[float] = deque()
        """When the registration and the heartbeats were sent that it has not acknowledged."""
        self._held: dict[_Key, _Held] = {}
        self._waiting: deque[_Key] = deque()
        self._progress_due: list[tuple[float, _Key]] = []
        """Heap of when the progress of which attempt may be sent."""
        self._occupied = 0
        """Attempts that the executor has."""
        self._effects = Effects([], [])

    # --- what the driver asks -----------------------------------------------------------------------------------

    def take(self) -> Effects:
        """Return what has to be done since the last call."""
        effects, self._effects = self._effects, Effects([], [])
        return effects

    @property
    def running(self) -> int:
        """Attempts that the executor has, those that are being ended included."""
        return self._occupied

    @property
    def unreported(self) -> int:
        """Attempts that have ended without the node's acknowledgement."""
        return sum(held.phase is _Phase.ENDED for held in self._held.values())

    @property
    def is_drained(self) -> bool:
        """Nothing is left to do, and nothing more will come."""
        return self.draining and not self._held and (self._drain_known or not self.registered)

    @property
    def lease_ends_s(self) -> float | None:
        """When the node may have given the jobs to others; None before the first and after the end of one."""
        return None if self._lease_ttl_s is None else self._contact_s + self._lease_ttl_s

    @property
    def progress_due_s(self) -> float | None:
        """When `on_progress_due` has to be called, if at all."""
        return self._progress_due[0][0] if self._progress_due else None

    def register(self, now_s: float) -> Register:
        """Return the first frame of a connection, which is sent now."""
        self._beats = deque((now_s,))
        me = self.identity
        return Register(
            protocol=PROTOCOL_VERSION,
            worker=me.worker,
            type=me.type,
            incarnation=me.incarnation,
            slots=me.slots,
            labels=me.labels,
            cpu_milli=me.cpu_milli,
            memory_bytes=me.memory_bytes,
            sandbox=me.sandbox,
            pid=me.pid,
            running=[
                JobRef(job=job, attempt=attempt) for (job, attempt), held in self._held.items() if not held.fenced
            ],
            resources=me.resources,
        )

    # --- connection and time --------------------------------------------------------------------------------------

    def on_disconnected(self) -> None:
        self.registered = self._drain_known = False
        self._beats.clear()

    def on_heartbeat_due(self, now_s: float, pressure: dict[PressureKind, float], *, pressed: bool) -> None:
        if self.registered:
            self._beats.append(now_s)
            self._send(Heartbeat(pressure=pressure, pressed=pressed))

    def on_progress_due(self, now_s: float) -> None:
        """Send the progress that was held back for not being told too often."""
        while self._progress_due and self._progress_due[0][0] <= now_s:
            held = self._held.get(heappop(self._progress_due)[1])
            if held is not None and held.progress_due_s <= now_s:
                self._send_progress(held, now_s)

    def drain(self) -> None:
        """Take no more jobs."""
        if not self.draining:
            self.draining = True
            self._send(Draining())

    def end_all(self, wall_ms: int, *, now: bool) -> None:
        """End every attempt as lost with this worker; each is reported so, unless it ends by itself before."""
        for key, held in list(self._held.items()):
            self._stop(key, held, Reason.WORKER_LOST, wall_ms, now=now)

    def end_lease(self, wall_ms: int) -> None:
        """The node may have given the jobs to others: end them at once."""
        self._lease_ttl_s = None
        self.end_all(wall_ms, now=True)

    # --- what the node says ---------------------------------------------------------------------------------------

    def on_frame(self, frame: NodeFrame, now_s: float, wall_ms: int) -> None:
        """Take in one frame, at a time of a steady clock and of the wall clock.

        Raises ProtocolError for one that no node may send now, RefusedError when the node refuses the worker.
        """
        if isinstance(frame, Refused):
            raise RefusedError(frame.code, frame.detail)
        if isinstance(frame, Registered):
            self._on_registered(frame, now_s)
            return
        if not self.registered:
            raise ProtocolError(f"{type(frame).__name__} before Registered")
        self._on_order(frame, wall_ms)

    def _on_order(
        self, frame: Assign | OutputAck | FinishedAck | Cancel | Fence | HeartbeatAck | DrainConfirmed, wall_ms: int
    ) -> None:
        match frame:
            case Assign():
                self._on_assign(frame)
            case OutputAck():
                self._on_output_ack(frame)
            case FinishedAck():
                self._on_finished_ack(frame)
            case Cancel():
                key = (frame.job, frame.attempt)
                if key in self._held:
                    self._stop(key, self._held[key], Reason.CANCELLED, wall_ms, now=False)
            case Fence():
                self._fence((frame.job, frame.attempt))
            case HeartbeatAck():
                self._on_contact(frame)
            case DrainConfirmed():
                if not self.draining:
                    raise ProtocolError("DrainConfirmed without Draining")
                self._drain_known = True
            case _:
                assert_never(frame)

    def _on_registered(self, frame: Registered, now_s: float) -> None:
        if self.registered:
            raise ProtocolError("Registered twice on one connection")
        if not 0 < frame.heartbeat_s < frame.lease_ttl_s:
            raise ProtocolError(f"heartbeat_s {frame.heartbeat_s} does not fit lease_ttl_s {frame.lease_ttl_s}")
        self._on_contact(frame)
        self.registered = True
        self.heartbeat_s, self._lease_ttl_s = frame.heartbeat_s, frame.lease_ttl_s
        for ref in frame.fenced:
            self._fence((ref.job, ref.attempt))
        for held in self._held.values():
            if not held.fenced:
                for output, _ in held.unacked:
                    self._send(output)
                self._send_progress(held, now_s)
                if held.finished is not None:
                    self._send(held.finished)
        if self.draining:
            self._send(Draining())

    def _on_contact(self, frame: Registered | HeartbeatAck) -> None:
        """The lease was kept. Only that counts, from when it was asked for: whatever else comes may be old, and a node
        that is alive may have no contact with the leader."""
        if not self._beats:
            raise ProtocolError(f"{type(frame).__name__} of what was not sent")
        self._contact_s = self._beats.popleft()

    def _on_assign(self, frame: Assign) -> None:
        for assignment in frame.jobs:
            key = (assignment.job, assignment.attempt)
            if key in self._held:  # Told again after a reconnect.
                continue
            if len(self._waiting) >= MAX_WAITING:
                raise ProtocolError(f"more than {MAX_WAITING} attempts beyond the {self.identity.slots} slots")
            self._held[key] = _Held(assignment)
            self._waiting.append(key)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and self._occupied < self.identity.slots:
            held = self._held.get(self._waiting.popleft())
            if held is not None and held.assignment is not None:
                self._occupied += 1
                self._effects.commands.append(Start(held.assignment))
                held.phase, held.assignment = _Phase.RUNNING, None

    def _on_output_ack(self, frame: OutputAck) -> None:
        held = self._held.get((frame.job, frame.attempt))
        if held is None:
            return
        if frame.seq >= held.next_seq:
            raise ProtocolError(f"OutputAck of {frame.job} up to {frame.seq}, sent were {held.next_seq}")
        count = 0
        while held.unacked and held.unacked[0][0].seq <= frame.seq:
            count += held.unacked.popleft()[1]
        if count and held.phase is _Phase.RUNNING:
            self._effects.commands.append(Credit(job=frame.job, attempt=frame.attempt, count=count))

    def _on_finished_ack(self, frame: FinishedAck) -> None:
        held = self._held.get((frame.job, frame.attempt))
        if held is None:
            return
        if held.finished is None:
            raise ProtocolError(f"FinishedAck of {frame.job}, which has not been reported")
        del self._held[frame.job, frame.attempt]

    def _fence(self, key: _Key) -> None:
        held = self._held.get(key)
        if held is None:
            return
        if held.phase is _Phase.RUNNING:
            held.fenced = True
            held.unacked.clear()
            self._stop(key, held, Reason.WORKER_LOST, 0, now=True)
        else:
            del self._held[key]

    def _stop(self, key: _Key, held: _Held, reason: Reason, wall_ms: int, *, now: bool) -> None:
        job, attempt = key
        if held.phase is _Phase.RUNNING:
            self._effects.commands.append(Stop(job=job, attempt=attempt, reason=reason, now=now))
        elif held.phase is _Phase.WAITING:
            held.assignment = None
            outcome = never_ran(reason, "ended before it was started", at_ms=wall_ms, sandbox=self.identity.sandbox)
            self._finish(held, Ended(job=job, attempt=attempt, outcome=outcome, segments=[]))

    # --- what the executor says -----------------------------------------------------------------------------------

    def on_event(self, event: Event, now_s: float) -> None:
        """Take in output, progress or the end of an attempt, at a time of a steady clock."""
        held = self._held.get((event.job, event.attempt))
        assert held is not None, f"an event of {event.job}, which the executor was not given"
        match event:
            case Produced() if not held.fenced:
                for segments in chunks(event.segments):
                    self._output(event.job, event.attempt, held, segments)
            case Progressed() if not held.fenced:
                self._on_progress(held, event, now_s)
            case Ended():
                self._occupied -= 1
                if held.fenced:
                    del self._held[event.job, event.attempt]
                else:
                    self._send_progress(held, now_s)
                    self._finish(held, event)
                self._start_waiting()

    def _output(self, job: JobId, attempt: Attempt, held: _Held, segments: Segments) -> None:
        output = Output(job=job, attempt=attempt, seq=held.next_seq, segments=segments)
        held.next_seq += 1
        held.unacked.append((output, sum(len(data) for _, data in segments)))
        self._send(output)

    def _on_progress(self, held: _Held, event: Progressed, now_s: float) -> None:
        is_queued = held.progress is not None
        job, attempt = event.job, event.attempt
        held.progress = Progress(job=job, attempt=attempt, percent=event.percent, message=event.message)
        if held.progress_due_s <= now_s:
            self._send_progress(held, now_s)
        elif not is_queued:
            heappush(self._progress_due, (held.progress_due_s, (job, attempt)))

    def _send_progress(self, held: _Held, now_s: float) -> None:
        """Send what progress there is; without a connection it is kept for the next one."""
        if held.progress is not None and self.registered:
            self._send(held.progress)
            held.progress, held.progress_due_s = None, now_s + PROGRESS_INTERVAL_S

    def _finish(self, held: _Held, event: Ended) -> None:
        *more, last = chunks(event.segments) or [[]]
        for segments in more:
            self._output(event.job, event.attempt, held, segments)
        held.phase = _Phase.ENDED
        held.finished = Finished(
            job=event.job,
            attempt=event.attempt,
            outcome=event.outcome,
            seq=held.next_seq,
            segments=last,
            write=event.write,
            artefacts=event.artefacts,
            skipped=event.skipped,
        )
        held.next_seq += 1
        self._send(held.finished)

    def _send(self, frame: WorkerFrame) -> None:
        """Send if there is anyone to send to; otherwise it is made up for after the next registration."""
        if self.registered:
            self._effects.frames.append(frame)


def chunks(segments: Segments) -> list[Segments]:
    """Cut output into pieces of at most OUTPUT_CHUNK_BYTES, in order; none is empty."""
    pieces: list[Segments] = []
    room = 0
    for stream, data in segments:
        start = 0
        while start < len(data):
            if not room:
                pieces.append([])
                room = OUTPUT_CHUNK_BYTES
            part = data[start : start + room]
            pieces[-1].append((stream, part))
            start, room = start + len(part), room - len(part)
    return pieces
