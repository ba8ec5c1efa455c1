"""What the API asks about schedules: who may, checks, views, changes. `control.schedules` makes their jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from jobs import keys, records, schedules
from jobs.clock import rfc3339, wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry, job_entry
from jobs.control.jobreferences import JobReferences
from jobs.control.newjobs import REFERENCE_BYTES, JobMaker, in_trace
from jobs.control.once import MAX_TRIES, idempotency_key, try_id, was_done
from jobs.control.queries import decode_cursor, encode_cursor
from jobs.control.schedules import Schedules, StoredSchedule
from jobs.control.transitions import check, view
from jobs.cron import zone_of
from jobs.errors import Forbidden, InternalError, NotFound, RevisionConflict, SchedulesFull
from jobs.protocol.ids import Revision
from jobs.protocol.model import (
    Schedule,
    ScheduleDetail,
    ScheduleLapse,
    SchedulePage,
    ScheduleTime,
    ScheduleTimes,
    ScheduleView,
    Submitted,
    TimetablePreview,
)
from jobs.records import IdempotencyRecord, ScheduleRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn
from jobs.validate import check_allowed, check_spec_size

TURN_VIEWS: Final = 32
"""After so many, others have their turn: the next time of a rare expression takes milliseconds to find."""


class ScheduleOperations:
    """Implements `service.ScheduleService`."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        driver: Schedules,
        maker: JobMaker,
        references: JobReferences,
        *,
        max_schedules: int,
        max_per_owner: int,
        check_space: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._driver = driver
        self._maker = maker
        self._references = references
        self._max_schedules = max_schedules
        self._max_per_owner = max_per_owner
        self._check_space = check_space
        self._setting = asyncio.Lock()
        """Held while one is made, so that limits are not overshot."""

    # --- reads --------------------------------------------------------------------------------------------------

    async def page(self, caller: Caller, *, limit: int, cursor: str | None) -> SchedulePage:
        await self._consensus.barrier()
        after = "" if cursor is None else _name_of(decode_cursor(cursor, keys.SCHEDULES))
        owned = [name for name, owner in self._driver.owners.items() if caller.admin or owner == caller.uid]
        names = sorted(name for name in owned if name > after)
        shown: list[ScheduleView] = []
        for name in names[:limit]:
            if len(shown) % TURN_VIEWS == TURN_VIEWS - 1:
                await asyncio.sleep(0)
            stored = self._driver.read(name)
            if stored is not None:
                shown.append(self._view(name, stored.record))
        next_cursor = encode_cursor(keys.schedule(names[limit - 1])) if len(names) > limit else None
        return SchedulePage(schedules=shown, next_cursor=next_cursor)

    async def get(self, caller: Caller, name: str) -> ScheduleDetail:
        stored = await self._read(caller, name)
        spec = self._store.get(keys.schedule_job(name))
        assert spec is not None, f"schedule {name} has a state but no job"
        return ScheduleDetail(schedule=self._view(name, stored.record), job=records.decode_spec(spec[1]))

    async def next_times(self, caller: Caller, name: str, count: int) -> ScheduleTimes:
        record = (await self._read(caller, name)).record
        now_ms = wall_ms()
        after_ms = max(now_ms, schedules.after_ms(record, now_ms))
        times = () if record.paused else schedules.times_after(record.timetable, after_ms)
        return _times(iter(times), record.timetable.timezone, count)

    async def preview(self, caller: Caller, wanted: TimetablePreview) -> ScheduleTimes:
        schedules.check_timetable(wanted)
        after_ms = wall_ms() if wanted.after_ms is None else wanted.after_ms
        times = schedules.times_after(schedules.timetable_of(wanted, after_ms), after_ms)
        return _times(times, wanted.timezone, wanted.count)

    # --- changes ------------------------------------------------------------------------------------------------

    async def put(
        self, caller: Caller, name: str, schedule: Schedule, revision: int | None
    ) -> tuple[ScheduleView, bool]:
        self._check_space()
        schedules.check_timetable(schedule)
        schedules.check_template(schedule.job)
        check_allowed(schedule.job, "$.job", admin=caller.admin)
        self._maker.make(schedule.job, caller.uid, wall_ms(), "$.job")
        spec = records.encode_spec(schedule.job)
        check_spec_size(len(spec) - 1, "$.job")
        async with self._setting:
            for number in range(MAX_TRIES):
                now_ms = wall_ms()
                stored, set_at = self._driver.read(name), self._set_at(name)
                former = None if stored is None else self._owned(caller, name, stored).record
                if was_done(self._store, caller.request_id):
                    return self._view(name, (await self._read(caller, name)).record), False
                _check_revision(name, set_at, revision)
                record = schedules.on_set(former, schedule, caller.uid, now_ms)
                known = self._store.get(keys.schedule_job(name))
                if record == former and known is not None and known[1] == spec:
                    return self._view(name, record), False
                if former is None:
                    self._check_room(caller.uid)
                if former is None or record.timetable != former.timetable:
                    schedules.check_fires(record.timetable, now_ms)
                entry = audit_entry(caller, "schedule.set", name, now_ms, owner=record.owner)
                there, references = self._references.of_schedule(
                    name, record.owner, schedule.job, None if known is None else known[1]
                )
                ops = (_put(name, record), Put(keys.schedule_job(name), spec), entry, *references)
                size_bytes = len(spec) + REFERENCE_BYTES * len(references)
                if await self._write(caller, number, name, stored, ops, size_bytes, there):
                    self._driver.owners[name] = record.owner
                    self._driver.look(name)
                    return self._view(name, record), former is None
        raise _too_busy(name)

    async def delete(self, caller: Caller, name: str, revision: int | None) -> None:
        async with self._setting:
            for number in range(MAX_TRIES):
                if was_done(self._store, caller.request_id):
                    return
                stored = await self._read(caller, name)
                _check_revision(name, self._set_at(name), revision)
                entry = audit_entry(caller, "schedule.delete", name, wall_ms(), owner=stored.record.owner)
                known = self._store.get(keys.schedule_job(name))
                gone = self._references.schedule_removal(name, None if known is None else known[1])
                ops = (Delete(keys.schedule(name)), Delete(keys.schedule_job(name)), entry, *gone)
                if await self._write(caller, number, name, stored, ops):
                    self._driver.forget(name)
                    return
        raise _too_busy(name)

    async def pause(self, caller: Caller, name: str, *, paused: bool) -> ScheduleView:
        action = "schedule.pause" if paused else "schedule.resume"
        for number in range(MAX_TRIES):
            stored, now_ms = await self._read(caller, name), wall_ms()
            if was_done(self._store, caller.request_id):
                return self._view(name, stored.record)
            record = schedules.on_pause(stored.record) if paused else schedules.on_resume(stored.record, now_ms)
            if record == stored.record:
                return self._view(name, record)
            entry = audit_entry(caller, action, name, now_ms, owner=record.owner)
            if await self._write(caller, number, name, stored, (_put(name, record), entry)):
                self._driver.look(name)
                return self._view(name, record)
        raise _too_busy(name)

    async def trigger(self, caller: Caller, name: str) -> Submitted:
        key = idempotency_key(caller.request_id)
        for _ in range(MAX_TRIES):
            stored, now_ms = await self._read(caller, name), wall_ms()
            owner = stored.record.owner
            if key is not None and (known := self._driver.made_with(owner, key)) is not None:
                return known
            new = in_trace(self._driver.make(name, owner, now_ms, now_ms, key), caller.trace)
            ops = job_entry(caller, "schedule.trigger", new.id, owner, now_ms, name)
            if key is not None:
                # Another one with this key would change the schedule, so this needs no compare of its own.
                made = IdempotencyRecord(job=new.id, body_sha256=new.body_sha256())
                ops = (*ops, Put(keys.idempotency(owner, key), records.encode(made)))
            revision = await self._driver.store_job(name, stored, stored.record, new, *ops)
            if revision is not None:
                return Submitted(job=view(new.id, new.record, revision), created=True)
        raise _too_busy(name)

    # --- parts --------------------------------------------------------------------------------------------------

    async def _read(self, caller: Caller, name: str) -> StoredSchedule:
        """Raises NotFound, and Forbidden for another owner's."""
        await self._consensus.barrier()
        stored = self._driver.read(name)
        if stored is None:
            raise NotFound(f"there is no schedule {name!r}")
        return self._owned(caller, name, stored)

    def _owned(self, caller: Caller, name: str, stored: StoredSchedule) -> StoredSchedule:
        owner = stored.record.owner
        if not caller.admin and caller.uid != owner:
            raise Forbidden(
                f"schedule {name!r} belongs to uid {owner}", field="id", expected="a name of your own, or an admin"
            )
        return stored

    def _set_at(self, name: str) -> Revision:
        """Return the revision at which the schedule was last set; 0 when it is not there."""
        found = self._store.get(keys.schedule_job(name))
        return Revision(0 if found is None else found[4])

    def _check_room(self, owner: int) -> None:
        owners = self._driver.owners.values()
        for what, now, limit in (
            (f"of uid {owner}", sum(other == owner for other in owners), self._max_per_owner),
            ("in all", len(owners), self._max_schedules),
        ):
            if now >= limit:
                raise SchedulesFull(f"there are {now} schedules {what}; the limit is {limit}", expected="fewer")

    async def _write(
        self,
        caller: Caller,
        number: int,
        name: str,
        stored: StoredSchedule | None,
        ops: tuple[Op, ...],
        size_bytes: int = 0,
        compares: tuple[Compare, ...] = (),
    ) -> bool:
        """Write if the schedule is as it was read, or still not there, and `compares` hold; tell whether that was so.
        `number`: of the try."""
        guard = ModRevisionIs(keys.schedule(name), EQ, 0) if stored is None else stored.compare(name)
        txn = Txn((guard, *compares), ops, request_id=try_id(caller.request_id, number))
        done = await self._consensus.propose(txn, 1024 + size_bytes)
        check(done)
        return done.succeeded

    def _view(self, name: str, record: ScheduleRecord) -> ScheduleView:
        timetable, lapse = record.timetable, record.last_lapse
        return ScheduleView(
            name=name,
            owner=record.owner,
            cron=timetable.cron,
            every_s=None if timetable.every_ms is None else timetable.every_ms / 1000,
            at_ms=timetable.at_ms,
            timezone=timetable.timezone,
            start_ms=timetable.start_ms,
            end_ms=timetable.end_ms,
            catch_up=record.catch_up,
            max_catch_up=record.max_catch_up,
            catch_up_window_s=record.catch_up_window_ms / 1000,
            overlap=record.overlap,
            max_queued=record.max_queued,
            max_per_minute=record.max_per_minute,
            managed_by=record.managed_by,
            paused=record.paused,
            next_ms=schedules.next_ms(record, wall_ms()),
            last_nominal_ms=record.last_nominal_ms,
            last_job=record.last_job,
            unfinished=self._driver.unfinished(name),
            queued=list(record.queued),
            fired=record.fired,
            skipped=record.skipped,
            missed=record.missed,
            last_error=None
            if lapse is None
            else ScheduleLapse(
                nominal_ms=lapse.nominal_ms, at_ms=lapse.at_ms, outcome=lapse.outcome, detail=lapse.detail
            ),
            revision=self._set_at(name),
        )


def _name_of(key: bytes) -> str:
    return key[len(keys.SCHEDULES) :].decode(errors="replace")


def _put(name: str, record: ScheduleRecord) -> Put:
    return Put(keys.schedule(name), records.encode(record))


def _check_revision(name: str, found: int, wanted: int | None) -> None:
    if wanted is not None and wanted != found:
        raise RevisionConflict(
            f"schedule {name!r} was set meanwhile, at {found}" if found else f"there is no schedule {name!r}",
            expected="the revision of a look at what it is now" if found else "revision 0, to make one",
        )


def _times(times: Iterator[int], timezone: str, count: int) -> ScheduleTimes:
    zone = zone_of(timezone)
    return ScheduleTimes(
        times=[ScheduleTime(at_ms=at_ms, local=rfc3339(at_ms, zone)) for at_ms in islice(times, count)]
    )


def _too_busy(name: str) -> InternalError:
    return InternalError(f"schedule {name!r} changed {MAX_TRIES} times while one change was tried")
