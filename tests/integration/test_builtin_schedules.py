"""The schedules by which a cluster looks after itself, and that there is one job of maintenance of a kind at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs import keys, records
from jobs.control.builtin import BUILT_IN
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol import wire
from jobs.protocol.model import (
    JobState,
    MaintenanceCleanup,
    MaintenanceHealth,
    MaintenanceJob,
    MaintenancePayload,
    Schedule,
    ScheduleDetail,
    ShellJob,
)
from jobs.records import BuiltInRecord
from jobs.service import AuditFilter
from jobs.store import Put, Txn, prefix_end
from jobs.validate import check_job
from tests.support.clock import Clock, play
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, Plane, shell

NAMES = sorted(one.name for one in BUILT_IN)


async def names(plane: Plane) -> list[str]:
    """Return the schedules' names once those that are built in are on record, and known to all."""
    while True:
        found = plane.store.get(keys.BUILT_IN_SCHEDULES)
        page = await plane.control.schedules.page(ADMIN, limit=100, cursor=None)
        shown = [view.name for view in page.schedules]
        if found is not None and set(records.decode(BuiltInRecord, found[1]).names) >= set(NAMES):
            rows, _ = plane.store.range(keys.SCHEDULES, prefix_end(keys.SCHEDULES), limit=100, keys_only=True)
            if len(rows) == len(shown):
                return shown
        await asyncio.sleep(0.01)


async def detail(plane: Plane, name: str) -> ScheduleDetail:
    return await plane.control.schedules.get(ADMIN, name)


def with_schedules(directory: Path, **settings: object) -> Plane:
    return Plane(directory, built_in_schedules=True, **settings)


def test_a_new_cluster_has_them_and_they_are_like_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_schedules(tmp_path) as plane:
            assert await names(plane) == NAMES
            for one in BUILT_IN:
                found = await detail(plane, one.name)
                assert found.job == one.schedule().job
                view = found.schedule
                assert (view.owner, view.cron, view.overlap, view.fired) == (0, one.cron, "skip", 0)
                assert view.next_ms is not None
            with pytest.raises(Forbidden):
                await plane.control.schedules.get(ALICE, NAMES[0])
            page = await plane.control.audit.page(ADMIN, AuditFilter(action="schedule.set"), limit=100, cursor=None)
            assert sorted((entry.subject, entry.detail) for entry in page.entries) == [(n, "built in") for n in NAMES]

    asyncio.run(scenario())


def test_they_are_what_could_be_submitted() -> None:
    times = [one.cron for one in BUILT_IN]
    assert len(set(times)) == len(times)
    for one in BUILT_IN:
        check_job(one.schedule().job)


def test_one_that_was_changed_or_deleted_stays_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_schedules(tmp_path) as plane:
            await names(plane)
            await plane.control.schedules.delete(ADMIN, "jobs-verify", None)
            changed = Schedule(cron="5 5 * * *", job=(await detail(plane, "jobs-compact")).job)
            await plane.control.schedules.put(ADMIN, "jobs-compact", changed, None)
            await plane.control.schedules.pause(ADMIN, "jobs-health", paused=True)
        async with with_schedules(tmp_path) as plane:
            assert await names(plane) == [name for name in NAMES if name != "jobs-verify"]
            assert (await detail(plane, "jobs-compact")).schedule.cron == "5 5 * * *"
            assert (await detail(plane, "jobs-health")).schedule.paused

    asyncio.run(scenario())


def test_a_name_that_somebody_had_before_stays_theirs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await plane.control.schedules.put(ALICE, "jobs-cleanup", Schedule(every_s=60, job=shell()), None)
        async with with_schedules(tmp_path) as plane:
            assert await names(plane) == NAMES
            found = await detail(plane, "jobs-cleanup")
            assert found.schedule.owner == ALICE.uid
            assert isinstance(found.job, ShellJob)

    asyncio.run(scenario())


def test_those_that_come_with_another_release_are_made_besides(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            known = BuiltInRecord(names=("jobs-health", "jobs-of-old"))
            await plane.consensus.propose(Txn(then=(Put(keys.BUILT_IN_SCHEDULES, records.encode(known)),)))
        async with with_schedules(tmp_path) as plane:
            assert await names(plane) == [name for name in NAMES if name != "jobs-health"], "that one was deleted"
            found = plane.store.get(keys.BUILT_IN_SCHEDULES)
            assert found is not None
            assert sorted(records.decode(BuiltInRecord, found[1]).names) == sorted([*NAMES, "jobs-of-old"])

    asyncio.run(scenario())


def test_without_the_setting_there_are_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await plane.control.submit(ADMIN, [shell()])
            assert (await plane.control.schedules.page(ADMIN, limit=100, cursor=None)).schedules == []

    asyncio.run(scenario())


def test_their_jobs_are_made_when_the_time_comes(tmp_path: Path, clock: Clock) -> None:
    async def scenario(plane: Plane, clock: Clock) -> None:
        worker = WorkerPeer("maintenance-0", slots=4)
        await worker.register(plane.worker_socket, type="maintenance")
        await names(plane)
        clock.jump(11)
        item = await worker.assigned()
        assert b'"health"' in item.payload
        assert (item.owner, item.admin) == (0, True)
        job = await plane.control.get(ADMIN, item.job)
        assert (job.job.schedule, job.job.queue) == ("jobs-health", "maintenance")

    clock.set("2026-11-25T12:59:50+00:00")
    play(tmp_path, clock, scenario, built_in_schedules=True)


# --- one of a kind at a time ------------------------------------------------------------------------------------------


def job(payload: MaintenancePayload, **changes: object) -> MaintenanceJob:
    return MaintenanceJob(payload=payload, **changes)  # type: ignore[arg-type]


def test_there_is_one_of_a_kind_at_a_time_whatever_its_jobs_say(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("maintenance-0", slots=8)
            await worker.register(plane.worker_socket, type="maintenance")
            first, second, other = await plane.control.submit(
                ADMIN,
                [
                    job(MaintenanceHealth()),
                    job(MaintenanceHealth(nodes=["n1"]), concurrency_key="mine", concurrency_limit=9),
                    job(MaintenanceCleanup()),
                ],
            )
            given = (await worker.expect(wire.Assign)).jobs
            assert {item.job for item in given} == {first.job.id, other.job.id}
            assert second.job.concurrency_key == "jobs:maintenance:health"
            assert (await plane.control.get(ADMIN, second.job.id)).job.state is JobState.PENDING
            worker.finish(next(item for item in given if item.job == first.job.id))
            await worker.expect(wire.FinishedAck)
            assert (await worker.assigned()).job == second.job.id

    asyncio.run(scenario())


def test_nobody_else_takes_their_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            with pytest.raises(InvalidRequest, match="jobs:maintenance:") as failure:
                await plane.control.submit(ALICE, [shell(concurrency_key="jobs:maintenance:compact")])
            assert failure.value.field == "$.concurrency_key"

    asyncio.run(scenario())


def test_others_than_administrators_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            with pytest.raises(Forbidden, match="only administrators"):
                await plane.control.submit(ALICE, [job(MaintenanceHealth())])
            with pytest.raises(Forbidden, match="only administrators"):
                await plane.control.schedules.put(ALICE, "s", Schedule(every_s=60, job=job(MaintenanceHealth())), None)

    asyncio.run(scenario())
