"""Tags: names by which owners keep blobs."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from jobs import keys, records
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.blobs.owners import owned
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.writer import Writer
from jobs.control.once import was_done
from jobs.control.queries import PAGE_SCAN_ROWS, TURN_ROWS, decode_cursor, encode_cursor
from jobs.errors import Forbidden, InvalidRequest, NotFound, TagTaken
from jobs.protocol.ids import Revision
from jobs.protocol.model import BlobTag, BlobTagPage, BlobTagSet, Name
from jobs.records import BlobTagRecord
from jobs.service import Caller
from jobs.store import Store, prefix_end


class Tags:
    """The part of `service.BlobService` that is about tags."""

    def __init__(self, consensus: Consensus, store: Store, writer: Writer) -> None:
        self._consensus = consensus
        self._store = store
        self._writer = writer

    async def page(self, caller: Caller, *, prefix: str, limit: int, cursor: str | None) -> BlobTagPage:
        """A page may hold fewer than `limit` and still have a next one: the work for a page is bounded."""
        await self._consensus.barrier()
        revision = Revision(self._store.revision)
        under = keys.blob_tag(prefix)
        start = under if cursor is None else decode_cursor(cursor, under) + b"\x00"
        found: list[BlobTag] = []
        looked, more = 0, True
        while more and len(found) < limit and looked < PAGE_SCAN_ROWS:
            rows, more = self._store.range(start, prefix_end(under), limit=TURN_ROWS)
            for at, (key, value, *_) in enumerate(rows):
                start = key + b"\x00"
                record = records.decode(BlobTagRecord, value)
                if caller.admin or record.owner == caller.uid:
                    found.append(_view(key[len(keys.BLOB_TAGS) :].decode(), record))
                if len(found) == limit:
                    more = more or at + 1 < len(rows)
                    break
            looked += len(rows)
            await asyncio.sleep(0)
        return BlobTagPage(tags=found, next_cursor=encode_cursor(start[:-1]) if more else None, revision=revision)

    async def get(self, caller: Caller, name: str) -> BlobTag:
        await self._consensus.barrier()
        found = self._store.get(keys.blob_tag(name))
        return _view(name, _theirs(caller, name, None if found is None else records.decode(BlobTagRecord, found[1])))

    async def set(self, caller: Caller, name: str, wanted: BlobTagSet) -> BlobTag:
        if was_done(self._store, caller.request_id):
            return await self.get(caller, name)
        return await self._writer.change(
            lambda stage, now_ms: set_tag(stage, caller, name, wanted, now_ms), caller.request_id
        )

    async def delete(self, caller: Caller, name: str) -> None:
        if not was_done(self._store, caller.request_id):
            await self._writer.change(partial(_delete, caller, name), caller.request_id)


def set_tag(stage: Stage, caller: Caller, name: str, wanted: BlobTagSet, now_ms: int) -> BlobTag:
    """Stage that a tag names a blob; it stays its owner's. Raises InvalidRequest, NotFound, TagTaken, Forbidden."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{name!r:.200} is no name of a tag", field="tag", expected="a name") from error
    former = stage.tag(name)
    if former is not None:
        _theirs(caller, name, former)
    owned(stage, caller, wanted.hash)
    if former is not None and former.hash != wanted.hash and not wanted.replace:
        raise TagTaken(f"tag {name!r} names blob {former.hash}", field="id", expected="another name, or `replace`")
    if former is None or former.hash != wanted.hash:
        owner = caller.uid if former is None else former.owner
        record = BlobTagRecord(wanted.hash, owner, now_ms)
        stage.put_tag(name, record, former)
        stage.note(audit_entry(caller, "blob.tag", name, now_ms, wanted.hash, owner=owner))
    else:
        record = former
    stage.touch(wanted.hash, now_ms)
    return _view(name, record)


def _delete(caller: Caller, name: str, stage: Stage, now_ms: int) -> None:
    record = _theirs(caller, name, stage.tag(name))
    stage.delete_tag(name, record)
    stage.note(audit_entry(caller, "blob.untag", name, now_ms, record.hash, owner=record.owner))


def _theirs(caller: Caller, name: str, record: BlobTagRecord | None) -> BlobTagRecord:
    """Raises NotFound, and Forbidden for another owner's."""
    if record is None:
        raise NotFound(f"there is no tag {name!r}")
    if not caller.admin and record.owner != caller.uid:
        raise Forbidden(
            f"tag {name!r} belongs to uid {record.owner}", field="id", expected="a name of your own, or an admin"
        )
    return record


def _view(name: str, record: BlobTagRecord) -> BlobTag:
    return BlobTag(name=name, hash=record.hash, owner=record.owner, created_ms=record.created_ms)
