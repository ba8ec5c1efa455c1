"""The key-value machine, on LMDB and in memory, against a model that keeps every revision as a plain dict."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from msgspec.structs import replace

from jobs._native import CompactedError, MemoryStore, Store
from jobs.store import (
    EQ,
    GT,
    LT,
    NE,
    Compact,
    Compare,
    CreateRevisionIs,
    Delete,
    Get,
    Keep,
    LeaseGrant,
    LeaseIs,
    LeaseRevoke,
    ModRevisionIs,
    Op,
    Put,
    Txn,
    TxnResult,
    ValueIs,
    VersionIs,
    decode_results,
    encode_command,
)

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
Row: TypeAlias = tuple[bytes, bytes, int, int, int, int]
Piece: TypeAlias = tuple[bytes, bytes, int, int]
KEYS = st.sampled_from([b"a", b"a\x00", b"aa", b"b", b"b/1", b"b/2", b"\xff", b"\xff\xff", b"k" * 1024])
VALUES = st.one_of(st.binary(max_size=8), st.integers(0, 3).map(lambda number: bytes([number]) * 5_000))
LEASES = st.integers(1, 3)
REQUESTS = st.integers(1, 9).map(lambda number: bytes([number]) * 16)
GENERATION_REQUESTS = 3
MAX_REMEMBERED_BYTES = 1024
COMPARES = {EQ: int.__eq__, NE: int.__ne__, LT: int.__lt__, GT: int.__gt__}


class Model:
    """What the machine should be: the newest rows, every former state, all events, the leases, the request ids."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.revision = 0
        self.compacted = 0
        self.states: dict[int, dict[bytes, Row]] = {0: {}}
        self.events: list[tuple[int, bytes, bytes | None, int, int, int]] = []
        self.leases: dict[int, int] = {}
        self.kept: list[int] = []
        """Revision of each event that has not been given back."""
        self.max_events = 0
        self.asked = False
        """The present command compacts."""
        self.remembered: list[dict[bytes, TxnResult]] = [{}, {}]
        """The older generation of request ids, and the younger one."""

    def command(self, txns: list[Txn]) -> list[TxnResult]:
        """Apply transactions; then history is given back in a bounded step."""
        before, self.asked = len(self.events), False
        results = [self.once(txn) for txn in txns]
        written = [event[0] for event in self.events[before:]]
        self.kept += written
        surplus = max(0, len(self.kept) - self.max_events) if self.max_events else 0
        for done in range(64 + 2 * len(written) + 512 * self.asked):
            if not self.kept or (self.kept[0] > self.compacted and done >= surplus):
                break
            self.compacted = max(self.compacted, self.kept.pop(0))
        return results

    def holds(self, compare: Compare) -> bool:
        row = self.rows.get(compare.key)
        if isinstance(compare, ValueIs):
            left, right = row[1] if row else b"", compare.value
            return {EQ: left == right, NE: left != right, LT: left < right, GT: left > right}[compare.op]
        column = {VersionIs: 2, CreateRevisionIs: 3, ModRevisionIs: 4, LeaseIs: 5}[type(compare)]
        number = row[column] if row else 0
        assert isinstance(number, int)
        return COMPARES[compare.op](number, compare.number)

    def recall(self, request: bytes) -> TxnResult | None:
        return self.remembered[1].get(request) or self.remembered[0].get(request)

    def once(self, txn: Txn) -> TxnResult:
        """Apply a transaction unless its request id is remembered; remember it."""
        if not txn.request_id:
            return self.apply(txn)
        known = self.recall(txn.request_id)
        if known is not None:
            return known
        done = self.apply(txn)
        kept = replace(done, remembered=True)
        if len(msgspec.msgpack.encode(done)) - 2 > MAX_REMEMBERED_BYTES:  # without the array around it and `remembered`
            kept = replace(kept, error="result_gone", results=[])
        if len(self.remembered[1]) == GENERATION_REQUESTS:
            self.remembered = [self.remembered[1], {}]
        self.remembered[1][txn.request_id] = kept
        return done

    def apply(self, txn: Txn) -> TxnResult:
        succeeded = all(self.holds(compare) for compare in txn.compare)
        branch = txn.then if succeeded else txn.otherwise
        saved = dict(self.rows), dict(self.leases), len(self.events)
        results: list[int | Row | None] = []
        for op in branch:
            if isinstance(op, Put) and op.lease and op.lease not in self.leases:
                self.rows, self.leases = saved[0], saved[1]
                del self.events[saved[2] :]
                return TxnResult("lease_not_found", succeeded, self.revision, [])
            results.append(self.perform(op))
        if len(self.events) > saved[2]:
            self.revision += 1
            self.states[self.revision] = dict(self.rows)
        return TxnResult("", succeeded, self.revision, results)

    def perform(self, op: Op) -> int | Row | None:
        at = self.revision + 1
        if isinstance(op, Put):
            old = self.rows.get(op.key)
            row = (op.key, op.value, old[2] + 1 if old else 1, old[3] if old else at, at, op.lease)
            self.rows[op.key] = row
            self.events.append((at, op.key, op.value, row[2], row[3], op.lease))
        elif isinstance(op, Delete):
            end = op.end or op.key + b"\x00"
            return self.remove([key for key in self.rows if op.key <= key < end])
        elif isinstance(op, Get):
            return self.rows.get(op.key)
        elif isinstance(op, LeaseGrant):
            self.leases[op.id] = op.ttl_ms
            return 0
        elif isinstance(op, LeaseRevoke):
            if self.leases.pop(op.id, None) is None:
                return None
            return self.remove([key for key, row in self.rows.items() if row[5] == op.id])
        elif isinstance(op, Keep):
            self.max_events = op.events
        else:
            self.compacted = max(self.compacted, min(op.revision, self.revision))
            self.asked = True
        return None

    def remove(self, keys: list[bytes]) -> int:
        for key in sorted(keys):
            del self.rows[key]
            self.events.append((self.revision + 1, key, None, 0, 0, 0))
        return len(keys)


