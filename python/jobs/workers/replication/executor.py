"""Runs operations of replication, as tasks of the worker's own process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from jobs.config import ReplicationWorker
from jobs.protocol.model import (
    Reason,
    ReplicationPayload,
    ReplicationResult,
    ReplicationSync,
    ReplicationVerify,
    tag_of,
)
from jobs.validate import check_replication
from jobs.workers.places import Places
from jobs.workers.replication.work import Work, is_endless
from jobs.workers.task import TaskExecutor, TaskKind

SETTING: Final = "workers.replication.allow_files"
ReplicationExecutor: TypeAlias = TaskExecutor[ReplicationPayload, ReplicationResult]


def replication_executor(config: ReplicationWorker, node: str, api_socket: Path) -> ReplicationExecutor:
    kind = TaskKind[ReplicationPayload, ReplicationResult](
        type="replication",
        noun="an operation of replication",
        failure=Reason.REPLICATION_ERROR,
        decode=msgspec.json.Decoder(ReplicationPayload).decode,
        check=check_replication,
        called=_called,
        begin=partial(Work, Places(config.allow_files, SETTING), config.identity_file, config.scratch_dir),
        put=lambda outcome, result: replace(outcome, replication=result),
        endless=is_endless,
    )
    return TaskExecutor(kind, slots=config.slots, timeout_s=config.timeout_s, node=node, api_socket=api_socket)


def _called(payload: ReplicationPayload) -> str:
    match payload:
        case ReplicationSync(name=name):
            return f"sync {name}"
        case ReplicationVerify():
            return "verify"
        case _:
            return f"{tag_of(payload)} of {payload.directory or payload.tag}"
