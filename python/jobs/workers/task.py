"""Runs jobs as tasks of the worker's own process: those of the types whose work the node does, or all but files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from jobs.clock import wall_ms
from jobs.errors import InvalidRequest, JobsError
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason, StreamInfo
from jobs.protocol.wire import MAX_PROGRESS_MESSAGE, OUTPUT_WINDOW_BYTES, Assignment, Outcome
from jobs.workers.executor import Command, Credit, Ended, Event, Produced, Progressed, Start, Stop, never_ran
from jobs.workers.nodeapi import NodeApi
from jobs.workers.payloads import checked

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")
Given = TypeVar("Given", contravariant=True)
Result = TypeVar("Result", covariant=True)
SANDBOX: Final = "worker"
OUTPUT_BYTES: Final = 64 << 20
"""Kept of what one task says; the rest is counted and dropped."""
PIECE_BYTES: Final = 64 << 10
"""Of output, at once."""
_NOTHING: Final = StreamInfo(bytes=0, stored_bytes=0, truncated=False)
_Key: TypeAlias = tuple[JobId, Attempt]
OnEvents: TypeAlias = Callable[[Sequence[Event]], None]


class TaskError(Exception):
    """Why a task failed, in words for the job's owner."""


class Report(Protocol):
    """Where a task tells of itself."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Of `total`, which is 0 while that is not known, so much is done."""

    async def write(self, data: bytes) -> None:
        """Add to the job's standard output; waits until there is room."""

    def drop(self, size_bytes: int) -> None:
        """So much more would have been written."""


class TaskKind(Struct, Generic[P, R], frozen=True, kw_only=True):
    """A type of job whose attempts are tasks."""

    type: str
    noun: str
    """What a payload is one of, such as "an operation on blobs"."""
    failure: Reason
    """Of an attempt whose work raised."""
    decode: Callable[[bytes], P]
    """From the payload as it is stored: JSON."""
    check: Callable[[P, str], None]
    """Raise InvalidRequest for what cannot be done; the text is where the payload stands."""
    called: Callable[[P], str]
    """What is done, in words."""
    begin: Callable[[NodeApi, Report, JobId], Work[P, R]]
    """Return what carries one out for the owner that the node is asked for."""
    put: Callable[[Outcome, R], Outcome]
    """Return the outcome with what it came to."""
    endless: Callable[[P], bool] = lambda payload: False
    """Tell whether it goes on until it is ended."""


class Work(Protocol[Given, Result]):
    """Carries a payload out for the owner of one job."""

    async def carry_out(self, payload: Given) -> Result:
        """Return what it came to. Raises errors of `jobs.errors`, and TaskError. It may be begun again at any time, and
        is given up by cancelling it."""


class TaskExecutor(Generic[P, R]):
    """Has one task for each attempt."""

    sandbox: Final = SANDBOX

    def __init__(
        self, kind: TaskKind[P, R], *, slots: int, timeout_s: float | None, node: str, api_socket: Path
    ) -> None:
        """`timeout_s` is the longest time of a job that has none; `node` is named where something fails."""
        self._kind = kind
        self._slots = slots
        self._timeout_s = timeout_s
        self._node = node
        self._api_socket = api_socket
        self._running: dict[_Key, _Running[P, R]] = {}
        self._on_events: OnEvents = lambda events: None

    @property
    def type(self) -> str:
        return self._kind.type

    @property
    def slots(self) -> int:
        return self._slots

    def attach(self, on_events: OnEvents, on_lost: Callable[[str], None]) -> None:
        self._on_events = on_events

    def perform(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Start(assignment):
                    self._start(assignment)
                case Stop(job=job, attempt=attempt, reason=reason):
                    if (running := self._running.get((job, attempt))) is not None:
                        running.end(reason, None)
                case Credit(job=job, attempt=attempt, count=count):
                    if (running := self._running.get((job, attempt))) is not None:
                        running.credit(count)

    def drain(self) -> None:
        for running in list(self._running.values()):
            if running.is_endless:
                running.end(Reason.WORKER_LOST, "its worker was stopped")

    def close(self) -> None:
        """Give up what runs. What is under way in a thread ends with the piece that it is at."""
        self._on_events = lambda events: None
        for running in list(self._running.values()):
            running.end(Reason.WORKER_LOST, None)

    def _start(self, assignment: Assignment) -> None:
        loop = asyncio.get_running_loop()
        try:
            payload = checked(assignment.payload, self._kind.decode, self._kind.check, self._kind.noun)
        except InvalidRequest as error:
            outcome = never_ran(Reason.INVALID_PAYLOAD, str(error), at_ms=wall_ms(), sandbox=SANDBOX)
            ended = Ended(job=assignment.job, attempt=assignment.attempt, outcome=outcome, segments=[])
            loop.call_soon(self._on_events, [ended])
            return
        node = NodeApi(self._api_socket, assignment.owner, admin=assignment.admin)
        limit_s = self._timeout_s if assignment.timeout_s is None else assignment.timeout_s
        what = f"{self._kind.called(payload)} on node {self._node}"
        running = _Running(self._kind, assignment, what, self._tell, is_endless=self._kind.endless(payload))
        self._running[assignment.job, assignment.attempt] = running
        running.start(self._kind.begin(node, running, assignment.job), payload, limit_s)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Ended):
            del self._running[event.job, event.attempt]
        self._on_events([event])


