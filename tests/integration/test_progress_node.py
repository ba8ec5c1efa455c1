"""A job tells of its progress through a whole node: script, launcher, worker, store, client, command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from jobs.client import Client, shell_job
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobState, Progress, Reason, Retry
from jobs.testing import EmbeddedNode

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("progress") / "node") as started:
        yield started


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with node.client() as made:
        yield made


def until_progress(client: Client, job: JobId, percent: float) -> Progress:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        detail = client.get(job)
        if detail.progress is not None and detail.progress.percent == percent:
            return detail.progress
        assert time.monotonic() < deadline, f"{percent} % never came: {detail}"
        assert not detail.job.state.is_final, detail


def test_the_progress_of_a_running_script_is_seen(node: EmbeddedNode, client: Client) -> None:
    script = 'echo "progress 10 first" >&$JOBS_FD; echo "progress 40 loading" >&3; while :; do sleep 0.05; done'
    job = client.submit(shell_job(script, grace_s=0.0)).job.id
    begin_ms = client.get(job).job.submitted_ms
    progress = until_progress(client, job, 40.0)
    assert progress.message == "loading"
    assert progress.at_ms >= begin_ms
    jobctl = [sys.executable, "-m", "jobs.cli.main", "--socket", str(node.socket), "status", job]
    shown = subprocess.run(jobctl, check=True, capture_output=True, text=True).stdout
    assert "40 % loading" in shown
    as_json = subprocess.run([*jobctl, "--json"], check=True, capture_output=True, text=True).stdout
    assert json.loads(as_json)["progress"]["percent"] == 40.0
    client.cancel(job)
    assert client.wait(job, timeout_s=PATIENCE_S).reason is Reason.CANCELLED


def test_the_last_word_of_a_job_is_kept_and_none_of_it_is_output(client: Client) -> None:
    script = 'for i in 1 2 3 4 5; do echo "progress $i"; done >&3; echo "progress 100 done" >&3; echo out'
    result = client.run(shell_job(script), timeout_s=PATIENCE_S)
    assert (result.state, result.stdout.text, result.stderr.text) == (JobState.COMPLETED, "out\n", "")
    progress = client.get(result.id).progress
    assert progress is not None
    assert (progress.percent, progress.message) == (100.0, "done")


def test_a_silent_job_that_was_to_beat_ends_as_a_timeout(client: Client) -> None:
    silent = client.submit(shell_job(["sleep", "1000"], heartbeat_s=0.4)).job.id
    script = "for i in 1 2 3 4 5 6 7 8; do echo heartbeat >&3; sleep 0.1; done"
    beating = client.submit(shell_job(script, heartbeat_s=0.5)).job.id
    ended = client.wait(silent, timeout_s=PATIENCE_S)
    assert (ended.state, ended.reason, ended.message) == (JobState.FAILED, Reason.TIMEOUT, "no heartbeat for 0.4 s")
    assert client.wait(beating, timeout_s=PATIENCE_S).state is JobState.COMPLETED


def test_what_a_former_attempt_said_tells_nothing_of_the_next(client: Client) -> None:
    script = (
        'if [ $JOBS_ATTEMPT = 1 ]; then echo "progress 90" >&3; exit 1; fi; echo ready; while :; do sleep 0.05; done'
    )
    job = client.submit(shell_job(script, retry=Retry(max_attempts=2, delay_s=0.01), grace_s=0.0)).job.id
    for piece in client.logs(job, follow=True):
        if "ready" in (piece.data.text or ""):
            break
    detail = client.get(job)
    assert (detail.job.attempt, detail.progress) == (2, None)
    client.cancel(job)
