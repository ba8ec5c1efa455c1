"""What each route does: from a typed call to the service and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from jobs.api.call import Call
from jobs.api.config import ApiConfig
from jobs.api.streams import EVENT_STREAM, Place, StreamAnswer, StreamSlots, event, seen
from jobs.content import content_of
from jobs.errors import InvalidRequest, NotFound, Unavailable
from jobs.protocol.ids import Attempt, JobId, is_job_id
from jobs.protocol.model import (
    BatchSubmitted,
    JobState,
    LogEvent,
    Stream,
    Submitted,
    WorkerList,
)
from jobs.service import JobFilter, Service

_encode = msgspec.json.Encoder().encode

WaitS = Annotated[float, Meta(ge=0, le=300)]
AfterRevision = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
AttemptNumber = Annotated[int, Meta(ge=1, le=1_000_000)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]


class Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every query; this one has no parameters."""


class ListQuery(Query, frozen=True):
    state: list[JobState] = []
    type: str | None = None
    queue: str | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    worker: str | None = None
    label: list[str] = []
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
    stream: list[Stream] = []
    attempt: AttemptNumber | None = None
    follow: bool = False
    after_seq: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1


class JobsWatchQuery(Query, frozen=True):
    state: list[JobState] = []
    type: str | None = None
    queue: str | None = None
    label: list[str] = []
    after_revision: AfterRevision | None = None


class WatchQuery(Query, frozen=True):
    after_revision: AfterRevision | None = None


class KvGetQuery(Query, frozen=True):
    key: str
    revision: AfterRevision = 0


class KvScanQuery(Query, frozen=True):
    prefix: Annotated[str, Meta(min_length=1)]
    limit: Limit = 100
    cursor: str | None = None
    revision: AfterRevision = 0
    keys_only: bool = False


class KvWatchQuery(Query, frozen=True):
    key: str
    prefix: bool = False
    after_revision: AfterRevision | None = None


