"""A job about to be stored: checked, numbered, and the operations that store it."""

from __future__ import annotations

import secrets

from msgspec import Struct

from jobs import jobs, keys, records
from jobs.control.transitions import write_ops
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

    def compare(self) -> Compare:
        """Return the compare that holds while the id is free."""
        return VersionIs(keys.state(self.id), EQ, 0)

    def ops(self) -> tuple[Op, ...]:
        return (Put(keys.spec(self.id), self.spec), *write_ops(self.id, None, self.record))

    def size_bytes(self) -> int:
        """Return about what its operations take in a command."""
        return len(self.spec) + 512


class JobMaker:
    """Makes new jobs, with ids in the order in which they were made."""

    def __init__(self) -> None:
        self._ids = JobIdSource()

    def make(self, job: JobSubmit, owner: int, now_ms: int, where: str = "$") -> NewJob:
        """Return the job. Raises InvalidRequest, with fields below `where`, for one that could never run."""
        check_job(job, where)
        spec = records.encode_spec(job)
        check_spec_size(len(spec) - 1, where)
        return NewJob(self._ids.next(now_ms, secrets.randbits(62)), jobs.on_submit(job, owner, now_ms), spec)
