"""What the options of `jobctl submit` and `run` make of a job."""

from __future__ import annotations

import argparse
import time

import pytest

from jobs.cli.command import Parser
from jobs.cli.submission import add_job_options, count, future_ms, job_of, past_ms
from jobs.protocol.model import Requires, ShellJob


def made(*arguments: str) -> ShellJob:
    parser = Parser(prog="test")
    add_job_options(parser)
    return job_of(parser.parse_args([*arguments, "--", "true"]))


def test_what_a_worker_must_have_and_what_is_preferred() -> None:
    job = made(
        "--require", "zone=a", "--prefer", "disk=ssd", "--resource", "gpu=1", "--cpu", "1.5", "--reserve-memory", "1K"
    )
    assert job.requires == Requires(
        labels={"zone": "a"}, prefer={"disk": "ssd"}, resources={"gpu": 1}, cpu_milli=1_500, memory_bytes=1_024
    )


def test_times_are_given_from_now_on_or_as_moments() -> None:
    before_ms = int(time.time() * 1000)
    job = made("--not-before", "2h", "--deadline", "2030-01-31T12:00+00:00")
    assert job.not_before_ms is not None
    assert 0 <= job.not_before_ms - before_ms - 7_200_000 < 60_000
    assert job.deadline_ms == 1_896_091_200_000
    assert past_ms("1h") < before_ms < future_ms("1h")


def test_retries_and_concurrency() -> None:
    job = made(
        "--retries",
        "2",
        "--retry-cap",
        "1m",
        "--retry-jitter",
        "0.5",
        "--concurrency-key",
        "k",
        "--concurrency-limit",
        "3",
    )
    assert (job.retry.max_attempts, job.retry.cap_s, job.retry.jitter) == (3, 60.0, 0.5)
    assert (job.concurrency_key, job.concurrency_limit) == ("k", 3)


def test_nothing_said_is_nothing_changed() -> None:
    job = made()
    assert job == ShellJob(payload=job.payload)


@pytest.mark.parametrize("text", ["gpu", "=1", "gpu=", "gpu=-1", "gpu=1.5", "gpu=²"])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="should be NAME="):
        count(text)


@pytest.mark.parametrize("text", ["tomorrow", "-2h", "2030-13-01"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no moment"):
        future_ms(text)
