"""The synchronous client: the standard library's HTTP over a Unix socket, so that it starts in no time."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

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
READ_BYTES: Final = 64 << 10
MAX_IDLE: Final = 8


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Talks to one node. Threads may share it: each request takes a connection of its own.

    Reads are tried again when the node is away for a moment, writes only where that is safe: a submission carries an
    idempotency key (one is made up where none is given), so that it makes one job however often it is sent.

    Errors: the classes of `jobs.errors` by the node's code, and `ConnectionFailed`.
    """

    def __init__(self, socket_path: str | None = None, *, tries: int = common.TRIES) -> None:
        self.socket_path = socket_path or common.default_socket()
        self._tries = tries
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self.kv = KeyValueClient(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept; the client may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # --- jobs ---------------------------------------------------------------------------------------------------

    def submit(self, job: JobSubmit) -> Submitted:
        """Submit a job; returns once it is durable."""
        return self.call(post("/v1/jobs", common.with_key(job), safe=True), Submitted)

    def submit_many(self, jobs: Iterable[JobSubmit]) -> list[Submitted]:
        """Submit jobs in lots of `BATCH_JOBS`, each of which is accepted whole or not at all."""
        done: list[Submitted] = []
        for batch in common.batches(jobs):
            done += self.call(post("/v1/jobs:batch", {"jobs": batch}, safe=True), BatchSubmitted).jobs
        return done

    def shell(self, command: Sequence[str] | str, **options: Any) -> Submitted:
        """Submit a command; see `jobs.client.common.shell_job` for the options."""
        return self.submit(common.shell_job(command, **options))

    def run(self, job: JobSubmit, timeout_s: float | None = None) -> JobResult:
        """Submit a job and return its result; raises NotFinished after `timeout_s`."""
        return self.result(self.submit(job).job.id, timeout_s=common.POLL_S * 1e6 if timeout_s is None else timeout_s)

    def get(self, job: str) -> JobDetail:
        return self.call(get(f"/v1/jobs/{segment(job)}"), JobDetail)

    def list(self, **where: Any) -> Iterator[JobView]:
        """Yield jobs, newest first; see `jobs.client.common.list_query` for the filters."""
        cursor: str | None = None
        while True:
            page = self.call(get("/v1/jobs", common.list_query(**{**where, "cursor": cursor})), JobPage)
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def wait(self, job: str, timeout_s: float | None = None) -> JobView:
        """Return the job as soon as it is final, or as it is after `timeout_s` (None: wait for ever)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = common.POLL_S if deadline is None else min(common.POLL_S, max(0.0, deadline - time.monotonic()))
            path = f"/v1/jobs/{segment(job)}/wait"
            view = self.call(get(path, {"timeout_s": left_s}, wait_s=left_s), JobView)
            if view.state.is_final or (deadline is not None and time.monotonic() >= deadline):
                return view

    def result(self, job: str, *, attempt: int | None = None, timeout_s: float = 0.0) -> JobResult:
        """Return the result, waiting up to `timeout_s` for it; raises NotFinished."""
        if timeout_s > common.POLL_S:
            self.wait(job, timeout_s - common.POLL_S)
            timeout_s = common.POLL_S
        query = {"attempt": attempt, "timeout_s": timeout_s or None}
        return self.call(get(f"/v1/jobs/{segment(job)}/result", query, wait_s=timeout_s), JobResult)

    def cancel(self, job: str) -> CancelOutcome:
        """End a job; asking again changes nothing."""
        return self.call(post(f"/v1/jobs/{segment(job)}/cancel", safe=True), CancelOutcome)

    def logs(
        self, job: str, *, streams: Sequence[Stream] = (), attempt: int | None = None, follow: bool = False
    ) -> Iterator[LogEvent]:
        """Yield pieces of output; with `follow` until the job is final. Goes on after a lost connection."""
        query = {"stream": list(streams), "attempt": attempt, "follow": follow}
        return self._events(f"/v1/jobs/{segment(job)}/logs", query, LogEvent)

    def watch(self, job: str | None = None, *, after_revision: int | None = None, **where: Any) -> Iterator[JobEvent]:
        """Yield changes of one job, or of all that match, without end. Goes on after a lost connection."""
        if job is not None:
            return self._events(f"/v1/jobs/{segment(job)}/watch", {"after_revision": after_revision}, JobEvent)
        filters = common.list_query(**where)
        query = {name: filters[name] for name in ("state", "type", "queue", "label")}
        return self._events("/v1/jobs:watch", {**query, "after_revision": after_revision}, JobEvent)

    # --- workers and node ---------------------------------------------------------------------------------------

    def workers(self) -> Sequence[WorkerView]:
        return self.call(get("/v1/workers"), WorkerList).workers

    def drain(self, worker: str) -> WorkerView:
        return self.call(post(f"/v1/workers/{segment(worker)}/drain", safe=True), WorkerView)

    def health(self) -> Health:
        return self.call(get("/v1/health"), Health)

    def ready(self) -> Health:
        """Return the node's health; raises Unavailable while it does not serve."""
        return self.call(get("/v1/ready"), Health)

    def metrics(self) -> str:
        """Return the Prometheus metrics as text."""
        return self.send(get("/metrics")).decode()

    # --- requests -----------------------------------------------------------------------------------------------

    def call(self, request: Request, kind: type[T]) -> T:
        """Send a request and return its typed answer."""
        return common.decode(kind, self.send(request))

    def send(self, request: Request) -> bytes:
        """Send a request and return its answer's body, trying again where that is safe and may help."""
        attempt = 0
        while True:
            try:
                return self._send_once(request)
            except JobsError as error:
                attempt += 1
                if attempt >= self._tries or not request.safe or not common.is_transient(error):
                    raise
                time.sleep(common.pause_s(attempt, error, random.random()))  # noqa: S311 - jitter

    def _send_once(self, request: Request) -> bytes:
        connection, response = self._open(request)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionFailed(f"the node went away while it answered: {error}") from error
        self._keep(connection, response)
        if response.status >= 400:
            raise common.error_of(response.status, data, response.getheader("Retry-After"))
        return data

    def _open(self, request: Request) -> tuple[_Connection, http.client.HTTPResponse]:
        """Send a request; a kept connection that the node has closed meanwhile is replaced by a new one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            fresh = connection is None
            if connection is None:
                connection = _Connection(self.socket_path, request.timeout_s)
            try:
                if not fresh:
                    connection.sock.settimeout(request.timeout_s)
                connection.request(request.method, request.target, body=request.body, headers=request.headers)
                return connection, connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                connection.close()
                if fresh or not request.safe:
                    raise ConnectionFailed(f"the node closed the connection: {error}") from error
            except OSError as error:
                connection.close()
                raise common.refused(self.socket_path, error) from error
            except http.client.HTTPException as error:
                connection.close()
                raise ConnectionFailed(f"the node's answer is not HTTP: {error}") from error

    def _keep(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        if response.will_close:
            connection.close()
            return
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _events(self, path: str, query: Mapping[str, Any], kind: type[T]) -> Iterator[T]:
        resume: str | None = None
        failures = 0
        while True:
            try:
                for event in self._stream_once(stream(path, query, resume)):
                    resume, failures = event.id or resume, 0
                    item = common.decode_event(kind, event)
                    if item is not None:
                        yield item
                return
            except JobsError as error:
                failures += 1
                if failures >= self._tries or not common.is_transient(error):
                    raise
                time.sleep(common.pause_s(failures, error, random.random()))  # noqa: S311 - jitter

    def _stream_once(self, request: Request) -> Iterator[SentEvent]:
        connection, response = self._open(request)
        try:
            if response.status >= 400:
                raise common.error_of(response.status, response.read(), response.getheader("Retry-After"))
            parser = EventParser()
            while data := response.read1(READ_BYTES):
                yield from parser.feed(data)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(f"the node went away: {error}") from error
        finally:
            connection.close()


class KeyValueClient:
    """Key-value operations: `client.kv`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """Return the key, or None when it is not there."""
        try:
            return self._client.call(get("/v1/kv", {"key": key, "revision": revision}), KeyValue)
        except NotFound:
            return None

    def put(self, key: str, value: bytes | str, *, lease: int = 0) -> KvTxnResult:
        return self._client.call(post("/v1/kv:put", common.put_of(key, value, lease)), KvTxnResult)

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all with a prefix; return how many."""
        done = self._client.call(post("/v1/kv:delete", KvDelete(key=key, prefix=prefix)), KvTxnResult)
        return done.results[0].deleted or 0

    def scan(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Iterator[KeyValue]:
        """Yield every key with a prefix, all as they were at one revision."""
        query: dict[str, Any] = {"prefix": prefix, "revision": revision, "keys_only": keys_only, "limit": 1000}
        while True:
            page = self._client.call(get("/v1/kv:scan", query), KvPage)
            yield from page.kvs
            if page.next_cursor is None:
                return
            query |= {"cursor": page.next_cursor, "revision": page.revision}

    def txn(
        self, *, compare: Sequence[KvCompare] = (), then: Sequence[KvOp] = (), otherwise: Sequence[KvOp] = ()
    ) -> KvTxnResult:
        return self._client.call(post("/v1/kv:txn", common.txn_of(compare, then, otherwise)), KvTxnResult)

    def watch(self, key: str, *, prefix: bool = False, after_revision: int | None = None) -> Iterator[KvEvent]:
        """Yield changes without end. Goes on after a lost connection."""
        query = {"key": key, "prefix": prefix, "after_revision": after_revision}
        return self._client._events("/v1/kv:watch", query, KvEvent)

    def grant(self, ttl_s: float) -> Lease:
        return self._client.call(post("/v1/leases", LeaseGrant(ttl_s=ttl_s)), Lease)

    def keepalive(self, lease: int) -> Lease:
        return self._client.call(post(f"/v1/leases/{lease}/keepalive", safe=True), Lease)

    def revoke(self, lease: int) -> None:
        self._client.send(Request(method="DELETE", target=f"/v1/leases/{lease}"))
