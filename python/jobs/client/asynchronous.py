"""The asynchronous client: aiohttp over a Unix socket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, TypeVar, Unpack

import aiohttp
from yarl import URL

from jobs.client import operations
from jobs.client.asyncblobs import AsyncBlobsClient
from jobs.client.batches import Lots, OnProgress, Tally
from jobs.client.cluster import AsyncClusterClient
from jobs.client.connection import SLOWEST_BYTES_PER_S
from jobs.client.deadletters import AsyncDeadLettersClient
from jobs.client.downloads import Download, OnHead
from jobs.client.failures import SourceFailed, error_of, gone, unreachable
from jobs.client.http1 import BODY_TYPE
from jobs.client.maintenance import AsyncMaintenanceClient
from jobs.client.operations import (
    AuditOptions,
    CancelOptions,
    Consistency,
    Indices,
    ListOptions,
    LogOptions,
    OverviewLimits,
    WatchOptions,
)
from jobs.client.patience import DEFAULT_PATIENCE_S, Deadline, Patience
from jobs.client.queues import AsyncOwnersClient, AsyncQueuesClient
from jobs.client.replication import AsyncReplicationClient
from jobs.client.requests import Call, Feed, Page, Request, TraceHeaders, decode, in_trace
from jobs.client.schedules import AsyncSchedulesClient
from jobs.client.secrets import AsyncSecretsClient
from jobs.client.sources import Opened, Source
from jobs.client.sql import QueryResult, SqlOptions, inline, sql_job, succeeded
from jobs.client.submission import ShellOptions, blamed, shell_job, single, with_key
from jobs.errors import JobsError, NotFinished, NotFound, PayloadTooLarge
from jobs.protocol.model import (
    ArrayView,
    AttemptView,
    AuditEntry,
    BatchSubmitted,
    CancelCounts,
    CancelOutcome,
    Explanation,
    Health,
    JobDetail,
    JobEvent,
    JobGraph,
    JobResult,
    JobSubmit,
    JobView,
    KeyValue,
    KvCompare,
    KvEvent,
    KvOp,
    KvTxnResult,
    Lease,
    LogEvent,
    Overview,
    Stream,
    Submitted,
    WorkerView,
)
from jobs.tracing.context import from_environment

T = TypeVar("T")
P = TypeVar("P", bound=Page)
_BASE = "http://localhost"
UNKNOWN_BYTES = 64 << 30
"""Taken for the size of content that does not tell it, as to how long it may take to put it away."""


class AsyncClient:
    """Talks to one node from one event loop; methods, errors and patience are those of `Client`, which tells more."""

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        patience_s: float = DEFAULT_PATIENCE_S,
        trace_context: TraceHeaders = from_environment,
    ) -> None:
        """`socket_path`: by default what JOBS_SOCKET names, or the system's node. `trace_context`: see `Client`."""
        self.socket_path = socket_path or operations.default_socket()
        self._patience_s = patience_s
        self._trace_context = trace_context
        self._met = False
        self._session: aiohttp.ClientSession | None = None
        self.blobs = AsyncBlobsClient(self)
        self.cluster = AsyncClusterClient(self)
        self.dead_letters = AsyncDeadLettersClient(self)
        self.kv = AsyncKeyValueClient(self)
        self.maintenance = AsyncMaintenanceClient(self)
        self.queues = AsyncQueuesClient(self)
        self.owners = AsyncOwnersClient(self)
        self.replication = AsyncReplicationClient(self)
        self.schedules = AsyncSchedulesClient(self)
        self.secrets = AsyncSecretsClient(self)

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
        """Submit a job; returns once it is durable. One without an idempotency key is given one: see `Client`."""
        try:
            return await self.call(operations.submit(with_key(job)))
        except PayloadTooLarge as error:
            raise blamed(error, job) from error

    async def submit_many(
        self, jobs: Iterable[JobSubmit], *, batch: str | None = None, on_progress: OnProgress | None = None
    ) -> AsyncIterator[Submitted]:
        """Yield what became of each job, in order; nothing is sent before it is asked for. See `Client`."""
        tally, lots = Tally(on_progress), Lots(jobs, batch)
        for lot in lots:
            submitted = await self._submit_lot(operations.submit_batch(lot), tally)
            lots.on_answer(submitted)
            for one in submitted:
                yield one

    async def _submit_lot(self, call: Call[BatchSubmitted], tally: Tally) -> Sequence[Submitted]:
        while True:
            try:
                return tally.on_answer((await self.call(call)).jobs)
            except JobsError as error:
                await asyncio.sleep(tally.on_refusal(error))

    async def shell(self, command: Sequence[str] | str, **options: Unpack[ShellOptions]) -> Submitted:
        """Submit a command: a sequence of arguments, or one string as a script for /bin/sh."""
        return await self.submit(shell_job(command, **options))

    async def run(self, job: JobSubmit, timeout_s: float | None = None) -> JobResult:
        """Submit a job and return its result; raises NotFinished after `timeout_s` (None: wait for ever)."""
        return await self.result((await self.submit(single(job))).job.id, timeout_s=timeout_s)

    async def sql(self, statement: str, **options: Unpack[SqlOptions]) -> QueryResult:
        """Run a query and return its rows; raises QueryFailed. One that is not waited for to its end is cancelled."""
        job = (await self.submit(sql_job(statement, **options))).job.id
        try:
            result = await self.result(job, timeout_s=None)
        except BaseException:
            with suppress(JobsError):
                await self.cancel(job)
            raise
        return await self.rows_of(result)

    async def rows_of(self, result: JobResult) -> QueryResult:
        """Return the rows that a query's job came to; raises QueryFailed."""
        info = succeeded(result)
        data = inline(result, info)
        if data is None:
            events = self.logs(result.id, streams=(Stream.STDOUT,))
            data = b"".join([bytes(event.data) async for event in events])
        return QueryResult(result, info, data)

    async def get(self, job: str, *, consistency: Consistency | None = None) -> JobDetail:
        """Return a job and what was submitted; raises NotFound."""
        return await self.call(operations.get_job(job, consistency))

    async def list(self, **options: Unpack[ListOptions]) -> AsyncIterator[JobView]:
        """Yield jobs, newest first unless told otherwise, fetching page after page."""
        async for page in self.pages(lambda cursor: operations.list_jobs(options, cursor)):
            for job in page.jobs:
                yield job

    async def wait(self, job: str, timeout_s: float | None = None) -> JobView:
        """Return the job as soon as it is final, or as it is after `timeout_s` (None: wait for ever)."""
        deadline = Deadline.after(timeout_s, time.monotonic())
        while True:
            view = await self.call(operations.wait(job, deadline.poll_s(time.monotonic())))
            if view.state.is_final or deadline.is_over(time.monotonic()):
                return view

    async def result(
        self,
        job: str,
        *,
        attempt: int | None = None,
        timeout_s: float | None = 0.0,
        consistency: Consistency | None = None,
    ) -> JobResult:
        """Return the result; raises NotFinished when there is none after `timeout_s` (None: wait for ever)."""
        deadline = Deadline.after(timeout_s, time.monotonic())
        while True:
            try:
                poll_s = deadline.poll_s(time.monotonic())
                return await self.call(operations.result(job, attempt, poll_s, consistency))
            except NotFinished:
                if deadline.is_over(time.monotonic()):
                    raise

    async def explain(self, job: str) -> Explanation:
        """Say why a job is where it is: what a pending one waits for, what each worker lacks, how it ended."""
        return await self.call(operations.explain(job))

    async def cancel(self, job: str, *, indices: Indices | None = None) -> CancelOutcome:
        """End a job, or some tasks of an array by their indices; asking again changes nothing."""
        if indices is not None:
            return await self.call(operations.cancel_tasks(job, indices))
        return await self.call(operations.cancel(job))

    async def cancel_many(self, **where: Unpack[CancelOptions]) -> CancelCounts:
        """End all jobs that match; return what that did. See `Client`."""
        pages = self.pages(lambda cursor: operations.cancel_many(where, cursor))
        return operations.cancelled([page async for page in pages])

    async def array(self, job: str) -> ArrayView:
        """Return how far an array is; raises NotFound for any other job."""
        return await self.call(operations.array(job))

    def watch_array(self, job: str) -> AsyncIterator[ArrayView]:
        """Yield how far an array is whenever that has changed, at most once a second, until it has ended."""
        return self.events(operations.watch_array(job))

    async def retry(
        self,
        array: str,
        *,
        indices: Indices | None = None,
        only: Literal["failed", "cancelled"] | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Repeat the tasks of an ended array that did not complete, or some of them, as a new array; see `Client`."""
        return await self.call(operations.retry(array, indices, only, idempotency_key))

    async def depend(self, job: str, on: Sequence[str]) -> JobView:
        """Let a job that has not started wait for others, on top of what it waits for; raises AlreadyStarted."""
        return await self.call(operations.depend(job, on))

    async def graph(self, job: str, *, limit: int | None = None) -> JobGraph:
        """Return what a job depends on and what depends on it, directly or not: at most `limit` jobs, nearest first."""
        return await self.call(operations.graph(job, limit))

    async def attempts(self, job: str) -> Sequence[AttemptView]:
        """Return every attempt of a job, the first one first: how it ended, or that it runs."""
        return (await self.call(operations.attempts(job))).attempts

    def logs(self, job: str, **options: Unpack[LogOptions]) -> AsyncIterator[LogEvent]:
        """Yield pieces of output, with `follow` until the job is final; goes on after a lost connection."""
        return self.events(operations.logs(job, options))

    def watch(
        self, job: str | None = None, *, after_revision: int | None = None, **where: Unpack[WatchOptions]
    ) -> AsyncIterator[JobEvent]:
        """Yield changes of one job, or of all that match, without end; goes on after a lost connection."""
        if job is not None:
            return self.events(operations.watch_job(job, after_revision))
        return self.events(operations.watch_jobs(where, after_revision))

    async def audit(self, **where: Unpack[AuditOptions]) -> AsyncIterator[AuditEntry]:
        """Yield who did what, newest first; see `Client`."""
        async for page in self.pages(lambda cursor: operations.audit(where, cursor)):
            for entry in page.entries:
                yield entry

    # --- workers and node ---------------------------------------------------------------------------------------

    async def workers(self) -> Sequence[WorkerView]:
        """Return the workers that are registered."""
        return (await self.call(operations.list_workers())).workers

    async def drain(self, worker: str) -> WorkerView:
        """Give a worker, and its next lives, no more jobs; those it has go on. Administrators only."""
        return await self.call(operations.drain(worker))

    async def undrain(self, worker: str) -> WorkerView:
        """Give a drained worker jobs again; raises WorkerStopping for one that stops by itself. Administrators only."""
        return await self.call(operations.undrain(worker))

    async def overview(self, **limits: Unpack[OverviewLimits]) -> Overview:
        """Return how the node is and what goes on, in bounded parts: what `jobctl top` shows."""
        return await self.call(operations.overview(limits))

    async def health(self) -> Health:
        """Return how the node is."""
        return await self.call(operations.health())

    async def ready(self) -> Health:
        """Return the node's health; raises Unavailable while it does not serve."""
        return await self.call(operations.ready())

    async def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return (await self.send(operations.METRICS)).decode()

    # --- requests -----------------------------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Send a request and return its typed answer."""
        return decode(call.answer, await self.send(call.request))

    async def pages(self, call: Callable[[str | None], Call[P]]) -> AsyncIterator[P]:
        """Yield page after page of what `call` asks for with the cursor of the page before."""
        cursor: str | None = None
        while True:
            page = await self.call(call(cursor))
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def send(self, request: Request) -> bytes:
        """Send a request and return its answer's body, trying again where that may help."""
        patience = Patience()
        while True:
            try:
                return b"".join([data async for data in self._send_once(request)])
            except JobsError as error:
                await self._pause(patience, error, waits_for_room=request.waits_for_room)

    async def events(self, feed: Feed[T]) -> AsyncIterator[T]:
        """Yield the typed events of a stream, going on after a lost connection where it was."""
        patience = Patience()
        while True:
            position = feed.position
            try:
                async with aclosing(self._send_once(feed.request())) as pieces:
                    async for data in pieces:
                        for item in feed.feed(data):
                            yield item
                return
            except JobsError as error:
                if feed.position != position:
                    patience.reset()
                await self._pause(patience, error)

    async def upload(self, call: Call[T], source: Source) -> T:
        """Send a request with content as its body, again where that may help and the content can be read once more."""
        patience = Patience()
        while True:
            try:
                with source.open() as content:
                    data = b"".join([piece async for piece in self._send_once(call.request, content)])
                return decode(call.answer, data)
            except JobsError as error:
                if not source.may_be_sent:
                    raise
                await self._pause(patience, error)

    async def download(self, wanted: Download) -> AsyncIterator[bytes]:
        """Yield content as it comes; a lost connection is made anew, and it goes on where it was."""
        patience = Patience()
        while not wanted.is_complete:
            position = wanted.position
            try:
                async with aclosing(self._send_once(wanted.request(), on_head=wanted.on_head)) as pieces:
                    async for data in pieces:
                        wanted.on_data(data)
                        yield data
            except JobsError as error:
                if wanted.position != position:
                    patience.reset()
                await self._pause(patience, error)

    async def _send_once(
        self, request: Request, content: Opened | None = None, on_head: OnHead | None = None
    ) -> AsyncGenerator[bytes, None]:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.socket_path, limit=0))
        request = in_trace(request, self._trace_context)
        headers, timeout_s, body = request.headers, request.timeout_s, request.body
        failures: list[SourceFailed] = []
        if content is not None:
            length = {} if content.size_bytes is None else {"Content-Length": str(content.size_bytes)}
            headers = {**headers, **length, "Content-Type": BODY_TYPE}
            # Nothing tells when it has been sent, after which it is put on disks.
            timeout_s += (content.size_bytes or UNKNOWN_BYTES) / SLOWEST_BYTES_PER_S
        exchange = self._session.request(
            request.method,
            URL(_BASE + request.target, encoded=True),
            data=body if content is None else _pieces(content, failures),
            headers=headers,
            expect100=content is not None,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=timeout_s),
        )
        try:
            async with exchange as answer:
                self._met = True
                if answer.status >= 400:
                    raise error_of(answer.status, await answer.read(), answer.headers.get("Retry-After"))
                if on_head is not None:
                    on_head(answer.status, answer.headers)
                async for data in answer.content.iter_any():
                    yield data
        except aiohttp.ClientConnectorError as error:
            raise unreachable(self.socket_path, error.os_error) from error
        except (aiohttp.ClientError, OSError) as error:
            self._met = True
            if failures:
                raise failures[0] from error
            raise gone(error) from error

    async def _pause(self, patience: Patience, error: JobsError, *, waits_for_room: bool = True) -> None:
        """Wait before the next try; raise the error when there should be none."""
        pause_s = patience.pause_s(
            error,
            waits_for_room=waits_for_room,
            within_s=self._patience_s if self._met else 0.0,
            now_s=time.monotonic(),
            chance=int.from_bytes(os.urandom(4)) / (1 << 32),
        )
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)


