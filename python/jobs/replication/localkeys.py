"""Keys of this cluster as a side of a sync: read from this node's own store, written through the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeVar

from jobs import keys, records
from jobs._native import CompactedError
from jobs.clock import wall_ms
from jobs.control.hub import Event, Waiter
from jobs.errors import Compacted
from jobs.records import CursorRecord
from jobs.replication import messages as m
from jobs.replication.applying import read_cursor
from jobs.replication.origins import brought
from jobs.replication.times import KnownTimes
from jobs.store import Store, prefix_end

LOOKED_ROWS: Final = 500_000
"""Of an answer with digests, unless a single piece has more."""
TURN_ROWS: Final = 50_000
"""That are digested without a look at how many there were."""
PICKED_AT_ONCE: Final = 200
CURSORS_PAGE: Final = 500

T = TypeVar("T")


class Leader(Protocol):
    """The way to whoever leads; errors are those of `Side`."""

    async def reached(self) -> int:
        """Return a revision of the store that holds all that was acknowledged before this was asked."""

    async def apply(self, batch: m.Batch) -> m.Applied: ...

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied: ...


class OwnStore(Protocol):
    """This node's store, as it is kept up to date."""

    async def reach(self, revision: int) -> None:
        """Return once the store is so far. Raises Unavailable where that takes too long."""

    def waiter(self, *prefixes: bytes) -> AbstractContextManager[Waiter]:
        """Yield what is rung at every change of a key with one of these prefixes."""

    def on_read(self, revision: int) -> None:
        """Somebody reads the store as it was at a revision, or what came after it, and is going to read on."""


class ReadsStore:
    """Whatever reads this node's own store, and sees all that was acknowledged before."""

    def __init__(self, store: Store, own: OwnStore, leader: Leader) -> None:
        self._store = store
        self._own = own
        self._leader = leader
        self._times = KnownTimes(store)

    async def _catch_up(self, revision: int | None = None) -> None:
        """Have the store at a revision; None or 0: at what was acknowledged by now."""
        if revision:
            self._own.on_read(revision)
        else:
            revision = await self._leader.reached()
        if self._store.revision < revision:
            await self._own.reach(revision)


