"""What each route does: from a typed call to the service and back. One module a group of routes."""

from __future__ import annotations

from jobs.api.handlers.arrays import ArrayHandlers
from jobs.api.handlers.audit import AuditHandlers
from jobs.api.handlers.backups import BackupCalls
from jobs.api.handlers.blobs import BlobCatalogueCalls
from jobs.api.handlers.cluster import ClusterHandlers
from jobs.api.handlers.content import BlobContentCalls
from jobs.api.handlers.deadletters import DeadLetterHandlers
from jobs.api.handlers.dependencies import DependencyHandlers
from jobs.api.handlers.jobs import JobHandlers
from jobs.api.handlers.kv import KvHandlers
from jobs.api.handlers.node import NodeHandlers
from jobs.api.handlers.operations import OperationCalls
from jobs.api.handlers.queues import QueueHandlers
from jobs.api.handlers.replication import ReplicationHandlers
from jobs.api.handlers.schedules import ScheduleHandlers
from jobs.api.handlers.secrets import SecretHandlers


class Handlers(
    ArrayHandlers,
    AuditHandlers,
    BackupCalls,
    BlobCatalogueCalls,
    BlobContentCalls,
    ClusterHandlers,
    DeadLetterHandlers,
    JobHandlers,
    DependencyHandlers,
    OperationCalls,
    QueueHandlers,
    ReplicationHandlers,
    ScheduleHandlers,
    SecretHandlers,
    KvHandlers,
    NodeHandlers,
):
    """Every route's function; their names are the OpenAPI operation ids."""
