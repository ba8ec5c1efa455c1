"""What is done for a job of type replication: each operation, from its payload to its result."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from jobs.errors import JobsError, LinkUnavailable
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    ReplicationBackup,
    ReplicationDone,
    ReplicationExport,
    ReplicationImport,
    ReplicationPayload,
    ReplicationProve,
    ReplicationRestore,
    ReplicationResult,
    ReplicationSync,
    ReplicationVerify,
)
from jobs.workers.nodeapi import NodeApi
from jobs.workers.perform import perform
from jobs.workers.places import Places
from jobs.workers.replication.backup import backup
from jobs.workers.replication.export import export
from jobs.workers.replication.importing import bring_in
from jobs.workers.replication.restore import prove, restore
from jobs.workers.replication.task import Task
from jobs.workers.task import Report


class Work:
    """Carries out operations for the owner of one job."""

    def __init__(
        self,
        places: Places,
        identity_file: Path | None,
        scratch_dir: Path | None,
        node: NodeApi,
        report: Report,
        job: JobId,
    ) -> None:
        self._task = Task(
            node=node, places=places, report=report, job=job, identity_file=identity_file, scratch_dir=scratch_dir
        )

    async def carry_out(self, payload: ReplicationPayload) -> ReplicationResult:
        """Return what it came to. Raises errors of `jobs.errors`, and TaskError. It may be begun again at any time."""
        began_s = time.monotonic()
        match payload:
            case ReplicationSync() | ReplicationVerify():
                result = await self._perform(payload)
            case ReplicationBackup():
                result = await backup(self._task, payload)
            case ReplicationProve():
                result = await prove(self._task, payload)
            case ReplicationRestore():
                result = await restore(self._task, payload)
            case ReplicationExport():
                result = await export(self._task, payload)
            case ReplicationImport():
                result = await bring_in(self._task, payload)
        return replace(result, seconds=time.monotonic() - began_s)

    async def _perform(self, payload: ReplicationSync | ReplicationVerify) -> ReplicationResult:
        task = self._task
        done = await perform(
            task.node,
            "/v1/replication:perform",
            task.job,
            payload,
            ReplicationDone,
            task.report,
            endless=is_endless(payload),
            final=_given_up(payload),
        )
        return done.result


def _given_up(payload: ReplicationPayload) -> tuple[type[JobsError], ...]:
    """Return what ends an operation for good: a sync waits for the other cluster itself."""
    return (LinkUnavailable,) if isinstance(payload, ReplicationSync) else ()


def is_endless(payload: ReplicationPayload) -> bool:
    return isinstance(payload, ReplicationSync) and payload.continuous
