"""Workers, jobs and time for tests of the scheduler: all of it made up, nothing of it real."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys
from jobs.jobs import demand_of, on_submit
from jobs.protocol.ids import Incarnation, JobId, WorkerId, uuid7
from jobs.protocol.model import Requires, ShellJob, ShellPayload
from jobs.records import Demand, OwnerRecord, QueueRecord
from jobs.scheduler import Amounts, Assignment, Backlog, Candidate, Plan, plan

SHELL = Demand("shell", Requires())
GIB = 1 << 30


def worker(
    name: str,
    slots: int = 1,
    *,
    cpu: int = 4_000,
    memory: int = GIB,
    labels: Mapping[str, str] | None = None,
    resources: Mapping[str, int] | None = None,
    type: str = "shell",
) -> Candidate:
    """Return an idle worker."""
    amounts = Amounts(slots=slots, cpu_milli=cpu, memory_bytes=memory, resources=dict(resources or {}))
    return Candidate(
        worker=WorkerId(name),
        incarnation=Incarnation(name * 32),
        type=type,
        labels=dict(labels or {}),
        open=True,
        total=amounts,
        free=amounts,
    )


def asks(**requires: object) -> Demand:
    return Demand("shell", Requires(**requires))  # type: ignore[arg-type]


def named_root(name: str) -> Demand:
    """Return what a job asks that names a root image and nothing else."""
    job = ShellJob(payload=ShellPayload(argv=["true"], root=name))
    return demand_of(on_submit(job, 1, 1))


def key(
    number: int, demand: Demand = SHELL, *, queue: str = "default", owner: int = 1, priority: int = 0, at_ms: int = 0
) -> bytes:
    """Return the queue key of job `number`, ready since `at_ms` or since `number`."""
    return keys.queue(queue, owner, demand.lane(), priority, at_ms or number, uuid7(number, number))


class Cluster:
    """A backlog with workers that run what they are given until told that it has ended."""

    def __init__(self, *workers: Candidate) -> None:
        self.backlog = Backlog()
        self.queues: dict[str, QueueRecord] = {}
        self.owners: dict[int, OwnerRecord] = {}
        self.backlog.set_limits(self.queues, self.owners)
        self.workers = {item.worker: item for item in workers}
        self.running: dict[JobId, tuple[WorkerId, Demand, Assignment]] = {}
        self.waiting: dict[bytes, Demand] = {}
        self.now_ms = 1_000
        self.last = Plan([], None)

    def add(self, *entries: tuple[bytes, Demand]) -> None:
        for entry, demand in entries:
            self.waiting[entry] = demand
            self.backlog.add(entry, demand)

    def set_queue(self, name: str, **changes: object) -> None:
        self.queues[name] = QueueRecord(**changes)  # type: ignore[arg-type]
        self.backlog.queue_changed(name)

    def set_owner(self, owner: int, **changes: object) -> None:
        self.owners[owner] = OwnerRecord(**changes)  # type: ignore[arg-type]
        self.backlog.owner_changed(owner)

    def plan(self, limit: int = 100) -> list[Assignment]:
        """Make plans until one has nothing more to do at once; return what was assigned."""
        made: list[Assignment] = []
        while True:
            made += self.plan_once(limit)
            if self.last.wake_ms is None or self.last.wake_ms > self.now_ms or len(made) >= limit:
                return made

    def plan_once(self, limit: int = 100) -> list[Assignment]:
        """Make one plan; return what was assigned."""
        self.last = plan(self.backlog, self.workers.values(), self.now_ms, limit)
        for item in self.last.assignments:
            demand = self.waiting.pop(item.queue_key)
            self._hold(item.worker, demand, -1)
            assert item.job not in self.running
            self.running[item.job] = (item.worker, demand, item)
        return self.last.assignments

    def started(self, limit: int = 100) -> list[bytes]:
        return [item.queue_key for item in self.plan(limit)]

    def end(self, *entries: bytes) -> None:
        """The jobs of these keys have ended."""
        for entry in entries:
            job = keys.job_of(entry)
            worker_id, demand, _ = self.running.pop(job)
            self._hold(worker_id, demand, 1)
            self.backlog.end(job)

    def _hold(self, worker_id: WorkerId, demand: Demand, sign: int) -> None:
        """Take what a job asks from a worker (-1), or give it back (1)."""
        held, free, asked = self.workers[worker_id], self.workers[worker_id].free, demand.requires
        resources = {name: free.resources[name] + sign * asked.resources.get(name, 0) for name in free.resources}
        self.workers[worker_id] = replace(
            held,
            free=Amounts(
                slots=free.slots + sign,
                cpu_milli=free.cpu_milli + sign * asked.cpu_milli,
                memory_bytes=free.memory_bytes + sign * asked.memory_bytes,
                resources=resources,
            ),
        )


class Arrival(Struct, frozen=True):
    """A job to come: when, what, and how long it runs."""

    at_ms: int
    key: bytes
    demand: Demand
    run_ms: int


def simulate(cluster: Cluster, arrivals: Iterable[Arrival], until_ms: int = 10_000_000) -> dict[bytes, tuple[int, int]]:
    """Run a cluster from event to event; return when each job started and ended."""
    coming = sorted(arrivals, key=lambda item: (item.at_ms, item.key))
    lengths = {item.key: item.run_ms for item in coming}
    ends: list[tuple[int, bytes]] = []
    times: dict[bytes, tuple[int, int]] = {}
    upcoming = 0
    while True:
        moments = [item.at_ms for item in coming[upcoming : upcoming + 1]] + [at_ms for at_ms, _ in ends[:1]]
        if cluster.last.wake_ms is not None and cluster.last.wake_ms > cluster.now_ms:
            moments.append(cluster.last.wake_ms)
        if not moments or min(moments) > until_ms:
            return times
        cluster.now_ms = max(cluster.now_ms, min(moments))
        while ends and ends[0][0] <= cluster.now_ms:
            cluster.end(heapq.heappop(ends)[1])
        while upcoming < len(coming) and coming[upcoming].at_ms <= cluster.now_ms:
            cluster.add((coming[upcoming].key, coming[upcoming].demand))
            upcoming += 1
        for item in cluster.plan():
            times[item.queue_key] = (cluster.now_ms, cluster.now_ms + lengths[item.queue_key])
            heapq.heappush(ends, (cluster.now_ms + lengths[item.queue_key], item.queue_key))
