"""The synchronous client: a Unix socket, and nothing that takes long to import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Literal, TypeVar, Unpack

from jobs.client import operations
from jobs.client.batches import Lots, OnProgress, Tally
from jobs.client.blobs import BlobsClient
from jobs.client.cluster import ClusterClient
from jobs.client.connection import Connections
from jobs.client.deadletters import DeadLettersClient
from jobs.client.downloads import Download, OnHead
from jobs.client.failures import error_of
from jobs.client.maintenance import MaintenanceClient
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
from jobs.client.queues import OwnersClient, QueuesClient
from jobs.client.replication import ReplicationClient
from jobs.client.requests import Call, Feed, Page, Request, TraceHeaders, decode, in_trace
from jobs.client.schedules import SchedulesClient
from jobs.client.secrets import SecretsClient
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


class Client:
    """Talks to one node. Threads may share it: each request takes a connection of its own.

    What failed is tried again for `patience_s` seconds, with growing pauses, where that can help: when the node could
    not be reached or went away, and when it refused a request as too much. So a client outlives a restart of its node;
    a node that it never reached is reported at once. A request to change something carries an id, the same each time
    it is sent, by which the node carries it out once.

    Every method raises the errors of `jobs.errors` by the node's code, and `ConnectionFailed`.
    """

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        patience_s: float = DEFAULT_PATIENCE_S,
        trace_context: TraceHeaders = from_environment,
    ) -> None:
        """`socket_path`: by default what JOBS_SOCKET names, or the system's node. `trace_context` returns the headers
        that say which trace what is submitted is part of; by default what TRACEPARENT in the environment says."""
        self._connections = Connections(socket_path or operations.default_socket())
        self._patience_s = patience_s
        self._trace_context = trace_context
        self.blobs = BlobsClient(self)
        self.cluster = ClusterClient(self)
        self.dead_letters = DeadLettersClient(self)
        self.kv = KeyValueClient(self)
        self.maintenance = MaintenanceClient(self)
        self.queues = QueuesClient(self)
        self.owners = OwnersClient(self)
        self.replication = ReplicationClient(self)
        self.schedules = SchedulesClient(self)
        self.secrets = SecretsClient(self)

    @property
    def socket_path(self) -> str:
        return self._connections.path

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept; the client may be used again."""
        self._connections.close()

    # --- jobs ---------------------------------------------------------------------------------------------------

    def submit(self, job: JobSubmit) -> Submitted:
        """Submit a job; returns once it is durable.

        A job without an idempotency key is given one, so that a submission whose answer was lost can be sent again and
        still makes one job.
        """
        try:
            return self.call(operations.submit(with_key(job)))
        except PayloadTooLarge as error:
            raise blamed(error, job) from error

    def submit_many(
        self, jobs: Iterable[JobSubmit], *, batch: str | None = None, on_progress: OnProgress | None = None
    ) -> Iterator[Submitted]:
        """Yield what became of each job, in order. Nothing is sent before it is asked for: iterate to the end.

        The jobs go in lots of up to `BATCH_JOBS` and 10 MiB, each of which is accepted whole or not at all; a job can
        depend by `ref` on any before it. While the node takes no more (429) it is waited for, for as long as that may
        be; `on_progress` is told so, and after each lot how far it is. With the name of a `batch`, jobs are known by it
        and their number: the same call made again submits only what is missing.
        """
        tally, lots = Tally(on_progress), Lots(jobs, batch)
        for lot in lots:
            submitted = self._submit_lot(operations.submit_batch(lot), tally)
            lots.on_answer(submitted)
            yield from submitted

    def _submit_lot(self, call: Call[BatchSubmitted], tally: Tally) -> Sequence[Submitted]:
        while True:
            try:
                return tally.on_answer(self.call(call).jobs)
            except JobsError as error:
                time.sleep(tally.on_refusal(error))

    def shell(self, command: Sequence[str] | str, **options: Unpack[ShellOptions]) -> Submitted:
        """Submit a command: a sequence of arguments, or one string as a script for /bin/sh."""
        return self.submit(shell_job(command, **options))

    def run(self, job: JobSubmit, timeout_s: float | None = None) -> JobResult:
        """Submit a job and return its result; raises NotFinished after `timeout_s` (None: wait for ever)."""
        return self.result(self.submit(single(job)).job.id, timeout_s=timeout_s)

    def sql(self, statement: str, **options: Unpack[SqlOptions]) -> QueryResult:
        """Run a query and return its rows; raises QueryFailed. One that is not waited for to its end is cancelled."""
        job = self.submit(sql_job(statement, **options)).job.id
        try:
            result = self.result(job, timeout_s=None)
        except BaseException:
            with suppress(JobsError):
                self.cancel(job)
            raise
        return self.rows_of(result)

    def rows_of(self, result: JobResult) -> QueryResult:
        """Return the rows that a query's job came to; raises QueryFailed."""
        info = succeeded(result)
        data = inline(result, info)
        if data is None:
            data = b"".join(bytes(event.data) for event in self.logs(result.id, streams=(Stream.STDOUT,)))
        return QueryResult(result, info, data)

    def get(self, job: str, *, consistency: Consistency | None = None) -> JobDetail:
        """Return a job and what was submitted; raises NotFound."""
        return self.call(operations.get_job(job, consistency))

    def list(self, **options: Unpack[ListOptions]) -> Iterator[JobView]:
        """Yield jobs, newest first unless told otherwise, fetching page after page."""
        for page in self.pages(lambda cursor: operations.list_jobs(options, cursor)):
            yield from page.jobs

    def wait(self, job: str, timeout_s: float | None = None) -> JobView:
        """Return the job as soon as it is final, or as it is after `timeout_s` (None: wait for ever)."""
        deadline = Deadline.after(timeout_s, time.monotonic())
        while True:
            view = self.call(operations.wait(job, deadline.poll_s(time.monotonic())))
            if view.state.is_final or deadline.is_over(time.monotonic()):
                return view

    def result(
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
                return self.call(operations.result(job, attempt, poll_s, consistency))
            except NotFinished:
                if deadline.is_over(time.monotonic()):
                    raise

    def explain(self, job: str) -> Explanation:
        """Say why a job is where it is: what a pending one waits for, what each worker lacks, how it ended."""
        return self.call(operations.explain(job))

    def cancel(self, job: str, *, indices: Indices | None = None) -> CancelOutcome:
        """End a job, or some tasks of an array by their indices; asking again changes nothing."""
        if indices is not None:
            return self.call(operations.cancel_tasks(job, indices))
        return self.call(operations.cancel(job))

    def cancel_many(self, **where: Unpack[CancelOptions]) -> CancelCounts:
        """End all jobs that match; return what that did. Something has to be given: `all=True` for every job.

        They are ended page by page; jobs submitted meanwhile may be among them. Asking again changes nothing.
        """
        return operations.cancelled(self.pages(lambda cursor: operations.cancel_many(where, cursor)))

    def array(self, job: str) -> ArrayView:
        """Return how far an array is; raises NotFound for any other job."""
        return self.call(operations.array(job))

    def watch_array(self, job: str) -> Iterator[ArrayView]:
        """Yield how far an array is whenever that has changed, at most once a second, until it has ended."""
        return self._events(operations.watch_array(job))

    def retry(
        self,
        array: str,
        *,
        indices: Indices | None = None,
        only: Literal["failed", "cancelled"] | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Repeat the tasks of an ended array that did not complete, or some of them, as a new array.

        They keep their indices and items. All of them are repeated by one array, however often that is asked for.
        """
        return self.call(operations.retry(array, indices, only, idempotency_key))

    def depend(self, job: str, on: Sequence[str]) -> JobView:
        """Let a job that has not started wait for others, on top of what it waits for; raises AlreadyStarted."""
        return self.call(operations.depend(job, on))

    def graph(self, job: str, *, limit: int | None = None) -> JobGraph:
        """Return what a job depends on and what depends on it, directly or not: at most `limit` jobs, nearest first."""
        return self.call(operations.graph(job, limit))

    def attempts(self, job: str) -> Sequence[AttemptView]:
        """Return every attempt of a job, the first one first: how it ended, or that it runs."""
        return self.call(operations.attempts(job)).attempts

    def logs(self, job: str, **options: Unpack[LogOptions]) -> Iterator[LogEvent]:
        """Yield pieces of output, with `follow` until the job is final; `bytes(event.data)` are the job's bytes.

        A lost connection is made anew, and the output goes on where it was. Raises LogsGone once it is no longer kept.
        """
        return self._events(operations.logs(job, options))

    def watch(
        self, job: str | None = None, *, after_revision: int | None = None, **where: Unpack[WatchOptions]
    ) -> Iterator[JobEvent]:
        """Yield changes of one job, or of all that match, without end; from now on or since a revision.

        A lost connection is made anew, and no change is left out. Raises Compacted when the revision is too old.
        """
        if job is not None:
            return self._events(operations.watch_job(job, after_revision))
        return self._events(operations.watch_jobs(where, after_revision))

    def audit(self, **where: Unpack[AuditOptions]) -> Iterator[AuditEntry]:
        """Yield who did what, newest first: what you did, and what was done to your jobs; administrators see all."""
        for page in self.pages(lambda cursor: operations.audit(where, cursor)):
            yield from page.entries

    # --- workers and node ---------------------------------------------------------------------------------------

    def workers(self) -> Sequence[WorkerView]:
        """Return the workers that are registered."""
        return self.call(operations.list_workers()).workers

    def drain(self, worker: str) -> WorkerView:
        """Give a worker, and its next lives, no more jobs; those it has go on. Administrators only."""
        return self.call(operations.drain(worker))

    def undrain(self, worker: str) -> WorkerView:
        """Give a drained worker jobs again; raises WorkerStopping for one that stops by itself. Administrators only."""
        return self.call(operations.undrain(worker))

    def overview(self, **limits: Unpack[OverviewLimits]) -> Overview:
        """Return how the node is and what goes on, in bounded parts: what `jobctl top` shows."""
        return self.call(operations.overview(limits))

    def health(self) -> Health:
        """Return how the node is."""
        return self.call(operations.health())

    def ready(self) -> Health:
        """Return the node's health; raises Unavailable while it does not serve."""
        return self.call(operations.ready())

    def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return self.send(operations.METRICS).decode()

    # --- requests -----------------------------------------------------------------------------------------------

    def call(self, call: Call[T]) -> T:
        """Send a request and return its typed answer."""
        return decode(call.answer, self.send(call.request))

    def pages(self, call: Callable[[str | None], Call[P]]) -> Iterator[P]:
        """Yield page after page of what `call` asks for with the cursor of the page before."""
        cursor: str | None = None
        while True:
            page = self.call(call(cursor))
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    def send(self, request: Request) -> bytes:
        """Send a request and return its answer's body, trying again where that may help."""
        patience = Patience()
        while True:
            try:
                return b"".join(self._send_once(request))
            except JobsError as error:
                self._pause(patience, error, waits_for_room=request.waits_for_room)

    def upload(self, call: Call[T], source: Source) -> T:
        """Send a request with content as its body, again where that may help and the content can be read once more."""
        patience = Patience()
        while True:
            try:
                with source.open() as content:
                    return decode(call.answer, b"".join(self._send_once(call.request, content)))
            except JobsError as error:
                if not source.may_be_sent:
                    raise
                self._pause(patience, error)

    def download(self, wanted: Download) -> Iterator[bytes]:
        """Yield content as it comes; a lost connection is made anew, and it goes on where it was."""
        patience = Patience()
        while not wanted.is_complete:
            position = wanted.position
            try:
                with closing(self._send_once(wanted.request(), on_head=wanted.on_head)) as pieces:
                    for data in pieces:
                        wanted.on_data(data)
                        yield data
            except JobsError as error:
                if wanted.position != position:
                    patience.reset()
                self._pause(patience, error)

    def _send_once(
        self, request: Request, content: Opened | None = None, on_head: OnHead | None = None
    ) -> Generator[bytes, None, None]:
        with self._connections.exchange(in_trace(request, self._trace_context), content) as answer:
            if answer.status >= 400:
                raise error_of(answer.status, b"".join(answer.pieces()), answer.headers.get("retry-after"))
            if on_head is not None:
                on_head(answer.status, answer.headers)
            yield from answer.pieces()

    def _events(self, feed: Feed[T]) -> Iterator[T]:
        patience = Patience()
        while True:
            position = feed.position
            try:
                with closing(self._send_once(feed.request())) as pieces:
                    for data in pieces:
                        yield from feed.feed(data)
                return
            except JobsError as error:
                if feed.position != position:
                    patience.reset()
                self._pause(patience, error)

    def _pause(self, patience: Patience, error: JobsError, *, waits_for_room: bool = True) -> None:
        """Wait before the next try; raise the error when there should be none."""
        pause_s = patience.pause_s(
            error,
            waits_for_room=waits_for_room,
            within_s=self._patience_s if self._connections.met else 0.0,
            now_s=time.monotonic(),
            chance=int.from_bytes(os.urandom(4)) / (1 << 32),
        )
        if pause_s is None:
            raise error
        time.sleep(pause_s)


class KeyValueClient:
    """Key-value operations: `client.kv`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str, *, revision: int = 0, consistency: Consistency | None = None) -> KeyValue | None:
        """Return the key, now or as it was at a revision; None when it is not there."""
        try:
            return self._client.call(operations.kv_get(key, revision, consistency))
        except NotFound:
            return None

    def put(self, key: str, value: bytes | str, *, lease: int = 0) -> KvTxnResult:
        """Set a key; with `lease` it goes when the lease ends."""
        return self._client.call(operations.kv_put(key, value, lease))

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all that begin so; return how many."""
        return self._client.call(operations.kv_delete(key, prefix)).results[0].deleted or 0

    def scan(
        self, prefix: str, *, revision: int = 0, keys_only: bool = False, consistency: Consistency | None = None
    ) -> Iterator[KeyValue]:
        """Yield every key with a prefix, all as they were at one revision."""
        cursor: str | None = None
        while True:
            page = self._client.call(
                operations.kv_scan(
                    prefix, revision=revision, keys_only=keys_only, cursor=cursor, consistency=consistency
                )
            )
            yield from page.kvs
            cursor, revision = page.next_cursor, page.revision
            if cursor is None:
                return

    def txn(
        self, *, compare: Sequence[KvCompare] = (), then: Sequence[KvOp] = (), otherwise: Sequence[KvOp] = ()
    ) -> KvTxnResult:
        """Apply `then` when every comparison holds, else `otherwise`, atomically."""
        return self._client.call(operations.kv_txn(compare, then, otherwise))

    def watch(self, key: str, *, prefix: bool = False, after_revision: int | None = None) -> Iterator[KvEvent]:
        """Yield changes without end; a lost connection is made anew, and no change is left out."""
        return self._client._events(operations.kv_watch(key, prefix, after_revision))

    def grant(self, ttl_s: float) -> Lease:
        """Make a lease: keys put with it go when it was not kept alive for so long."""
        return self._client.call(operations.lease_grant(ttl_s))

    def keepalive(self, lease: int) -> Lease:
        """Start the lease's time anew; raises LeaseNotFound."""
        return self._client.call(operations.lease_keepalive(lease))

    def revoke(self, lease: int) -> None:
        """End the lease and delete its keys; raises LeaseNotFound."""
        self._client.send(operations.lease_revoke(lease))
