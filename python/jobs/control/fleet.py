"""The workers: who they are, what each one holds, and what happens when one comes, goes or is lost."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Coroutine, Iterator
from heapq import merge
from typing import Any, Final, Literal, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.assignments import Assignments
from jobs.control.audit import audit_entry
from jobs.control.leases import Leases
from jobs.control.once import was_done
from jobs.control.tasks import Spawn
from jobs.control.transitions import EMPTY, Transitions, check, scan_in_turns
from jobs.errors import NotFound, WorkerStopping
from jobs.jobs import Refusal
from jobs.protocol.ids import Attempt, Incarnation, JobId, LeaseId, WorkerId
from jobs.protocol.model import PressureKind, Requires, WorkerView
from jobs.protocol.wire import Assignment, Heartbeat, JobRef, Register, Registered
from jobs.records import JobRecord, ResultRecord, RunningRecord, WorkerRecord
from jobs.scheduler import Amounts, Candidate
from jobs.service import Caller, WorkerProcess
from jobs.store import Delete, LeaseGrant, Op, Put, Store, Txn, prefix_end

logger = logging.getLogger(__name__)

LOST_CHUNK_BYTES: Final = 1_024
"""What a chunk of output is taken to hold where no worker has told how much it was."""
MAX_LOST_CHUNKS: Final = 100_000


class Session(Protocol):
    """A worker's connection."""

    def assign(self, assignments: list[Assignment]) -> None: ...

    def cancel(self, job: JobId, attempt: Attempt) -> None: ...

    def confirm_stop(self) -> None:
        """Nothing more will be assigned to the worker, which has said that it stops."""

    def supersede(self) -> None:
        """Another life of the worker has registered: tell this one to end its jobs, and close."""


class Held(Struct, frozen=True):
    """An attempt that a worker has, or is being given."""

    attempt: Attempt
    requires: Requires
    owner: int
    started_ms: int


class Worker(Struct, kw_only=True):
    """A registered worker, connected or not."""

    id: WorkerId
    record: WorkerRecord
    lease: LeaseId
    session: Session | None = None
    held: dict[JobId, Held] = field(default_factory=dict)
    """In the order in which they were started."""
    pressure: dict[PressureKind, float] = field(default_factory=dict)
    pressed: bool = False
    """Its machine has too much to do for more, by its last heartbeat."""
    drained: bool = False
    """An administrator has said that it is given no more jobs."""

    def shut(self) -> str | None:
        """Return why it is given no jobs at present, whatever is free; None when it may be."""
        if self.session is None:
            return "not connected"
        if self.record.stopping:
            return "stopping"
        if self.drained:
            return "draining"
        if self.pressed:
            over = ", ".join(f"{name} {percent:g} %" for name, percent in self.pressure.items())
            return f"under pressure: {over}"
        return None

    def candidate(self) -> Candidate:
        """Return the worker as the scheduler sees it."""
        record, held = self.record, self.held.values()
        return Candidate(
            worker=self.id,
            incarnation=record.incarnation,
            type=record.type,
            labels=record.labels,
            open=self.shut() is None,
            total=Amounts(
                slots=record.slots,
                cpu_milli=record.cpu_milli,
                memory_bytes=record.memory_bytes,
                resources=record.resources,
            ),
            free=Amounts(
                slots=record.slots - len(held),
                cpu_milli=record.cpu_milli - sum(item.requires.cpu_milli for item in held),
                memory_bytes=record.memory_bytes - sum(item.requires.memory_bytes for item in held),
                resources={
                    name: count - sum(item.requires.resources.get(name, 0) for item in held)
                    for name, count in record.resources.items()
                },
            ),
        )

    def view(self) -> WorkerView:
        record = self.record
        return WorkerView(
            id=self.id,
            type=record.type,
            incarnation=record.incarnation,
            node=record.node,
            state=self._state(),
            slots=record.slots,
            running=len(self.held),
            labels=record.labels,
            cpu_milli=record.cpu_milli,
            memory_bytes=record.memory_bytes,
            sandbox=record.sandbox,
            registered_ms=record.registered_ms,
            resources=record.resources,
            pressure=self.pressure,
            pressed=self.pressed,
            drained=self.drained,
        )

    def _state(self) -> Literal["ready", "draining", "stopping", "lost"]:
        if self.session is None:
            return "lost"
        return "stopping" if self.record.stopping else "draining" if self.drained else "ready"


