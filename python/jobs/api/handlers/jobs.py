"""Jobs: submit, list, read, wait, cancel, follow."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import (
    AfterRevision,
    Base,
    Limit,
    ReadQuery,
    checked_job_id,
    job_id,
    labels_of,
    last_event_id,
    submitted_answer,
)
from jobs.api.streams import EVENT_STREAM, StreamAnswer, event, seen
from jobs.content import content_of
from jobs.errors import InvalidRequest
from jobs.protocol.ids import MAX_TASKS, Attempt, JobId
from jobs.protocol.model import MAX_TAIL_BYTES, BatchSubmitted, JobState, LogEvent, Stream
from jobs.service import JobFilter, LogPiece, LogPosition, LogsWanted

WaitS = Annotated[float, Meta(ge=0, le=300)]
_LOG_EVENT_ID: Final = re.compile(r"([1-9][0-9]{0,6})\.(-1|[0-9]{1,18})")
AttemptNumber = Annotated[int, Meta(ge=1, le=1_000_000)]


class ListQuery(ReadQuery, frozen=True):
    state: tuple[JobState, ...] = ()
    type: str | None = None
    queue: str | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    worker: str | None = None
    schedule: str | None = None
    label: tuple[str, ...] = ()
    """name=value"""
    array: str | None = None
    """The tasks of this array instead of everything but tasks."""
    index: Annotated[str, Meta(pattern=r"^[0-9]{1,7}(-[0-9]{1,7})?\Z")] | None = None
    """Of the array's tasks, this one, or these: 10-20."""
    limit: Limit = 100
    cursor: str | None = None
    order: Literal["newest", "oldest"] = "newest"


class ResultQuery(ReadQuery, frozen=True):
    attempt: AttemptNumber | None = None
    timeout_s: WaitS = 0.0
    """Wait this long for the job to end."""


class WaitQuery(ReadQuery, frozen=True):
    timeout_s: WaitS = 60.0


class LogsQuery(ReadQuery, frozen=True):
    stream: tuple[Stream, ...] = ()
    attempt: AttemptNumber | Literal["all"] | None = None
    """`all`: one after the other. By default the last one, with `follow` also those to come."""
    follow: bool = False
    after_seq: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] | None = None
    tail_lines: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    tail_bytes: Annotated[int, Meta(ge=0, le=MAX_TAIL_BYTES)] | None = None
    """0: from now on."""


class JobsWatchQuery(ReadQuery, frozen=True):
    state: tuple[JobState, ...] = ()
    type: str | None = None
    queue: str | None = None
    schedule: str | None = None
    label: tuple[str, ...] = ()
    array: str | None = None
    """Of the tasks of this array instead of everything but tasks."""
    after_revision: AfterRevision | None = None


class WatchQuery(ReadQuery, frozen=True):
    after_revision: AfterRevision | None = None


