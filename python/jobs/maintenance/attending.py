"""What a node does for maintenance with its own log, store and machine, by its own will or a member's order."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jobs._native import CompactedError, CorruptError, Log, Store
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.errors import Compacted
from jobs.maintenance import messages as m
from jobs.maintenance.examination import Machine
from jobs.maintenance.pacing import Pacing

WORTH: Final = 0.1
"""A file of which less than this holds nothing is not written anew: it is read and written whole for that."""
SPARSE: Final = 0.6
"""A file whose rows come to less than this of it has pages that are far from full."""
DENSE: Final = 0.85
"""About what rows come to of a file that was written anew."""
LOG_BYTES: Final = 4 << 20
ROWS: Final = 8_000
"""Looked at in one step."""
MAX_TEXT: Final = 2_000


class Attending:
    def __init__(
        self, site: Site, consensus: Consensus, store: Store, log: Log, machine: Machine, pacing: Pacing
    ) -> None:
        self._site = site
        self._consensus = consensus
        self._store = store
        self._log = log
        self._machine = machine
        self._pacing = pacing
        self._dense_bytes = 0
        """The file's size when it was last written anew: rows that fill half a page each are no fuller then."""

    async def carry_out(self, order: m.Order, on_advance: Callable[[m.Advance], None]) -> m.End:
        """Raises errors of `jobs.errors` and of the extension."""
        match order:
            case m.CutLog():
                return await self._cut_log(dry_run=order.dry_run)
            case m.CompactFile():
                return await self._compact_file(on_advance, dry_run=order.dry_run)
            case m.Examine():
                return await asyncio.to_thread(self._machine.examine)
            case m.CheckLog():
                return await self._pacing.step(asyncio.to_thread(self._check_log, order.cursor))
            case m.CheckStore():
                return await self._pacing.step(asyncio.to_thread(self._check_store, order.cursor))
            case m.CheckSnapshot():
                return await asyncio.to_thread(self._check_snapshot)
            case m.Digest():
                await self._site.reach(order.revision)
                return await self._pacing.step(asyncio.to_thread(self._digest, order))
            case m.Show():
                await self._site.reach(order.revision)
                return self._show(order)
            case m.Needed():
                return m.Needs(self._site.oldest_needed)

    # --- space --------------------------------------------------------------------------------------------------------

    async def _cut_log(self, *, dry_run: bool) -> m.Freed:
        log = self._log
        before_bytes, first = log.size_bytes, log.first_index
        if dry_run:
            share = (log.last_index - self._store.applied_index) / max(1, log.last_index - first + 1)
            return m.Freed(before_bytes, int(before_bytes * share), log.last_index - first + 1)
        await self._consensus.snapshot()
        left = self._store.snapshot_index - log.first_index + 1
        outcome = f"{left} entries of the log stay for members that lack them" if left > 1 else ""
        return m.Freed(before_bytes, log.size_bytes, log.first_index - first, outcome)

    async def _compact_file(self, on_advance: Callable[[m.Advance], None], *, dry_run: bool) -> m.Freed:
        before_bytes, _ = await asyncio.to_thread(self._store.file_bytes)
        needed_bytes = await self._needed_bytes()
        if before_bytes - needed_bytes < WORTH * before_bytes:
            outcome = f"nothing is gained by writing its file of {before_bytes} bytes anew"
            return m.Freed(before_bytes, before_bytes, 0, outcome)
        if dry_run:
            return m.Freed(before_bytes, needed_bytes, 0)
        before_bytes, after_bytes = await self._consensus.compact_file(
            lambda done, total: on_advance(m.Advance(done, total))
        )
        self._dense_bytes = after_bytes
        return m.Freed(before_bytes, after_bytes, 0)

    async def _needed_bytes(self) -> int:
        """Return about how large the file would be if it was written anew.

        Where many pages are free, those are what is gained at least. Else the pages may have few rows each, as deletes
        all over the store leave them; only reading all of them tells.
        """
        size_bytes, free_bytes = await asyncio.to_thread(self._store.file_bytes)
        used_bytes = size_bytes - free_bytes
        if free_bytes >= WORTH * size_bytes or size_bytes < (1 + WORTH) * self._dense_bytes:
            return used_bytes
        rows_bytes, cursor = 0, b""
        while True:
            checked = await self._pacing.step(asyncio.to_thread(self._check_store, cursor))
            rows_bytes += checked.size_bytes
            if checked.cursor is None:
                return used_bytes if rows_bytes > SPARSE * size_bytes else int(rows_bytes / DENSE)
            cursor = checked.cursor

    # --- reading anew -------------------------------------------------------------------------------------------------

    def _check_log(self, cursor: bytes) -> m.Checked:
        """Read some of the log; the cursor is the next entry and the last one, as it was at the beginning."""
        index, _, end = cursor.partition(b" ")
        first = max(int(index or 0), self._log.first_index)
        last = int(end or self._log.last_index)
        if first > last:
            return m.Checked(0, 0)
        try:
            following, size_bytes = self._log.check(first, max_bytes=LOG_BYTES)
        except CorruptError as error:
            return m.Checked(0, 0, (str(error)[:MAX_TEXT],))
        # Nothing there: it has been cut meanwhile up to a later entry, or that was the end.
        over = following > last or (not size_bytes and self._log.first_index <= first)
        rest = None if over else b"%d %d" % (following, last)
        return m.Checked(following - first, size_bytes, cursor=rest)

    def _check_store(self, cursor: bytes) -> m.Checked:
        rows, size_bytes, rest, damaged = self._store.check_rows(cursor, max_rows=ROWS)
        problems = tuple(text[:MAX_TEXT] for text in damaged[: m.MAX_PROBLEMS])
        return m.Checked(rows, size_bytes, problems, rest or None)

    def _check_snapshot(self) -> m.Checked:
        while True:
            path = self._store.snapshot_path()
            if path is None:
                return m.Checked(0, 0)
            try:
                size_bytes = Path(path).stat().st_size
                return m.Checked(Store.check_snapshot_file(path), size_bytes)
            except CorruptError as error:
                return m.Checked(0, 0, (str(error)[:MAX_TEXT],))
            except OSError:
                if path == self._store.snapshot_path():
                    raise  # else a newer one has taken its place

    # --- comparing ----------------------------------------------------------------------------------------------------

    def _digest(self, order: m.Digest) -> m.Digested:
        try:
            pieces, cursor = self._store.digests(
                order.start,
                order.end,
                cursor=order.cursor,
                revision=order.revision,
                rows=order.rows,
                limit=order.limit,
                max_rows=ROWS,
            )
        except CompactedError:
            return m.Digested((), b"", compacted=True)
        return m.Digested(tuple(m.Piece(*piece) for piece in pieces), cursor)

    def _show(self, order: m.Show) -> m.Shown:
        try:
            found = self._store.get(order.key, order.revision)
        except CompactedError as error:
            raise Compacted(str(error)) from error
        if found is None:
            return m.Shown()
        _, value, version, create_revision, mod_revision, lease = found
        return m.Shown(version, create_revision, mod_revision, lease, len(value), hashlib.sha256(value).hexdigest())