class LocalKeys(ReadsStore):
    """Implements the part of `Side` that is about keys."""

    def __init__(self, store: Store, own: OwnStore, leader: Leader, cluster: str, name: str) -> None:
        super().__init__(store, own, leader)
        self._cluster = cluster
        self._name = name

    @property
    def title(self) -> str:
        return "this cluster"

    async def about(self) -> m.About:
        await self._catch_up()
        store = self._store
        return m.About(self._cluster, self._name, store.revision, store.compact_revision, wall_ms())

    # --- what is there ------------------------------------------------------------------------------------------------

    async def digests(
        self, prefix: bytes, ranges: tuple[m.Range, ...], *, revision: int, rows: int, limit: int = m.MAX_PIECES
    ) -> m.Digests:
        await self._catch_up(revision)
        return await _in_thread(self._digests, prefix, ranges, revision, rows, min(limit, m.MAX_PIECES))

    def _digests(self, prefix: bytes, ranges: tuple[m.Range, ...], revision: int, rows: int, limit: int) -> m.Digests:
        found: list[tuple[m.Piece, ...]] = []
        pieces = looked_at = 0
        for start, end in ranges:
            part: list[m.Piece] = []
            cursor, is_over = b"", False
            first, until = prefix + start, _end(prefix, end)
            while not is_over:
                if pieces >= limit or (pieces and looked_at >= LOOKED_ROWS):
                    if not part:
                        return m.Digests(tuple(found))
                    return m.Digests((*found, tuple(part)), part[-1].last + b"\x00")
                told, cursor = self._store.digests(
                    first,
                    until,
                    cursor=cursor,
                    revision=revision,
                    strip=len(prefix),
                    content_only=True,
                    rows=rows,
                    limit=limit - pieces,
                    max_rows=TURN_ROWS,
                )
                part += [
                    m.Piece(last[len(prefix) :], digest[: m.DIGEST_BYTES], count, size)
                    for last, digest, count, size in told
                ]
                pieces += len(told)
                looked_at += sum(count for _, _, count, _ in told)
                is_over = not cursor
            found.append(tuple(part))
        return m.Digests(tuple(found))

    async def rows(
        self, prefix: bytes, span: m.Range, *, revision: int, limit: int = m.MAX_ROWS, values: bool = True
    ) -> m.Rows:
        await self._catch_up(revision)
        start, end = span
        return await _in_thread(self._rows, prefix, start, _end(prefix, end), revision, min(limit, m.MAX_ROWS), values)

    def _rows(self, prefix: bytes, start: bytes, end: bytes, revision: int, limit: int, values: bool) -> m.Rows:
        found, more = self._store.range(
            prefix + start, end, limit=limit, revision=revision, keys_only=not values, max_bytes=m.MAX_ANSWER_BYTES
        )
        rows = tuple(self._row(prefix, row) for row in found)
        return m.Rows(rows, rows[-1].key + b"\x00" if more else None)

    def _row(self, prefix: bytes, row: tuple[bytes, bytes, int, int, int, int]) -> m.Row:
        key, value, _, created, modified, _ = row
        return m.Row(key[len(prefix) :], value, created, modified, self._times.of(modified, wall_ms()))

    async def pick(self, prefix: bytes, names: tuple[bytes, ...], *, revision: int) -> m.Rows:
        await self._catch_up(revision)
        return await _in_thread(self._pick, prefix, names, revision)

    def _pick(self, prefix: bytes, names: tuple[bytes, ...], revision: int) -> m.Rows:
        found: list[m.Row] = []
        size = 0
        for name in names:
            if size >= m.MAX_ANSWER_BYTES:
                return m.Rows(tuple(found), name)
            row = self._store.get(prefix + name, revision)
            if row is not None:
                size += len(row[0]) + len(row[1])
                if found and size > m.MAX_ANSWER_BYTES:
                    return m.Rows(tuple(found), name)
                found.append(self._row(prefix, row))
        return m.Rows(tuple(found))

    async def changes(
        self, prefix: bytes, after_revision: int, *, limit: int = m.MAX_EVENTS, wait_s: float = 0.0
    ) -> m.Changes:
        await self._catch_up(after_revision or None)
        limit = min(limit, m.MAX_EVENTS)
        with self._own.waiter(prefix) as waiter:
            until_s = asyncio.get_running_loop().time() + min(wait_s, m.MAX_WAIT_S)
            while True:
                found = await _in_thread(self._changes, prefix, after_revision, limit)
                left_s = until_s - asyncio.get_running_loop().time()
                # What lies behind a stretch without changes for this prefix is told by the next answer.
                if found.changes or found.up_to < found.newest or left_s <= 0 or not await waiter.wait(left_s):
                    self._own.on_read(found.up_to)
                    return found

    def _changes(self, prefix: bytes, after_revision: int, limit: int) -> m.Changes:
        events, up_to = self._store.events(after_revision, [prefix], limit=limit, max_bytes=m.MAX_ANSWER_BYTES)
        newest, now_ms = self._store.revision, wall_ms()
        events.sort(key=_place)
        before: dict[bytes, bytes | None] = {}
        changes: list[m.Change] = []
        for revision, key, value, version, _, _ in events:
            base = self._base(key, revision, version, before)
            before[key] = value
            changes.append(m.Change(key[len(prefix) :], value, revision, self._times.of(revision, now_ms), base))
        up_to_ms = self._times.of(up_to, now_ms) if up_to else 0
        return m.Changes(tuple(changes), up_to, max(newest, up_to), up_to_ms, now_ms)

    def _base(self, key: bytes, revision: int, version: int, before: dict[bytes, bytes | None]) -> bytes:
        """Return what a key had before the change of a revision."""
        if version == 1:
            return m.ABSENT
        if key in before:
            value = before[key]
        else:
            row = self._store.get(key, revision - 1)
            value = None if row is None else row[1]
        return m.ABSENT if value is None else m.digest_of(value)

    # --- the target's part --------------------------------------------------------------------------------------------

    async def cursor(self, origin: str, name: str) -> m.Positioned | None:
        await self._catch_up()
        record, modified = read_cursor(self._store, origin, name)
        return None if record is None else m.Positioned(record, modified)

    async def upstream(self, place: str) -> frozenset[str]:
        await self._catch_up()
        found: list[CursorRecord] = []
        start, more = keys.SYNC_CURSORS, True
        while more:
            rows, more = self._store.range(start, prefix_end(keys.SYNC_CURSORS), limit=CURSORS_PAGE)
            found += [records.decode(CursorRecord, row[1]) for row in rows]
            start = rows[-1][0] + b"\x00" if rows else start
        return brought(found, place)

    async def apply(self, batch: m.Batch) -> m.Applied:
        return await self._leader.apply(batch)


def _end(prefix: bytes, end: bytes | None) -> bytes:
    return prefix_end(prefix) if end is None else prefix + end


def _place(event: Event) -> tuple[int, bytes]:
    return event[0], event[1]


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """Do what may take long beside everything else. Raises Compacted."""
    try:
        return await asyncio.to_thread(work, *args)
    except CompactedError as error:
        raise Compacted(str(error), expected="a newer revision") from error
