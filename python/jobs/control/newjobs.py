"""Jobs about to be stored: checked, numbered, let in, and the operations that store them.

Whoever makes jobs, makes them here: a submission, a schedule, an array, a repetition of a failed job.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import arrays, indices, jobs, keys, records
from jobs.control.queues import RETRY_AFTER_S, Queues
from jobs.control.tracing import with_context
from jobs.control.transitions import write_ops
from jobs.errors import QueueFull
from jobs.indices import Indices
from jobs.protocol.ids import JobId, JobIdSource, array_id
from jobs.protocol.model import ArraySpec, JobSubmit, MaintenanceJob
from jobs.records import ArrayRecord, JobRecord
from jobs.store import EQ, Compare, Op, Put, VersionIs
from jobs.tracing.context import TraceContext
from jobs.validate import (
    array_items,
    array_size,
    check_job,
    check_spec_size,
    item_chunk_bytes,
    named_blobs,
    named_secrets,
    without_list,
)

if TYPE_CHECKING:
    from jobs.control.jobreferences import JobReferences  # the catalogue needs dependencies, and they need this

REFERENCE_BYTES: Final = 512
"""About what a command takes that refers to a blob."""


def makes_room(job: JobSubmit) -> bool:
    """Tell whether a job is taken though the store is full: those by which administrators give room back."""
    return isinstance(job, MaintenanceJob)


class NewJob(Struct, frozen=True):
    """Its id, its first record, the encoded spec, and what stores the tasks of an array."""

    id: JobId
    record: JobRecord
    spec: bytes
    tasks: tuple[Put, ...] = ()
    """The array's record first."""
    blobs: Mapping[str, str] = {}
    """The blobs that it names, each with the field that does."""
    secrets: Mapping[str, str] = {}
    """The same of its owner's secrets."""

    def compares(self) -> tuple[Compare, ...]:
        """Return what holds while the id is free, and the unique key is if the job has one."""
        taken = (keys.state(self.id), self.record.unique_key)
        return tuple(VersionIs(key, EQ, 0) for key in taken if key is not None)

    def ops(self) -> tuple[Op, ...]:
        return (Put(keys.spec(self.id), self.spec), *write_ops(self.id, None, self.record), *self.tasks)

    def size_bytes(self) -> int:
        """Return about what its operations take in a command."""
        return len(self.spec) + 512 + sum(len(put.value) for put in self.tasks) + REFERENCE_BYTES * len(self.blobs)

    def body_sha256(self) -> bytes:
        """Return the hash of what was submitted, and behind it that of the list that the spec leaves out, if any."""
        listed = hashlib.sha256()
        for put in self.tasks[1:]:
            listed.update(put.value + b"\n")
        return hashlib.sha256(self.spec).digest() + (listed.digest() if self.tasks[1:] else b"")


class Admitted(Struct, frozen=True):
    """What one transaction stores new jobs with."""

    compares: tuple[Compare, ...]
    ops: tuple[Op, ...]


class JobMaker:
    """Makes new jobs, with ids in the order in which they were made, and lets them in while there is room."""

    def __init__(self, queues: Queues, references: JobReferences, *, max_pending: int) -> None:
        self._queues = queues
        self._references = references
        self._max_pending = max_pending
        self._ids = JobIdSource()

    def make(self, job: JobSubmit, owner: int, now_ms: int, where: str = "$") -> NewJob:
        """Return the job. Raises InvalidRequest, with fields below `where`, for one that could never run."""
        check_job(job, where)
        if job.array is not None:
            return self._make_array(job, job.array, owner, now_ms, where)
        new = NewJob(
            self._next_id(now_ms),
            jobs.on_submit(job, owner, now_ms),
            _encoded(job, where),
            (),
            named_blobs(job, where),
            named_secrets(job, where),
        )
        return _sized(new)

    def _make_array(self, job: JobSubmit, array: ArraySpec, owner: int, now_ms: int, where: str) -> NewJob:
        listed = array_items(array, f"{where}.array")
        size = array_size(array)
        made = array_id(self._next_id(now_ms))
        spec = _encoded(without_list(job), where)
        tasks = [Put(keys.array(made), records.encode(arrays.record_of(array, size)))]
        if listed is not None:
            chunks = arrays.cut(listed, item_chunk_bytes(len(listed)))
            tasks += [Put(keys.numbered(keys.ARRAY_ITEMS, made, first), data) for first, data in chunks]
        first = jobs.on_submit(job, owner, now_ms, size)
        return _sized(NewJob(made, first, spec, tuple(tasks), named_blobs(job, where), named_secrets(job, where)))

    def repeat_array(
        self,
        old: JobId,
        owner: int,
        spec: JobSubmit,
        record: ArrayRecord,
        members: Indices,
        items: Iterable[tuple[int, bytes]],
        now_ms: int,
    ) -> NewJob:
        """Return an array of some tasks of another, which keep their indices and items; `items` are all of its."""
        made = array_id(self._next_id(now_ms))
        tasks = [Put(keys.array(made), records.encode(arrays.repeated(record)))]
        chunks = indices.chunks(members)
        tasks += [Put(keys.numbered(keys.ARRAY_MEMBERS, made, number), data) for number, data in chunks.items()]
        for index, data in items:
            kept = arrays.only(data, index, members)
            if kept is not None:
                tasks.append(Put(keys.numbered(keys.ARRAY_ITEMS, made, index), kept))
        first = replace(jobs.on_submit(spec, owner, now_ms, members.bit_count()), redrive_of=old)
        return _sized(
            NewJob(made, first, records.encode_spec(spec), tuple(tasks), named_blobs(spec), named_secrets(spec))
        )

    def _next_id(self, now_ms: int) -> JobId:
        return self._ids.next(now_ms, secrets.randbits(62))

    @contextmanager
    def admit(self, news: Sequence[NewJob]) -> Iterator[Admitted]:
        """Hold room for jobs while one transaction stores them; yield what that has to compare, and what stores them.

        The compares fail when a key was taken, settings changed or a blob went meanwhile: then admit anew. What was
        stored is told to `Transitions.on_change` before the end. Raises QueueClosed and QueueFull, and NotFound for a
        blob or a secret that is not there for the job's owner.
        """
        self._check_room(len(news))
        shares = Counter((new.record.queue, new.record.owner) for new in news)
        with self._queues.room(shares):
            guards = dict.fromkeys(guard for share in shares for guard in self._queues.guards(*share))
            there, references = self._references.of_new(news)
            yield Admitted(
                (*guards, *(compare for new in news for compare in new.compares()), *there),
                (*(op for new in news for op in new.ops()), *references),
            )

    def _check_room(self, count: int) -> None:
        pending = self._queues.pending
        if pending + count > self._max_pending:
            raise QueueFull(
                f"{pending} jobs wait; the limit is {self._max_pending}",
                expected="fewer jobs, or a later time",
                retry_after_s=RETRY_AFTER_S,
            )


def in_trace(new: NewJob, context: TraceContext | None) -> NewJob:
    """Return the job as part of a trace, if it is submitted in one."""
    return new if context is None else replace(new, record=with_context(new.record, context))


def _encoded(job: JobSubmit, where: str) -> bytes:
    spec = records.encode_spec(job)
    check_spec_size(len(spec) - 1, where)
    return spec


def _sized(new: NewJob) -> NewJob:
    """Return the job with how much it takes in the store noted in its record."""
    stored_bytes = jobs.JOB_BYTES + len(new.spec) + sum(len(put.value) for put in new.tasks)
    return replace(new, record=replace(new.record, stored_bytes=stored_bytes))
