"""Schedules over a real log and store: fires, restarts, clocks that are set, overlap, refusals, limits, owners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import keys, records
from jobs.errors import Forbidden, InvalidRequest, NotFound, QueueFull, RevisionConflict, SchedulesFull
from jobs.protocol import wire
from jobs.protocol.model import (
    ArrayRetry,
    ArraySpec,
    JobState,
    JobView,
    QueueSettings,
    Reason,
    Schedule,
    ScheduleView,
    ShellJob,
    ShellPayload,
    TimetablePreview,
)
from jobs.records import ScheduleRecord
from jobs.service import AuditFilter, JobFilter
from tests.support.clock import Clock, play
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

JOB = ShellJob(payload=ShellPayload(argv=["true"]))


def schedule(**fields: Any) -> Schedule:
    return Schedule(**{"job": JOB, **fields})


async def put(plane: Plane, name: str = "s", *, revision: int | None = None, **fields: Any) -> ScheduleView:
    view, _ = await plane.control.schedules.put(ALICE, name, schedule(**fields), revision)
    return view


async def until(plane: Plane, holds: Callable[[ScheduleView], bool], name: str = "s") -> ScheduleView:
    """Return the schedule as soon as it is as wanted."""
    async for _ in plane.control.kv_watch(ADMIN, "/schedules/", prefix=True, after_revision=None):
        view = (await plane.control.schedules.get(ADMIN, name)).schedule
        if holds(view):
            return view
    raise AssertionError("a watch has no end")


async def until_fired(plane: Plane, count: int) -> None:
    """Return when all schedules together have fired so often; it is an error when they fire more often."""
    async for _ in plane.control.kv_watch(ADMIN, "/schedules/", prefix=True, after_revision=None):
        views = (await plane.control.schedules.page(ADMIN, limit=100, cursor=None)).schedules
        fired = sum(view.fired for view in views)
        assert fired <= count
        if fired == count:
            return


async def jobs_of(plane: Plane, name: str = "s") -> list[JobView]:
    """Return the jobs of a schedule, oldest first."""
    where = JobFilter(schedule=name)
    return (await plane.control.list_jobs(ADMIN, where, limit=1000, cursor=None, newest_first=False)).jobs


async def nominals(plane: Plane, name: str = "s") -> list[int | None]:
    return [job.nominal_ms for job in await jobs_of(plane, name)]


def ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


# --- fires -----------------------------------------------------------------------------------------------------------


def test_a_fire_is_one_job_with_its_time_that_its_process_is_told(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        clock.set("2026-11-25T02:29:50+01:00")
        await put(plane, cron="30 2 * * *", timezone="Europe/Berlin")
        clock.jump(11)
        item = await worker.assigned()
        assert item.env == {"JOBS_SCHEDULE": "s", "JOBS_NOMINAL_TIME": "2026-11-25T01:30:00Z"}
        (job,) = await jobs_of(plane)
        assert (job.id, job.nominal_ms, job.owner) == (item.job, ms("2026-11-25T01:30:00Z"), ALICE.uid)
        # The former record and the job came by the same revision
        view = await until(plane, lambda view: view.fired == 1)
        assert (view.last_job, view.last_nominal_ms, view.unfinished) == (job.id, job.nominal_ms, 1)
        worker.finish(item)
        await worker.expect(wire.FinishedAck)
        view = await until(plane, lambda view: view.unfinished == 0)
        assert view.next_ms == ms("2026-11-26T01:30:00Z")

    play(tmp_path, clock, scenario)


def test_a_restart_between_fire_and_start_neither_loses_nor_doubles(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await put(plane, at_ms=clock.now_ms() + 3_600_000)
            clock.jump(3_601)
            await until(plane, lambda view: view.fired == 1)
            (before,) = await jobs_of(plane)
            assert before.state is JobState.PENDING
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            item = await worker.assigned()
            assert item.job == before.id
            assert item.env["JOBS_SCHEDULE"] == "s"
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            assert [job.id for job in await jobs_of(plane)] == [before.id]
            assert (await plane.control.schedules.get(ALICE, "s")).schedule.next_ms is None

    asyncio.run(scenario())


def test_a_job_that_ends_while_the_schedule_waits_for_it_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await put(plane, every_s=60, overlap="queue")
            clock.jump(61)
            await until(plane, lambda view: view.fired == 1)
            clock.jump(60)
            view = await until(plane, lambda view: len(view.queued) == 1)
            (first,) = await jobs_of(plane)
        async with Plane(tmp_path) as plane:
            await plane.control.cancel(ALICE, first.id)
            await until(plane, lambda view: view.fired == 2)
            assert await nominals(plane) == [first.nominal_ms, view.queued[0]]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("zone", "expression", "start", "ticks", "expected"),
    [
        (
            "Europe/Berlin", "30 2 * * *", "2026-03-28T12:00Z", ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z",
            "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"], ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        ),
        (
            "Europe/Berlin", "30 2 * * *", "2026-10-24T12:00Z", ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z",
            "2026-10-26T01:30:00Z"], ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        ),
        (
            "America/New_York", "*/30 * * * *", "2026-11-01T04:59:00Z", ["2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z",
            "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z"], ["2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z",
            "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z"],
        ),
        (
            "Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00Z", ["2026-10-03T15:29:00Z", "2026-10-03T15:30:00Z",
            "2026-10-04T15:15:00Z"], ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
        ),
    ],
)  # fmt: skip
def test_both_changes_of_the_clocks(
    tmp_path: Path, clock: Clock, zone: str, expression: str, start: str, ticks: list[str], expected: list[str]
) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        clock.set(start)
        await put(plane, cron=expression, timezone=zone, overlap="allow")
        for tick in ticks:
            clock.set(tick)
            due = [ms(moment) for moment in expected if ms(moment) <= ms(tick)]
            await until(plane, lambda view, due=due: view.fired == len(due))  # type: ignore[misc]
            assert await nominals(plane) == due

    play(tmp_path, clock, scenario)


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_ahead_does_not_storm(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await put(plane, every_s=60, catch_up="all", max_catch_up=5, overlap="allow")
        first = (await plane.control.schedules.get(ALICE, "s")).schedule.next_ms
        assert first is not None
        clock.jump(30 * 60 + 1)
        view = await until(plane, lambda view: view.fired == 5)
        assert view.missed == 25
        assert await nominals(plane) == [first + 60_000 * count for count in range(25, 30)]
        assert view.last_error is not None
        assert view.last_error.nominal_ms == first + 60_000 * 24

    play(tmp_path, clock, scenario)


def passed_ms(plane: Plane, name: str) -> int:
    """Return up to when the schedule's times are dealt with."""
    found = plane.store.get(keys.schedule(name))
    assert found is not None
    return records.decode(ScheduleRecord, found[1]).passed_ms


