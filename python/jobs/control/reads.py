"""Reads as the API asks for them: linearizable ones of the control plane, and those of a node's own store, however far
that is, which any node answers that is asked for `consistency=stale`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from jobs import arrays
from jobs.clock import wall_ms
from jobs.control import arraystore
from jobs.control.data import DataReads
from jobs.control.hub import Hub
from jobs.control.output import OutputBlobs
from jobs.control.queries import Queries
from jobs.errors import Unavailable
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import (
    AttemptList,
    JobDetail,
    JobEvent,
    JobGraph,
    JobPage,
    JobResult,
    JobView,
    KeyValue,
    KvEvent,
    KvPage,
    Progress,
)
from jobs.service import Caller, JobFilter, LogPiece, LogsWanted
from jobs.store import Store


class ReadOperations:
    """Implements `service.Reads`, apart from its end."""

    _store: Store
    _queries: Queries
    _data: DataReads

    def _check_revision(self, revision: int | None) -> None:
        """Raise what is to be said of a revision that cannot be served here."""

    @property
    def revision(self) -> int:
        return self._store.revision

    async def get(self, caller: Caller, job: JobId) -> JobDetail:
        return await self._queries.get(caller, job)

    async def list_jobs(
        self, caller: Caller, where: JobFilter, *, limit: int, cursor: str | None, newest_first: bool
    ) -> JobPage:
        return await self._queries.list_jobs(caller, where, limit=limit, cursor=cursor, newest_first=newest_first)

    async def result(self, caller: Caller, job: JobId, attempt: Attempt | None) -> JobResult:
        return await self._queries.result(caller, job, attempt)

    async def wait(self, caller: Caller, job: JobId, timeout_s: float) -> JobView:
        return await self._queries.wait(caller, job, timeout_s)

    async def graph(self, caller: Caller, job: JobId, *, limit: int) -> JobGraph:
        return await self._queries.graph(caller, job, limit=limit)

    def logs(self, caller: Caller, job: JobId, wanted: LogsWanted) -> AsyncIterator[LogPiece]:
        return self._queries.logs(caller, job, wanted)

    async def attempts(self, caller: Caller, job: JobId) -> AttemptList:
        return await self._queries.attempts(caller, job)

    def watch_jobs(
        self, caller: Caller, where: JobFilter, *, after_revision: int | None, job: JobId | None
    ) -> AsyncIterator[JobEvent | int]:
        self._check_revision(after_revision)
        return self._queries.watch_jobs(caller, where, after_revision=after_revision, job=job)

    async def kv_get(self, caller: Caller, key: str, revision: int) -> KeyValue | None:
        self._check_revision(revision)
        return await self._data.get(caller, key, revision)

    async def kv_scan(
        self, caller: Caller, prefix: str, *, limit: int, cursor: str | None, revision: int, keys_only: bool
    ) -> KvPage:
        self._check_revision(revision)
        return await self._data.scan(caller, prefix, limit=limit, cursor=cursor, revision=revision, keys_only=keys_only)

    def kv_watch(
        self, caller: Caller, key: str, *, prefix: bool, after_revision: int | None
    ) -> AsyncIterator[KvEvent | int]:
        self._check_revision(after_revision)
        return self._data.watch(caller, key, prefix=prefix, after_revision=after_revision)


class StaleReads(ReadOperations):
    """Reads of a node's own store, with no barrier before them."""

    def __init__(self, store: Store, hub: Hub, output_blobs: OutputBlobs, is_leader: Callable[[], bool]) -> None:
        self._store = store
        self._is_leader = is_leader
        self._queries = Queries(_at_once, store, hub, output_blobs, self._array_progress)
        self._data = DataReads(_at_once, store, hub)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _check_revision(self, revision: int | None) -> None:
        """Raise Unavailable for what another node may have seen and this one has not yet."""
        if revision is not None and revision > self._store.revision and not self._is_leader():
            raise Unavailable(
                f"this node has seen the store up to revision {self._store.revision}, not {revision}",
                expected="consistency=linearizable, or the same a little later",
                retry_after_s=1,
            )

    async def _array_progress(self, array: JobId) -> Progress:
        found = arraystore.read_existing_array(self._store, array)
        ended = found.parent.state.is_final
        tally = arrays.final_tally(found.record) if ended else await arraystore.tally(self._store, array, found.record)
        rest = arrays.rest(found.parent, found.record)
        count = arrays.count(found.parent.tasks, tally, found.record.withdrawn, rest)
        return arrays.progress(found.parent, count, wall_ms())


async def _at_once() -> None:
    """A stale read waits for nothing."""
