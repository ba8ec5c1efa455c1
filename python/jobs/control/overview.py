"""How the node is and what goes on, for one look: bounded, and cheap enough to be asked for every second."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import nlargest
from itertools import chain, islice
from typing import Final

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.deadletters import dead_letter
from jobs.control.dispatch import Dispatcher
from jobs.control.fleet import Fleet
from jobs.control.meter import Meter
from jobs.control.queries import Queries
from jobs.control.queues import Queues
from jobs.control.queueservice import QueueOperations
from jobs.control.transitions import Change, Transitions, view
from jobs.protocol.model import DeadLetter, Health, JobState, Overview, QueueView, Rates, RunningJob, WorkerView
from jobs.records import DeadLetterRecord
from jobs.service import Caller, OverviewLimits
from jobs.store import Store, prefix_end

MAX_LOOKS: Final = 10_000
"""Queues, and running jobs, that are looked at for one overview."""
MAX_DEAD: Final = 1_000


class Activity:
    """How many jobs come and go."""

    def __init__(self) -> None:
        self.submitted = Meter(time.monotonic())
        self.ended = Meter(time.monotonic())

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        if change.old is None:
            self.submitted.count(time.monotonic())
        if change.new.state.is_final and (change.old is None or not change.old.state.is_final):
            self.ended.count(time.monotonic())


class Overviews:
    """Puts overviews together from what memory holds, and reads of the store only what it shows."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        queries: Queries,
        dispatcher: Dispatcher,
        fleet: Fleet,
        queues: Queues,
        operations: QueueOperations,
        activity: Activity,
        health: Callable[[], Health],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._queries = queries
        self._dispatcher = dispatcher
        self._usage = dispatcher.backlog.usage
        self._fleet = fleet
        self._queues = queues
        self._operations = operations
        self._activity = activity
        self._health = health

    async def get(self, caller: Caller, limits: OverviewLimits) -> Overview:
        await self._consensus.barrier()
        now_s = time.monotonic()
        health, counts, views = self._health(), self._queues.counts, self._fleet.views()
        queues, more_queues = self._busiest_queues(limits.queues)
        workers = _busiest_workers(views, limits.workers)
        jobs = self._longest(caller, limits.jobs)
        visible = len(self._usage) if caller.admin else self._usage.of_owner(caller.uid)
        return Overview(
            node=health.node,
            version=health.version,
            leader=health.leader,
            uptime_s=health.uptime_s,
            now_ms=wall_ms(),
            pending=counts.total,
            waiting=counts.total_waiting,
            running=len(self._usage),
            slots=sum(worker.slots for worker in views),
            rates=Rates(
                submitted=self._activity.submitted.per_s(now_s),
                started=self._dispatcher.assigned.per_s(now_s),
                ended=self._activity.ended.per_s(now_s),
            ),
            own=await self._operations.get_owner(caller, caller.uid),
            all_owners=caller.admin,
            queues=queues,
            more_queues=more_queues,
            workers=workers,
            more_workers=len(views) - len(workers),
            jobs=jobs,
            more_jobs=max(0, visible - len(jobs)),
            failed=self._failed(caller, limits.failed),
        )

    def _busiest_queues(self, limit: int) -> tuple[list[QueueView], int]:
        """Return the queues with most jobs, and how many more there are of those that were looked at."""
        counts, usage = self._queues.counts, self._usage
        names = chain(usage.queues(), self._queues.records, counts.queues())
        known = set(islice(names, MAX_LOOKS))
        busiest = nlargest(limit, known, key=lambda name: (usage.of_queue(name) + counts.of_queue(name), name))
        return [self._operations.view(name) for name in busiest], len(known) - len(busiest)

    def _longest(self, caller: Caller, limit: int) -> list[RunningJob]:
        seen = islice(self._fleet.longest(), MAX_LOOKS)
        visible = (job for job, held in seen if caller.admin or held.owner == caller.uid)
        found: list[RunningJob] = []
        for job in visible:
            if len(found) == limit:
                break
            stored = self._transitions.read(job)
            # What is held for a worker runs only once its assignment is committed.
            if stored is not None and stored.record.state is JobState.RUNNING:
                progress = self._queries.progress(job, stored.record)
                found.append(RunningJob(job=view(job, stored.record, stored.revision), progress=progress))
        return found

    def _failed(self, caller: Caller, limit: int) -> list[DeadLetter]:
        if not limit:
            return []
        looks = limit if caller.admin else MAX_DEAD
        rows, _ = self._store.range(keys.DEAD_LETTERS, prefix_end(keys.DEAD_LETTERS), limit=looks, reverse=True)
        letters = (dead_letter(row[0], records.decode(DeadLetterRecord, row[1])) for row in rows)
        return list(islice((one for one in letters if caller.admin or one.owner == caller.uid), limit))


def _busiest_workers(views: list[WorkerView], limit: int) -> list[WorkerView]:
    busiest = nlargest(limit, views, key=lambda worker: (worker.running / worker.slots, worker.id))
    return sorted(busiest, key=lambda worker: worker.id)
