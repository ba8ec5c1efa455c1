"""Reads of the catalogue as it stands, on which nothing is written."""

from __future__ import annotations

from jobs import keys, records
from jobs.blobs.catalogue import Entry
from jobs.control.blobs.numbers import Numbers
from jobs.records import BlobRecord, BlobTouchRecord, BlobUsageRecord
from jobs.store import Store


def read_entry(store: Store, blob: str) -> BlobRecord | None:
    found = store.get(keys.blob(blob))
    return None if found is None else records.decode(BlobRecord, found[1])


def touched_ms(store: Store, blob: str) -> int:
    """Return when a blob was last added or referred to."""
    found = store.get(keys.blob_touched(blob))
    return 0 if found is None else records.decode(BlobTouchRecord, found[1]).at_ms


def read_usage(store: Store, uid: int) -> BlobUsageRecord:
    """Return what an owner's blobs come to."""
    found = store.get(keys.blob_usage(uid))
    return BlobUsageRecord(0, 0) if found is None else records.decode(BlobUsageRecord, found[1])


def entry_of(blob: str, record: BlobRecord, touched: int, numbers: Numbers) -> Entry:
    """Return what nodes are told of a blob."""
    return Entry(
        hash=blob,
        size_bytes=record.size_bytes,
        kind=record.kind,
        replicas=numbers.asked(record),
        holders=record.holders,
        created_ms=record.created_ms,
        touched_ms=touched,
    )
