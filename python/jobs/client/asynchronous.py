"""The asynchronous client: aiohttp over a Unix socket."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from jobs.client import common
from jobs.client.common import ConnectionFailed, EventParser, Request, SentEvent, get, post, segment, stream
from jobs.errors import JobsError, NotFound
from jobs.protocol.model import (
    BatchSubmitted,
    CancelOutcome,
    Health,
    JobDetail,
    JobEvent,
    JobPage,
    JobResult,
    JobSubmit,
    JobView,
    KeyValue,
    KvCompare,
    KvDelete,
    KvEvent,
    KvOp,
    KvPage,
    KvTxnResult,
    Lease,
    LeaseGrant,
    LogEvent,
    Stream,
    Submitted,
    WorkerList,
    WorkerView,
)

T = TypeVar("T")
_BASE = "http://localhost"


class AsyncClient:
    """Talks to one node from one event loop; methods and errors are those of `Client`. Use it with `async with`."""

    def __init__(self, socket_path: str | None = None, *, tries: int = common.TRIES) -> None:
        self.socket_path = socket_path or common.default_socket()
        self._tries = tries
        self._session: aiohttp.ClientSession | None = None
        self.kv = AsyncKeyValueClient(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client may be used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, job: JobSubmit) -> Submitted:
        """Submit a job; returns once it is durable."""
        return await self.call(post("/v1/jobs", common.with_key(job), safe=True), Submitted)

    async def submit_many(self, jobs: Iterable[JobSubmit]) -> list[Submitted]:
        """Submit jobs in lots of `BATCH_JOBS`, each of which is accepted whole or not at all."""
        done: list[Submitted] = []
        for batch in common.batches(jobs):
            done += (await self.call(post("/v1/jobs:batch", {"jobs": batch}, safe=True), BatchSubmitted)).jobs
        return done

    async def shell(self, command: Sequence[str] | str, **options: Any) -> Submitted:
        """Submit a command; see `jobs.client.common.shell_job` for the options."""
        return await self.submit(common.shell_job(command, **options))

    async def run(self, job: JobSubmit, timeout_s: float | None = None) -> JobResult:
        """Submit a job and return its result; raises NotFinished after `timeout_s`."""
        submitted = await self.submit(job)
        limit_s = common.POLL_S * 1e6 if timeout_s is None else timeout_s
        return await self.result(submitted.job.id, timeout_s=limit_s)

    async def get(self, job: str) -> JobDetail:
        return await self.call(get(f"/v1/jobs/{segment(job)}"), JobDetail)

    async def list(self, **where: Any) -> AsyncIterator[JobView]:
        """Yield jobs, newest first; see `jobs.client.common.list_query` for the filters."""
        cursor: str | None = None
        while True:
            page = await self.call(get("/v1/jobs", common.list_query(**{**where, "cursor": cursor})), JobPage)
            for job in page.jobs:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def wait(self, job: str, timeout_s: float | None = None) -> JobView:
        """Return the job as soon as it is final, or as it is after `timeout_s` (None: wait for ever)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = common.POLL_S if deadline is None else min(common.POLL_S, max(0.0, deadline - time.monotonic()))
            path = f"/v1/jobs/{segment(job)}/wait"
            view = await self.call(get(path, {"timeout_s": left_s}, wait_s=left_s), JobView)
            if view.state.is_final or (deadline is not None and time.monotonic() >= deadline):
                return view

    async def result(self, job: str, *, attempt: int | None = None, timeout_s: float = 0.0) -> JobResult:
        """Return the result, waiting up to `timeout_s` for it; raises NotFinished."""
        if timeout_s > common.POLL_S:
            await self.wait(job, timeout_s - common.POLL_S)
            timeout_s = common.POLL_S
        query = {"attempt": attempt, "timeout_s": timeout_s or None}
        return await self.call(get(f"/v1/jobs/{segment(job)}/result", query, wait_s=timeout_s), JobResult)

    async def cancel(self, job: str) -> CancelOutcome:
        """End a job; asking again changes nothing."""
        return await self.call(post(f"/v1/jobs/{segment(job)}/cancel", safe=True), CancelOutcome)

    def logs(
        self, job: str, *, streams: Sequence[Stream] = (), attempt: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogEvent]:
        """Yield pieces of output; with `follow` until the job is final. Goes on after a lost connection."""
        query = {"stream": list(streams), "attempt": attempt, "follow": follow}
        return self.events(f"/v1/jobs/{segment(job)}/logs", query, LogEvent)

    def watch(
        self, job: str | None = None, *, after_revision: int | None = None, **where: Any
    ) -> AsyncIterator[JobEvent]:
        """Yield changes of one job, or of all that match, without end. Goes on after a lost connection."""
        if job is not None:
            return self.events(f"/v1/jobs/{segment(job)}/watch", {"after_revision": after_revision}, JobEvent)
        filters = common.list_query(**where)
        query = {name: filters[name] for name in ("state", "type", "queue", "label")}
        return self.events("/v1/jobs:watch", {**query, "after_revision": after_revision}, JobEvent)

    # --- workers and node ---------------------------------------------------------------------------------------

    async def workers(self) -> Sequence[WorkerView]:
        return (await self.call(get("/v1/workers"), WorkerList)).workers

    async def drain(self, worker: str) -> WorkerView:
        return await self.call(post(f"/v1/workers/{segment(worker)}/drain", safe=True), WorkerView)

    async def health(self) -> Health:
        return await self.call(get("/v1/health"), Health)

    async def ready(self) -> Health:
        """Return the node's health; raises Unavailable while it does not serve."""
        return await self.call(get("/v1/ready"), Health)

    async def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return (await self.send(get("/metrics"))).decode()

    # --- requests -----------------------------------------------------------------------------------------------

    async def call(self, request: Request, kind: type[T]) -> T:
        """Send a request and return its typed answer."""
        return common.decode(kind, await self.send(request))

    async def send(self, request: Request) -> bytes:
        """Send a request and return its answer's body, trying again where that is safe and may help."""
        attempt = 0
        while True:
            try:
                async with self._open(request) as response:
                    data: bytes = await response.read()
                    if response.status >= 400:
                        raise common.error_of(response.status, data, response.headers.get("Retry-After"))
                    return data
            except (aiohttp.ClientError, OSError, TimeoutError) as cause:
                error: JobsError = self._failure(cause)
                error.__cause__ = cause
            except JobsError as known:
                error = known
            attempt += 1
            if attempt >= self._tries or not request.safe or not common.is_transient(error):
                raise error
            await asyncio.sleep(common.pause_s(attempt, error, random.random()))  # noqa: S311 - jitter

    def _open(self, request: Request) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket_path, limit=0))
        total_s = None if request.headers.get("Accept") == common.EVENT_STREAM else request.timeout_s
        return self._session.request(
            request.method,
            URL(_BASE + request.target, encoded=True),
            data=request.body,
            headers=request.headers,
            timeout=aiohttp.ClientTimeout(total=total_s, sock_read=request.timeout_s),
        )

    def _failure(self, error: Exception) -> ConnectionFailed:
        if isinstance(error, aiohttp.ClientConnectorError):
            return common.refused(self.socket_path, error.os_error)
        return ConnectionFailed(f"the node went away: {error or type(error).__name__}")

    async def events(self, path: str, query: Mapping[str, Any], kind: type[T]) -> AsyncIterator[T]:
        """Yield the typed events of a stream, going on after a lost connection where it was."""
        resume: str | None = None
        failures = 0
        while True:
            try:
                async for event in self._stream_once(stream(path, query, resume)):
                    resume, failures = event.id or resume, 0
                    item = common.decode_event(kind, event)
                    if item is not None:
                        yield item
                return
            except JobsError as error:
                failures += 1
                if failures >= self._tries or not common.is_transient(error):
                    raise
                await asyncio.sleep(common.pause_s(failures, error, random.random()))  # noqa: S311 - jitter

    async def _stream_once(self, request: Request) -> AsyncIterator[SentEvent]:
        try:
            async with self._open(request) as response:
                if response.status >= 400:
                    data = await response.read()
                    raise common.error_of(response.status, data, response.headers.get("Retry-After"))
                parser = EventParser()
                async for data in response.content.iter_any():
                    for event in parser.feed(data):
                        yield event
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._failure(error) from error


