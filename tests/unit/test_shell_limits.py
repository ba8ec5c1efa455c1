"""What a shell worker makes of the limits of a job, of what it requires and of the image that it names."""

from __future__ import annotations

import msgspec
import pytest

from jobs.config import ShellWorker
from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Limits, ShellPayload
from jobs.protocol.wire import Assignment
from jobs.workers.sandbox import JobLimits, Spawn
from jobs.workers.shell import spawn_of, weight_of


def spawned(payload: ShellPayload, cpu_milli: int = 0, **config: object) -> Spawn:
    assignment = Assignment(
        job=JobId("j"),
        attempt=Attempt(1),
        payload=msgspec.json.encode(payload),
        timeout_s=None,
        owner=1000,
        cpu_milli=cpu_milli,
    )
    worker = ShellWorker.model_validate(config)
    return spawn_of(assignment, payload, worker, JobLimits(**worker.limits.model_dump()))


def test_a_core_that_is_required_weighs_what_is_ordinary() -> None:
    assert [weight_of(milli) for milli in (1, 10, 500, 1000, 64_000, 10_000_000)] == [1, 1, 50, 100, 6_400, 10_000]


def test_a_job_s_own_share_wins_over_the_operator_s_and_that_over_what_it_requires() -> None:
    job = ShellPayload(argv=["true"])
    assert spawned(job).limits.cpu_weight is None
    assert spawned(job, cpu_milli=2000).limits.cpu_weight == 200
    assert spawned(job, cpu_milli=2000, limits={"cpu_weight": 70}).limits.cpu_weight == 70
    own = ShellPayload(argv=["true"], limits=Limits(cpu_weight=10))
    assert spawned(own, cpu_milli=2000, limits={"cpu_weight": 70}).limits.cpu_weight == 10


def test_what_the_operator_caps_is_refused_and_the_rest_reaches_the_launcher() -> None:
    wanted = ShellPayload(
        argv=["true"], limits=Limits(cpu_milli=1500, cpu_weight=1000, io_weight=20), on_output_limit="fail"
    )
    spawn = spawned(wanted)
    assert (spawn.limits.cpu_milli, spawn.limits.cpu_weight, spawn.limits.io_weight) == (1500, 1000, 20)
    assert spawn.fail_on_output_limit
    with pytest.raises(InvalidRequest, match="more than this worker allows"):
        spawned(wanted, max_limits={"cpu_milli": 1000})
    with pytest.raises(InvalidRequest, match="more than this worker allows"):
        spawned(ShellPayload(argv=["true"], limits=Limits(cpu_weight=1001)))


def test_an_image_that_its_operator_does_not_name_is_refused_with_those_that_there_are() -> None:
    """As a job may still name one that was stored before jobs required a worker that has it."""
    wanted = ShellPayload(argv=["true"], root="debian")
    assert spawned(wanted, roots={"debian": "/srv/debian"}).root == "named/debian"
    with pytest.raises(Forbidden, match=r"^root debian: the operator of this worker names a, b "):
        spawned(wanted, roots={"b": "/srv/b", "a": "/srv/a"})
    with pytest.raises(Forbidden, match="names none "):
        spawned(wanted)
