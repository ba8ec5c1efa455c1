"""Blobs as the API shows them."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from jobs import keys, records
from jobs.consensus import Consensus
from jobs.control.blobs.lookup import read_entry, touched_ms
from jobs.control.blobs.numbers import Numbers
from jobs.control.blobs.references import not_there
from jobs.control.blobs.writer import Writer
from jobs.control.queries import check_admin, decode_cursor, encode_cursor
from jobs.control.transitions import read_job
from jobs.protocol.ids import JobId, Revision, is_job_id
from jobs.protocol.model import BlobPage, BlobReference, BlobView, ReferenceKind
from jobs.records import BlobRecord, BlobTagRecord, ScheduleRecord
from jobs.service import Caller
from jobs.store import Store, prefix_end

MAX_REFERENCES: Final = 100
MAX_PAGE_REFERENCES: Final = 10
"""Of each blob of a page."""
TURN: Final = 50


class Views:
    """The part of `service.BlobService` that shows blobs."""

    def __init__(self, consensus: Consensus, store: Store, writer: Writer) -> None:
        self._consensus = consensus
        self._store = store
        self._writer = writer

    async def page(self, caller: Caller, *, owner: int | None, limit: int, cursor: str | None) -> BlobPage:
        """An owner's blobs, by default the caller's own, or all there are for admins."""
        if owner is not None and owner != caller.uid:
            check_admin(caller, "see the blobs of others")
        await self._consensus.barrier()
        revision = Revision(self._store.revision)
        everything = caller.admin and owner is None
        prefix = keys.BLOBS if everything else keys.blobs_owned_prefix(caller.uid if owner is None else owner)
        start = prefix if cursor is None else decode_cursor(cursor, prefix) + b"\x00"
        rows, more = self._store.range(start, prefix_end(prefix), limit=limit, keys_only=True)
        shown: list[BlobView] = []
        for at, (key, *_) in enumerate(rows, 1):
            blob = keys.blob_of(key)
            record = read_entry(self._store, blob)
            if record is not None:
                shown.append(self._view(caller, blob, record, MAX_PAGE_REFERENCES))
            if at % TURN == 0:
                await asyncio.sleep(0)  # others have their turn
        return BlobPage(blobs=shown, next_cursor=encode_cursor(rows[-1][0]) if more else None, revision=revision)

    async def get(self, caller: Caller, blob: str) -> BlobView:
        """Raises NotFound, also for one that is somebody else's."""
        await self._consensus.barrier()
        record = read_entry(self._store, blob)
        if record is None or not (caller.admin or caller.uid in record.owners):
            raise not_there(blob)
        return self._view(caller, blob, record, MAX_REFERENCES)

    def _view(self, caller: Caller, blob: str, record: BlobRecord, most: int) -> BlobView:
        numbers: Numbers = self._writer.numbers
        name_of = self._consensus.members.name_of
        return BlobView(
            hash=blob,
            size_bytes=record.size_bytes,
            kind=record.kind,
            created_ms=record.created_ms,
            touched_ms=touched_ms(self._store, blob),
            replicas=numbers.asked(record),
            nodes=sorted(name_of(holder) for holder in record.holders),
            owners=list(record.owners) if caller.admin else [caller.uid],
            references=self._references(caller, blob, most),
        )

    def _references(self, caller: Caller, blob: str, most: int) -> list[BlobReference]:
        """Return what keeps a blob, as far as it is the caller's."""
        prefix = keys.blob_references_prefix(blob)
        rows, _ = self._store.range(prefix, prefix_end(prefix), limit=most, keys_only=True)
        found: list[BlobReference] = []
        for key, *_ in rows:
            text, _, name = key[len(prefix) :].decode().partition("/")
            kind = cast("ReferenceKind", text)
            if caller.admin or self._is_theirs(caller.uid, kind, name):
                found.append(BlobReference(kind=kind, name=name))
        return found

    def _is_theirs(self, uid: int, kind: ReferenceKind, name: str) -> bool:
        """Tell whether what refers to a blob belongs to an owner."""
        match kind:
            case "tag":
                found = self._store.get(keys.blob_tag(name))
                return found is not None and records.decode(BlobTagRecord, found[1]).owner == uid
            case "collection":
                return self._store.get(keys.blob_owned(uid, name)) is not None
            case "schedule":
                found = self._store.get(keys.schedule(name))
                return found is not None and records.decode(ScheduleRecord, found[1]).owner == uid
            case _:
                job = read_job(self._store, JobId(name)) if is_job_id(name) else None
                return job is not None and job.record.owner == uid
