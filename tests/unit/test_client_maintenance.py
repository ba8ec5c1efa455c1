"""Operations of maintenance as jobs, from what the client is told."""

from __future__ import annotations

import pytest

from jobs.client.failures import OperationFailed
from jobs.client.maintenance import RESUMED, job_of, maintenance_job, succeeded
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    Content,
    JobResult,
    JobState,
    MaintenanceCompact,
    MaintenanceHealth,
    Reason,
    Retry,
)
from jobs.validate import check_job

JOB = JobId("01890a5d-ac96-774b-bcce-b302099a8057")


def test_options_go_where_they_belong() -> None:
    job = job_of(MaintenanceCompact, {"parts": ["log"], "dry_run": True, "queue": "nightly", "timeout_s": 60.0})
    assert job.payload == MaintenanceCompact(parts=["log"], dry_run=True)
    assert (job.queue, job.timeout_s) == ("nightly", 60.0)
    check_job(job)


def test_another_worker_goes_on_when_one_is_lost() -> None:
    assert maintenance_job(MaintenanceHealth()).retry == RESUMED
    assert maintenance_job(MaintenanceHealth(), retry=Retry()).retry == Retry()


def test_a_job_that_failed_is_raised() -> None:
    result = JobResult(
        id=JOB,
        state=JobState.FAILED,
        reason=Reason.MAINTENANCE_ERROR,
        message="compact on node n1: the disk is full",
        stdout=Content(text=""),
        stderr=Content(text=""),
        execution=None,
    )
    with pytest.raises(OperationFailed, match="the disk is full") as failure:
        succeeded(result)
    assert failure.value.reason is Reason.MAINTENANCE_ERROR