async def _pieces(content: Opened, failures: list[SourceFailed]) -> AsyncGenerator[bytes, None]:
    """Yield content, read in a thread; what fails is told aside, since the library makes its own error of it."""
    try:
        while piece := await asyncio.to_thread(content.read):
            yield piece
            content.on_sent()
    except SourceFailed as error:
        failures.append(error)
        raise


class AsyncKeyValueClient:
    """Key-value operations: `client.kv`; see `KeyValueClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, key: str, *, revision: int = 0, consistency: Consistency | None = None) -> KeyValue | None:
        """Return the key, now or as it was at a revision; None when it is not there."""
        try:
            return await self._client.call(operations.kv_get(key, revision, consistency))
        except NotFound:
            return None

    async def put(self, key: str, value: bytes | str, *, lease: int = 0) -> KvTxnResult:
        """Set a key; with `lease` it goes when the lease ends."""
        return await self._client.call(operations.kv_put(key, value, lease))

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all that begin so; return how many."""
        return (await self._client.call(operations.kv_delete(key, prefix))).results[0].deleted or 0

    async def scan(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, consistency: Consistency | None = None
    ) -> AsyncIterator[KeyValue]:
        """Yield every key with a prefix, all as they were at one revision."""
        cursor: str | None = None
        while True:
            page = await self._client.call(
                operations.kv_scan(
                    prefix, revision=revision, keys_only=keys_only, cursor=cursor, consistency=consistency
                )
            )
            for kv in page.kvs:
                yield kv
            cursor, revision = page.next_cursor, page.revision
            if cursor is None:
                return

    async def txn(
        self, *, compare: Sequence[KvCompare] = (), then: Sequence[KvOp] = (), otherwise: Sequence[KvOp] = ()
    ) -> KvTxnResult:
        """Apply `then` when every comparison holds, else `otherwise`, atomically."""
        return await self._client.call(operations.kv_txn(compare, then, otherwise))

    def watch(self, key: str, *, prefix: bool = False, after_revision: int | None = None) -> AsyncIterator[KvEvent]:
        """Yield changes without end; goes on after a lost connection."""
        return self._client.events(operations.kv_watch(key, prefix, after_revision))

    async def grant(self, ttl_s: float) -> Lease:
        """Make a lease: keys put with it go when it was not kept alive for so long."""
        return await self._client.call(operations.lease_grant(ttl_s))

    async def keepalive(self, lease: int) -> Lease:
        """Start the lease's time anew; raises LeaseNotFound."""
        return await self._client.call(operations.lease_keepalive(lease))

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys; raises LeaseNotFound."""
        await self._client.send(operations.lease_revoke(lease))
