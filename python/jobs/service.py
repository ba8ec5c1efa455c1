"""What the API asks of the node and its control plane. `control` implements it; `api` knows nothing else of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from msgspec import Struct

from jobs.errors import Unavailable
from jobs.protocol.ids import MAX_TASKS, NO_REQUEST, Attempt, JobId, RequestId
from jobs.protocol.model import (
    ArrayRetry,
    ArrayView,
    AttemptList,
    AuditPage,
    BlobCollect,
    BlobCollectPage,
    BlobDone,
    BlobPage,
    BlobPerform,
    BlobShare,
    BlobTag,
    BlobTagPage,
    BlobTagSet,
    BlobTicket,
    BlobView,
    CancelMany,
    CancelOutcome,
    CancelPage,
    ClusterJoin,
    ClusterView,
    ConflictPage,
    DeadLetterPage,
    DeadLetterSelection,
    Explanation,
    Health,
    Invitation,
    JobDetail,
    JobEvent,
    JobGraph,
    JobPage,
    JobResult,
    JobState,
    JobSubmit,
    JobView,
    KeyValue,
    KvDelete,
    KvEvent,
    KvPage,
    KvPut,
    KvTxn,
    KvTxnResult,
    LeaderTransfer,
    LeaderTransferred,
    Lease,
    LinkList,
    LinkSet,
    LinkView,
    MaintenanceDone,
    MaintenancePerform,
    OperationNews,
    Overview,
    OwnerChange,
    OwnerSettings,
    OwnerView,
    PurgeOutcome,
    PurgePage,
    QueueChange,
    QueuePage,
    QueueSettings,
    QueueView,
    RedrivePage,
    ReplicationDone,
    ReplicationPerform,
    Schedule,
    ScheduleDetail,
    SchedulePage,
    ScheduleTimes,
    ScheduleView,
    SecretKeyRotate,
    SecretKeyRotated,
    SecretKeyView,
    SecretPage,
    SecretPut,
    SecretView,
    Stream,
    Submitted,
    SyncList,
    TicketList,
    TicketRequest,
    TicketView,
    TimetablePreview,
    WorkerView,
)
from jobs.tracing.context import TraceContext

if TYPE_CHECKING:
    from jobs.backups.source import BackupSource
    from jobs.blobs.host import BlobHost


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks, from SO_PEERCRED, and by which request."""

    uid: int
    gid: int
    admin: bool
    request_id: RequestId = NO_REQUEST
    """Of a request to change something, the same however often it is sent: it is to be carried out once."""
    trace: TraceContext | None = None
    """The span in which the request was made."""


class WorkerProcess(Struct, frozen=True, kw_only=True):
    """The process behind a worker's connection, for which its node vouches."""

    node: str
    pid: int
    uid: int
    process: str
    """Told from all processes of the node that had or will have this pid, where that can be known."""


class JobFilter(Struct, frozen=True, kw_only=True):
    """All that are given must match."""

    states: tuple[JobState, ...] = ()
    type: str | None = None
    queue: str | None = None
    owner: int | None = None
    worker: str | None = None
    schedule: str | None = None
    """Made by this schedule."""
    labels: tuple[tuple[str, str], ...] = ()
    array: JobId | None = None
    """Tasks of this array; without it no job that is one of an array's tasks matches."""
    indices: tuple[int, int] = (0, MAX_TASKS - 1)
    """Of its tasks, those from the first to the second."""


class AuditFilter(Struct, frozen=True, kw_only=True):
    """All that are given must match."""

    job: JobId | None = None
    uid: int | None = None
    """Who did it."""
    action: str = ""
    """What it was, or how that begins."""
    from_ms: int = 0
    to_ms: int | None = None
    """Before this."""


class LogPosition(Struct, frozen=True):
    """After which piece of an attempt; None is the first of those asked for, -1 before its first piece."""

    attempt: Attempt | None
    seq: int


class LogsWanted(Struct, frozen=True, kw_only=True):
    """What of a job's output, and from where on."""

    attempt: Attempt | Literal["all"] | None = None
    """None: the last one, and with `follow` also those that come after it."""
    streams: tuple[Stream, ...] = tuple(Stream)
    follow: bool = False
    """Go on until the job has ended, or the attempt that was asked for."""
    after: LogPosition | None = None
    tail_lines: int | None = None
    """From the last so many lines on, in the order in which the output was read; `after` wins over it."""
    tail_bytes: int | None = None
    """From the last so many bytes on: 0 is from now on."""


