"""Gives waiting jobs to workers: keeps the head of the queues in memory and carries the scheduler's plans out.

Everything here follows from the store and from events; nothing polls. `start` rebuilds it from the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.alarm import Alarm
from jobs.control.assignments import Assignments
from jobs.control.fleet import Fleet, Held
from jobs.control.meter import Meter
from jobs.control.queues import Queues
from jobs.control.tasks import Spawn
from jobs.control.timers import Timers
from jobs.control.transitions import Change, Stored, Transitions, check, guard, scan_in_turns, write_ops
from jobs.jobs import Refusal
from jobs.protocol.ids import Attempt, Incarnation, Revision, WorkerId
from jobs.protocol.wire import Assignment
from jobs.records import Demand, JobRecord, RateRecord, RunningRecord
from jobs.scheduler import Assignment as Planned
from jobs.scheduler import Backlog, Run, plan
from jobs.store import Put, Store, Txn, TxnResult, prefix_end

PLAN_LIMIT: Final = 256
"""Assignments of one plan; more make the next one."""
FILL_ROWS: Final = 1_024
LOAD_LANES: Final = 128
"""Lanes that are taken up before others have their turn."""


class Dispatcher:
    """The leader's view of what waits, matched with the fleet."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        fleet: Fleet,
        queues: Queues,
        assignments: Assignments,
        spawn: Spawn,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._fleet = fleet
        self._queues = queues
        self._assignments = assignments
        self._spawn = spawn
        self._timers = Timers(store, transitions, spawn)
        self.backlog = Backlog()
        self._plan_scheduled = False
        self._stopped = False
        self._alarm = Alarm(self.wake)
        self.assigned = Meter(time.monotonic())
        self.on_assigned: Callable[[Change], None] = lambda change: None
        """Called for every committed assignment."""

    @property
    def pending(self) -> int:
        """Jobs that wait, for a worker, a time or other jobs."""
        return self._queues.pending

    async def load(self) -> None:
        """Read the heads of the queues, what runs, and how far rates have got."""
        self._loop = asyncio.get_running_loop()
        self._fleet.on_room = self.wake
        self._queues.on_owner_changed = self._on_owner_changed
        self.backlog.set_limits(self._queues.records, self._queues.owner_records)
        async for page in scan_in_turns(self._store, keys.RATES):
            for key, value, *_ in page:
                arrival_us = records.decode(RateRecord, value).arrival_us
                self.backlog.set_arrival(key[len(keys.RATES) :].decode(), arrival_us)
        async for page in scan_in_turns(self._store, keys.RUNNING):
            for key, value, *_ in page:
                running = records.decode(RunningRecord, value)
                self.backlog.start(keys.job_of(key), Run(running.queue, running.owner, running.concurrency_key))
        await self._load_backlog()

    def start(self) -> None:
        """Give jobs to workers from now on."""
        self._timers.start()
        self.wake()

    def stop(self) -> None:
        self._stopped = True
        self._timers.stop()
        self._alarm.stop()

    async def _load_backlog(self) -> None:
        """Read the head of every lane: page by page, and past the rest of a lane that is longer than a page."""
        start, end = keys.QUEUE, prefix_end(keys.QUEUE)
        while True:
            rows, more = self._store.range(start, end, limit=FILL_ROWS)
            lanes: dict[bytes, list[tuple[bytes, Demand]]] = {}
            for row in rows:
                lanes.setdefault(keys.lane_of(row[0]), []).append((row[0], records.decode(Demand, row[1])))
            last = next(reversed(lanes), b"")
            for number, (lane, jobs_of_lane) in enumerate(lanes.items()):
                self.backlog.fill(lane, jobs_of_lane, more and lane == last)
                if number % LOAD_LANES == LOAD_LANES - 1:
                    await asyncio.sleep(0)
            if not more:
                return
            start = prefix_end(last)
            await asyncio.sleep(0)

    def _fill(self, lane: bytes, after: bytes) -> None:
        rows, more = self._store.range(after + b"\x00", prefix_end(lane), limit=FILL_ROWS)
        self.backlog.fill(lane, [(row[0], records.decode(Demand, row[1])) for row in rows], more)

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        old, new, job = change.old, change.new, change.job
        self._queues.on_change(old, new)
        if old is not None and jobs.is_ready(old):
            self.backlog.remove(jobs.ready_key(job, old))
        elif old is not None and old.state is jobs.RUNNING and new.state is not jobs.RUNNING:
            self._fleet.release(old.worker, old.incarnation, job)
            self.backlog.end(job)
        moment_ms = jobs.next_moment_ms(new)
        if moment_ms is not None:
            self._timers.expect(moment_ms)
        if jobs.is_ready(new):
            self.backlog.add(jobs.ready_key(job, new), jobs.demand_of(new))
        elif new.state is jobs.RUNNING and new.cancel_requested and not (old and old.cancel_requested):
            self._fleet.cancel(job, new)
        self.wake()

    def on_queue_changed(self, name: str) -> None:
        """The settings of a queue are other than before."""
        self.backlog.queue_changed(name)
        self.wake()

    def _on_owner_changed(self, owner: int) -> None:
        self.backlog.owner_changed(owner)
        self.wake()

    def wake(self) -> None:
        """Make a plan soon: something changed that may let a job start."""
        if not self._plan_scheduled and not self._stopped:
            self._plan_scheduled = True
            self._loop.call_soon(self._make_plan)

    def _make_plan(self) -> None:
        self._plan_scheduled = False
        if self._stopped:
            return
        now_ms = wall_ms()
        made = plan(self.backlog, self._fleet.candidates(), now_ms, PLAN_LIMIT)
        claimed = [claim for item in made.assignments if (claim := self._claim(item, now_ms)) is not None]
        for lane, after in self.backlog.wants_more():
            self._fill(lane, after)
            self.wake()
        if claimed:
            self._spawn(self._assign(claimed))
        self._alarm.set(made.wake_ms)

    def _claim(self, item: Planned, now_ms: int) -> tuple[Planned, Stored] | None:
        """Hold the room for a planned job while its assignment is written."""
        stored = self._transitions.read(item.job)
        worker = self._fleet.get(item.worker, item.incarnation)
        if stored is None or worker is None:
            self.backlog.end(item.job)
            self._take_back(item)
            return None
        worker.held[item.job] = Held(Attempt(stored.record.attempt + 1), stored.record.requires, item.owner, now_ms)
        return item, stored

    def _give_up(self, item: Planned) -> None:
        """The job was overtaken by another change, whose author has told the backlog if it still waits."""
        self._fleet.release(item.worker, item.incarnation, item.job)
        self.backlog.end(item.job)
        self.wake()

    async def _assign(self, claimed: list[tuple[Planned, Stored]]) -> None:
        """Write the assignments, then send each worker those that were accepted."""
        now_ms = wall_ms()
        writes: list[tuple[Planned, JobRecord, JobRecord, asyncio.Future[TxnResult]]] = []
        for item, stored in claimed:
            new = jobs.on_assigned(stored.record, item.worker, item.incarnation, now_ms)
            if isinstance(new, Refusal):
                self._give_up(item)
                continue
            ops = write_ops(item.job, stored.record, new)
            if item.arrival_us is not None:
                ops += (Put(keys.rate(item.queue), records.encode(RateRecord(item.arrival_us))),)
            compares = (guard(item.job, stored), *self._queues.guards(item.queue, item.owner))
            writes.append((item, stored.record, new, self._consensus.propose(Txn(compares, ops))))
        outgoing: dict[tuple[WorkerId, Incarnation], list[Assignment]] = {}
        for item, old, new, done in writes:
            result = await done
            check(result)
            if result.succeeded:
                self._queues.on_change(old, new)
                self.on_assigned(Change(item.job, old, new, Revision(result.revision)))
                self.assigned.count(time.monotonic())
                told = outgoing.setdefault((item.worker, item.incarnation), [])
                told.append(self._assignments.of(item.job, new))
            else:
                self._give_up(item)
                self._take_back(item)
        for (worker, incarnation), assignments in outgoing.items():
            self._fleet.deliver(worker, incarnation, assignments)

    def _take_back(self, item: Planned) -> None:
        """Let a job wait on that is still where it stood: the settings of its queue or owner changed meanwhile."""
        found = self._store.get(item.queue_key)
        if found is not None:
            self.backlog.add(item.queue_key, records.decode(Demand, found[1]))