class _Running(Generic[P, R]):
    """An attempt."""

    def __init__(
        self,
        kind: TaskKind[P, R],
        assignment: Assignment,
        what: str,
        tell: Callable[[Event], None],
        *,
        is_endless: bool,
    ) -> None:
        self._job, self._attempt = assignment.job, assignment.attempt
        self._kind = kind
        self._what = what
        self._tell = tell
        self._started_ms, self._started_s = wall_ms(), time.monotonic()
        self._ends_for: Reason | None = None
        self._why: str | None = None
        self._unsafe_bytes = 0
        """Of output, not yet known to be safe at the node."""
        self._room = asyncio.Event()
        self._stored_bytes = self._written_bytes = 0
        self.is_endless = is_endless
        self._task: asyncio.Task[R] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, work: Work[P, R], payload: P, limit_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        if limit_s is not None:
            why = f"ran for longer than {limit_s:g} s"
            self._timer = loop.call_later(limit_s, self.end, Reason.TIMEOUT, why)
        self._task = loop.create_task(work.carry_out(payload))
        # It may be cancelled before it has begun, so it cannot tell of its end by itself.
        self._task.add_done_callback(self._on_end)

    def end(self, reason: Reason, why: str | None) -> None:
        """Give it up: what it has asked the node for is given up by that as well."""
        if self._ends_for is None and self._task is not None:
            self._ends_for, self._why = reason, why
            self._task.cancel()

    def _on_end(self, task: asyncio.Task[R]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        error = None if task.cancelled() else task.exception()
        if self._ends_for is not None:
            # It may have come to its end in the same moment; what was asked for first counts.
            outcome = self._outcome(self._ends_for, self._why)
        elif task.cancelled():
            outcome = self._outcome(Reason.WORKER_LOST, None)
        elif error is None:
            outcome = self._kind.put(self._outcome(None, None), task.result())
        elif isinstance(error, JobsError | TaskError):
            outcome = self._outcome(self._kind.failure, f"{self._what}: {error}")
        else:
            logger.error("a job failed in a way that is not known", exc_info=error, extra={"job": self._job})
            outcome = self._outcome(self._kind.failure, f"{self._what}: {type(error).__name__}: {error}")
        self._tell(Ended(job=self._job, attempt=self._attempt, outcome=outcome, segments=[]))

    def _outcome(self, reason: Reason | None, message: str | None) -> Outcome:
        return Outcome(
            reason=reason,
            message=message,
            exit_code=None,
            signal=None,
            started_ms=self._started_ms,
            finished_ms=wall_ms(),
            wall_s=time.monotonic() - self._started_s,
            cpu_user_s=0.0,
            cpu_system_s=0.0,
            peak_memory_bytes=0,
            sandbox=SANDBOX,
            stdout=StreamInfo(
                bytes=self._written_bytes,
                stored_bytes=self._stored_bytes,
                truncated=self._stored_bytes < self._written_bytes,
            ),
            stderr=_NOTHING,
        )

    # --- what the work says: `Report` ---------------------------------------------------------------------------------

    def progress(self, done: int, total: int, message: str = "") -> None:
        percent = min(100.0, 100.0 * done / total) if total else 0.0
        text = message[:MAX_PROGRESS_MESSAGE] or None
        self._tell(Progressed(job=self._job, attempt=self._attempt, percent=percent, message=text))

    async def write(self, data: bytes) -> None:
        kept = data[: max(0, OUTPUT_BYTES - self._stored_bytes)]
        self._written_bytes += len(data)
        for start in range(0, len(kept), PIECE_BYTES):
            piece = kept[start : start + PIECE_BYTES]
            while self._unsafe_bytes + len(piece) > OUTPUT_WINDOW_BYTES:
                self._room.clear()
                await self._room.wait()
            self._unsafe_bytes += len(piece)
            self._stored_bytes += len(piece)
            self._tell(Produced(job=self._job, attempt=self._attempt, segments=[(1, piece)]))

    def drop(self, size_bytes: int) -> None:
        self._written_bytes += size_bytes

    def credit(self, count: int) -> None:
        self._unsafe_bytes -= count
        self._room.set()