class OverviewLimits(Struct, frozen=True, kw_only=True):
    """How many of each an overview tells at most."""

    queues: int
    workers: int
    jobs: int
    failed: int


class LogPiece(Struct, frozen=True, kw_only=True):
    """A piece of one stream; `seq` orders the pieces of an attempt and resumes a follower."""

    attempt: Attempt
    seq: int
    stream: Stream
    data: bytes


class QueueService(Protocol):
    """Queues and owners: anybody sees queues, an owner sees themselves, only admins change them or see other owners."""

    async def page(self, caller: Caller, *, limit: int, cursor: str | None) -> QueuePage: ...

    async def get(self, caller: Caller, name: str) -> QueueView: ...

    async def put(self, caller: Caller, name: str, settings: QueueSettings) -> QueueView: ...

    async def change(self, caller: Caller, name: str, change: QueueChange) -> QueueView: ...

    async def pause(self, caller: Caller, name: str, *, paused: bool) -> QueueView: ...

    async def drain(self, caller: Caller, name: str, *, draining: bool) -> QueueView: ...

    async def get_owner(self, caller: Caller, uid: int) -> OwnerView: ...

    async def put_owner(self, caller: Caller, uid: int, settings: OwnerSettings) -> OwnerView: ...

    async def change_owner(self, caller: Caller, uid: int, change: OwnerChange) -> OwnerView: ...


class DeadLetterService(Protocol):
    """Jobs that failed for good: an owner deals with their own, admins with all."""

    async def page(
        self, caller: Caller, where: DeadLetterSelection, *, limit: int, cursor: str | None
    ) -> DeadLetterPage:
        """Newest first. A page may hold fewer than `limit` and still have a next one."""

    async def redrive(self, caller: Caller, job: JobId) -> Submitted:
        """Repeat a failed job as a new one; asking again gives the same. Raises NotRedrivable, and as `submit`."""

    async def redrive_many(self, caller: Caller, where: DeadLetterSelection) -> RedrivePage:
        """Oldest first, so that what others depend on comes before them; a bounded number of them."""

    async def purge(self, caller: Caller, job: JobId) -> PurgeOutcome: ...

    async def purge_many(self, caller: Caller, where: DeadLetterSelection) -> PurgePage: ...


class ArrayService(Protocol):
    """What only arrays have; everything else is done with them as with any job. Raises NotFound for other jobs."""

    async def view(self, caller: Caller, array: JobId) -> ArrayView:
        """How far it is."""

    def follow(self, caller: Caller, array: JobId) -> AsyncIterator[ArrayView]:
        """How far it is, whenever that has changed, at most once a second, until it has ended."""

    async def cancel(self, caller: Caller, array: JobId, indices: str) -> CancelOutcome:
        """End some of its tasks."""

    async def retry(self, caller: Caller, array: JobId, wanted: ArrayRetry) -> Submitted:
        """Repeat tasks of an ended array that did not complete, as a new array. Raises NotFinished."""


class AuditService(Protocol):
    """The audit trail."""

    async def page(self, caller: Caller, where: AuditFilter, *, limit: int, cursor: str | None) -> AuditPage:
        """Entries, newest first: those that the caller made, or that are about their own; admins see all. A page may
        hold fewer than `limit` and still have a next one."""


class SecretService(Protocol):
    """Secrets: an owner has their own; admins those of any `owner`. Nobody is told a value."""

    async def page(
        self, caller: Caller, *, owner: int | None, everybody: bool, limit: int, cursor: str | None
    ) -> SecretPage: ...

    async def get(self, caller: Caller, name: str, *, owner: int | None) -> SecretView: ...

    async def put(self, caller: Caller, name: str, put: SecretPut, *, owner: int | None) -> tuple[SecretView, bool]:
        """Return the secret, and whether it was not there before. Raises SecretKeyMissing."""

    async def delete(self, caller: Caller, name: str, *, owner: int | None) -> None: ...

    async def key(self, caller: Caller) -> SecretKeyView: ...

    async def rotate(self, caller: Caller, wanted: SecretKeyRotate) -> SecretKeyRotated:
        """Encrypt all with a new key. Raises SecretKeyMissing where that is not possible."""


