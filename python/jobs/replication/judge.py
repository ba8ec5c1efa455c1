"""Whose what stands at a target is, the sync's or somebody else's, and what comes of it where it is somebody else's.

Pure: reads a store and writes nothing. What stands there is the sync's own if it was changed last together with the
cursor, or since others last changed anything there; if it is what the source had at the position; or if it is older
than the last comparison. Everything else that a change meets was put there, or deleted, by others: a conflict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from msgspec import structs

from jobs import keys, records
from jobs._native import CompactedError
from jobs.errors import ReplicationConflict, RevisionConflict
from jobs.protocol.model import ConflictPolicy
from jobs.records import ConflictRecord, CursorRecord
from jobs.replication.messages import MAX_CONFLICTS, Batch, TagBatch
from jobs.store import MAX_TXN_OPS, Delete, Op, Put, Store

SAME_TIME_MS: Final = 10_000
"""Times of revisions are known to about this: within it neither side is the newer."""
TRIMMED_AT_ONCE: Final = 1_000
LOOKS: Final = 8
"""At pages of the target's history, for what others have changed there since the last batch."""

TimeOf: TypeAlias = Callable[[int], int]
"""When the store was at a revision, in ms; 0 where that is not known."""


def read_cursor(store: Store, origin: str, name: str) -> tuple[CursorRecord | None, int]:
    """Return a cursor and the revision of its last change, which is 0 where there is none."""
    row = store.get(keys.sync_cursor(origin, name))
    return (None, 0) if row is None else (records.decode(CursorRecord, row[1]), row[4])


