"""Random graphs that grow, run, fail and outlive restarts, against a model that is plain to read."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from jobs import keys
from jobs.errors import AlreadyStarted, InvalidRequest
from jobs.protocol import wire
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import JobState, JobView, Reason
from jobs.store import prefix_end
from tests.support.peer import WorkerPeer
from tests.support.plane import ALICE, Plane, shell

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
STEP_S = 20.0


class Node(Struct):
    """What the model knows of a job."""

    parents: list[int]
    runs_anyway: bool
    state: JobState = JobState.PENDING
    started: bool = False


class Model:
    """Jobs by number; a job that is ready is running, as there is always room."""

    def __init__(self) -> None:
        self.jobs: list[Node] = []

    def unended(self, number: int) -> list[int]:
        return [parent for parent in self.jobs[number].parents if not self.jobs[parent].state.is_final]

    def settle(self) -> None:
        """Let every job do what it does by itself."""
        changed = True
        while changed:
            changed = False
            for number, job in enumerate(self.jobs):
                if job.state is not JobState.PENDING:
                    continue
                failed = any(self.jobs[parent].state is JobState.FAILED for parent in job.parents)
                if failed and not job.runs_anyway:
                    job.state = JobState.FAILED
                    changed = True
                elif not self.unended(number):
                    job.state, job.started = JobState.RUNNING, True

    def waits_for(self, start: int, number: int) -> bool:
        """Tell whether one job waits for another, through jobs that have not been started."""
        left, seen = [start], {start}
        while left:
            node = left.pop()
            if node == number:
                return True
            if not self.jobs[node].started:
                fresh = set(self.jobs[node].parents) - seen
                seen |= fresh
                left += fresh
        return False

    def running(self) -> list[int]:
        return [number for number, job in enumerate(self.jobs) if job.state is JobState.RUNNING]


class World:
    """The real thing beside the model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = Model()
        self.ids: list[JobId] = []
        self.worker = WorkerPeer(slots=1_000)
        self.assigned: dict[JobId, wire.Assignment] = {}

    async def start(self) -> None:
        self.plane = await Plane(self.directory).start()
        running = [wire.JobRef(job=job, attempt=Attempt(1)) for job in self.assigned]
        await self.worker.register(self.plane.worker_socket, running)

    async def restart(self) -> None:
        """Stop, as likely as not while children are being told, and start again."""
        await self.plane.stop()
        await self.worker.close()
        await self.start()

    async def submit(self, jobs: Sequence[tuple[bool, Sequence[int]]], *, backwards: bool) -> None:
        base = len(self.ids)
        requests = []
        for index, (runs_anyway, picks) in enumerate(jobs):
            parents = list(dict.fromkeys(pick % (base + index) for pick in picks if base + index))
            self.model.jobs.append(Node(parents, runs_anyway))
            named = [self.ids[parent] if parent < base else f"r{parent}" for parent in parents]
            how = "run" if runs_anyway else "fail"
            requests.append(shell("true", ref=f"r{base + index}", depends_on=named, on_failure=how))
        order = range(len(jobs) - 1, -1, -1) if backwards else range(len(jobs))
        made = await self.plane.control.submit(ALICE, [requests[index] for index in order])
        ids = {index: one.job.id for index, one in zip(order, made, strict=True)}
        self.ids += [ids[index] for index in range(len(jobs))]

    async def depend(self, child: int, parent: int) -> None:
        job = self.model.jobs[child]
        refused: type[Exception] | None = None
        if parent in job.parents:
            pass  # asked again, it changes nothing, whatever has become of the job
        elif job.state is not JobState.PENDING:
            refused = AlreadyStarted
        elif self.model.waits_for(parent, child):
            refused = InvalidRequest
        else:
            job.parents.append(parent)
        with pytest.raises(refused) if refused is not None else nullcontext():
            await self.plane.control.depend(ALICE, self.ids[child], [self.ids[parent]])

    async def cancel(self, number: int) -> None:
        if self.model.jobs[number].state is JobState.PENDING:
            self.model.jobs[number].state = JobState.FAILED
            await self.plane.control.cancel(ALICE, self.ids[number])

    async def finish(self, pick: int, *, fails: bool) -> None:
        await self.catch_up()
        running = self.model.running()
        if not running:
            return
        number = running[pick % len(running)]
        self.model.jobs[number].state = JobState.FAILED if fails else JobState.COMPLETED
        item = self.assigned.pop(self.ids[number])
        self.worker.finish(item, reason=Reason.EXIT_CODE if fails else None, exit_code=int(fails))
        while not isinstance(await self.receive(), wire.FinishedAck):
            pass

    async def receive(self) -> wire.NodeFrame:
        frame = await self.worker.receive()
        if isinstance(frame, wire.Assign):
            self.assigned.update({item.job: item for item in frame.jobs})
        return frame

    async def catch_up(self) -> None:
        """Wait until the worker has every job that is ready."""
        self.model.settle()
        running = {self.ids[number] for number in self.model.running()}
        while len(self.assigned) < len(running):
            await self.receive()
        assert set(self.assigned) == running

    async def check(self) -> None:
        """Wait until nothing moves any more, and compare everything."""
        await self.catch_up()
        async with asyncio.timeout(STEP_S):
            while self.plane.store.range(keys.PARENT_ENDED, prefix_end(keys.PARENT_ENDED), limit=1)[0]:
                await asyncio.sleep(0)
        for number, (job, node) in enumerate(zip(self.ids, self.model.jobs, strict=True)):
            detail = await self.plane.control.get(ALICE, job)
            view: JobView = detail.job
            assert detail.parents == [self.ids[parent] for parent in node.parents]
            waits_for = len(self.model.unended(number)) if node.state is JobState.PENDING else 0
            assert (view.state, view.waits_for) == (node.state, waits_for)
            if view.state is JobState.FAILED:
                assert (view.reason is Reason.EXIT_CODE) == node.started


picks = st.integers(0, 1_000)
steps = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.tuples(st.booleans(), st.lists(picks, max_size=3)), min_size=1, max_size=5),
        st.booleans(),
    ),
    st.tuples(st.just("depend"), picks, picks),
    st.tuples(st.just("finish"), picks, st.booleans()),
    st.tuples(st.just("finish"), picks, st.just(False)),
    st.tuples(st.just("cancel"), picks),
    st.tuples(st.just("restart")),
)


@settings(max_examples=30 * SCALE, deadline=None)
@given(st.lists(steps, min_size=5, max_size=25), st.booleans())
def test_graphs_go_as_the_model_says(todo: list[tuple[Any, ...]], patient: bool) -> None:
    """Without patience, the next step comes while children are still being told."""

    async def scenario(directory: Path) -> None:
        world = World(directory)
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        await world.start()
        try:
            await world.submit([(False, []), (False, [0])], backwards=False)
            await world.check()
            for kind, *given_ in todo:
                world.model.settle()
                count = len(world.ids)
                if kind == "submit":
                    await world.submit(given_[0], backwards=given_[1])
                elif kind == "depend" and patient:
                    await world.depend(given_[0] % count, given_[1] % count)
                elif kind == "finish":
                    await world.finish(given_[0], fails=given_[1])
                elif kind == "cancel" and patient:
                    await world.cancel(given_[0] % count)
                elif kind == "restart":
                    await world.restart()
                if patient:
                    await world.check()
            await world.check()
        finally:
            await world.plane.stop()
        await asyncio.sleep(0)
        assert not faults

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(Path(directory)))