class ScheduleService(Protocol):
    """Schedules: an owner sees and changes their own, admins all. A name is one schedule, whoever owns it."""

    async def page(self, caller: Caller, *, limit: int, cursor: str | None) -> SchedulePage: ...

    async def get(self, caller: Caller, name: str) -> ScheduleDetail: ...

    async def put(
        self, caller: Caller, name: str, schedule: Schedule, revision: int | None
    ) -> tuple[ScheduleView, bool]:
        """Make the schedule (then True) or replace what it says; its owner stays. Raises RevisionConflict unless it
        was last set at `revision`, which is 0 for one that is not there, and SchedulesFull."""

    async def delete(self, caller: Caller, name: str, revision: int | None) -> None:
        """Its jobs go on."""

    async def pause(self, caller: Caller, name: str, *, paused: bool) -> ScheduleView: ...

    async def trigger(self, caller: Caller, name: str) -> Submitted:
        """Make a job of it now, whatever the timetable says."""

    async def next_times(self, caller: Caller, name: str, count: int) -> ScheduleTimes: ...

    async def preview(self, caller: Caller, wanted: TimetablePreview) -> ScheduleTimes: ...


class BlobService(Protocol):
    """What the catalogue has of blobs: an owner sees and changes their own, admins all."""

    async def page(self, caller: Caller, *, owner: int | None, limit: int, cursor: str | None) -> BlobPage: ...

    async def view(self, caller: Caller, blob: str) -> BlobView: ...

    async def forget(self, caller: Caller, blob: str) -> None:
        """The caller gives a blob up: it is theirs no longer, and their tags no longer name it."""

    async def tags(self, caller: Caller, *, prefix: str, limit: int, cursor: str | None) -> BlobTagPage: ...

    async def tag(self, caller: Caller, name: str) -> BlobTag: ...

    async def set_tag(self, caller: Caller, name: str, wanted: BlobTagSet) -> BlobTag:
        """Raises TagTaken, and Forbidden for a tag of somebody else's."""

    async def delete_tag(self, caller: Caller, name: str) -> None: ...

    async def share(self, caller: Caller, blob: str, wanted: BlobShare) -> BlobTicket: ...

    async def collect(self, caller: Caller, wanted: BlobCollect) -> BlobCollectPage:
        """Look at a page of blobs, and take out of the catalogue those that nothing refers to. Admins only."""


class BlobOperations(Protocol):
    """What the node that is asked does with blobs, its own and those of other members, for a job of type blob."""

    def perform(self, caller: Caller, wanted: BlobPerform) -> AsyncGenerator[OperationNews | BlobDone]:
        """Carry an operation out for the owner of the job, who is the caller; the last event is BlobDone. It is given
        up when the iterator is closed, and may be asked for again at any time, from the beginning.

        Raises errors of `jobs.errors` whose text names the blob, the node and the cause.
        """


class MaintenanceOperations(Protocol):
    """What the node that is asked does for a job of type maintenance, on itself and on other members."""

    def perform(self, caller: Caller, wanted: MaintenancePerform) -> AsyncGenerator[OperationNews | MaintenanceDone]:
        """As `BlobOperations.perform`. Raises OperationUnderWay where another job is at the same operation."""


class ReplicationOperations(Protocol):
    """What the node that is asked does for a job of type replication."""

    def perform(self, caller: Caller, wanted: ReplicationPerform) -> AsyncGenerator[OperationNews | ReplicationDone]:
        """As `BlobOperations.perform`."""


class ReplicationService(Protocol):
    """Links to other clusters, and how far syncs are; admins only."""

    async def invitation(self, caller: Caller) -> Invitation:
        """Say what another cluster needs to make a link to this one. Raises MembershipConflict for a node alone."""

    async def links(self, caller: Caller) -> LinkList: ...

    async def set_link(self, caller: Caller, name: str, wanted: LinkSet) -> LinkView:
        """Make a link or replace it. Raises InvalidRequest for an invitation that cannot be read, or to itself."""

    async def delete_link(self, caller: Caller, name: str) -> None:
        """The other cluster is cut off at once."""

    async def syncs(self, caller: Caller) -> SyncList: ...

    async def delete_sync(self, caller: Caller, name: str) -> None:
        """Forget how far it is. Raises OperationUnderWay while a job is at it."""

    async def conflicts(self, caller: Caller, name: str, *, limit: int, cursor: str | None) -> ConflictPage:
        """Of a sync whose target is this cluster; newest first."""


