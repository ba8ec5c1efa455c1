"""Moves the output of attempts that have ended out of the store, into blobs: one a stream, and one of their order.

What is small stays, and so do the beginnings of what is large. The blobs are there and named by the attempt's result
before anything is deleted; which jobs are still to be looked at stands in the store, so that the next leader goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import jobs, keys, logorder, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus, ConsensusError
from jobs.control.blobs import References
from jobs.control.output import KEPT_BYTES, LOG_CHUNKS, SEGMENT_BITS, OutputBlobs
from jobs.control.tasks import Spawn
from jobs.control.transitions import ATTEMPTS, Change, Transitions, check, guard, scan_in_turns
from jobs.errors import BlobQuotaExceeded, Gone, InternalError, JobsError, NotFound
from jobs.logorder import Heads, Place
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Execution, StreamInfo
from jobs.records import LogChunk, MovedOutput, ResultRecord
from jobs.service import Caller
from jobs.store import Delete, Op, Put, Store, Txn, prefix_end

logger = logging.getLogger(__name__)

MOVERS: Final = 2
"""Jobs whose output is moved at a time."""
MAX_KNOWN: Final = 10_000
"""Jobs that memory holds of those that wait; the store has them all."""
STEP_OPS: Final = 500
STEP_DELETED: Final = 2_000
STEP_BYTES: Final = 1 << 20
"""Of one transaction that changes chunks: operations, chunks deleted, bytes written."""
TXN_BYTES: Final = 4_096
RETRY_S: Final = 5.0
"""After a failure of the node, such as a full disk, before anything is moved again."""
REFERENCE: Final = "log"
"""Kind of reference: it counts for as long as the job is there and its output is kept, and is not deleted with them."""


class _Survey(Struct, frozen=True):
    """What an attempt has written."""

    pieces: int
    sizes: tuple[int, int]


class OutputMover:
    """Looks at every job of which an attempt has ended that may have written much."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        references: References,
        blobs: OutputBlobs,
        spawn: Spawn,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._references = references
        self._blobs = blobs
        self._spawn = spawn
        self._waiting: dict[JobId, None] = {}
        self._more_in_store = True
        self._under_way: set[JobId] = set()
        self._movers = 0
        self.moved_total = 0

    def start(self) -> None:
        """Take up what is in the store."""
        self._wake()

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        if not jobs.has_output_to_move(change.new):
            return
        if len(self._waiting) < MAX_KNOWN:
            self._waiting[change.job] = None
        else:
            self._more_in_store = True
        self._wake()

    def _wake(self) -> None:
        if self._movers < MOVERS:
            self._movers += 1
            self._spawn(self._run())

    async def _run(self) -> None:
        try:
            while (job := await self._next()) is not None:
                self._under_way.add(job)
                try:
                    await self._move(job)
                except (Gone, NotFound):
                    pass  # the job is no longer kept; or a blob is gone, and the next leadership looks again
                except (JobsError, ConsensusError) as error:
                    logger.warning("the output of a job cannot be moved yet: %s", error, extra={"job": job})
                    self._more_in_store = True
                    await asyncio.sleep(RETRY_S)
                finally:
                    self._under_way.discard(job)
        finally:
            self._movers -= 1

    async def _next(self) -> JobId | None:
        if not self._waiting and self._more_in_store:
            self._more_in_store = False
            async for rows in scan_in_turns(self._store, keys.OUTPUT_TO_MOVE):
                for row in rows:
                    waiting = keys.job_of(row[0])
                    if waiting not in self._under_way:
                        self._waiting[waiting] = None
                if len(self._waiting) >= MAX_KNOWN:
                    self._more_in_store = True
                    break
        job = next(iter(self._waiting), None)
        if job is not None:
            del self._waiting[job]
        return job

    # --- one job --------------------------------------------------------------------------------------------------

    async def _move(self, job: JobId) -> None:
        """Move what each of its attempts has written. Raises JobsError and ConsensusError; it goes on from there."""
        while (stored := self._transitions.read(job)) is not None and jobs.has_output_to_move(stored.record):
            attempt = Attempt(stored.record.moved + 1)
            result = self._result(job, attempt)
            if result is not None and result.moved is None:
                survey = await self._survey(job, attempt)
                if max(survey.sizes) > jobs.INLINE_BYTES:
                    await self._make_blobs(job, attempt, stored.record.owner, survey)
            result = self._result(job, attempt)
            if result is not None and result.moved is not None:
                await self._delete_rows(job, attempt)
                self.moved_total += 1
            await self._transitions.apply(job, lambda record, done=attempt: jobs.on_output_moved(record, done))  # type: ignore[misc]

    def _result(self, job: JobId, attempt: Attempt) -> ResultRecord | None:
        found = self._store.get(keys.result(job, attempt))
        return None if found is None else records.decode(ResultRecord, found[1])

    async def _survey(self, job: JobId, attempt: Attempt) -> _Survey:
        pieces, sizes = 0, [0, 0]
        async for places in self._places(job, attempt):
            pieces += len(places)
            for place, _ in places:
                sizes[place.stream - 1] += place.size_bytes
        return _Survey(pieces, (sizes[0], sizes[1]))

    async def _places(self, job: JobId, attempt: Attempt) -> AsyncIterator[list[tuple[Place, bytes]]]:
        """Yield every piece with its place, in bounded lots."""
        offsets = [0, 0]
        async for rows in self._rows(job, attempt):
            lot = []
            for key, value in rows:
                first = keys.log_seq_of(key) << SEGMENT_BITS
                for index, (stream, data) in enumerate(records.decode(LogChunk, value).segments):
                    lot.append((Place(first | index, stream, len(data), offsets[stream - 1]), data))
                    offsets[stream - 1] += len(data)
            yield lot

    async def _rows(self, job: JobId, attempt: Attempt) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Yield the chunks of an attempt, in bounded lots."""
        prefix = keys.log_prefix(job, attempt)
        start, more = prefix, True
        while more:
            rows, more = self._store.range(start, prefix_end(prefix), limit=LOG_CHUNKS)
            if rows:
                yield [(row[0], row[1]) for row in rows]
                start = rows[-1][0] + b"\x00"
            await asyncio.sleep(0)

    async def _make_blobs(self, job: JobId, attempt: Attempt, owner: int, survey: _Survey) -> None:
        """Have the blobs made, and name them in the attempt's result."""
        try:
            order = await self._blobs.add(owner, self._order(job, attempt))
            streams = [
                await self._blobs.add(owner, self._stream(job, attempt, number)) if size_bytes else None
                for number, size_bytes in enumerate(survey.sizes, 1)
            ]
        except BlobQuotaExceeded as error:
            # It was accepted, and stays where it is.
            logger.warning("the output of a job stays in the store: %s", error, extra={"job": job})
            return
        await self._name(job, attempt, owner, MovedOutput(order, survey.pieces, (streams[0], streams[1])))

    async def _order(self, job: JobId, attempt: Attempt) -> AsyncIterator[bytes]:
        async for places in self._places(job, attempt):
            yield logorder.encode(place for place, _ in places)

    async def _stream(self, job: JobId, attempt: Attempt, number: int) -> AsyncIterator[bytes]:
        async for places in self._places(job, attempt):
            yield b"".join(data for place, data in places if place.stream == number)

    async def _name(self, job: JobId, attempt: Attempt, owner: int, moved: MovedOutput) -> None:
        """Store where the output is, and that it keeps the blobs. Raises NotFound when one of them is gone."""
        caller = Caller(uid=owner, gid=owner, admin=False)
        for _ in range(ATTEMPTS):
            stored = self._transitions.read(job)
            result = self._result(job, attempt)
            if stored is None or result is None or not jobs.has_output_to_move(stored.record):
                return
            compares, ops = self._references.ops(moved.blobs, REFERENCE, job, caller, wall_ms())
            named = replace(result, moved=moved, execution=_naming(result.execution, moved))
            put = Put(keys.result(job, attempt), records.encode(named))
            done = await self._consensus.propose(Txn((guard(job, stored), *compares), (put, *ops)), TXN_BYTES)
            check(done)
            if done.succeeded:
                return
        raise InternalError(f"job {job} changed {ATTEMPTS} times while its output was moved")

    async def _delete_rows(self, job: JobId, attempt: Attempt) -> None:
        """Delete what the store need not hold any more. Begun anew after a part of it, it comes to the same."""
        heads = Heads(KEPT_BYTES)
        step = _Step()
        async for rows in self._rows(job, attempt):
            for key, value in rows:
                chunk = records.decode(LogChunk, value)
                staying = heads.take(chunk.segments)
                if not staying:
                    step.delete(key)
                elif staying != chunk.segments:
                    step.put(key, records.encode(LogChunk(segments=staying)))
                else:
                    step.keep(key)
                if step.is_full:
                    await self._apply(job, step)
                    step = _Step()
        await self._apply(job, step)

    async def _apply(self, job: JobId, step: _Step) -> None:
        if ops := step.ops():
            await self._transitions.append(job, jobs.has_output_to_move, ops, step.size_bytes)


