"""Makes the jobs of schedules when their times come: asks the pure part for the next step, and carries it out.

The store has every schedule and how far it is; memory has only the moment at which each is to be looked at again, which
`start` sets to now. A fire is one transaction: the schedule's new record and the new job, if the record is as it was.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import jobs, keys, records, schedules
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.alarm import Alarm
from jobs.control.newjobs import JobMaker, NewJob, makes_room
from jobs.control.pace import Pace
from jobs.control.tasks import Spawn
from jobs.control.transitions import Change, Transitions, check, guard, scan_in_turns, view, write_ops
from jobs.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    QueueClosed,
    QueueFull,
    StorageFull,
    Unavailable,
)
from jobs.jobs import Refusal
from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model import Submitted
from jobs.records import IdempotencyRecord, JobRecord, ScheduleRecord
from jobs.schedules import MINUTE_MS, Fire, Settle, Wait
from jobs.store import EQ, Compare, ModRevisionIs, Op, Put, Store, Txn, prefix_end

logger = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Schedules that are dealt with at a time."""
RETRY_MS: Final = 5_000
"""After a failure to write, such as a full disk, the same is tried again."""
IDLE_MS: Final = 86_400_000
"""Without a time to come, the clock is still watched: it may be set back."""
MAX_UNFINISHED: Final = 1_000
"""Unfinished jobs of a schedule that are counted."""
MAX_VOID: Final = 1_000
"""Void entries, beyond as many as there are others, that are left where they are."""
MAX_REPLACED: Final = 100
"""Jobs that one transaction ends."""

REFUSALS: Final = (QueueFull, QueueClosed, InvalidRequest, NotFound, PayloadTooLarge, StorageFull)
"""Why there is no job now (NotFound: a blob that it names); anything else is a fault, or passes by itself."""


class StoredSchedule(Struct, frozen=True):
    """A schedule's record as read, and the revision that guards it."""

    record: ScheduleRecord
    revision: Revision

    def compare(self, name: str) -> Compare:
        """Return the compare that holds while the record is as it was read."""
        return ModRevisionIs(keys.schedule(name), EQ, self.revision)