class Fleet:
    """Every registered worker; the store has the records, this has what goes on."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        leases: Leases,
        assignments: Assignments,
        spawn: Spawn,
        *,
        lease_ttl_s: float,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._leases = leases
        self._assignments = assignments
        self._spawn = spawn
        self._lease_ttl_s = lease_ttl_s
        self._registering = asyncio.Lock()
        self._draining = asyncio.Lock()
        self._workers: dict[WorkerId, Worker] = {}
        self._drained: set[WorkerId] = set()
        """Also workers that are not there at present."""
        self._abandoned: list[tuple[JobId, RunningRecord]] = []
        """Found at the start, and nobody's."""
        self.on_room: Callable[[], None] = lambda: None
        """Called when a worker may take more than before."""
        self.lost_total = 0
        leases.on_expired = self._on_lease_expired

    async def load(self) -> None:
        """Read the workers and what they hold from the store; each has the time of its lease to come back."""
        async for page in scan_in_turns(self._store, keys.DRAINED):
            self._drained.update(WorkerId(row[0][len(keys.DRAINED) :].decode()) for row in page)
        async for page in scan_in_turns(self._store, keys.WORKERS):
            for key, value, _, _, _, lease in page:
                worker_id = WorkerId(key[len(keys.WORKERS) :].decode())
                record = records.decode(WorkerRecord, value)
                self._workers[worker_id] = self._worker(worker_id, record, LeaseId(lease))
        runs: list[tuple[bytes, RunningRecord]] = []
        async for page in scan_in_turns(self._store, keys.RUNNING):
            runs += ((row[0], records.decode(RunningRecord, row[1])) for row in page)
        for key, running in sorted(runs, key=lambda run: run[1].started_ms):
            worker_id = WorkerId(key[len(keys.RUNNING) : key.index(b"\x00")].decode())
            worker = self._workers.get(worker_id)
            if worker is not None and worker.record.incarnation == running.incarnation:
                worker.held[keys.job_of(key)] = Held(
                    running.attempt, running.requires, running.owner, running.started_ms
                )
            else:
                self._abandoned.append((keys.job_of(key), running))

    def start(self) -> None:
        """End the attempts whose workers are gone."""
        abandoned, self._abandoned = self._abandoned, []
        for job, running in abandoned:
            self._spawn(self.end_attempt(job, running.attempt, running.incarnation))

    # --- what the dispatcher asks ---------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        return [worker.candidate() for worker in self._workers.values()]

    def shut(self) -> dict[WorkerId, str]:
        """Return why workers are given no jobs at present, of those that are not."""
        return {worker.id: why for worker in self._workers.values() if (why := worker.shut()) is not None}

    def longest(self) -> Iterator[tuple[JobId, Held]]:
        """Yield what workers have, the longest running first."""
        lists = [worker.held.items() for worker in self._workers.values()]
        return merge(*lists, key=lambda item: item[1].started_ms)

    def views(self) -> list[WorkerView]:
        return [worker.view() for worker in self._workers.values()]

    def get(self, worker: WorkerId | None, incarnation: Incarnation | None) -> Worker | None:
        """Return the worker if this life of it is the registered one."""
        found = self._workers.get(worker) if worker is not None else None
        return found if found is not None and found.record.incarnation == incarnation else None

    def release(self, worker: WorkerId | None, incarnation: Incarnation | None, job: JobId) -> None:
        """The worker no longer has the job."""
        found = self.get(worker, incarnation)
        if found is not None:
            found.held.pop(job, None)

    def cancel(self, job: JobId, record: JobRecord) -> None:
        """Pass a cancellation on; a worker that is not connected is told when it returns."""
        worker = self.get(record.worker, record.incarnation)
        if worker is not None and worker.session is not None:
            worker.session.cancel(job, record.attempt)

    def deliver(self, worker_id: WorkerId, incarnation: Incarnation, assignments: list[Assignment]) -> None:
        """Hand over jobs whose assignment is committed.

        A worker that is away is told when it registers again; one that is lost has lost these as well.
        """
        worker = self.get(worker_id, incarnation)
        if worker is None:
            for item in assignments:
                self._spawn(self.end_attempt(item.job, item.attempt, incarnation))
        elif worker.session is not None and assignments:
            worker.session.assign(assignments)
            for item in assignments:
                stored = self._transitions.read(item.job)
                if stored is not None and stored.record.cancel_requested:
                    worker.session.cancel(item.job, item.attempt)

    # --- coming and going -----------------------------------------------------------------------------------------

    async def register(self, frame: Register, process: WorkerProcess, session: Session) -> Registered:
        """Take a worker in: a new life ends the former one first, a known one goes on where it was."""
        async with self._registering:
            worker = self._workers.get(frame.worker)
            if worker is not None and worker.record.incarnation != frame.incarnation:
                await self.lose(worker, "another life of it has registered")
                worker = None
            if worker is None:
                worker = await self._enrol(frame, process)
            elif worker.session is not None:
                worker.session.supersede()
            worker.session = session
            self._leases.keep(worker.lease, self._lease_ttl_s)
        logger.info("worker registered", extra={"worker": frame.worker, "incarnation": frame.incarnation})
        return Registered(
            node=process.node,
            heartbeat_s=self._lease_ttl_s / 4,
            lease_ttl_s=self._lease_ttl_s,
            fenced=[ref for ref in frame.running if not self._is_running(ref, frame.incarnation)],
        )

    def resume(self, frame: Register, session: Session) -> None:
        """After the answer to a registration: tell the worker what it missed while it was away."""
        worker = self.get(frame.worker, frame.incarnation)
        if worker is None or worker.session is not session:
            return
        known = {(ref.job, ref.attempt) for ref in frame.running}
        missed: list[Assignment] = []
        for job in worker.held:
            stored = self._transitions.read(job)
            if stored is None or stored.record.incarnation != frame.incarnation or not _runs(stored.record):
                continue
            if (job, stored.record.attempt) not in known:
                missed.append(self._assignments.of(job, stored.record))
            elif stored.record.cancel_requested:
                session.cancel(job, stored.record.attempt)
        self.deliver(frame.worker, frame.incarnation, missed)
        self.on_room()

    async def _enrol(self, frame: Register, process: WorkerProcess) -> Worker:
        record = WorkerRecord(
            type=frame.type,
            incarnation=frame.incarnation,
            node=process.node,
            slots=frame.slots,
            labels=frame.labels,
            cpu_milli=frame.cpu_milli,
            memory_bytes=frame.memory_bytes,
            sandbox=frame.sandbox,
            registered_ms=wall_ms(),
            resources=frame.resources,
            process=process.process,
        )
        lease = LeaseId(secrets.randbits(62) + 1)
        grant = LeaseGrant(lease, int(self._lease_ttl_s * 1000))
        put = Put(keys.worker(frame.worker), records.encode(record), lease)
        check(await self._consensus.propose(Txn(then=(grant, put))))
        worker = self._workers[frame.worker] = self._worker(frame.worker, record, lease)
        return worker

    def _worker(self, worker_id: WorkerId, record: WorkerRecord, lease: LeaseId) -> Worker:
        return Worker(id=worker_id, record=record, lease=lease, drained=worker_id in self._drained)

    def heartbeat(self, worker: WorkerId, incarnation: Incarnation, beat: Heartbeat) -> bool:
        """Keep the worker's lease; False when this life of it is no longer registered."""
        found = self.get(worker, incarnation)
        if found is None:
            return False
        self._leases.keep(found.lease)
        was_pressed = found.pressed
        found.pressure, found.pressed = beat.pressure, beat.pressed
        if was_pressed and not beat.pressed:
            self.on_room()
        return True

    def disconnected(self, worker: WorkerId, incarnation: Incarnation, session: Session) -> None:
        """A connection ended. The worker may come back until its lease ends."""
        found = self.get(worker, incarnation)
        if found is not None and found.session is session:
            found.session = None

    def died(self, node: str, process: str) -> None:
        """A process has ended on a node: a life of a worker that it was will not come back."""
        for worker in list(self._workers.values()):
            if (worker.record.node, worker.record.process) == (node, process):
                self._spawn(self.lose(worker, "its process has ended"))

    async def lose(self, worker: Worker, why: str) -> None:
        """Forget a worker: fence what it had, and end its lease."""
        if self._workers.get(worker.id) is not worker:
            return
        del self._workers[worker.id]
        self.lost_total += 1
        logger.warning("worker lost: %s", why, extra={"worker": worker.id, "attempts": len(worker.held)})
        if worker.session is not None:
            worker.session.supersede()
        await asyncio.gather(
            *(self.end_attempt(job, held.attempt, worker.record.incarnation) for job, held in worker.held.items()),
            self._leases.revoke(worker.lease),
        )

    async def end_attempt(self, job: JobId, attempt: Attempt, incarnation: Incarnation) -> None:
        """The worker that had the attempt is gone; an attempt that is over already stays as it ended."""
        now_ms, chance = wall_ms(), random.random()  # noqa: S311 - jitter
        output = keys.log_prefix(job, attempt)
        log_bytes = LOST_CHUNK_BYTES * self._store.count(output, prefix_end(output), limit=MAX_LOST_CHUNKS)
        worker: WorkerId | None = None

        def decide(record: JobRecord) -> jobs.Step:
            nonlocal worker
            worker = record.worker
            return jobs.on_worker_lost(record, attempt, incarnation, now_ms, chance, log_bytes)

        def extra(record: JobRecord) -> tuple[Op, ...]:
            result = ResultRecord(
                state=jobs.FAILED,
                reason=record.reason,
                message=record.message,
                execution=None,
                worker=worker,
                started_ms=record.started_ms,
                finished_ms=now_ms,
            )
            return (Put(keys.result(job, attempt), records.encode(result)),)

        done = await self._transitions.apply(job, decide, extra)
        if not isinstance(done, Refusal):
            logger.warning("attempt lost with its worker", extra={"job": job, "attempt": attempt})

    async def drain(self, worker_id: WorkerId, caller: Caller) -> WorkerView:
        """Give the worker, and its next lives, no more jobs until `undrain`. Raises NotFound."""
        async with self._draining:
            if not (self._find(worker_id).drained or was_done(self._store, caller.request_id)):
                # At once, so that nothing is assigned by a transaction after this one.
                self._set_drained(worker_id, True)
                try:
                    entry = audit_entry(caller, "worker.drain", worker_id, wall_ms())
                    ops = (Put(keys.drained(worker_id), EMPTY), entry)
                    check(await self._consensus.propose(Txn(then=ops, request_id=caller.request_id)))
                except BaseException:
                    self._set_drained(worker_id, False)
                    raise
            return self._find(worker_id).view()

    async def undrain(self, worker_id: WorkerId, caller: Caller) -> WorkerView:
        """Give the worker jobs again. Raises NotFound, and WorkerStopping for one that takes none by its own will."""
        async with self._draining:
            worker = self._find(worker_id)
            if was_done(self._store, caller.request_id):
                return worker.view()
            if worker.record.stopping:
                raise WorkerStopping(f"worker {worker_id} stops: it takes no more jobs", expected="its next life")
            if worker.drained:
                entry = audit_entry(caller, "worker.resume", worker_id, wall_ms())
                ops = (Delete(keys.drained(worker_id)), entry)
                check(await self._consensus.propose(Txn(then=ops, request_id=caller.request_id)))
                self._set_drained(worker_id, False)
                self.on_room()
            return self._find(worker_id).view()

    def _set_drained(self, worker_id: WorkerId, drained: bool) -> None:
        (self._drained.add if drained else self._drained.discard)(worker_id)
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.drained = drained

    async def stops(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """The worker takes no more jobs and goes when it has none: confirm it once all it is given has been sent."""
        worker = self.get(worker_id, incarnation)
        if worker is None:
            return
        if not worker.record.stopping:
            worker.record = replace(worker.record, stopping=True)
            put = Put(keys.worker(worker_id), records.encode(worker.record), worker.lease)
            # Whatever was assigned before is committed before this, and sent.
            check(await self._consensus.propose(Txn(then=(put,))))
        if worker.session is not None:
            worker.session.confirm_stop()

    def _find(self, worker_id: WorkerId) -> Worker:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise NotFound(f"there is no worker {worker_id}")
        return worker

    def _on_lease_expired(self, lease: LeaseId) -> Coroutine[Any, Any, None] | None:
        worker = next((worker for worker in self._workers.values() if worker.lease == lease), None)
        return None if worker is None else self.lose(worker, "its lease ran out")

    def _is_running(self, ref: JobRef, incarnation: Incarnation) -> bool:
        stored = self._transitions.read(ref.job)
        return stored is not None and jobs.is_current(stored.record, ref.attempt, incarnation)


def _runs(record: JobRecord) -> bool:
    return record.state is jobs.RUNNING
