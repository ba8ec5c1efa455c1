"""What workers report besides output and ends: progress, counts of resources, pressure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from pathlib import Path

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId
from jobs.protocol.model import JobDetail, JobState, Reason, Retry, WorkerView
from tests.support.peer import STEP_S, WorkerPeer
from tests.support.plane import ADMIN, ALICE, Plane, shell


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def progress(item: wire.Assignment, percent: float, attempt: int | None = None) -> wire.Progress:
    told = item.attempt if attempt is None else Attempt(attempt)
    return wire.Progress(job=item.job, attempt=told, percent=percent, message=f"at {percent:g}")


async def until_percent(plane: Plane, job: JobId, percent: float) -> JobDetail:
    async with asyncio.timeout(STEP_S):
        while True:
            detail = await plane.control.get(ALICE, job)
            if detail.progress is not None and detail.progress.percent == percent:
                return detail
            await asyncio.sleep(0)


async def until_worker(plane: Plane, holds: Callable[[WorkerView], bool]) -> WorkerView:
    async with asyncio.timeout(STEP_S):
        while True:
            (worker,) = await plane.control.workers(ADMIN)
            if holds(worker):
                return worker
            await asyncio.sleep(0)


def test_progress_is_kept_over_a_restart_and_not_taken_from_an_attempt_that_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            (submitted,) = await plane.control.submit(ALICE, [shell(retry=Retry(max_attempts=2, delay_s=0))])
            first = await worker.assigned()
            worker.send(progress(first, 90))
            assert (await until_percent(plane, first.job, 90)).progress is not None
            worker.finish(first, reason=Reason.EXIT_CODE, exit_code=1)
            await worker.expect(wire.FinishedAck)
            second = await worker.assigned()
            # Given the next attempt, when the former one still speaks, then nobody listens
            worker.send(progress(second, 10))
            worker.send(progress(first, 95))
            worker.send(progress(second, 11))
            detail = await until_percent(plane, submitted.job.id, 11)
            assert (detail.job.attempt, detail.job.state) == (2, JobState.RUNNING)
            worker.send(progress(second, 99))
            worker.finish(second)
            await worker.expect(wire.FinishedAck)
            worker.send(progress(second, 100))
            late = WorkerPeer("late", incarnation="f" * 32)
            await late.register(plane.worker_socket)
        async with Plane(tmp_path) as plane:
            detail = await plane.control.get(ALICE, submitted.job.id)
            assert detail.progress is not None
            assert (detail.progress.percent, detail.progress.message) == (99, "at 99")

    run(scenario)


def test_progress_of_another_worker_s_job_is_not_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            owner, stranger = WorkerPeer("owner"), WorkerPeer("stranger")
            await owner.register(plane.worker_socket)
            await plane.control.submit(ALICE, [shell()])
            item = await owner.assigned()
            await stranger.register(plane.worker_socket)
            stranger.send(progress(item, 66))
            stranger.send(wire.Draining())
            await stranger.expect(wire.DrainConfirmed)
            assert (await plane.control.get(ALICE, item.job)).progress is None
            assert owner.incarnation != Incarnation(stranger.incarnation)

    run(scenario)


def test_a_percentage_that_is_none_costs_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            for percent in (math.nan, -1.0, 100.5):
                worker = WorkerPeer()
                await worker.register(plane.worker_socket)
                worker.send(wire.Progress(job=JobId("x"), attempt=Attempt(1), percent=percent, message=None))
                assert (await worker.expect(wire.Refused)).code == "bad_frame"

    run(scenario)


def test_counts_of_resources_are_part_of_the_worker_s_record(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket, resources={"gpu": 2})
            assert (await until_worker(plane, lambda view: True)).resources == {"gpu": 2}
        async with Plane(tmp_path) as plane:
            assert (await until_worker(plane, lambda view: view.state == "lost")).resources == {"gpu": 2}

    run(scenario)


def test_a_worker_under_pressure_is_passed_over_until_it_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            pressed, free = WorkerPeer("pressed"), WorkerPeer("free")
            await pressed.register(plane.worker_socket)
            pressed.send(wire.Heartbeat(pressure={"memory": 31.5}, pressed=True))
            view = await until_worker(plane, lambda view: view.pressed)
            assert (view.pressure, view.state) == ({"memory": 31.5}, "ready")
            (submitted,) = await plane.control.submit(ALICE, [shell()])
            await free.register(plane.worker_socket)
            assert (await free.assigned()).job == submitted.job.id
            # Given no other room, when the pressure ends, then nothing else has to happen for the next to be given out
            (waiting,) = await plane.control.submit(ALICE, [shell()])
            assert (await plane.control.get(ALICE, waiting.job.id)).job.state is JobState.PENDING
            pressed.send(wire.Heartbeat(pressure={"memory": 3.0}))
            assert (await pressed.assigned()).job == waiting.job.id

    run(scenario)
