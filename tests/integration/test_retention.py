"""Ended jobs go when their time is over or there are too many, with everything of them and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.control import removal, retention
from jobs.control.dependencies import children_of
from jobs.control.retention import RetentionConfig
from jobs.errors import Forbidden, Gone, InvalidRequest, LogsGone, NotFound
from jobs.jobs import on_held, on_output_gone
from jobs.protocol import wire
from jobs.protocol.ids import JobId, RequestId, task_id
from jobs.protocol.model import ArrayRange, ArrayRetry, ArraySpec, CancelMany, JobState, Reason, Retention, Schedule
from jobs.records import AuditRecord, EndedRecord
from jobs.retention import Limits, Totals
from jobs.retention import plan as decide
from jobs.service import AuditFilter, JobFilter, LogsWanted
from jobs.store import Put, Txn, prefix_end
from tests.support.api import Api, scenario
from tests.support.ended import Ender, check_whole, left_of, until, until_gone
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

UNKNOWN = JobId("01900000-0000-7000-8000-000000000000")
LONG_S = 3_600.0


def plane(directory: Path, *, audit: tuple[int, int] | None = None, gone_max: int = 1_000, **limits: object) -> Plane:
    """Return a plane that keeps so much; its times are in ms."""
    config = RetentionConfig(jobs=Limits(**limits), gone_max=gone_max)  # type: ignore[arg-type]
    if audit is not None:
        config = RetentionConfig(jobs=config.jobs, gone_max=gone_max, audit_ms=audit[0], audit_max=audit[1])
    return Plane(directory, retention=config)


async def listed(made: Plane) -> set[JobId]:
    page = await made.control.list_jobs(ADMIN, JobFilter(), limit=1_000, cursor=None, newest_first=True)
    return {job.id for job in page.jobs}


def is_bare(made: Plane, job: JobId) -> bool:
    """Tell whether nothing of a job's output is stored."""
    prefix = keys.LOG + job.encode()
    return made.store.count(prefix, prefix_end(prefix), limit=1) == 0


async def written(made: Plane, job: JobId, **wanted: object) -> bytes:
    pieces = made.control.logs(ALICE, job, LogsWanted(**wanted))  # type: ignore[arg-type]
    return b"".join([piece.data async for piece in pieces])


