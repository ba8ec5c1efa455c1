"""Jobs of maintenance whose worker is killed, or that are cancelled, while a node does not answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import Client, MaintenanceVerify, maintenance_job
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobState, Reason
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.waiting import until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    env = {"JOBS_WORKERS__LEASE_S": "2"}
    with EmbeddedCluster(tmp_path_factory.mktemp("faults"), 3, types=("maintenance",), env=env) as made:
        with made.client() as client:
            for number in range(200):
                client.kv.put(f"/data/{number}", "x" * 1_000)
        yield made


def name_of(cluster: EmbeddedCluster, node: EmbeddedNode) -> str:
    return next(name for name, one in cluster.nodes.items() if one is node)


@contextmanager
def silent_follower(cluster: EmbeddedCluster) -> Iterator[str]:
    """Have a follower that is there and says nothing; its own worker is given no jobs. Gives its name."""
    leader = cluster.leader()
    node = next(one for one in cluster.nodes.values() if one is not leader)
    worker = f"maintenance-{name_of(cluster, node)}"
    with leader.client() as client:
        client.drain(worker)
        os.kill(node.pid, signal.SIGSTOP)
        try:
            yield name_of(cluster, node)
        finally:
            os.kill(node.pid, signal.SIGCONT)
            client.undrain(worker)


def worker_of(client: Client, cluster: EmbeddedCluster, job: JobId) -> int:
    """Return the process of the worker that has a job, once one has."""
    until(lambda: client.get(job).job.worker is not None and client.get(job).job.state is JobState.RUNNING)
    worker = str(client.get(job).job.worker)
    node = cluster.nodes[worker.removeprefix("maintenance-")]
    return int(Path(node.directory, f"worker-{worker}.lock").read_text())


def test_another_worker_goes_on_with_what_a_killed_one_had(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    with leader.client() as client:
        with silent_follower(cluster) as follower:
            job = client.submit(maintenance_job(MaintenanceVerify(parts=["log", "store"], nodes=[follower]))).job.id
            os.kill(worker_of(client, cluster, job), signal.SIGKILL)
            until(lambda: client.get(job).job.attempt == 2 and client.get(job).job.state is JobState.RUNNING)
        result = client.result(job, timeout_s=60)
        assert (result.state, result.message) == (JobState.COMPLETED, None)
        assert result.maintenance is not None
        assert [node.node for node in result.maintenance.nodes] == [follower]
        assert [attempt.reason for attempt in client.attempts(job)] == [Reason.WORKER_LOST, None]


def test_one_that_is_cancelled_ends_at_once_and_the_next_begins(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    with leader.client() as client, silent_follower(cluster) as follower:
        first = client.submit(maintenance_job(MaintenanceVerify(parts=["store"], nodes=[follower]))).job.id
        worker_of(client, cluster, first)
        here = MaintenanceVerify(parts=["store"], nodes=[name_of(cluster, leader)])
        second = client.submit(maintenance_job(here)).job.id
        assert client.get(second).job.state is JobState.PENDING
        client.cancel(first)
        assert client.result(first, timeout_s=30).reason is Reason.CANCELLED
        done = client.result(second, timeout_s=30)
        assert (done.state, done.message) == (JobState.COMPLETED, None)
