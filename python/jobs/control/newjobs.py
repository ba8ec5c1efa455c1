"""Jobs about to be stored: checked, numbered, let in, and the operations that store them.

Whoever makes jobs, makes them here: a submission, a schedule, an array, a repetition of a failed job.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.control.queues import RETRY_AFTER_S, Queues
from jobs.control.transitions import write_ops
from jobs.errors import QueueFull
from jobs.protocol.ids import JobId, JobIdSource
from jobs.protocol.model import JobSubmit
from jobs.records import JobRecord
from jobs.store import EQ, Compare, Op, Put, VersionIs
from jobs.validate import check_job, check_spec_size


class NewJob(Struct, frozen=True):
    """Its id, its first record, and the encoded spec."""

    id: JobId
    record: JobRecord
    spec: bytes

    def compares(self) -> tuple[Compare, ...]:
        """Return what holds while the id is free, and the unique key is if the job has one."""
        taken = (keys.state(self.id), self.record.unique_key)
        return tuple(VersionIs(key, EQ, 0) for key in taken if key is not None)

    def ops(self) -> tuple[Op, ...]:
        return (Put(keys.spec(self.id), self.spec), *write_ops(self.id, None, self.record))

    def size_bytes(self) -> int:
        """Return about what its operations take in a command."""
        return len(self.spec) + 512


class JobMaker:
    """Makes new jobs, with ids in the order in which they were made, and lets them in while there is room."""

    def __init__(self, queues: Queues, *, max_pending: int) -> None:
        self._queues = queues
        self._max_pending = max_pending
        self._ids = JobIdSource()

    def make(self, job: JobSubmit, owner: int, now_ms: int, where: str = "$") -> NewJob:
        """Return the job. Raises InvalidRequest, with fields below `where`, for one that could never run."""
        check_job(job, where)
        spec = records.encode_spec(job)
        check_spec_size(len(spec) - 1, where)
        record = replace(jobs.on_submit(job, owner, now_ms), stored_bytes=jobs.JOB_BYTES + len(spec))
        return NewJob(self._ids.next(now_ms, secrets.randbits(62)), record, spec)

    @contextmanager
    def admit(self, news: Sequence[NewJob]) -> Iterator[tuple[Compare, ...]]:
        """Hold room for jobs while one transaction stores them; yield the compares that it has to make.

        They fail when a key was taken or settings changed meanwhile: then admit anew. What was stored is told to
        `Transitions.on_change` before the end. Raises QueueClosed and QueueFull.
        """
        self._check_room(len(news))
        shares = Counter((new.record.queue, new.record.owner) for new in news)
        with self._queues.room(shares):
            guards = dict.fromkeys(guard for share in shares for guard in self._queues.guards(*share))
            yield (*guards, *(compare for new in news for compare in new.compares()))

    def _check_room(self, count: int) -> None:
        pending = self._queues.pending
        if pending + count > self._max_pending:
            raise QueueFull(
                f"{pending} jobs wait; the limit is {self._max_pending}",
                expected="fewer jobs, or a later time",
                retry_after_s=RETRY_AFTER_S,
            )