def test_a_job_goes_with_everything_of_it_and_is_known_to_have_been_here(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            ender = await Ender(made).start()
            retention_ = Retention(keep_s=1)
            failed = await ender.run(
                shell(idempotency_key="k", retention=retention_),
                reason=Reason.EXIT_CODE,
                segments=[(1, b"x"), (2, b"y")],
            )
            # As long as it is kept, its key is its own
            (again,) = await made.control.submit(ALICE, [shell(idempotency_key="k", retention=retention_)])
            assert again.job.id == failed.id
            await until_gone(made, failed.id)
            left = left_of(made.store, failed.id)
            assert [key for key in left if not key.startswith((b"/audit/", b"/audited/"))] == [keys.gone(failed.id)]
            for ask in (
                made.control.get(ALICE, failed.id),
                made.control.result(ALICE, failed.id, None),
                made.control.wait(ALICE, failed.id, 0),
                made.control.cancel(ALICE, failed.id),
                made.control.attempts(ALICE, failed.id),
                made.control.dead_letters.redrive(ALICE, failed.id),
                made.control.dead_letters.purge(ADMIN, failed.id),
                written(made, failed.id),
                written(made, failed.id, follow=True),
            ):
                with pytest.raises(Gone):
                    await ask
            with pytest.raises(Forbidden):
                await made.control.get(BOB, failed.id)
            with pytest.raises(NotFound):
                await made.control.get(ALICE, UNKNOWN)
            assert await listed(made) == set()
            page = await made.control.audit.page(ALICE, AuditFilter(job=failed.id), limit=10, cursor=None)
            assert [entry.action for entry in page.entries] == ["job.submit"]
            # Then the key is free
            (fresh,) = await made.control.submit(ALICE, [shell(idempotency_key="k")])
            assert fresh.created

    asyncio.run(run())


def test_each_job_goes_in_its_own_time_or_else_in_the_nodes(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, keep_ms=1_500) as made:
            ender = await Ender(made).start()
            longer = await ender.run(shell(retention=Retention(keep_s=LONG_S)))
            usual = [await ender.run(), await ender.run(segments=())]
            shorter = await ender.run(shell(retention=Retention(keep_s=0)))
            await until_gone(made, shorter.id)
            assert await listed(made) == {longer.id, *(job.id for job in usual)}
            await until_gone(made, *(job.id for job in usual))
            assert await listed(made) == {longer.id}
            check_whole(made.store)
        # A node that is told to keep less lets go of what it has
        async with plane(tmp_path, max_jobs=0) as made:
            await until_gone(made, longer.id)

    asyncio.run(run())


def test_output_may_go_before_its_job_and_is_never_empty_instead(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, logs_ms=1_000) as made:
            ender = await Ender(made).start()
            usual = await ender.run(segments=[(1, b"a" * 1_000)])
            silent = await ender.run(segments=())
            kept = await ender.run(shell(retention=Retention(logs_s=LONG_S)))
            whole = await ender.run(shell(retention=Retention(keep_s=LONG_S)))
            gone = await ender.run(shell(retention=Retention(keep_s=LONG_S, logs_s=0)))
            for job in (usual, gone):
                await until(partial(is_bare, made, job.id))
                for wanted in ({}, {"follow": True}, {"tail_lines": 3}, {"attempt": "all"}):
                    with pytest.raises(LogsGone):
                        await written(made, job.id, **wanted)
                result = await made.control.result(ALICE, job.id, None)
                assert (result.logs_gone, result.stdout.text, result.state) == (True, "", JobState.COMPLETED)
                assert result.execution is not None
                assert result.execution.stdout.stored_bytes > 0
                assert (await made.control.attempts(ALICE, job.id)).logs_gone
            # Nothing was ever written by this one, so that is the answer
            assert await written(made, silent.id) == b""
            assert await written(made, kept.id) == b"output"
            assert await written(made, whole.id) == b"output"
            size = sum(record.stored_bytes for record in check_whole(made.store).values())
            await until(lambda: made.control.metrics()["jobs_ended_bytes"][1] == size)
        async with plane(tmp_path, keep_ms=0) as made:
            await until_gone(made, usual.id, silent.id)
            # Who asked for the output for longer has the job for as long
            assert await listed(made) == {kept.id, whole.id, gone.id}

    asyncio.run(run())


def test_much_output_goes_in_bounded_transactions_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "CHUNKS", 7)

    async def run() -> None:
        async with plane(tmp_path) as made:
            ender = await Ender(made).start()
            jobs = [await ender.run(shell(retention=Retention(logs_s=1)), chunks=50) for _ in range(2)]
            # When the node stops after the first of the transactions, which says that the output is gone
            await made.control._transitions.apply(jobs[0].id, lambda record: on_output_gone(record, False))
            with pytest.raises(LogsGone):
                await written(made, jobs[0].id)
            assert not is_bare(made, jobs[0].id)
        async with plane(tmp_path) as made:
            for job in jobs:
                await until(partial(is_bare, made, job.id))
                assert made.control._transitions.read_existing(job.id).record.log_bytes == 0
            check_whole(made.store)
            more = await (await Ender(made).start()).run(shell(retention=Retention(keep_s=0)), chunks=50)
            await until_gone(made, more.id)
            check_whole(made.store)

    asyncio.run(run())


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, max_jobs=5) as made:
            ender = await Ender(made).start()
            own = [await ender.run(shell(retention=Retention(keep_s=LONG_S))) for _ in range(2)]
            jobs = [await ender.run() for _ in range(20)]
            # Those whose own time is over in an hour, before those with a week
            await until_gone(made, *(job.id for job in [*own, *jobs[:-5]]))
            assert await listed(made) == {job.id for job in jobs[-5:]}
            await until(lambda: made.control.metrics()["jobs_ended"][1] == 5)
            assert made.control.metrics()["jobs_removed_total"][1] == 17
            check_whole(made.store)

    asyncio.run(run())


