"""What a worker is told of a job that it is given: the payload, and what the node adds to it."""

from __future__ import annotations

from typing import Final

from jobs import keys, records
from jobs.control.dependencies import parents_of
from jobs.control.parents import PARENTS_DIR, parent_files
from jobs.protocol.ids import JobId
from jobs.protocol.wire import Assignment
from jobs.records import JobRecord
from jobs.store import Store
from jobs.validate import JOB_DIR, NODE_DIR

PARENTS_VARIABLE: Final = "JOBS_PARENTS"
PARENTS_PATH: Final = str(JOB_DIR / NODE_DIR / PARENTS_DIR)


def assignment(store: Store, job: JobId, record: JobRecord) -> Assignment:
    """Return the assignment of a job that runs."""
    spec = store.get(keys.spec(job))
    assert spec is not None, f"job {job} has a state but no spec"
    files = parent_files(store, parents_of(store, job))
    return Assignment(
        job=job,
        attempt=record.attempt,
        payload=records.spec_payload(spec[1]),
        timeout_s=record.timeout_s,
        heartbeat_s=record.heartbeat_s,
        owner=record.owner,
        env={PARENTS_VARIABLE: PARENTS_PATH} if files else {},
        files=files,
    )
