"""Random lives of many jobs that share workers, queues, keys and each other, against a model that is a plain dict.

The same rules drive control over a store in memory and a real node behind its sockets. Workers are scripted: they take
what they are given and report what the rule says, also late, twice, or never. After every step the system has to agree
with the model about every job, and to have started one wherever a worker was free and nothing spoke against it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import Struct

from jobs.clock import wall_ms
from jobs.errors import AlreadyStarted, IdempotencyConflict, NotRedrivable
from jobs.protocol import wire
from jobs.protocol.model import JobState, JobSubmit, JobView, Reason, Retry, ShellJob, ShellPayload
from tests.support.jobsmodel import Conflict, Job, Model, Worker
from tests.support.peer import WorkerPeer
from tests.support.systems import InMemory, OverSockets, System

T = TypeVar("T")
SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
STEP_S = 20.0
SOON_MS = 25
NEVER_MS = 253_402_300_799_999
SLOTS = {"w1": 1, "w2": 2}


class Wish(Struct, frozen=True):
    """What is drawn of one job; numbers choose among what is there when it is submitted."""

    label: int
    queue: str
    priority: int
    key: str | None
    idempotency_key: str | None
    unique_key: str | None
    max_attempts: int
    on_failure: str
    when: str
    parents: list[int]
    sibling: bool


WISHES = st.builds(
    Wish,
    label=st.integers(0, 1),
    queue=st.sampled_from(["qa", "qb"]),
    priority=st.integers(-1, 1),
    key=st.sampled_from([None, None, "one", "two"]),
    idempotency_key=st.sampled_from([None, None, None, "i1", "i2"]),
    unique_key=st.sampled_from([None, None, None, "u1", "u2"]),
    max_attempts=st.integers(1, 3),
    on_failure=st.sampled_from(["fail", "fail", "run"]),
    when=st.sampled_from(["now", "now", "now", "past", "soon", "never"]),
    parents=st.just([]) | st.lists(st.integers(0, 1000), max_size=2),
    sibling=st.booleans(),
)
LIMITS = {"one": 1, "two": 2}


class Crew:
    """The scripted workers and their connections; their frames come in one queue."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.peers: dict[str, WorkerPeer] = {}
        self.items: dict[tuple[str, int], wire.Assignment] = {}
        self._frames: asyncio.Queue[tuple[WorkerPeer, wire.NodeFrame]] = asyncio.Queue()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._aside: list[tuple[WorkerPeer, wire.NodeFrame]] = []

    async def join(self, name: str, running: Sequence[wire.JobRef] = (), *, incarnation: str | None = None) -> None:
        """Connect a worker, or a new life of it."""
        self.leave(name)
        peer = self.peers[name] = WorkerPeer(name, slots=SLOTS[name], incarnation=incarnation)
        answer = await peer.register(self._path, running)
        assert isinstance(answer, wire.Registered), answer
        assert answer.fenced == [], "what a worker runs by the model is its own"
        self._readers[name] = asyncio.create_task(self._read(peer))

    def leave(self, name: str) -> None:
        """Cut a worker's connection."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.cancel()
            self.peers[name].writer.transport.abort()

    async def _read(self, peer: WorkerPeer) -> None:
        while True:
            size = int.from_bytes(await peer.reader.readexactly(4), "big")
            await self._frames.put((peer, wire.decode_node_frame(await peer.reader.readexactly(size))))

    def is_current(self, peer: WorkerPeer) -> bool:
        return self.peers.get(peer.name) is peer

    async def next(self) -> tuple[WorkerPeer, wire.NodeFrame]:
        """Return the next frame of a connection that is still there."""
        async with asyncio.timeout(STEP_S):
            while True:
                peer, frame = self._aside.pop(0) if self._aside else await self._frames.get()
                if self.is_current(peer):
                    return peer, frame

    def waiting(self) -> bool:
        """Tell whether a frame has come of a connection that is still there; forget the others."""
        while not self._frames.empty():
            self._aside.append(self._frames.get_nowait())
        self._aside = [(peer, frame) for peer, frame in self._aside if self.is_current(peer)]
        return bool(self._aside)

    async def acknowledged(self, job: str, attempt: int) -> bool:
        """Return whether a report was accepted; what else comes before the answer is dealt with later."""
        others = []
        while True:
            peer, frame = await self.next()
            if isinstance(frame, wire.FinishedAck) and (frame.job, frame.attempt) == (job, attempt):
                self._aside = others + self._aside
                return frame.accepted
            others.append((peer, frame))

    async def close(self) -> None:
        for name in list(self._readers):
            self.leave(name)


class Semantics(RuleBasedStateMachine):
    """Subclasses say what is driven."""

    kind: ClassVar[type[InMemory] | type[OverSockets]]
    max_restarts: ClassVar[int]
    """In one example; those of processes take long."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = Path(tempfile.mkdtemp(prefix="semantics-"))
        self._runner = asyncio.Runner()
        self.model = Model()
        self.restarts = 0
        self.system: System = self.kind(self._directory)
        self.run(self.system.start())
        self.crew = Crew(self.system.worker_socket)
        self.cancels: set[tuple[str, int]] = set()
        """Running attempts whose worker has to be told that they are to end."""
        self.over: list[tuple[str, int]] = []
        """Attempts that have ended, for reports that come late."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def teardown(self) -> None:
        try:
            self.run(self._tear_down())
        finally:
            self._runner.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _tear_down(self) -> None:
        try:
            await self.agree(self.model.jobs.values())
        finally:
            await self.crew.close()
            await self.system.stop()

    # --- rules --------------------------------------------------------------------------------------------------

    @initialize()
    def workers_come(self) -> None:
        async def step() -> None:
            for name, slots in SLOTS.items():
                self.model.workers[name] = Worker(slots)
                await self.crew.join(name)

        self.run(step())

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=3))
    def submit(self, wishes: list[Wish]) -> None:
        async def step() -> None:
            batch = self._batch(wishes)
            try:
                answers = self.model.answers(batch)
            except Conflict:
                with pytest.raises(IdempotencyConflict):
                    await self.system.submit(batch)
                return
            submitted = await self.system.submit(batch)
            assert [one.created for one in submitted] == [answer.created for answer in answers]
            ids = [one.job.id for one in submitted]
            for job, answer in zip(ids, answers, strict=True):
                assert answer.known in (None, job)
                assert answer.twin is None or ids[answer.twin] == job
            self.model.on_submitted(batch, answers, ids)

        self.step(step())

    def _batch(self, wishes: list[Wish]) -> list[JobSubmit]:
        known = list(self.model.jobs)
        times = {"now": None, "past": 1, "soon": wall_ms() + SOON_MS, "never": NEVER_MS}
        batch: list[JobSubmit] = []
        for index, wish in enumerate(wishes):
            parents = {known[number % len(known)] for number in wish.parents if known}
            siblings = {f"r{index - 1}"} if wish.sibling and index else set()
            batch.append(
                ShellJob(
                    payload=ShellPayload(argv=["true"]),
                    labels={"n": str(wish.label)},
                    queue=wish.queue,
                    priority=wish.priority,
                    concurrency_key=wish.key,
                    concurrency_limit=LIMITS.get(wish.key or "", 1),
                    idempotency_key=wish.idempotency_key,
                    unique_key=wish.unique_key,
                    retry=Retry(max_attempts=wish.max_attempts, backoff="none", delay_s=0),
                    on_failure=wish.on_failure,  # type: ignore[arg-type]
                    not_before_ms=times[wish.when],
                    depends_on=sorted(parents | siblings),
                    ref=f"r{index}",
                )
            )
        return batch

    @precondition(lambda self: self.model.running())
    @rule(number=st.integers(0, 1000), reason=st.sampled_from([None, None, Reason.EXIT_CODE, Reason.TIMEOUT]))
    def finish(self, number: int, reason: Reason | None) -> None:
        """A worker reports the end of an attempt."""

        async def step() -> None:
            job = pick(self.model.running(), number)
            if job.cancel_requested and reason is not None:
                await self._report(job, Reason.CANCELLED)
            else:
                await self._report(job, reason)

        self.step(step())

    async def _report(self, job: Job, reason: Reason | None) -> None:
        assert job.worker is not None
        peer, item = self.crew.peers[job.worker], self.crew.items[job.id, job.attempt]
        peer.finish(item, reason=reason, exit_code=1 if reason is Reason.EXIT_CODE else 0 if reason is None else None)
        assert await self.crew.acknowledged(job.id, job.attempt)
        self._over(job)
        self.model.on_attempt_ended(job.id, reason)

    def _over(self, job: Job) -> None:
        self.over.append((job.id, job.attempt))
        self.cancels.discard((job.id, job.attempt))

    @precondition(lambda self: self.over)
    @rule(number=st.integers(0, 1000), name=st.sampled_from(sorted(SLOTS)))
    def report_late(self, number: int, name: str) -> None:
        """A worker reports an attempt that has ended, as another than it was: nothing changes."""

        async def step() -> None:
            job, attempt = pick(self.over, number)
            self.crew.peers[name].finish(self.crew.items[job, attempt], reason=Reason.SIGNAL, exit_code=None)
            assert not await self.crew.acknowledged(job, attempt)

        self.step(step())

    @precondition(lambda self: self.model.jobs)
    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        async def step() -> None:
            job = pick(list(self.model.jobs.values()), number)
            is_news = not job.cancel_requested
            outcome = (await self.system.cancel(job.id)).outcome
            assert outcome == self.model.on_cancel(job.id)
            if outcome == "requested" and is_news:
                self.cancels.add((job.id, job.attempt))

        self.step(step())

    @precondition(lambda self: len(self.model.jobs) > 1)
    @rule(number=st.integers(0, 1000), others=st.lists(st.integers(0, 1000), min_size=1, max_size=2))
    def depend(self, number: int, others: list[int]) -> None:
        """A job is made to wait for others that are older than it, so that there is no circle."""

        async def step() -> None:
            job = pick(list(self.model.jobs.values())[1:], number)
            older = [other.id for other in self.model.jobs.values() if other.number < job.number]
            parents = [pick(older, other) for other in others]
            if set(parents) <= set(job.parents):
                await self.system.depend(job.id, parents)  # it does already: nothing changes, whatever became of it
                return
            if job.state is not JobState.PENDING or job.attempt > 0:
                with pytest.raises(AlreadyStarted):
                    await self.system.depend(job.id, parents)
                return
            await self.system.depend(job.id, parents)
            self.model.depend(job.id, parents)

        self.step(step())

    @precondition(lambda self: self.model.jobs)
    @rule(number=st.integers(0, 1000))
    def redrive(self, number: int) -> None:
        async def step() -> None:
            failed = [job for job in self.model.jobs.values() if job.state is JobState.FAILED]
            job = pick(failed or list(self.model.jobs.values()), number)
            if job.redriven_as is not None:
                again = await self.system.redrive(job.id)
                assert (again.job.id, again.created) == (job.redriven_as, False)
                return
            expected = self.model.redrive(job.id)
            if expected is None:
                with pytest.raises(NotRedrivable):
                    await self.system.redrive(job.id)
                return
            made = await self.system.redrive(job.id)
            assert (made.created, made.job.redrive_of) == (True, job.id)
            self.model.on_redriven(job.id, made.job.id, *expected)

        self.step(step())

    @rule(queue=st.sampled_from(["qa", "qb"]))
    def pause_or_resume(self, queue: str) -> None:
        async def step() -> None:
            paused = queue not in self.model.paused
            await self.system.pause(queue, paused=paused)
            self.model.paused ^= {queue}

        self.step(step())

    @rule(queue=st.sampled_from(["qa", "qb"]), max_running=st.sampled_from([None, 1, 2]))
    def limit(self, queue: str, max_running: int | None) -> None:
        async def step() -> None:
            await self.system.limit(queue, max_running)
            self.model.max_running.pop(queue, None)
            if max_running is not None:
                self.model.max_running[queue] = max_running

        self.step(step())

    @rule(name=st.sampled_from(sorted(SLOTS)))
    def lose(self, name: str) -> None:
        """Another life of a worker comes: what the former one had is over."""

        async def step() -> None:
            await self.crew.join(name)
            for job in self.model.running(name):
                self._over(job)
            self.model.on_worker_lost(name)

        self.step(step())

    @rule(name=st.sampled_from(sorted(SLOTS)))
    def reconnect(self, name: str) -> None:
        """A worker's connection breaks, and it comes back with what it runs."""
        self.step(self._come_back(name))

    async def _come_back(self, name: str) -> None:
        mine = self.model.running(name)
        refs = [wire.JobRef(job=self.crew.items[job.id, job.attempt].job, attempt=job.attempt) for job in mine]  # type: ignore[arg-type]
        await self.crew.join(name, refs, incarnation=self.crew.peers[name].incarnation)
        # It is told once more what it has to end.
        self.cancels |= {(job.id, job.attempt) for job in mine if job.cancel_requested}

    @precondition(lambda self: self.restarts < self.max_restarts)
    @rule(how=st.sampled_from([signal.SIGKILL, signal.SIGTERM]), first=st.sampled_from(sorted(SLOTS)))
    def restart(self, how: signal.Signals, first: str) -> None:
        async def step() -> None:
            self.restarts += 1
            for name in SLOTS:
                self.crew.leave(name)
            await self.system.restart(how)
            for name in sorted(SLOTS, key=lambda name: name != first):
                await self._come_back(name)

        self.step(step())

    # --- after every step ---------------------------------------------------------------------------------------

    def step(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, let the system come to rest, and hold it against the model."""

        async def whole() -> None:
            self.model.step += 1
            before = {job.id: job.attempt for job in self.model.jobs.values()}
            await work
            await self.rest()
            await self.agree(job for job in self.model.jobs.values() if before.get(job.id) != job.attempt)

        self.run(whole())

    async def rest(self) -> None:
        """Take in what workers are told, for as long as they have to be told something."""
        started: list[Job] = []
        while self.crew.waiting() or self.cancels or self.model.must_start(wall_ms() + 2 * SOON_MS):
            try:
                peer, frame = await self.crew.next()
            except TimeoutError as error:
                waits = self.model.must_start(wall_ms())
                raise AssertionError(f"not told: to end {self.cancels}; to start one of {waits}") from error
            started += self._on_frame(peer, frame)
        self._check_priorities(started)

    def _on_frame(self, peer: WorkerPeer, frame: wire.NodeFrame) -> list[Job]:
        if isinstance(frame, wire.Cancel):
            assert (frame.job, frame.attempt) in self.cancels, f"nobody asked for the end of {frame}"
            self.cancels.discard((frame.job, frame.attempt))
            return []
        assert isinstance(frame, wire.Assign), frame
        for item in frame.jobs:
            self.crew.items[item.job, item.attempt] = item
            self.model.on_assigned(peer.name, item.job, item.attempt, wall_ms())
        return [self.model.jobs[item.job] for item in frame.jobs]

    def _check_priorities(self, started: list[Job]) -> None:
        """Nothing was passed over in its own queue that was ready before and is more urgent."""
        for waiting in self.model.jobs.values():
            if self.model.forbids(waiting) is not None or waiting.ready_since == self.model.step:
                continue
            for job in started:
                one_lane = (
                    job.spec.queue == waiting.spec.queue and job.spec.concurrency_key == waiting.spec.concurrency_key
                )
                is_known = waiting.spec.not_before_ms in (None, 1)
                assert not (one_lane and is_known and job.spec.priority < waiting.spec.priority), (
                    f"{job.id} was started before {waiting.id}"
                )

    async def agree(self, closer: Iterable[Job]) -> None:
        """Compare every job, and every attempt of some."""
        for job in self.model.jobs.values():
            # Children are told in the background, after what ended their parent has been answered.
            if job.told_in_background:
                async with asyncio.timeout(STEP_S):
                    await self.system.until(job.id, lambda found, job=job: is_as(found, job))  # type: ignore[misc]
                job.told_in_background = False
        listed = {job.id: job for job in await self.system.list()}
        assert listed.keys() == self.model.jobs.keys()
        for job in self.model.jobs.values():
            assert is_as(listed[job.id], job), f"{listed[job.id]} should be {job}"
        for job in list(closer):
            attempts = {one.attempt: (one.state, one.reason) for one in await self.system.attempts(job.id)}
            running = {job.attempt: (JobState.RUNNING, None)} if job.state is JobState.RUNNING else {}
            assert attempts == job.ended | running


def is_as(found: JobView, job: Job) -> bool:
    """Tell whether a job is as the model has it."""
    told = (found.state, found.reason, found.attempt, found.waits_for, found.redriven_as)
    runs_there = job.state is not JobState.RUNNING or found.worker == job.worker
    return told == (job.state, job.reason, job.attempt, len(job.waits_for), job.redriven_as) and runs_there


def pick(choices: Sequence[T], number: int) -> T:
    return choices[number % len(choices)]


class MemorySemantics(Semantics):
    kind = InMemory
    max_restarts = 100


class SocketSemantics(Semantics):
    kind = OverSockets
    max_restarts = 2


def check(machine: type[Semantics], examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples * SCALE,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(120 * SCALE)
def test_control_over_a_store_in_memory_does_what_the_model_does() -> None:
    check(MemorySemantics, 60, 40)


@pytest.mark.timeout(300 * SCALE)
def test_a_node_over_its_sockets_does_what_the_model_does() -> None:
    check(SocketSemantics, 4, 40)
