"""The overview over a real log and store: bounded, in order, and only what the caller may see."""

from __future__ import annotations

import asyncio
from pathlib import Path

from jobs.protocol import wire
from jobs.protocol.model import JobView, OwnerChange, Reason
from jobs.service import Caller, OverviewLimits
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

FAR_MS = 253_402_300_799_999
ALL = OverviewLimits(queues=100, workers=100, jobs=100, failed=100)


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


async def submit(plane: Plane, caller: Caller = ALICE, **changes: object) -> JobView:
    (submitted,) = await plane.control.submit(caller, [shell("true", **changes)])
    return submitted.job


def test_counts_rates_and_parts_are_what_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w", slots=2)
            await worker.register(plane.worker_socket)
            items = []
            for queue in ("a", "b"):
                await submit(plane, queue=queue)
                items.append(await worker.assigned())
            for queue in ("b", "b", "c"):
                await submit(plane, queue=queue)
            await submit(plane, queue="c", not_before_ms=FAR_MS)
            told = await plane.control.overview(ADMIN, ALL)
            assert (told.pending, told.waiting, told.running, told.slots) == (4, 1, 2, 2)
            assert [(q.name, q.running, q.pending) for q in told.queues] == [("b", 1, 2), ("c", 0, 2), ("a", 1, 0)]
            assert [(w.id, w.running) for w in told.workers] == [("w", 2)]
            assert [running.job.id for running in told.jobs] == [item.job for item in items]
            assert (told.rates.submitted > 0, told.rates.started > 0, told.rates.ended) == (True, True, 0)
            worker.finish(items[0], reason=Reason.EXIT_CODE, exit_code=7)
            await worker.expect(wire.FinishedAck)
            told = await plane.control.overview(ADMIN, ALL)
            assert [(letter.id, letter.reason) for letter in told.failed] == [(items[0].job, Reason.EXIT_CODE)]
            assert told.rates.ended > 0
            assert plane.control.metrics()["jobs_ended_total"][1] == 1

    run(scenario())


def test_jobs_that_run_for_longest_come_first_also_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = WorkerPeer("z", slots=3), WorkerPeer("a", slots=3)
        order = []
        async with Plane(tmp_path) as plane:
            await first.register(plane.worker_socket)
            await second.register(plane.worker_socket)
            for number in range(6):
                job = await submit(plane, priority=number)
                async with asyncio.timeout(10):
                    while len((await plane.control.overview(ADMIN, ALL)).jobs) <= number:
                        await asyncio.sleep(0.002)
                order.append(job.id)
            told = await plane.control.overview(ADMIN, ALL)
            assert [running.job.id for running in told.jobs] == order
            assert {running.job.worker for running in told.jobs} == {"a", "z"}
        async with Plane(tmp_path) as plane:
            told = await plane.control.overview(ADMIN, ALL)
            assert [running.job.id for running in told.jobs] == order
            few = await plane.control.overview(ADMIN, OverviewLimits(queues=0, workers=1, jobs=2, failed=0))
            assert ([running.job.id for running in few.jobs], few.more_jobs) == (order[:2], 4)
            assert (few.queues, few.more_queues, len(few.workers), few.more_workers) == ([], 1, 1, 1)

    run(scenario())


def test_progress_is_told_with_the_job(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w")
            await worker.register(plane.worker_socket)
            await submit(plane)
            item = await worker.assigned()
            worker.send(wire.Progress(job=item.job, attempt=item.attempt, percent=40.0, message="loading"))
            async with asyncio.timeout(10):
                while (running := (await plane.control.overview(ALICE, ALL)).jobs[0]).progress is None:
                    await asyncio.sleep(0.002)
            assert (running.progress.percent, running.progress.message) == (40.0, "loading")

    run(scenario())


def test_who_is_no_admin_sees_only_their_own_jobs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w", slots=8)
            await worker.register(plane.worker_socket)
            mine, theirs = [], []
            for _ in range(2):
                mine.append((await submit(plane)).id)
                items = [await worker.assigned()]
                theirs.append((await submit(plane, BOB)).id)
                items.append(await worker.assigned())
            for item in items:
                worker.finish(item, reason=Reason.EXIT_CODE, exit_code=1)
                await worker.expect(wire.FinishedAck)
            await plane.control.queues.change_owner(ADMIN, ALICE.uid, OwnerChange(max_running=5))
            told = await plane.control.overview(ALICE, ALL)
            assert ([running.job.id for running in told.jobs], told.more_jobs) == ([mine[0]], 0)
            assert [letter.id for letter in told.failed] == [mine[1]]
            assert (told.all_owners, told.running) == (False, 2)
            assert (told.own.uid, told.own.running, told.own.max_running) == (ALICE.uid, 1, 5)
            told = await plane.control.overview(ADMIN, ALL)
            assert [running.job.id for running in told.jobs] == [mine[0], theirs[0]]
            assert {letter.id for letter in told.failed} == {mine[1], theirs[1]}

    run(scenario())
