"""References to blobs, for whoever stores something that names one: a job, its output, a schedule.

What refers to a blob and its reference are written by one transaction, which compares that the entry is there and says
when the blob was referred to. A collection compares that nobody has said so since it looked; so either it spares the
blob, or the reference is decided anew and finds the blob gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from jobs import keys, records
from jobs.control.logs import output_is_gone
from jobs.control.transitions import read_job
from jobs.errors import NotFound
from jobs.protocol.ids import JobId
from jobs.protocol.model import ReferenceKind
from jobs.records import BlobTouchRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, CreateRevisionIs, Delete, Op, Put, Store

OPS_EACH: Final = 2
"""Operations of a reference, at most; and one compare."""
_OF_JOBS: Final = frozenset({"job", "output", "log"})
Referred: TypeAlias = tuple[tuple[Compare, ...], tuple[Op, ...]]


class References:
    """Says what stores references, and what removes them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ops(
        self,
        hashes: Iterable[str],
        kind: ReferenceKind,
        name: str,
        caller: Caller,
        now_ms: int,
        *,
        field: str | None = None,
    ) -> Referred:
        """Return what is to hold for the references, and what stores them; where a compare fails, ask again.

        The caller is the owner of what refers. Raises NotFound, which names the blob, where one is not there or not
        theirs; `field` says where it was named.
        """
        compares: list[Compare] = []
        ops: list[Op] = []
        touched = records.encode(BlobTouchRecord(now_ms))
        for blob in dict.fromkeys(hashes):
            found = self._store.get(keys.blob(blob))
            if found is None or not (caller.admin or self._store.get(keys.blob_owned(caller.uid, blob))):
                raise not_there(blob, field)
            compares.append(CreateRevisionIs(keys.blob(blob), EQ, found[3]))
            ops.append(Put(keys.blob_reference(blob, kind, name), records.VERSION_ONLY))
            ops.append(Put(keys.blob_touched(blob), touched))
        return tuple(compares), tuple(ops)

    def removal(self, hashes: Iterable[str], kind: ReferenceKind, name: str) -> tuple[Op, ...]:
        """Return what removes references, in the transaction that deletes what refers."""
        return tuple(Delete(keys.blob_reference(blob, kind, name)) for blob in dict.fromkeys(hashes))


def is_dead(store: Store, key: bytes) -> bool:
    """Tell whether what a reference stands for is gone, and so will never refer to anything again.

    What jobs wrote is deleted in bulk, without looking for the blobs that it has become: their references stay until
    they are found here. Those of kind `job` and `output` go with the job, and are looked at to be on the safe side.
    """
    kind, name = keys.reference_of(key)
    if kind not in _OF_JOBS:
        return False
    stored = read_job(store, JobId(name))
    return stored is None or (kind == "log" and output_is_gone(store, JobId(name), stored.record))


def not_there(blob: str, field: str | None = None) -> NotFound:
    """Return what is raised for a blob that is not there, or is somebody else's: nobody is told which."""
    return NotFound(f"there is no blob {blob}", field=field, expected="a blob of yours: jobctl blob ls")
