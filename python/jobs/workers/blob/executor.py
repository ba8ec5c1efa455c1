"""Runs operations on blobs, as tasks of the worker's own process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from jobs.config import BlobWorker
from jobs.protocol.model import BlobPayload, BlobResult, Reason, tag_of
from jobs.validate import check_blob
from jobs.workers.blob.work import Work
from jobs.workers.places import Places
from jobs.workers.task import TaskExecutor, TaskKind

BlobExecutor: TypeAlias = TaskExecutor[BlobPayload, BlobResult]


def blob_executor(config: BlobWorker, node: str, api_socket: Path) -> BlobExecutor:
    kind = TaskKind[BlobPayload, BlobResult](
        type="blob",
        noun="an operation on blobs",
        failure=Reason.BLOB_ERROR,
        decode=msgspec.json.Decoder(BlobPayload).decode,
        check=check_blob,
        called=_called,
        begin=partial(Work, Places(config.allow_files)),
        put=lambda outcome, result: replace(outcome, blob=result),
    )
    return TaskExecutor(kind, slots=config.slots, timeout_s=config.timeout_s, node=node, api_socket=api_socket)


def _called(payload: BlobPayload) -> str:
    blob = getattr(payload, "hash", None)
    return f"{tag_of(payload)}{f' of {blob}' if blob else ''}"
