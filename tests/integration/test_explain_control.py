"""`explain` over a real log and store, with workers that do what the test says; and that large jobs do not starve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import Forbidden, NotFound
from jobs.protocol import wire
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import (
    ArrayRange,
    ArraySpec,
    Explanation,
    JobState,
    JobView,
    QueueChange,
    Reason,
    Requires,
    Retry,
)
from jobs.scheduler import RESERVE_AFTER_MS
from jobs.service import Caller
from tests.support.peer import STEP_S, WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

FAR_MS = 253_402_300_799_999


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


async def submit(plane: Plane, caller: Caller = ALICE, **changes: object) -> JobView:
    (submitted,) = await plane.control.submit(caller, [shell("true", **changes)])
    return submitted.job


async def explained(plane: Plane, job: JobView, caller: Caller = ALICE) -> Explanation:
    return await plane.control.explain(caller, job.id)


async def until(plane: Plane, job: JobView, holds: Callable[[Explanation], bool]) -> Explanation:
    async with asyncio.timeout(STEP_S):
        while not holds(found := await explained(plane, job)):
            await asyncio.sleep(0.005)
    return found


def kinds(found: Explanation) -> list[str]:
    return [obstacle.kind for obstacle in found.obstacles]


def test_a_job_that_no_worker_can_ever_take_stays_pending_and_says_who_lacks_what(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w")
            worker.labels = {"zone": "b"}
            await worker.register(plane.worker_socket)
            wanted = Requires(labels={"zone": "a"}, cpu_milli=4_000, resources={"gpu": 1})
            job = await submit(plane, requires=wanted)
            found = await explained(plane, job)
            assert (found.job.state, kinds(found), found.ahead) == (JobState.PENDING, ["unsuitable"], 0)
            (fit,) = found.workers
            assert (fit.worker, fit.suits, fit.takes) == ("w", False, False)
            assert fit.lacks == [
                "label zone=a wanted, has zone=b", "cpu_milli 4000 wanted, has 2000", "gpu 1 wanted, none",
            ]  # fmt: skip
            # When one comes that can, then it runs there
            able = WorkerPeer("able")
            able.labels = {"zone": "a"}
            await able.register(plane.worker_socket, cpu_milli=4_000, resources={"gpu": 1})
            assert (await able.assigned()).job == job.id
            found = await explained(plane, job)
            assert found.text.startswith("attempt 1 of 1 runs on worker able since ")
            assert (found.workers, found.obstacles) == ([], [])

    run(scenario())


def test_each_thing_that_holds_a_job_is_told_and_gone_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            worker = WorkerPeer("w", slots=9)
            await worker.register(plane.worker_socket)
            await queues.change(ADMIN, "q", QueueChange(max_running=1))
            first, second = [await submit(plane, queue="q") for _ in range(2)]
            item = await worker.assigned()
            assert item.job == first.id
            assert kinds(await explained(plane, second)) == ["queue_limit"]
            await queues.pause(ADMIN, "q", paused=True)
            assert kinds(await explained(plane, second)) == ["paused", "queue_limit"]
            await queues.change(ADMIN, "q", QueueChange(max_running=None))
            await plane.control.drain_worker(ADMIN, "w")
            found = await explained(plane, second)
            assert (kinds(found), found.workers[0].lacks) == (["paused", "room"], ["draining"])
            await queues.pause(ADMIN, "q", paused=False)
            await plane.control.resume_worker(ADMIN, "w")
            assert (await worker.assigned()).job == second.id
            # And a rate says from when
            await queues.change(ADMIN, "slow", QueueChange(rate_count=1, rate_period_s=3600.0))
            await submit(plane, queue="slow")
            await worker.assigned()
            third = await submit(plane, queue="slow")
            (obstacle,) = (await explained(plane, third)).obstacles
            assert obstacle.kind == "rate"
            assert obstacle.until_ms is not None
            assert 3_500_000 < obstacle.until_ms - third.submitted_ms <= 3_600_000

    run(scenario())


def test_pressure_and_absence_are_told_with_the_figures(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w")
            await worker.register(plane.worker_socket)
            worker.send(wire.Heartbeat(pressure={"memory": 31.5, "io": 2.0}, pressed=True))
            job = await submit(plane)
            # A worker under pressure is passed over; what is free there is not looked at.
            found = await until(plane, job, lambda found: "under pressure" in str(found.workers))
            assert found.workers[0].lacks == ["under pressure: memory 31.5 %, io 2 %"]
            worker.send(wire.Heartbeat(pressure={"memory": 3.0}))
            assert (await worker.assigned()).job == job.id
            waiting = await submit(plane)
            await worker.close()
            found = await until(plane, waiting, lambda found: "not connected" in str(found.workers))
            assert found.workers[0].lacks == ["not connected", "its slot is taken"]
            found = await until(plane, job, lambda found: "not connected" in found.text)
            assert "within its lease" in found.text

    run(scenario())


def test_a_job_that_waits_for_a_time_or_for_others_says_which(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            later = await submit(plane, not_before_ms=FAR_MS)
            found = await explained(plane, later)
            assert kinds(found) == ["unsuitable", "time"], "there is no worker either, which no waiting mends"
            assert (found.obstacles[1].until_ms, found.ahead) == (FAR_MS, None)
            child = await submit(plane, depends_on=[later.id])
            await WorkerPeer("w").register(plane.worker_socket)
            found = await explained(plane, child)
            assert kinds(found) == ["parents"]
            assert found.obstacles[0].jobs == [later.id]
            assert f"{later.id} (pending)" in found.text
            await plane.control.cancel(ALICE, later.id)
            found = await until(plane, child, lambda found: found.job.state is JobState.FAILED)
            assert "a job that it depends on failed" in found.text
            assert found.text.endswith("it never ran")

    run(scenario())


def test_attempts_and_what_comes_after_them_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w")
            await worker.register(plane.worker_socket)
            job = await submit(plane, retry=Retry(max_attempts=3, delay_s=3600.0, backoff="fixed"))
            worker.finish(await worker.assigned(), reason=Reason.EXIT_CODE, exit_code=7)
            await worker.expect(wire.FinishedAck)
            found = await explained(plane, job)
            assert kinds(found) == ["retry"]
            assert found.text.startswith("attempt 1 failed (exit_code); it is tried again at ")
            assert [(end.attempt, end.reason, end.worker) for end in found.attempts] == [(1, Reason.EXIT_CODE, "w")]
            await plane.control.cancel(ALICE, job.id)
            found = await explained(plane, job)
            assert "somebody asked for its end" in found.text
            assert len(found.attempts) == 1

    run(scenario())


def test_who_holds_a_concurrency_key_is_told_also_of_other_owners_but_only_the_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w", slots=9)
            await worker.register(plane.worker_socket)
            theirs = await submit(plane, BOB, concurrency_key="db")
            item = await worker.assigned()
            mine = await submit(plane, concurrency_key="db")
            found = await explained(plane, mine)
            assert [(o.kind, o.jobs, o.more_jobs) for o in found.obstacles] == [("concurrency_key", [theirs.id], 0)]
            with pytest.raises(Forbidden):
                await explained(plane, theirs)
            with pytest.raises(Forbidden):
                await explained(plane, mine, BOB)
            assert (await explained(plane, mine, ADMIN)).job.id == mine.id
            with pytest.raises(NotFound):
                await plane.control.explain(ADMIN, JobId("01900000-0000-7000-8000-000000000000"))
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            assert (await worker.assigned()).job == mine.id

    run(scenario())


def test_how_many_come_first_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            jobs = [await submit(plane, priority=priority) for priority in (0, 0, 5, 0)]
            others = await submit(plane, BOB)
            assert [(await explained(plane, job)).ahead for job in jobs] == [1, 2, 0, 3]
            assert (await explained(plane, others, BOB)).ahead == 0

    run(scenario())


def test_a_large_job_stops_no_small_ones_and_is_not_starved_by_them(tmp_path: Path) -> None:
    """Given a worker that small jobs keep busy without end, a large one is given it to itself once it has waited."""

    async def scenario() -> None:
        async with Plane(tmp_path, worker_lease_s=60.0) as plane:
            worker = WorkerPeer("w", slots=4)
            await worker.register(plane.worker_socket)  # with 2,000 cpu_milli
            small = {"requires": Requires(cpu_milli=500), "caller": BOB}
            running = []
            for _ in range(4):
                await submit(plane, **small)  # type: ignore[arg-type]
                running.append(await worker.assigned())
            large = await submit(plane, requires=Requires(cpu_milli=2_000))
            found = await explained(plane, large)
            assert found.workers[0].lacks == ["all 4 slots are taken", "cpu_milli 2000 wanted, 0 of 2000 free"]
            # Small jobs go on while it waits
            for _ in range(8):
                await submit(plane, **small)  # type: ignore[arg-type]
                worker.finish(running.pop(0))
                await worker.expect(wire.FinishedAck)
                running.append(await worker.assigned())
            # After its time the worker is kept for it, and each one is told
            found = await until(plane, large, lambda found: found.reserved == "w")
            waiting = await submit(plane, **small)  # type: ignore[arg-type]
            for item in running:
                worker.finish(item)
                await worker.expect(wire.FinishedAck)
                if item is running[0]:
                    told = await explained(plane, waiting, BOB)
                    assert told.workers[0].lacks == ["is kept free for another job that has waited longer"]
            item = await worker.assigned()
            assert item.job == large.id
            started_ms = (await explained(plane, large)).job.started_ms
            assert started_ms is not None
            assert started_ms - large.submitted_ms >= RESERVE_AFTER_MS
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            assert (await worker.assigned()).job == waiting.id

    run(scenario())


def test_an_array_and_its_tasks_are_explained_split_off_or_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w", slots=2)
            await worker.register(plane.worker_socket)
            array = ArraySpec(range=ArrayRange(stop=1_000), max_running=1)
            job = await submit(plane, array=array, depends_on=[(blocker := await submit(plane)).id])
            last = task_id(job.id, 999)
            # Given an array that waits for another job, then so do its tasks
            for waiting in (await explained(plane, job), await plane.control.explain(ALICE, last)):
                assert [(obstacle.kind, obstacle.jobs) for obstacle in waiting.obstacles] == [("parents", [blocker.id])]
            worker.finish(await worker.assigned())
            await worker.expect(wire.FinishedAck)
            item = await worker.assigned()
            # When it runs, then each is told how far it is, and what keeps the next task
            found = await until(plane, job, lambda found: "running" in found.text)
            assert found.text.startswith("0 of 1,000 tasks ended, 1 running; those that wait: 1 job is running")
            assert [(obstacle.kind, obstacle.jobs) for obstacle in found.obstacles] == [("concurrency_key", [item.job])]
            split = await plane.control.explain(ALICE, task_id(job.id, 1))
            assert [obstacle.kind for obstacle in split.obstacles] == ["concurrency_key"]
            assert split.ahead == 0
            unsplit = await plane.control.explain(ALICE, last)
            assert (unsplit.job.id, unsplit.ahead) == (last, None)
            assert unsplit.text.startswith("its array has yet to begin it: 1 job is running")
            running = await plane.control.explain(ALICE, item.job)
            assert running.text.startswith("attempt 1 of 1 runs on worker w since")
            # And when it is cancelled, each is told that
            await plane.control.cancel(ALICE, job.id)
            assert "it is being ended" in (await explained(plane, job)).text
            worker.finish(item, reason=Reason.CANCELLED, exit_code=None)
            found = await until(plane, job, lambda found: found.job.state is JobState.FAILED)
            assert "1,000 of 1,000 tasks were cancelled" in found.text
            assert "somebody asked for its end" in (await plane.control.explain(ALICE, last)).text

    run(scenario())
