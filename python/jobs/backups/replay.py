"""Changes as commands of a store, so that it makes the same revisions again. Pure, but for the store that is asked.

One revision is one transaction, in which each change is one operation; the operations of a transaction are bounded, and
one that deleted a range or all keys of a lease made more changes than that: those are put together again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Protocol, TypeAlias

from jobs.store import MAX_TXN_OPS, Delete, LeaseGrant, LeaseRevoke, Op, Put, Txn, decode_results, encode_command

Change: TypeAlias = tuple[int, bytes, bytes | None, int, int, int]
"""As `Store.events` has them: (revision, key, value or None for a delete, version, create revision, lease)."""
_Written: TypeAlias = dict[bytes, int | None]
"""What a transaction has done so far: the lease of each key that it has put, None for one that it has deleted."""
TXNS_A_COMMAND: Final = 2_000
COMMAND_BYTES: Final = 4 << 20
ANY_TTL_MS: Final = 60_000
"""Of a lease that is known by its keys alone: it had ended by the end of the changes, or ends soon in the new store."""
PAGE: Final = 10_000
MAX_DELETE_KEYS: Final = 10_000
"""Of one operation, at most."""
_OP_BYTES: Final = 64


class Replica(Protocol):
    """What is needed of the store."""

    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    @property
    def revision(self) -> int: ...
    def apply(self, entries: list[tuple[int, int, bytes]]) -> list[bytes]: ...
    def range(
        self, start: bytes, end: bytes, *, limit: int, keys_only: bool
    ) -> tuple[list[tuple[bytes, bytes, int, int, int, int]], bool]: ...
    def leases(self) -> list[tuple[int, int]]: ...
    def lease_keys(self, lease: int) -> list[bytes]: ...


class ReplayError(Exception):
    """Changes do not fit the store to which they are applied; the text says where and why."""


class Replay:
    """Applies changes to a store that stands where they begin. `finish` has to be called."""

    def __init__(self, store: Replica) -> None:
        self._store = store
        self._revision = store.revision
        """Of the store once all that waits is applied."""
        self._leases = {lease for lease, _ in store.leases()}
        self._txns: list[Txn] = []
        self._expected: list[int] = []
        self._bytes = 0
        self.changes = 0

    @property
    def revision(self) -> int:
        return self._revision

    def feed(self, changes: Iterable[Change], until: int | None = None) -> bool:
        """Apply whole revisions, no later ones than `until`; False once it has been reached. Raises ReplayError."""
        for revision, group in groupby(changes, key=_revision_of):
            if until is not None and revision > until:
                return False
            if revision != self._revision + 1:
                raise ReplayError(f"revision {revision} follows on {self._revision}: changes between are missing")
            self._add(revision, list(group))
        return True

    def set_leases(self, leases: Mapping[int, int]) -> None:
        """Have these leases and no others, by id with their time to live; keys keep what leases they have."""
        self._flush()
        present = dict(self._store.leases())
        for lease in sorted(set(present) - set(leases)):
            if keys := self._store.lease_keys(lease):
                raise ReplayError(f"the key {keys[0]!r} has the lease {lease}, which is not to be there")
            self._append((LeaseRevoke(lease),), self._revision)
        for lease, ttl_ms in sorted(leases.items()):
            if present.get(lease) != ttl_ms:
                self._append((LeaseGrant(lease, ttl_ms),), self._revision)
        self._flush()
        self._leases = set(leases)

    def finish(self) -> None:
        """Apply what waits. Raises ReplayError."""
        self._flush()

    def _add(self, revision: int, changes: Sequence[Change]) -> None:
        grants = {change[5] for change in changes if change[2] is not None and change[5]} - self._leases
        for start in range(0, len(grants), MAX_TXN_OPS):
            some = sorted(grants)[start : start + MAX_TXN_OPS]
            self._append(tuple(LeaseGrant(lease, ANY_TTL_MS) for lease in some), self._revision)
        self._leases |= grants
        if len(changes) > MAX_TXN_OPS:
            self._flush()  # what is asked of the store has to hold
            ops = list(self._put_together(changes))
            if len(ops) > MAX_TXN_OPS:
                raise ReplayError(f"revision {revision} has {len(changes)} changes, which no transaction makes")
            self._leases -= {op.id for op in ops if isinstance(op, LeaseRevoke)}
        else:
            ops = [_op_of(change) for change in changes]
        self._append(tuple(ops), revision)
        self._revision = revision
        self.changes += len(changes)

    def _append(self, ops: tuple[Op, ...], revision: int) -> None:
        self._txns.append(Txn(then=ops))
        self._expected.append(revision)
        self._bytes += sum(_OP_BYTES + (len(op.value) if isinstance(op, Put) else 0) for op in ops)
        if len(self._txns) >= TXNS_A_COMMAND or self._bytes >= COMMAND_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._txns:
            return
        index, term = self._store.applied_index + 1, max(1, self._store.applied_term)
        (data,) = self._store.apply([(index, term, encode_command(self._txns))])
        for result, expected in zip(decode_results(data), self._expected, strict=True):
            if result.error or result.revision != expected:
                raise ReplayError(f"revision {expected} came out as {result.revision} {result.error}".rstrip())
        self._txns, self._expected, self._bytes = [], [], 0

    # --- revisions of more changes than operations ------------------------------------------------------------------

    def _put_together(self, changes: Sequence[Change]) -> Iterator[Op]:
        """Yield operations that make these changes: runs of deletes in the order of keys were made together."""
        written: _Written = {}
        run: list[bytes] = []
        for change in changes:
            key = change[1]
            if change[2] is None and (not run or key > run[-1]):
                run.append(key)
                continue
            yield from self._deletes(run, written)
            run = []
            if change[2] is None:
                run.append(key)
            else:
                written[key] = change[5]
                yield _op_of(change)
        yield from self._deletes(run, written)

    def _deletes(self, run: list[bytes], written: _Written) -> Iterator[Op]:
        """Yield what deletes these keys, which are in order."""
        if not run:
            return
        there = self._keys(run[0], run[-1], written)
        left = run
        if there != run:
            for lease, held in self._leases_within(run, written):
                yield LeaseRevoke(lease)
                left = [key for key in left if key not in held]
                there = [key for key in there if key not in held]
        yield from _ranges(left, there)
        written.update(dict.fromkeys(run))

    def _keys(self, first: bytes, last: bytes, written: _Written) -> list[bytes]:
        """Return what is there by now from one key to another."""
        found: set[bytes] = set()
        start, end, more = first, last + b"\x00", True
        while more:
            rows, more = self._store.range(start, end, limit=PAGE, keys_only=True)
            found.update(row[0] for row in rows)
            start = rows[-1][0] + b"\x00" if rows else end
        for key, lease in written.items():
            if first <= key <= last:
                (found.discard if lease is None else found.add)(key)
        return sorted(found)

    def _leases_within(self, run: list[bytes], written: _Written) -> list[tuple[int, set[bytes]]]:
        """Return the leases all of whose keys by now are among these, with the keys."""
        wanted, found = set(run), []
        for lease, _ in self._store.leases():
            held = {key for key in self._store.lease_keys(lease) if key not in written}
            held.update(key for key, put_with in written.items() if put_with == lease)
            if len(held) > 1 and held <= wanted:
                found.append((lease, held))
        return found


def _ranges(run: list[bytes], there: list[bytes]) -> Iterator[Op]:
    """Yield deletes of ranges in which nothing else is there."""
    position = {key: number for number, key in enumerate(there)}
    start = 0
    for end in range(1, len(run) + 1):
        follows = end < len(run) and position.get(run[end]) == position.get(run[end - 1], -2) + 1
        if follows and end - start < MAX_DELETE_KEYS:
            continue
        if end - start == 1:
            yield Delete(run[start])
        else:
            yield Delete(run[start], run[end - 1] + b"\x00")
        start = end


def _op_of(change: Change) -> Op:
    _, key, value, _, _, lease = change
    return Delete(key) if value is None else Put(key, value, lease)


def _revision_of(change: Change) -> int:
    return change[0]