class _Step:
    """Changes of chunks, one after the other, for one transaction: chunks in a row are deleted by one operation."""

    def __init__(self) -> None:
        self._ops: list[Op] = []
        self._first: bytes | None = None
        """Of the chunks in a row that are to be deleted."""
        self._last = b""
        self._deleted = 0
        self.size_bytes = TXN_BYTES

    @property
    def is_full(self) -> bool:
        return len(self._ops) >= STEP_OPS or self._deleted >= STEP_DELETED or self.size_bytes >= STEP_BYTES

    def delete(self, key: bytes) -> None:
        self._first, self._last = self._first or key, key
        self._deleted += 1

    def keep(self, key: bytes) -> None:
        if self._first is not None:
            self._ops.append(Delete(self._first, key))
            self._first = None

    def put(self, key: bytes, value: bytes) -> None:
        self.keep(key)
        self._ops.append(Put(key, value))
        self.size_bytes += len(value)

    def ops(self) -> tuple[Op, ...]:
        self.keep(self._last + b"\x00")
        return tuple(self._ops)


def _naming(execution: Execution | None, moved: MovedOutput) -> Execution | None:
    """Return an execution that says which blobs hold what was written."""
    if execution is None:
        return None
    stdout, stderr = moved.streams
    return replace(execution, stdout=_info(execution.stdout, stdout), stderr=_info(execution.stderr, stderr))


def _info(info: StreamInfo, blob: str | None) -> StreamInfo:
    return replace(info, blob=blob if info.stored_bytes > jobs.INLINE_BYTES else None)
