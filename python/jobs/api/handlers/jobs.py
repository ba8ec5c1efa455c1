"""Jobs: submit, list, read, wait, cancel, follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import Meta

from jobs.api.call import Call
from jobs.api.handlers.base import (
    AfterRevision,
    Base,
    Limit,
    Query,
    job_id,
    json_response,
    labels_of,
    last_event_id,
)
from jobs.api.streams import EVENT_STREAM, StreamAnswer, event
from jobs.content import content_of
from jobs.errors import InvalidRequest
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import BatchSubmitted, JobState, LogEvent, Stream, Submitted
from jobs.service import JobFilter

WaitS = Annotated[float, Meta(ge=0, le=300)]
AttemptNumber = Annotated[int, Meta(ge=1, le=1_000_000)]


class ListQuery(Query, frozen=True):
    state: tuple[JobState, ...] = ()
    type: str | None = None
    queue: str | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    worker: str | None = None
    label: tuple[str, ...] = ()
    """name=value"""
    limit: Limit = 100
    cursor: str | None = None
    order: Literal["newest", "oldest"] = "newest"


class ResultQuery(Query, frozen=True):
    attempt: AttemptNumber | None = None
    timeout_s: WaitS = 0.0
    """Wait this long for the job to end."""


class WaitQuery(Query, frozen=True):
    timeout_s: WaitS = 60.0


class LogsQuery(Query, frozen=True):
    stream: tuple[Stream, ...] = ()
    attempt: AttemptNumber | None = None
    follow: bool = False
    after_seq: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1


class JobsWatchQuery(Query, frozen=True):
    state: tuple[JobState, ...] = ()
    type: str | None = None
    queue: str | None = None
    label: tuple[str, ...] = ()
    after_revision: AfterRevision | None = None


class WatchQuery(Query, frozen=True):
    after_revision: AfterRevision | None = None


class JobHandlers(Base):
    async def submit(self, call: Call) -> web.StreamResponse:
        (submitted,) = await self._service.submit(call.caller, [call.body])
        return _submitted(submitted)

    async def submit_batch(self, call: Call) -> web.StreamResponse:
        submitted = await self._service.submit(call.caller, call.body.jobs)
        return json_response(BatchSubmitted(jobs=submitted), 201)

    async def list_jobs(self, call: Call) -> web.StreamResponse:
        query: ListQuery = call.query
        where = JobFilter(
            states=query.state,
            type=query.type,
            queue=query.queue,
            owner=query.owner,
            worker=query.worker,
            labels=labels_of(query.label),
        )
        newest = query.order == "newest"
        return json_response(
            await self._service.list_jobs(
                call.caller, where, limit=query.limit, cursor=query.cursor, newest_first=newest
            )
        )

    async def get_job(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.get(call.caller, job_id(call)))

    async def result(self, call: Call) -> web.StreamResponse:
        query: ResultQuery = call.query
        job = job_id(call)
        if query.timeout_s > 0:
            await self._wait(call, job, query.timeout_s)
        attempt = None if query.attempt is None else Attempt(query.attempt)
        return json_response(await self._service.result(call.caller, job, attempt))

    async def wait(self, call: Call) -> web.StreamResponse:
        query: WaitQuery = call.query
        return json_response(await self._wait(call, job_id(call), query.timeout_s))

    async def _wait(self, call: Call, job: JobId, timeout_s: float) -> Any:
        """Wait until the job is final, the time is over, the client has gone, or the node stops."""
        with self._place(call) as place:
            return await place.result(self._service.wait(call.caller, job, timeout_s))

    async def cancel(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.cancel(call.caller, job_id(call)))

    async def cancel_jobs(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.cancel_many(call.caller, call.body))

    async def logs(self, call: Call) -> web.StreamResponse:
        query: LogsQuery = call.query
        events = EVENT_STREAM in call.request.headers.get("Accept", "")
        attempt, after_seq = _resume_logs(call, query) if events else (query.attempt, query.after_seq)
        with self._place(call) as place:
            if query.follow:
                # The head is sent before there is anything to tell, so what speaks against it has to be known now.
                await self._service.wait(call.caller, job_id(call), 0)
            pieces = self._service.logs(
                call.caller,
                job_id(call),
                attempt=None if attempt is None else Attempt(attempt),
                streams=query.stream or tuple(Stream),
                follow=query.follow,
                after_seq=after_seq,
            )
            stream = StreamAnswer(call.request, self._config, place, at_once=query.follow)
            if events:
                return await stream.send(_log_events(pieces), EVENT_STREAM)
            return await stream.send((piece.data async for piece in pieces), "application/octet-stream")

    async def watch_jobs(self, call: Call) -> web.StreamResponse:
        query: JobsWatchQuery = call.query
        where = JobFilter(states=query.state, type=query.type, queue=query.queue, labels=labels_of(query.label))
        return await self._watch(call, where, None, query.after_revision)

    async def watch_job(self, call: Call) -> web.StreamResponse:
        query: WatchQuery = call.query
        return await self._watch(call, JobFilter(), job_id(call), query.after_revision)

    async def _watch(
        self, call: Call, where: JobFilter, job: JobId | None, after_revision: int | None
    ) -> web.StreamResponse:
        after = last_event_id(call, after_revision)
        events = self._service.watch_jobs(call.caller, where, after_revision=after, job=job)
        with self._place(call) as place:
            return await self._send_revisions(call, place, events)


def _submitted(submitted: Submitted) -> web.Response:
    response = json_response(submitted, 201 if submitted.created else 200)
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    return response


def _resume_logs(call: Call, query: LogsQuery) -> tuple[int | None, int]:
    header = call.request.headers.get("Last-Event-ID")
    if header is None:
        return query.attempt, query.after_seq
    attempt, dot, seq = header.partition(".")
    if not (dot and attempt.isdigit() and seq.isdigit() and header.isascii() and len(header) <= 32):
        raise InvalidRequest(f"{header!r} is no event", field="Last-Event-ID", expected="the id of a former event")
    return int(attempt), int(seq)


async def _log_events(pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        log = LogEvent(attempt=piece.attempt, seq=piece.seq, stream=piece.stream, data=content_of(piece.data))
        yield event(log, f"{piece.attempt}.{piece.seq}")