def compares() -> st.SearchStrategy[Compare]:
    operator, number = st.sampled_from([EQ, NE, LT, GT]), st.integers(0, 20)
    kinds = st.sampled_from([VersionIs, CreateRevisionIs, ModRevisionIs, LeaseIs])
    return st.one_of(
        st.builds(lambda kind, key, op, value: kind(key, op, value), kinds, KEYS, operator, number),
        st.builds(ValueIs, KEYS, operator, VALUES),
    )


def operations() -> st.SearchStrategy[Op]:
    return st.one_of(
        st.builds(Put, KEYS, VALUES, st.just(0)),
        st.builds(Put, KEYS, VALUES, LEASES),
        st.builds(Delete, KEYS, st.just(b"")),
        st.builds(Delete, KEYS, KEYS),
        st.builds(Get, KEYS),
        st.builds(LeaseGrant, LEASES, st.integers(1, 10_000)),
        st.builds(LeaseRevoke, LEASES),
    )


def transactions() -> st.SearchStrategy[Txn]:
    branch = st.lists(operations(), max_size=4).map(tuple)
    request = st.one_of(st.just(b""), REQUESTS)
    return st.builds(Txn, st.lists(compares(), max_size=2).map(tuple), branch, branch, request)


class Machine(RuleBasedStateMachine):
    """Commands and reads in any order, over restarts and snapshots of the store on disk."""

    revisions = Bundle("revisions")

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="jobs-kv-"))
        self.model = Model()
        self.memory = MemoryStore(generation_requests=GENERATION_REQUESTS)
        self.boot = 0
        self.index = 0
        self.digested: dict[tuple[object, ...], bytes] = {}
        """The digest of each piece that has been seen, by its rows, """
        self.rows_of: dict[bytes, tuple[object, ...]] = {}
        """and the other way round."""
        self.store = self.reopen()

    def reopen(self) -> Store:
        return Store(
            str(self.directory),
            max_bytes=1 << 30,
            boot_id=f"boot-{self.boot}",
            generation_requests=GENERATION_REQUESTS,
        )

    @rule(target=revisions, txns=st.lists(transactions(), min_size=1, max_size=3))
    def commands(self, txns: list[Txn]) -> object:
        return self.command(txns)

    def command(self, txns: list[Txn]) -> object:
        before = self.model.revision
        expected = self.model.command(txns)
        entry = [(self.index + 1, 1, encode_command(txns))]
        self.index += 1
        for store in (self.store, self.memory):
            (results,) = store.apply(entry)
            assert decode_results(results) == expected
            assert store.apply(entry) == [b""], "an entry was applied twice"
            assert (store.compact_revision, store.history_events) == (self.model.compacted, len(self.model.kept))
        return multiple(*range(before, self.model.revision + 1))

    @rule(revision=revisions)
    def compact(self, revision: int) -> None:
        self.command([Txn(then=(Compact(revision),))])

    @rule(events=st.sampled_from([0, 1, 5, 20, 100]))
    def keep(self, events: int) -> None:
        self.command([Txn(then=(Keep(events),))])

    @rule(request=REQUESTS)
    def recall(self, request: bytes) -> None:
        known = self.model.recall(request)
        for store in (self.store, self.memory):
            found = store.recall(request)
            assert (None if found is None else decode_results(found)) == (None if known is None else [known])

    @rule(revision=revisions, key=KEYS)
    def get(self, revision: int, key: bytes) -> None:
        for store in (self.store, self.memory):
            if 0 < revision < self.model.compacted:
                with pytest.raises(CompactedError):
                    store.get(key, revision)
            elif revision:
                assert store.get(key, revision) == self.model.states[revision].get(key)
            assert store.get(key) == self.model.rows.get(key)

    @rule(
        revision=revisions,
        bounds=st.tuples(KEYS, st.one_of(KEYS, st.just(b"\xff" * 1024))),
        limit=st.integers(1, 5),
        reverse=st.booleans(),
        keys_only=st.booleans(),
    )
    def pages(self, revision: int, bounds: tuple[bytes, bytes], limit: int, reverse: bool, keys_only: bool) -> None:
        if 0 < revision < self.model.compacted:
            return
        state = self.model.states[revision] if revision else self.model.rows
        expected = sorted((row for key, row in state.items() if bounds[0] <= key < bounds[1]), reverse=reverse)
        if keys_only:
            expected = [(key, b"", *rest) for key, _, *rest in expected]  # type: ignore[misc]
        for store in (self.store, self.memory):
            (start, end), found, more = bounds, [], True
            while more:
                rows, more = store.range(
                    start, end, limit=limit, revision=revision, reverse=reverse, keys_only=keys_only
                )
                assert len(rows) <= limit
                found += rows
                if rows:
                    start, end = (start, rows[-1][0]) if reverse else (rows[-1][0] + b"\x00", end)
            assert found == expected
            assert store.count(*bounds, limit=100) == len([k for k in self.model.rows if bounds[0] <= k < bounds[1]])

    @rule(
        revision=revisions,
        bounds=st.tuples(KEYS, st.one_of(KEYS, st.just(b"\xff" * 1024))),
        strip=st.integers(0, 2),
        content_only=st.booleans(),
        rows=st.sampled_from([1, 2, 4]),
        limit=st.integers(1, 3),
        max_rows=st.integers(1, 4),
    )
    def digests(
        self,
        revision: int,
        bounds: tuple[bytes, bytes],
        strip: int,
        content_only: bool,
        rows: int,
        limit: int,
        max_rows: int,
    ) -> None:
        if 0 < revision < self.model.compacted:
            return
        state = self.model.states[revision] if revision else self.model.rows
        expected = sorted(row for key, row in state.items() if bounds[0] <= key < bounds[1])
        for store in (self.store, self.memory):

            def all_pieces(size: int, limit: int, max_rows: int, store: Store | MemoryStore = store) -> list[Piece]:
                found, cursor, first = list[Piece](), b"", True
                while cursor or first:
                    pieces, cursor = store.digests(
                        *bounds,
                        cursor=cursor,
                        revision=revision,
                        strip=strip,
                        content_only=content_only,
                        rows=size,
                        limit=limit,
                        max_rows=max_rows,
                    )
                    assert len(pieces) <= limit
                    found, first = found + pieces, False
                return found

            pieces = all_pieces(rows, 1_000, 1_000)
            assert all_pieces(rows, limit, max_rows) == pieces
            larger = all_pieces(2 * rows, 1_000, 1_000)
            assert {last for last, *_ in larger} <= {last for last, *_ in pieces}
            left = list(expected)
            for last, digest, count, size in pieces:
                piece, left = left[:count], left[count:]
                assert last == piece[-1][0]
                assert size == sum(len(key[strip:]) + len(value) for key, value, *_ in piece)
                counted = tuple((row[0][strip:], *(row[1:2] if content_only else row[1:])) for row in piece)
                # The same for the same rows, another one for others
                assert self.digested.setdefault(counted, digest) == digest
                assert self.rows_of.setdefault(digest, counted) == counted
            assert not left

    @rule(revision=revisions, prefix=st.sampled_from([b"", b"a", b"b/", b"\xff"]), limit=st.integers(1, 4))
    def events(self, revision: int, prefix: bytes, limit: int) -> None:
        for store in (self.store, self.memory):
            if revision < self.model.compacted:
                with pytest.raises(CompactedError):
                    store.events(revision, [prefix], limit=limit)
                continue
            found, seen = [], revision
            while seen < self.model.revision:
                page, now = store.events(seen, [prefix], limit=limit)
                assert now > seen
                assert all(seen < event[0] <= now for event in page)
                found, seen = found + page, now
            assert found == [e for e in self.model.events if e[0] > revision and e[1].startswith(prefix)]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.boot += 1
        self.store = self.reopen()
        assert self.store.recovered is None, "a clean end was not trusted"

    @precondition(lambda self: self.index % 4 == 0)
    @rule(txns=st.lists(transactions(), max_size=2))
    def compact_file(self, txns: list[Txn]) -> None:
        """A compact copy takes the place of the data file, when it has applied what the store has."""
        copy = self.store.begin_compaction()
        if txns:
            self.command(txns)
            assert not copy.finish()
            copy.apply([(self.index, 1, encode_command(txns))])
        assert copy.finish()
        copy.close()

    @rule()
    def restore_after_a_power_cut(self) -> None:
        """The data file goes, as after a power cut; the snapshot brings everything back."""
        self.store.snapshot()
        self.store.close()
        for file in self.directory.rglob("data.mdb"):
            file.unlink()
        self.store = self.reopen()
        assert self.index == 0 or self.store.recovered

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "store"):
            return
        for store in (self.store, self.memory):
            assert store.applied_index == self.index
            assert store.revision == self.model.revision
            assert store.compact_revision == self.model.compacted
            assert dict(store.leases()) == self.model.leases
            for lease in (1, 2, 3):
                attached = sorted(key for key, row in self.model.rows.items() if row[5] == lease)
                assert store.lease_keys(lease) == attached
        assert self.store.state_hash() == self.memory.state_hash()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)


TestKeyValueStore = Machine.TestCase
TestKeyValueStore.settings = settings(max_examples=150 * SCALE, stateful_step_count=30, deadline=None)
