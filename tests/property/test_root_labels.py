"""To which workers a job goes that names a root image: to those that would not refuse it for that."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import jobs, records
from jobs.config import ShellWorker
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol.ids import Attempt, uuid7
from jobs.protocol.model import Requires, RootImage, ShellJob, ShellPayload
from jobs.protocol.model.base import MAX_LABELS
from jobs.protocol.wire import Assignment
from jobs.records import Demand, JobRecord
from jobs.scheduler.rooms import Shape
from jobs.validate import check_job
from jobs.workers.sandbox import JobLimits
from jobs.workers.shell import spawn_of
from tests.support.scheduling import worker

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
NAMES = ("debian", "debian-12", "0.tools", "_")
JOB = uuid7(1, 1)

labels = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["x", "y"]), max_size=2)
roots = st.none() | st.sampled_from(NAMES) | st.just(RootImage(blob="0" * 64))
shell_jobs = st.builds(
    lambda root, wanted: ShellJob(payload=ShellPayload(argv=["true"], root=root), requires=Requires(labels=wanted)),
    roots,
    labels,
)
shell_workers = st.builds(
    lambda names, has, level: ShellWorker(
        roots={name: f"/srv/{name}" for name in names},  # type: ignore[misc]
        labels=has,
        sandbox=level,
    ),
    st.sets(st.sampled_from(NAMES)),
    labels,
    st.sampled_from(["strict", "none"]),
)


def refuses(config: ShellWorker, payload: ShellPayload) -> bool:
    """Tell whether the worker would have the attempt fail for the image that it names."""
    assignment = Assignment(job=JOB, attempt=Attempt(1), payload=b"", timeout_s=None, owner=1)
    try:
        spawn_of(assignment, payload, config, JobLimits(**config.limits.model_dump()))
    except Forbidden:
        return True
    return isinstance(payload.root, str) and config.sandbox == "none"


@settings(max_examples=300 * SCALE, deadline=None)
@given(shell_jobs, shell_workers)
def test_a_job_suits_just_the_workers_that_take_its_image(job: ShellJob, config: ShellWorker) -> None:
    record = jobs.on_submit(job, 1, 1_000)
    has_labels = all(config.labels.get(name) == value for name, value in job.requires.labels.items())
    suits = Shape(jobs.demand_of(record)).suits(worker("w", labels=config.announced))
    assert suits == (has_labels and not refuses(config, job.payload))


@given(shell_jobs)
def test_a_job_asks_for_nothing_more_than_it_says_unless_it_names_an_image(job: ShellJob) -> None:
    record = jobs.on_submit(job, 1, 1_000)
    if not isinstance(job.payload.root, str):
        assert record.requires == job.requires
        assert jobs.demand_of(record).lane() == Demand("shell", job.requires).lane()
    assert msgspec.json.decode(msgspec.json.encode(job), type=ShellJob) == job, "what is stored of it is as it came"


@given(roots, st.integers(MAX_LABELS - 2, MAX_LABELS))
def test_whatever_is_let_in_can_be_read_again(root: str | RootImage | None, count: int) -> None:
    wanted = Requires(labels={f"l{number}": "" for number in range(count)})
    job = ShellJob(payload=ShellPayload(argv=["true"], root=root), requires=wanted)
    if count == MAX_LABELS and isinstance(root, str):
        with pytest.raises(InvalidRequest) as caught:
            check_job(job)
        assert caught.value.field == "$.requires.labels"
        return
    check_job(job)
    record = jobs.on_submit(job, 1, 1_000)
    assert records.decode(JobRecord, records.encode(record)) == record
