"""Users' tables: what a statement changes of them, decided where its job ends and written by the same transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, records
from jobs.control.audit import audit_entry
from jobs.errors import StorageFull
from jobs.protocol.ids import JobId
from jobs.protocol.model import Reason
from jobs.protocol.wire import MAX_WRITE_BYTES, MAX_WRITE_VALUES, Finished, Outcome, TableWrite
from jobs.records import TableRecord
from jobs.service import Caller
from jobs.store import EQ, MAX_VALUE_BYTES, Compare, Delete, ModRevisionIs, Op, Put, Store, VersionIs, prefix_end

NO_GROUP: Final = -1
MAX_DELETED: Final = 10_000
"""Keys that one operation of the store deletes."""
VALUE_OVERHEAD_BYTES: Final = 128


class Written(Struct, frozen=True):
    """What stores a statement's changes, and what they were decided on."""

    compares: tuple[Compare, ...] = ()
    ops: tuple[Op, ...] = ()


NOTHING: Final = Written()


class _Definition(Struct, frozen=True):
    prefix: str


class _Refused(Exception):
    """The statement changes nothing; the text says why."""


class TableWrites:
    """Decides on what statements write."""

    def __init__(self, store: Store, is_admin: Callable[[int], bool], check_space: Callable[[], None]) -> None:
        self._store = store
        self._is_admin = is_admin
        self._check_space = check_space

    def decide(self, job: JobId, owner: int, frame: Finished, now_ms: int) -> tuple[Outcome, Written]:
        """Return the outcome of the job and what is to be written with it: all that its statement asks for, or, where
        that cannot be, nothing, and the job has failed."""
        write = frame.write
        assert write is not None
        try:
            self._check_space()
            check_bounds(write)
            written = self._written(job, owner, write, now_ms)
        except (_Refused, StorageFull) as error:
            failed = replace(
                frame.outcome, reason=Reason.QUERY_ERROR, message=f"nothing was written: {error}", query=None
            )
            return failed, NOTHING
        return frame.outcome, written

    def _written(self, job: JobId, owner: int, write: TableWrite, now_ms: int) -> Written:
        key = keys.table(write.table)
        found = self._store.get(key)
        if (0 if found is None else found[4]) != write.revision:
            raise _Refused(f"the table {write.table} was changed meanwhile")
        record = None if found is None else records.decode(TableRecord, found[1])
        caller = Caller(uid=owner, gid=NO_GROUP, admin=self._is_admin(owner))
        if record is not None and write.action != "insert" and not caller.admin and record.owner != owner:
            raise _Refused(f"the table {write.table} belongs to uid {record.owner}")
        compare: Compare = VersionIs(key, EQ, 0) if found is None else ModRevisionIs(key, EQ, write.revision)
        made = record
        ops: list[Op] = []
        if record is not None and record.is_managed and write.action != "insert":
            ops.append(self._deletion(write.table, record.prefix.encode()))
        if write.action == "create":
            made = self._created(write, record, owner, now_ms)
            ops.append(Put(key, records.encode(made)))
        elif made is None:
            raise _Refused(f"there is no table {write.table}")
        elif write.action == "drop":
            ops.append(Delete(key))
        ops += [Put(f"{made.prefix}{job}-{number:04d}".encode(), value) for number, value in enumerate(write.values)]
        detail = f"{len(write.values)} values by job {job}" if write.values else f"by job {job}"
        ops.append(audit_entry(caller, f"table.{write.action}", write.table, now_ms, detail, owner=made.owner))
        return Written((compare,), tuple(ops))

    def _created(self, write: TableWrite, former: TableRecord | None, owner: int, now_ms: int) -> TableRecord:
        prefix = msgspec.json.decode(write.definition, type=_Definition).prefix
        if not prefix.encode().startswith(keys.DATA) or len(prefix) > 512:
            raise _Refused(f"{prefix:.100} is not below {keys.DATA.decode()}")
        is_emptied = former is not None and former.is_managed and former.prefix == prefix
        if (
            write.is_managed
            and not is_emptied
            and self._store.count(prefix.encode(), prefix_end(prefix.encode()), limit=1)
        ):
            raise _Refused(f"there are keys below {prefix} already")
        return TableRecord(
            owner=owner,
            definition=write.definition,
            prefix=prefix,
            is_managed=write.is_managed,
            created_ms=now_ms,
        )

    def _deletion(self, table: str, prefix: bytes) -> Delete:
        """Return what deletes the values of a table that goes."""
        if self._store.count(prefix, prefix_end(prefix), limit=MAX_DELETED + 1) > MAX_DELETED:
            raise _Refused(
                f"the table {table} has more than {MAX_DELETED} values; delete them first, below {prefix.decode()}"
            )
        return Delete(prefix, prefix_end(prefix))


def check_bounds(write: TableWrite) -> None:
    """Raise _Refused for more than one transaction takes: a worker's own checks are not relied on."""
    size = write_bytes(write)
    if len(write.values) > MAX_WRITE_VALUES or size > MAX_WRITE_BYTES + VALUE_OVERHEAD_BYTES * MAX_WRITE_VALUES:
        raise _Refused(
            f"{len(write.values)} values of {size} bytes are more than a statement writes at once, which is "
            f"{MAX_WRITE_VALUES} values and {MAX_WRITE_BYTES} bytes"
        )
    if any(len(value) > MAX_VALUE_BYTES for value in write.values):
        raise _Refused(f"a value has more than {MAX_VALUE_BYTES} bytes")


def write_bytes(write: TableWrite | None) -> int:
    """Return about what a statement's changes take in a command."""
    if write is None:
        return 0
    return sum(len(value) + VALUE_OVERHEAD_BYTES for value in write.values) + len(write.definition)