class Reads(Protocol):
    """What can be read of any node's store; errors are those of `Service`."""

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done once this will tell nothing more: whoever waits for something asks again."""

    @property
    def revision(self) -> int:
        """How far the store is that is read."""

    async def get(self, caller: Caller, job: JobId) -> JobDetail: ...

    async def list_jobs(
        self, caller: Caller, where: JobFilter, *, limit: int, cursor: str | None, newest_first: bool
    ) -> JobPage:
        """A page may hold fewer than `limit` jobs and still have a next one: the work for a page is bounded."""

    async def result(self, caller: Caller, job: JobId, attempt: Attempt | None) -> JobResult:
        """Result of a finished attempt (default the last); raises NotFinished."""

    async def wait(self, caller: Caller, job: JobId, timeout_s: float) -> JobView:
        """Return as soon as the job is final, or as it is after `timeout_s`."""

    async def graph(self, caller: Caller, job: JobId, *, limit: int) -> JobGraph:
        """What a job depends on and what depends on it, the nearest first."""

    def logs(self, caller: Caller, job: JobId, wanted: LogsWanted) -> AsyncIterator[LogPiece]:
        """Pieces of output, attempt by attempt; the first one is empty and tells the position before the others.
        Raises LogsGone, also in the middle."""

    async def attempts(self, caller: Caller, job: JobId) -> AttemptList:
        """Every attempt, the first one first."""

    def watch_jobs(
        self, caller: Caller, where: JobFilter, *, after_revision: int | None, job: JobId | None
    ) -> AsyncIterator[JobEvent | int]:
        """Changes after a revision (None: from now on). Yields a bare revision now and then when nothing happened, so
        that a client can resume from there. Raises Compacted."""

    async def kv_get(self, caller: Caller, key: str, revision: int) -> KeyValue | None: ...

    async def kv_scan(
        self, caller: Caller, prefix: str, *, limit: int, cursor: str | None, revision: int, keys_only: bool
    ) -> KvPage: ...

    def kv_watch(
        self, caller: Caller, key: str, *, prefix: bool, after_revision: int | None
    ) -> AsyncIterator[KvEvent | int]: ...


class Service(Reads, Protocol):
    """Every method raises the errors of `jobs.errors`, `Forbidden` for what the caller may not see or touch."""

    async def submit(self, caller: Caller, jobs: Sequence[JobSubmit]) -> list[Submitted]:
        """Accept all or none; returns after the jobs are durable."""

    async def cancel(self, caller: Caller, job: JobId) -> CancelOutcome: ...

    async def cancel_many(self, caller: Caller, wanted: CancelMany) -> CancelPage:
        """End the jobs of a selection, page by page; the work for a page is bounded."""

    async def depend(self, caller: Caller, job: JobId, depends_on: Sequence[JobId]) -> JobView:
        """Let a job wait for others of its owner as well; raises AlreadyStarted."""

    async def explain(self, caller: Caller, job: JobId) -> Explanation:
        """Why the job is where it is."""

    async def workers(self, caller: Caller) -> list[WorkerView]: ...

    async def drain_worker(self, caller: Caller, worker: str) -> WorkerView:
        """Give a worker, and its next lives, no more jobs. Admins only."""

    async def resume_worker(self, caller: Caller, worker: str) -> WorkerView:
        """Undo a drain. Admins only. Raises WorkerStopping for one that drains itself."""

    async def overview(self, caller: Caller, limits: OverviewLimits) -> Overview: ...

    @property
    def queues(self) -> QueueService: ...

    @property
    def schedules(self) -> ScheduleService: ...

    @property
    def secrets(self) -> SecretService: ...

    async def kv_put(self, caller: Caller, put: KvPut) -> KvTxnResult: ...

    async def kv_delete(self, caller: Caller, delete: KvDelete) -> KvTxnResult: ...

    async def kv_txn(self, caller: Caller, txn: KvTxn) -> KvTxnResult: ...

    async def lease_grant(self, caller: Caller, ttl_s: float) -> Lease: ...

    async def lease_keepalive(self, caller: Caller, lease: int) -> Lease: ...

    async def lease_revoke(self, caller: Caller, lease: int) -> None: ...

    @property
    def dead_letters(self) -> DeadLetterService: ...

    @property
    def arrays(self) -> ArrayService: ...

    @property
    def audit(self) -> AuditService: ...

    @property
    def blobs(self) -> BlobService: ...

    @property
    def replication(self) -> ReplicationService: ...


class ClusterService(Protocol):
    """The cluster and its members; what changes it is for admins only."""

    async def view(self, caller: Caller) -> ClusterView: ...

    async def init(self, caller: Caller) -> ClusterView: ...

    async def join(self, caller: Caller, wanted: ClusterJoin) -> ClusterView: ...

    async def ticket(self, caller: Caller, wanted: TicketRequest) -> TicketView: ...

    async def tickets(self, caller: Caller) -> TicketList: ...

    async def revoke_ticket(self, caller: Caller, ticket: str) -> None: ...

    async def transfer(self, caller: Caller, wanted: LeaderTransfer) -> LeaderTransferred: ...

    async def remove(self, caller: Caller, member: str) -> ClusterView: ...


class Whereabouts(Protocol):
    """Who has the control plane, as a node sees it, and what it has itself."""

    @property
    def reads(self) -> Reads:
        """Of its own store, however far that is."""

    @property
    def control(self) -> Service | None:
        """The control plane, if this node has it."""

    @property
    def member(self) -> str:
        """Id of this node among the members."""

    @property
    def leads(self) -> bool:
        """Whether the control plane is to be here: it may be about to be."""

    @property
    def leader(self) -> str | None:
        """Id of the member that leads, as far as this node knows."""

    @property
    def leaderless_s(self) -> float:
        """For how long no leader has been known."""

    @property
    def patience_s(self) -> float:
        """For how long a request looks for a leader: longer than an election that goes well."""

    def no_leader(self) -> Unavailable:
        """Return what a request is told that has looked for so long."""

    def changed(self) -> asyncio.Future[None]:
        """Return a future, not to be cancelled, that is done when any of these is another."""

    def on_others(self) -> None:
        """Take note that other members say something else than before."""


class Others(Protocol):
    """What the other members say, asked while this node hears no leader."""

    @property
    def leader(self) -> str | None:
        """Id of the member that leads, as those say that this node reaches."""

    def reached(self, member: str) -> bool | None:
        """Tell whether a member has answered; None where nobody was asked."""

    @property
    def removed(self) -> bool:
        """Whether this node was removed: most voters that it knows of refuse to speak with it."""

    def standing(self) -> tuple[str, str]:
        """Return who answers and who does not, or that this node was removed; and what would help."""


LabelledMetrics: TypeAlias = dict[str, tuple[str, str, dict[str, float]]]
"""Prometheus metrics: name → (help, label, values by the label's value)."""


class Backend(Protocol):
    """The node behind the API."""

    @property
    def whereabouts(self) -> Whereabouts:
        """Raises Unavailable before the node is alone or in a cluster."""

    @property
    def cluster(self) -> ClusterService: ...

    @property
    def blob_operations(self) -> BlobOperations:
        """Raises Unavailable before the node is alone or in a cluster."""

    @property
    def maintenance_operations(self) -> MaintenanceOperations:
        """Raises Unavailable before the node is alone or in a cluster."""

    @property
    def blob_host(self) -> BlobHost:
        """The content of blobs, here or brought here. Raises Unavailable before the node is alone or in a cluster."""

    @property
    def backup_source(self) -> BackupSource:
        """The store, for backups and exports. Raises Unavailable before the node is alone or in a cluster."""

    def health(self) -> Health: ...

    @property
    def replication_operations(self) -> ReplicationOperations:
        """Raises Unavailable before the node is alone or in a cluster."""

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus metrics, on top of what the API counts itself: name → (help, value)."""

    def labelled_metrics(self) -> LabelledMetrics:
        """Those of which there is one for each of something."""
