"""The spine without its API: the real control plane over log and store, and a real worker process."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from jobs.protocol.ids import JobId
from jobs.protocol.model import JobResult, JobState, JobView, Reason, Retry, Stream
from jobs.service import JobFilter, LogsWanted
from tests.support import processes
from tests.support.peer import LEAVES_LATER
from tests.support.plane import ADMIN, ALICE, Plane, shell
from tests.support.workerprocess import worker_process

STEP_S = 20.0


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def submit(plane: Plane, *argv: str, **changes: object) -> JobId:
    (submitted,) = await plane.control.submit(ALICE, [shell(*argv, **changes)])
    return submitted.job.id


async def final(plane: Plane, job: JobId) -> JobView:
    async with asyncio.timeout(STEP_S):
        view = await plane.control.wait(ALICE, job, STEP_S)
    assert view.state.is_final, view
    return view


async def result(plane: Plane, job: JobId) -> JobResult:
    await final(plane, job)
    return await plane.control.result(ALICE, job, None)


async def until_output(plane: Plane, job: JobId, text: bytes) -> None:
    """Follow the job's output until it holds `text`."""
    async with asyncio.timeout(STEP_S):
        pieces = plane.control.logs(ALICE, job, LogsWanted(streams=(Stream.STDOUT,), follow=True))
        async for piece in pieces:
            if text in piece.data:
                return
    raise AssertionError(f"{job} ended without {text!r}")


def test_echo_hello_and_exit_3(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane, worker_process(tmp_path, "--name", "w"):
            hello = await result(plane, await submit(plane, "echo", "hello"))
            assert (hello.state, hello.stdout.text, hello.stderr.text) == (JobState.COMPLETED, "hello\n", "")
            assert hello.execution is not None
            assert (hello.execution.exit_code, hello.execution.worker, hello.execution.attempt) == (0, "w", 1)
            failed = await result(plane, await submit(plane, "sh", "-c", "echo oops >&2; exit 3"))
            assert (failed.state, failed.reason, failed.stderr.text) == (JobState.FAILED, Reason.EXIT_CODE, "oops\n")
            assert failed.execution is not None
            assert failed.execution.exit_code == 3

    run(scenario)


def test_more_jobs_than_slots_all_run_each_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane, worker_process(tmp_path, "--slots", "2"):
            jobs = [await submit(plane, "echo", str(number)) for number in range(40)]
            for number, job in enumerate(jobs):
                got = await result(plane, job)
                assert (got.stdout.text, got.execution.attempt if got.execution else 0) == (f"{number}\n", 1)

    run(scenario)


def test_a_job_outlives_a_restart_of_its_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker_process(tmp_path):
            async with Plane(tmp_path) as plane:
                job = await submit(plane, "sh", "-c", "echo before; sleep 1; echo after")
                await until_output(plane, job, b"before")
            async with Plane(tmp_path) as plane:
                got = await result(plane, job)
                assert (got.state, got.stdout.text) == (JobState.COMPLETED, "before\nafter\n")
                assert got.execution is not None
                assert got.execution.attempt == 1

    run(scenario)


def test_a_killed_worker_s_jobs_are_dead_and_run_again_on_the_next(tmp_path: Path) -> None:
    marker = "77123456"

    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            async with worker_process(tmp_path) as first:
                job = await submit(
                    plane, "sh", "-c", "echo up; sleep $0", marker, retry=Retry(max_attempts=2, delay_s=0)
                )
                await until_output(plane, job, b"up")
                gone = processes.Ends(processes.with_argument(marker))
                await first.kill()
                await gone.wait(STEP_S)
            async with worker_process(tmp_path):
                async with asyncio.timeout(STEP_S):
                    changes = plane.control.watch_jobs(ALICE, JobFilter(), after_revision=0, job=job)
                    async for change in changes:
                        if not isinstance(change, int) and change.job.attempt == 2:
                            break
                await plane.control.cancel(ALICE, job)
                view = await final(plane, job)
                assert (view.reason, view.attempt) == (Reason.CANCELLED, 2)
                assert processes.with_argument(marker) == []

    run(scenario)


def test_a_worker_is_lost_as_soon_as_its_process_ends_also_after_its_connection(tmp_path: Path) -> None:
    """Given a worker whose connection has ended and whose process has not, when that ends, then it is lost at once."""

    async def scenario() -> None:
        async with Plane(tmp_path, worker_lease_s=600.0) as plane:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LEAVES_LATER, str(plane.worker_socket), stdin=asyncio.subprocess.PIPE
            )
            await until_workers(plane, ["lost"])
            assert child.stdin is not None
            child.stdin.close()
            await until_workers(plane, [])
            await child.wait()

    run(scenario)


async def until_workers(plane: Plane, states: list[str]) -> None:
    async with asyncio.timeout(STEP_S):
        while [worker.state for worker in await plane.control.workers(ADMIN)] != states:
            await asyncio.sleep(0.005)


def test_a_worker_that_drains_finishes_and_the_next_takes_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            async with worker_process(tmp_path, "--slots", "1") as first:
                running = await submit(plane, "sh", "-c", "echo up; sleep 0.5; echo finished")
                await until_output(plane, running, b"up")
                queued = await submit(plane, "echo", "queued")
                first.process.terminate()
                assert await first.exit_code() == 0
                got = await result(plane, running)
                assert got.stdout.text == "up\nfinished\n"
                assert (await plane.control.get(ALICE, queued)).job.state is JobState.PENDING
            async with worker_process(tmp_path):
                assert (await result(plane, queued)).stdout.text == "queued\n"

    run(scenario)


def test_output_larger_than_every_window_arrives_whole(tmp_path: Path) -> None:
    size = 20_000_000

    async def scenario() -> None:
        async with Plane(tmp_path) as plane, worker_process(tmp_path):
            job = await submit(plane, "sh", "-c", f"head -c {size} /dev/urandom | tee /tmp/x; sha256sum < /tmp/x >&2")
            got = await result(plane, job)
            assert got.execution is not None
            assert got.execution.stdout.stored_bytes == size
            pieces = plane.control.logs(ALICE, job, LogsWanted(streams=(Stream.STDOUT,)))
            digest = hashlib.sha256()
            async for piece in pieces:
                digest.update(piece.data)
            assert got.stderr.text == f"{digest.hexdigest()}  -\n"

    run(scenario)
