"""Goes over the records of jobs in the order of their ids, past the tasks of arrays unless they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from jobs import keys, records
from jobs.protocol.ids import JobId, array_id, last_task_id, task_id
from jobs.records import JobRecord
from jobs.service import JobFilter
from jobs.store import Store, prefix_end

AFTER_JUMP_ROWS: Final = 2
"""Rows that are read behind an array: where there is one, there are often more."""


def jobs_in_order(
    store: Store, where: JobFilter, after: bytes | None, newest_first: bool, rows_at_a_time: int
) -> Iterator[tuple[bytes, JobRecord, int]]:
    """Yield key, record and revision of the jobs that `where` may be about, from behind the key `after` on.

    Reading on costs about one row for each that is yielded, however many tasks the arrays between them have.
    """
    start, end = _span(where)
    if after is not None:
        start, end = (start, min(end, after)) if newest_first else (max(start, after + b"\x00"), end)
    step, more = rows_at_a_time, start < end
    while more:
        rows, more = store.range(start, end, limit=step, reverse=newest_first)
        step = min(2 * step, rows_at_a_time)
        for key, value, _, _, revision, _ in rows:
            record = records.decode(JobRecord, value)
            skip = where.array is None and (record.is_task or (record.tasks > 0 and not newest_first))
            if not (skip and record.is_task):
                yield key, record, revision
            start, end = (start, key) if newest_first else (key + b"\x00", end)
            if skip:
                start, end = _past_tasks(keys.job_of(key), start, end, newest_first)
                step, more = AFTER_JUMP_ROWS, start < end
                break


def state_prefix(where: JobFilter) -> bytes:
    """Return a prefix of the state keys of all jobs that `where` may be about."""
    return keys.STATE if where.array is None else keys.of_tasks(keys.STATE, where.array)


def _span(where: JobFilter) -> tuple[bytes, bytes]:
    if where.array is None:
        return keys.STATE, prefix_end(keys.STATE)
    first, last = where.indices
    return keys.state(task_id(where.array, first)), keys.state(task_id(where.array, last)) + b"\x00"


def _past_tasks(job: JobId, start: bytes, end: bytes, newest_first: bool) -> tuple[bytes, bytes]:
    """Return what is left to be read behind the tasks of the array that a job is, or is one of."""
    if newest_first:
        return start, keys.state(array_id(job)) + b"\x00"
    return keys.state(last_task_id(job)) + b"\x00", end
