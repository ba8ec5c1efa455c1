"""What jobs have written: read from any place in it, to its end or on as it comes, attempt after attempt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import Struct

from jobs import jobs, keys
from jobs.control.arraystore import find, watched
from jobs.control.hub import Hub
from jobs.control.output import Outputs
from jobs.control.transitions import Barrier, missing
from jobs.errors import InvalidRequest, LogsGone, NotFound
from jobs.protocol.ids import Attempt, JobId, array_id
from jobs.protocol.model import MAX_TAIL_BYTES, Stream
from jobs.records import JobRecord
from jobs.service import LogPiece, LogsWanted
from jobs.store import Store


class _Start(Struct, frozen=True):
    """Where to begin: after a piece of an attempt, and so many bytes into what follows."""

    attempt: Attempt
    after_seq: int = -1
    skip_bytes: int = 0


class Logs:
    """Reads the output of jobs that the caller may see."""

    def __init__(self, barrier: Barrier, store: Store, hub: Hub, outputs: Outputs) -> None:
        self._barrier = barrier
        self._store = store
        self._hub = hub
        self._outputs = outputs

    async def follow(self, job: JobId, wanted: LogsWanted) -> AsyncGenerator[LogPiece]:
        """Yield the pieces that are asked for, first an empty one that tells the position before them.

        Raises NotFound for an attempt that is not there, and LogsGone.
        """
        record = await self._read_kept(job)
        first, last = _attempts(job, record, wanted)
        start = await self._start(job, first, record, wanted)
        attempt, seq, skip_bytes = start.attempt, start.after_seq, start.skip_bytes
        yield LogPiece(attempt=attempt, seq=seq, stream=Stream.STDOUT, data=b"")
        with self._hub.waiter(keys.LOG + job.encode(), *watched(job, record)) as waiter:
            while True:
                record = await self._read_kept(job)
                pieces = await self._outputs.after(job, attempt, wanted.streams, seq)
                for piece in pieces:
                    seq = piece.seq
                    yield piece if not skip_bytes else cut(piece, skip_bytes)
                    skip_bytes = 0
                if pieces:
                    continue
                if record.attempt > attempt and (last is None or attempt < last):
                    attempt, seq = Attempt(attempt + 1), -1
                elif record.state.is_final or not wanted.follow or (attempt == last and _is_over(record, attempt)):
                    return
                else:
                    await waiter.wait(None)

    # --- where to begin -------------------------------------------------------------------------------------------

    async def _read_kept(self, job: JobId) -> JobRecord:
        """Return the job's record; raises LogsGone when its output is no longer kept."""
        await self._barrier()
        stored = find(self._store, job)
        if stored is None:
            raise missing(self._store, job)
        record = stored.record
        if output_is_gone(self._store, job, record):
            raise LogsGone(f"the output of job {job} is no longer kept", expected="a longer retention.logs_s")
        return record

    async def _start(self, job: JobId, first: Attempt, record: JobRecord, wanted: LogsWanted) -> _Start:
        if wanted.after is not None:
            return _Start(wanted.after.attempt or first, wanted.after.seq)
        if wanted.tail_lines is None and wanted.tail_bytes is None:
            return _Start(first)
        if wanted.tail_lines is not None and wanted.tail_bytes is not None:
            raise InvalidRequest("a number of lines and one of bytes", field="tail_bytes", expected="one of the two")
        tail = Tail(wanted.tail_lines, wanted.tail_bytes)
        for attempt in range(max(first, record.attempt), first - 1, -1):
            found = await self._walk_back(job, Attempt(attempt), wanted.streams, tail)
            if found is not None:
                return found
        return _Start(first)

    async def _walk_back(self, job: JobId, attempt: Attempt, streams: Sequence[Stream], tail: Tail) -> _Start | None:
        """Return where the tail begins; None when it begins before this attempt."""
        async with aclosing(self._outputs.back(job, attempt, streams)) as lots:
            async for lot in lots:
                for piece in lot:
                    skip_bytes = tail.take(piece.data)
                    if skip_bytes == len(piece.data):
                        return _Start(attempt, piece.seq)
                    if skip_bytes is not None:
                        return _Start(attempt, piece.seq - 1, skip_bytes)
        return None


def output_is_gone(store: Store, job: JobId, record: JobRecord) -> bool:
    """Tell whether what the job has written is no longer kept; of an array's tasks that goes at once."""
    array = find(store, array_id(job)) if record.is_task else None
    return record.logs_gone or (array is not None and array.record.logs_gone)


class Tail:
    """Finds where the last so many lines or bytes begin, given what there is from the end backwards."""

    def __init__(self, lines: int | None, size_bytes: int | None) -> None:
        self._left_lines = lines
        self._left_bytes = MAX_TAIL_BYTES if size_bytes is None else min(size_bytes, MAX_TAIL_BYTES)
        self._at_end = True

    def take(self, data: bytes) -> int | None:
        """Return where in the piece the tail begins (its length: after it), None when that is further back."""
        if not data:
            return None
        earliest = max(0, len(data) - self._left_bytes)
        self._left_bytes -= len(data) - earliest
        start = self._line_start(data)
        self._at_end = False
        if start is not None and start >= earliest:
            return start
        return earliest if earliest > 0 or self._left_bytes == 0 else None

    def _line_start(self, data: bytes) -> int | None:
        """Return where the first of the lines begins, if that is here."""
        if self._left_lines is None:
            return None
        if self._left_lines == 0:
            return len(data)
        # The end of the last line begins no other one.
        end = len(data) - 1 if self._at_end and data.endswith(b"\n") else len(data)
        found = data.count(b"\n", 0, end)
        if found < self._left_lines:
            self._left_lines -= found
            return None
        for _ in range(self._left_lines):
            end = data.rindex(b"\n", 0, end)
        return end + 1


def cut(piece: LogPiece, skip_bytes: int) -> LogPiece:
    return LogPiece(attempt=piece.attempt, seq=piece.seq, stream=piece.stream, data=piece.data[skip_bytes:])


def _attempts(job: JobId, record: JobRecord, wanted: LogsWanted) -> tuple[Attempt, Attempt | None]:
    """Return the first and the last attempt to show; None for those to come as well."""
    last = None if wanted.follow else record.attempt
    if wanted.attempt is None:
        return Attempt(max(record.attempt, 1)), last
    if wanted.attempt == "all":
        return Attempt(1), last
    if wanted.attempt > record.attempt and (record.state.is_final or not wanted.follow):
        raise NotFound(f"job {job} has no attempt {wanted.attempt}; it is at attempt {record.attempt}")
    return wanted.attempt, wanted.attempt


def _is_over(record: JobRecord, attempt: Attempt) -> bool:
    return record.attempt > attempt or (record.attempt == attempt and record.state is jobs.PENDING)
