"""Reads: one job, pages of jobs, results, logs, waiting and watching. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from jobs import jobs, keys, records
from jobs.content import content_of
from jobs.control.arraystore import find, spec_key, watched
from jobs.control.dependencies import parents_of
from jobs.control.graph import Graphs
from jobs.control.hub import Hub
from jobs.control.listing import jobs_in_order, state_prefix
from jobs.control.logs import Logs, output_is_gone
from jobs.control.output import OutputBlobs, Outputs, beginnings, without_blobs
from jobs.control.transitions import Barrier, Stored, missing, read_gone, view
from jobs.errors import Forbidden, InvalidRequest, NotFinished, NotFound
from jobs.protocol.ids import Attempt, JobId, Revision
from jobs.protocol.model import (
    MAX_ATTEMPTS,
    AttemptList,
    AttemptView,
    JobDetail,
    JobEvent,
    JobGraph,
    JobPage,
    JobResult,
    JobState,
    JobView,
    Progress,
    Stream,
)
from jobs.records import GoneRecord, JobRecord, ProgressRecord, ResultRecord
from jobs.service import Caller, JobFilter, LogPiece, LogsWanted
from jobs.store import Store, prefix_end

PAGE_SCAN_ROWS: Final = 10_000
"""Jobs that are looked at for one page, whether they match or not."""
TURN_ROWS: Final = 256
"""Of them, those that are looked at without a pause."""


class Queries:
    """Reads of the local store for one caller, each after a barrier: linearizable by the leader's, stale by none."""

    def __init__(
        self,
        barrier: Barrier,
        store: Store,
        hub: Hub,
        output_blobs: OutputBlobs,
        array_progress: Callable[[JobId], Awaitable[Progress]],
    ) -> None:
        self._barrier = barrier
        self._store = store
        self._hub = hub
        self._logs = Logs(barrier, store, hub, Outputs(store, output_blobs))
        self._graphs = Graphs(store)
        self._array_progress = array_progress

    async def read(self, caller: Caller, job: JobId) -> Stored:
        """Return the job's record; raises NotFound, Gone, and Forbidden for another owner's."""
        await self._barrier()
        stored = find(self._store, job)
        if stored is None:
            gone = read_gone(self._store, job)
            if gone is not None and not may_see(caller, gone):
                raise _not_theirs(job, gone.owner)
            raise missing(self._store, job)
        if not may_see(caller, stored.record):
            raise _not_theirs(job, stored.record.owner)
        return stored

    async def get(self, caller: Caller, job: JobId) -> JobDetail:
        stored = await self.read(caller, job)
        spec = self._store.get(spec_key(job, stored.record))
        if spec is None:
            raise NotFound(f"the submission of job {job} is no longer kept")
        return JobDetail(
            job=view(job, stored.record, stored.revision),
            spec=records.decode_spec(spec[1]),
            progress=await self._array_progress(job) if stored.record.tasks else self.progress(job, stored.record),
            parents=parents_of(self._store, job),
        )

    def progress(self, job: JobId, record: JobRecord) -> Progress | None:
        """Return what the present or last attempt of a job, which is no array, last said of itself."""
        found = self._store.get(keys.progress(job))
        if found is None:
            return None
        said = records.decode(ProgressRecord, found[1])
        # What a former attempt said tells nothing of this one.
        if said.attempt != record.attempt:
            return None
        return Progress(percent=said.percent, message=said.message, at_ms=said.at_ms)

    async def list_jobs(
        self, caller: Caller, where: JobFilter, *, limit: int, cursor: str | None, newest_first: bool
    ) -> JobPage:
        await self._barrier()
        revision = Revision(self._store.revision)
        found: list[JobView] = []
        last: bytes | None = None
        more = False
        after = None if cursor is None else decode_cursor(cursor, keys.STATE)
        walk = jobs_in_order(self._store, where, after, newest_first, min(TURN_ROWS, 4 * limit))
        for looked, (key, record, changed) in enumerate(walk):
            if len(found) == limit or looked == PAGE_SCAN_ROWS:
                more = True
                break
            if looked % TURN_ROWS == TURN_ROWS - 1:
                await asyncio.sleep(0)  # others have their turn
            last = key
            if may_see(caller, record) and matches(where, record):
                found.append(view(keys.job_of(key), record, changed))
        next_cursor = encode_cursor(last) if more and last is not None else None
        return JobPage(jobs=found, next_cursor=next_cursor, revision=revision)

    async def result(self, caller: Caller, job: JobId, attempt: Attempt | None) -> JobResult:
        stored = await self.read(caller, job)
        record = stored.record
        if attempt is None:
            if not record.state.is_final:
                raise NotFinished(f"job {job} is {record.state}", expected="a job that is completed or failed")
            attempt = record.attempt
        found = self._store.get(keys.result(job, attempt))
        output = beginnings(self._store, job, attempt, dict.fromkeys(Stream, jobs.INLINE_BYTES))
        stdout, stderr = content_of(output[Stream.STDOUT]), content_of(output[Stream.STDERR])
        if found is not None:
            ended = records.decode(ResultRecord, found[1])
            is_gone = output_is_gone(self._store, job, record)
            return JobResult(
                id=job,
                state=ended.state,
                reason=ended.reason,
                message=ended.message,
                stdout=stdout,
                stderr=stderr,
                execution=without_blobs(ended.execution) if is_gone else ended.execution,
                logs_gone=is_gone,
                query=ended.query,
                blob=ended.blob,
                maintenance=ended.maintenance,
                replication=ended.replication,
                artefacts=ended.artefacts,
                skipped=ended.skipped,
            )
        if attempt != record.attempt:
            raise NotFound(f"job {job} has no result of attempt {attempt}; it is at attempt {record.attempt}")
        if not record.state.is_final:
            raise NotFinished(f"attempt {attempt} of job {job} has not ended")
        return JobResult(
            id=job,
            state=record.state,
            reason=record.reason,
            message=record.message,
            stdout=stdout,
            stderr=stderr,
            execution=None,
        )

    async def wait(self, caller: Caller, job: JobId, timeout_s: float) -> JobView:
        deadline = asyncio.get_running_loop().time() + timeout_s
        record = (await self.read(caller, job)).record
        with self._hub.waiter(*watched(job, record)) as waiter:
            while True:
                stored = await self.read(caller, job)
                left_s = deadline - asyncio.get_running_loop().time()
                if stored.record.state.is_final or left_s <= 0 or not await waiter.wait(left_s):
                    stored = await self.read(caller, job)
                    return view(job, stored.record, stored.revision)

    async def logs(self, caller: Caller, job: JobId, wanted: LogsWanted) -> AsyncIterator[LogPiece]:
        record = (await self.read(caller, job)).record
        if record.tasks:
            raise InvalidRequest("an array writes nothing itself", field="id", expected="the id of one of its tasks")
        async for piece in self._logs.follow(job, wanted):
            yield piece

    async def attempts(self, caller: Caller, job: JobId) -> AttemptList:
        record = (await self.read(caller, job)).record
        prefix = keys.results_prefix(job)
        rows, _ = self._store.range(prefix, prefix_end(prefix), limit=MAX_ATTEMPTS)
        found = [attempt_view(keys.attempt_of(key), records.decode(ResultRecord, value)) for key, value, *_ in rows]
        if record.state is JobState.RUNNING:
            found.append(
                AttemptView(
                    attempt=record.attempt,
                    state=record.state,
                    reason=None,
                    message=None,
                    worker=record.worker,
                    started_ms=record.started_ms,
                    finished_ms=None,
                    execution=None,
                )
            )
        return AttemptList(attempts=found, logs_gone=output_is_gone(self._store, job, record))

    async def graph(self, caller: Caller, job: JobId, *, limit: int) -> JobGraph:
        await self.read(caller, job)
        return self._graphs.around(job, limit)

    async def watch_jobs(
        self, caller: Caller, where: JobFilter, *, after_revision: int | None, job: JobId | None
    ) -> AsyncIterator[JobEvent | int]:
        if job is not None:
            await self.read(caller, job)
        prefix = keys.state(job) if job is not None else state_prefix(where)
        async for events in self._hub.watch(prefix, after_revision):
            if isinstance(events, int):
                yield events
                continue
            for revision, key, value, *_ in events:
                if value is None:
                    continue
                record = records.decode(JobRecord, value)
                if may_see(caller, record) and (job is not None or matches(where, record)):
                    yield JobEvent(revision=Revision(revision), job=view(keys.job_of(key), record, revision))


