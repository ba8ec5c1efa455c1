"""Gives waiting jobs to workers: keeps the head of the queues in memory and carries the scheduler's plans out.

Everything here follows from the store and from events; nothing polls. `start` rebuilds it from the store.
"""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.fleet import Fleet, Held, assignment, free_slots
from jobs.control.tasks import Spawn
from jobs.control.timers import Timers
from jobs.control.transitions import Change, Stored, Transitions, check, guard, write_ops
from jobs.jobs import Refusal
from jobs.protocol.ids import Attempt, Incarnation, WorkerId
from jobs.protocol.wire import Assignment
from jobs.records import Demand, JobRecord
from jobs.scheduler import Assignment as Planned
from jobs.scheduler import Backlog, plan
from jobs.store import Store, Txn, TxnResult, prefix_end

PLAN_LIMIT: Final = 256
"""Assignments of one plan; more make the next one."""
FILL_ROWS: Final = 1_024


class Dispatcher:
    """The leader's view of what waits, matched with the fleet."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        fleet: Fleet,
        spawn: Spawn,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._fleet = fleet
        self._spawn = spawn
        self._timers = Timers(store, transitions, spawn)
        self._backlog = Backlog()
        self._plan_scheduled = False
        self.pending = 0
        """Jobs that wait, for a worker or for a time."""
        self.assigned_total = 0

    def start(self) -> None:
        """Read the heads of the queues and count what waits."""
        self._loop = asyncio.get_running_loop()
        self._fleet.on_room = self.wake
        self._load_backlog()
        self.pending = sum(
            self._store.count(prefix, prefix_end(prefix), limit=1 << 62) for prefix in (keys.QUEUE, keys.WAITING)
        )
        self._timers.start()
        self.wake()

    def stop(self) -> None:
        self._timers.stop()

    def _load_backlog(self) -> None:
        """Read the head of every lane; they are found by skipping from one lane's end to the next."""
        start, end = keys.QUEUE, prefix_end(keys.QUEUE)
        while True:
            head, _ = self._store.range(start, end, limit=1, keys_only=True)
            if not head:
                return
            lane = keys.lane_of(head[0][0])
            self._fill(lane, b"")
            start = prefix_end(lane)

    def _fill(self, lane: bytes, after: bytes) -> None:
        rows, more = self._store.range(after + b"\x00" if after else lane, prefix_end(lane), limit=FILL_ROWS)
        self._backlog.fill(lane, [(row[0], records.decode(Demand, row[1])) for row in rows], more)

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        old, new, job = change.old, change.new, change.job
        self.pending += (new.state is jobs.PENDING) - (old is not None and old.state is jobs.PENDING)
        if old is not None and jobs.is_ready(old):
            self._backlog.remove(jobs.ready_key(job, old))
        elif old is not None and old.state is jobs.RUNNING and new.state is not jobs.RUNNING:
            self._fleet.release(old.worker, old.incarnation, job)
        moment_ms = jobs.next_moment_ms(new)
        if moment_ms is not None:
            self._timers.expect(moment_ms)
        if jobs.is_ready(new):
            self._backlog.add(jobs.ready_key(job, new), jobs.demand_of(new))
        elif new.state is jobs.RUNNING and new.cancel_requested:
            self._fleet.cancel(job, new)
        self.wake()

    def wake(self) -> None:
        """Make a plan soon: something changed that may let a job start."""
        if not self._plan_scheduled:
            self._plan_scheduled = True
            self._loop.call_soon(self._make_plan)

    def _make_plan(self) -> None:
        self._plan_scheduled = False
        candidates = self._fleet.candidates()
        if not free_slots(candidates):
            return
        planned = plan(self._backlog.lanes, candidates, PLAN_LIMIT)
        claimed = [claim for item in planned if (claim := self._claim(item)) is not None]
        for lane, after in self._backlog.wants_more():
            self._fill(lane, after)
            self.wake()
        if claimed:
            self._spawn(self._assign(claimed))
        if len(planned) == PLAN_LIMIT:
            self.wake()

    def _claim(self, item: Planned) -> tuple[Planned, Stored] | None:
        """Take a planned job out of the backlog, and hold the room for it while the assignment is written."""
        self._backlog.remove(item.queue_key)
        stored = self._transitions.read(item.job)
        worker = self._fleet.get(item.worker, item.incarnation)
        if stored is None or worker is None:
            return None
        worker.held[item.job] = Held(Attempt(stored.record.attempt + 1), stored.record.requires)
        return item, stored

    async def _assign(self, claimed: list[tuple[Planned, Stored]]) -> None:
        """Write the assignments, then send each worker those that were accepted.

        One that is not accepted was overtaken by another change of the job, whose author has told the backlog.
        """
        now_ms = wall_ms()
        writes: list[tuple[Planned, JobRecord, asyncio.Future[TxnResult]]] = []
        for item, stored in claimed:
            new = jobs.on_assigned(stored.record, item.worker, item.incarnation, now_ms)
            if isinstance(new, Refusal):
                self._fleet.release(item.worker, item.incarnation, item.job)
                continue
            txn = Txn((guard(item.job, stored),), write_ops(item.job, stored.record, new))
            writes.append((item, new, self._consensus.propose(txn)))
        outgoing: dict[tuple[WorkerId, Incarnation], list[Assignment]] = {}
        for item, new, done in writes:
            result = await done
            check(result)
            if result.succeeded:
                self.pending -= 1
                self.assigned_total += 1
                told = outgoing.setdefault((item.worker, item.incarnation), [])
                told.append(assignment(self._store, item.job, new))
            else:
                self._fleet.release(item.worker, item.incarnation, item.job)
                self.wake()
        for (worker, incarnation), assignments in outgoing.items():
            self._fleet.deliver(worker, incarnation, assignments)
