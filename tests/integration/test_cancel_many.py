"""Ending the jobs of a selection: those that match and no others, whatever they are at, and nothing runs on."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from jobs import AsyncClient, shell_job
from jobs.clock import wall_ms
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol import wire
from jobs.protocol.model import BATCH_JOBS, CancelCounts, CancelMany, JobState, JobView, Reason, Stream
from jobs.service import AuditFilter, Caller, JobFilter
from jobs.testing import EmbeddedNode
from tests.support.api import Api, scenario
from tests.support.jobctl import jobctl
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell
from tests.support.processes import Ends, with_argument


async def submit(plane: Plane, caller: Caller = ALICE, count: int = 1, **changes: object) -> list[JobView]:
    return [made.job for made in await plane.control.submit(caller, [shell(**changes) for _ in range(count)])]


async def cancel(plane: Plane, caller: Caller, **criteria: object) -> tuple[tuple[int, int, int], int]:
    """Return what was cancelled, requested and final, and in how many pages."""
    total = [0, 0, 0]
    cursor, pages = None, 0
    while True:
        page = await plane.control.cancel_many(caller, CancelMany(cursor=cursor, **criteria))  # type: ignore[arg-type]
        total = [a + b for a, b in zip(total, (page.cancelled, page.requested, page.already_final), strict=True)]
        cursor, pages = page.next_cursor, pages + 1
        if cursor is None:
            return (total[0], total[1], total[2]), pages


async def states(plane: Plane) -> dict[str, JobState]:
    page = await plane.control.list_jobs(ADMIN, JobFilter(), limit=1_000, cursor=None, newest_first=True)
    return {job.id: job.state for job in page.jobs}


def test_jobs_at_every_state_are_ended_and_asking_again_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer(slots=2)
            await worker.register(plane.worker_socket)
            # Given jobs that run, one that has ended, some that wait for a worker or a time, and others
            await submit(plane, count=2, labels={"run": "7"})
            items = (await worker.expect(wire.Assign)).jobs
            worker.finish(items[0])
            await worker.expect(wire.FinishedAck)
            await submit(plane, count=2, labels={"run": "8"}, priority=9)
            await worker.assigned()
            await submit(plane, count=3, labels={"run": "7"})
            await submit(plane, labels={"run": "7"}, not_before_ms=wall_ms() + 3_600_000)
            # When those of the label are to end
            assert (await cancel(plane, ALICE, labels={"run": "7"}))[0] == (4, 1, 1)
            assert (await worker.expect(wire.Cancel)).job == items[1].job
            assert (await cancel(plane, ALICE, labels={"run": "7"}))[0] == (0, 1, 5)
            worker.finish(items[1], reason=Reason.CANCELLED, exit_code=None)
            assert (await plane.control.wait(ALICE, items[1].job, 10)).reason is Reason.CANCELLED
            assert (await cancel(plane, ALICE, labels={"run": "7"}))[0] == (0, 0, 6)
            # Then the others are as they were, and each cancellation is told of once
            others = [state for job, state in (await states(plane)).items() if not state.is_final]
            assert len(others) == 2
            trail = await plane.control.audit.page(ADMIN, AuditFilter(action="job.cancel"), limit=100, cursor=None)
            assert len({entry.subject for entry in trail.entries}) == len(trail.entries) == 5

    asyncio.run(run())


@pytest.mark.parametrize(
    ("criteria", "cancelled"),
    [
        ({"queue": "a"}, {"a", "ax"}),
        ({"labels": {"x": "1"}}, {"ax", "bx"}),
        ({"queue": "a", "labels": {"x": "1"}}, {"ax"}),
        ({"states": [JobState.RUNNING]}, set()),
        ({"type": "sql"}, set()),
        ({"schedule": "nightly"}, set()),
        ({"worker": "shell-0"}, set()),
        ({"owner": ALICE.uid}, {"a", "b", "ax", "bx"}),
        ({"all": True}, {"a", "b", "ax", "bx"}),
    ],
    # Of a set the text is another in each process.
    ids=lambda given: str(sorted(given) if isinstance(given, set) else given),
)
def test_all_that_is_given_must_match(tmp_path: Path, criteria: dict[str, object], cancelled: set[str]) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            made = {
                name: (await submit(plane, queue=name[0], labels={"x": "1"} if "x" in name else {}))[0].id
                for name in ("a", "b", "ax", "bx")
            }
            await submit(plane, BOB)
            await cancel(plane, ALICE, **criteria)
            found = await states(plane)
            assert {name for name, job in made.items() if found[job].is_final} == cancelled
            assert list(found.values()).count(JobState.PENDING) == 5 - len(cancelled)

    asyncio.run(run())


def test_others_jobs_are_left_alone_except_by_admins(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            await submit(plane, ALICE, 3)
            await submit(plane, BOB, 2)
            with pytest.raises(Forbidden):
                await cancel(plane, BOB, owner=ALICE.uid)
            assert (await cancel(plane, BOB, queue="default"))[0] == (2, 0, 0)
            assert (await cancel(plane, ADMIN, owner=ALICE.uid))[0] == (3, 0, 0)

    asyncio.run(run())


def test_a_large_selection_goes_in_bounded_pages_also_over_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            for _ in range(5):
                await submit(plane, count=BATCH_JOBS)
            await submit(plane, BOB, BATCH_JOBS)
            first = await plane.control.cancel_many(ALICE, CancelMany(all=True))
            assert 0 < first.cancelled < 5 * BATCH_JOBS
            assert first.next_cursor is not None
        async with Plane(tmp_path) as plane:
            (counts, pages) = await cancel(plane, ALICE, all=True)
            assert counts == (5 * BATCH_JOBS - first.cancelled, 0, first.cancelled)
            assert pages > 1
            assert plane.control.metrics()["jobs_pending"][1] == BATCH_JOBS

    asyncio.run(run())


def test_something_has_to_be_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            await submit(plane)
            with pytest.raises(InvalidRequest, match="at least one criterion"):
                await cancel(plane, ADMIN)
            with pytest.raises(InvalidRequest, match="cursor"):
                await plane.control.cancel_many(ADMIN, CancelMany(all=True, cursor="x"))
            assert list((await states(plane)).values()) == [JobState.PENDING]

    asyncio.run(run())


@scenario()
async def test_the_route_names_what_is_wrong(api: Api) -> None:
    await api.submit(labels={"a": "b"})
    answer = await api.ask("POST", "/v1/jobs:cancel", {"labels": {"a": "b"}})
    assert answer.json() == {"cancelled": 1, "requested": 0, "already_final": 0, "next_cursor": None}
    for body, field in (
        ({}, "$"),
        ({"queue": ""}, "$.queue"),
        ({"states": ["done"]}, "$.states[0]"),
        ({"all": True, "cursor": "x"}, "$.cursor"),
        ({"label": {}}, "$.label"),
    ):
        problem = (await api.ask("POST", "/v1/jobs:cancel", body)).problem(400, "invalid_request")
        assert problem["field"] == field


def test_the_process_trees_of_a_selection_are_gone_at_the_end(shared_node: EmbeddedNode) -> None:
    marker = f"tree-{uuid.uuid4().hex}"
    script = f"sh -c 'trap : TERM; while :; do sleep 1000 {marker} & wait; done' {marker} & echo up; wait"
    with shared_node.client() as client:
        # Given jobs whose children do not heed SIGTERM, and some that wait
        jobs = [client.submit(shell_job(script, labels={"marker": marker}, grace_s=0.2)).job.id for _ in range(5)]
        up = [job for job in jobs if client.get(job).job.state is JobState.RUNNING] or jobs[:1]
        for job in up:
            assert next(iter(client.logs(job, streams=(Stream.STDOUT,), follow=True))).data.text == "up\n"
        ends = Ends(with_argument(marker))
        # When they are to end
        counts = client.cancel_many(labels={"marker": marker})
        assert counts.cancelled + counts.requested == len(jobs)
        assert {client.wait(job, 30).reason for job in jobs} == {Reason.CANCELLED}
        # Then no process of them is left
        asyncio.run(ends.wait(10))
        assert with_argument(marker) == []


def test_the_command_and_the_clients(shared_node: EmbeddedNode) -> None:
    label = uuid.uuid4().hex[:8]

    def make(count: int) -> None:
        with shared_node.client() as made:
            for _ in range(count):
                made.shell("true", labels={"l": label}, queue=label, not_before_ms=wall_ms() + 3_600_000)

    make(3)
    done = jobctl(shared_node, "cancel", "--label", f"l={label}", "--state", "pending")
    assert (done.stdout, done.returncode) == (b"3 cancelled, 0 requested, 0 already_final\n", 0)
    again = jobctl(shared_node, "cancel", "--json", "--queue", label)
    assert json.loads(again.stdout) == {"cancelled": 0, "requested": 0, "already_final": 3}
    make(2)
    with shared_node.client() as client:
        assert client.cancel_many(queue=label, state=JobState.PENDING) == CancelCounts(
            cancelled=2, requested=0, already_final=0
        )

    async def asynchronously() -> None:
        async with AsyncClient(str(shared_node.socket)) as client:
            make(1)
            assert (await client.cancel_many(labels={"l": label})).cancelled == 1
            with pytest.raises(InvalidRequest):
                await client.cancel_many()

    asyncio.run(asynchronously())
    for arguments in (["cancel"], ["cancel", "--all", "01900000-0000-7000-8000-000000000000"]):
        assert jobctl(shared_node, *arguments).returncode == 2
