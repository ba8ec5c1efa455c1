"""What jobs do, as a plain dict: what a system has to agree with after every step, and may do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from jobs.protocol.model import JobState, JobSubmit, Reason

PENDING, RUNNING, COMPLETED, FAILED = JobState


class Conflict(Exception):
    """A request that has to be refused as a whole."""


@dataclass
class Job:
    """One job as it should be."""

    id: str
    spec: JobSubmit
    number: int
    """In the order of submission."""
    ready_since: int
    """The step in which it came to need nothing but a worker."""
    state: JobState = PENDING
    reason: Reason | None = None
    attempt: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    waits_for: set[str] = field(default_factory=set)
    parents: list[str] = field(default_factory=list)
    ended: dict[int, tuple[JobState, Reason | None]] = field(default_factory=dict)
    """How each attempt ended."""
    redriven_as: str | None = None
    told_in_background: bool = False
    """It has changed because another one ended."""

    @property
    def is_ready(self) -> bool:
        return self.state is PENDING and not self.waits_for


@dataclass
class Worker:
    """A worker of one life after the other, with so many slots."""

    slots: int
    is_connected: bool = True


@dataclass
class Answer:
    """What a request's job should become: a new one, or one that is there, or an earlier one of the same request."""

    known: str | None = None
    twin: int | None = None

    @property
    def created(self) -> bool:
        return self.known is None and self.twin is None


