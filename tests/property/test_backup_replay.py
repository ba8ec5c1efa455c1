"""Changes that are applied to another store make the same of it: keys, values, versions, revisions and leases."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs._native import MemoryStore
from jobs.backups.replay import Replay
from jobs.store import Delete, LeaseGrant, LeaseRevoke, Op, Put, Txn, decode_results, encode_command

KEYS = st.sampled_from([b"/a", b"/a/1", b"/a/2", b"/b", b"/b/1", b"/c"])
VALUES = st.one_of(st.binary(max_size=4), st.just(bytes(5_000)))
LEASES = st.integers(0, 2)
OPS = st.one_of(
    st.builds(Put, KEYS, VALUES, LEASES),
    st.builds(Delete, KEYS),
    st.builds(Delete, st.just(b"/a"), st.sampled_from([b"/b", b"/z"])),
    st.builds(LeaseGrant, st.integers(1, 2), st.just(9_000)),
    st.builds(LeaseRevoke, st.integers(1, 2)),
)
TXNS = st.lists(st.lists(OPS, min_size=1, max_size=5), max_size=25)


def state(store: MemoryStore) -> object:
    pieces, cursor = store.digests(b"\x00", b"\xff", rows=1 << 62)
    assert not cursor
    return pieces


def apply(store: MemoryStore, ops: list[Op]) -> None:
    (data,) = store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=tuple(ops))]))])
    (result,) = decode_results(data)
    assert not result.error or result.error == "lease_not_found"


def replayed(source: MemoryStore, target: MemoryStore, *, limit: int = 10_000) -> None:
    replay = Replay(target)
    at, until = target.revision, source.revision
    while at < until:
        events, at = source.events(at, [b""], limit=limit)
        assert replay.feed(events)
    replay.set_leases(dict(source.leases()))
    replay.finish()


@given(TXNS, st.integers(0, 25), st.integers(1, 7))
@settings(deadline=None)
def test_changes_make_the_same_store(txns: list[list[Op]], cut: int, limit: int) -> None:
    source, target = MemoryStore(), MemoryStore()
    for ops in txns[:cut]:
        apply(source, ops)
    if source.applied_index:
        target.install(source.export())
    for ops in txns[cut:]:
        apply(source, ops)
    replayed(source, target, limit=limit)
    assert target.revision == source.revision
    assert state(target) == state(source)
    assert target.leases() == source.leases()


def filled(*, leased: bool) -> MemoryStore:
    """A store with 12,000 keys, every third of which has a lease."""
    store = MemoryStore()
    apply(store, [LeaseGrant(7, 9_000)])
    for start in range(0, 12_000, 600):
        apply(store, [Put(b"/k/%05d" % n, b"v", 7 if leased and n % 3 == 0 else 0) for n in range(start, start + 600)])
    return store


def test_a_revision_of_more_changes_than_a_transaction_has_operations() -> None:
    """Given deletes of ranges and of all keys of a lease, among puts, in one transaction each; then they come out the
    same as one revision each."""
    for txns in (
        [[Delete(b"/k/01000", b"/k/08000")]],
        [[Delete(b"/k/00000", b"/k/06000"), Delete(b"/k/06000", b"/k/12000")]],
        [[LeaseRevoke(7)]],
        [[Put(b"/k/00500x", b"new"), Delete(b"/k/00000", b"/k/03000"), Put(b"/k/00001", b"again"), LeaseRevoke(7)]],
        [[Delete(b"/k/05000")], [LeaseRevoke(7)], [Delete(b"/k/00100", b"/k/09000"), Put(b"/k/00200", b"x")]],
    ):
        source, target = filled(leased=True), MemoryStore()
        target.install(source.export())
        for ops in txns:
            apply(source, ops)
        replayed(source, target)
        assert target.revision == source.revision
        assert state(target) == state(source)
        assert target.leases() == source.leases()
