"""Jobs that failed for good: listed, repeated once and only once, put away; whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, shell_job
from jobs.clock import wall_ms
from jobs.errors import Forbidden, InvalidRequest, NotRedrivable, QueueClosed, QueueFull
from jobs.protocol.model import (
    DeadLetter,
    DeadLetterSelection,
    JobState,
    JobSubmit,
    JobView,
    QueueSettings,
    Reason,
    Redriven,
)
from jobs.service import AuditFilter, Caller, JobFilter
from jobs.testing import EmbeddedNode
from tests.support.api import Api, scenario
from tests.support.ended import Ender
from tests.support.jobctl import jobctl
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

ALL = DeadLetterSelection(all=True)


class Failing(Ender):
    """A worker whose jobs fail."""

    async def fail(self, job: JobSubmit | None = None, *, reason: Reason = Reason.EXIT_CODE) -> JobView:
        return await self.run(job, reason=reason, segments=())


async def letters(plane: Plane, caller: Caller = ADMIN, limit: int = 100, **where: object) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    cursor = None
    while True:
        selection = DeadLetterSelection(**where)  # type: ignore[arg-type]
        page = await plane.control.dead_letters.page(caller, selection, limit=limit, cursor=cursor)
        assert len(page.dead_letters) <= limit
        found += page.dead_letters
        cursor = page.next_cursor
        if cursor is None:
            return found


async def redrive_all(plane: Plane, caller: Caller, **where: object) -> list[Redriven]:
    found: list[Redriven] = []
    cursor = None
    while True:
        selection = DeadLetterSelection(cursor=cursor, **where)  # type: ignore[arg-type]
        page = await plane.control.dead_letters.redrive_many(caller, selection)
        found += page.redriven
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_failures_are_listed_until_they_are_redriven_or_purged(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            first, second = await failing.fail(), await failing.fail(reason=Reason.SIGNAL)
            (done,) = await plane.control.submit(ALICE, [shell()])
            await failing.end()
            (cancelled,) = await plane.control.submit(ALICE, [shell(not_before_ms=wall_ms() + 60_000)])
            await plane.control.cancel(ALICE, cancelled.job.id)
            # What completed or was cancelled is none
            found = await letters(plane)
            assert [(one.id, one.reason) for one in found] == [
                (second.id, Reason.SIGNAL),
                (first.id, Reason.EXIT_CODE),
            ]
            assert await letters(plane, reason=Reason.SIGNAL) == found[:1]
            assert await letters(plane, queue="other") == []
            assert await letters(plane, BOB) == []
            assert await letters(plane, limit=1) == found

            await failing.worker.close()
            new = await plane.control.dead_letters.redrive(ALICE, first.id)
            assert new.created
            assert (new.job.redrive_of, new.job.state) == (first.id, JobState.PENDING)
            purged = await plane.control.dead_letters.purge(ALICE, second.id)
            assert (purged.outcome, purged.job.state) == ("purged", JobState.FAILED)
            assert (await plane.control.dead_letters.purge(ALICE, second.id)).outcome == "no_dead_letter"
            assert (await plane.control.dead_letters.purge(ALICE, done.job.id)).outcome == "no_dead_letter"
        async with Plane(tmp_path) as plane:
            assert await letters(plane) == []
            old = (await plane.control.get(ALICE, first.id)).job
            assert (old.state, old.reason, old.redriven_as) == (JobState.FAILED, Reason.EXIT_CODE, new.job.id)
            # The new job can itself fail and be redriven
            failing = await Failing(plane).start()
            assert await failing.end(reason=Reason.EXIT_CODE) == new.job.id
            assert [one.id for one in await letters(plane)] == [new.job.id]
            third = await plane.control.dead_letters.redrive(ALICE, new.job.id)
            assert await failing.end() == third.job.id
            trail = await plane.control.audit.page(ADMIN, AuditFilter(job=new.job.id), limit=10, cursor=None)
            assert [(entry.action, entry.subject) for entry in trail.entries] == [
                ("job.redrive", new.job.id),
                ("job.redrive", first.id),
            ]

    asyncio.run(run())


def test_a_job_is_repeated_once_however_often_and_by_whom_it_is_asked(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            old = await failing.fail()
            asked = [plane.control.dead_letters.redrive(caller, old.id) for caller in (ALICE, ADMIN) * 10]
            answers = await asyncio.gather(*asked, redrive_all(plane, ADMIN, all=True))
            made = {one.job.id for one in answers[:-1]}  # type: ignore[union-attr]
            assert len(made) == 1
            page = await plane.control.list_jobs(ADMIN, JobFilter(), limit=100, cursor=None, newest_first=True)
            assert {job.id for job in page.jobs} == made | {old.id}
            again = await plane.control.dead_letters.redrive(ALICE, old.id)
            assert (again.created, {again.job.id}, again.job.owner) == (False, made, ALICE.uid)

    asyncio.run(run())


def test_only_what_failed_is_redriven_and_only_by_those_who_may(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            (done,) = await plane.control.submit(ALICE, [shell()])
            with pytest.raises(NotRedrivable, match=r"is (running|pending)"):
                await plane.control.dead_letters.redrive(ALICE, done.job.id)
            await failing.end()
            with pytest.raises(NotRedrivable, match="is completed"):
                await plane.control.dead_letters.redrive(ALICE, done.job.id)
            failed = await failing.fail()
            for deed in (plane.control.dead_letters.redrive, plane.control.dead_letters.purge):
                with pytest.raises(Forbidden):
                    await deed(BOB, failed.id)
            for many in (plane.control.dead_letters.redrive_many, plane.control.dead_letters.purge_many):
                with pytest.raises(Forbidden):
                    await many(BOB, DeadLetterSelection(owner=ALICE.uid))
                with pytest.raises(InvalidRequest):
                    await many(ADMIN, DeadLetterSelection())
                with pytest.raises(InvalidRequest):
                    await many(ADMIN, DeadLetterSelection(all=True, cursor="x"))
                await many(BOB, ALL)
            assert len(await letters(plane)) == 1
            # What was cancelled is no dead letter, but can be repeated all the same
            (waiting,) = await plane.control.submit(ALICE, [shell(not_before_ms=wall_ms() + 60_000)])
            await plane.control.cancel(ALICE, waiting.job.id)
            assert (await plane.control.dead_letters.redrive(ALICE, waiting.job.id)).created

    asyncio.run(run())


def test_the_same_is_submitted_anew_without_what_cannot_be_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (late,) = await plane.control.submit(ALICE, [shell(deadline_ms=wall_ms() + 50, idempotency_key="k")])
            assert (await plane.control.wait(ALICE, late.job.id, 10)).reason is Reason.DEADLINE
            new = (await plane.control.dead_letters.redrive(ALICE, late.job.id)).job
            spec = (await plane.control.get(ALICE, new.id)).spec
            assert (spec.deadline_ms, spec.idempotency_key) == (None, None)
            # The key is still the old job's
            (again,) = await plane.control.submit(ALICE, [shell(deadline_ms=late.job.deadline_ms, idempotency_key="k")])
            assert (again.created, again.job.id) == (False, late.job.id)

    asyncio.run(run())


def test_a_unique_key_that_another_job_has_is_waited_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            old = await failing.fail(shell(unique_key="u"))
            (holder,) = await plane.control.submit(ALICE, [shell(unique_key="u")])
            with pytest.raises(NotRedrivable, match=holder.job.id):
                await plane.control.dead_letters.redrive(ALICE, old.id)
            (refused,) = await redrive_all(plane, ALICE, all=True)
            assert (refused.id, refused.job) == (old.id, None)
            assert holder.job.id in (refused.refused or "")
            await failing.end()
            assert (await plane.control.dead_letters.redrive(ALICE, old.id)).created

    asyncio.run(run())


def test_a_graph_is_repeated_as_a_graph(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            # Given a job that completed, one after it that failed, and one that therefore never ran
            made = await plane.control.submit(
                ALICE,
                [shell(ref="a"), shell(ref="b", depends_on=["a"]), shell(ref="c", depends_on=["a", "b"])],
            )
            a, b, c = (one.job.id for one in made)
            assert await failing.end() == a
            assert await failing.end(reason=Reason.EXIT_CODE) == b
            assert (await plane.control.wait(ALICE, c, 10)).reason is Reason.DEPENDENCY_FAILED
            with pytest.raises(NotRedrivable, match=b):
                await plane.control.dead_letters.redrive(ALICE, c)
            # When both are redriven, those that others depend on come first
            assert [one.id for one in await redrive_all(plane, ALICE, all=True)] == [b, c]
            again = {job: (await plane.control.get(ALICE, job)).job.redriven_as for job in (b, c)}
            new_b, new_c = again[b], again[c]
            assert new_b is not None
            assert new_c is not None
            detail = await plane.control.get(ALICE, new_c)
            assert (detail.parents, detail.job.waits_for) == ([a, new_b], 1)
            assert await failing.end() == new_b
            assert await failing.end() == new_c
            assert (await plane.control.wait(ALICE, new_c, 10)).state is JobState.COMPLETED
            assert await letters(plane) == []

    asyncio.run(run())


def test_what_fails_again_is_not_met_again_by_the_same_redrive(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            old = [(await failing.fail()).id for _ in range(70)]

            async def fail_again() -> None:
                while True:
                    await failing.end(reason=Reason.EXIT_CODE)

            again = asyncio.create_task(fail_again())
            try:
                assert [one.id for one in await redrive_all(plane, ALICE, all=True)] == old
            finally:
                again.cancel()

    asyncio.run(run())


def test_a_full_queue_stops_a_redrive_where_it_can_go_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            old = [(await failing.fail()).id for _ in range(3)]
            await plane.control.queues.put(ADMIN, "default", QueueSettings(max_pending=1))
            await plane.control.queues.pause(ADMIN, "default", paused=True)
            page = await plane.control.dead_letters.redrive_many(ALICE, ALL)
            assert [one.id for one in page.redriven] == old[:1]
            assert page.next_cursor is not None
            rest = DeadLetterSelection(all=True, cursor=page.next_cursor)
            with pytest.raises(QueueFull):
                await plane.control.dead_letters.redrive_many(ALICE, rest)
            with pytest.raises(QueueFull):
                await plane.control.dead_letters.redrive(ALICE, old[1])
            await plane.control.queues.put(ADMIN, "default", QueueSettings())
            page = await plane.control.dead_letters.redrive_many(ALICE, rest)
            assert ([one.id for one in page.redriven], page.next_cursor) == (old[1:], None)
            assert len(await letters(plane)) == 0

    asyncio.run(run())


def test_a_closed_queue_refuses_what_belongs_to_it_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            shut, other = await failing.fail(shell(queue="shut")), await failing.fail()
            await plane.control.queues.drain(ADMIN, "shut", draining=True)
            with pytest.raises(QueueClosed):
                await plane.control.dead_letters.redrive(ALICE, shut.id)
            first, second = await redrive_all(plane, ALICE, all=True)
            assert (first.id, first.job, second.id) == (shut.id, None, other.id)
            assert [one.id for one in await letters(plane)] == [shut.id]

    asyncio.run(run())


def test_many_are_purged_in_pages_and_the_jobs_stay(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            failing = await Failing(plane).start()
            jobs = [(await failing.fail(shell(queue="a" if n % 2 else "b"))).id for n in range(140)]
            purged = pages = 0
            cursor = None
            while True:
                page = await plane.control.dead_letters.purge_many(ALICE, DeadLetterSelection(queue="a", cursor=cursor))
                purged, pages, cursor = purged + page.purged, pages + 1, page.next_cursor
                if cursor is None:
                    break
            assert (purged, pages) == (70, 2)
            assert [one.queue for one in await letters(plane)] == ["b"] * 70
            assert (await plane.control.get(ALICE, jobs[1])).job.state is JobState.FAILED
            assert (await plane.control.dead_letters.redrive(ALICE, jobs[1])).created

    asyncio.run(run())


@scenario()
async def test_the_routes(api: Api) -> None:
    job = await api.submit(deadline_ms=wall_ms() + 50)
    await api.ask("GET", f"/v1/jobs/{job}/wait?timeout_s=10")
    (letter,) = (await api.ask("GET", "/v1/dead-letters?reason=deadline&queue=default")).json()["dead_letters"]
    assert (letter["id"], letter["reason"]) == (job, "deadline")
    made = await api.ask("POST", f"/v1/jobs/{job}/redrive")
    again = await api.ask("POST", f"/v1/jobs/{job}/redrive")
    assert (made.status, again.status) == (201, 200)
    assert made.json()["job"]["id"] == again.json()["job"]["id"]
    assert made.headers["location"] == f"/v1/jobs/{made.json()['job']['id']}"
    pending = await api.submit()
    (await api.ask("POST", f"/v1/jobs/{pending}/redrive")).problem(409, "not_redrivable")
    assert (await api.ask("DELETE", f"/v1/dead-letters/{job}")).json()["outcome"] == "no_dead_letter"
    for target in ("/v1/dead-letters:redrive", "/v1/dead-letters:purge"):
        assert (await api.ask("POST", target, {})).problem(400, "invalid_request")["field"] == "$"
        wrong = (await api.ask("POST", target, {"reason": "bored"})).problem(400, "invalid_request")
        assert wrong["field"] == "$.reason"
        assert (await api.ask("POST", target, {"all": True})).status == 200
    (await api.ask("GET", "/v1/dead-letters?cursor=x")).problem(400, "invalid_request")
    (await api.ask("DELETE", "/v1/dead-letters/x")).problem(400, "invalid_request")


def test_the_command_and_the_clients(client: Client, shared_node: EmbeddedNode) -> None:
    queue = f"dlq-{uuid.uuid4().hex[:8]}"
    failed = [client.submit(shell_job(f"exit {code}", queue=queue)).job.id for code in (1, 2, 3)]
    assert [client.wait(job, 30).state for job in failed] == [JobState.FAILED] * 3
    listed = [
        json.loads(line) for line in jobctl(shared_node, "dlq", "list", "--json", "--queue", queue).stdout.splitlines()
    ]
    assert {one["id"] for one in listed} == set(failed)
    assert len(jobctl(shared_node, "dlq", "list", "--queue", queue, "--limit", "2").stdout.splitlines()) == 3
    one = jobctl(shared_node, "dlq", "redrive", failed[0])
    assert one.stdout == jobctl(shared_node, "dlq", "redrive", failed[0]).stdout
    old, new = one.stdout.decode().split()
    assert old == failed[0]
    assert new.encode() in jobctl(shared_node, "status", old).stdout
    assert client.wait(new, 30).exit_code == 1
    assert jobctl(shared_node, "dlq", "purge", failed[1]).stdout == f"{failed[1]} purged\n".encode()
    redriven = list(client.dead_letters.redrive_many(queue=queue, reason=Reason.EXIT_CODE))
    assert {one.id for one in redriven} == {failed[2], new}
    for done in redriven:
        assert done.job is not None
        client.wait(done.job, 30)

    async def asynchronously() -> None:
        async with AsyncClient(str(shared_node.socket)) as other:
            letters = [letter.id async for letter in other.dead_letters.list(queue=queue)]
            assert len(letters) == 2
            assert not (await other.dead_letters.redrive(failed[0])).created
            assert (await other.dead_letters.purge(letters[0])).outcome == "purged"
            assert [one.id async for one in other.dead_letters.redrive_many(queue=queue)] == letters[1:]

    asyncio.run(asynchronously())
    assert jobctl(shared_node, "dlq", "purge", "--queue", queue).returncode == 0
    for arguments in (["redrive"], ["purge", "--all", failed[0]]):
        assert jobctl(shared_node, "dlq", *arguments).returncode == 2


def test_a_node_that_is_killed_in_the_middle_of_a_redrive_repeats_each_job_once(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        jobs = [made.job.id for made in client.submit_many(shell_job("exit 1", queue="q") for _ in range(60))]
        for job in jobs:
            client.wait(job, 60)
        # When the node dies while they are redriven, and comes back
        redriven = client.dead_letters.redrive_many(queue="q")
        next(redriven)
        node.kill()
        node.start()
        done = {one.id for one in client.dead_letters.redrive_many(queue="q")}
        # Then each has one repetition, whatever had been answered
        repetitions = [job.redrive_of for job in client.list(page_size=1_000) if job.redrive_of in jobs]
        assert sorted(repetitions) == sorted(jobs)  # type: ignore[type-var]
        assert {client.get(job).job.redriven_as is not None for job in jobs} == {True}
        assert done <= set(jobs) | {job.id for job in client.list(page_size=1_000)}
