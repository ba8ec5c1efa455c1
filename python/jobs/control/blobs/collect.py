"""Garbage: what nothing refers to, and nobody has added or referred to for a while, leaves the catalogue.

A page is looked at, then each blob of it that may go is decided on by itself, with a compare that nobody has referred
to it since. The files go later, when each node sweeps: what is not in the catalogue any more, and is old enough.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.blobs.collections import Collections
from jobs.control.blobs.lookup import touched_ms
from jobs.control.blobs.numbers import BlobConfig
from jobs.control.blobs.references import is_dead
from jobs.control.blobs.sharing import Sharing
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.writer import Writer
from jobs.control.queries import check_admin, decode_cursor, encode_cursor
from jobs.protocol.ids import Revision
from jobs.protocol.model import BlobCollect, BlobCollected, BlobCollectPage
from jobs.records import BlobRecord
from jobs.service import Caller
from jobs.store import Store, prefix_end

OWNERS_A_STEP: Final = 200
"""Owners from whom one decision takes a blob: two operations each."""
DRAFTS_A_PAGE: Final = 100
DEAD_A_STEP: Final = 100
"""References of what is gone that one decision deletes."""
TURN: Final = 100

_Outcome: TypeAlias = Literal["condemned", "spared", "again"]


class _Candidate(Struct, frozen=True):
    """A blob that nothing refers to any more."""

    blob: str
    record: BlobRecord
    dead: tuple[bytes, ...]
    """References of what is gone."""


class Collector:
    """The part of `service.BlobService` that takes out what nothing refers to."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        writer: Writer,
        collections: Collections,
        sharing: Sharing,
        config: BlobConfig,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._writer = writer
        self._collections = collections
        self._sharing = sharing
        self._config = config
        self.condemned_total = 0

    async def page(self, caller: Caller, wanted: BlobCollect) -> BlobCollectPage:
        """As `service.BlobService.collect` says."""
        check_admin(caller, "collect blobs")
        await self._consensus.barrier()
        start = keys.BLOBS if wanted.cursor is None else decode_cursor(wanted.cursor, keys.BLOBS) + b"\x00"
        now_ms = wall_ms()
        before_ms = now_ms - self._grace_ms(wanted)
        if wanted.cursor is None and not wanted.dry_run:
            await self._collections.drop_drafts(now_ms - self._config.grace_ms, DRAFTS_A_PAGE)
            await self._sharing.drop_expired(now_ms)
        revision = Revision(self._store.revision)
        rows, more = self._store.range(start, prefix_end(keys.BLOBS), limit=wanted.limit)
        kept: Counter[str] = Counter()
        candidates: list[_Candidate] = []
        for at, (key, value, *_) in enumerate(rows, 1):
            blob = keys.blob_of(key)
            dead, why = self._references(blob)
            if why is None and touched_ms(self._store, blob) > before_ms:
                why = "young"
            if why is None:
                candidates.append(_Candidate(blob, records.decode(BlobRecord, value), dead))
            else:
                kept[why] += 1
            if at % TURN == 0:
                await asyncio.sleep(0)  # others have their turn
        return BlobCollectPage(
            examined=len(rows),
            kept=dict(kept),
            collected=await self._collect(caller, candidates, before_ms, wanted.dry_run),
            next_cursor=encode_cursor(rows[-1][0]) if more else None,
            revision=revision,
        )

    def _grace_ms(self, wanted: BlobCollect) -> int:
        """Return what age keeps a blob: only who looks may ask for less than is configured."""
        if wanted.grace_s is None:
            return self._config.grace_ms
        given = int(wanted.grace_s * 1_000)
        return given if wanted.dry_run else max(given, self._config.grace_ms)

    def _references(self, blob: str) -> tuple[tuple[bytes, ...], str | None]:
        """Return the references of what is gone, as far as a step looks, and the kind of one that keeps the blob."""
        prefix = keys.blob_references_prefix(blob)
        rows, _ = self._store.range(prefix, prefix_end(prefix), limit=DEAD_A_STEP, keys_only=True)
        dead: list[bytes] = []
        for key, *_ in rows:
            if not is_dead(self._store, key):
                return tuple(dead), keys.reference_of(key)[0]
            dead.append(key)
        return tuple(dead), None

    async def _collect(
        self, caller: Caller, candidates: list[_Candidate], before_ms: int, dry_run: bool
    ) -> list[BlobCollected]:
        outcomes: list[_Outcome] = ["condemned"] * len(candidates)
        if not dry_run:
            outcomes = await asyncio.gather(*(self._condemn(caller, one, before_ms) for one in candidates))
            self.condemned_total += outcomes.count("condemned")
        return [
            BlobCollected(
                hash=one.blob,
                size_bytes=one.record.size_bytes,
                outcome="condemned" if outcome == "condemned" else "spared",
            )
            for one, outcome in zip(candidates, outcomes, strict=True)
        ]

    async def _condemn(self, caller: Caller, one: _Candidate, before_ms: int) -> _Outcome:
        while True:
            outcome = await self._writer.change(partial(_condemn, caller, one, before_ms))
            if outcome == "condemned" and one.record.kind == "collection":
                await self._collections.clear(one.blob)
            if outcome != "again":
                return outcome


def _condemn(caller: Caller, one: _Candidate, before_ms: int, stage: Stage, now_ms: int) -> _Outcome:
    """Stage that a blob leaves the catalogue, unless something refers to it or it is young."""
    blob = one.blob
    record = stage.entry(blob)
    for key in one.dead:
        stage.delete(key)
    if record is None or stage.touched_ms(blob) > before_ms or stage.is_referred_to(blob):
        return "spared"
    for uid in record.owners[:OWNERS_A_STEP]:
        stage.take(uid, blob)
    if len(record.owners) > OWNERS_A_STEP:
        stage.put_entry(blob, replace(record, owners=record.owners[OWNERS_A_STEP:]))
        return "again"
    stage.delete_entry(blob, record)
    if record.kind == "collection":
        stage.put(keys.blob_cleared(blob))
    stage.note(audit_entry(caller, "blob.collect", blob, now_ms, f"{record.size_bytes} bytes"))
    return "condemned"
