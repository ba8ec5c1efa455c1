"""Submissions: keys, limits of queues and owners, times; what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from jobs.clock import wall_ms
from jobs.errors import IdempotencyConflict, InvalidRequest, QueueClosed, QueueFull
from jobs.protocol import wire
from jobs.protocol.model import JobSubmit, OwnerSettings, QueueSettings, Submitted
from jobs.service import JobFilter
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

LATER_MS = 253_402_300_799_998


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def submit(plane: Plane, **changes: Any) -> Submitted:
    (submitted,) = await plane.control.submit(ALICE, [shell("true", **changes)])
    return submitted


async def stored(plane: Plane) -> int:
    page = await plane.control.list_jobs(ALICE, JobFilter(), limit=1000, cursor=None, newest_first=True)
    return len(page.jobs)


def test_a_unique_key_is_held_until_its_job_ends_and_by_each_owner_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            first = await submit(plane, unique_key="u")
            assert first.created
            # While it waits, and while it runs, any other submission with the key is answered with it
            again = await submit(plane, unique_key="u", priority=7)
            assert (again.created, again.job.id) == (False, first.job.id)
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            item = await worker.assigned()
            assert not (await submit(plane, unique_key="u")).created
            (others,) = await plane.control.submit(BOB, [shell("true", unique_key="u", queue="bob")])
            assert others.created
            # Also after a restart
        async with Plane(tmp_path) as plane:
            assert not (await submit(plane, unique_key="u")).created
            await worker.register(plane.worker_socket, [wire.JobRef(job=item.job, attempt=item.attempt)])
            # When it has ended, the next one is made
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            fresh = await submit(plane, unique_key="u")
            assert fresh.created
            await plane.control.cancel(ALICE, fresh.job.id)
            assert (await submit(plane, unique_key="u")).created

    run(scenario())


def test_one_of_many_submissions_at_once_gets_the_unique_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            racing = await asyncio.gather(*(submit(plane, unique_key="u", priority=n) for n in range(20)))
            assert len({one.job.id for one in racing}) == 1
            assert sum(one.created for one in racing) == 1
            # And within one request, with keys of both kinds
            jobs = [
                shell("a", idempotency_key="1", unique_key="v"),
                shell("b", idempotency_key="2", unique_key="v"),
                shell("b", idempotency_key="2", unique_key="v"),
                shell("c", unique_key="u"),
            ]
            made = await plane.control.submit(ALICE, jobs)
            assert [one.created for one in made] == [True, False, False, False]
            assert [one.job.id for one in made[1:]] == [made[0].job.id, made[0].job.id, racing[0].job.id]
            with pytest.raises(IdempotencyConflict) as caught:
                await plane.control.submit(ALICE, [shell("x"), shell("c", idempotency_key="1", unique_key="w")])
            assert caught.value.field == "$.jobs[1].idempotency_key"
            assert await stored(plane) == 2

    run(scenario())


def test_times_that_cannot_be_kept_are_refused_with_their_field(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            now_ms = wall_ms()
            for changes in (
                {"deadline_ms": now_ms - 1},
                {"deadline_ms": 0},
                {"deadline_ms": LATER_MS, "not_before_ms": LATER_MS},
                {"deadline_ms": now_ms + 60_000, "not_before_ms": LATER_MS},
            ):
                with pytest.raises(InvalidRequest) as caught:
                    await submit(plane, **changes)
                assert caught.value.field == "$.deadline_ms"
                with pytest.raises(InvalidRequest) as caught:
                    await plane.control.submit(ALICE, [shell(), shell("true", **changes)])  # type: ignore[arg-type]
                assert caught.value.field == "$.jobs[1].deadline_ms"
            assert await stored(plane) == 0
            assert (await submit(plane, not_before_ms=0)).job.ready_ms >= now_ms

    run(scenario())


def test_a_submission_made_again_after_its_deadline_is_answered_with_its_job(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            deadline_ms = wall_ms() + 300
            first = await submit(plane, idempotency_key="k", deadline_ms=deadline_ms)
            await plane.control.wait(ALICE, first.job.id, 10)
            again = await submit(plane, idempotency_key="k", deadline_ms=deadline_ms)
            assert (again.created, again.job.id) == (False, first.job.id)

    run(scenario())


def test_limits_of_queues_and_owners_hold_exactly_under_a_rush(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            queues = plane.control.queues
            await queues.put(ADMIN, "narrow", QueueSettings(max_pending=7, max_pending_per_owner=5))
            await queues.put_owner(ADMIN, ALICE.uid, OwnerSettings(max_pending=8))

            async def accepted(jobs: list[JobSubmit]) -> int:
                try:
                    return len(await plane.control.submit(ALICE, jobs))
                except QueueFull:
                    return 0

            rush = [accepted([shell("true", queue="narrow"), shell("true", queue="narrow")]) for _ in range(20)]
            assert sum(await asyncio.gather(*rush)) == 4
            assert await accepted([shell("true", queue="narrow")]) == 1
            assert await accepted([shell("true", queue="narrow")]) == 0
            # The owner's limit counts a request's queues together, and nothing of a refused request is stored
            assert await accepted([shell("true", queue=name) for name in "abcd"]) == 0
            assert await accepted([shell("true", queue=name) for name in "abc"]) == 3
            assert await stored(plane) == 8
            (bob,) = await plane.control.submit(BOB, [shell("true", queue="narrow")])
            assert bob.created

    run(scenario())


def test_a_job_that_is_there_is_the_answer_however_full_its_queue_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path, max_pending=1) as plane:
            first = await submit(plane, idempotency_key="k")
            again = await submit(plane, idempotency_key="k")
            assert (again.created, again.job.id) == (False, first.job.id)
            with pytest.raises(QueueFull):
                await submit(plane)

    run(scenario())


def test_a_closed_queue_takes_nothing_and_the_request_names_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await plane.control.queues.drain(ADMIN, "shut", draining=True)
            with pytest.raises(QueueClosed, match="'shut'"):
                await plane.control.submit(ALICE, [shell(), shell("true", queue="shut")])
            assert await stored(plane) == 0
            # A submission that was on its way when the queue closed is not accepted after that was acknowledged
            racing = asyncio.gather(
                *(plane.control.submit(ALICE, [shell("true", queue="soon")]) for _ in range(10)),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
            await plane.control.queues.drain(ADMIN, "soon", draining=True)
            accepted = await stored(plane)
            made = [one for one in await racing if not isinstance(one, BaseException)]
            assert len(made) == accepted == await stored(plane)

    run(scenario())
