"""The control plane over a real log and store, with workers that do exactly what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from jobs.errors import Forbidden, IdempotencyConflict, InvalidRequest, NotFinished, NotFound, QueueFull, WorkerStopping
from jobs.protocol import wire
from jobs.protocol.ids import Attempt, JobId, RequestId
from jobs.protocol.model import BATCH_JOBS, JobState, JobSubmit, JobView, Reason, Requires, Retry, Stream
from jobs.service import JobFilter, LogPiece, LogPosition, LogsWanted
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

UNKNOWN = JobId("01900000-0000-7000-8000-000000000000")
ANY = JobFilter()


def run(scenario: object) -> None:
    asyncio.run(scenario)  # type: ignore[arg-type]


async def submit(plane: Plane, **changes: object) -> JobView:
    (submitted,) = await plane.control.submit(ALICE, [shell("echo", "hello", **changes)])
    return submitted.job


async def final(plane: Plane, job: JobId) -> JobView:
    async with asyncio.timeout(10):
        return await plane.control.wait(ADMIN, job, 10)


async def collect(pieces: AsyncIterator[LogPiece]) -> bytes:
    return b"".join([piece.data async for piece in pieces])


def test_a_job_is_stored_assigned_run_and_its_result_kept_over_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            assert isinstance(await worker.register(plane.worker_socket), wire.Registered)
            job = await submit(plane)
            item = await worker.assigned()
            assert (item.job, item.attempt, item.owner) == (job.id, 1, ALICE.uid)
            assert b'"argv":["echo","hello"]' in item.payload
            with pytest.raises(NotFinished):
                await plane.control.result(ALICE, job.id, None)
            worker.finish(item, segments=[(1, b"hello\n"), (2, b"\xff")])
            ack = await worker.expect(wire.FinishedAck)
            assert ack.accepted
            assert (await final(plane, job.id)).state is JobState.COMPLETED
        async with Plane(tmp_path) as plane:
            result = await plane.control.result(ALICE, job.id, None)
            assert (result.stdout.text, result.stderr.base64) == ("hello\n", "/w==")
            assert result.execution is not None
            assert (result.execution.exit_code, result.execution.worker) == (0, "shell-0")

    run(scenario())


def test_busy_workers_leave_jobs_queued_and_a_freed_slot_is_refilled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer(slots=1)
            await worker.register(plane.worker_socket)
            jobs = [await submit(plane, priority=priority) for priority in (0, 5, 0)]
            order = []
            for _ in jobs:
                item = await worker.assigned()
                order.append(item.job)
                states = [(await plane.control.get(ALICE, job.id)).job.state for job in jobs]
                assert states.count(JobState.RUNNING) == 1
                worker.finish(item)
                await worker.expect(wire.FinishedAck)
            assert order == [jobs[0].id, jobs[1].id, jobs[2].id]

    run(scenario())


def test_jobs_go_only_to_workers_that_have_what_they_require(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            plain, special = WorkerPeer("plain"), WorkerPeer("special")
            special.labels = {"zone": "a"}
            await plain.register(plane.worker_socket)
            picky = await submit(plane, requires=Requires(labels={"zone": "a"}))
            easy = await submit(plane)
            assert (await plain.assigned()).job == easy.id
            assert (await plane.control.get(ALICE, picky.id)).job.state is JobState.PENDING
            await special.register(plane.worker_socket)
            assert (await special.assigned()).job == picky.id

    run(scenario())


def test_a_late_report_is_refused_and_the_result_recorded_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            old = WorkerPeer()
            await old.register(plane.worker_socket)
            job = await submit(plane, retry=Retry(max_attempts=2, delay_s=0))
            first = await old.assigned()
            # When another life of the worker registers, the first one is told to go, and its attempt is over
            new = WorkerPeer()
            await new.register(plane.worker_socket)
            assert (await old.expect(wire.Refused)).code == "superseded"
            second = await new.assigned()
            assert (second.job, second.attempt) == (job.id, 2)
            # Then a report of the old attempt changes nothing, from whoever it comes
            new.finish(first, segments=[(1, b"stale")])
            assert not (await new.expect(wire.FinishedAck)).accepted
            new.finish(second, segments=[(1, b"fresh")])
            assert (await new.expect(wire.FinishedAck)).accepted
            new.finish(second, segments=[(1, b"twice")])
            assert not (await new.expect(wire.FinishedAck)).accepted
            result = await plane.control.result(ALICE, job.id, None)
            assert (result.state, result.stdout.text) == (JobState.COMPLETED, "fresh")
            lost = await plane.control.result(ALICE, job.id, Attempt(1))
            assert (lost.state, lost.reason, lost.execution) == (JobState.FAILED, Reason.WORKER_LOST, None)

    run(scenario())


def test_a_worker_that_comes_back_keeps_its_job_and_is_told_what_it_missed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer(slots=2)
            await worker.register(plane.worker_socket)
            kept, cancelled = await submit(plane), await submit(plane)
            items = {item.job: item for item in [await worker.assigned(), await worker.assigned()]}
            await worker.close()
            outcome = await plane.control.cancel(ALICE, cancelled.id)
            assert outcome.outcome == "requested"
            # When the node is restarted as well
        async with Plane(tmp_path) as plane:
            ghost = wire.JobRef(job=UNKNOWN, attempt=Attempt(1))
            running = [wire.JobRef(job=item.job, attempt=item.attempt) for item in items.values()]
            answer = await worker.register(plane.worker_socket, [*running, ghost])
            assert isinstance(answer, wire.Registered)
            assert answer.fenced == [ghost]
            assert (await worker.expect(wire.Cancel)).job == cancelled.id
            worker.finish(items[kept.id])
            assert (await worker.expect(wire.FinishedAck)).accepted
            worker.finish(items[cancelled.id], reason=Reason.CANCELLED, exit_code=None)
            assert (await worker.expect(wire.FinishedAck)).accepted
            assert (await final(plane, kept.id)).state is JobState.COMPLETED
            assert (await final(plane, cancelled.id)).reason is Reason.CANCELLED

    run(scenario())


def test_an_assignment_that_never_arrived_is_sent_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            job = await submit(plane)
            await worker.assigned()
            await worker.close()
            await worker.register(plane.worker_socket)
            again = await worker.assigned()
            assert (again.job, again.attempt) == (job.id, 1)

    run(scenario())


def test_a_worker_whose_lease_runs_out_is_lost_and_its_job_tried_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path, worker_lease_s=0.3) as plane:
            silent, other = WorkerPeer("silent"), WorkerPeer("other")
            await silent.register(plane.worker_socket)
            once = await submit(plane)
            await silent.assigned()
            ended = await final(plane, once.id)
            assert (ended.state, ended.reason) == (JobState.FAILED, Reason.WORKER_LOST)
            assert (await silent.expect(wire.Refused)).code == "superseded"
            assert await plane.control.workers(ADMIN) == []
            twice = await submit(plane, retry=Retry(max_attempts=2, delay_s=0.01))
            await silent.register(plane.worker_socket)
            assert (await silent.assigned()).attempt == 1
            assert (await silent.expect(wire.Refused)).code == "superseded"
            await other.register(plane.worker_socket)
            item = await other.assigned()
            assert (item.job, item.attempt) == (twice.id, 2)

    run(scenario())


def test_a_node_that_stood_still_does_not_lose_its_workers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path, worker_lease_s=0.6) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            worker.send(wire.Heartbeat())
            time.sleep(1.5)  # what is tested: nothing runs for longer than the lease, the sign of life unread
            job = await submit(plane)
            assert (await worker.assigned()).job == job.id
            assert len(await plane.control.workers(ADMIN)) == 1

    run(scenario())


def test_cancelling_waiting_running_and_ended_jobs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            running, waiting = await submit(plane), await submit(plane)
            item = await worker.assigned()
            assert (await plane.control.cancel(ALICE, waiting.id)).outcome == "cancelled"
            assert (await plane.control.cancel(ALICE, waiting.id)).outcome == "already_final"
            result = await plane.control.result(ALICE, waiting.id, None)
            assert (result.reason, result.execution) == (Reason.CANCELLED, None)
            assert (await plane.control.cancel(ALICE, running.id)).outcome == "requested"
            assert (await worker.expect(wire.Cancel)).job == running.id
            assert (await plane.control.cancel(ALICE, running.id)).outcome == "requested"
            worker.finish(item, reason=Reason.CANCELLED, exit_code=None)
            await worker.expect(wire.FinishedAck)
            assert (await final(plane, running.id)).reason is Reason.CANCELLED

    run(scenario())


def test_a_worker_is_told_once_to_end_a_job_whatever_else_changes_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            job = await submit(plane)
            item = await worker.assigned()
            await plane.control.cancel(ALICE, job.id)
            await worker.expect(wire.Cancel)
            # When another job is to wait for the one that is being ended, which its record says from then on
            await submit(plane, depends_on=[job.id])
            worker.finish(item, reason=Reason.CANCELLED, exit_code=None)
            await worker.expect(wire.FinishedAck)

    run(scenario())


def test_logs_are_followed_live_and_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            job = await submit(plane)
            follower = plane.control.logs(ALICE, job.id, LogsWanted(follow=True))
            item = await worker.assigned()
            worker.output(item, 0, (1, b"one "), (2, b"err "))
            start, *pieces = [await anext(follower) for _ in range(3)]
            assert (start.attempt, start.seq, start.data) == (1, -1, b"")
            assert [(piece.stream, piece.data) for piece in pieces] == [
                (Stream.STDOUT, b"one "),
                (Stream.STDERR, b"err "),
            ]
            assert (await worker.expect(wire.OutputAck)).seq == 0
            worker.output(item, 1, (1, b"two "))
            worker.finish(item, seq=2, segments=[(1, b"three")])
            assert [piece.data async for piece in follower] == [b"two ", b"three"]
            whole = plane.control.logs(ALICE, job.id, LogsWanted(streams=(Stream.STDOUT,)))
            assert await collect(whole) == b"one two three"
            rest = plane.control.logs(ALICE, job.id, LogsWanted(after=LogPosition(Attempt(1), pieces[0].seq)))
            assert await collect(rest) == b"err two three"

    run(scenario())


def test_output_of_an_attempt_that_is_over_is_fenced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            await submit(plane)
            item = await worker.assigned()
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            worker.output(item, 7, (1, b"late"))
            assert (await worker.expect(wire.Fence)).job == item.job

    run(scenario())


def test_idempotency_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            control = plane.control
            (first,) = await control.submit(ALICE, [shell("a", idempotency_key="k")])
            (again,) = await control.submit(ALICE, [shell("a", idempotency_key="k")])
            assert (first.created, again.created, again.job.id) == (True, False, first.job.id)
            spelled_out = (
                b'{"type":"shell","payload":{"argv":["a"]},"idempotency_key":"k",'
                b'"queue":"default","retry":{"delay_s":1}}'
            )
            (same,) = await control.submit(ALICE, [msgspec.json.decode(spelled_out, type=JobSubmit)])
            assert (same.created, same.job.id) == (False, first.job.id)
            with pytest.raises(IdempotencyConflict):
                await control.submit(ALICE, [shell("b", idempotency_key="k")])
            (others,) = await control.submit(BOB, [shell("b", idempotency_key="k")])
            assert others.created
            # All or none: one conflict refuses the batch
            with pytest.raises(IdempotencyConflict):
                await control.submit(ALICE, [shell("new"), shell("b", idempotency_key="k")])
            mixed = await control.submit(
                ALICE,
                [
                    shell("a", idempotency_key="k"),
                    shell("x", idempotency_key="twin"),
                    shell("x", idempotency_key="twin"),
                ],
            )
            assert [item.created for item in mixed] == [False, True, False]
            assert mixed[1].job.id == mixed[2].job.id
            # The same key at the same time makes one job
            racing = await asyncio.gather(
                *(control.submit(ALICE, [shell("r", idempotency_key="r")]) for _ in range(20))
            )
            assert len({item[0].job.id for item in racing}) == 1
            assert sum(item[0].created for item in racing) == 1
            page = await control.list_jobs(ALICE, ANY, limit=100, cursor=None, newest_first=False)
            assert len(page.jobs) == 3

    run(scenario())


def test_as_many_jobs_as_a_request_may_hold_are_stored_whatever_is_said_of_each(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            later_ms = 253_402_300_799_999
            many = [
                shell(
                    "true",
                    idempotency_key=f"i{n}",
                    unique_key=f"u{n}",
                    queue=f"q{n}",
                    not_before_ms=later_ms - 1,
                    deadline_ms=later_ms,
                    labels={"n": str(n)},
                )
                for n in range(BATCH_JOBS)
            ]
            submitted = await plane.control.submit(ALICE, many)
            assert [one.job.labels["n"] for one in submitted] == [str(n) for n in range(BATCH_JOBS)]
            # And again they are the same
            again = await plane.control.submit(ALICE, many)
            assert [one.job.id for one in again] == [one.job.id for one in submitted]
            assert len(
                (await plane.control.list_jobs(ALICE, ANY, limit=1000, cursor=None, newest_first=True)).jobs
            ) == (BATCH_JOBS)

    run(scenario())


def test_owners_see_their_own_and_admins_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            control = plane.control
            job = await submit(plane)
            for attempt in (
                control.get(BOB, job.id),
                control.cancel(BOB, job.id),
                control.result(BOB, job.id, None),
                control.wait(BOB, job.id, 1),
                collect(control.logs(BOB, job.id, LogsWanted())),
                control.drain_worker(BOB, "shell-0"),
            ):
                with pytest.raises(Forbidden):
                    await attempt
            assert (await control.list_jobs(BOB, ANY, limit=10, cursor=None, newest_first=True)).jobs == []
            assert len((await control.list_jobs(ADMIN, ANY, limit=10, cursor=None, newest_first=True)).jobs) == 1
            with pytest.raises(NotFound):
                await control.get(ADMIN, UNKNOWN)

    run(scenario())


def test_lists_are_paged_filtered_and_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            control = plane.control
            made = []
            for number in range(25):
                labels = {"parity": "even" if number % 2 == 0 else "odd"}
                made.append((await submit(plane, queue=f"q{number % 3}", labels=labels)).id)
            for newest_first in (False, True):
                for limit in (1, 7, 25, 100):
                    found, cursor = [], None
                    while True:
                        page = await control.list_jobs(
                            ALICE, ANY, limit=limit, cursor=cursor, newest_first=newest_first
                        )
                        assert len(page.jobs) <= limit
                        found += [job.id for job in page.jobs]
                        cursor = page.next_cursor
                        if cursor is None:
                            break
                    assert found == sorted(made, reverse=newest_first)
            some = JobFilter(
                queue="q1", labels=(("parity", "odd"),), states=(JobState.PENDING,), type="shell", owner=1001
            )
            page = await control.list_jobs(ALICE, some, limit=100, cursor=None, newest_first=False)
            assert [job.id for job in page.jobs] == [made[number] for number in range(25) if number % 6 == 1]
            for cursor in ("nonsense", "L2V0Yy9wYXNzd2Q=", "%%%"):
                with pytest.raises(InvalidRequest):
                    await control.list_jobs(ALICE, ANY, limit=1, cursor=cursor, newest_first=False)

    run(scenario())


def test_a_watch_sees_every_change_and_resumes_from_a_revision(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            start = plane.store.revision
            job = await submit(plane)
            worker.finish(await worker.assigned())
            await worker.expect(wire.FinishedAck)
            await submit(plane)
            states = [JobState.PENDING, JobState.RUNNING, JobState.COMPLETED]
            events = []
            async for event in plane.control.watch_jobs(ALICE, ANY, after_revision=start, job=job.id):
                assert not isinstance(event, int)
                events.append(event)
                if len(events) == 3:
                    break
            assert [event.job.state for event in events] == states
            async for event in plane.control.watch_jobs(ALICE, ANY, after_revision=events[0].revision, job=job.id):
                assert not isinstance(event, int)
                assert event.job.state is JobState.RUNNING
                break

    run(scenario())


def test_a_full_queue_refuses_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path, max_pending=3) as plane:
            for _ in range(3):
                await submit(plane)
            with pytest.raises(QueueFull) as caught:
                await submit(plane)
            assert caught.value.retry_after_s
            worker = WorkerPeer(slots=1)
            await worker.register(plane.worker_socket)
            await worker.assigned()
            await submit(plane)
            page = await plane.control.list_jobs(ALICE, ANY, limit=10, cursor=None, newest_first=True)
            assert len(page.jobs) == 4

    run(scenario())


def test_a_draining_worker_gets_nothing_new(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            draining, fresh = WorkerPeer("draining", slots=9), WorkerPeer("fresh")
            await draining.register(plane.worker_socket)
            assert (await plane.control.drain_worker(ADMIN, "draining")).state == "draining"
            job = await submit(plane)
            await fresh.register(plane.worker_socket)
            assert (await fresh.assigned()).job == job.id
            with pytest.raises(NotFound):
                await plane.control.drain_worker(ADMIN, "nobody")
            # When that is undone, then the same process is given jobs again
            second = await submit(plane)
            assert (await plane.control.resume_worker(ADMIN, "draining")).state == "ready"
            assert (await draining.assigned()).job == second.id
            assert (await plane.control.resume_worker(ADMIN, "draining")).state == "ready"
            with pytest.raises(NotFound):
                await plane.control.resume_worker(ADMIN, "nobody")

    run(scenario())


def test_a_drain_that_was_undone_meanwhile_is_not_made_again_by_its_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await WorkerPeer("w").register(plane.worker_socket)
            drain, resume = (replace(ADMIN, request_id=RequestId(name * 16)) for name in (b"d", b"r"))
            for _ in range(2):
                assert (await plane.control.drain_worker(drain, "w")).drained
            assert not (await plane.control.resume_worker(resume, "w")).drained
            assert not (await plane.control.drain_worker(drain, "w")).drained
            assert (await plane.control.drain_worker(ADMIN, "w")).drained
            assert (await plane.control.resume_worker(resume, "w")).drained

    run(scenario())


def test_a_drained_worker_stays_so_over_its_own_restart_and_the_node_s(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            await WorkerPeer("w").register(plane.worker_socket)
            await plane.control.drain_worker(ADMIN, "w")
            next_life = WorkerPeer("w")
            await next_life.register(plane.worker_socket)
            (view,) = await plane.control.workers(ADMIN)
            assert (view.incarnation, view.state, view.drained) == (next_life.incarnation, "draining", True)
        async with Plane(tmp_path) as plane:
            (view,) = await plane.control.workers(ADMIN)
            assert (view.state, view.drained) == ("lost", True)
            await next_life.register(plane.worker_socket)
            job = await submit(plane)
            assert (await plane.control.get(ALICE, job.id)).job.state is JobState.PENDING
            await plane.control.resume_worker(ADMIN, "w")
            assert (await next_life.assigned()).job == job.id

    run(scenario())


def test_a_worker_that_stops_by_itself_is_not_to_be_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w")
            await worker.register(plane.worker_socket)
            worker.send(wire.Draining())
            await worker.expect(wire.DrainConfirmed)
            assert [view.state for view in await plane.control.workers(ADMIN)] == ["stopping"]
            with pytest.raises(WorkerStopping):
                await plane.control.resume_worker(ADMIN, "w")
            job = await submit(plane)
            fresh = WorkerPeer("w")
            await fresh.register(plane.worker_socket)
            assert (await fresh.assigned()).job == job.id

    run(scenario())


def test_jobs_assigned_before_a_worker_s_stop_are_sent_before_it_is_confirmed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer("w", slots=500)
            await worker.register(plane.worker_socket)
            jobs = [await submit(plane) for _ in range(20)]
            worker.send(wire.Draining())
            given: list[JobId] = []
            while isinstance(frame := await worker.receive(), wire.Assign):
                given += [item.job for item in frame.jobs]
            assert isinstance(frame, wire.DrainConfirmed)
            states = [(await plane.control.get(ALICE, job.id)).job.state for job in jobs]
            assert states.count(JobState.RUNNING) == len(given)

    run(scenario())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": 99}, "protocol"),
        ({"type": "magic"}, "unknown_type"),
        ({"slots": 0}, "bad_slots"),
        ({"worker": "a/b"}, "bad_name"),
        ({"worker": ""}, "bad_name"),
    ],
)
def test_a_registration_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            answer = await WorkerPeer().register(plane.worker_socket, **changes)
            assert isinstance(answer, wire.Refused)
            assert answer.code == code

    run(scenario())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff", "frame_too_large"),
        (b"\x00\x00\x00\x03abc", "bad_frame"),
        (wire.encode_frame(wire.Heartbeat()), "not_registered"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_cut_off_with_the_reason(tmp_path: Path, data: bytes, code: str) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            peer = await WorkerPeer().connect(plane.worker_socket)
            peer.writer.write(data)
            assert (await peer.expect(wire.Refused)).code == code
            with pytest.raises(EOFError):
                await peer.receive()

    run(scenario())


def test_a_uid_that_is_not_allowed_may_not_register(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path, worker_uids=frozenset({4_242})) as plane:
            peer = await WorkerPeer().connect(plane.worker_socket)
            assert (await peer.expect(wire.Refused)).code == "forbidden"

    run(scenario())
