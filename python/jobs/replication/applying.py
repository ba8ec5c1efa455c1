"""What becomes of a batch at its target: one transaction with the changes, the conflicts they meet, and the cursor.

Pure: reads a store and writes nothing. The transaction holds only while the rows that were looked at are as they were.
"""

from __future__ import annotations

from msgspec import Struct

from jobs import keys
from jobs.errors import Forbidden, InvalidRequest, ReplicationConflict
from jobs.replication.judge import Judge, TimeOf, read_cursor
from jobs.replication.messages import ABSENT, UNKNOWN, Applied, Batch, Change, digest_of
from jobs.store import EQ, MAX_KEY_BYTES, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn

__all__ = ["Plan", "TimeOf", "plan", "read_cursor"]


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
    prefix = batch.cursor.target_prefix.encode()
    if not prefix.startswith(keys.DATA):
        raise Forbidden(f"{batch.cursor.target_prefix!r} is the system's", expected="a prefix below /data/")
    return _Planner(store, batch, prefix, Judge(store, batch, prefix, now_ms, time_of, max_conflicts)).plan()


class _Planner:
    def __init__(self, store: Store, batch: Batch, prefix: bytes, judge: Judge) -> None:
        self._store = store
        self._batch = batch
        self._judge = judge
        self._prefix = prefix
        self._compares: list[Compare] = [ModRevisionIs(judge.cursor_key, EQ, batch.expected)]
        self._ops: list[Op] = []
        self._put = self._deleted = self._bytes = 0

    def plan(self) -> Plan:
        judge = self._judge
        for at, change in enumerate(self._batch.changes):
            if not self._take(change):
                if self._batch.policy == "fail":
                    break
                return Plan(txn=None, applied=Applied(0, fit=at))
        if (conflict := judge.refusal) is not None:
            ops = judge.refused()
            txn = Txn(tuple(self._compares), tuple(ops)) if ops else None
            return Plan(txn=txn, applied=Applied(0), conflict=conflict)
        txn = Txn(tuple(self._compares), (*self._ops, *judge.progress()))
        applied = Applied(0, put=self._put, deleted=self._deleted, conflicts=len(judge.conflicts))
        return Plan(txn=txn, applied=applied, size_bytes=self._bytes)

    def _take(self, change: Change) -> bool:
        """False: it is a conflict, and one too many."""
        key = self._prefix + change.key
        _check(key)
        row = self._store.get(key)
        modified = 0 if row is None else row[4]
        self._compares.append(ModRevisionIs(key, EQ, modified))
        if change.value == (None if row is None else row[1]):
            return True
        if not self._is_own(row, change):
            winner = self._judge.settle(
                key, key, modified, change.revision, change.at_ms, is_deletion=change.value is None
            )
            if winner != "source":
                return winner is not None
        if change.value is None:
            self._ops.append(Delete(key))
            self._deleted += 1
        else:
            self._ops.append(Put(key, change.value))
            self._put += 1
            self._bytes += len(change.value)
        self._bytes += len(key) + 64
        return True

    def _is_own(self, row: tuple[bytes, bytes, int, int, int, int] | None, change: Change) -> bool:
        if row is None:
            return change.base in (UNKNOWN, ABSENT) or self._judge.has_deleted(self._prefix + change.key)
        return self._judge.is_own(row[4]) or (len(change.base) > 1 and change.base == digest_of(row[1]))


def _check(key: bytes) -> None:
    if len(key) > MAX_KEY_BYTES:
        raise InvalidRequest(
            f"the key {key[:64].decode(errors='replace')}… would have {len(key)} bytes at the target",
            expected=f"at most {MAX_KEY_BYTES}: a shorter target_prefix",
        )
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{key!r} is no text", expected="a key in UTF-8") from error
