"""Runs queries, each in an engine process that is kept warm, and kills the process of one that has to end."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs.clock import wall_ms
from jobs.config import SqlWorker
from jobs.errors import InvalidRequest
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason, SqlLimits, SqlPayload, StreamInfo
from jobs.protocol.wire import OUTPUT_WINDOW_BYTES, Assignment, Outcome
from jobs.validate import check_sql
from jobs.workers.executor import (
    Command,
    Credit,
    Ended,
    Event,
    Produced,
    Progressed,
    Segments,
    Start,
    Stop,
    never_ran,
)
from jobs.workers.former import clear
from jobs.workers.inputs import Held, InputCache, InputError, fetching, input_directory
from jobs.workers.nodeapi import NodeApi
from jobs.workers.payloads import checked
from jobs.workers.scratch import scratch
from jobs.workers.sql import frames
from jobs.workers.sql.frames import Bounds, Configure, FromEngine, Run, Usage
from jobs.workers.sql.process import End, EngineProcess

logger = logging.getLogger(__name__)

SANDBOX: Final = "process"
WINDOW_BYTES: Final = OUTPUT_WINDOW_BYTES - frames.PIECE_BYTES
MAX_QUERIES: Final = 1_000
"""Of one process; then another takes its place, whatever has gathered in it."""
MAX_FAILED_STARTS: Final = 5
"""In a row; then the worker gives up."""
START_S: Final = 60.0
"""A process that is not ready for queries after this is started anew."""
RESTART_S: Final = 0.5
"""Before a process is started anew that could not be used."""
KEPT_BYTES: Final = 1 << 30
"""A process that held more than this gives it back by its end."""
_NOTHING: Final = StreamInfo(bytes=0, stored_bytes=0, truncated=False)
_decode_payload = msgspec.json.Decoder(SqlPayload).decode

_Key: TypeAlias = tuple[JobId, Attempt]


class _Query(Struct, eq=False):
    """An attempt: it waits for an engine, or has one."""

    job: JobId
    attempt: Attempt
    run: Run
    started_ms: int
    started_s: float
    engine: _Engine | None = None
    ends_for: Reason | None = None
    """It is being ended."""
    why: str | None = None
    produced: int = 0
    timer: asyncio.TimerHandle | None = None
    fetch: asyncio.Task[Held] | None = None
    """Its blobs are being fetched: it does not wait for an engine yet."""
    held: Held | None = None


class _Engine(Struct, eq=False):
    """A process, and what it has done."""

    process: EngineProcess
    ready: bool = False
    timer: asyncio.TimerHandle | None = None
    """Until it is ready."""
    retired: bool = False
    """It is about to end, and takes no more queries."""
    query: _Query | None = None
    queries: int = 0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    """Of what was before the present query."""

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def count(self, usage: Usage) -> None:
        self.cpu_user_s += usage.cpu_user_s
        self.cpu_system_s += usage.cpu_system_s


class SqlExecutor:
    """Gives queries to engines."""

    type: Final = "sql"
    sandbox: Final = SANDBOX

    def __init__(self, config: SqlWorker, api_socket: Path, store: Path, tag: str) -> None:
        """End what an earlier life of the worker has left. Raises ExecutorError when that cannot be done."""
        self._config = config
        self._store = store
        self._tag = tag
        clear(tag, lambda uid: uid == os.geteuid())
        self._spill = scratch("sql", config.spill_dir, tag)
        self._api_socket = api_socket
        self._inputs = InputCache(input_directory(config.inputs_dir, tag), config.inputs_bytes)
        self._engines: list[_Engine] = []
        self._queries: dict[_Key, _Query] = {}
        self._waiting: deque[_Query] = deque()
        self._number = 0
        self._failed_starts = 0
        self._closed = False
        self._on_events: Callable[[Sequence[Event]], None] = lambda events: None
        self._on_lost: Callable[[str], None] = lambda why: None

    @property
    def slots(self) -> int:
        return self._config.slots

    def attach(self, on_events: Callable[[Sequence[Event]], None], on_lost: Callable[[str], None]) -> None:
        self._on_events, self._on_lost = on_events, on_lost
        self._loop = asyncio.get_running_loop()
        for _ in range(self.slots):
            self._start_engine()

    def perform(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Start(assignment):
                    self._start(assignment)
                case Stop(job=job, attempt=attempt, reason=reason):
                    if (query := self._queries.get((job, attempt))) is not None:
                        self._end(query, reason, None)
                case Credit(job=job, attempt=attempt, count=count):
                    query = self._queries.get((job, attempt))
                    if query is not None and query.engine is not None:
                        query.engine.process.send(frames.Credit(count=count))

    def drain(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True
        for engine in self._engines:
            engine.cancel_timer()
            engine.process.close()
        self._engines.clear()
        shutil.rmtree(self._spill, ignore_errors=True)
        for query in self._queries.values():
            if query.fetch is not None:
                query.fetch.cancel()
        self._inputs.close()

    # --- queries ----------------------------------------------------------------------------------------------------

    def _start(self, assignment: Assignment) -> None:
        try:
            payload = checked(assignment.payload, _decode_payload, check_sql, "a query")
            run = run_of(assignment, payload, self._config)
        except InvalidRequest as error:
            outcome = never_ran(Reason.INVALID_PAYLOAD, str(error), at_ms=wall_ms(), sandbox=SANDBOX)
            ended = Ended(job=assignment.job, attempt=assignment.attempt, outcome=outcome, segments=[])
            self._loop.call_soon(self._on_events, [ended])
            return
        query = _Query(
            job=assignment.job,
            attempt=assignment.attempt,
            run=run,
            started_ms=wall_ms(),
            started_s=time.monotonic(),
        )
        self._queries[query.job, query.attempt] = query
        limit_s = self._config.limits.timeout_s if assignment.timeout_s is None else assignment.timeout_s
        blobs = {name: file.content.blob for name, file in payload.files.items() if file.content.blob is not None}
        if blobs:
            node = NodeApi(self._api_socket, assignment.owner, admin=assignment.admin)
            query.fetch = self._loop.create_task(self._inputs.hold(node, blobs, partial(self._tell_fetch, query)))
            query.fetch.add_done_callback(partial(self._on_fetched, query, limit_s))
        else:
            self._begin(query, limit_s)

    def _begin(self, query: _Query, limit_s: float | None) -> None:
        """Have it wait for an engine; its time runs from here."""
        if limit_s is not None:
            why = f"ran for longer than {limit_s:g} s"
            query.timer = self._loop.call_later(limit_s, self._end, query, Reason.TIMEOUT, why)
        self._waiting.append(query)
        self._match()

    def _tell_fetch(self, query: _Query, size_bytes: int) -> None:
        self._on_events([Progressed(job=query.job, attempt=query.attempt, percent=0.0, message=fetching(size_bytes))])

    def _on_fetched(self, query: _Query, limit_s: float | None, fetch: asyncio.Task[Held]) -> None:
        query.fetch = None
        query.started_ms, query.started_s = wall_ms(), time.monotonic()
        if fetch.cancelled():
            if query.ends_for is not None:
                self._report(query, query.ends_for, query.why or "ended before it was begun")
        elif (error := fetch.exception()) is not None:
            if not isinstance(error, InputError):
                logger.error("blobs of a query were not fetched", exc_info=error, extra={"job": query.job})
            self._report(query, Reason.BLOB_ERROR, str(error) or type(error).__name__)
        else:
            query.held = fetch.result()
            places = {name: str(self._inputs.directory / entry) for name, entry in query.held.names.items()}
            query.run = replace(query.run, blobs=places)
            self._begin(query, limit_s)

    def _match(self) -> None:
        """Give queries that wait to engines that are free."""
        free = deque(engine for engine in self._engines if engine.ready and not engine.retired and engine.query is None)
        while self._waiting and free:
            query, engine = self._waiting.popleft(), free.popleft()
            query.engine, engine.query = engine, query
            engine.process.send(query.run)

    def _end(self, query: _Query, reason: Reason, why: str | None) -> None:
        """End a query at once: it holds nothing that it would have to put in order."""
        if query.ends_for is not None:
            return
        query.ends_for, query.why = reason, why
        if query.fetch is not None:
            query.fetch.cancel()
        elif query.engine is None:
            self._waiting.remove(query)
            self._loop.call_soon(self._report, query, reason, why or "ended before it was begun")
        else:
            query.engine.retired = True
            query.engine.process.kill()

    def _report(
        self,
        query: _Query,
        reason: Reason | None,
        message: str | None,
        usage: Usage | None = None,
        done: frames.Done | None = None,
    ) -> None:
        """Tell the end of an attempt."""
        del self._queries[query.job, query.attempt]
        if query.held is not None:
            query.held.release()
        if query.timer is not None:
            query.timer.cancel()
        usage = usage or Usage(cpu_user_s=0.0, cpu_system_s=0.0, peak_memory_bytes=0)
        segments: Segments = [(1, done.last)] if done is not None and done.last else []
        written = query.produced + sum(len(data) for _, data in segments)
        outcome = Outcome(
            reason=reason,
            message=message,
            exit_code=None,
            signal=None,
            started_ms=query.started_ms,
            finished_ms=wall_ms(),
            wall_s=time.monotonic() - query.started_s,
            cpu_user_s=usage.cpu_user_s,
            cpu_system_s=usage.cpu_system_s,
            peak_memory_bytes=usage.peak_memory_bytes,
            sandbox=SANDBOX,
            stdout=StreamInfo(bytes=written, stored_bytes=written, truncated=False),
            stderr=_NOTHING,
            query=None if done is None else done.result,
        )
        write = None if done is None else done.write
        self._on_events([Ended(job=query.job, attempt=query.attempt, outcome=outcome, segments=segments, write=write)])

    # --- engines ----------------------------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        if self._closed:
            return
        self._number += 1
        configure = Configure(
            store=str(self._store),
            spill=str(self._spill / str(self._number)),
            threads=self._config.threads,
            window_bytes=WINDOW_BYTES,
            allow_files=[str(path) for path in self._config.allow_files],
        )
        try:
            engine = _Engine(EngineProcess(configure, self._tag, self._on_frames, self._on_end))
        except OSError as error:
            self._on_failed_start(str(error))
            return
        self._engines.append(engine)
        engine.timer = self._loop.call_later(START_S, engine.process.kill)

    def _on_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._on_lost(f"no process for queries can be started: {why}")
            return
        logger.error("a process for queries could not be used: %s", why)
        self._loop.call_later(RESTART_S, self._start_engine)

    def _on_frames(self, process: EngineProcess, received: Sequence[FromEngine]) -> None:
        engine = next(engine for engine in self._engines if engine.process is process)
        for frame in received:
            query = engine.query
            if isinstance(frame, frames.Ready):
                engine.ready, self._failed_starts = True, 0
                engine.cancel_timer()
                engine.count(frame.usage)
                self._match()
            elif query is None:
                logger.error("%s of a process that runs no query", type(frame).__name__)
                process.kill()
            elif query.ends_for is None:
                self._on_frame(engine, query, frame)

    def _on_frame(self, engine: _Engine, query: _Query, frame: FromEngine) -> None:
        job, attempt = query.job, query.attempt
        match frame:
            case frames.Output(data=data):
                query.produced += len(data)
                self._on_events([Produced(job=job, attempt=attempt, segments=[(1, data)])])
            case frames.Advance(percent=percent, message=message):
                self._on_events([Progressed(job=job, attempt=attempt, percent=percent, message=message)])
            case frames.Done(usage=usage):
                self._free(engine, usage)
                self._report(query, None, None, usage, frame)
            case frames.Failed(message=message, is_payload=is_payload, usage=usage):
                self._free(engine, usage)
                reason = Reason.INVALID_PAYLOAD if is_payload else Reason.QUERY_ERROR
                self._report(query, reason, message, usage)

    def _free(self, engine: _Engine, usage: Usage) -> None:
        """The engine may have the next query, unless it has had enough of them."""
        engine.query = None
        engine.queries += 1
        engine.count(usage)
        if engine.queries >= MAX_QUERIES or usage.peak_memory_bytes > KEPT_BYTES:
            engine.retired = True
            engine.process.kill()
        else:
            self._loop.call_soon(self._match)

    def _on_end(self, process: EngineProcess, end: End) -> None:
        engine = next(engine for engine in self._engines if engine.process is process)
        self._engines.remove(engine)
        engine.cancel_timer()
        if engine.ready:
            self._start_engine()
        else:
            self._on_failed_start(end.text())
        if engine.query is not None:
            usage = Usage(
                cpu_user_s=max(0.0, end.usage.ru_utime - engine.cpu_user_s),
                cpu_system_s=max(0.0, end.usage.ru_stime - engine.cpu_system_s),
                peak_memory_bytes=end.usage.ru_maxrss << 10,
            )
            reason, why = engine.query.ends_for, engine.query.why
            if reason is None:
                reason, why = Reason.QUERY_ERROR, _crash(end)
            self._report(engine.query, reason, why, usage)


def _crash(end: End) -> str:
    text = end.text()
    if "SIGABRT" in text:
        return f"the query's process gave up, most likely because it could get no more memory: {text}"
    if "SIGSEGV" in text or "SIGBUS" in text:
        return f"the query's process crashed, most likely because the statement is nested too deeply: {text}"
    return f"the query's process is gone: {text}"


def run_of(assignment: Assignment, payload: SqlPayload, config: SqlWorker) -> Run:
    """Return what an engine is to run for an assignment, apart from its blobs. Raises InvalidRequest."""
    return Run(
        job=assignment.job,
        payload=assignment.payload,
        bounds=bounds_of(payload.limits, config),
        revision=assignment.revision,
        owner=None if assignment.admin else assignment.owner,
        lease_ends=assignment.lease_ends,
    )


def bounds_of(wanted: SqlLimits, config: SqlWorker) -> Bounds:
    """Return what the query may use. Raises InvalidRequest for more than this worker allows."""
    found: dict[str, int] = {}
    for name in Bounds.__struct_fields__:
        given, cap = getattr(wanted, name), getattr(config.max_limits, name)
        if given is not None and given > cap:
            raise InvalidRequest(
                f"{given} is more than this worker allows", field=f"$.limits.{name}", expected=f"at most {cap}"
            )
        found[name] = min(getattr(config.limits, name), cap) if given is None else given
    return Bounds(**found)
