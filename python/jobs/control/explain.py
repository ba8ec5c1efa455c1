"""Gathers what is known around a job, so that it can be explained why it is where it is."""

from __future__ import annotations

from typing import Final

from jobs import arrays, explain, jobs, keys, records
from jobs.clock import wall_ms
from jobs.control.arrays import Arrays
from jobs.control.arraystore import read_existing_array
from jobs.control.dependencies import parents_of
from jobs.control.dispatch import Dispatcher
from jobs.control.fleet import Fleet
from jobs.control.queries import Queries, attempt_view
from jobs.control.transitions import Transitions, view
from jobs.explain import Circumstances, Parent
from jobs.protocol.ids import JobId, array_id
from jobs.protocol.model import AttemptView, Explanation
from jobs.records import JobRecord, ResultRecord
from jobs.scheduler.explain import Finding
from jobs.scheduler.explain import explain as find
from jobs.service import Caller
from jobs.store import Store, prefix_end

AHEAD_LIMIT: Final = 10_000
MAX_ATTEMPTS: Final = 20


class Explanations:
    """Reads the store and what the scheduler has in memory; the work for one job is bounded."""

    def __init__(
        self,
        store: Store,
        transitions: Transitions,
        queries: Queries,
        dispatcher: Dispatcher,
        fleet: Fleet,
        array_driver: Arrays,
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._queries = queries
        self._dispatcher = dispatcher
        self._fleet = fleet
        self._arrays = array_driver

    async def explain(self, caller: Caller, job: JobId) -> Explanation:
        stored = await self._queries.read(caller, job)
        record = stored.record
        shown = view(job, record, stored.revision)
        if record.is_task and record.state is jobs.PENDING and self._transitions.read(job) is None:
            array = array_id(job)
            parent = self._transitions.read_existing(array)
            return explain.explain_unsplit(shown, parent.record, self._around(array, parent.record))
        return explain.explain(shown, record, self._around(job, record))

    def _around(self, job: JobId, record: JobRecord) -> Circumstances:
        pending = record.state is jobs.PENDING
        count = self._arrays.count(job) if record.tasks else None
        waits = pending or (count is not None and count.pending > 0)
        return Circumstances(
            finding=self._finding(job, record) if waits else None,
            being_started=pending and job in self._dispatcher.backlog.usage,
            ahead=self._ahead(job, record) if jobs.is_ready(record) else None,
            parents=self._parents(job) if pending else (),
            attempts=self._attempts(job),
            worker_away=self._worker_away(record),
            tasks=None if count is None else arrays.progress(record, count, wall_ms()).message,
        )

    def _finding(self, job: JobId, record: JobRecord) -> Finding:
        """Return what is against a start of the job, or of an array's tasks."""
        if record.tasks:
            record = arrays.task_record(job, record, read_existing_array(self._store, job).record)
        backlog, fleet, demand = self._dispatcher.backlog, self._fleet, jobs.demand_of(record)
        return find(backlog, demand, record.queue, record.owner, fleet.candidates(), fleet.shut(), wall_ms())

    def _ahead(self, job: JobId, record: JobRecord) -> int:
        key = jobs.ready_key(job, record)
        return self._store.count(keys.lane_of(key), key, limit=AHEAD_LIMIT)

    def _parents(self, job: JobId) -> list[Parent]:
        found = [(parent, self._transitions.read(parent)) for parent in parents_of(self._store, job)]
        return [Parent(parent, None if stored is None else stored.record.state) for parent, stored in found]

    def _attempts(self, job: JobId) -> list[AttemptView]:
        prefix = keys.results_prefix(job)
        rows, _ = self._store.range(prefix, prefix_end(prefix), limit=MAX_ATTEMPTS, reverse=True)
        return [attempt_view(keys.attempt_of(row[0]), records.decode(ResultRecord, row[1])) for row in rows]

    def _worker_away(self, record: JobRecord) -> str | None:
        if record.state is not jobs.RUNNING or record.tasks:
            return None
        worker = self._fleet.get(record.worker, record.incarnation)
        return None if worker is not None and worker.session is not None else "not connected"
