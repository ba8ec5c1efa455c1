"""Operations of replication as jobs, from what the client is told."""

from __future__ import annotations

import pytest

from jobs.client.carrying import RESUMED
from jobs.client.failures import OperationFailed
from jobs.client.replication import LASTING, job_of, replication_job, succeeded
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    Content,
    JobResult,
    JobState,
    Reason,
    ReplicationBackup,
    ReplicationSync,
    Retry,
    Throttle,
)
from jobs.validate import check_job

JOB = JobId("01890a5d-ac96-774b-bcce-b302099a8057")


def test_options_go_where_they_belong() -> None:
    throttle = Throttle(bytes_per_s=1 << 20)
    given = {"directory": "/backups/a", "recipients": [], "throttle": throttle, "queue": "nightly", "priority": -5}
    job = job_of(ReplicationBackup, given)
    assert job.payload == ReplicationBackup(directory="/backups/a", throttle=throttle)
    assert (job.queue, job.priority, job.retry) == ("nightly", -5, RESUMED)
    check_job(job)


def test_an_operation_outlives_its_worker_and_one_without_end_any_number_of_them() -> None:
    once = ReplicationSync(name="a", source="there", prefix="/data/")
    forever = ReplicationSync(name="a", source="there", prefix="/data/", continuous=True)
    assert replication_job(once).retry == RESUMED
    assert replication_job(forever).retry == LASTING
    assert job_of(ReplicationSync, {"name": "a", "prefix": "/data/", "continuous": True}).retry == LASTING
    assert replication_job(forever, retry=Retry(max_attempts=2)).retry == Retry(max_attempts=2)
    check_job(replication_job(forever))


def test_a_job_that_failed_is_raised() -> None:
    result = JobResult(
        id=JOB,
        state=JobState.FAILED,
        reason=Reason.REPLICATION_ERROR,
        message="sync a on node n1: denied",
        stdout=Content(text=""),
        stderr=Content(text=""),
        execution=None,
    )
    with pytest.raises(OperationFailed, match="denied") as failure:
        succeeded(result)
    assert failure.value.reason is Reason.REPLICATION_ERROR