class Handlers:
    """Every route's function; their names are the OpenAPI operation ids."""

    def __init__(self, service: Service, config: ApiConfig, slots: StreamSlots) -> None:
        self._service = service
        self._config = config
        self._slots = slots

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, call: Call) -> web.StreamResponse:
        (submitted,) = await self._service.submit(call.caller, [call.body])
        return _submitted(submitted)

    async def submit_batch(self, call: Call) -> web.StreamResponse:
        submitted = await self._service.submit(call.caller, call.body.jobs)
        return json_response(BatchSubmitted(jobs=submitted), 201)

    async def list_jobs(self, call: Call) -> web.StreamResponse:
        query: ListQuery = call.query
        where = JobFilter(
            states=tuple(query.state),
            type=query.type,
            queue=query.queue,
            owner=query.owner,
            worker=query.worker,
            labels=_labels(query.label),
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
                streams=tuple(query.stream) or tuple(Stream),
                follow=query.follow,
                after_seq=after_seq,
            )
            stream = StreamAnswer(call.request, self._config, place, at_once=query.follow)
            if events:
                return await stream.send(_log_events(pieces), EVENT_STREAM)
            return await stream.send((piece.data async for piece in pieces), "application/octet-stream")

    async def watch_jobs(self, call: Call) -> web.StreamResponse:
        query: JobsWatchQuery = call.query
        where = JobFilter(states=tuple(query.state), type=query.type, queue=query.queue, labels=_labels(query.label))
        return await self._watch(call, where, None, query.after_revision)

    async def watch_job(self, call: Call) -> web.StreamResponse:
        query: WatchQuery = call.query
        return await self._watch(call, JobFilter(), job_id(call), query.after_revision)

    async def _watch(
        self, call: Call, where: JobFilter, job: JobId | None, after_revision: int | None
    ) -> web.StreamResponse:
        after = _last_event_id(call, after_revision)
        events = self._service.watch_jobs(call.caller, where, after_revision=after, job=job)
        with self._place(call) as place:
            return await self._send_revisions(call, place, events)

    async def _send_revisions(self, call: Call, place: Place, events: AsyncIterator[Any]) -> web.StreamResponse:
        """Send a watch; its first word comes at once, so that the head can wait for it."""
        return await StreamAnswer(call.request, self._config, place, at_once=False).send(
            _revisions(events), EVENT_STREAM
        )

    def _place(self, call: Call) -> AbstractContextManager[Place]:
        return self._slots.take(call.caller.uid, call.gone)

    # --- workers ------------------------------------------------------------------------------------------------

    async def list_workers(self, call: Call) -> web.StreamResponse:
        return json_response(WorkerList(workers=await self._service.workers(call.caller)))

    async def drain_worker(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.drain_worker(call.caller, call.path))

    # --- key-value ----------------------------------------------------------------------------------------------

    async def kv_get(self, call: Call) -> web.StreamResponse:
        query: KvGetQuery = call.query
        found = await self._service.kv_get(call.caller, query.key, query.revision)
        if found is None:
            raise NotFound(f"there is no key {query.key!r}", field="key")
        return json_response(found)

    async def kv_scan(self, call: Call) -> web.StreamResponse:
        query: KvScanQuery = call.query
        return json_response(
            await self._service.kv_scan(
                call.caller,
                query.prefix,
                limit=query.limit,
                cursor=query.cursor,
                revision=query.revision,
                keys_only=query.keys_only,
            )
        )

    async def kv_put(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.kv_put(call.caller, call.body))

    async def kv_delete(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.kv_delete(call.caller, call.body))

    async def kv_txn(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.kv_txn(call.caller, call.body))

    async def kv_watch(self, call: Call) -> web.StreamResponse:
        query: KvWatchQuery = call.query
        after = _last_event_id(call, query.after_revision)
        events = self._service.kv_watch(call.caller, query.key, prefix=query.prefix, after_revision=after)
        with self._place(call) as place:
            return await self._send_revisions(call, place, events)

    async def grant_lease(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.lease_grant(call.caller, call.body.ttl_s), 201)

    async def keep_lease(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.lease_keepalive(call.caller, _lease(call)))

    async def revoke_lease(self, call: Call) -> web.StreamResponse:
        await self._service.lease_revoke(call.caller, _lease(call))
        return web.Response(status=204)

    # --- node ---------------------------------------------------------------------------------------------------

    async def health(self, call: Call) -> web.StreamResponse:
        return json_response(self._service.health())

    async def ready(self, call: Call) -> web.StreamResponse:
        health = self._service.health()
        if health.status != "ok":
            raise Unavailable(f"the node is {health.status}", retry_after_s=1)
        return json_response(health)


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=_encode(body), content_type="application/json")


def job_id(call: Call) -> JobId:
    """Return the job in the path; raise InvalidRequest for what is no id."""
    if not is_job_id(call.path):
        raise InvalidRequest(f"{call.path!r} is no job id", field="id", expected="a UUIDv7 in lower case")
    return JobId(call.path)


def _submitted(submitted: Submitted) -> web.Response:
    response = json_response(submitted, 201 if submitted.created else 200)
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    return response


def _labels(given: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for label in given:
        name, equals, value = label.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{label!r} is no label", field="label", expected="name=value")
        pairs.append((name, value))
    return tuple(pairs)


def _lease(call: Call) -> int:
    if not (call.path.isascii() and call.path.isdigit() and len(call.path) <= 18):
        raise InvalidRequest(f"{call.path!r} is no lease", field="id", expected="a lease's number")
    return int(call.path)


def _last_event_id(call: Call, after_revision: int | None) -> int | None:
    """Return where to go on: the header that a reconnecting client sends wins over the query."""
    header = call.request.headers.get("Last-Event-ID")
    if header is None:
        return after_revision
    if not (header.isascii() and header.isdigit() and len(header) <= 18):
        raise InvalidRequest(f"{header!r} is no revision", field="Last-Event-ID", expected="the id of a former event")
    return int(header)


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


async def _revisions(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for item in events:
        yield seen(str(item)) if isinstance(item, int) else event(item, str(item.revision))
