"""What follows from members that come and go: what a removed one had is forgotten, and it is looked anew which blobs
lack nodes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from jobs import keys, records
from jobs.consensus import Consensus
from jobs.control.blobs.collections import Collections
from jobs.control.blobs.entries import HELD_A_STEP, drop_holder
from jobs.control.blobs.numbers import Numbers
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.writer import Writer
from jobs.control.hub import Hub
from jobs.control.transitions import scan_in_turns
from jobs.errors import Unavailable
from jobs.records import BlobRecord
from jobs.store import Store, prefix_end

logger = logging.getLogger(__name__)

COUNTED_A_STEP: Final = 200
RETRY_S: Final = 5.0


class Upkeep:
    """Runs as long as this node leads. Whatever it was doing when another ceased to lead, it finds in the store."""

    def __init__(self, consensus: Consensus, store: Store, hub: Hub, writer: Writer, collections: Collections) -> None:
        self._consensus = consensus
        self._store = store
        self._hub = hub
        self._writer = writer
        self._collections = collections

    async def run(self) -> None:
        with self._hub.waiter(keys.MEMBERS_CHANGED) as waiter:
            while True:
                try:
                    await self._collections.clear_all()
                    await self.follow_members()
                except Unavailable as error:
                    if self._writer.stopped:
                        return
                    logger.warning("what members have of blobs is looked at again: %s", error)
                    await waiter.wait(RETRY_S)
                else:
                    await waiter.wait(None)

    async def follow_members(self) -> None:
        """Do what follows from the members as they are now."""
        # Decisions that were made by the former members are written after this.
        await self._writer.change(lambda stage, now_ms: None)
        for member in self._holders():
            if self._consensus.members.get(member) is None:
                await self._forget_member(member)
        await self._count()

    def _holders(self) -> list[str]:
        """Return all members that have blobs: a step each, however many blobs those are."""
        found: list[str] = []
        start = keys.BLOBS_ON
        while rows := self._store.range(start, prefix_end(keys.BLOBS_ON), limit=1, keys_only=True)[0]:
            member = keys.blob_holder_of(rows[0][0])
            found.append(member)
            start = prefix_end(keys.blobs_on_prefix(member))
        return found

    async def _forget_member(self, member: str) -> None:
        """Take what a member had from it."""
        prefix = keys.blobs_on_prefix(member)
        while rows := self._store.range(prefix, prefix_end(prefix), limit=HELD_A_STEP, keys_only=True)[0]:
            hashes = [keys.blob_of(key) for key, *_ in rows]
            await self._writer.change(partial(self._drop, member, hashes))

    def _drop(self, member: str, hashes: list[str], stage: Stage, now_ms: int) -> None:
        if self._consensus.members.get(member) is None:
            drop_holder(member, hashes, stage, now_ms)

    async def _count(self) -> None:
        """Look which blobs lack nodes by the numbers of now, unless that is known."""
        numbers, changes = self._writer.numbers, self._writer.changes
        if Stage(self._store, numbers).counted() == numbers:
            return
        seen = False
        async for page in scan_in_turns(self._store, keys.BLOBS):
            seen = True
            other = [keys.blob_of(key) for key, value, *_ in page if self._is_other(key, value, numbers)]
            for start in range(0, len(other), COUNTED_A_STEP):
                await self._writer.change(partial(_recount, other[start : start + COUNTED_A_STEP]))
        if seen:  # a store without blobs stays as it is
            await self._writer.change(partial(self._note_counted, numbers, changes))

    def _note_counted(self, numbers: Numbers, changes: int, stage: Stage, _: int) -> None:
        """Stage that it is known, unless there have been other numbers meanwhile: then this is done again."""
        if stage.numbers == numbers and self._writer.changes == changes:
            stage.put_counted()

    def _is_other(self, key: bytes, value: bytes, numbers: Numbers) -> bool:
        """Tell whether it is not noted yet that a blob lacks nodes, or still is."""
        lacks = numbers.lacks(records.decode(BlobRecord, value))
        return lacks != (self._store.get(keys.blob_lacking(keys.blob_of(key))) is not None)


def _recount(hashes: list[str], stage: Stage, _: int) -> None:
    for blob in hashes:
        record = stage.entry(blob)
        if record is not None:
            stage.put_entry(blob, record)
