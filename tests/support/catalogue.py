"""The catalogue of blobs in tests: blobs of which only the hash is real, and checks that its keys agree."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

from jobs import keys, records
from jobs.blobs.catalogue import NewBlob
from jobs.records import (
    BlobRecord,
    BlobsCountedRecord,
    BlobTagRecord,
    BlobTouchRecord,
    BlobUsageRecord,
    OwnedBlobRecord,
)
from jobs.store import Store, prefix_end

R = TypeVar("R", bound=Struct)
ME = "test"
"""The member of `plane.Plane`."""


def hash_of(name: object) -> str:
    """Return what stands for the hash of a blob: any 64 digits do, as the catalogue sees no content."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def blob(name: object, size_bytes: int = 10, **fields: object) -> NewBlob:
    return NewBlob(hash=hash_of(name), size_bytes=size_bytes, **fields)  # type: ignore[arg-type]


def collection(name: object, children: Sequence[object], size_bytes: int = 64, **fields: object) -> NewBlob:
    hashes = tuple(hash_of(child) for child in children)
    return blob(name, size_bytes, kind="collection", children=hashes, **fields)


def rows(store: Store, prefix: bytes) -> dict[bytes, bytes]:
    """Return everything under a prefix, by what follows it."""
    found: dict[bytes, bytes] = {}
    start, more = prefix, True
    while more:
        page, more = store.range(start, prefix_end(prefix), limit=1_000)
        found |= {key[len(prefix) :]: value for key, value, *_ in page}
        if page:
            start = page[-1][0] + b"\x00"
    return found


def read(store: Store, key: bytes, kind: type[R]) -> R | None:
    found = store.get(key)
    return None if found is None else records.decode(kind, found[1])


def references(store: Store, name: object) -> set[str]:
    """Return what keeps a blob, as KIND/NAME."""
    return {key.decode() for key in rows(store, keys.blob_references_prefix(hash_of(name)))}


def check_catalogue(store: Store, *, members: int = 1, default: int = 1) -> dict[str, BlobRecord]:
    """Check that all keys of the catalogue agree, and that nothing leads nowhere; return the entries."""
    entries = {key.decode(): records.decode(BlobRecord, value) for key, value in rows(store, keys.BLOBS).items()}
    assert {key.decode() for key in rows(store, keys.BLOBS_TOUCHED)} == set(entries)
    for value in rows(store, keys.BLOBS_TOUCHED).values():
        records.decode(BlobTouchRecord, value)
    on = {(member, name) for name, record in entries.items() for member in record.holders}
    assert {tuple(key.decode().split("/")) for key in rows(store, keys.BLOBS_ON)} == on
    assert lacking_is_known(store, members=members, default=default)
    _check_owners(store, entries)
    _check_references(store, entries)
    counted = read(store, keys.BLOBS_COUNTED, BlobsCountedRecord)
    assert counted is None or lacking_is_known(store, members=counted.members, default=counted.replicas)
    return entries


def lacking_is_known(store: Store, *, members: int = 1, default: int = 1) -> bool:
    """Tell whether just those blobs are said to lack nodes that do."""
    entries = {key.decode(): records.decode(BlobRecord, value) for key, value in rows(store, keys.BLOBS).items()}
    lacking = {
        name for name, record in entries.items() if len(record.holders) < min(record.replicas or default, members)
    }
    return {key.decode() for key in rows(store, keys.BLOBS_LACKING)} == lacking


def _check_owners(store: Store, entries: dict[str, BlobRecord]) -> None:
    owned = {(uid, name) for name, record in entries.items() for uid in record.owners}
    sizes, counts = Counter[int](), Counter[int]()
    found = set()
    for key, value in rows(store, keys.BLOBS_OWNED).items():
        uid, name = key.decode().split("/")
        found.add((int(uid), name))
        record = records.decode(OwnedBlobRecord, value)
        assert record.size_bytes == entries[name].size_bytes
        sizes[int(uid)] += record.size_bytes
        counts[int(uid)] += 1
    assert found == owned
    usage = {int(key): records.decode(BlobUsageRecord, value) for key, value in rows(store, keys.BLOB_USAGE).items()}
    assert usage == {uid: BlobUsageRecord(sizes[uid], count) for uid, count in counts.items()}


def _check_references(store: Store, entries: dict[str, BlobRecord]) -> None:
    """A reference stands on a blob that is there, and what refers is there, or is being added or cleared."""
    tags = {key.decode(): records.decode(BlobTagRecord, value) for key, value in rows(store, keys.BLOB_TAGS).items()}
    children = {tuple(key.decode().split("/")) for key in rows(store, keys.BLOB_CHILDREN)}
    unfinished = {key.decode() for prefix in (keys.BLOB_DRAFTS, keys.BLOBS_CLEARED) for key in rows(store, prefix)}
    by_tag, by_collection = set(), set()
    for key in rows(store, keys.BLOB_REFERENCES):
        name, kind, what = key.decode().split("/", 2)
        assert name in entries, f"{what} refers to {name}, which is gone"
        if kind == "tag":
            by_tag.add((what, name))
        elif kind == "collection":
            by_collection.add((what, name))
    assert by_tag == {(name, record.hash) for name, record in tags.items()}
    assert by_collection == children
    for parent, _ in children:
        assert parent in unfinished or entries[parent].kind == "collection"
