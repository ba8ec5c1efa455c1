"""What one transaction is to change of the catalogue: reads that it stands on, and writes, seen by later reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from msgspec import Struct

from jobs import keys, records
from jobs.control.blobs.numbers import Numbers
from jobs.records import (
    BlobRecord,
    BlobsCountedRecord,
    BlobTagRecord,
    BlobTouchRecord,
    BlobUsageRecord,
    OwnedBlobRecord,
)
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, prefix_end

MAX_OPS: Final = 900
"""Of a transaction, which takes 1,000: some are left to the change that is not to be split."""
VALUE_OVERHEAD_BYTES: Final = 128
KEY_BYTES: Final = 64

R = TypeVar("R", bound=Struct)


class Stage:
    """Decisions are made on it, one after the other. What they `read` has to be still so when they are written; what
    they only `see` need not be."""

    def __init__(self, store: Store, numbers: Numbers, under: Stage | None = None) -> None:
        self.numbers = numbers
        self._store = store
        self._under = under
        self._guards: dict[bytes, Compare] = {}
        self._writes: dict[bytes, Op] = {}
        self._entries: list[Op] = []
        self._size_bytes = 0

    # --- as a transaction -------------------------------------------------------------------------------------------

    @property
    def compares(self) -> tuple[Compare, ...]:
        return tuple(self._guards.values())

    @property
    def ops(self) -> tuple[Op, ...]:
        return (*self._writes.values(), *self._entries)

    @property
    def size_bytes(self) -> int:
        """About what it takes in a command."""
        return self._size_bytes + KEY_BYTES * len(self._guards)

    def has_room_for(self, part: Stage) -> bool:
        """Tell whether both together can be one transaction."""
        changes = len(self._writes) + len(self._entries) + len(part._writes) + len(part._entries)
        return changes <= MAX_OPS and len(self._guards) + len(part._guards) <= MAX_OPS

    def absorb(self, part: Stage) -> None:
        """Take over what was decided on top of this."""
        for key, guard in part._guards.items():
            self._guards.setdefault(key, guard)
        self._writes |= part._writes
        self._entries += part._entries
        self._size_bytes += part._size_bytes

    # --- keys -------------------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key, on which what is written stands."""
        written, value = self._written(key)
        if written:
            return value
        found = self._store.get(key)
        self._guards.setdefault(key, ModRevisionIs(key, EQ, 0 if found is None else found[4]))
        return None if found is None else found[1]

    def see(self, key: bytes) -> bytes | None:
        """Return the value of a key, whatever becomes of it."""
        written, value = self._written(key)
        if written:
            return value
        found = self._store.get(key)
        return None if found is None else found[1]

    def guard(self, compare: Compare) -> None:
        """Have what is written stand on this as well."""
        self._guards[compare.key] = compare

    def put(self, key: bytes, value: bytes = records.VERSION_ONLY) -> None:
        self._writes[key] = Put(key, value)
        self._size_bytes += len(key) + len(value) + VALUE_OVERHEAD_BYTES

    def delete(self, key: bytes) -> None:
        """Delete a key, if it is there."""
        if self.see(key) is not None:
            self._writes[key] = Delete(key)

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Delete all keys of a range, of which nothing else is staged."""
        self._entries.append(Delete(start, end))

    def note(self, entry: Op) -> None:
        """Have an entry of the audit trail written with it."""
        self._entries.append(entry)

    def _written(self, key: bytes) -> tuple[bool, bytes | None]:
        op = self._writes.get(key)
        if op is not None:
            return True, op.value if isinstance(op, Put) else None
        return (False, None) if self._under is None else self._under._written(key)

    def _record(self, kind: type[R], key: bytes) -> R | None:
        found = self.read(key)
        return None if found is None else records.decode(kind, found)

    # --- what the catalogue is made of ------------------------------------------------------------------------------

    def entry(self, blob: str) -> BlobRecord | None:
        return self._record(BlobRecord, keys.blob(blob))

    def put_entry(self, blob: str, record: BlobRecord) -> None:
        """Write an entry, and whether it lacks nodes by it."""
        self.put(keys.blob(blob), records.encode(record))
        lacking = keys.blob_lacking(blob)
        if not self.numbers.lacks(record):
            self.delete(lacking)
        elif self.see(lacking) is None:
            self.put(lacking)

    def delete_entry(self, blob: str, record: BlobRecord) -> None:
        """Delete an entry that no owner has any more, with the keys that stand on it."""
        self.delete(keys.blob(blob))
        self.delete(keys.blob_touched(blob))
        self.delete(keys.blob_lacking(blob))
        for holder in record.holders:
            self.delete(keys.blob_on(holder, blob))

    def counted(self) -> Numbers | None:
        """Return the numbers by which it is known of all blobs whether they lack nodes."""
        found = self.see(keys.BLOBS_COUNTED)
        if found is None:
            return None
        record = records.decode(BlobsCountedRecord, found)
        return Numbers(record.replicas, record.members)

    def put_counted(self) -> None:
        """Write that this is known by the numbers of now."""
        record = BlobsCountedRecord(self.numbers.default, self.numbers.members)
        self.put(keys.BLOBS_COUNTED, records.encode(record))

    def touched_ms(self, blob: str) -> int:
        found = self._record(BlobTouchRecord, keys.blob_touched(blob))
        return 0 if found is None else found.at_ms

    def touch(self, blob: str, now_ms: int) -> None:
        self.put(keys.blob_touched(blob), records.encode(BlobTouchRecord(now_ms)))

    def usage(self, uid: int) -> BlobUsageRecord:
        return self._record(BlobUsageRecord, keys.blob_usage(uid)) or BlobUsageRecord(0, 0)

    def give(self, uid: int, blob: str, size_bytes: int, now_ms: int) -> BlobUsageRecord:
        """Make a blob an owner's, whose it was not; return what theirs come to then."""
        before = self.usage(uid)
        after = BlobUsageRecord(before.size_bytes + size_bytes, before.blobs + 1)
        self.put(keys.blob_usage(uid), records.encode(after))
        self.put(keys.blob_owned(uid, blob), records.encode(OwnedBlobRecord(size_bytes, now_ms)))
        return after

    def take(self, uid: int, blob: str) -> None:
        """Make a blob an owner's no longer, if it was."""
        owned = self._record(OwnedBlobRecord, keys.blob_owned(uid, blob))
        if owned is None:
            return
        self.delete(keys.blob_owned(uid, blob))
        before = self.usage(uid)
        if before.blobs > 1:
            after = BlobUsageRecord(before.size_bytes - owned.size_bytes, before.blobs - 1)
            self.put(keys.blob_usage(uid), records.encode(after))
        else:
            self.delete(keys.blob_usage(uid))

    def tag(self, name: str) -> BlobTagRecord | None:
        return self._record(BlobTagRecord, keys.blob_tag(name))

    def put_tag(self, name: str, record: BlobTagRecord, former: BlobTagRecord | None) -> None:
        """Have a tag name a blob, in place of what it named."""
        if former is not None and former.hash != record.hash:
            self.delete(keys.blob_reference(former.hash, "tag", name))
        self.put(keys.blob_tag(name), records.encode(record))
        self.put(keys.blob_reference(record.hash, "tag", name))

    def delete_tag(self, name: str, record: BlobTagRecord) -> None:
        self.delete(keys.blob_tag(name))
        self.delete(keys.blob_reference(record.hash, "tag", name))

    def is_referred_to(self, blob: str) -> bool:
        """Tell whether anything keeps a blob. What comes to refer to it later changes when it was touched."""
        prefix = keys.blob_references_prefix(blob)
        start, more = prefix, True
        while more:
            rows, more = self._store.range(start, prefix_end(prefix), limit=8, keys_only=True)
            for key, *_ in rows:
                if self.see(key) is not None:
                    return True
                start = key + b"\x00"
        return any(key.startswith(prefix) and isinstance(op, Put) for key, op in self._all_writes())

    def _all_writes(self) -> Iterable[tuple[bytes, Op]]:
        if self._under is not None:
            yield from self._under._all_writes()
        yield from self._writes.items()