class AsyncKeyValueClient:
    """Key-value operations: `client.kv`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """Return the key, or None when it is not there."""
        try:
            return await self._client.call(get("/v1/kv", {"key": key, "revision": revision}), KeyValue)
        except NotFound:
            return None

    async def put(self, key: str, value: bytes | str, *, lease: int = 0) -> KvTxnResult:
        return await self._client.call(post("/v1/kv:put", common.put_of(key, value, lease)), KvTxnResult)

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all with a prefix; return how many."""
        done = await self._client.call(post("/v1/kv:delete", KvDelete(key=key, prefix=prefix)), KvTxnResult)
        return done.results[0].deleted or 0

    async def scan(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> AsyncIterator[KeyValue]:
        """Yield every key with a prefix, all as they were at one revision."""
        query: dict[str, Any] = {"prefix": prefix, "revision": revision, "keys_only": keys_only, "limit": 1000}
        while True:
            page = await self._client.call(get("/v1/kv:scan", query), KvPage)
            for kv in page.kvs:
                yield kv
            if page.next_cursor is None:
                return
            query |= {"cursor": page.next_cursor, "revision": page.revision}

    async def txn(
        self, *, compare: Sequence[KvCompare] = (), then: Sequence[KvOp] = (), otherwise: Sequence[KvOp] = ()
    ) -> KvTxnResult:
        return await self._client.call(post("/v1/kv:txn", common.txn_of(compare, then, otherwise)), KvTxnResult)

    def watch(self, key: str, *, prefix: bool = False, after_revision: int | None = None) -> AsyncIterator[KvEvent]:
        """Yield changes without end. Goes on after a lost connection."""
        query = {"key": key, "prefix": prefix, "after_revision": after_revision}
        return self._client.events("/v1/kv:watch", query, KvEvent)

    async def grant(self, ttl_s: float) -> Lease:
        return await self._client.call(post("/v1/leases", LeaseGrant(ttl_s=ttl_s)), Lease)

    async def keepalive(self, lease: int) -> Lease:
        return await self._client.call(post(f"/v1/leases/{lease}/keepalive", safe=True), Lease)

    async def revoke(self, lease: int) -> None:
        await self._client.send(Request(method="DELETE", target=f"/v1/leases/{lease}"))