class Schedules:
    """Every schedule, by name."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        maker: JobMaker,
        spawn: Spawn,
        *,
        max_fires_per_minute: int,
        check_space: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._maker = maker
        self._spawn = spawn
        self._check_space = check_space
        self._pace = Pace(max_fires_per_minute)
        self._alarm = Alarm(self._begin_due, self._look_at_all)
        self._moments: list[tuple[int, int, str]] = []
        """Heap of (when, entry, name); an entry that is not the name's last one is void."""
        self._entries: dict[str, int] = {}
        self._numbers = itertools.count()
        self._busy: set[str] = set()
        self._stopped = False
        self.owners: dict[str, int] = {}
        """Who each belongs to."""
        self.fired_total = 0

    async def load(self) -> None:
        """Read which schedules there are, and how many jobs they have made lately."""
        now_ms = wall_ms()
        ages_ms: list[int] = []
        async for page in scan_in_turns(self._store, keys.SCHEDULES):
            for key, value, *_ in page:
                record, name = records.decode(ScheduleRecord, value), key[len(keys.SCHEDULES) :].decode()
                self.owners[name] = record.owner
                ages_ms += [now_ms - at_ms for at_ms in record.fired_ms if now_ms - MINUTE_MS < at_ms <= now_ms]
                self._push(name, now_ms)
        self._pace.load(ages_ms, _monotonic_ms())

    def start(self) -> None:
        """Look at every schedule soon."""
        self._arm()

    def stop(self) -> None:
        self._stopped = True
        self._alarm.stop()

    # --- what others ask ----------------------------------------------------------------------------------------

    def read(self, name: str) -> StoredSchedule | None:
        found = self._store.get(keys.schedule(name))
        return None if found is None else StoredSchedule(records.decode(ScheduleRecord, found[1]), Revision(found[4]))

    def unfinished(self, name: str, limit: int = MAX_UNFINISHED) -> int:
        """Return how many jobs of the schedule have not ended; more than the limit are not counted."""
        prefix = keys.unfinished_prefix(name)
        return self._store.count(prefix, prefix_end(prefix), limit=limit)

    def look(self, name: str) -> None:
        """Something happened that may let the schedule go on."""
        if name not in self._busy and not self._stopped:
            self._push(name, wall_ms())
            self._arm()

    def forget(self, name: str) -> None:
        """The schedule was deleted."""
        self._entries.pop(name, None)
        del self.owners[name]

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        new = change.new
        if new.schedule is not None and new.state.is_final and not new.is_task:
            self.look(new.schedule)

    def make(self, name: str, owner: int, nominal_ms: int, now_ms: int, idempotency_key: str | None = None) -> NewJob:
        """Return the schedule's job for a time. Raises one of REFUSALS."""
        spec = self._store.get(keys.schedule_job(name))
        if spec is None:
            raise NotFound(f"there is no schedule {name!r}")
        job = replace(records.decode_spec(spec[1]), idempotency_key=idempotency_key)
        if not makes_room(job):
            self._check_space()
        new = self._maker.make(job, owner, now_ms, "$.job")
        return replace(new, record=replace(new.record, schedule=name, nominal_ms=nominal_ms))

    def made_with(self, owner: int, idempotency_key: str) -> Submitted | None:
        """Return the job that was made with an idempotency key. Raises Gone where it is no longer kept."""
        found = self._store.get(keys.idempotency(owner, idempotency_key))
        if found is None:
            return None
        job = records.decode(IdempotencyRecord, found[1]).job
        stored = self._transitions.read_existing(job)
        return Submitted(job=view(job, stored.record, stored.revision), created=False)

    async def store_job(
        self, name: str, stored: StoredSchedule, record: ScheduleRecord, new: NewJob, *extra: Op
    ) -> Revision | None:
        """Store a new job and the record with it; None when the schedule, a queue or a blob was changed meanwhile."""
        with self._maker.admit([new]) as admitted:
            put = Put(keys.schedule(name), records.encode(replace(record, last_job=new.id)))
            txn = Txn((stored.compare(name), *admitted.compares), (put, *admitted.ops, *extra))
            done = await self._consensus.propose(txn, new.size_bytes())
            check(done)
            if not done.succeeded:
                return None
            self._transitions.on_change(Change(new.id, None, new.record, Revision(done.revision)))
            return Revision(done.revision)

    # --- moments ------------------------------------------------------------------------------------------------

    def _push(self, name: str, at_ms: int) -> None:
        entry = self._entries[name] = next(self._numbers)
        heapq.heappush(self._moments, (at_ms, entry, name))
        if len(self._moments) > 2 * len(self._entries) + MAX_VOID:
            self._moments = [moment for moment in self._moments if self._entries.get(moment[2]) == moment[1]]
            heapq.heapify(self._moments)

    def _look_at_all(self) -> None:
        """The clock was set back: what was to come at a moment may come at another."""
        now_ms = wall_ms()
        for name in self.owners:
            if name not in self._busy:
                self._push(name, now_ms)

    def _begin_due(self) -> None:
        """Begin with the schedules whose moment has come, the longest past first, as many as may fire."""
        now_ms = wall_ms()
        while self._moments and len(self._busy) < self._room():
            at_ms, entry, name = self._moments[0]
            if self._entries.get(name) == entry:
                if at_ms > now_ms:
                    break
                del self._entries[name]
                self._busy.add(name)
                self._spawn(self._run(name))
            heapq.heappop(self._moments)
        self._arm()

    def _room(self) -> int:
        """Return how many schedules may be dealt with at a time."""
        return min(AT_ONCE, self._pace.room(_monotonic_ms()))

    def _arm(self) -> None:
        """Wake when the next moment has come, or the cap allows a fire; those that are dealt with begin anew at their
        end."""
        if self._stopped or (self._busy and len(self._busy) >= self._room()):
            return
        now_ms = wall_ms()
        if self._moments:
            self._alarm.set(max(self._moments[0][0], now_ms + self._pace.wait_ms(_monotonic_ms())))
        elif self.owners:
            self._alarm.set(now_ms + IDLE_MS)

    # --- steps --------------------------------------------------------------------------------------------------

    async def _run(self, name: str) -> None:
        until_ms: int | None = wall_ms() + RETRY_MS
        try:
            until_ms = await self._advance(name)
        except (StorageFull, Unavailable) as error:
            logger.warning("schedule %s waits, because the node cannot write: %s", name, error)
        finally:
            self._busy.discard(name)
            if not self._stopped:
                if until_ms is not None:
                    self._push(name, until_ms)
                self._begin_due()

    async def _advance(self, name: str) -> int | None:
        """Take step after step; return when to look again."""
        while (stored := self.read(name)) is not None:
            now_ms = wall_ms()
            free_ms = now_ms + self._pace.wait_ms(_monotonic_ms())
            step = schedules.step(stored.record, self.unfinished(name, 1) > 0, now_ms, free_ms)
            if isinstance(step, Wait):
                return step.until_ms
            if isinstance(step, Fire):
                await self._fire(name, stored, step, now_ms)
            else:
                await self._settle(name, stored, step, now_ms)
        return None

    async def _fire(self, name: str, stored: StoredSchedule, step: Fire, now_ms: int) -> None:
        taken_ms = _monotonic_ms()
        self._pace.take(taken_ms)
        revision = None
        try:
            new = self.make(name, stored.record.owner, step.nominal_ms, now_ms)
            revision = await self.store_job(name, stored, step.record, new)
        except REFUSALS as error:
            why = f"{error.code}: {error.detail}"
            logger.warning("schedule %s makes no job: %s", name, why, extra={"nominal_ms": step.nominal_ms})
            refused = schedules.on_refused(stored.record, now_ms, why)
            await self._settle(name, stored, Settle(refused), now_ms)
        finally:
            if revision is None:
                self._pace.give_back(taken_ms)
            else:
                self.fired_total += 1

    async def _settle(self, name: str, stored: StoredSchedule, step: Settle, now_ms: int) -> None:
        """Store a record without a new job, and with it the end of the jobs that are replaced."""
        compares: list[Compare] = [stored.compare(name)]
        ops: list[Op] = [Put(keys.schedule(name), records.encode(step.record))]
        ended: list[tuple[JobId, JobRecord, JobRecord]] = []
        for job in self._unfinished_jobs(name) if step.replaces else ():
            found = self._transitions.read_existing(job)
            new = jobs.on_cancel(found.record, now_ms)
            if not isinstance(new, Refusal) and new is not found.record:
                compares.append(guard(job, found))
                ops += write_ops(job, found.record, new)
                ended.append((job, found.record, new))
        done = await self._consensus.propose(Txn(tuple(compares), tuple(ops)))
        check(done)
        if done.succeeded:
            for job, old, new in ended:
                self._transitions.on_change(Change(job, old, new, Revision(done.revision)))

    def _unfinished_jobs(self, name: str) -> list[JobId]:
        prefix = keys.unfinished_prefix(name)
        rows, _ = self._store.range(prefix, prefix_end(prefix), limit=MAX_REPLACED, keys_only=True)
        return [keys.job_of(row[0]) for row in rows]


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