def test_the_oldest_go_when_they_take_too_much(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, max_bytes=110_000) as made:
            ender = await Ender(made).start()
            jobs = [await ender.run(segments=[(1, b"x" * 30_000)]) for _ in range(6)]
            await until_gone(made, *(job.id for job in jobs[:3]))
            assert await listed(made) == {job.id for job in jobs[3:]}
            await until(lambda: 90_000 < made.control.metrics()["jobs_ended_bytes"][1] <= 110_000)

    asyncio.run(run())


def test_what_a_job_still_needs_is_kept_until_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.retention.MIN_HOLD_MS", 300)

    async def run() -> None:
        async with plane(tmp_path, keep_ms=600) as made:
            ender = await Ender(made).start()
            parent = await ender.run()
            (child,) = await made.control.submit(ALICE, [shell(depends_on=[parent.id])])
            (late,) = await made.control.submit(
                ALICE, [shell(depends_on=[parent.id], not_before_ms=wall_ms() + 3_600_000)]
            )
            assert await ender.end() == child.job.id
            await until_gone(made, child.job.id)
            held = made.control._transitions.read_existing(parent.id).record
            assert held.held_until_ms is not None
            assert await written(made, parent.id) == b"output"
            # Also over a restart, and however little may be kept
        async with plane(tmp_path, keep_ms=600, max_jobs=0) as made:
            other = await (await Ender(made).start()).run()
            await until_gone(made, other.id)
            assert await listed(made) == {parent.id, late.job.id}
            check_whole(made.store)
            # Until nothing needs it any more; then its dependencies go as well
            await made.control.cancel(ALICE, late.job.id)
            await until_gone(made, late.job.id, parent.id)
            assert children_of(made.store, parent.id, 10) == ([], False)
            left = [key for key in left_of(made.store, parent.id) if not key.startswith(b"/audit")]
            assert left == [keys.gone(parent.id)]

    asyncio.run(run())


