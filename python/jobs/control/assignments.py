"""What a worker is told of a job that it is given: the payload, and what the node adds to it."""

from __future__ import annotations

from typing import Final

from jobs import records
from jobs.clock import rfc3339
from jobs.control.arraystore import environment, spec_key
from jobs.control.dependencies import parents_of
from jobs.control.parents import PARENTS_DIR, parent_files
from jobs.protocol.ids import JobId, array_id
from jobs.protocol.wire import Assignment
from jobs.records import JobRecord
from jobs.store import Store
from jobs.validate import JOB_DIR, NODE_DIR

PARENTS_VARIABLE: Final = "JOBS_PARENTS"
PARENTS_PATH: Final = str(JOB_DIR / NODE_DIR / PARENTS_DIR)


def assignment(store: Store, job: JobId, record: JobRecord) -> Assignment:
    """Return the assignment of a job that runs."""
    spec = store.get(spec_key(job, record))
    assert spec is not None, f"job {job} has a state but no spec"
    files = parent_files(store, parents_of(store, array_id(job) if record.is_task else job))
    env = environment(store, job) if record.is_task else {}
    if record.schedule is not None and record.nominal_ms is not None:
        env |= {"JOBS_SCHEDULE": record.schedule, "JOBS_NOMINAL_TIME": rfc3339(record.nominal_ms)}
    return Assignment(
        job=job,
        attempt=record.attempt,
        payload=records.spec_payload(spec[1]),
        timeout_s=record.timeout_s,
        heartbeat_s=record.heartbeat_s,
        owner=record.owner,
        env=env | ({PARENTS_VARIABLE: PARENTS_PATH} if files else {}),
        files=files,
    )