class Model:
    """Every job, what they share, and who runs them."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.paused: set[str] = set()
        self.max_running: dict[str, int] = {}
        self.step = 0
        self._by_idempotency_key: dict[str, Job] = {}

    # --- what is true now ---------------------------------------------------------------------------------------

    def running(self, worker: str | None = None) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is RUNNING and worker in (None, job.worker)]

    def holder(self, unique_key: str | None) -> Job | None:
        """Return the job that has a unique key."""
        held = (job for job in self.jobs.values() if unique_key is not None and job.spec.unique_key == unique_key)
        return next((job for job in held if not job.state.is_final), None)

    def forbids(self, job: Job) -> str | None:
        """Return why the job may not be started, if it may not; whether a worker is free is another matter."""
        spec, running = job.spec, self.running()
        if job.state is not PENDING:
            return f"it is {job.state}"
        if job.waits_for:
            return f"it waits for {job.waits_for}"
        if spec.queue in self.paused:
            return "its queue is paused"
        if sum(other.spec.queue == spec.queue for other in running) >= self.max_running.get(
            spec.queue, len(running) + 1
        ):
            return "its queue has as many as may run"
        sharing = sum(
            spec.concurrency_key is not None and other.spec.concurrency_key == spec.concurrency_key for other in running
        )
        if spec.concurrency_key is not None and sharing >= spec.concurrency_limit:
            return "its concurrency key has as many as may run"
        return None

    def free(self) -> Iterator[str]:
        """Yield the workers that can take one more."""
        for name, worker in self.workers.items():
            if worker.is_connected and len(self.running(name)) < worker.slots:
                yield name

    def must_start(self, now_ms: int) -> list[Job]:
        """Return the jobs of which one has to be started, since a worker is free and nothing speaks against it."""
        if not any(self.free()):
            return []
        return [job for job in self.jobs.values() if self.forbids(job) is None and is_due(job, now_ms)]

    # --- requests -----------------------------------------------------------------------------------------------

    def answers(self, batch: Sequence[JobSubmit]) -> list[Answer]:
        """Return what has to become of a request's jobs. Raises Conflict."""
        first: dict[tuple[str, str], int] = {}
        answers = []
        for index, spec in enumerate(batch):
            answers.append(self._answer(spec, batch, first, answers))
            for key in _keys(spec):
                first.setdefault(key, index)
        return answers

    def _answer(
        self, spec: JobSubmit, batch: Sequence[JobSubmit], first: dict[tuple[str, str], int], answers: list[Answer]
    ) -> Answer:
        for kind, key in _keys(spec):
            if (kind, key) in first:
                twin = first[kind, key]
                if kind == "idempotency" and batch[twin] != spec:
                    raise Conflict(key)
                earlier = answers[twin]
                return Answer(twin=twin if earlier.twin is None else earlier.twin)
        if spec.idempotency_key in self._by_idempotency_key:
            known = self._by_idempotency_key[spec.idempotency_key]
            if known.spec != spec:
                raise Conflict(spec.idempotency_key)
            return Answer(known=known.id)
        holder = self.holder(spec.unique_key)
        return Answer(known=holder.id) if holder is not None else Answer()

    def on_submitted(self, batch: Sequence[JobSubmit], answers: Sequence[Answer], ids: Sequence[str]) -> None:
        refs = {spec.ref: job for spec, job in zip(batch, ids, strict=True) if spec.ref is not None}
        fresh = [(spec, job) for spec, job, answer in zip(batch, ids, answers, strict=True) if answer.created]
        for spec, job in fresh:
            self.add(job, spec)
        for spec, job in fresh:
            self.depend(job, [refs.get(parent, parent) for parent in spec.depends_on])

    def add(self, job: str, spec: JobSubmit) -> None:
        assert job not in self.jobs, "an id is given once"
        made = self.jobs[job] = Job(job, spec, len(self.jobs), self.step)
        if spec.idempotency_key is not None:
            self._by_idempotency_key[spec.idempotency_key] = made

    def depend(self, job: str, parents: Sequence[str]) -> None:
        child = self.jobs[job]
        for parent in dict.fromkeys(parents):
            if parent in child.parents:
                continue
            child.parents.append(parent)
            if child.state is not PENDING:
                continue
            if not self.jobs[parent].state.is_final:
                child.waits_for.add(parent)
                continue
            # One of the same request that has failed with its own parents tells of it as any other does.
            child.told_in_background = True
            if self.jobs[parent].state is FAILED and child.spec.on_failure == "fail":
                self._end(child, FAILED, Reason.DEPENDENCY_FAILED)

    def on_cancel(self, job: str) -> str:
        """Return what the answer has to be."""
        found = self.jobs[job]
        if found.state.is_final:
            return "already_final"
        if found.state is RUNNING:
            found.cancel_requested = True
            return "requested"
        found.cancel_requested = True
        self._end(found, FAILED, Reason.CANCELLED)
        return "cancelled"

    def redrive(self, job: str) -> tuple[JobSubmit, list[str]] | None:
        """Return what is submitted anew and what that depends on; None when it has to be refused."""
        old = self.jobs[job]
        parents = [self.successor(parent) for parent in old.parents]
        failed = any(self.jobs[parent].state is FAILED for parent in parents) and old.spec.on_failure == "fail"
        if old.state is not FAILED or failed or self.holder(old.spec.unique_key) is not None:
            return None
        return replace(old.spec, idempotency_key=None), parents

    def successor(self, job: str) -> str:
        while (next_one := self.jobs[job].redriven_as) is not None:
            job = next_one
        return job

    def on_redriven(self, job: str, new: str, spec: JobSubmit, parents: Sequence[str]) -> None:
        self.add(new, spec)
        self.depend(new, parents)
        self.jobs[job].redriven_as = new

    # --- workers ------------------------------------------------------------------------------------------------

    def on_assigned(self, worker: str, job: str, attempt: int, now_ms: int) -> None:
        found = self.jobs[job]
        why = self.forbids(found)
        assert why is None, f"job {job} was started though {why}"
        assert is_due(found, now_ms), f"job {job} was started before its time"
        assert worker in self.free(), f"{worker} has more jobs than slots"
        assert attempt == found.attempt + 1, f"attempt {attempt} of job {job} follows attempt {found.attempt}"
        found.state, found.attempt, found.worker, found.reason = RUNNING, attempt, worker, None

    def on_attempt_ended(self, job: str, reason: Reason | None) -> None:
        found = self.jobs[job]
        if reason is None:
            self._record(found, COMPLETED, None)
            self._end(found, COMPLETED, None)
        elif found.cancel_requested or reason is Reason.CANCELLED:
            self._record(found, FAILED, Reason.CANCELLED)
            self._end(found, FAILED, Reason.CANCELLED)
        elif found.attempt < found.spec.retry.max_attempts:
            self._record(found, FAILED, reason)
            found.state, found.reason, found.worker, found.ready_since = PENDING, reason, None, self.step
        else:
            self._record(found, FAILED, reason)
            self._end(found, FAILED, reason)

    def on_worker_lost(self, worker: str) -> None:
        for job in self.running(worker):
            self.on_attempt_ended(job.id, Reason.WORKER_LOST)

    def _record(self, job: Job, state: JobState, reason: Reason | None) -> None:
        assert job.attempt not in job.ended, "an attempt ends once"
        job.ended[job.attempt] = (state, reason)

    def _end(self, job: Job, state: JobState, reason: Reason | None) -> None:
        assert not job.state.is_final, "an end is final"
        job.state, job.reason = state, reason
        job.waits_for.clear()
        for child in self.jobs.values():
            if job.id not in child.waits_for:
                continue
            child.told_in_background = True
            if state is FAILED and child.spec.on_failure == "fail":
                self._end(child, FAILED, Reason.DEPENDENCY_FAILED)
            else:
                child.waits_for.discard(job.id)
                child.ready_since = self.step


def is_due(job: Job, now_ms: int) -> bool:
    return (job.spec.not_before_ms or 0) <= now_ms


def _keys(spec: JobSubmit) -> Iterator[tuple[str, str]]:
    if spec.idempotency_key is not None:
        yield "idempotency", spec.idempotency_key
    if spec.unique_key is not None:
        yield "unique", spec.unique_key
