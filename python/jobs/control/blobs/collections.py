"""Collections: what they consist of, which they keep.

All children of a collection come before its entry, step by step where they are many. A draft says that they are under
way; one that nobody goes on with is cleared as a collection is that is gone, again step by step, and a mark says so
until none is left. So a crash at any step neither loses a child of a collection nor keeps one for ever.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final, TypeVar

from jobs import keys, records
from jobs.control.blobs.lookup import read_entry
from jobs.control.blobs.numbers import MAX_CHILDREN
from jobs.control.blobs.owners import owned
from jobs.control.blobs.stage import Stage
from jobs.control.blobs.writer import Decide, Writer
from jobs.control.once import MAX_TRIES
from jobs.control.transitions import scan_in_turns
from jobs.errors import InternalError, InvalidRequest, JobsError, Unavailable
from jobs.records import BlobDraftRecord
from jobs.service import Caller
from jobs.store import Store, prefix_end

ADDED_A_STEP: Final = 250
"""Children of one decision: three operations each."""
CLEARED_A_STEP: Final = 300
CHILD_ROWS: Final = 1_000
THERE: Final = "there since "

T = TypeVar("T")


class _Interrupted(Exception):
    """What was added of a collection is being cleared, or was: it is to be added from the beginning."""


class Collections:
    """Adds and clears children in steps."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    # --- additions --------------------------------------------------------------------------------------------------

    async def add(self, caller: Caller, parent: str, children: Sequence[str], complete: Decide[T]) -> T:
        """Add all children of a collection, the last ones with what `complete` says, which writes its entry.

        Raises NotFound for one that is not the caller's, and what `complete` raises.
        """
        children = list(dict.fromkeys(children))
        if len(children) > MAX_CHILDREN:
            raise InvalidRequest(
                f"the collection has {len(children)} blobs", field="files", expected=f"at most {MAX_CHILDREN}"
            )
        parts = [children[start : start + ADDED_A_STEP] for start in range(0, len(children), ADDED_A_STEP)]
        for _ in range(MAX_TRIES):
            basis = ""
            try:
                for part in parts[:-1]:
                    basis = await self._writer.change(partial(_grow, caller, parent, part, basis))
                return await self._writer.change(partial(_finish, caller, parent, parts[-1], basis, complete))
            except _Interrupted:
                await self.clear(parent)
            except Unavailable:
                raise  # whoever asks again goes on with what is there
            except JobsError:
                await self._writer.change(partial(_give_up, parent, basis))
                await self.clear(parent)
                raise
        raise InternalError(f"collection {parent} was cleared {MAX_TRIES} times while it was added")

    # --- removal ----------------------------------------------------------------------------------------------------

    async def clear(self, parent: str) -> None:
        """Have a collection that is gone keep nothing any more."""
        while await self._writer.change(lambda stage, _: self._clear_some(stage, parent)):
            pass

    async def clear_all(self) -> None:
        """Go on with what is being cleared."""
        async for page in scan_in_turns(self._store, keys.BLOBS_CLEARED):
            for key, *_ in page:
                await self.clear(keys.blob_of(key))

    async def drop_drafts(self, before_ms: int, most: int) -> None:
        """Clear collections whose entries never came, and with which nobody has gone on since."""
        rows, _ = self._store.range(keys.BLOB_DRAFTS, prefix_end(keys.BLOB_DRAFTS), limit=most)
        for key, value, *_ in rows:
            parent = keys.blob_of(key)
            if records.decode(BlobDraftRecord, value).at_ms < before_ms:
                await self._writer.change(partial(_drop_draft, parent, before_ms))
                await self.clear(parent)

    def _clear_some(self, stage: Stage, parent: str) -> bool:
        """Stage a step; False when nothing is left to be cleared."""
        if stage.read(keys.blob_cleared(parent)) is None:
            return False
        prefix = keys.blob_children_prefix(parent)
        rows, more = self._store.range(prefix, prefix_end(prefix), limit=CLEARED_A_STEP, keys_only=True)
        for key, *_ in rows:
            stage.delete(key)
            stage.delete(keys.blob_reference(keys.blob_of(key), "collection", parent))
        if not more:
            stage.delete(keys.blob_cleared(parent))
        return more

    # --- reads ------------------------------------------------------------------------------------------------------

    async def children_in_steps(self, parent: str, most: int = CHILD_ROWS) -> AsyncIterator[list[str]]:
        """Yield what a collection consists of, so many at a time; nothing for other blobs."""
        record = read_entry(self._store, parent)
        if record is None or record.kind != "collection":
            return
        prefix = keys.blob_children_prefix(parent)
        start, more = prefix, True
        while more:
            rows, more = self._store.range(start, prefix_end(prefix), limit=most, keys_only=True)
            if rows:
                start = rows[-1][0] + b"\x00"
                yield [keys.blob_of(row[0]) for row in rows]
            await asyncio.sleep(0)


def _grow(caller: Caller, parent: str, children: Sequence[str], former: str, stage: Stage, now_ms: int) -> str:
    """Stage some of the children, and return on what those that follow stand."""
    basis = _stand(stage, parent, former, now_ms)
    for child in children:
        owned(stage, caller, child)
        if stage.see(keys.blob_child(parent, child)) is None:
            stage.put(keys.blob_child(parent, child))
            stage.put(keys.blob_reference(child, "collection", parent))
            stage.touch(child, now_ms)
    return basis


def _finish(
    caller: Caller,
    parent: str,
    children: Sequence[str],
    former: str,
    complete: Decide[T],
    stage: Stage,
    now_ms: int,
) -> T:
    """Stage the last children, and the entry."""
    _grow(caller, parent, children, former, stage, now_ms)
    stage.delete(keys.blob_draft(parent))
    return complete(stage, now_ms)


def _stand(stage: Stage, parent: str, former: str, now_ms: int) -> str:
    """Check that what was added before is still there, and say that it goes on; return how to tell that next time."""
    if stage.read(keys.blob_cleared(parent)) is not None:
        raise _Interrupted
    record = stage.entry(parent)
    if record is not None and record.kind == "collection":
        # All of it is there: this only checks whose the children are.
        basis = f"{THERE}{record.created_ms}"
        if former.startswith(THERE) and former != basis:
            raise _Interrupted
        return basis
    found = stage.read(keys.blob_draft(parent))
    draft = None if found is None else records.decode(BlobDraftRecord, found)
    if former and (draft is None or draft.token != former):
        raise _Interrupted
    token = secrets.token_hex(8) if draft is None else draft.token
    stage.put(keys.blob_draft(parent), records.encode(BlobDraftRecord(now_ms, token)))
    return token


def _give_up(parent: str, basis: str, stage: Stage, _: int) -> None:
    """Stage that a draft is cleared whose collection was refused in the middle. Who adds the same begins anew."""
    found = stage.read(keys.blob_draft(parent))
    if found is not None and records.decode(BlobDraftRecord, found).token == basis:
        _clear_draft(stage, parent)


def _drop_draft(parent: str, before_ms: int, stage: Stage, _: int) -> None:
    """Stage that a draft is cleared, unless somebody has gone on with it."""
    found = stage.read(keys.blob_draft(parent))
    if found is None or records.decode(BlobDraftRecord, found).at_ms >= before_ms:
        return
    _clear_draft(stage, parent)


def _clear_draft(stage: Stage, parent: str) -> None:
    stage.delete(keys.blob_draft(parent))
    record = stage.entry(parent)
    if record is None or record.kind != "collection":
        stage.put(keys.blob_cleared(parent))