def test_nothing_comes_to_depend_on_what_is_about_to_go(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            ender = await Ender(made).start()
            parent = await ender.run()
            # Given a submission that is on its way when the job's time is over
            racing = asyncio.gather(
                *(made.control.submit(ALICE, [shell(depends_on=[parent.id])]) for _ in range(5)), return_exceptions=True
            )
            await asyncio.sleep(0)
            made.control._retention._limits = Limits(keep_ms=0)
            heads = made.control._retention._heads()[0]
            plan = decide(heads, None, Limits(keep_ms=0), wall_ms())
            await made.control._retention._carry_out(plan.steps, wall_ms())
            accepted = [one for one in await racing if not isinstance(one, BaseException)]
            # Then either it is kept for them, or they were refused
            kept = made.store.get(keys.state(parent.id)) is not None
            assert kept == bool(accepted)
            made.control._transitions.leaving.add(parent.id)
            with pytest.raises(InvalidRequest, match="has no job"):
                await made.control.submit(ALICE, [shell(depends_on=[parent.id])])

    asyncio.run(run())


def test_an_array_goes_with_its_tasks_and_their_output(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, logs_ms=1_500) as made:
            ender = await Ender(made).start()
            usual, gone = [
                (await made.control.submit(ALICE, [shell(array=ArraySpec(range=ArrayRange(stop=4)), retention=kept)]))[
                    0
                ]
                for kept in (Retention(), Retention(keep_s=4))
            ]
            # Given arrays whose tasks wrote something, and a job that waits for a time and for one of these tasks
            tasks = [await ender.end(segments=[(1, b"task")]) for _ in range(8)]
            (needs,) = await made.control.submit(
                ALICE, [shell(depends_on=[task_id(gone.job.id, 2)], not_before_ms=wall_ms() + 3_600_000)]
            )
            assert await written(made, tasks[0]) == b"task"
            # Then the output of all tasks goes at once, and is told to be gone
            await until(lambda: made.control._transitions.read_existing(usual.job.id).record.log_bytes == 0)
            for task in tasks[:4]:
                with pytest.raises(LogsGone):
                    await written(made, task)
                assert (await made.control.result(ALICE, task, None)).logs_gone
                assert (await made.control.attempts(ALICE, task)).logs_gone
                assert (await made.control.get(ALICE, task)).job.state is JobState.COMPLETED
            assert await written(made, tasks[7]) == b"task"
            # And an array is kept while a task of it is needed, then goes with all of them
            await until(lambda: made.control._transitions.read_existing(gone.job.id).record.held_until_ms is not None)
            await made.control.cancel(ALICE, needs.job.id)
        async with plane(tmp_path, max_jobs=0) as made:
            # The node may keep nothing, but looks at what was held only later
            await until_gone(made, usual.job.id)
            stored = made.control._transitions.read_existing(gone.job.id)
            assert stored.record.held_until_ms is not None
            await made.control._transitions.apply(gone.job.id, lambda record: on_held(record, None))
            await until_gone(made, gone.job.id)
            for job in (usual.job.id, gone.job.id, *tasks):
                with pytest.raises(Gone):
                    await made.control.get(ALICE, job)
            left = {key for task in tasks for key in left_of(made.store, task)}
            assert all(key.startswith((b"/audit", b"/gone/")) for key in left), left
            await until(lambda: made.control._retention.totals.known == Totals(0, 0))
            assert check_whole(made.store) == {}

    asyncio.run(run())


def test_what_a_request_made_takes_the_key_that_it_was_given_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        callers = [replace(ALICE, request_id=RequestId(bytes([number]) * 16)) for number in range(3)]
        async with plane(tmp_path) as made:
            await made.control.schedules.put(ALICE, "s", Schedule(job=shell(), every_s=86_400), None)
            (array,) = await made.control.submit(callers[0], [shell(array=ArraySpec(range=ArrayRange(stop=4)))])
            await made.control.cancel(ALICE, array.job.id)
            await made.control.arrays.retry(ALICE, array.job.id, ArrayRetry(indices="0", idempotency_key="given"))
            await made.control.arrays.retry(callers[1], array.job.id, ArrayRetry(indices="1"))
            await made.control.schedules.trigger(callers[2], "s")
            assert made.store.count(keys.IDEMPOTENCY, prefix_end(keys.IDEMPOTENCY), limit=9) == 4
            await made.control.cancel_many(ALICE, CancelMany(all=True))
        async with plane(tmp_path, max_jobs=0) as made:
            await until(lambda: made.store.count(keys.STATE, prefix_end(keys.STATE), limit=1) == 0)
            assert check_whole(made.store) == {}

    asyncio.run(run())


def test_a_job_that_cannot_be_deleted_does_not_keep_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            ender = await Ender(made).start()
            broken, *others = [await ender.run() for _ in range(3)]
            # Given a record that this build cannot read, and a place in a list that belongs to no job
            stray = Put(keys.ended(keys.ENDED_BARE, wall_ms(), UNKNOWN), records.encode(EndedRecord(5)))
            await made.consensus.propose(Txn(then=(Put(keys.state(broken.id), b"\xff"), stray)))
        async with plane(tmp_path, keep_ms=0) as made:
            await until_gone(made, *(job.id for job in others))
            await until(lambda: made.store.get(stray.key) is None)
            assert made.store.get(keys.state(broken.id)) is not None
            await until(lambda: "an ended job cannot be deleted" in caplog.text)
            assert "an ended job is listed that is not there" in caplog.text

    asyncio.run(run())


def test_a_late_report_of_a_job_that_is_gone_is_not_sent_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            worker = WorkerPeer()
            await worker.register(made.worker_socket)
            (job,) = await made.control.submit(ALICE, [shell(retention=Retention(keep_s=0))])
            item = await worker.assigned()
            worker.finish(item)
            assert (await worker.expect(wire.FinishedAck)).accepted
            await until_gone(made, job.job.id)
            worker.finish(item)
            assert not (await worker.expect(wire.FinishedAck)).accepted
            worker.output(item, 5, (1, b"late"))
            await worker.expect(wire.Fence)
            assert left_of(made.store, job.job.id)
            check_whole(made.store)

    asyncio.run(run())


def test_a_clock_that_jumps_ahead_does_not_take_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            ender = await Ender(made).start()
            first, second = await ender.run(), await ender.run()
            real = retention.wall_ms
            with caplog.at_level(logging.WARNING):
                monkeypatch.setattr(retention, "wall_ms", lambda: real() + 365 * 86_400_000)
                made.control._retention._wake(0)
                await until(lambda: "the clock jumped ahead" in caplog.text)
            assert await listed(made) == {first.id, second.id}
            assert made.control.metrics()["jobs_retention_behind_seconds"][1] > 86_400
            # And when it has been put right, all is as before
            monkeypatch.setattr(retention, "wall_ms", real)
            made.control._retention._wake(0)
            await until(lambda: made.control._retention.behind_ms < 1_000)
            assert await listed(made) == {first.id, second.id}

    asyncio.run(run())


def test_the_audit_trail_is_kept_by_age_and_by_number(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, audit=(60_000, 400)) as made:
            old = [
                Put(keys.audit(1_000, n), records.encode(AuditRecord(at_ms=1, uid=0, action="x", subject="y")))
                for n in range(300)
            ]
            await made.consensus.propose(Txn(then=tuple(old)))
            made.control._retention._wake(0)
            await until(lambda: made.store.get(old[-1].key) is None)
            for _ in range(600):
                (job,) = await made.control.submit(ALICE, [shell()])
                await made.control.cancel(ALICE, job.job.id)
            made.control._retention._wake(0)
            count = lambda: made.store.count(keys.AUDIT, keys.AUDIT + b"9", limit=10_000)  # noqa: E731
            await until(lambda: count() <= 400)
            assert count() >= 300
            # What stands under jobs goes with the entries
            under = {
                keys.audit_of(key) for key, *_ in made.store.range(keys.AUDITED, keys.AUDITED + b"~", limit=5_000)[0]
            }
            assert all(made.store.get(key) is not None for key in under)
            newest = await made.control.audit.page(ALICE, AuditFilter(), limit=1, cursor=None)
            assert newest.entries[0].subject == job.job.id

    asyncio.run(run())


def test_it_is_known_of_a_bounded_number_of_jobs_that_they_were_here(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path, gone_max=100, max_jobs=0) as made:
            made_jobs = []
            for _ in range(3):
                lot = await made.control.submit(ALICE, [shell() for _ in range(80)])
                await asyncio.gather(*(made.control.cancel(ALICE, one.job.id) for one in lot))
                made_jobs += [one.job.id for one in lot]
            await until_gone(made, *made_jobs)
            await until(lambda: made.store.count(keys.GONE, keys.GONE + b"~", limit=1_000) <= 100)
            with pytest.raises(NotFound):
                await made.control.get(ALICE, made_jobs[0])
            with pytest.raises(Gone):
                await made.control.get(ALICE, made_jobs[-1])

    asyncio.run(run())


@asynccontextmanager
async def counting(directory: Path, **limits: object) -> AsyncIterator[Plane]:
    async with plane(directory, **limits) as made:
        await until(lambda: made.control._retention.totals.known is not None)
        yield made


def test_what_is_kept_is_counted_alike_before_and_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with counting(tmp_path) as made:
            ender = await Ender(made).start()
            for number in range(30):
                keep = (Retention(keep_s=0), Retention(logs_s=0), Retention())[number % 3]
                await ender.run(shell(retention=keep), segments=[(1, b"x" * number)])
            lot = await made.control.submit(ALICE, [shell(not_before_ms=wall_ms() + 60_000) for _ in range(50)])
            await asyncio.gather(*(made.control.cancel(ALICE, one.job.id) for one in lot))
            await until(lambda: made.control._retention.removal.jobs_total == 10)
            await until(lambda: made.control._retention.removal.outputs_total == 10)
            before = made.control._retention.totals.known
        async with counting(tmp_path) as made:
            assert made.control._retention.totals.known == before
            found = check_whole(made.store)
            assert before is not None
            assert before.jobs == len(found) == 70
            assert before.bytes == sum(record.stored_bytes for record in found.values())

    asyncio.run(run())


def test_counting_goes_on_beside_the_work_and_comes_out_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.control.ended.STEP_ROWS", 1)

    async def run() -> None:
        async with plane(tmp_path) as made:
            lot = await made.control.submit(ALICE, [shell() for _ in range(100)])
            await asyncio.gather(*(made.control.cancel(ALICE, one.job.id) for one in lot))
        async with plane(tmp_path) as made:
            # Given changes, and compacted history, while it is counted
            assert made.control._retention.totals.known is None
            for one in (await made.control.submit(ALICE, [shell() for _ in range(20)]))[:10]:
                await made.control.cancel(ALICE, one.job.id)
            await until(lambda: made.control._retention.totals.known is not None)
            known = made.control._retention.totals.known
            ended = [record for record in check_whole(made.store).values() if record.state.is_final]
            assert known is not None
            assert (known.jobs, known.bytes) == (110, sum(record.stored_bytes for record in ended))

    asyncio.run(run())


def test_a_store_full_of_jobs_to_go_is_emptied_and_all_is_whole(tmp_path: Path) -> None:
    async def run() -> None:
        async with plane(tmp_path) as made:
            for number in range(5):
                lot = await made.control.submit(
                    ALICE,
                    [shell(idempotency_key=f"{number}-{n}", not_before_ms=wall_ms() + 3_600_000) for n in range(100)],
                )
                await asyncio.gather(*(made.control.cancel(ALICE, one.job.id) for one in lot))
        async with plane(tmp_path, keep_ms=0) as made:
            await until(lambda: made.control._retention.removal.jobs_total > 50)
        # Stopped in the middle
        async with plane(tmp_path, keep_ms=0) as made:
            check_whole(made.store)
            await until(lambda: made.store.count(keys.STATE, keys.STATE + b"~", limit=1) == 0)
            assert check_whole(made.store) == {}
            await until(lambda: made.control._retention.totals.known == Totals(0, 0))

    asyncio.run(run())


@scenario(plane={"retention": RetentionConfig(jobs=Limits(max_jobs=0))})
async def test_the_api_says_gone(api: Api) -> None:
    job = await api.submit()
    await api.ask("POST", f"/v1/jobs/{job}/cancel")
    await until_gone(api.plane, JobId(job))
    for target in (
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job}/logs",
        f"/v1/jobs/{job}/logs?follow=true",
        f"/v1/jobs/{job}/watch",
    ):
        (await api.ask("GET", target)).problem(410, "gone")
    (await api.ask("GET", f"/v1/jobs/{UNKNOWN}")).problem(404, "not_found")
    wrong = {"type": "shell", "payload": {"argv": ["true"]}, "retention": {"keep_s": 1, "logs_s": 2}}
    assert (await api.ask("POST", "/v1/jobs", wrong)).problem(400, "invalid_request")["field"] == "$.retention.logs_s"
