"""Whose a blob is, and what an owner's blobs may come to."""

from __future__ import annotations

from msgspec.structs import replace

from jobs.control.blobs.numbers import BlobConfig
from jobs.control.blobs.references import not_there
from jobs.control.blobs.stage import Stage
from jobs.control.queues import Queues
from jobs.errors import BlobQuotaExceeded
from jobs.records import BlobRecord, BlobUsageRecord
from jobs.service import Caller


class Owners:
    """Gives blobs to owners, as far as they may have more."""

    def __init__(self, queues: Queues, config: BlobConfig) -> None:
        self._queues = queues
        self.config = config

    def limit(self, uid: int) -> int:
        """Return what the blobs of an owner may come to."""
        limit = self._queues.owner(uid).max_blob_bytes
        return self.config.max_bytes_per_owner if limit is None else limit

    def give(self, stage: Stage, caller: Caller, blob: str, record: BlobRecord, now_ms: int) -> tuple[BlobRecord, bool]:
        """Return the record as one of the caller's, and whether it was not before; stage the rest of it.

        Raises BlobQuotaExceeded.
        """
        uid = caller.uid
        if uid in record.owners:
            return record, False
        self.check(uid, stage.usage(uid), record.size_bytes)
        stage.give(uid, blob, record.size_bytes, now_ms)
        return replace(record, owners=tuple(sorted((*record.owners, uid)))), True

    def give_entry(
        self, stage: Stage, caller: Caller, blob: str, record: BlobRecord, now_ms: int
    ) -> tuple[BlobRecord, bool]:
        """Do the same, and stage the record as well."""
        given, is_new = self.give(stage, caller, blob, record, now_ms)
        if is_new:
            stage.put_entry(blob, given)
        return given, is_new

    def check(self, uid: int, used: BlobUsageRecord, more_bytes: int) -> None:
        """Raise BlobQuotaExceeded when an owner may not have so many bytes more."""
        limit = self.limit(uid)
        if used.size_bytes + more_bytes > limit:
            raise BlobQuotaExceeded(
                f"the blobs of uid {uid} come to {used.size_bytes} bytes, and {more_bytes} more are asked for; the "
                f"limit is {limit}",
                expected="fewer blobs (jobctl blob forget), or a larger limit (jobctl owner set UID --max-blob-bytes)",
            )


def owned(stage: Stage, caller: Caller, blob: str) -> BlobRecord:
    """Return a blob that the caller may read. Raises NotFound."""
    record = stage.entry(blob)
    if record is None or not (caller.admin or caller.uid in record.owners):
        raise not_there(blob)
    return record