class JobHandlers(Base):
    async def submit(self, call: Call) -> Answer:
        (submitted,) = await self._service.submit(call.caller, [call.body])
        return submitted_answer(submitted)

    async def submit_batch(self, call: Call) -> Answer:
        submitted = await self._service.submit(call.caller, call.body.jobs)
        return json_answer(BatchSubmitted(jobs=submitted), 201)

    async def list_jobs(self, call: Call) -> Answer:
        query: ListQuery = call.query
        where = JobFilter(
            states=query.state,
            type=query.type,
            queue=query.queue,
            owner=query.owner,
            worker=query.worker,
            schedule=query.schedule,
            labels=labels_of(query.label),
            array=None if query.array is None else checked_job_id(query.array, "array"),
            indices=_span(query),
        )
        newest = query.order == "newest"
        return json_answer(
            await self._service.list_jobs(
                call.caller, where, limit=query.limit, cursor=query.cursor, newest_first=newest
            )
        )

    async def get_job(self, call: Call) -> Answer:
        return json_answer(await self._service.get(call.caller, job_id(call)))

    async def result(self, call: Call) -> Answer:
        query: ResultQuery = call.query
        job = job_id(call)
        if query.timeout_s > 0:
            await self._wait(call, job, query.timeout_s)
        attempt = None if query.attempt is None else Attempt(query.attempt)
        return json_answer(await self._service.result(call.caller, job, attempt))

    async def wait(self, call: Call) -> Answer:
        query: WaitQuery = call.query
        return json_answer(await self._wait(call, job_id(call), query.timeout_s))

    async def _wait(self, call: Call, job: JobId, timeout_s: float) -> Any:
        """Wait until the job is final, the time is over, the client has gone, or the node stops."""
        with self._place(call) as place:
            return await place.result(self._service.wait(call.caller, job, timeout_s))

    async def cancel(self, call: Call) -> Answer:
        return json_answer(await self._service.cancel(call.caller, job_id(call)))

    async def cancel_jobs(self, call: Call) -> Answer:
        return json_answer(await self._service.cancel_many(call.caller, call.body))

    async def explain(self, call: Call) -> Answer:
        return json_answer(await self._service.explain(call.caller, job_id(call)))

    async def attempts(self, call: Call) -> Answer:
        return json_answer(await self._service.attempts(call.caller, job_id(call)))

    async def logs(self, call: Call) -> Answer:
        query: LogsQuery = call.query
        events = EVENT_STREAM in call.ask.headers.get("Accept", "")
        after = _log_position(call) if events else None
        if after is None and query.after_seq is not None:
            after = LogPosition(None, query.after_seq)
        wanted = LogsWanted(
            attempt=query.attempt if query.attempt is None or query.attempt == "all" else Attempt(query.attempt),
            streams=query.stream or tuple(Stream),
            follow=query.follow,
            after=after,
            tail_lines=query.tail_lines,
            tail_bytes=query.tail_bytes,
        )
        with self._place(call) as place:
            pieces = self._service.logs(call.caller, job_id(call), wanted)
            stream = StreamAnswer(call.outlet, self._config, place, at_once=False)
            if events:
                return await stream.send(_log_events(pieces), EVENT_STREAM)
            return await stream.send((piece.data async for piece in pieces), "application/octet-stream")

    async def watch_jobs(self, call: Call) -> Answer:
        query: JobsWatchQuery = call.query
        where = JobFilter(
            states=query.state,
            type=query.type,
            queue=query.queue,
            schedule=query.schedule,
            labels=labels_of(query.label),
            array=None if query.array is None else checked_job_id(query.array, "array"),
        )
        return await self._watch(call, where, None, query.after_revision)

    async def watch_job(self, call: Call) -> Answer:
        query: WatchQuery = call.query
        return await self._watch(call, JobFilter(), job_id(call), query.after_revision)

    async def _watch(self, call: Call, where: JobFilter, job: JobId | None, after_revision: int | None) -> Answer:
        after = last_event_id(call, after_revision)
        events = self._service.watch_jobs(call.caller, where, after_revision=after, job=job)
        with self._place(call) as place:
            return await self._send_revisions(call, place, events)


def _span(query: ListQuery) -> tuple[int, int]:
    """Return the first and the last index of tasks that are asked for."""
    if query.index is None:
        return 0, MAX_TASKS - 1
    if query.array is None:
        raise InvalidRequest("an index is of an array's task", field="index", expected="array=ID with it")
    first, _, last = query.index.partition("-")
    return min(int(first), MAX_TASKS - 1), min(int(last or first), MAX_TASKS - 1)


def _log_position(call: Call) -> LogPosition | None:
    """Return where a reconnecting client goes on."""
    header = call.ask.headers.get("Last-Event-ID")
    if header is None:
        return None
    found = _LOG_EVENT_ID.fullmatch(header)
    if found is None:
        raise InvalidRequest(f"{header!r} is no event", field="Last-Event-ID", expected="the id of a former event")
    return LogPosition(Attempt(int(found[1])), int(found[2]))


async def _log_events(pieces: AsyncIterator[LogPiece]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        position = f"{piece.attempt}.{piece.seq}"
        if piece.data:
            data = content_of(piece.data)
            yield event(LogEvent(attempt=piece.attempt, seq=piece.seq, stream=piece.stream, data=data), position)
        else:
            yield seen(position)