def _not_theirs(job: JobId, owner: int) -> Forbidden:
    return Forbidden(f"job {job} belongs to uid {owner}", expected="its owner or an admin")


def may_see(caller: Caller, record: JobRecord | GoneRecord) -> bool:
    return caller.admin or caller.uid == record.owner


def check_admin(caller: Caller, what: str) -> None:
    """Raise Forbidden for anybody else."""
    if not caller.admin:
        raise Forbidden(f"only administrators may {what}", expected="a member of the admin group")


def matches(where: JobFilter, record: JobRecord) -> bool:
    return (
        (not where.states or record.state in where.states)
        and (where.type is None or record.type == where.type)
        and (where.queue is None or record.queue == where.queue)
        and (where.owner is None or record.owner == where.owner)
        and (where.worker is None or record.worker == where.worker)
        and (where.schedule is None or record.schedule == where.schedule)
        and all(record.labels.get(name) == value for name, value in where.labels)
        and record.is_task == (where.array is not None)
    )


def encode_cursor(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode()


def decode_cursor(cursor: str, prefix: bytes, field: str = "cursor") -> bytes:
    """Return the key in a cursor of ours; raises InvalidRequest for anything else."""
    try:
        key = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key.startswith(prefix) or len(key) > 1024:
        raise InvalidRequest("the cursor is not one of ours", field=field, expected="next_cursor of a former page")
    return key


def attempt_view(attempt: Attempt, result: ResultRecord) -> AttemptView:
    """Return an attempt that has ended as a client sees it."""
    execution = result.execution
    return AttemptView(
        attempt=attempt,
        state=result.state,
        reason=result.reason,
        message=result.message,
        worker=result.worker if execution is None else execution.worker,
        started_ms=result.started_ms if execution is None else execution.started_ms,
        finished_ms=result.finished_ms if execution is None else execution.finished_ms,
        execution=execution,
    )
