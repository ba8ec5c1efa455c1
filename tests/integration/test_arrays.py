"""Arrays over a real log and store, with workers that do exactly what the test says."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs import keys
from jobs.control.arrayremoval import TaskRemoval
from jobs.control.jobreferences import JobReferences
from jobs.errors import Forbidden, IdempotencyConflict, InvalidRequest, NotFinished, NotFound, NotRedrivable
from jobs.protocol import wire
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import (
    MAX_ITEM_BYTES,
    ArrayRange,
    ArrayRetry,
    ArraySpec,
    ArrayView,
    JobState,
    JobView,
    QueueSettings,
    Reason,
    Retry,
    Stream,
)
from jobs.service import JobFilter, LogsWanted
from jobs.store import prefix_end
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell
from tests.support.tasks import TaskPeer, index_of

ANY = JobFilter()
MILLION = 1_000_000


def scenario(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def numbers(stop: int, **fields: Any) -> ArraySpec:
    return ArraySpec(range=ArrayRange(stop=stop), **fields)


async def submit(plane: Plane, array: ArraySpec, **fields: Any) -> JobId:
    (submitted,) = await plane.control.submit(ALICE, [shell("echo", array=array, **fields)])
    return submitted.job.id


async def ended(plane: Plane, job: JobId) -> JobView:
    async with asyncio.timeout(20):
        return await plane.control.wait(ADMIN, job, 20)


async def progress(plane: Plane, array: JobId) -> ArrayView:
    return await plane.control.arrays.view(ALICE, array)


async def until(plane: Plane, array: JobId, holds: Callable[[ArrayView], bool]) -> ArrayView:
    """Return how far the array is once that holds."""
    async with asyncio.timeout(20):
        while not holds(seen := await progress(plane, array)):
            await asyncio.sleep(0)
    return seen


def states(seen: ArrayView) -> tuple[int, int, int, int, int]:
    counts = (seen.pending, seen.running, seen.completed, seen.failed, seen.cancelled)
    assert sum(counts) == seen.tasks
    return counts


def count(plane: Plane, prefix: bytes) -> int:
    return plane.store.count(prefix, prefix_end(prefix), limit=1 << 60)


@asynccontextmanager
async def working(plane: Plane, worker: TaskPeer, **ends: Any) -> AsyncIterator[TaskPeer]:
    """Let the worker end whatever it is given, in the background."""
    await worker.join(plane.worker_socket)
    task = asyncio.ensure_future(worker.work(**ends))
    try:
        yield worker
    finally:
        task.cancel()
        await task
        await worker.close()


# --- a million tasks --------------------------------------------------------------------------------------------------


@scenario
async def test_a_million_tasks_are_accepted_quickly_cost_few_keys_and_are_cancelled_at_once(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        began = time.perf_counter()
        array = await submit(plane, numbers(MILLION))
        spent_s = time.perf_counter() - began
        assert spent_s < 5, "a submission does not grow with the tasks"
        seen = await until(plane, array, lambda seen: seen.state is JobState.RUNNING)
        assert states(seen) == (MILLION, 0, 0, 0, 0)
        # Some tasks are jobs of their own, three keys each; the others are nowhere
        assert count(plane, b"/") < 1_000
        assert plane.control.metrics()["jobs_pending"][1] <= 256
        began = time.perf_counter()
        outcome = await plane.control.cancel(ALICE, array)
        assert time.perf_counter() - began < 5
        assert (outcome.outcome, outcome.tasks.cancelled if outcome.tasks else 0) == ("cancelled", MILLION)
        job = await ended(plane, array)
        assert (job.state, job.reason) == (JobState.FAILED, Reason.CANCELLED)
        assert job.message == "1,000,000 of 1,000,000 tasks were cancelled"
        assert count(plane, b"/") < 1_000
        assert plane.control.metrics()["jobs_pending"][1] == 0
    async with Plane(tmp_path) as plane:
        assert states(await progress(plane, array)) == (0, 0, 0, 0, MILLION)
        assert (await plane.control.get(ALICE, array)).job == job


@scenario
async def test_a_million_lines_fit_one_request_and_each_task_finds_its_own(tmp_path: Path) -> None:
    lines = [f"{number:07}" for number in range(MILLION)]
    async with Plane(tmp_path) as plane:
        array = await submit(plane, ArraySpec(lines=lines), idempotency_key="k")
        assert await submit(plane, ArraySpec(lines=lines), idempotency_key="k") == array
        with pytest.raises(IdempotencyConflict):
            await submit(plane, ArraySpec(lines=[*lines[:-1], "another"]), idempotency_key="k")
        assert count(plane, keys.ARRAY_ITEMS) < 300
        worker = await TaskPeer(slots=2).join(plane.worker_socket)
        first, second = await worker.take(2)
        assert [item.env["JOBS_ARRAY_ITEM"] for item in (first, second)] == ["0000000", "0000001"]
        # Of the rest only some are run, from anywhere in the list
        outcome = await plane.control.arrays.cancel(ALICE, array, "2-499999,500001-999998")
        assert outcome.tasks is not None
        assert outcome.tasks.cancelled == MILLION - 4
        worker.end(0)
        worker.end(1)
        assert {item.env["JOBS_ARRAY_ITEM"] for item in await worker.take(2)} == {"0500000", "0999999"}
        worker.end(500_000)
        worker.end(999_999)
        assert (await ended(plane, array)).message == "999,996 of 1,000,000 tasks were cancelled"


@scenario
async def test_the_largest_list_is_stored_by_one_transaction_and_found_after_a_restart(tmp_path: Path) -> None:
    lines = [f"{number:065000}" for number in range(515)]
    async with Plane(tmp_path) as plane:
        before = plane.store.revision
        array = await submit(plane, ArraySpec(lines=lines), not_before_ms=1 << 42)
        assert plane.store.revision == before + 1
        await plane.control.arrays.cancel(ALICE, array, "0-512")
        await plane.control.cancel(ALICE, array)
    async with Plane(tmp_path) as plane:
        again = await plane.control.arrays.retry(ALICE, array, ArrayRetry(indices="0,514"))
        worker = await TaskPeer().join(plane.worker_socket)
        assert [item.env["JOBS_ARRAY_ITEM"] for item in await worker.take(2)] == [lines[0], lines[514]]
        assert count(plane, keys.of_array(keys.ARRAY_ITEMS, again.job.id)) == 2


# --- what a task is ---------------------------------------------------------------------------------------------------


@scenario
async def test_tasks_are_jobs_with_the_payload_of_their_array(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        values = [{"n": 1}, "two", [3]]
        array = await submit(plane, ArraySpec(items=values), labels={"a": "b"}, timeout_s=60)
        worker = await TaskPeer().join(plane.worker_socket)
        items = await worker.take(3)
        assert [item.job for item in items] == [task_id(array, index) for index in range(3)]
        assert [item.env["JOBS_ARRAY_ITEM"] for item in items] == ['{"n":1}', '"two"', "[3]"]
        assert all(item.env["JOBS_ARRAY_COUNT"] == "3" and item.env["JOBS_ARRAY_ID"] == array for item in items)
        assert all(b'"argv":["echo"]' in item.payload and item.timeout_s == 60 for item in items)
        detail = await plane.control.get(ALICE, items[1].job)
        assert (detail.job.array, detail.job.index, detail.job.labels) == (array, 1, {"a": "b"})
        # What is stored of the job does not repeat the list
        assert detail.spec == (await plane.control.get(ALICE, array)).spec
        assert detail.spec.array == ArraySpec()
        worker.finish(items[1], segments=[(1, b"out")])
        await ended(plane, items[1].job)
        assert (await plane.control.result(ALICE, items[1].job, None)).stdout.text == "out"
        said = (await plane.control.get(ALICE, array)).progress
        assert said is not None
        assert (said.percent, said.message) == (33.3, "1 of 3 tasks ended, 2 running")
        logs = plane.control.logs(ALICE, array, LogsWanted(streams=(Stream.STDOUT,)))
        with pytest.raises(InvalidRequest):
            await anext(logs)
        with pytest.raises(NotFinished):
            await plane.control.result(ALICE, array, None)
        worker.end(0)
        worker.end(2)
        assert (await ended(plane, array)).state is JobState.COMPLETED
        assert (await plane.control.result(ALICE, array, None)).execution is None


@scenario
async def test_many_tasks_with_the_largest_items_start_at_once(tmp_path: Path) -> None:
    """More of them than one frame to a worker holds."""
    lines = ["ü" * (MAX_ITEM_BYTES // 2)] * 130
    async with Plane(tmp_path) as plane:
        for _ in range(2):
            await submit(plane, ArraySpec(lines=lines))
        worker = WorkerPeer(slots=260)
        await worker.register(plane.worker_socket)
        given: list[wire.Assignment] = []
        while len(given) < 260:
            given += (await worker.expect(wire.Assign)).jobs
        assert all(item.env["JOBS_ARRAY_ITEM"] == lines[0] for item in given)


@scenario
async def test_at_most_so_many_tasks_run_at_a_time(tmp_path: Path) -> None:
    async with Plane(tmp_path, worker_lease_s=60.0) as plane:  # the worker sends no heartbeats
        array = await submit(plane, numbers(500, max_running=3))
        worker = await TaskPeer(slots=100).join(plane.worker_socket)
        assert [index_of(item) for item in await worker.take(3)] == [0, 1, 2]
        for done in range(400):
            worker.end(done)
            assert [index_of(item) for item in await worker.take(1)] == [done + 3]
        assert (await progress(plane, array)).running == 3


@scenario
async def test_a_task_that_is_tried_again_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        retry = Retry(max_attempts=2, delay_s=3_600, backoff="fixed")
        array = await submit(plane, numbers(600), retry=retry)
        async with working(plane, TaskPeer(slots=50), ends=lambda index: Reason.EXIT_CODE if index % 2 else None):
            seen = await until(plane, array, lambda seen: seen.pending == 300 and seen.running == 0)
        assert states(seen) == (300, 0, 300, 0, 0)
    async with Plane(tmp_path) as plane:
        assert states(await progress(plane, array)) == (300, 0, 300, 0, 0)
        outcome = await plane.control.cancel(ALICE, array)
        assert outcome.tasks is not None
        assert (outcome.tasks.cancelled, outcome.tasks.already_final) == (300, 300)
        assert (await ended(plane, array)).reason is Reason.CANCELLED


# --- restarts ---------------------------------------------------------------------------------------------------------


@scenario
async def test_restarts_in_the_middle_neither_skip_nor_double_a_task(tmp_path: Path) -> None:
    worker = TaskPeer(slots=7)
    array = JobId("")
    for life in range(12):
        async with Plane(tmp_path) as plane:
            array = array or await submit(plane, numbers(400))
            await worker.join(plane.worker_socket)
            # Given tasks that run, some that have just ended, and the next being split off, when the node goes
            while len(worker.given) < 33 * (life + 1):
                for index in list(worker.held)[:-3]:
                    worker.end(index)
                await worker.listen()
            await worker.close()
    async with Plane(tmp_path) as plane, working(plane, worker):
        job = await ended(plane, array)
        assert (job.state, states(await progress(plane, array))) == (JobState.COMPLETED, (0, 0, 400, 0, 0))
    assert sorted(map(index_of, worker.given)) == list(range(400))
    assert not worker.refused


@scenario
async def test_whatever_happens_in_whatever_order_each_task_ends_once(tmp_path: Path) -> None:
    """Tasks that complete, fail and are tried again, some cancelled, the node restarted all the while."""
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    chance = random.Random(seed)
    tasks = 300
    fails = {index for index in range(tasks) if chance.random() < 0.2}
    worker = TaskPeer(slots=5)
    array = JobId("")
    gone: set[int] = set()
    for _ in range(8):
        async with Plane(tmp_path) as plane:
            retry = Retry(max_attempts=2, backoff="none")
            array = array or await submit(plane, numbers(tasks), retry=retry)
            await worker.join(plane.worker_socket)
            for _ in range(chance.randrange(60)):
                if worker.held and chance.random() < 0.8:
                    index = chance.choice(list(worker.held))
                    worker.end(index, Reason.EXIT_CODE if index in fails else None)
                elif chance.random() < 0.3:
                    first = chance.randrange(tasks)
                    chosen = set(range(first, min(first + chance.randrange(1, 9), tasks)))
                    await plane.control.arrays.cancel(ALICE, array, ",".join(map(str, chosen)))
                    gone |= chosen
                elif not worker.held and (await progress(plane, array)).pending:
                    await worker.listen()
            await worker.close()
    async with Plane(tmp_path) as plane:
        async with working(plane, worker, ends=lambda index: Reason.EXIT_CODE if index in fails else None):
            await ended(plane, array)
        seen = await progress(plane, array)
        assert states(seen)[:2] == (0, 0)
        assert seen.failed + seen.cancelled >= len(fails - gone)
        kept = {row[0] for row in scan(plane, keys.TASKS_ACTIVE)}
        assert not kept
        found: dict[int, JobState] = {}
        for index in range(tasks):
            job = (await plane.control.get(ALICE, task_id(array, index))).job
            assert job.state.is_final
            found[index] = job.state
            if index not in gone:
                assert (job.state is JobState.FAILED) == (index in fails)
                assert job.attempt == (2 if index in fails else 1)
        assert seen.completed == list(found.values()).count(JobState.COMPLETED)


def scan(plane: Plane, prefix: bytes) -> list[Any]:
    rows, more = plane.store.range(prefix, prefix_end(prefix), limit=10_000)
    assert not more
    return rows


# --- cancelling -------------------------------------------------------------------------------------------------------


@scenario
async def test_a_cancelled_array_ends_when_what_runs_has_ended(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(1_000))
        worker = await TaskPeer(slots=3).join(plane.worker_socket)
        await worker.take(3)
        worker.end(0)
        await worker.take(1)
        outcome = await plane.control.cancel(ALICE, array)
        assert outcome.outcome == "requested"
        assert outcome.tasks is not None
        assert (outcome.tasks.cancelled, outcome.tasks.requested, outcome.tasks.already_final) == (996, 3, 1)
        again = await plane.control.cancel(ALICE, array)
        assert again.tasks is not None
        assert (again.outcome, again.tasks.cancelled, again.tasks.requested) == ("requested", 0, 3)
        while len(worker.cancelled) < 3:
            await worker.listen()
        assert states(await progress(plane, array)) == (0, 3, 1, 0, 996)
        worker.end(1)  # it was done before it heard of it
        await until(plane, array, lambda seen: seen.completed == 2)
        await worker.close()
    async with Plane(tmp_path) as plane:
        await worker.join(plane.worker_socket)
        for index in (2, 3):
            worker.end(index, Reason.CANCELLED)
        job = await ended(plane, array)
        assert (job.state, job.reason) == (JobState.FAILED, Reason.CANCELLED)
        assert states(await progress(plane, array)) == (0, 0, 2, 0, 998)
        final = await plane.control.cancel(ALICE, array)
        assert final.tasks is not None
        assert (final.outcome, final.tasks.already_final) == ("already_final", 1_000)


@scenario
async def test_a_cancellation_in_which_the_node_goes_is_carried_out_after_its_restart(tmp_path: Path) -> None:
    plane = await Plane(tmp_path).start()
    array = await submit(plane, numbers(1_000))
    await until(plane, array, lambda seen: seen.state is JobState.RUNNING)
    # Given that the wish is stored and nothing else of it, as the node is gone before it can see to the tasks
    asking = asyncio.ensure_future(plane.control.cancel(ALICE, array))
    while not (await plane.control.get(ALICE, array)).job.cancel_requested:
        await asyncio.sleep(0)
    await plane.stop()
    await asyncio.gather(asking, return_exceptions=True)
    async with Plane(tmp_path) as plane:
        job = await ended(plane, array)
        assert (job.reason, states(await progress(plane, array))) == (Reason.CANCELLED, (0, 0, 0, 0, 1_000))


@scenario
async def test_tasks_are_cancelled_by_index_wherever_they_are(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(1_000))
        worker = await TaskPeer(slots=2).join(plane.worker_socket)
        await worker.take(2)
        worker.end(0)
        await worker.take(1)
        # One that has ended, two that run, some that wait as jobs, some that are none yet
        outcome = await plane.control.arrays.cancel(ALICE, array, "0-9,990-999")
        assert outcome.tasks is not None
        assert (outcome.outcome, outcome.tasks.cancelled, outcome.tasks.requested) == ("requested", 17, 2)
        assert outcome.tasks.already_final == 1
        again = await plane.control.arrays.cancel(ALICE, array, "3-9,990-999")
        assert again.tasks is not None
        assert (again.outcome, again.tasks.already_final) == ("already_final", 17)
        for wrong in ("1000", "5-1000"):
            with pytest.raises(InvalidRequest) as refused:
                await plane.control.arrays.cancel(ALICE, array, wrong)
            assert refused.value.field == "$.indices"
        job = (await plane.control.get(ALICE, task_id(array, 995))).job
        assert (job.state, job.reason, job.index) == (JobState.FAILED, Reason.CANCELLED, 995)
        async with asyncio.timeout(10):
            while len(worker.cancelled) < 2:
                await worker.listen()
        for index in (1, 2):
            worker.end(index, Reason.CANCELLED)
        await worker.close()
        async with working(plane, TaskPeer(slots=50)) as other:
            job = await ended(plane, array)
        assert (job.reason, job.message) == (Reason.CANCELLED, "19 of 1,000 tasks were cancelled")
        assert sorted(map(index_of, other.given)) == list(range(10, 990))
        assert states(await progress(plane, array)) == (0, 0, 981, 0, 19)


@scenario
async def test_an_array_ends_when_its_last_tasks_are_cancelled_before_it_begins(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(10), not_before_ms=1 << 42)
        assert (await plane.control.arrays.cancel(ALICE, array, "0-4")).outcome == "cancelled"
        assert (await plane.control.arrays.cancel(ALICE, array, "4-9")).outcome == "cancelled"
        job = await ended(plane, array)
        assert (job.reason, job.message) == (Reason.CANCELLED, "10 of 10 tasks were cancelled")


@scenario
async def test_a_task_that_is_no_job_yet_can_be_read_waited_for_and_cancelled(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(1_000))
        far, further = task_id(array, 900), task_id(array, 901)
        waiting = [asyncio.ensure_future(plane.control.wait(ALICE, task, 20)) for task in (far, further)]
        assert (await plane.control.get(ALICE, far)).job.state is JobState.PENDING
        with pytest.raises(NotFinished):
            await plane.control.result(ALICE, far, None)
        with pytest.raises(NotFound):
            await plane.control.get(ALICE, task_id(array, 1_000))
        with pytest.raises(Forbidden):
            await plane.control.get(BOB, far)
        outcome = await plane.control.cancel(ALICE, far)
        assert (outcome.outcome, outcome.job.id, outcome.job.state) == ("cancelled", far, JobState.FAILED)
        assert (await waiting[0]).reason is Reason.CANCELLED
        assert (await plane.control.cancel(ALICE, far)).outcome == "already_final"
        assert (await plane.control.result(ALICE, far, None)).reason is Reason.CANCELLED
        await plane.control.cancel(ALICE, array)
        assert (await waiting[1]).reason is Reason.CANCELLED


# --- failing, and trying again ----------------------------------------------------------------------------------------


@scenario
async def test_what_failed_is_repeated_by_a_new_array_with_its_index_and_item(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(300)]
    broken = {17, 18, 19, 250}
    async with Plane(tmp_path) as plane:
        array = await submit(plane, ArraySpec(lines=lines), labels={"a": "b"}, idempotency_key="first")
        for some in (ArrayRetry(), ArrayRetry(indices="17")):
            with pytest.raises(NotRedrivable):
                await plane.control.arrays.retry(ALICE, array, some)
        async with working(plane, TaskPeer(), ends=lambda index: Reason.EXIT_CODE if index in broken else None):
            job = await ended(plane, array)
        assert (job.state, job.reason) == (JobState.FAILED, Reason.EXIT_CODE)
        assert job.message == "4 of 300 tasks failed, first index 17: exit_code"
        assert (await progress(plane, array)).failed_indices == "17-19,250"
        with pytest.raises(InvalidRequest):
            await plane.control.arrays.retry(ALICE, array, ArrayRetry(indices="16-17"))
        with pytest.raises(NotRedrivable):
            await plane.control.arrays.retry(ALICE, array, ArrayRetry(only="cancelled"))
        # When it is repeated, whichever way that is asked for, then as one array
        again = await plane.control.arrays.retry(ALICE, array, ArrayRetry())
        twice = await plane.control.dead_letters.redrive(ALICE, array)
        assert (again.created, twice.created, twice.job.id) == (True, False, again.job.id)
        assert (again.job.redrive_of, again.job.tasks, again.job.labels) == (array, 4, {"a": "b"})
        assert (await plane.control.get(ALICE, array)).job.redriven_as == again.job.id
        # And some tasks of it as others, one for each key
        part = ArrayRetry(indices="17-18", idempotency_key="part")
        some, same = [await plane.control.arrays.retry(ALICE, array, part) for _ in range(2)]
        assert (some.created, same.created, same.job.id) == (True, False, some.job.id)
        with pytest.raises(IdempotencyConflict):
            await plane.control.arrays.retry(ALICE, array, ArrayRetry(indices="17", idempotency_key="part"))
        await plane.control.cancel(ALICE, some.job.id)
        with pytest.raises(NotRedrivable):
            await plane.control.dead_letters.redrive(ALICE, task_id(array, 17))
    async with Plane(tmp_path) as plane:
        worker = TaskPeer()
        async with working(plane, worker, ends=lambda index: Reason.OOM if index == 250 else None):
            job = await ended(plane, again.job.id)
        assert (job.reason, job.message) == (Reason.OOM, "1 of 4 tasks failed, first index 250: oom")
        assert {index_of(item): item.env["JOBS_ARRAY_ITEM"] for item in worker.given} == {
            index: lines[index] for index in broken
        }
        assert {item.env["JOBS_ARRAY_COUNT"] for item in worker.given} == {"300"}
        with pytest.raises(NotFound):
            await plane.control.get(ALICE, task_id(again.job.id, 16))
        # Then what failed once more is repeated once more
        last = await plane.control.arrays.retry(ALICE, again.job.id, ArrayRetry(indices="250"))
        async with working(plane, worker := TaskPeer("other")):
            assert (await ended(plane, last.job.id)).state is JobState.COMPLETED
        assert [item.env["JOBS_ARRAY_ITEM"] for item in worker.given] == ["line 250"]


@scenario
async def test_cancelled_tasks_are_repeated_also_those_that_never_were_jobs(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, ArraySpec(range=ArrayRange(start=10, stop=5_010, step=5)))
        await plane.control.arrays.cancel(ALICE, array, "400-499")
        await plane.control.cancel(ALICE, array)
        await ended(plane, array)
        again = await plane.control.arrays.retry(ALICE, array, ArrayRetry(only="cancelled"))
        assert again.job.tasks == 1_000
        part = await plane.control.arrays.retry(ALICE, array, ArrayRetry(indices="3,999"))
        await plane.control.cancel(ALICE, again.job.id)
        async with working(plane, worker := TaskPeer()):
            assert (await ended(plane, part.job.id)).state is JobState.COMPLETED
        assert {index_of(item): item.env["JOBS_ARRAY_ITEM"] for item in worker.given} == {3: "25", 999: "5005"}


# --- what arrays share with other jobs --------------------------------------------------------------------------------


@scenario
async def test_jobs_wait_for_arrays_and_arrays_for_jobs(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        before, array, after, spite = (
            submitted.job.id
            for submitted in await plane.control.submit(
                ALICE,
                [
                    shell("a", ref="before"),
                    shell("b", ref="array", array=numbers(3), depends_on=["before"]),
                    shell("c", depends_on=["array"]),
                    shell("d", depends_on=["array"], on_failure="run"),
                ],
            )
        )
        worker = await TaskPeer().connect(plane.worker_socket)
        await worker.register(plane.worker_socket)
        item = await worker.assigned()
        assert item.job == before
        assert states(await progress(plane, array)) == (3, 0, 0, 0, 0)
        worker.finish(item)
        await worker.take(3)
        worker.end(0)
        worker.end(1, Reason.EXIT_CODE)
        worker.end(2)
        job = await ended(plane, after)
        assert (job.state, job.reason) == (JobState.FAILED, Reason.DEPENDENCY_FAILED)
        while not isinstance(frame := await worker.receive(), wire.Assign):
            pass
        assert [item.job for item in frame.jobs] == [spite]


@scenario
async def test_a_paused_queue_splits_nothing_off_until_it_is_resumed(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await plane.control.queues.pause(ADMIN, "batch", paused=True)
        array = await submit(plane, numbers(1_000), queue="batch")
        worker = await TaskPeer().join(plane.worker_socket)
        other = await submit(plane, numbers(1))
        assert [item.job for item in await worker.take(1)] == [task_id(other, 0)]
        worker.end(0)
        await ended(plane, other)
        assert (await plane.control.get(ALICE, array)).job.state is JobState.PENDING
        await plane.control.queues.pause(ADMIN, "batch", paused=False)
        assert [index_of(item) for item in await worker.take(4)] == [0, 1, 2, 3]


@scenario
async def test_an_array_begins_when_its_time_comes_and_no_task_after_its_deadline(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        worker = await TaskPeer(slots=2).join(plane.worker_socket)
        now_ms = time.time_ns() // 1_000_000
        array = await submit(plane, numbers(1_000), not_before_ms=now_ms + 200, deadline_ms=now_ms + 1_500)
        assert (await plane.control.get(ALICE, array)).job.state is JobState.PENDING
        await worker.take(2)
        assert time.time_ns() // 1_000_000 >= now_ms + 200
        seen = await until(plane, array, lambda seen: seen.pending == 0)
        assert states(seen) == (0, 2, 0, 998, 0)
        assert seen.failed_indices == "2-999"
        assert (await plane.control.get(ALICE, task_id(array, 999))).job.reason is Reason.DEADLINE
        worker.end(0)
        worker.end(1)
        job = await ended(plane, array)
        assert (job.reason, job.message) == (Reason.DEADLINE, "998 of 1,000 tasks failed, first index 2: deadline")
        again = await plane.control.arrays.retry(ALICE, array, ArrayRetry())
        assert again.job.tasks == 998


@scenario
async def test_the_list_shows_arrays_and_their_tasks_only_when_asked(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        made = []
        for number in range(30):
            made.append(await submit(plane, numbers(40)))
            if number % 3 == 0:
                (plain,) = await plane.control.submit(ALICE, [shell("x")])
                made.append(plain.job.id)
        await until(plane, made[-1], lambda seen: seen.state is JobState.RUNNING)
        for newest_first, expected in ((False, made), (True, made[::-1])):
            for limit in (1, 7, 1_000):
                assert await listed(plane, ANY, limit, newest_first) == expected
        tasks = [task_id(made[2], index) for index in range(40)]
        of_one = JobFilter(array=made[2])
        assert await listed(plane, of_one, 7, False) == tasks
        assert await listed(plane, of_one, 7, True) == tasks[::-1]
        assert await listed(plane, JobFilter(array=made[2], indices=(5, 8)), 3, False) == tasks[5:9]
        assert await listed(plane, JobFilter(array=made[2], states=(JobState.FAILED,)), 3, False) == []


async def listed(plane: Plane, where: JobFilter, limit: int, newest_first: bool) -> list[JobId]:
    found: list[JobId] = []
    cursor: str | None = None
    while True:
        page = await plane.control.list_jobs(ALICE, where, limit=limit, cursor=cursor, newest_first=newest_first)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return found


@scenario
async def test_watches_see_arrays_and_tasks_only_of_the_one_that_is_asked_for(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        control = plane.control
        everything = control.watch_jobs(ALICE, ANY, after_revision=plane.store.revision, job=None)
        assert isinstance(await anext(everything), int)
        array = await submit(plane, numbers(2))
        own = control.watch_jobs(ALICE, ANY, after_revision=0, job=array)
        tasks = control.watch_jobs(ALICE, JobFilter(array=array), after_revision=0, job=None)
        one = control.watch_jobs(ALICE, ANY, after_revision=0, job=task_id(array, 1))
        async with working(plane, TaskPeer()):
            await ended(plane, array)
        for events in (everything, own):
            seen = [event async for event in taken(events, 3)]
            assert [event.job.id for event in seen] == [array] * 3
            assert [event.job.state.value for event in seen] == ["pending", "running", "completed"]
        seen = [event async for event in taken(tasks, 6)]
        assert {event.job.id for event in seen} == {task_id(array, 0), task_id(array, 1)}
        seen = [event async for event in taken(one, 3)]
        assert {event.job.id for event in seen} == {task_id(array, 1)}


async def taken(events: AsyncIterator[Any], limit: int) -> AsyncIterator[Any]:
    """Yield so many events, what only tells of a revision left out."""
    async with asyncio.timeout(10):
        async for event in events:
            if not isinstance(event, int):
                yield event
                limit -= 1
                if limit == 0:
                    return


@scenario
async def test_progress_is_followed_to_the_end_in_few_words(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(2_000))
        followed = plane.control.arrays.follow(ALICE, array)
        first = await anext(followed)
        assert first.completed == 0
        began = time.monotonic()
        async with working(plane, TaskPeer(slots=100)):
            async with asyncio.timeout(20):
                seen = [first, *[view async for view in followed]]
        assert (seen[-1].state, seen[-1].percent) == (JobState.COMPLETED, 100)
        assert all(earlier.percent <= later.percent for earlier, later in pairwise(seen))
        assert len(seen) <= time.monotonic() - began + 3


@scenario
async def test_only_the_owner_and_admins_see_and_change_an_array(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        array = await submit(plane, numbers(5))
        (plain,) = await plane.control.submit(ALICE, [shell("x")])
        arrays = plane.control.arrays
        for call in (
            arrays.view(BOB, array),
            arrays.cancel(BOB, array, "1"),
            arrays.retry(BOB, array, ArrayRetry()),
            anext(arrays.follow(BOB, array)),
            plane.control.cancel(BOB, task_id(array, 4)),
        ):
            with pytest.raises(Forbidden):
                await call
        for call in (
            arrays.view(ALICE, plain.job.id),
            arrays.cancel(ALICE, plain.job.id, "1"),
            arrays.retry(ALICE, plain.job.id, ArrayRetry()),
        ):
            with pytest.raises(NotFound):
                await call
        assert (await arrays.cancel(ADMIN, array, "1")).outcome == "cancelled"
        assert await listed(plane, JobFilter(array=array), 10, False) != []
        page = await plane.control.list_jobs(BOB, JobFilter(array=array), limit=10, cursor=None, newest_first=True)
        assert page.jobs == []


@scenario
async def test_an_array_counts_as_what_is_split_off_of_it(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        await plane.control.queues.put(ADMIN, "batch", QueueSettings(max_pending=1))
        array = await submit(plane, numbers(1_000), queue="batch")
        async with asyncio.timeout(10):
            while (await plane.control.queues.get(ADMIN, "batch")).pending != 200:
                await asyncio.sleep(0)
        assert states(await progress(plane, array)) == (1_000, 0, 0, 0, 0)
        await plane.control.cancel(ALICE, array)
        assert (await plane.control.queues.get(ADMIN, "batch")).pending == 0
        assert await submit(plane, numbers(1_000), queue="batch")


@scenario
async def test_an_array_goes_with_everything_of_its_tasks_and_nothing_else(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        lines = [f"line {number}" for number in range(300)]
        before = await submit(plane, ArraySpec(lines=lines))
        array = await submit(plane, ArraySpec(lines=lines))
        after = await submit(plane, ArraySpec(lines=lines))
        await plane.control.arrays.cancel(ALICE, array, "290-299")
        (child,) = await plane.control.submit(ALICE, [shell("x", depends_on=[task_id(array, 5)], on_failure="run")])
        worker = WorkerPeer(slots=8)
        await worker.register(plane.worker_socket)
        running = True
        while running:
            frame = await worker.receive()
            for item in frame.jobs if isinstance(frame, wire.Assign) else ():
                failed = item.env.get("JOBS_ARRAY_INDEX", "").endswith("7")
                worker.finish(item, reason=Reason.OOM if failed else None, segments=[(1, b"output")])
            running = plane.control.metrics()["jobs_arrays_open"][1] > 0
        await ended(plane, child.job.id)
        removal = TaskRemoval(
            plane.consensus, plane.store, plane.control._transitions, JobReferences(plane.store, lambda uid: False)
        )
        assert await removal.remove_output(array)
        assert (await plane.control.result(ALICE, task_id(array, 1), None)).stdout.text == ""
        assert await removal.remove(array)
        names = {row[0] for row in scan(plane, b"/") if array[:-5].encode() in row[0]}
        own = {keys.state(array), keys.spec(array)}
        assert {name for name in names if not name.startswith((b"/ended/", b"/dlq/", b"/audit", b"/deps/"))} == own
        for other in (before, after):
            assert states(await progress(plane, other))[2:] == (270, 30, 0)
            assert (await plane.control.result(ALICE, task_id(other, 1), None)).stdout.text == "output"
        assert (await plane.control.get(ALICE, child.job.id)).job.state is JobState.COMPLETED
