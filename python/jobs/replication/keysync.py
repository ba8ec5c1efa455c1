"""Keeps a range of keys at a target as it is at a source: compared once, then followed by its changes.

A comparison is with the source at one revision. While it goes on, what has been compared is kept in step by the changes
since, and the revision moves on, so that it does not matter how soon the source forgets its history; where it has
forgotten all the same, the comparison begins anew, and passes quickly over what is equal already.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, TypeAlias, TypeVar

from msgspec import Struct, structs

from jobs.errors import Compacted
from jobs.records import CursorRecord
from jobs.replication import batches
from jobs.replication import messages as m
from jobs.replication.comparing import At, Differing, Found, Passed, Span, Walk
from jobs.replication.run import LOOK_S, POLL_S, Clock, Progress, Run, Work
from jobs.replication.side import Side
from jobs.replication.throttle import Limiter

logger = logging.getLogger(__name__)

ADVANCE_S: Final = 5.0
"""For so long a comparison is with one revision."""
IDLE_REVISIONS: Final = 1_000
"""When the source is so much further, with no change for the target, the position is written as well."""
CATCH_UP_S: Final = 1.0
"""A source that is not yet where it said to be is given so long, again and again."""

PAGE_ROWS: Final = 4 * batches.BATCH_CHANGES
PAGE_EVENTS: Final = 2 * batches.BATCH_CHANGES
"""At once: whoever is asked does not hold up what else it does for longer than some milliseconds."""

T = TypeVar("T")
_Difference: TypeAlias = tuple[tuple[m.Change, ...], bytes | None]
"""Changes, and before which key everything has been told with them; None: all of it."""


class _Chunk(Struct, frozen=True):
    """What a comparison has found: changes, none where everything was equal, and where it is then."""

    changes: tuple[m.Change, ...]
    next: bytes | None
    size_bytes: int
    compared: int


class KeySync(Run[m.Change]):
    """One run of a sync of keys."""

    def __init__(
        self, source: Side, target: Side, work: Work, limiter: Limiter, clock: Clock, tell: Callable[[Progress], None]
    ) -> None:
        super().__init__(source, target, work, limiter, clock, tell)
        self._prefix = work.prefix.encode()
        self._target_prefix = work.target_prefix.encode()

    async def run(self) -> Progress:
        await self._begin()
        while True:
            while self._cursor.comparing:
                await self._compare()
            try:
                await self._follow()
                return self.progress
            except Compacted as gap:
                logger.info("sync %s compares everything anew: %s", self._work.name, gap.detail)
                await self._begin_comparison(self._cursor)

    async def _send(self, changes: tuple[m.Change, ...], cursor: CursorRecord) -> m.Applied:
        work = self._work
        return await self._target.apply(m.Batch(work.origin, work.name, self._expected, cursor, changes, work.policy))

    def _ahead(self, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Have more read while something is written; not where what is read and then not used would go beyond the
        limits."""
        return items if self._limiter.is_set else batches.ahead(items)

    async def _put(self, cursor: CursorRecord, changes: tuple[m.Change, ...], size_bytes: int = 0) -> None:
        size_bytes += sum(batches.size_of(change) for change in changes)
        if size_bytes:
            await self._take_turn(size_bytes, len(changes))
        await self._write(cursor, changes)

    # --- comparing ----------------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """Go on with a comparison until it has ended, or is to go on with another revision."""
        try:
            if self._cursor.after:
                await self._advance()
            began_s = self._clock.now_s()
            async with aclosing(self._ahead(self._found())) as chunks:
                async for chunk in chunks:
                    self.progress.compared = chunk.compared
                    if chunk.next is None:
                        cursor = structs.replace(self._cursor, position=self._cursor.comparing, comparing=0, after=b"")
                        await self._put(cursor, chunk.changes, chunk.size_bytes)
                        return
                    is_due = self._clock.now_s() - began_s > ADVANCE_S
                    if chunk.changes or is_due:
                        cursor = structs.replace(self._cursor, after=chunk.next)
                        await self._put(cursor, chunk.changes, chunk.size_bytes)
                    if is_due:
                        return
        except Compacted as gap:
            logger.info("sync %s begins its comparison anew: %s", self._work.name, gap.detail)
            await self._begin_comparison(self._cursor)

    async def _advance(self) -> None:
        """Bring what has been compared to the source's newest revision. Raises Compacted."""
        newest: int | None = None
        at, after = self._cursor.comparing, self._cursor.after
        while newest is None or at < newest:
            page = await self._source.changes(self._prefix, at, limit=PAGE_EVENTS)
            newest = page.newest if newest is None else newest
            wanted = [change for change in page.changes if change.key < after]
            for changes, revision in batches.cut(wanted, at, page.up_to):
                await self._put(structs.replace(self._cursor, comparing=revision), changes)
            if page.up_to <= at:
                break
            at = page.up_to
        self.progress.source_revision = max(self.progress.source_revision, newest or 0)

    async def _found(self) -> AsyncGenerator[_Chunk]:
        """Yield what differs from where the comparison is on."""
        revision, told = self._cursor.comparing, 0
        walk = Walk(At(self._source, self._prefix, revision), At(self._target, self._target_prefix))
        async with aclosing(self._differences(walk, revision)) as found:
            async for changes, following in found:
                yield _Chunk(changes, following, walk.bytes - told, walk.rows)
                told = walk.bytes

    async def _differences(self, walk: Walk, revision: int) -> AsyncGenerator[_Difference]:
        pending: list[Differing] = []
        async with aclosing(walk.run(self._cursor.after)) as found:
            async for one in found:
                if isinstance(one, Differing):
                    pending.append(one)
                if pending and (len(pending) == batches.BATCH_CHANGES or _is_last(one) or isinstance(one, Span)):
                    async for difference in self._changes_of(pending, revision):
                        yield difference
                    pending = []
                if isinstance(one, Span):
                    async for difference in self._of_one_side(one, revision):
                        yield difference
                elif isinstance(one, Passed) and not pending:
                    yield (), one.next

    async def _changes_of(self, differing: list[Differing], revision: int) -> AsyncGenerator[_Difference]:
        done = 0
        while done < len(differing):
            left = differing[done:]
            names = tuple(one.key for one in left if one.at_source)
            answer = await self._source.pick(self._prefix, names, revision=revision) if names else m.Rows(())
            if answer.next is not None:
                left = left[: next(at for at, one in enumerate(left) if one.key == answer.next)]
            rows = {row.key: row for row in answer.rows}
            changes = tuple(
                batches.change_of(rows[one.key], self._cursor.position)
                if one.key in rows
                else m.Change(one.key, None, 0)
                for one in left
            )
            yield changes, left[-1].key + b"\x00"
            done += len(left)

    async def _of_one_side(self, span: Span, revision: int) -> AsyncGenerator[_Difference]:
        start: bytes | None = span.start
        limit = batches.BATCH_CHANGES if self._limiter.is_set else PAGE_ROWS
        while start is not None:
            if span.source_rows:
                answer = await self._source.rows(self._prefix, (start, span.end), revision=revision, limit=limit)
                changes = [batches.change_of(row, self._cursor.position) for row in answer.rows]
            else:
                answer = await self._target.rows(
                    self._target_prefix, (start, span.end), revision=0, limit=PAGE_ROWS, values=False
                )
                changes = [m.Change(row.key, None, 0) for row in answer.rows]
            for part in batches.pieces(changes):
                yield part, part[-1].key + b"\x00"
            start = answer.next

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Raises Compacted."""
        self.progress.phase, self._seen = "following", self._cursor.position
        if self._is_done():
            self._saw(self._seen, self._goal)
            return
        async with aclosing(self._ahead(self._pages())) as pages:
            async for page in pages:
                await self._take(page)
                if self._is_done():
                    if self._cursor.position < self._seen:
                        await self._write(structs.replace(self._cursor, position=self._seen))
                    return
                await self._look()

    async def _pages(self) -> AsyncGenerator[m.Changes]:
        at = self._seen
        newest = max(self._goal, at + 1)  # the first answer comes at once: until then nobody knows how far behind it is
        while True:
            wait_s = 0.0 if at < newest else POLL_S if self._work.continuous else CATCH_UP_S
            page = await self._source.changes(self._prefix, at, limit=PAGE_EVENTS, wait_s=wait_s)
            newest = page.newest if page.up_to > at else 0
            at = max(at, page.up_to)
            yield page

    async def _take(self, page: m.Changes) -> None:
        self.progress.source_revision = max(self.progress.source_revision, page.newest)
        for changes, revision in batches.cut(page.changes, self._seen, max(self._seen, page.up_to)):
            if changes or self._is_idle(revision):
                await self._put(structs.replace(self._cursor, position=revision), changes)
            self._seen = revision
        self._saw(page.up_to, page.newest)

    def _is_idle(self, revision: int) -> bool:
        """Whether the position is to be written though nothing else is."""
        further = revision - self._cursor.position
        return further >= IDLE_REVISIONS or (further > 0 and self._clock.now_s() - self._written_s > LOOK_S)


def _is_last(found: Found) -> bool:
    return isinstance(found, Passed) and found.next is None
