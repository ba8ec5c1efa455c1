"""The control plane of one leadership as one object: the parts wired together, and what the API calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct, field

from jobs.consensus import Consensus
from jobs.control.arrays import Arrays
from jobs.control.arrayservice import ArrayOperations
from jobs.control.assignments import Assignments
from jobs.control.blobs import BlobConfig, Blobs
from jobs.control.builtin import BuiltInSchedules
from jobs.control.cancels import Cancels
from jobs.control.data import Data
from jobs.control.deadletters import DeadLetters
from jobs.control.dependencies import Dependencies
from jobs.control.dispatch import Dispatcher
from jobs.control.explain import Explanations
from jobs.control.fleet import Fleet
from jobs.control.gateway import Gateway
from jobs.control.hub import Hub
from jobs.control.jobreferences import JobReferences
from jobs.control.leases import Leases
from jobs.control.maintenance import Maintenance
from jobs.control.measures import JobMeasures
from jobs.control.moments import Moments, MomentsConfig
from jobs.control.moving import OutputMover
from jobs.control.newjobs import JobMaker, makes_room
from jobs.control.once import was_done
from jobs.control.output import OutputBlobs
from jobs.control.overview import Activity, Overviews
from jobs.control.queries import Queries, check_admin
from jobs.control.queues import Queues
from jobs.control.queueservice import QueueOperations
from jobs.control.reads import ReadOperations
from jobs.control.replication import Replication, ReplicationConfig
from jobs.control.retention import Retention, RetentionConfig
from jobs.control.schedules import Schedules
from jobs.control.scheduleservice import ScheduleOperations
from jobs.control.secrets import Secrets, SecretsConfig
from jobs.control.submission import Submission
from jobs.control.tables import TableWrites
from jobs.control.tasks import Tasks
from jobs.control.tracing import Sink, Tracing
from jobs.control.trail import Trail
from jobs.control.transitions import Change, Transitions, check
from jobs.errors import StorageFull
from jobs.protocol.ids import NO_REQUEST, JobId, RequestId, WorkerId
from jobs.protocol.model import (
    CancelMany,
    CancelOutcome,
    CancelPage,
    Explanation,
    Health,
    JobSubmit,
    JobView,
    KvDelete,
    KvPut,
    KvTxn,
    KvTxnResult,
    Lease,
    Overview,
    Progress,
    Submitted,
    WorkerView,
)
from jobs.retention import Totals
from jobs.service import Caller, OverviewLimits
from jobs.store import Keep, Store, Txn

WORKER_TYPES: Final = frozenset({"shell", "sql", "blob", "maintenance", "replication"})


class ControlConfig(Struct, frozen=True, kw_only=True):
    """Bounds and times of the control plane."""

    max_pending: int = 2_000_000
    """Jobs that may wait; one more is refused with 429."""
    worker_lease_s: float = 10.0
    """Without a sign of life for this long a worker is lost."""
    history_events: int = 500_000
    """Changes of keys that watches and reads can go back."""
    retention: RetentionConfig = RetentionConfig()
    """What is kept of jobs that have ended."""
    max_store_bytes: int = 32 << 30
    """Above this nothing new is accepted (507); what is accepted already still finishes."""
    max_schedules: int = 10_000
    max_schedules_per_owner: int = 1_000
    max_fires_per_minute: int = 6_000
    """Jobs that all schedules together make in any minute."""
    is_admin: Callable[[int], bool] = lambda uid: uid == 0
    """Whether everything is shown to the queries of an owner."""
    blobs: BlobConfig = BlobConfig()
    moments: MomentsConfig = MomentsConfig()
    built_in_schedules: bool = False
    """Make the schedules for maintenance that were never made."""
    replication: ReplicationConfig = ReplicationConfig()
    secrets: SecretsConfig = field(default_factory=SecretsConfig)
    measures: JobMeasures | None = None
    """Counts over all leaderships."""
    spans: Sink | None = None
    """Takes the spans of jobs; None records none."""
    sample_ratio: float = 1.0
    """Share of the jobs that are recorded of those that were submitted in no trace."""


class Control(ReadOperations):
    """Implements `service.Service` for as long as this node leads: made from the store when it begins to, and given up
    when it ceases to. What memory holds is right because nobody else writes meanwhile."""

    _data: Data

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        hub: Hub,
        output_blobs: OutputBlobs,
        config: ControlConfig,
        health: Callable[[], Health],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._config = config
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = tasks = Tasks()
        self._transitions = transitions = Transitions(consensus, store)
        self._leases = Leases(consensus, store, tasks.spawn)
        self.secrets = Secrets(consensus, store, config.secrets, self._check_space)
        self._tracing = Tracing(store, config.spans, config.sample_ratio)
        assignments = Assignments(store, self._leases, self.secrets, self._tracing, config.is_admin)
        self._fleet = Fleet(
            consensus,
            store,
            transitions,
            self._leases,
            assignments,
            tasks.spawn,
            lease_ttl_s=config.worker_lease_s,
        )
        self._queues = Queues(consensus, store)
        self.blobs = Blobs(
            consensus,
            store,
            hub,
            self._queues,
            tasks.spawn,
            config.blobs,
            is_admin=config.is_admin,
            check_space=self._check_space,
        )
        self.replication = Replication(consensus, store, self.blobs, config.replication, self._check_space)
        self._dispatcher = Dispatcher(
            consensus, store, transitions, self._fleet, self._queues, assignments, tasks.spawn
        )
        self.queues = QueueOperations(consensus, store, self._queues, self._dispatcher.backlog.usage)
        self._dependencies = Dependencies(consensus, store, transitions, self._tracing, tasks.spawn)
        references = JobReferences(store, config.is_admin)
        maker = JobMaker(self._queues, references, max_pending=config.max_pending)
        self._submission = Submission(consensus, store, transitions, maker, self._dependencies)
        self._arrays = Arrays(consensus, store, transitions, self._queues, tasks.spawn)
        self._queries = Queries(consensus.barrier, store, hub, output_blobs, self._array_progress)
        self.dead_letters = DeadLetters(
            consensus, store, transitions, self._queries, maker, self._dependencies, self._check_space
        )
        self._explanations = Explanations(
            store, transitions, self._queries, self._dispatcher, self._fleet, self._arrays
        )
        self.arrays = ArrayOperations(
            store, self._arrays, self._queries, self._submission, self.dead_letters, maker, self._check_space
        )
        self._activity = Activity()
        self._overviews = Overviews(
            consensus,
            store,
            transitions,
            self._queries,
            self._dispatcher,
            self._fleet,
            self._queues,
            self.queues,
            self._activity,
            health,
        )
        self._cancels = Cancels(consensus, store, transitions, self._arrays)
        self._mover = OutputMover(consensus, store, transitions, self.blobs.references, output_blobs, tasks.spawn)
        self._retention = Retention(consensus, store, transitions, references, tasks.spawn, config.retention)
        self._moments = Moments(consensus, store, config.moments)
        self.maintenance = Maintenance(consensus, store, self._retention, self._leases, self._fleet, self._dispatcher)
        self.audit = Trail(consensus, store, transitions)
        self._data = Data(consensus, store, hub, self._leases)
        self.gateway = Gateway(
            transitions,
            self._fleet,
            TableWrites(store, config.is_admin, self._check_space),
            references,
            tasks.spawn,
            types=WORKER_TYPES,
        )
        self._schedule_driver = Schedules(
            consensus,
            store,
            transitions,
            maker,
            tasks.spawn,
            max_fires_per_minute=config.max_fires_per_minute,
            check_space=self._check_space,
        )
        self.schedules = ScheduleOperations(
            consensus,
            store,
            self._schedule_driver,
            maker,
            references,
            max_schedules=config.max_schedules,
            max_per_owner=config.max_schedules_per_owner,
            check_space=self._check_space,
        )
        transitions.on_change = self._on_change
        self._dispatcher.on_assigned = self._on_assigned
        self._queues.on_queue_changed = self._on_queue_changed

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up the work from the store, which nobody else writes: this node leads, and has applied everything.

        Reading it takes many short turns; nothing is written or promised before all of it is known.
        """
        await self._bound_history()
        await self.secrets.start()
        await self._leases.load()
        await self._queues.load()
        await self._fleet.load()
        await self._dispatcher.load()
        await self._dependencies.load()
        await self._arrays.load()
        await self._schedule_driver.load()
        self._leases.start()
        self._fleet.start()
        self._dispatcher.start()
        self._dependencies.start()
        self._arrays.start()
        self._schedule_driver.start()
        self._retention.start()
        self.blobs.start()
        self._mover.start()
        self._tasks.spawn(self._moments.run())
        self._tasks.spawn(self.secrets.resume())
        if self._config.built_in_schedules:
            self._tasks.spawn(BuiltInSchedules(self._consensus, self._store, self._schedule_driver).make())

    def end(self) -> None:
        """Begin nothing more, and let those who wait for something of this know that it will not come."""
        if not self.ended.done():
            self.ended.set_result(None)
        self._schedule_driver.stop()
        self._dispatcher.stop()
        self._arrays.stop()
        self._retention.stop()
        self._moments.stop()
        self.blobs.stop()
        self._leases.stop()
        self.gateway.stop()

    async def stop(self) -> None:
        """Let go of the workers, which keep their jobs, and end everything; also after half a start."""
        self.end()
        await self._tasks.stop()

    def _on_assigned(self, change: Change) -> None:
        if self._config.measures is not None:
            self._config.measures.on_assigned(change)
        self._tracing.on_assigned(change)
        self._arrays.on_change(change)

    def _on_change(self, change: Change) -> None:
        if self._config.measures is not None:
            self._config.measures.on_change(change)
        self._tracing.on_change(change)
        self._activity.on_change(change)
        self._dispatcher.on_change(change)
        self._arrays.on_change(change)
        self._dependencies.on_change(change)
        self._schedule_driver.on_change(change)
        self._retention.on_change(change)
        self._mover.on_change(change)

    def _on_queue_changed(self, name: str) -> None:
        self._dispatcher.on_queue_changed(name)
        self._arrays.on_queue_changed(name)

    async def _bound_history(self) -> None:
        """Have the store keep as much history as is configured."""
        if self._store.max_history_events != self._config.history_events:
            check(await self._consensus.propose(Txn(then=(Keep(self._config.history_events),))))

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, caller: Caller, jobs: Sequence[JobSubmit]) -> list[Submitted]:
        if not all(makes_room(job) for job in jobs):
            self._check_space()
        return await self._submission.submit(caller, jobs)

    async def cancel(self, caller: Caller, job: JobId) -> CancelOutcome:
        stored = await self._queries.read(caller, job)
        return await self._cancels.one(caller, job, stored.record)

    async def cancel_many(self, caller: Caller, wanted: CancelMany) -> CancelPage:
        return await self._cancels.many(caller, wanted)

    async def depend(self, caller: Caller, job: JobId, depends_on: Sequence[JobId]) -> JobView:
        self._check_space()
        await self._queries.read(caller, job)
        return await self._dependencies.add(caller, job, depends_on)

    async def explain(self, caller: Caller, job: JobId) -> Explanation:
        return await self._explanations.explain(caller, job)

    # --- workers ------------------------------------------------------------------------------------------------

    async def workers(self, caller: Caller) -> list[WorkerView]:
        await self._consensus.barrier()
        return self._fleet.views()

    async def drain_worker(self, caller: Caller, worker: str) -> WorkerView:
        check_admin(caller, "drain workers")
        return await self._fleet.drain(WorkerId(worker), caller)

    async def resume_worker(self, caller: Caller, worker: str) -> WorkerView:
        check_admin(caller, "resume workers")
        return await self._fleet.undrain(WorkerId(worker), caller)

    # --- key-value ----------------------------------------------------------------------------------------------

    async def kv_put(self, caller: Caller, put: KvPut) -> KvTxnResult:
        self._check_space(caller.request_id)
        return await self._data.put(caller, put)

    async def kv_delete(self, caller: Caller, delete: KvDelete) -> KvTxnResult:
        return await self._data.delete(caller, delete)

    async def kv_txn(self, caller: Caller, txn: KvTxn) -> KvTxnResult:
        self._check_space(caller.request_id)
        return await self._data.txn(caller, txn)

    async def lease_grant(self, caller: Caller, ttl_s: float) -> Lease:
        self._check_space(caller.request_id)
        return await self._data.lease_grant(caller, ttl_s)

    async def lease_keepalive(self, caller: Caller, lease: int) -> Lease:
        return await self._data.lease_keepalive(caller, lease)

    async def lease_revoke(self, caller: Caller, lease: int) -> None:
        await self._data.lease_revoke(caller, lease)

    # --- node ---------------------------------------------------------------------------------------------------

    async def overview(self, caller: Caller, limits: OverviewLimits) -> Overview:
        return await self._overviews.get(caller, limits)

    def metrics(self) -> dict[str, tuple[str, float]]:
        workers = self._fleet.views()
        ended = self._retention.totals.known or Totals(0, 0)
        return {
            "jobs_pending": ("Jobs that wait, for a worker or for a time", self._dispatcher.pending),
            "jobs_arrays_open": ("Arrays that have not ended", self._arrays.open),
            "jobs_running": ("Attempts that workers have", sum(worker.running for worker in workers)),
            "jobs_submitted_total": ("Jobs accepted", self._activity.submitted.total),
            "jobs_assigned_total": ("Attempts given to workers", self._dispatcher.assigned.total),
            "jobs_ended_total": ("Jobs that completed or failed for good", self._activity.ended.total),
            "jobs_refused_reports_total": ("Late reports refused", self.gateway.refused_reports_total),
            "jobs_schedules": ("Schedules", len(self._schedule_driver.owners)),
            "jobs_schedule_fires_total": ("Jobs made by schedules", self._schedule_driver.fired_total),
            "jobs_ended": ("Ended jobs that are kept, 0 until they have been counted", ended.jobs),
            "jobs_ended_bytes": ("About what they take in the store", ended.bytes),
            "jobs_blobs_condemned_total": ("Blobs that nothing referred to any more", self.blobs.condemned_total),
            "jobs_outputs_moved_total": ("Attempts whose output became blobs", self._mover.moved_total),
            "jobs_redriven_total": ("Failed jobs repeated as new ones", self.dead_letters.redriven_total),
            "jobs_removed_total": ("Ended jobs deleted by retention", self._retention.removal.jobs_total),
            "jobs_outputs_removed_total": (
                "Ended jobs whose output was deleted before them",
                self._retention.removal.outputs_total,
            ),
            "jobs_retention_behind_seconds": (
                "How far the clock by which jobs age is behind",
                self._retention.behind_ms / 1_000,
            ),
            "jobs_workers": ("Registered workers", len(workers)),
            "jobs_worker_slots": ("Slots of registered workers", sum(worker.slots for worker in workers)),
            "jobs_workers_lost_total": ("Workers lost", self._fleet.lost_total),
        }

    @property
    def worker_count(self) -> int:
        return len(self._fleet.views())

    async def _array_progress(self, array: JobId) -> Progress:
        return self._arrays.progress(array)

    def _check_space(self, request: RequestId = NO_REQUEST) -> None:
        """Raise StorageFull when there is no room, unless the request was carried out before: then it takes none."""
        used = self._store.used_bytes()
        if used > self._config.max_store_bytes and not was_done(self._store, request):
            raise StorageFull(
                f"the store holds {used} bytes; the limit is {self._config.max_store_bytes}",
                expected="a larger store.max_bytes, or fewer jobs kept",
            )
