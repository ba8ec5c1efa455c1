"""What becomes of a batch at its target: one transaction with the changes, the conflicts they meet, and the cursor.

Pure: reads a store and writes nothing. The transaction holds only while the rows that were looked at are as they were.

A row is the sync's own if it was changed last together with the cursor, or since others last changed anything there; if
it has the value that the source had at the position; or if it is older than the last comparison. Everything else that a
change meets was put there, or deleted, by somebody else: a conflict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from msgspec import Struct, structs

from jobs import keys, records
from jobs._native import CompactedError
from jobs.errors import Forbidden, InvalidRequest, ReplicationConflict, RevisionConflict
from jobs.protocol.model import ConflictPolicy
from jobs.records import ConflictRecord, CursorRecord
from jobs.replication.messages import ABSENT, MAX_CONFLICTS, UNKNOWN, Applied, Batch, Change, digest_of
from jobs.store import EQ, MAX_KEY_BYTES, MAX_TXN_OPS, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn

SAME_TIME_MS: Final = 10_000
"""Times of revisions are known to about this: within it neither side is the newer."""
TRIMMED_AT_ONCE: Final = 1_000
LOOKS: Final = 8
"""At pages of the target's history, for what others have changed there since the last batch."""

TimeOf: TypeAlias = Callable[[int], int]
"""When the store was at a revision, in ms; 0 where that is not known."""


class Plan(Struct, frozen=True, kw_only=True):
    """`txn` is None where there is nothing to be done but to answer with `applied`."""

    txn: Txn | None
    applied: Applied
    """Without the revision, which is known when it is done."""
    size_bytes: int = 0
    conflict: ReplicationConflict | None = None
    """To be raised when the transaction is done, which only records it."""


def plan(store: Store, batch: Batch, now_ms: int, time_of: TimeOf, max_conflicts: int) -> Plan:
    """Raises RevisionConflict where the cursor is not as the batch expects it, Forbidden for keys that are not the
    users', InvalidRequest for what is no key."""
    return _Planner(store, batch, now_ms, time_of, max_conflicts).plan()


def read_cursor(store: Store, origin: str, name: str) -> tuple[CursorRecord | None, int]:
    """Return a cursor and the revision of its last change, which is 0 where there is none."""
    row = store.get(keys.sync_cursor(origin, name))
    return (None, 0) if row is None else (records.decode(CursorRecord, row[1]), row[4])


def moved(batch: Batch, found: int) -> RevisionConflict:
    return RevisionConflict(
        f"the cursor of sync {batch.name!r} was changed at revision {found}, not at {batch.expected}",
        expected="the cursor to be read again",
    )


