"""A restored store made the beginning of a new cluster: whatever was of the old cluster's nodes goes, the work stays.

Jobs that ran stand where they stood: their workers are gone, so the new leader finds them lost as it finds the jobs of
any lost worker, when their leases have run out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from jobs import keys, records
from jobs._native import Store
from jobs.control.audit import audit_entry
from jobs.records import BlobRecord
from jobs.service import Caller
from jobs.store import Delete, Op, Put, Txn, decode_results, encode_command, prefix_end

OF_NODES: Final = (
    keys.MEMBERS,
    keys.GUESTS,
    keys.MEMBERS_CHANGED,
    keys.HANDOVER,
    keys.MAINTENANCE,
    keys.LINKS,
    keys.LINKS_CHANGED,
    keys.SYNCS,
    keys.SYNC_CURSORS,
    keys.SYNC_CONFLICTS,
    keys.BLOBS_ON,
    keys.BLOBS_LACKING,
    keys.BLOBS_COUNTED,
)
"""Prefixes of what is about the old cluster's nodes, or about what other clusters know of it."""
OPS: Final = 900
PAGE: Final = 300


class RenewalError(Exception):
    """The store did not take a change; the text says why."""


def renew(store: Store, member: str, has_blob: Callable[[str], bool], *, now_ms: int, came_from: str) -> int:
    """Make it the store of a cluster whose only node is `member`; return how many blobs that has not got."""
    for prefix in OF_NODES:
        for some in _keys(store, prefix):
            _apply(store, [Delete(key) for key in some])
    missing = 0
    for rows in _blobs(store):
        ops: list[Op] = []
        for blob, record in rows:
            if has_blob(blob):
                ops.append(Put(keys.blob(blob), records.encode(replace(record, holders=(member,)))))
                ops.append(Put(keys.blob_on(member, blob), records.VERSION_ONLY))
            else:
                missing += 1
                ops.append(Put(keys.blob(blob), records.encode(replace(record, holders=()))))
        _apply(store, ops)
    restored = Caller(uid=0, gid=0, admin=True)
    _apply(store, [audit_entry(restored, "cluster.restore", came_from, now_ms)])
    return missing


def _keys(store: Store, prefix: bytes) -> Iterator[list[bytes]]:
    """Yield all keys with a prefix, which are gone when it goes on."""
    end = prefix_end(prefix)
    while rows := store.range(prefix, end, limit=OPS, keys_only=True)[0]:
        yield [row[0] for row in rows]


def _blobs(store: Store) -> Iterator[list[tuple[str, BlobRecord]]]:
    start, more = keys.BLOBS, True
    while more:
        rows, more = store.range(start, prefix_end(keys.BLOBS), limit=PAGE)
        if rows:
            start = rows[-1][0] + b"\x00"
            yield [(keys.blob_of(key), records.decode(BlobRecord, value)) for key, value, *_ in rows]


def _apply(store: Store, ops: Sequence[Op]) -> None:
    command = encode_command([Txn(then=tuple(ops))])
    (data,) = store.apply([(store.applied_index + 1, max(1, store.applied_term), command)])
    (result,) = decode_results(data)
    if result.error:
        raise RenewalError(result.error)
