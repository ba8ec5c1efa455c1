"""Jobs that wait for others: what is refused, who runs when, and that no child is forgotten or told twice."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from jobs import keys
from jobs.control.dependencies import TOLD, keys_of
from jobs.errors import AlreadyStarted, Forbidden, InvalidRequest, NotFound
from jobs.protocol import wire
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import MAX_PARENTS, ArrayRange, ArraySpec, JobState, JobSubmit, JobView, Reason, Retry
from jobs.service import JobFilter
from jobs.store import Delete, Txn, prefix_end
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane, shell

MISSING = JobId("01900000-0000-7000-8000-000000000000")
NEVER_MS = 253_402_300_799_999
STEP_S = 20.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def submit(plane: Plane, *jobs: JobSubmit) -> list[JobView]:
    return [one.job for one in await plane.control.submit(ALICE, list(jobs))]


async def one(plane: Plane, **fields: Any) -> JobView:
    (job,) = await submit(plane, shell("true", **fields))
    return job


async def now(plane: Plane, job: JobView) -> JobView:
    return (await plane.control.get(ADMIN, job.id)).job


async def final(plane: Plane, job: JobView) -> JobView:
    async with asyncio.timeout(STEP_S):
        return await plane.control.wait(ADMIN, job.id, STEP_S)


async def until_all_told(plane: Plane) -> None:
    """Wait until no ended job has anybody left to tell."""
    async with asyncio.timeout(STEP_S):
        while plane.store.range(keys.PARENT_ENDED, prefix_end(keys.PARENT_ENDED), limit=1)[0]:
            await asyncio.sleep(0.001)


async def worker_of(plane: Plane, slots: int = 1) -> WorkerPeer:
    worker = WorkerPeer(slots=slots)
    await worker.register(plane.worker_socket)
    return worker


async def end(worker: WorkerPeer, job: JobView, *, fails: bool = False) -> None:
    """Let the worker be given this job next, and end it."""
    item = await worker.assigned()
    assert item.job == job.id
    if fails:
        worker.finish(item, reason=Reason.EXIT_CODE, exit_code=1)
    else:
        worker.finish(item)
    await worker.expect(wire.FinishedAck)


async def stored(plane: Plane) -> int:
    return len((await plane.control.list_jobs(ADMIN, JobFilter(), limit=1000, cursor=None, newest_first=True)).jobs)


def test_a_graph_submitted_at_once_runs_in_its_order_whatever_the_order_of_its_jobs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            # Given a diamond, the last job first
            last, right, left, first = await submit(
                plane,
                shell("true", ref="last", depends_on=["left", "right"]),
                shell("true", ref="right", depends_on=["first"]),
                shell("true", ref="left", depends_on=["first"], priority=1),
                shell("true", ref="first"),
            )
            assert [job.waits_for for job in (last, right, left, first)] == [2, 1, 1, 0]
            assert (await plane.control.get(ALICE, last.id)).parents == [left.id, right.id]
            # Then each waits for those that it depends on, over a restart too
            worker = await worker_of(plane)
            await end(worker, first)
            await end(worker, left)
            await until_all_told(plane)
            assert (await now(plane, last)).waits_for == 1
            item = await worker.assigned()
            assert item.job == right.id
        async with Plane(tmp_path) as plane:
            await worker.register(plane.worker_socket, [wire.JobRef(job=item.job, attempt=item.attempt)])
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            await end(worker, last)
            assert (await now(plane, last)).state is JobState.COMPLETED
            await until_all_told(plane)

    run(scenario())


def test_what_is_wrong_with_a_graph_is_named_and_nothing_is_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            mine = await one(plane)
            (bobs,) = await plane.control.submit(BOB, [shell()])
            before = await stored(plane)
            for caller, jobs, field, said in (
                (ALICE, [shell(depends_on=["a"])], "$.depends_on[0]", "'a' is neither a job's id nor a ref"),
                (ALICE, [shell(ref="a", depends_on=["a"])], "$.depends_on[0]", "each other: a → a"),
                (ALICE, [shell(), shell(depends_on=[mine.id, "b"])], "$.jobs[1].depends_on[1]", "'b' is neither"),
                (ALICE, [shell(ref="a"), shell(ref="a")], "$.jobs[1].ref", "the ref of $.jobs[0] too"),
                (ALICE, [shell(ref=MISSING)], "$.ref", "is a job's id"),
                (ALICE, [shell(depends_on=[MISSING])], "$.depends_on[0]", f"uid 1001 has no job {MISSING}"),
                (ALICE, [shell(depends_on=[bobs.job.id])], "$.depends_on[0]", "uid 1001 has no job"),
                (ADMIN, [shell(), shell(depends_on=[bobs.job.id])], "$.jobs[1].depends_on[0]", "uid 0 has no job"),
                (
                    ALICE,
                    [
                        shell(ref="x", depends_on=["a"]),
                        shell(ref="a", depends_on=[mine.id, "b"]),
                        shell(ref="b", depends_on=["c"]),
                        shell(ref="c", depends_on=["a"]),
                    ],
                    "$.jobs[1].depends_on[1]",
                    "each other: a → b → c → a",
                ),
                (
                    ALICE,
                    # The second is the same job as the first, by their unique key
                    [shell(ref="a", unique_key="u", depends_on=["b"]), shell(ref="b", unique_key="u")],
                    "$.jobs[0].depends_on[0]",
                    "each other: a → a",
                ),
                (
                    ALICE,
                    [shell(ref=f"r{n}") for n in range(50)]
                    + [shell(depends_on=[f"r{n}" for n in range(50)]) for _ in range(30)],
                    "$.jobs",
                    "operations of one transaction",
                ),
            ):
                with pytest.raises(InvalidRequest) as caught:
                    await plane.control.submit(caller, jobs)
                assert caught.value.field == field
                assert said in caught.value.detail
                assert caught.value.expected
            assert await stored(plane) == before
            assert (await now(plane, mine)) == mine

    run(scenario())


def test_parents_that_have_ended_already_count_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = await worker_of(plane)
            good, bad = await one(plane), await one(plane)
            await end(worker, good)
            await end(worker, bad, fails=True)
            await worker.close()
            waiting = await one(plane, not_before_ms=NEVER_MS)
            ready = await one(plane, depends_on=[good.id, good.id])
            assert (ready.state, ready.waits_for) == (JobState.PENDING, 0)
            runs = await one(plane, depends_on=[bad.id, waiting.id], on_failure="run")
            assert (runs.state, runs.waits_for) == (JobState.PENDING, 1)
            # A job that has to fail is stored as such, and so are those that depend on it
            fails, child, grandchild = await submit(
                plane,
                shell("true", ref="fails", depends_on=[good.id, waiting.id, bad.id]),
                shell("true", ref="child", depends_on=["fails"]),
                shell("true", depends_on=["child"]),
            )
            assert (fails.state, fails.reason, fails.waits_for) == (JobState.FAILED, Reason.DEPENDENCY_FAILED, 0)
            assert fails.message == f"job {bad.id}, which it depends on, failed"
            for job in (child, grandchild):
                assert (await final(plane, job)).reason is Reason.DEPENDENCY_FAILED
            await until_all_told(plane)
            result = await plane.control.result(ALICE, fails.id, None)
            assert (result.reason, result.execution) == (Reason.DEPENDENCY_FAILED, None)

    run(scenario())


def test_on_failure_decides_what_becomes_of_a_child(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            parent, fails, runs, after_fails = await submit(
                plane,
                shell("true", ref="p"),
                shell("true", ref="f", depends_on=["p"]),
                shell("true", depends_on=["p"], on_failure="run"),
                shell("true", depends_on=["f"], on_failure="run"),
            )
            worker = await worker_of(plane, slots=2)
            await end(worker, parent, fails=True)
            assert (await final(plane, fails)).reason is Reason.DEPENDENCY_FAILED
            given = {(await worker.assigned()).job for _ in range(2)}
            assert given == {runs.id, after_fails.id}
            # A cancelled job has failed as well
            alone, child = await submit(plane, shell("true", ref="p"), shell("true", depends_on=["p"]))
            await plane.control.cancel(ALICE, alone.id)
            assert (await final(plane, child)).reason is Reason.DEPENDENCY_FAILED

    run(scenario())


def test_a_retried_parent_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = await worker_of(plane)
            parent, child = await submit(
                plane,
                shell("true", ref="p", retry=Retry(max_attempts=2, delay_s=0)),
                shell("true", depends_on=["p"]),
            )
            await end(worker, parent, fails=True)
            assert (await now(plane, child)).waits_for == 1
            await end(worker, parent)
            await end(worker, child)

    run(scenario())


def test_a_parent_that_ends_while_its_child_is_submitted_is_never_missed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = await worker_of(plane)
            met = {True: 0, False: 0}
            for turn in range(60):
                parent = await one(plane)
                item = await worker.assigned()
                children = [asyncio.ensure_future(one(plane, depends_on=[parent.id])) for _ in range(3)]
                for _ in range(turn % 12):
                    await asyncio.sleep(0)
                worker.finish(item)
                made = [await child for child in children]
                await worker.expect(wire.FinishedAck)
                for child in made:
                    met[child.waits_for == 0] += 1
                    item = await worker.assigned()
                    assert item.job in {child.id for child in made}
                    worker.finish(item)
                    await worker.expect(wire.FinishedAck)
            assert all(met.values()), f"the race was never open: {met}"

    run(scenario())


def test_keys_that_are_known_stand_for_their_jobs_in_a_graph(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            graph = [
                shell("true", ref="a", idempotency_key="1"),
                shell("true", ref="b", idempotency_key="2", depends_on=["a"]),
            ]
            first = await plane.control.submit(ALICE, graph)
            # The same graph with one more job: only that is made, and it waits for what is there
            again = await plane.control.submit(ALICE, [*graph, shell("true", depends_on=["b"])])
            assert [one.created for one in again] == [False, False, True]
            detail = await plane.control.get(ALICE, again[2].job.id)
            assert detail.parents == [first[1].job.id]

    run(scenario())


def test_edges_are_added_one_by_one_until_the_job_has_begun(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            control = plane.control
            # Given a job that is ready, and made to wait
            job = await one(plane)
            parents = [await one(plane, priority=1), await one(plane, priority=1)]
            view = await control.depend(ALICE, job.id, [parents[0].id])
            assert (view.state, view.waits_for) == (JobState.PENDING, 1)
            assert (await control.depend(ALICE, job.id, [parents[0].id])) == await now(plane, job)
            view = await control.depend(ADMIN, job.id, [parents[1].id, parents[0].id, parents[1].id])
            assert view.waits_for == 2
            assert (await control.get(ALICE, job.id)).parents == [parent.id for parent in parents]
            audited = [row[1] for row in plane.store.range(keys.AUDIT, prefix_end(keys.AUDIT), limit=10)[0]]
            assert sum(b"job.depend" in entry for entry in audited) == 2
            worker = await worker_of(plane)
            for parent in parents:
                await end(worker, parent)
            item = await worker.assigned()
            assert item.job == job.id
            # When it has begun, it can wait for nothing more, and neither when it has ended
            other = await one(plane)
            with pytest.raises(AlreadyStarted, match="running"):
                await control.depend(ALICE, job.id, [other.id])
            # But to ask again for what it has waited for is answered
            assert (await control.depend(ALICE, job.id, [parents[0].id])).state is JobState.RUNNING
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            with pytest.raises(AlreadyStarted, match="completed"):
                await control.depend(ALICE, job.id, [other.id])

    run(scenario())


def test_an_edge_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            control = plane.control
            a, b, c = await submit(
                plane,
                shell("true", ref="a"),
                shell("true", ref="b", depends_on=["a"]),
                shell("true", ref="c", depends_on=["b"]),
            )
            free = await one(plane)
            (bobs,) = await control.submit(BOB, [shell()])
            for job, on, field, said in (
                (a, [a.id], "$.depends_on[0]", f"{a.id} → {a.id}"),
                (a, [free.id, c.id], "$.depends_on[1]", f"{a.id} → {c.id} → {b.id} → {a.id}"),
                (a, [MISSING], "$.depends_on[0]", "has no job"),
                (a, [free.id, bobs.job.id], "$.depends_on[1]", "uid 1001 has no job"),
            ):
                for caller in (ALICE, ADMIN):
                    with pytest.raises(InvalidRequest) as caught:
                        await control.depend(caller, job.id, on)
                    assert (caught.value.field, said in caught.value.detail) == (field, True)
            with pytest.raises(Forbidden):
                await control.depend(BOB, a.id, [free.id])
            with pytest.raises(NotFound):
                await control.depend(ALICE, MISSING, [free.id])
            # Also through a job that was never started, so that no graph ever has a circle
            cancelled = await one(plane, depends_on=[a.id])
            await control.cancel(ALICE, cancelled.id)
            with pytest.raises(InvalidRequest, match=f"{a.id} → {cancelled.id} → {a.id}"):
                await control.depend(ALICE, a.id, [cancelled.id])
            many = await submit(plane, *(shell() for _ in range(MAX_PARENTS)))
            await control.depend(ALICE, a.id, [job.id for job in many])
            with pytest.raises(InvalidRequest, match=f"{MAX_PARENTS + 1} jobs"):
                await control.depend(ALICE, a.id, [free.id])
            # A failed parent ends it at once, and so do those that wait for it
            await control.cancel(ALICE, free.id)
            view = await control.depend(ALICE, b.id, [free.id])
            assert view.reason is Reason.DEPENDENCY_FAILED
            assert (await final(plane, c)).reason is Reason.DEPENDENCY_FAILED

    run(scenario())


def test_a_job_waits_for_a_task_of_an_array_and_a_task_for_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = await worker_of(plane)
            array = await one(plane, array=ArraySpec(range=ArrayRange(stop=2)))
            item = await worker.assigned()
            first, second = task_id(array.id, 0), task_id(array.id, 1)
            assert item.job == first
            child = await one(plane, depends_on=[first], priority=1)
            with pytest.raises(AlreadyStarted, match="task of an array"):
                await plane.control.depend(ALICE, second, [child.id])
            worker.finish(item)
            await worker.expect(wire.FinishedAck)
            given = [await worker.assigned()]
            worker.finish(given[0])
            await worker.expect(wire.FinishedAck)
            given.append(await worker.assigned())
            found = {item.job: item for item in given}
            assert set(found) == {second, child.id}
            assert f"parents/{first}/stdout" in found[child.id].files

    run(scenario())


def test_two_edges_at_once_make_no_circle(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            for _ in range(20):
                a, b, c = await submit(plane, shell(), shell(), shell())
                done = await asyncio.gather(
                    plane.control.depend(ALICE, a.id, [b.id]),
                    plane.control.depend(ALICE, b.id, [c.id]),
                    plane.control.depend(ALICE, c.id, [a.id]),
                    return_exceptions=True,
                )
                refused = [error for error in done if isinstance(error, InvalidRequest)]
                assert (len(refused), len(done)) == (1, 3)
                assert "wait for each other" in refused[0].detail

    run(scenario())


def test_a_long_chain_is_searched_and_fails_to_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            chain = [await one(plane)]
            for _ in range(22):
                links = [shell("true", ref="0", depends_on=[chain[-1].id])]
                links += [shell("true", ref=str(n), depends_on=[str(n - 1)]) for n in range(1, 50)]
                chain += await submit(plane, *links)
            with pytest.raises(InvalidRequest, match=f"{chain[0].id} → {chain[-1].id} → .* → … → {chain[0].id}"):
                await plane.control.depend(ALICE, chain[0].id, [chain[-1].id])
            await plane.control.cancel(ALICE, chain[0].id)
            assert (await final(plane, chain[-1])).reason is Reason.DEPENDENCY_FAILED
            await until_all_told(plane)
            assert plane.control.metrics()["jobs_pending"][1] == 0

    run(scenario())


async def a_family(plane: Plane, children: int) -> tuple[JobView, list[JobView]]:
    """Submit a job, one that never starts, and many that wait for both."""
    parent, never = await one(plane), await one(plane, not_before_ms=NEVER_MS)
    made: list[JobView] = []
    for _ in range(0, children, 100):
        made += await submit(plane, *(shell("true", depends_on=[parent.id, never.id]) for _ in range(100)))
    return parent, made


def told_of(plane: Plane, parent: JobView) -> int:
    prefix = keys.children_prefix(parent.id)
    return [row[1] for row in plane.store.range(prefix, prefix_end(prefix), limit=10_000)[0]].count(TOLD)


@pytest.mark.parametrize("fails", [False, True])
def test_a_node_that_stops_while_it_tells_children_tells_each_of_them_once(tmp_path: Path, fails: bool) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            parent, children = await a_family(plane, 1_000)
            worker = await worker_of(plane)
            await end(worker, parent, fails=fails)
            # When the node is stopped again and again in the middle
            async with asyncio.timeout(STEP_S):
                while not told_of(plane, parent):
                    await asyncio.sleep(0)
        stops = 0
        for _ in range(3):
            async with Plane(tmp_path) as plane:
                before = told_of(plane, parent)
                async with asyncio.timeout(STEP_S):
                    while told_of(plane, parent) == before < 1_000:
                        await asyncio.sleep(0)
                stops += told_of(plane, parent) < 1_000
        assert stops, "the node was never stopped in the middle"
        # Then every child has been told once: it waits for the other parent, and for that only
        async with Plane(tmp_path) as plane:
            await until_all_told(plane)
            views = [await now(plane, child) for child in children]
            if fails:
                assert {view.reason for view in views} == {Reason.DEPENDENCY_FAILED}
            else:
                assert {(view.state, view.waits_for) for view in views} == {(JobState.PENDING, 1)}

    run(scenario())


def ids_of(graph: Any) -> set[str]:
    return {node.id for node in graph.nodes}


def pairs_of(graph: Any) -> set[tuple[str, str]]:
    return {(edge.parent, edge.child) for edge in graph.edges}


def test_a_graph_shows_ancestors_and_descendants_also_of_ended_jobs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            a, b, c, d, aside = await submit(
                plane,
                shell("true", ref="a"),
                shell("true", ref="b", depends_on=["a"]),
                shell("true", ref="c", depends_on=["b"]),
                shell("true", ref="d", depends_on=["c", "a"]),
                shell("true", ref="aside", depends_on=["a"]),
            )
            worker = await worker_of(plane)
            await end(worker, a)
            await end(worker, b)
            await until_all_told(plane)
            graph = await plane.control.graph(ALICE, b.id, limit=100)
            assert ids_of(graph) == {a.id, b.id, c.id, d.id}
            assert pairs_of(graph) == {(a.id, b.id), (b.id, c.id), (c.id, d.id), (a.id, d.id)}
            states = {node.ref: node.state for node in graph.nodes}
            assert (states["a"], graph.truncated) == (JobState.COMPLETED, False)
            assert ids_of(await plane.control.graph(ADMIN, aside.id, limit=100)) == {a.id, aside.id}
            with pytest.raises(Forbidden):
                await plane.control.graph(BOB, b.id, limit=100)
            # A bound leaves out what is farther away, and says so
            near = await plane.control.graph(ALICE, b.id, limit=3)
            assert (ids_of(near), near.truncated) == ({a.id, b.id, c.id}, True)

    run(scenario())


def test_a_wide_graph_is_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            parent, children = await a_family(plane, 1_000)
            graph = await plane.control.graph(ALICE, parent.id, limit=500)
            assert (len(graph.nodes), graph.truncated) == (500, True)
            whole = await plane.control.graph(ALICE, parent.id, limit=1_000)
            assert (len(whole.nodes), whole.truncated) == (1_000, True)
            child = await plane.control.graph(ALICE, children[7].id, limit=500)
            assert (len(child.nodes), child.truncated) == (3, False)

    run(scenario())


def test_the_keys_of_a_deleted_job_are_known_and_it_is_shown_as_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            first, middle, *last = await submit(
                plane,
                shell("true", ref="first"),
                shell("true", ref="middle", depends_on=["first"]),
                *(shell("true", depends_on=["middle"]) for _ in range(5)),
            )
            some, more = keys_of(plane.store, middle.id, 3)
            assert more
            assert some[:2] == [keys.parents(middle.id), keys.child(first.id, middle.id)]
            found, more = keys_of(plane.store, middle.id, 5)
            assert not more
            assert set(found[2:]) == {keys.child(middle.id, job.id) for job in last}
            # When all of them have gone with their job
            gone = [*found, keys.state(middle.id)]
            await plane.consensus.propose(Txn(then=tuple(Delete(key) for key in gone)))
            graph = await plane.control.graph(ALICE, last[0].id, limit=10)
            assert [(node.id, node.state) for node in graph.nodes] == [
                (last[0].id, JobState.PENDING),
                (middle.id, None),
            ]
            assert ids_of(await plane.control.graph(ALICE, first.id, limit=10)) == {first.id}

    run(scenario())
