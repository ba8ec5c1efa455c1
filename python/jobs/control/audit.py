"""Who did what to what: an entry is stored by the transaction that makes the change it tells of.

The trail is one list by time. An entry about one job stands under the job as well, so that what was done to it is found
at once. Submissions do not, as one entry tells of all jobs of a request: they are found by the time in a job's id.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from typing import Final

from jobs import keys, records
from jobs.protocol.ids import JobId, job_time_ms
from jobs.records import AuditRecord
from jobs.service import Caller
from jobs.store import Put

SUBMIT: Final = "job.submit"
_count = itertools.count()


def audit_entry(
    caller: Caller, action: str, subject: str, now_ms: int, detail: str | None = None, owner: int | None = None
) -> Put:
    """Return what stores that `caller` did `action` (such as `worker.drain`) to `subject` (such as a worker's id)."""
    return _put(AuditRecord(at_ms=now_ms, uid=caller.uid, action=action, subject=subject, detail=detail, owner=owner))


def job_entry(
    caller: Caller,
    action: str,
    job: JobId,
    owner: int,
    now_ms: int,
    detail: str | None = None,
    *,
    made: JobId | None = None,
) -> tuple[Put, ...]:
    """Return what stores that `caller` did `action` (such as `job.cancel`) to a job of `owner`.

    It is found under that job, and under the other one that this has `made`.
    """
    record = AuditRecord(
        at_ms=now_ms, uid=caller.uid, action=action, subject=job, detail=detail, owner=owner, made=made
    )
    entry = _put(record)
    about = [job] if made is None else [job, made]
    return entry, *(Put(keys.audited(one, entry.key), records.VERSION_ONLY) for one in about)


def submission_entry(caller: Caller, jobs: Sequence[JobId]) -> Put:
    """Return what stores that `caller` submitted jobs, whose ids were made in a row and are given in order."""
    first, last = jobs[0], jobs[-1]
    record = AuditRecord(
        at_ms=job_time_ms(first),
        uid=caller.uid,
        action=SUBMIT,
        subject=first,
        detail=f"{len(jobs)} jobs" if len(jobs) > 1 else None,
        owner=caller.uid,
        last=last if len(jobs) > 1 else None,
    )
    return _put(record)


def _put(record: AuditRecord) -> Put:
    # The count orders what is of one millisecond; chance keeps it apart from what another node writes.
    number = (next(_count) & 0xFFFFFFFF) << 32 | secrets.randbits(32)
    return Put(keys.audit(record.at_ms, number), records.encode(record))
