"""Runs operations on blobs, as tasks of the worker's own process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from jobs.clock import wall_ms
from jobs.config import BlobWorker
from jobs.errors import InvalidRequest, JobsError
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import BlobPayload, BlobResult, Reason, StreamInfo
from jobs.protocol.wire import MAX_PROGRESS_MESSAGE, OUTPUT_WINDOW_BYTES, Assignment, Outcome
from jobs.validate import MAX_SPEC_BYTES, check_blob
from jobs.workers.blob.api import NodeApi
from jobs.workers.blob.places import PlaceError, Places
from jobs.workers.blob.work import Work
from jobs.workers.executor import Command, Credit, Ended, Event, Produced, Progressed, Start, Stop, never_ran

logger = logging.getLogger(__name__)

SANDBOX: Final = "worker"
OUTPUT_BYTES: Final = 64 << 20
"""Kept of what one operation says; the rest is counted and dropped."""
PIECE_BYTES: Final = 64 << 10
"""Of output, at once."""
_NOTHING: Final = StreamInfo(bytes=0, stored_bytes=0, truncated=False)
_decode_payload: Final = msgspec.json.Decoder(BlobPayload).decode

_Key: TypeAlias = tuple[JobId, Attempt]
OnEvents: TypeAlias = Callable[[Sequence[Event]], None]


class BlobExecutor:
    """Has one task for each attempt."""

    type: Final = "blob"
    sandbox: Final = SANDBOX

    def __init__(self, config: BlobWorker, node: str, socket: Path) -> None:
        self._config = config
        self._node = node
        self._socket = socket
        self._places = Places(config.allow_files)
        self._running: dict[_Key, _Running] = {}
        self._on_events: OnEvents = lambda events: None

    @property
    def slots(self) -> int:
        return self._config.slots

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

    def close(self) -> None:
        """Give up what runs. What is under way in a thread ends with the piece that it is at."""
        self._on_events = lambda events: None
        for running in list(self._running.values()):
            running.end(Reason.WORKER_LOST, None)

    def _start(self, assignment: Assignment) -> None:
        loop = asyncio.get_running_loop()
        try:
            payload = payload_of(assignment)
        except InvalidRequest as error:
            outcome = never_ran(Reason.INVALID_PAYLOAD, str(error), at_ms=wall_ms(), sandbox=SANDBOX)
            ended = Ended(job=assignment.job, attempt=assignment.attempt, outcome=outcome, segments=[])
            loop.call_soon(self._on_events, [ended])
            return
        node = NodeApi(self._socket, assignment.owner, admin=assignment.admin)
        limit_s = self._config.timeout_s if assignment.timeout_s is None else assignment.timeout_s
        running = _Running(assignment, payload, self._node, self._tell)
        self._running[assignment.job, assignment.attempt] = running
        running.start(Work(node, self._places, running, assignment.job), limit_s)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Ended):
            del self._running[event.job, event.attempt]
        self._on_events([event])


class _Running:
    """An attempt."""

    def __init__(self, assignment: Assignment, payload: BlobPayload, node: str, tell: Callable[[Event], None]) -> None:
        self._job, self._attempt = assignment.job, assignment.attempt
        self._payload = payload
        self._node = node
        self._tell = tell
        self._started_ms, self._started_s = wall_ms(), time.monotonic()
        self._ends_for: Reason | None = None
        self._why: str | None = None
        self._unsafe_bytes = 0
        """Of output, not yet known to be safe at the node."""
        self._room = asyncio.Event()
        self._stored_bytes = self._written_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, work: Work, limit_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        if limit_s is not None:
            why = f"ran for longer than {limit_s:g} s"
            self._timer = loop.call_later(limit_s, self.end, Reason.TIMEOUT, why)
        self._task = loop.create_task(self._run(work))

    def end(self, reason: Reason, why: str | None) -> None:
        """Give it up: what it has asked the node for is given up by that as well."""
        if self._ends_for is None and self._task is not None:
            self._ends_for, self._why = reason, why
            self._task.cancel()

    async def _run(self, work: Work) -> None:
        result: BlobResult | None = None
        reason: Reason | None = None
        message: str | None = None
        try:
            result = await work.carry_out(self._payload)
        except asyncio.CancelledError:
            reason, message = self._ends_for or Reason.WORKER_LOST, self._why
        except (JobsError, PlaceError) as error:
            reason, message = Reason.BLOB_ERROR, f"{self._what()}: {error}"
        except Exception as error:
            logger.exception("an operation failed in a way that is not known", extra={"job": self._job})
            reason, message = Reason.BLOB_ERROR, f"{self._what()}: {type(error).__name__}: {error}"
        if self._ends_for is not None:
            # It may have come to its end in the same moment; what was asked for first counts.
            result, reason, message = None, self._ends_for, self._why
        if self._timer is not None:
            self._timer.cancel()
        outcome = self._outcome(reason, message, result)
        self._tell(Ended(job=self._job, attempt=self._attempt, outcome=outcome, segments=[]))

    def _what(self) -> str:
        """Return what was to be done, where, in words."""
        blob = getattr(self._payload, "hash", None)
        return f"{operation_of(self._payload)}{f' of {blob}' if blob else ''} on node {self._node}"

    def _outcome(self, reason: Reason | None, message: str | None, result: BlobResult | None) -> Outcome:
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
            blob=result,
        )

    # --- what the operation says: `work.Report` -----------------------------------------------------------------------

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


def payload_of(assignment: Assignment) -> BlobPayload:
    """Return what is to be done. Raises InvalidRequest for what cannot be: the node's checks are not relied on."""
    data = assignment.payload
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidRequest(f"the payload takes {len(data)} bytes", expected=f"at most {MAX_SPEC_BYTES}")
    try:
        payload: BlobPayload = _decode_payload(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the payload is not one of an operation on blobs: {error}") from error
    check_blob(payload, "$")
    return payload


def operation_of(payload: BlobPayload) -> str:
    """Return the operation's name."""
    return str(payload.__struct_config__.tag)
