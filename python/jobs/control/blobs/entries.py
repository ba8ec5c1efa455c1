"""Blobs and who has them: additions, holders, numbers of nodes, and what is asked of the catalogue."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from jobs import keys
from jobs.blobs.catalogue import Entry, NewBlob
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.blobs.collections import Collections
from jobs.control.blobs.lookup import entry_of, read_entry, touched_ms
from jobs.control.blobs.owners import Owners, owned
from jobs.control.blobs.references import not_there
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.tags import set_tag
from jobs.control.blobs.writer import Writer
from jobs.errors import Forbidden, InternalError, InvalidRequest, PayloadTooLarge
from jobs.protocol.model import HASH_PATTERN, BlobTagSet
from jobs.records import BlobRecord
from jobs.service import Caller
from jobs.store import EQ, GT, Store, VersionIs, prefix_end

HELD_A_STEP: Final = 200
"""Blobs whose holders one decision changes: four operations each."""
MAX_HELD: Final = 10_000
MAX_ENTRIES: Final = 1_000
TURN: Final = 256
MAX_REPLICAS: Final = 16
_HASH: Final = re.compile(HASH_PATTERN)


class Entries:
    """Blobs by their hashes."""

    def __init__(
        self, consensus: Consensus, store: Store, writer: Writer, owners: Owners, collections: Collections
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._writer = writer
        self._owners = owners
        self._collections = collections

    # --- additions --------------------------------------------------------------------------------------------------

    async def register(self, caller: Caller, blob: NewBlob, holder: str) -> tuple[Entry, bool]:
        """As `Catalogue.register` says."""
        self._check(blob)

        def decide(stage: Stage, now_ms: int) -> tuple[Entry, bool]:
            self._check_member(stage, holder)
            record, is_new = self._added(stage, caller, blob, holder, now_ms)
            if blob.tag is not None:
                set_tag(stage, caller, blob.tag, BlobTagSet(hash=blob.hash), now_ms)
            return entry_of(blob.hash, record, now_ms, stage.numbers), is_new

        if blob.kind == "collection":
            return await self._collections.add(caller, blob.hash, blob.children, decide)
        return await self._writer.change(decide)

    def _check(self, blob: NewBlob) -> None:
        if not _HASH.fullmatch(blob.hash):
            raise InvalidRequest(f"{blob.hash!r:.100} is no hash", field="hash", expected="64 hexadecimal digits")
        most = self._owners.config.max_blob_bytes
        if not 0 <= blob.size_bytes <= most:
            raise PayloadTooLarge(f"the blob has {blob.size_bytes} bytes", expected=f"at most {most} bytes")
        if blob.replicas is not None and not 1 <= blob.replicas <= MAX_REPLICAS:
            raise InvalidRequest(
                f"{blob.replicas} nodes are to have it", field="replicas", expected=f"1 to {MAX_REPLICAS}"
            )
        if (blob.kind == "collection") != bool(blob.children):
            raise InvalidRequest("only a collection has children, and it has some", expected="both or neither")

    def _added(self, stage: Stage, caller: Caller, blob: NewBlob, holder: str, now_ms: int) -> tuple[BlobRecord, bool]:
        """Stage the entry with its holder and owner; True when it is new to them."""
        found = stage.entry(blob.hash)
        record = found or BlobRecord(
            size_bytes=blob.size_bytes, kind=blob.kind, replicas=None, holders=(), created_ms=now_ms, owners=()
        )
        if record.size_bytes != blob.size_bytes:
            raise InternalError(
                f"blob {blob.hash} has {record.size_bytes} bytes; a node says that it has {blob.size_bytes}"
            )
        if blob.kind == "collection" and record.kind == "raw":
            record = replace(record, kind="collection")
        if blob.replicas is not None and (found is None or blob.replicas > stage.numbers.asked(record)):
            record = replace(record, replicas=blob.replicas)
        record = held(stage, blob.hash, record, holder)
        record, is_new = self._owners.give(stage, caller, blob.hash, record, now_ms)
        if record != found:
            stage.put_entry(blob.hash, record)
        if is_new:
            stage.note(audit_entry(caller, "blob.add", blob.hash, now_ms, f"{blob.size_bytes} bytes"))
        stage.touch(blob.hash, now_ms)
        return record, is_new

    # --- holders ----------------------------------------------------------------------------------------------------

    async def held(self, member: str, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        """As `Catalogue.held` says."""
        _check_count(len(here) + len(gone))
        for hashes in _parts(here):
            await self._writer.change(partial(self._here, member, hashes))
        for hashes in _parts(gone):
            await self._writer.change(partial(drop_holder, member, hashes))

    def _here(self, member: str, hashes: Sequence[str], stage: Stage, _: int) -> None:
        self._check_member(stage, member)
        for blob in hashes:
            found = stage.entry(blob)
            if found is not None and (record := held(stage, blob, found, member)) != found:
                stage.put_entry(blob, record)

    def _check_member(self, stage: Stage, member: str) -> None:
        """Have it stand on this one being a member: what a removed one has is forgotten once."""
        members = self._consensus.members
        if members.get(member) is None:
            raise Forbidden(f"{member} is no member of the cluster", expected="a member")
        if members.revision:
            stage.guard(VersionIs(keys.member(member), GT, 0))
        else:
            stage.guard(VersionIs(keys.MEMBERS_CHANGED, EQ, 0))

    async def wanted(self, member: str, blobs: tuple[str, ...]) -> tuple[bool, ...]:
        """As `Catalogue.wanted` says; what lacks nodes is kept wherever it is."""
        _check_count(len(blobs))
        await self._consensus.barrier()
        numbers = self._writer.numbers
        found = [read_entry(self._store, blob) for blob in blobs]
        return tuple(record is not None and (member in record.holders or numbers.lacks(record)) for record in found)

    # --- numbers of nodes -------------------------------------------------------------------------------------------

    async def replicate(self, caller: Caller, blob: str, replicas: int) -> Entry:
        """As `Catalogue.replicate` says. The children of a collection get at least as many."""
        if not 1 <= replicas <= MAX_REPLICAS:
            raise InvalidRequest(f"{replicas} nodes", field="replicas", expected=f"1 to {MAX_REPLICAS}")

        def decide(stage: Stage, now_ms: int) -> Entry:
            record = owned(stage, caller, blob)
            asked = stage.numbers.asked(record)
            if replicas < asked and not caller.admin and record.owners != (caller.uid,):
                raise Forbidden(
                    f"others own blob {blob} as well, which {asked} nodes are to have",
                    field="replicas",
                    expected=f"{asked} or more, or an admin",
                )
            if record.replicas != replicas:
                record = replace(record, replicas=replicas)
                stage.put_entry(blob, record)
                stage.note(audit_entry(caller, "blob.replicate", blob, now_ms, f"{replicas} nodes"))
            return entry_of(blob, record, stage.touched_ms(blob), stage.numbers)

        entry = await self._writer.change(decide)
        if entry.kind == "collection":
            async for children in self._collections.children_in_steps(blob, HELD_A_STEP):
                await self._writer.change(partial(_raise, children, replicas))
        return entry

    async def lacking(self, after: str, limit: int) -> tuple[Entry, ...]:
        """As `Catalogue.lacking` says."""
        await self._consensus.barrier()
        return await self._entries_at(keys.BLOBS_LACKING, after, limit)

    # --- reads ------------------------------------------------------------------------------------------------------

    async def readable(self, caller: Caller, blob: str) -> Entry:
        """As `Catalogue.readable` says."""
        await self._consensus.barrier()
        return self._entry(blob, self.read_readable(caller, blob))

    def read_readable(self, caller: Caller, blob: str) -> BlobRecord:
        record = read_entry(self._store, blob)
        if record is None or not (caller.admin or caller.uid in record.owners):
            raise not_there(blob)
        return record

    async def entries(self, after: str, limit: int, holder: str = "") -> tuple[Entry, ...]:
        """As `Catalogue.entries` says."""
        await self._consensus.barrier()
        return await self._entries_at(keys.blobs_on_prefix(holder) if holder else keys.BLOBS, after, limit)

    async def children(self, blob: str) -> tuple[str, ...]:
        """As `Catalogue.children` says."""
        await self._consensus.barrier()
        return tuple([child async for part in self._collections.children_in_steps(blob) for child in part])

    async def _entries_at(self, prefix: bytes, after: str, limit: int) -> tuple[Entry, ...]:
        """Return the entries of the keys with this prefix, which end with hashes."""
        start = prefix + after.encode() + (b"\x00" if after else b"")
        found: list[Entry] = []
        more = True
        limit = min(limit, MAX_ENTRIES)
        while more and len(found) < limit:
            count = min(TURN, limit - len(found))
            rows, more = self._store.range(start, prefix_end(prefix), limit=count, keys_only=True)
            for key, *_ in rows:
                start = key + b"\x00"
                if (record := read_entry(self._store, keys.blob_of(key))) is not None:
                    found.append(self._entry(keys.blob_of(key), record))
            await asyncio.sleep(0)
        return tuple(found)

    def _entry(self, blob: str, record: BlobRecord) -> Entry:
        return entry_of(blob, record, touched_ms(self._store, blob), self._writer.numbers)


def held(stage: Stage, blob: str, record: BlobRecord, member: str) -> BlobRecord:
    """Return the record with this holder; stage its key, but not the record."""
    if member in record.holders:
        return record
    stage.put(keys.blob_on(member, blob))
    return replace(record, holders=(*record.holders, member))


def drop_holder(member: str, hashes: Iterable[str], stage: Stage, _: int) -> None:
    """Have these blobs be no longer with a member."""
    for blob in hashes:
        record = stage.entry(blob)
        stage.delete(keys.blob_on(member, blob))
        if record is not None and member in record.holders:
            holders = tuple(holder for holder in record.holders if holder != member)
            stage.put_entry(blob, replace(record, holders=holders))


def _raise(children: Iterable[str], replicas: int, stage: Stage, _: int) -> None:
    """Have at least so many nodes have these blobs."""
    for child in children:
        record = stage.entry(child)
        if record is not None and stage.numbers.asked(record) < replicas:
            stage.put_entry(child, replace(record, replicas=replicas))


def _check_count(count: int) -> None:
    if count > MAX_HELD:
        raise InvalidRequest(f"{count} blobs at once", expected=f"at most {MAX_HELD}")


def _parts(hashes: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(hashes), HELD_A_STEP):
        yield hashes[start : start + HELD_A_STEP]
