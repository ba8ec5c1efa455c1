"""One run of a sync, of keys or of tags: the cursor that it moves, and what is told of it.

What is done is known from the cursor, which is at the target and moves in the same transaction as what is copied:
whoever is killed, wherever, and whoever goes on, nothing is lost and nothing is done twice. Time comes as an argument.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Literal, TypeVar

from msgspec import Struct, structs

from jobs.errors import InvalidRequest, OperationUnderWay, ReplicationConflict, RevisionConflict
from jobs.protocol.model import ConflictPolicy
from jobs.records import CursorRecord
from jobs.replication import messages as m
from jobs.replication.origins import check_no_loop, place_of, upstream_of
from jobs.replication.side import Side
from jobs.replication.throttle import Limiter

LOOK_S: Final = 60.0
"""So often it is looked whether what is followed has become a loop, and a position written that nothing else moves."""
POLL_S: Final = 30.0
"""A source is asked anew for changes that do not come after so long."""

C = TypeVar("C", m.Change, m.TagChange)


class Work(Struct, frozen=True, kw_only=True):
    """What is to be in step with what."""

    origin: str
    """Id of the cluster whose job it is."""
    name: str
    holder: str
    """Job and run, as "JOB/…"."""
    prefix: str
    target_prefix: str
    is_tags: bool = False
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


class Run(ABC, Generic[C]):
    """`tell` is called whenever something has been done."""

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
        self._cursor: CursorRecord
        self._expected = 0
        self._goal = self._seen = 0
        """Revision of the source that is to be reached, and up to which everything is at the target."""
        self._written_s = self._looked_s = clock.now_s()

    @abstractmethod
    async def run(self) -> Progress:
        """Return when the target has what the source had at the beginning; continuous: never.

        Raises OperationUnderWay when another run has taken over, ReplicationLoop, ReplicationConflict, and what the
        sides raise. It may be begun again after anything.
        """

    @abstractmethod
    async def _send(self, changes: tuple[C, ...], cursor: CursorRecord) -> m.Applied:
        """Ask the target for a batch, expecting the cursor as it was last known."""

    # --- the cursor ---------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Take the cursor over from whoever had it."""
        work = self._work
        about, there = await asyncio.gather(self._source.about(), self._target.about())
        self._goal = about.revision
        self.progress.behind_since_ms = self._clock.now_ms()
        self.progress.source_revision, self.progress.target_revision = about.revision, there.revision
        found = await self._target.cursor(work.origin, work.name)
        wanted = CursorRecord(
            source=about.cluster,
            prefix=work.prefix,
            target_prefix=work.target_prefix,
            is_tags=work.is_tags,
            holder=work.holder,
            upstream=await self._upstream(about, there),
        )
        if found is None:
            await self._begin_comparison(wanted)
            return
        former, self._expected = found.record, found.mod_revision
        if work.restart and not _same_job(former.holder, work.holder):
            await self._begin_comparison(
                structs.replace(wanted, snapshots=former.snapshots, conflicts=former.conflicts)
            )
            return
        _check_same(work.name, former, wanted)
        self._cursor = former
        await self._write(structs.replace(former, holder=work.holder, upstream=wanted.upstream))

    async def _begin_comparison(self, cursor: CursorRecord) -> None:
        about = await self._source.about()
        self.progress.snapshots += 1
        self._cursor = cursor
        await self._write(
            structs.replace(cursor, comparing=max(1, about.revision), after=b"", snapshots=cursor.snapshots + 1)
        )

    async def _look(self) -> None:
        """Now and then, see that what is followed has not become a loop."""
        if self._clock.now_s() - self._looked_s <= LOOK_S:
            return
        about, there = await asyncio.gather(self._source.about(), self._target.about())
        upstream = await self._upstream(about, there)
        self._looked_s = self._clock.now_s()
        if upstream != self._cursor.upstream:
            await self._write(structs.replace(self._cursor, upstream=upstream))

    async def _upstream(self, source: m.About, target: m.About) -> tuple[str, ...]:
        """Raises ReplicationLoop."""
        work = self._work
        upstream = await upstream_of(self._source, source.cluster, place_of(work.prefix, is_tags=work.is_tags))
        check_no_loop(upstream, target.cluster, place_of(work.target_prefix, is_tags=work.is_tags))
        return upstream

    async def _write(self, cursor: CursorRecord, changes: tuple[C, ...] = ()) -> None:
        """Move the cursor, together with the changes; part of the changes before, where more conflicts are met than a
        batch can record."""
        part, wanted = changes, cursor
        rest: tuple[C, ...] = ()
        while True:
            applied = await self._apply(part, wanted)
            if applied.mod_revision == 0:
                part, rest, wanted = part[: applied.fit], part[applied.fit :] + rest, self._cursor
                continue
            self._note(applied, wanted)
            if not rest:
                return
            part, rest, wanted = rest, (), cursor

    async def _apply(self, changes: tuple[C, ...], cursor: CursorRecord) -> m.Applied:
        work = self._work
        while True:
            try:
                return await self._send(changes, cursor)
            except ReplicationConflict:
                await self._count_met()
                raise
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
                    conflicts = found.record.conflicts - self._cursor.conflicts
                    return m.Applied(found.mod_revision, conflicts=conflicts)

    async def _count_met(self) -> None:
        """Take note of conflicts that the target has recorded though it did nothing else."""
        found = await self._target.cursor(self._work.origin, self._work.name)
        if found is not None and found.record.holder == self._work.holder:
            met = found.record.conflicts - self._cursor.conflicts
            self._note(m.Applied(found.mod_revision, conflicts=met), self._cursor)

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

    # --- what is told, and how fast it goes ---------------------------------------------------------------------------

    async def _take_turn(self, size_bytes: int, operations: int) -> None:
        """Wait until so much may go over the wire, and count it."""
        delay_s = self._limiter.take(self._clock.now_s(), size_bytes, operations)
        self.progress.bytes += size_bytes
        if delay_s > 0:
            await self._clock.pause(delay_s)

    def _saw(self, up_to: int, newest: int) -> None:
        """Take note that the target has everything up to a revision, and which one the source has."""
        progress = self.progress
        self._seen = progress.position = max(self._seen, up_to)
        progress.source_revision = max(progress.source_revision, newest)
        if self._seen >= newest:
            progress.behind_since_ms, progress.in_step_ms = None, self._clock.now_ms()
        elif progress.behind_since_ms is None:
            progress.behind_since_ms = progress.in_step_ms or self._clock.now_ms()
        self._tell(progress)

    def _is_done(self) -> bool:
        return not self._work.continuous and self._seen >= self._goal


def _check_same(name: str, found: CursorRecord, wanted: CursorRecord) -> None:
    """Raise InvalidRequest where a sync of this name is another one."""
    for field in ("source", "is_tags", "prefix", "target_prefix"):
        if getattr(found, field) != getattr(wanted, field):
            what = "tags " if found.is_tags else ""
            raise InvalidRequest(
                f"sync {name!r} has been one of {what}{found.prefix!r} of cluster {found.source}, to"
                f" {found.target_prefix!r}",
                field="$.payload.name",
                expected="another name, or restart",
            )


def _same_job(holder: str, other: str) -> bool:
    return holder.partition("/")[0] == other.partition("/")[0]


def _place(cursor: CursorRecord) -> tuple[int, int, bytes]:
    return cursor.position, cursor.comparing, cursor.after
