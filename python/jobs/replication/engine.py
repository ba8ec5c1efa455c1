"""Keeps a range of keys at a target as it is at a source: compared once, then followed by its changes.

What is done is known from the cursor, which is at the target and moves in the same transaction as the keys: whoever is
killed, wherever, and whoever goes on, nothing is lost and nothing is done twice. Time comes as an argument.

A comparison is with the source at one revision. While it goes on, what has been compared is kept in step by the changes
since, and the revision moves on, so that it does not matter how soon the source forgets its history; where it has
forgotten all the same, the comparison begins anew, and passes quickly over what is equal already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, Literal, TypeAlias

from msgspec import Struct, structs

from jobs.errors import Compacted, InvalidRequest, OperationUnderWay, RevisionConflict
from jobs.protocol.model import ConflictPolicy
from jobs.records import CursorRecord
from jobs.replication import batches
from jobs.replication import messages as m
from jobs.replication.comparing import At, Differing, Found, Passed, Span, Walk
from jobs.replication.origins import check_no_loop, upstream_of
from jobs.replication.side import Side
from jobs.replication.throttle import Limiter

logger = logging.getLogger(__name__)

ADVANCE_S: Final = 5.0
"""For so long a comparison is with one revision."""
LOOK_S: Final = 60.0
"""So often it is looked whether what is followed has become a loop, and a position written that nothing else moves."""
IDLE_REVISIONS: Final = 1_000
"""When the source is so much further, with no change for the target, the position is written as well."""
POLL_S: Final = 30.0
"""A source is asked anew for changes that do not come after so long."""
CATCH_UP_S: Final = 1.0


class Work(Struct, frozen=True, kw_only=True):
    """What is to be in step with what. `origin`: id of the cluster whose job it is."""

    origin: str
    name: str
    holder: str
    """Job and attempt, as "JOB/…"."""
    prefix: str
    target_prefix: str
    policy: ConflictPolicy = "source"
    continuous: bool = False
    restart: bool = False


class Progress(Struct, kw_only=True):
    """How far it is, and what was done by this run."""

    phase: Literal["comparing", "following"] = "comparing"
    position: int = 0
    source_revision: int = 0
    target_revision: int = 0
    behind_since_ms: int | None = None
    in_step_ms: int = 0
    """When the target had all that the source had, the last time that this was known; 0: not since this run began."""
    rows: int = 0
    deleted: int = 0
    conflicts: int = 0
    bytes: int = 0
    snapshots: int = 0
    blobs: int = 0
    compared: int = 0
    """Rows that were compared."""
    cursor_conflicts: int = 0
    """Of all runs."""
    cursor_snapshots: int = 0


class Clock(Struct, frozen=True, kw_only=True):
    now_s: Callable[[], float]
    """Of a steady clock."""
    now_ms: Callable[[], int]
    pause: Callable[[float], Awaitable[None]]


_Difference: TypeAlias = tuple[tuple[m.Change, ...], bytes | None]
"""Changes, and before which key everything has been told with them; None: all of it."""


class _Chunk(Struct, frozen=True):
    """What a comparison has found: changes, none where everything was equal, and where it is then."""

    changes: tuple[m.Change, ...]
    next: bytes | None
    size_bytes: int
    compared: int


class KeySync:
    """One run of a sync of keys. `tell` is called whenever something has been done."""

    def __init__(
        self, source: Side, target: Side, work: Work, limiter: Limiter, clock: Clock, tell: Callable[[Progress], None]
    ) -> None:
        self.progress = Progress()
        self._source = source
        self._target = target
        self._work = work
        self._limiter = limiter
        self._clock = clock
        self._tell = tell
        self._prefix = work.prefix.encode()
        self._target_prefix = work.target_prefix.encode()
        self._cursor: CursorRecord
        self._expected = 0
        self._goal = self._seen = 0
        self._written_s = self._looked_s = clock.now_s()

    async def run(self) -> Progress:
        """Return when the target has what the source had at the beginning; continuous: never.

        Raises OperationUnderWay when another run has taken over, ReplicationLoop, ReplicationConflict, and what the
        sides raise. It may be begun again after anything.
        """
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

    # --- the cursor -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        work = self._work
        about, there = await asyncio.gather(self._source.about(), self._target.about())
        self._goal = about.revision
        self.progress.source_revision, self.progress.target_revision = about.revision, there.revision
        found = await self._target.cursor(work.origin, work.name)
        upstream = await upstream_of(self._source, about.cluster, work.prefix)
        check_no_loop(upstream, there.cluster, work.target_prefix)
        wanted = CursorRecord(
            source=about.cluster,
            prefix=work.prefix,
            target_prefix=work.target_prefix,
            is_tags=False,
            holder=work.holder,
            upstream=upstream,
        )
        if found is None:
            await self._begin_comparison(wanted)
            return
        former, self._expected = found.record, found.mod_revision
        if work.restart and not _same_job(former.holder, work.holder):
            await self._begin_comparison(structs.replace(wanted, snapshots=former.snapshots))
            return
        check_same(work.name, former, wanted)
        self._cursor = former
        await self._write(structs.replace(former, holder=work.holder, upstream=upstream))

    async def _begin_comparison(self, cursor: CursorRecord) -> None:
        about = await self._source.about()
        self.progress.snapshots += 1
        self._cursor = cursor
        await self._write(
            structs.replace(cursor, comparing=max(1, about.revision), after=b"", snapshots=cursor.snapshots + 1)
        )

    async def _look(self) -> None:
        """See that what is followed has not become a loop."""
        about, there = await asyncio.gather(self._source.about(), self._target.about())
        upstream = await upstream_of(self._source, about.cluster, self._work.prefix)
        check_no_loop(upstream, there.cluster, self._work.target_prefix)
        self._looked_s = self._clock.now_s()
        if upstream != self._cursor.upstream:
            await self._write(structs.replace(self._cursor, upstream=upstream))

    async def _write(self, cursor: CursorRecord, changes: tuple[m.Change, ...] = (), size_bytes: int = 0) -> None:
        """Move the cursor, together with the changes; where more conflicts are met than a batch can record, part of
        the changes before."""
        size_bytes += sum(batches.size_of(change) for change in changes)
        if changes or size_bytes:
            delay_s = self._limiter.take(self._clock.now_s(), size_bytes, len(changes))
            if delay_s > 0:
                await self._clock.pause(delay_s)
        self.progress.bytes += size_bytes
        part, wanted = changes, cursor
        rest: tuple[m.Change, ...] = ()
        while True:
            applied = await self._apply(part, wanted)
            if applied.mod_revision == 0:
                part, rest, wanted = part[: applied.fit], part[applied.fit :] + rest, self._cursor
                continue
            self._note(applied, wanted)
            if not rest:
                return
            part, rest, wanted = rest, (), cursor

    async def _apply(self, changes: tuple[m.Change, ...], cursor: CursorRecord) -> m.Applied:
        work = self._work
        while True:
            batch = m.Batch(work.origin, work.name, self._expected, cursor, changes, work.policy)
            try:
                return await self._target.apply(batch)
            except RevisionConflict:
                found = await self._target.cursor(work.origin, work.name)
                if found is None or found.record.holder != work.holder or found.mod_revision == self._expected:
                    raise OperationUnderWay(
                        f"another run works on sync {work.name!r}: "
                        + ("its cursor is gone" if found is None else found.record.holder),
                        expected="one job at a time",
                    ) from None
                # An answer was lost. Where the cursor has not moved, to do it again does the same.
                self._expected = found.mod_revision
                if _place(found.record) == _place(cursor) != _place(self._cursor):
                    put = sum(change.value is not None for change in changes)
                    conflicts = found.record.conflicts - self._cursor.conflicts
                    return m.Applied(found.mod_revision, put, len(changes) - put, conflicts)

    def _note(self, applied: m.Applied, cursor: CursorRecord) -> None:
        progress = self.progress
        self._cursor = structs.replace(cursor, conflicts=self._cursor.conflicts + applied.conflicts)
        self._expected = progress.target_revision = applied.mod_revision
        self._written_s = self._clock.now_s()
        progress.rows += applied.put
        progress.deleted += applied.deleted
        progress.conflicts += applied.conflicts
        progress.position = self._cursor.position
        progress.phase = "comparing" if self._cursor.comparing else "following"
        progress.cursor_conflicts = self._cursor.conflicts
        progress.cursor_snapshots = self._cursor.snapshots
        self._tell(progress)

    # --- comparing ----------------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """Go on with a comparison until it has ended, or is to go on with another revision."""
        try:
            if self._cursor.after:
                await self._advance()
            began_s = self._clock.now_s()
            async with aclosing(batches.ahead(self._found())) as chunks:
                async for chunk in chunks:
                    self.progress.compared = chunk.compared
                    if chunk.next is None:
                        cursor = structs.replace(self._cursor, position=self._cursor.comparing, comparing=0, after=b"")
                        await self._write(cursor, chunk.changes, chunk.size_bytes)
                        return
                    is_due = self._clock.now_s() - began_s > ADVANCE_S
                    if chunk.changes or is_due:
                        cursor = structs.replace(self._cursor, after=chunk.next)
                        await self._write(cursor, chunk.changes, chunk.size_bytes)
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
            page = await self._source.changes(self._prefix, at)
            newest = page.newest if newest is None else newest
            wanted = [change for change in page.changes if change.key < after]
            for changes, revision in batches.cut(wanted, at, page.up_to):
                await self._write(structs.replace(self._cursor, comparing=revision), changes)
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
                if pending and (len(pending) == m.MAX_CHANGES or _is_last(one) or isinstance(one, Span)):
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
        while start is not None:
            if span.source_rows:
                answer = await self._source.rows(
                    self._prefix, (start, span.end), revision=revision, limit=m.MAX_CHANGES
                )
                changes = tuple(batches.change_of(row, self._cursor.position) for row in answer.rows)
            else:
                answer = await self._target.rows(
                    self._target_prefix, (start, span.end), revision=0, limit=m.MAX_CHANGES, values=False
                )
                changes = tuple(m.Change(row.key, None, 0) for row in answer.rows)
            if changes:
                yield changes, changes[-1].key + b"\x00"
            start = answer.next

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Raises Compacted."""
        self.progress.phase, self._seen = "following", self._cursor.position
        if self._is_done():
            return
        async with aclosing(batches.ahead(self._pages())) as pages:
            async for page in pages:
                await self._take(page)
                if self._is_done():
                    if self._cursor.position < self._seen:
                        await self._write(structs.replace(self._cursor, position=self._seen))
                    return
                if self._clock.now_s() - self._looked_s > LOOK_S:
                    await self._look()

    def _is_done(self) -> bool:
        return not self._work.continuous and self._seen >= self._goal

    async def _pages(self) -> AsyncGenerator[m.Changes]:
        at, newest = self._seen, self._goal
        while True:
            wait_s = 0.0 if at < newest else POLL_S if self._work.continuous else CATCH_UP_S
            page = await self._source.changes(self._prefix, at, wait_s=wait_s)
            newest = page.newest if page.up_to > at else 0
            at = max(at, page.up_to)
            yield page

    async def _take(self, page: m.Changes) -> None:
        progress = self.progress
        for changes, revision in batches.cut(page.changes, self._seen, max(self._seen, page.up_to)):
            if changes or self._is_idle(revision):
                await self._write(structs.replace(self._cursor, position=revision), changes)
            self._seen = revision
        progress.position = self._seen
        progress.source_revision = max(progress.source_revision, page.newest)
        if self._seen >= page.newest:
            progress.behind_since_ms, progress.in_step_ms = None, self._clock.now_ms()
        elif progress.behind_since_ms is None:
            progress.behind_since_ms = progress.in_step_ms or self._clock.now_ms()
        self._tell(progress)

    def _is_idle(self, revision: int) -> bool:
        """Whether the position is to be written though nothing else is."""
        further = revision - self._cursor.position
        return further >= IDLE_REVISIONS or (further > 0 and self._clock.now_s() - self._written_s > LOOK_S)


def check_same(name: str, found: CursorRecord, wanted: CursorRecord) -> None:
    """Raise InvalidRequest where a sync of this name is another one."""
    for field, there, here in (
        ("source", found.source, wanted.source),
        ("prefix", found.prefix, wanted.prefix),
        ("target_prefix", found.target_prefix, wanted.target_prefix),
    ):
        if there != here or found.is_tags != wanted.is_tags:
            raise InvalidRequest(
                f"sync {name!r} has been one of {found.source} {found.prefix}, to {found.target_prefix}",
                field=f"$.payload.{field}",
                expected="another name, or restart",
            )


def _same_job(holder: str, other: str) -> bool:
    return holder.partition("/")[0] == other.partition("/")[0]


def _place(cursor: CursorRecord) -> tuple[int, int, bytes]:
    return cursor.position, cursor.comparing, cursor.after


def _is_last(found: Found) -> bool:
    return isinstance(found, Passed) and found.next is None