def test_a_clock_that_is_set_back_repeats_nothing_and_goes_on(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await put(plane, every_s=600, overlap="allow", catch_up="none")
        await put(plane, "other", at_ms=clock.now_ms() + 1_180_000, catch_up="none")
        clock.jump(601)
        await until(plane, lambda view: view.fired == 1)
        # Far ahead, where all that comes is missed; and back to before
        clock.jump(86_400 + 300)
        await until(plane, lambda view: view.missed > 100)
        await until(plane, lambda view: view.missed == 1, "other")
        clock.jump(-(86_400 + 300 + 120))
        for name in ("s", "other"):
            await until(plane, lambda view: passed_ms(plane, view.name) < clock.now_ms() + 200_000, name)
        (done,) = await nominals(plane)
        assert done is not None
        # Then what was to come comes: the time after the one that was fired, and the one that was missed ahead
        clock.jump(120 + 601)
        await until(plane, lambda view: view.fired == 2)
        await until(plane, lambda view: view.fired == 1, "other")
        assert await nominals(plane) == [done, done + 600_000]

    play(tmp_path, clock, scenario)


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_skip_leaves_out_what_comes_while_a_job_runs(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        await put(plane, every_s=60)
        clock.jump(61)
        item = await worker.assigned()
        clock.jump(60)
        view = await until(plane, lambda view: view.skipped == 1)
        assert view.last_error is not None
        assert (view.last_error.outcome, view.fired) == ("skipped", 1)
        worker.finish(item)
        await worker.expect(wire.FinishedAck)
        clock.jump(60)
        assert (await worker.assigned()).job != item.job

    play(tmp_path, clock, scenario)


def test_queue_runs_what_came_one_after_the_other(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer(slots=4)
        await worker.register(plane.worker_socket)
        await put(plane, every_s=60, overlap="queue", max_queued=2)
        clock.jump(61)
        items = [await worker.assigned()]
        for count in (1, 2):
            clock.jump(60)
            await until(plane, lambda view, count=count: len(view.queued) == count)  # type: ignore[misc]
        clock.jump(60)
        view = await until(plane, lambda view: view.skipped == 1)
        queued = view.queued
        for _ in range(2):
            assert (await jobs_of(plane))[-1].state is JobState.RUNNING
            worker.finish(items[-1])
            await worker.expect(wire.FinishedAck)
            items.append(await worker.assigned())
        assert await nominals(plane) == [queued[0] - 60_000, *queued]

    play(tmp_path, clock, scenario)


def test_replace_ends_the_former_job_and_starts_the_next_after_it(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer(slots=4)
        await worker.register(plane.worker_socket)
        await put(plane, every_s=60, overlap="replace")
        clock.jump(61)
        former = await worker.assigned()
        clock.jump(60)
        assert (await worker.expect(wire.Cancel)).job == former.job
        view = await until(plane, lambda view: len(view.queued) == 1)
        assert (view.fired, view.unfinished) == (1, 1)
        worker.finish(former, reason=Reason.CANCELLED, exit_code=None)
        await worker.expect(wire.FinishedAck)
        latter = await worker.assigned()
        first, second = await jobs_of(plane)
        assert (first.id, first.state, first.reason) == (former.job, JobState.FAILED, Reason.CANCELLED)
        assert (second.id, second.nominal_ms) == (latter.job, view.queued[0])

    play(tmp_path, clock, scenario)


def test_replace_ends_a_job_that_only_waits(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await put(plane, every_s=60, overlap="replace")
        clock.jump(61)
        await until(plane, lambda view: view.fired == 1)
        clock.jump(60)
        await until(plane, lambda view: view.fired == 2)
        first, second = await jobs_of(plane)
        assert (first.reason, second.state) == (Reason.CANCELLED, JobState.PENDING)

    play(tmp_path, clock, scenario)


# --- refusals and caps -----------------------------------------------------------------------------------------------


def test_a_full_queue_is_recorded_once_and_the_schedule_goes_on(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await plane.control.queues.put(ADMIN, "default", QueueSettings(max_pending=1))
        (other,) = await plane.control.submit(ALICE, [shell("true")])
        await put(plane, every_s=60, catch_up="all", overlap="allow")
        clock.jump(181)
        view = await until(plane, lambda view: view.missed == 3)
        assert view.last_error is not None
        assert view.last_error.detail.startswith("queue_full: ")
        assert await jobs_of(plane) == []
        # A run by hand is refused as any submission
        with pytest.raises(QueueFull):
            await plane.control.schedules.trigger(ALICE, "s")
        await plane.control.cancel(ALICE, other.job.id)
        clock.jump(60)
        view = await until(plane, lambda view: view.fired == 1)
        assert view.missed == 3

    play(tmp_path, clock, scenario)


def test_a_draining_queue_is_recorded(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await plane.control.queues.drain(ADMIN, "default", draining=True)
        await put(plane, at_ms=clock.now_ms() + 60_000)
        clock.jump(61)
        view = await until(plane, lambda view: view.missed == 1)
        assert view.last_error is not None
        assert view.last_error.detail.startswith("queue_closed: ")

    play(tmp_path, clock, scenario)


def test_a_schedule_makes_no_more_jobs_in_a_minute_than_its_cap(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await put(plane, every_s=1, catch_up="all", overlap="allow", max_per_minute=4)
            clock.jump(20)
            await until(plane, lambda view: view.fired == 4)
        async with Plane(tmp_path) as plane:
            # A restart does not begin the minute anew; a time is handled to know that this one was looked at
            await put(plane, "probe", at_ms=clock.now_ms() + 5_000)
            clock.jump(6)
            await until(plane, lambda view: view.fired == 1, "probe")
            assert len(await jobs_of(plane)) == 4
            clock.jump(60)
            view = await until(plane, lambda view: view.fired == 8)
            assert view.missed == 0
            found = await nominals(plane)
            assert found == [found[0] + 1_000 * count for count in range(8)]  # type: ignore[operator]

    asyncio.run(scenario())


def test_all_schedules_together_keep_to_the_cap_of_the_node(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        at_ms = clock.now_ms() + 3_600_000
        async with Plane(tmp_path, max_fires_per_minute=3) as plane:
            for number in range(8):
                await put(plane, f"s{number}", at_ms=at_ms)
            clock.jump(3_601)
            await until_fired(plane, 3)
        # Over a restart the minute goes on; with more room the others come, and none is lost
        async with Plane(tmp_path, max_fires_per_minute=7) as plane:
            await until_fired(plane, 7)
            assert plane.control.metrics()["jobs_schedule_fires_total"][1] == 4
        async with Plane(tmp_path) as plane:
            await until_fired(plane, 8)
            views = (await plane.control.schedules.page(ADMIN, limit=100, cursor=None)).schedules
            assert [view.fired for view in views] == [1] * 8

    asyncio.run(scenario())


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_run_by_hand_does_not_shift_the_timetable(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        view = await put(plane, every_s=60, overlap="queue")
        made = (await plane.control.schedules.trigger(ALICE, "s")).job
        now_ms = clock.now_ms()
        assert made.schedule == "s"
        assert made.nominal_ms is not None
        assert now_ms - 5_000 < made.nominal_ms <= now_ms
        after = (await plane.control.schedules.get(ALICE, "s")).schedule
        assert (after.next_ms, after.last_job, after.fired, after.last_nominal_ms) == (view.next_ms, made.id, 0, None)
        # It counts as a job of the schedule that has not ended
        clock.jump(61)
        await until(plane, lambda view: len(view.queued) == 1)
        await plane.control.cancel(ALICE, made.id)
        await until(plane, lambda view: view.fired == 1)
        # Also while it is paused
        await plane.control.schedules.pause(ALICE, "s", paused=True)
        assert (await plane.control.schedules.trigger(ADMIN, "s")).job.owner == ALICE.uid

    play(tmp_path, clock, scenario)


def test_runs_by_hand_leave_nothing_in_memory(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.control.schedules.MAX_VOID", 5)

    async def scenario(plane: Plane, clock: Clock) -> None:
        await put(plane, cron="@yearly")
        for _ in range(40):
            made = (await plane.control.schedules.trigger(ALICE, "s")).job
            await plane.control.cancel(ALICE, made.id)
        assert len(plane.control._schedule_driver._moments) <= 7
        assert (await plane.control.schedules.get(ALICE, "s")).schedule.next_ms is not None

    play(tmp_path, clock, scenario)


def test_a_pause_lasts_over_a_restart_and_what_comes_in_it_is_passed_over(tmp_path: Path, clock: Clock) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await put(plane, every_s=60, catch_up="all", overlap="allow")
            await plane.control.schedules.pause(ALICE, "s", paused=True)
            clock.jump(600)
        async with Plane(tmp_path) as plane:
            view = (await plane.control.schedules.get(ALICE, "s")).schedule
            assert (view.paused, view.next_ms, view.fired) == (True, None, 0)
            assert (await plane.control.schedules.next_times(ALICE, "s", 3)).times == []
            view = await plane.control.schedules.pause(ALICE, "s", paused=False)
            assert view.next_ms is not None
            assert view.next_ms > clock.now_ms()
            clock.jump(61)
            view = await until(plane, lambda view: view.fired == 1)
            assert view.missed == 0

    asyncio.run(scenario())


def test_deleting_a_schedule_leaves_its_jobs(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        await put(plane, every_s=60)
        clock.jump(61)
        await until(plane, lambda view: view.fired == 1)
        await plane.control.schedules.delete(ALICE, "s", None)
        with pytest.raises(NotFound):
            await plane.control.schedules.get(ALICE, "s")
        (job,) = await jobs_of(plane)
        assert job.state is JobState.PENDING
        # Under its name another may be made, for which it counts as unfinished
        view = await put(plane, every_s=60)
        assert (view.fired, view.unfinished) == (0, 1)
        clock.jump(61)
        await until(plane, lambda view: view.skipped == 1)

    play(tmp_path, clock, scenario)


# --- setting ---------------------------------------------------------------------------------------------------------


def test_setting_again_changes_nothing_or_only_what_is_other(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        service = plane.control.schedules
        first, created = await service.put(ALICE, "s", schedule(every_s=60), None)
        assert created
        before = plane.store.revision
        again, created = await service.put(ALICE, "s", schedule(every_s=60), None)
        assert (again, created, plane.store.revision) == (first, False, before)
        clock.jump(61)
        await until(plane, lambda view: view.fired == 1)
        # A fire does not change the revision that a setting is compared with
        other = ShellJob(payload=ShellPayload(argv=["false"]))
        second, created = await service.put(ALICE, "s", schedule(every_s=60, job=other), first.revision)
        assert (second.fired, created) == (1, False)
        assert second.next_ms == first.next_ms + 60_000  # type: ignore[operator]
        assert (await service.get(ALICE, "s")).job == other
        with pytest.raises(RevisionConflict):
            await service.put(ALICE, "s", schedule(every_s=30), first.revision)
        with pytest.raises(RevisionConflict):
            await service.put(ALICE, "s", schedule(every_s=30), 0)
        with pytest.raises(RevisionConflict):
            await service.put(ALICE, "absent", schedule(every_s=30), 5)
        with pytest.raises(RevisionConflict):
            await service.delete(ALICE, "s", first.revision)
        await service.delete(ALICE, "s", second.revision)

    play(tmp_path, clock, scenario)


def test_one_that_fired_once_may_be_set_again_as_it_is(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        at_ms = clock.now_ms() + 60_000
        await put(plane, at_ms=at_ms)
        clock.jump(61)
        await until(plane, lambda view: view.fired == 1)
        assert (await put(plane, at_ms=at_ms)).fired == 1
        assert (await put(plane, at_ms=at_ms, overlap="allow")).overlap == "allow"
        with pytest.raises(InvalidRequest):
            await put(plane, at_ms=at_ms + 1)

    play(tmp_path, clock, scenario)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, "$"),
        ({"cron": "* * * * *", "every_s": 5.0}, "$.every_s"),
        ({"cron": "0 0 31 2 *"}, "$.cron"),
        ({"cron": "every day"}, "$.cron"),
        ({"cron": "@daily", "timezone": "Europe/Atlantis"}, "$.timezone"),
        ({"at_ms": 5}, "$.at_ms"),
        ({"every_s": 5.0, "end_ms": 5}, "$.end_ms"),
        ({"every_s": 5.0, "job": shell("true", idempotency_key="k")}, "$.job.idempotency_key"),
        ({"every_s": 5.0, "job": ShellJob(payload=ShellPayload())}, "$.job.payload"),
        ({"every_s": 5.0, "job": shell("")}, "$.job.payload.argv[0]"),
        ({"every_s": 5.0, "job": shell("x\0")}, "$.job.payload.argv[0]"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field_before_anything_is_stored(
    tmp_path: Path, clock: Clock, fields: dict[str, Any], where: str
) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        before = plane.store.revision
        with pytest.raises(InvalidRequest) as caught:
            await put(plane, **fields)
        assert caught.value.field == where
        assert caught.value.expected
        assert plane.store.revision == before

    play(tmp_path, clock, scenario)


def test_the_number_of_schedules_is_bounded(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        service = plane.control.schedules
        racing = await asyncio.gather(
            *(put(plane, f"a{number}", every_s=60) for number in range(4)), return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in racing) == ["ScheduleView", "ScheduleView", *["SchedulesFull"] * 2]
        await service.put(BOB, "b", schedule(every_s=60), None)
        with pytest.raises(SchedulesFull):
            await service.put(BOB, "c", schedule(every_s=60), None)
        # Replacing is no more, and one that goes makes room
        await service.put(BOB, "b", schedule(every_s=90), None)
        await service.delete(BOB, "b", None)
        await service.put(BOB, "c", schedule(every_s=60), None)

    play(tmp_path, clock, scenario, max_schedules=3, max_schedules_per_owner=2)


def test_owners_have_their_own_and_admins_all(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        service = plane.control.schedules
        await put(plane, "mine", every_s=60)
        for attempt in (
            service.get(BOB, "mine"),
            service.put(BOB, "mine", schedule(every_s=60), None),
            service.delete(BOB, "mine", None),
            service.pause(BOB, "mine", paused=True),
            service.trigger(BOB, "mine"),
            service.next_times(BOB, "mine", 1),
        ):
            with pytest.raises(Forbidden):
                await attempt
        await service.put(BOB, "theirs", schedule(every_s=60), None)
        for caller, names in ((ALICE, ["mine"]), (BOB, ["theirs"]), (ADMIN, ["mine", "theirs"])):
            page = await service.page(caller, limit=10, cursor=None)
            assert [view.name for view in page.schedules] == names
        # An admin changes it, and it stays its owner's
        view, created = await service.put(ADMIN, "mine", schedule(every_s=90), None)
        assert (view.owner, created) == (ALICE.uid, False)
        entries = (await plane.control.audit.page(ALICE, AuditFilter(), limit=10, cursor=None)).entries
        assert [(entry.uid, entry.action, entry.subject) for entry in entries] == [
            (ADMIN.uid, "schedule.set", "mine"),
            (ALICE.uid, "schedule.set", "mine"),
        ]

    play(tmp_path, clock, scenario)


def test_lists_come_page_by_page_in_order(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        names = sorted(f"{letter}/{number}" for letter in "ba" for number in range(4))
        for name in names[::-1]:
            await put(plane, name, every_s=60)
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await plane.control.schedules.page(ALICE, limit=3, cursor=cursor)
            found += [view.name for view in page.schedules]
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page.schedules) == 3
        assert found == names

    play(tmp_path, clock, scenario)


def test_times_to_come_are_told_in_their_zone(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        clock.set("2026-10-24T12:00:00+02:00")
        await put(plane, cron="30 2 * * *", timezone="Europe/Berlin")
        told = await plane.control.schedules.next_times(ALICE, "s", 2)
        assert [time.local for time in told.times] == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
        wanted = TimetablePreview(every_s=0.5 + 1, start_ms=ms("2027-01-01T00:00Z"), count=2, after_ms=0)
        assert [time.local for time in (await plane.control.schedules.preview(ALICE, wanted)).times] == [
            "2027-01-01T00:00:00+00:00",
            "2027-01-01T00:00:01.500+00:00",
        ]
        with pytest.raises(InvalidRequest):
            await plane.control.schedules.preview(ALICE, TimetablePreview(cron="* * * * *", timezone="Nowhere"))
        assert (await plane.control.schedules.preview(ALICE, TimetablePreview(at_ms=5))).times == []

    play(tmp_path, clock, scenario)


def test_what_is_redriven_keeps_its_time_and_counts(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer()
        await worker.register(plane.worker_socket)
        await put(plane, every_s=60)
        clock.jump(61)
        item = await worker.assigned()
        worker.finish(item, reason=Reason.EXIT_CODE, exit_code=1)
        await worker.expect(wire.FinishedAck)
        made = (await plane.control.dead_letters.redrive(ALICE, item.job)).job
        again = await worker.assigned()
        assert (again.job, again.env) == (made.id, item.env)
        clock.jump(60)
        assert (await until(plane, lambda view: view.skipped == 1)).fired == 1

    play(tmp_path, clock, scenario)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_a_schedule_makes_arrays_whose_tasks_know_it(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer(slots=2)
        await worker.register(plane.worker_socket)
        job = shell("true", array=ArraySpec(lines=["one", "two"]))
        await put(plane, every_s=60, overlap="replace", job=job)
        assert (await plane.control.schedules.get(ALICE, "s")).job == job
        clock.jump(61)
        items = list((await worker.expect(wire.Assign)).jobs)
        if len(items) == 1:
            items += (await worker.expect(wire.Assign)).jobs
        assert sorted(item.env["JOBS_ARRAY_ITEM"] for item in items) == ["one", "two"]
        assert {item.env["JOBS_SCHEDULE"] for item in items} == {"s"}
        (array,) = await jobs_of(plane)
        assert (array.tasks, array.schedule) == (2, "s")
        # The array is one job of the schedule, and is replaced as a whole
        assert (await plane.control.schedules.get(ALICE, "s")).schedule.unfinished == 1
        clock.jump(60)
        cancelled = {(await worker.expect(wire.Cancel)).job for _ in items}
        assert cancelled == {item.job for item in items}
        for item in items:
            worker.finish(item, reason=Reason.CANCELLED, exit_code=None)
        view = await until(plane, lambda view: view.fired == 2)
        assert view.unfinished == 1
        # What is retried of it keeps the time that it was made for
        again = (await plane.control.arrays.retry(ALICE, array.id, ArrayRetry(only="cancelled"))).job
        assert (again.schedule, again.nominal_ms) == ("s", array.nominal_ms)

    play(tmp_path, clock, scenario)
