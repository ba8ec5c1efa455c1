"""A cluster of real nodes and workers under clients of every node: killed leaders, rolling restarts, lost workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs import Client, JobState, Retry, shell_job
from jobs.errors import JobsError
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support import processes, waiting

PATIENCE_S = 60.0
until = partial(waiting.until, timeout_s=PATIENCE_S)
AGAIN = Retry(max_attempts=5, delay_s=0)
"""A job that was on a killed node is run elsewhere."""
ELECTIONS = {
    "JOBS_RAFT__HEARTBEAT_S": "0.1",
    "JOBS_RAFT__ELECTION_MIN_S": "0.5",
    "JOBS_RAFT__ELECTION_MAX_S": "1.0",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path, env=ELECTIONS) as made:
        for node in made.nodes.values():
            until(lambda node=node: len(ready_workers(node)) == 3)  # type: ignore[misc]
        yield made


def ready_workers(node: EmbeddedNode) -> list[str]:
    with node.client() as client:
        return [worker.node for worker in client.workers() if worker.state == "ready"]


class Load(threading.Thread):
    """A client of one node that puts, reads and runs jobs until it is told to stop, and keeps what was acknowledged."""

    def __init__(self, node: EmbeddedNode, number: int) -> None:
        super().__init__(daemon=True)
        self._socket = str(node.socket)
        self._number = number
        self._over = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.jobs: list[str] = []
        self.failures: list[str] = []
        self.done = 0
        self.start()

    def run(self) -> None:
        with Client(self._socket, patience_s=PATIENCE_S) as client:
            while not self._over.is_set():
                key, text = f"/data/{self._number}/{self.done % 7}", str(self.done)
                try:
                    client.kv.put(key, text)
                    self.acknowledged[key] = text
                    found = client.kv.get(key)
                    if found is None or found.value.text != text:
                        self.failures.append(f"{key} is {found}, {text} was acknowledged")
                    self.jobs.append(client.submit(shell_job(["echo", text], retry=AGAIN)).job.id)
                except JobsError as error:
                    self.failures.append(repr(error))
                self.done += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def check(cluster: EmbeddedCluster, loads: list[Load]) -> None:
    """Everything that was acknowledged is there, by way of every node, and every job was run."""
    for load in loads:
        load.stop()
        assert load.failures == []
    for node in cluster.nodes.values():
        with node.client() as client:
            for load in loads:
                for key, text in load.acknowledged.items():
                    found = client.kv.get(key)
                    assert found is not None
                    assert found.value.text == text
    with cluster.client() as client:
        for load in loads:
            for job in load.jobs:
                assert client.wait(job, timeout_s=PATIENCE_S).state is JobState.COMPLETED


def go_on(loads: list[Load], count: int = 20) -> None:
    """Return when every client has done so much more."""
    before = [load.done for load in loads]
    until(lambda: all(load.done >= was + count for load, was in zip(loads, before, strict=True)))


def test_any_node_takes_jobs_and_its_worker_runs_them(cluster: EmbeddedCluster) -> None:
    for name, node in cluster.nodes.items():
        with node.client() as client:
            job = client.submit(shell_job(["echo", name])).job.id
            pieces = b"".join(bytes(event.data) for event in client.logs(job, follow=True))
            assert pieces == f"{name}\n".encode()
            assert client.wait(job, timeout_s=PATIENCE_S).state is JobState.COMPLETED
    ran = set()
    with cluster.client() as client:
        jobs = [client.submit(shell_job(["sleep", "0.5"])).job.id for _ in range(12)]
        for job in jobs:
            client.wait(job, timeout_s=PATIENCE_S)
            execution = client.result(job).execution
            assert execution is not None
            ran.add(execution.node)
    assert ran == set(cluster.nodes)


@pytest.mark.slow
def test_a_rolling_restart_under_load_is_hidden_by_the_clients(cluster: EmbeddedCluster) -> None:
    loads = [Load(node, number) for number, node in enumerate(cluster.nodes.values())]
    for node in list(cluster.nodes.values()):
        go_on(loads, 10)
        assert node.stop() == 0
        node.start(wait=False)
        until(lambda: cluster.leader() is not None)
        until(lambda node=node: len(ready_workers(node)) == 3)  # type: ignore[misc]
    go_on(loads, 10)
    check(cluster, loads)


def test_leaders_are_killed_under_load_and_nothing_acknowledged_is_lost(cluster: EmbeddedCluster) -> None:
    loads = [Load(node, number) for number, node in enumerate(cluster.nodes.values())]
    for _ in range(2):
        go_on(loads, 10)
        leader = cluster.leader()
        leader.kill()
        leader.start(wait=False)
        until(lambda leader=leader: len(ready_workers(leader)) == 3)  # type: ignore[misc]
    go_on(loads, 10)
    check(cluster, loads)


def test_a_killed_worker_of_a_follower_is_lost_at_once_and_its_job_runs_elsewhere(cluster: EmbeddedCluster) -> None:
    """Given jobs that sleep on every node, when the process of a follower's worker is killed, then its jobs are run
    again long before the lease ends (10 s)."""
    marker = "99123456"
    leader = cluster.leader()
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    with follower.client() as client:
        jobs = [
            client.submit(shell_job(["sh", "-c", "sleep $0", marker], retry=Retry(max_attempts=2, delay_s=0))).job.id
            for _ in range(3)
        ]
        until(lambda: all(client.get(job).job.state is JobState.RUNNING for job in jobs))
        (worker,) = processes.children_of(follower.pid)
        os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        lost = [worker.id for worker in client.workers() if worker.node == follower.directory.name]
        until(lambda: all(client.get(job).job.worker not in lost or client.get(job).job.attempt == 2 for job in jobs))
        assert time.monotonic() - began < 8.0
        for job in jobs:
            client.cancel(job)
            client.wait(job, timeout_s=PATIENCE_S)
    until(lambda: processes.with_argument(marker) == [])