class Judge:
    """Of one batch."""

    def __init__(
        self, store: Store, batch: Batch | TagBatch, prefix: bytes, now_ms: int, time_of: TimeOf, max_conflicts: int
    ) -> None:
        """`prefix`: where the batch writes. Raises RevisionConflict where the cursor is not as the batch expects it."""
        self._store = store
        self._batch = batch
        self._now_ms = now_ms
        self._time_of = time_of
        self._max_conflicts = max_conflicts
        self.cursor_key = keys.sync_cursor(batch.origin, batch.name)
        self._former, found = read_cursor(store, batch.origin, batch.name)
        if found != batch.expected:
            raise RevisionConflict(
                f"the cursor of sync {batch.name!r} was changed at revision {found}, not at {batch.expected}",
                expected="the cursor to be read again",
            )
        former = self._former
        self._same = former if former is not None and _range_of(former) == _range_of(batch.cursor) else None
        """The cursor, if it is of the same range."""
        self._agreed = 0 if self._same is None else self._same.agreed
        self._alone_since = self._find_alone_since(prefix)
        self._own: dict[int, bool] = {}
        self.conflicts: list[ConflictRecord] = []

    # --- whose it is ------------------------------------------------------------------------------------------------

    def is_own(self, modified: int) -> bool:
        """Tell whether what was changed at this revision is known to be the sync's."""
        if modified not in self._own:
            is_known = self._alone_since < modified <= self._batch.expected or modified <= self._agreed
            self._own[modified] = is_known or self._moved_at(modified)
        return self._own[modified]

    def has_deleted(self, key: bytes) -> bool:
        """Tell whether a key that is not there is known to have been deleted by the sync: part of a revision, before
        its run was killed."""
        revision = self._deleted_at(key)
        if revision:
            return self.is_own(revision)
        former, in_step = self._same, self._agreed
        if former is not None and former.position == 0:
            in_step = former.began  # of what has been compared since: of nothing else a base is known
        return 0 < in_step >= self._alone_since

    def _find_alone_since(self, prefix: bytes) -> int:
        """Return since when nobody else has changed anything in the target's range; now, where that is not known."""
        newest, expected, former = self._store.revision, self._batch.expected, self._same
        if former is None:
            return newest
        seen = expected if expected == former.looked_up_to + 1 else former.looked_up_to
        try:
            for _ in range(LOOKS):
                if seen >= newest:
                    return former.alone_since
                events, seen = self._store.events(seen, [prefix], limit=MAX_TXN_OPS)
                if any(event[0] != expected for event in events):
                    break
        except CompactedError:
            pass
        return newest

    def _moved_at(self, revision: int) -> bool:
        """Tell whether the cursor was changed at a revision; False where history does not go back so far."""
        try:
            row = self._store.get(self.cursor_key, revision)
        except CompactedError:
            return False
        return row is not None and row[4] == revision

    # --- what comes of it -------------------------------------------------------------------------------------------

    def settle(
        self, key: bytes, name: bytes, modified: int, source_revision: int, source_ms: int, *, is_deletion: bool
    ) -> Literal["source", "target", "none"] | None:
        """Return who prevails over a key that others have changed, or deleted (`modified` 0), and note that it was met
        as `name`. None: it is one conflict too many for the batch."""
        if len(self.conflicts) == MAX_CONFLICTS:
            return None
        winner = self._winner(self._batch.policy, source_ms, key, modified)
        deleted: Literal["", "source", "target"] = "source" if is_deletion else ""
        self.conflicts.append(
            ConflictRecord(
                key=name,
                at_ms=self._now_ms,
                source_revision=source_revision,
                target_revision=modified,
                winner=winner,
                deleted=deleted if modified else "target",
            )
        )
        return winner

    def _winner(
        self, policy: ConflictPolicy, source_ms: int, key: bytes, modified: int
    ) -> Literal["source", "target", "none"]:
        if policy == "fail":
            return "none"
        if policy == "newer" and source_ms:
            revision = modified or self._deleted_at(key)
            here_ms = self._time_of(revision) if revision else 0
            if here_ms and here_ms - source_ms > SAME_TIME_MS:
                return "target"
        return "source"

    def _deleted_at(self, key: bytes) -> int:
        """Return at which revision a key that is not there was deleted last; 0 where history does not tell."""
        newest, oldest = self._store.revision, max(1, self._store.compact_revision)
        back = 1
        while self._store.get(key, seen := max(newest - back, oldest)) is None:
            if seen == oldest:
                return 0
            back *= 2
        found = 0
        for _ in range(LOOKS):
            events, seen = self._store.events(seen, [key], limit=MAX_TXN_OPS)
            found = max((event[0] for event in events if event[1] == key), default=found)
            if seen >= newest:
                return found
        return 0

    @property
    def refusal(self) -> ReplicationConflict | None:
        """What is to be raised where nothing of the batch may be done."""
        if self._batch.policy != "fail" or not self.conflicts:
            return None
        first, count = self.conflicts[0], len(self.conflicts)
        met = f"{'at least ' if count == MAX_CONFLICTS else ''}{count} keys"
        how = f"changed at revision {first.target_revision}" if first.target_revision else "deleted"
        return ReplicationConflict(
            f"{met} were changed at the target by others: the first, {first.key.decode()}, was {how}",
            expected="the keys as the sync left them, or another policy for conflicts",
        )

    # --- what is written --------------------------------------------------------------------------------------------

    def progress(self) -> list[Op]:
        """Return what writes the cursor as the batch wants it, with what the target knows better, and the conflicts."""
        wanted, former = self._batch.cursor, self._same
        began = 0 if former is None else former.began
        if wanted.comparing and (former is None or not former.comparing):
            began = self._store.revision
        prevailed = any(conflict.winner == "target" for conflict in self.conflicts)
        if prevailed:
            began = 0
        agreed = 0 if prevailed else self._agreed
        if not wanted.comparing and former is not None and former.comparing:
            began, agreed = 0, began
        cursor = structs.replace(
            wanted,
            conflicts=0 if self._former is None else self._former.conflicts,
            began=began,
            agreed=agreed,
            alone_since=self._alone_since,
            looked_up_to=self._store.revision,
        )
        return self._recorded(cursor, self.conflicts)

    def refused(self) -> list[Op]:
        """Return what writes the conflicts that were met, and changes nothing else, unless it is what the last try has
        met: then there is nothing to write."""
        former = self._former or structs.replace(
            self._batch.cursor,
            position=0,
            comparing=0,
            after=b"",
            conflicts=0,
            began=0,
            agreed=0,
            alone_since=self._alone_since,
            looked_up_to=self._store.revision,
        )
        known = self._last(former.conflicts)
        new = [one for one in self.conflicts if structs.replace(one, at_ms=0) not in known]
        return self._recorded(former, new) if new else []

    def _last(self, recorded: int) -> list[ConflictRecord]:
        batch = self._batch
        prefix = keys.sync_conflicts_prefix(batch.origin, batch.name)
        end = keys.sync_conflict(batch.origin, batch.name, recorded)
        rows, _ = self._store.range(prefix, end, limit=MAX_CONFLICTS, reverse=True)
        return [structs.replace(records.decode(ConflictRecord, row[1]), at_ms=0) for row in rows]

    def _recorded(self, cursor: CursorRecord, conflicts: list[ConflictRecord]) -> list[Op]:
        """Count conflicts in the cursor, and have those that are too many go."""
        origin, name = self._batch.origin, self._batch.name
        recorded = cursor.conflicts + len(conflicts)
        kept = conflicts[max(0, len(conflicts) - self._max_conflicts) :]
        ops: list[Op] = [
            Put(keys.sync_conflict(origin, name, number), records.encode(conflict))
            for number, conflict in enumerate(kept, recorded - len(kept))
        ]
        kept_from = recorded - self._max_conflicts
        if conflicts and kept_from > 0:
            start = keys.sync_conflict(origin, name, max(0, kept_from - TRIMMED_AT_ONCE))
            ops.append(Delete(start, keys.sync_conflict(origin, name, kept_from)))
        ops.append(Put(self.cursor_key, records.encode(structs.replace(cursor, conflicts=recorded))))
        return ops


def _range_of(cursor: CursorRecord) -> tuple[str, str, str]:
    return cursor.source, cursor.prefix, cursor.target_prefix
