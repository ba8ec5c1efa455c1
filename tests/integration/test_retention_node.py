"""Retention of a real node, also one that is killed in the middle of it: whole jobs go, and whole ones stay."""

from __future__ import annotations

import json
import random
import re
import threading
from pathlib import Path

import pytest

from jobs import Client, Retention, shell_job
from jobs._native import Store
from jobs.errors import Gone, LogsGone, NotFound
from jobs.protocol.model import JobState
from jobs.testing import EmbeddedNode
from tests.support.ended import check_whole
from tests.support.jobctl import jobctl

MISSING = "01900000-0000-7000-8000-000000000000"


def metric(client: Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)", client.metrics(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def until_metric(client: Client, name: str, least: float) -> None:
    """Look until a figure of the node is reached; raises AssertionError after 30 s."""
    for _ in range(3_000):
        if metric(client, name) >= least:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{name} is {metric(client, name)} after 30 s, not {least}")


def test_jobs_go_whole_or_not_at_all_however_often_the_node_is_killed(tmp_path: Path) -> None:
    chance = random.Random(7)
    directory = tmp_path / "node"
    with EmbeddedNode(directory) as node, node.client() as client:
        wanted = [shell_job(f"echo {number}; exit {number % 2}", idempotency_key=f"k{number}") for number in range(200)]
        jobs = [made.job.id for made in client.submit_many(wanted)]
        for job in jobs:
            client.wait(job, 60)
    store = Store(str(directory / "data" / "store"))
    assert set(check_whole(store)) == set(jobs)
    store.close()
    # Given a node that may keep 10 of them, when it is killed again and again while it lets the others go
    node = EmbeddedNode(directory, env={"JOBS_RETENTION__MAX_JOBS": "10"})
    left = len(jobs)
    while left > 10:
        node.start()
        with node.client() as client:
            until_metric(client, "jobs_removed_total", min(left - 10, chance.randrange(1, 60)))
        node.kill()
        store = Store(str(directory / "data" / "store"))
        found = check_whole(store)
        store.close()
        assert len(found) < left
        left = len(found)
    # Then those that ended last are there with everything, and the others are told apart from what never was
    with node, node.client() as client:
        kept = {job.id for job in client.list()}
        assert len(kept) == 10
        for job in jobs:
            if job in kept:
                assert bytes(client.result(job).stdout)
            else:
                with pytest.raises(Gone):
                    client.get(job)
        with pytest.raises(NotFound):
            client.get(MISSING)
        gone = next(number for number, job in enumerate(jobs) if job not in kept)
        again = client.submit(shell_job("true", idempotency_key=f"k{gone}"))
        assert again.created
        assert client.wait(again.job.id, 30).state is JobState.COMPLETED


def test_the_command_and_the_client_are_told_what_is_no_longer_kept(client: Client, shared_node: EmbeddedNode) -> None:
    soon = jobctl(shared_node, "submit", "--json", "--keep", "300ms", "--", "echo", "gone")
    bare = jobctl(shared_node, "submit", "--json", "--keep", "1h", "--keep-logs", "200ms", "--", "echo", "gone")
    job, quiet = (json.loads(done.stdout)["id"] for done in (soon, bare))
    assert client.wait(quiet, 30).state is JobState.COMPLETED
    before = metric(client, "jobs_outputs_removed_total")
    while not client.result(quiet).logs_gone:
        until_metric(client, "jobs_outputs_removed_total", before)
    with pytest.raises(LogsGone):
        list(client.logs(quiet))
    refused = jobctl(shared_node, "logs", "-f", quiet)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"no longer kept" in refused.stderr
    assert b"no longer kept" in jobctl(shared_node, "result", quiet).stdout
    removed = metric(client, "jobs_removed_total")
    while job in {found.id for found in client.list(page_size=1_000)}:
        until_metric(client, "jobs_removed_total", removed)
    with pytest.raises(Gone):
        client.get(job)
    assert b"no longer kept" in jobctl(shared_node, "status", job).stderr
    wrong = jobctl(shared_node, "submit", "--keep", "1s", "--keep-logs", "2s", "--", "true")
    assert (wrong.returncode, wrong.stdout) == (65, b"")
    assert b"retention.logs_s" in wrong.stderr
    assert client.shell("true", retention=Retention(keep_s=60)).created