class _Planner:
    def __init__(self, store: Store, batch: Batch, now_ms: int, time_of: TimeOf, max_conflicts: int) -> None:
        self._store = store
        self._batch = batch
        self._now_ms = now_ms
        self._time_of = time_of
        self._max_conflicts = max_conflicts
        self._cursor_key = keys.sync_cursor(batch.origin, batch.name)
        self._prefix = batch.cursor.target_prefix.encode()
        self._own: dict[int, bool] = {}
        self._compares: list[Compare] = [ModRevisionIs(self._cursor_key, EQ, batch.expected)]
        self._ops: list[Op] = []
        self._conflicts: list[ConflictRecord] = []
        self._agreed = self._alone_since = 0
        self._put = self._deleted = self._bytes = 0

    def plan(self) -> Plan:
        batch = self._batch
        former, found = read_cursor(self._store, batch.origin, batch.name)
        if found != batch.expected:
            raise moved(batch, found)
        if not self._prefix.startswith(keys.DATA):
            raise Forbidden(f"{batch.cursor.target_prefix!r} is the system's", expected="a prefix below /data/")
        same = former if former is not None and _range_of(former) == _range_of(batch.cursor) else None
        self._agreed = 0 if same is None else same.agreed
        self._alone_since = self._find_alone_since(same)
        for at, change in enumerate(batch.changes):
            if not self._take(change):
                if batch.policy == "fail":
                    break
                return Plan(txn=None, applied=Applied(0, fit=at))
        if batch.policy == "fail" and self._conflicts:
            return self._refused(former or structs.replace(batch.cursor, position=0, comparing=0, after=b""))
        cursor = self._next(same, 0 if former is None else former.conflicts)
        self._record(cursor.conflicts, self._conflicts)
        self._ops.append(Put(self._cursor_key, records.encode(cursor)))
        applied = Applied(0, put=self._put, deleted=self._deleted, conflicts=len(self._conflicts))
        return Plan(txn=Txn(tuple(self._compares), tuple(self._ops)), applied=applied, size_bytes=self._bytes)

    def _next(self, former: CursorRecord | None, recorded: int) -> CursorRecord:
        """Return the cursor as the batch wants it, with what the target knows better."""
        wanted = self._batch.cursor
        began = 0 if former is None else former.began
        if wanted.comparing and (former is None or not former.comparing):
            began = self._store.revision
        prevailed = any(conflict.winner == "target" for conflict in self._conflicts)
        if prevailed:
            began = 0
        agreed = 0 if prevailed else self._agreed
        if not wanted.comparing and former is not None and former.comparing:
            began, agreed = 0, began
        return structs.replace(
            wanted,
            conflicts=recorded + len(self._conflicts),
            began=began,
            agreed=agreed,
            alone_since=self._alone_since,
            looked_up_to=self._store.revision,
        )

    def _find_alone_since(self, former: CursorRecord | None) -> int:
        """Return since when nobody else has changed anything in the target's range; now, where that is not known."""
        newest, expected = self._store.revision, self._batch.expected
        if former is None:
            return newest
        seen = expected if expected == former.looked_up_to + 1 else former.looked_up_to
        try:
            for _ in range(LOOKS):
                if seen >= newest:
                    return former.alone_since
                events, seen = self._store.events(seen, [self._prefix], limit=MAX_TXN_OPS)
                if any(event[0] != expected for event in events):
                    break
        except CompactedError:
            pass
        return newest

    def _refused(self, former: CursorRecord) -> Plan:
        """Nothing is changed; what was met is recorded, unless it is what the last try met."""
        known = self._last_conflicts(former.conflicts)
        new = [one for one in self._conflicts if structs.replace(one, at_ms=0) not in known]
        first, count = self._conflicts[0], len(self._conflicts)
        keys_met = f"{'at least ' if count == MAX_CONFLICTS else ''}{count} keys"
        how = f"changed at revision {first.target_revision}" if first.target_revision else "deleted"
        conflict = ReplicationConflict(
            f"{keys_met} were changed at the target by others: the first, {first.key.decode()}, was {how}",
            expected="the keys as the sync left them, or another policy for conflicts",
        )
        if not new:
            return Plan(txn=None, applied=Applied(0), conflict=conflict)
        self._ops = []
        cursor = structs.replace(former, conflicts=former.conflicts + len(new))
        self._record(cursor.conflicts, new)
        self._ops.append(Put(self._cursor_key, records.encode(cursor)))
        return Plan(txn=Txn(tuple(self._compares), tuple(self._ops)), applied=Applied(0), conflict=conflict)

    def _last_conflicts(self, recorded: int) -> list[ConflictRecord]:
        batch = self._batch
        prefix = keys.sync_conflicts_prefix(batch.origin, batch.name)
        end = keys.sync_conflict(batch.origin, batch.name, recorded)
        rows, _ = self._store.range(prefix, end, limit=MAX_CONFLICTS, reverse=True)
        return [structs.replace(records.decode(ConflictRecord, row[1]), at_ms=0) for row in rows]

    def _record(self, recorded: int, conflicts: list[ConflictRecord]) -> None:
        """Number the last of all that were recorded, and have those that are too many go."""
        batch = self._batch
        kept = conflicts[max(0, len(conflicts) - self._max_conflicts) :]
        for number, conflict in enumerate(kept, recorded - len(kept)):
            self._ops.append(Put(keys.sync_conflict(batch.origin, batch.name, number), records.encode(conflict)))
        kept_from = recorded - self._max_conflicts
        if conflicts and kept_from > 0:
            start = keys.sync_conflict(batch.origin, batch.name, max(0, kept_from - TRIMMED_AT_ONCE))
            self._ops.append(Delete(start, keys.sync_conflict(batch.origin, batch.name, kept_from)))

    # --- one change ---------------------------------------------------------------------------------------------------

    def _take(self, change: Change) -> bool:
        """False: it is a conflict, and one too many."""
        key = self._prefix + change.key
        self._check(key)
        row = self._store.get(key)
        self._compares.append(ModRevisionIs(key, EQ, 0 if row is None else row[4]))
        if change.value == (None if row is None else row[1]):
            return True
        if not self._is_own(row, change):
            if len(self._conflicts) == MAX_CONFLICTS:
                return False
            winner = _winner(self._batch.policy, change, lambda: self._changed_ms(key, row))
            self._conflicts.append(
                ConflictRecord(
                    key=key,
                    at_ms=self._now_ms,
                    source_revision=change.revision,
                    target_revision=0 if row is None else row[4],
                    winner=winner,
                    deleted="target" if row is None else "source" if change.value is None else "",
                )
            )
            if winner != "source":
                return True
        if change.value is None:
            self._ops.append(Delete(key))
            self._deleted += 1
        else:
            self._ops.append(Put(key, change.value))
            self._put += 1
            self._bytes += len(change.value)
        self._bytes += len(key) + 64
        return True

    def _check(self, key: bytes) -> None:
        if len(key) > MAX_KEY_BYTES:
            raise InvalidRequest(
                f"the key {key[:64].decode(errors='replace')}… would have {len(key)} bytes at the target",
                expected=f"at most {MAX_KEY_BYTES}: a shorter target_prefix",
            )
        try:
            key.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{key!r} is no text", expected="a key in UTF-8") from error

    def _is_own(self, row: tuple[bytes, bytes, int, int, int, int] | None, change: Change) -> bool:
        if row is None:
            return change.base in (UNKNOWN, ABSENT)
        modified = row[4]
        if modified not in self._own:
            is_known = self._alone_since < modified <= self._batch.expected or modified <= self._agreed
            self._own[modified] = is_known or self._moved_at(modified)
        return self._own[modified] or (len(change.base) > 1 and change.base == digest_of(row[1]))

    def _moved_at(self, revision: int) -> bool:
        """Tell whether the cursor was changed at a revision; False where history does not go back so far."""
        try:
            row = self._store.get(self._cursor_key, revision)
        except CompactedError:
            return False
        return row is not None and row[4] == revision

    def _changed_ms(self, key: bytes, row: tuple[bytes, bytes, int, int, int, int] | None) -> int:
        """Return when others changed or deleted a key; 0 where that is not known."""
        revision = self._deleted_at(key) if row is None else row[4]
        return 0 if revision == 0 else self._time_of(revision)

    def _deleted_at(self, key: bytes) -> int:
        """Return at which revision a key that is not there was deleted; 0 where history does not tell."""
        newest, oldest = self._store.revision, max(1, self._store.compact_revision)
        gone, back = newest, 1
        while (there := max(newest - back, oldest)) < gone and self._store.get(key, there) is None:
            gone, back = there, back * 2
        if there >= gone:
            return 0
        while gone - there > 1:
            middle = (there + gone) // 2
            if self._store.get(key, middle) is None:
                gone = middle
            else:
                there = middle
        return gone


def _range_of(cursor: CursorRecord) -> tuple[str, str, str]:
    return cursor.source, cursor.prefix, cursor.target_prefix


def _winner(
    policy: ConflictPolicy, change: Change, changed_ms: Callable[[], int]
) -> Literal["source", "target", "none"]:
    if policy == "fail":
        return "none"
    if policy == "newer" and change.at_ms:
        here_ms = changed_ms()
        if here_ms and here_ms - change.at_ms > SAME_TIME_MS:
            return "target"
    return "source"
