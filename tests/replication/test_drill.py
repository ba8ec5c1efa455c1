"""The disaster drill: all nodes of a cluster under load are lost, and a new cluster is made of the last backup."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from jobs import Client, JobState, ShellJob, ShellPayload
from jobs.errors import JobsError
from jobs.testing import EmbeddedCluster
from tests.replication.series import opened
from tests.support.waiting import until

WRITERS = 3
BACKUPS = 4


class Acknowledged(Struct):
    """What a client was told, with the time at which it was told."""

    keys: list[tuple[float, str, str]]
    jobs: list[tuple[float, str]]
    results: list[tuple[float, str, str]]


class Load:
    """Clients that put keys and run jobs on all nodes, and note what was acknowledged when."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._noting = threading.Lock()
        self.told = Acknowledged([], [], [])
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(WRITERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, count: int) -> None:
        """Return when so many more results have come."""
        before = len(self.told.results)
        until(lambda: len(self.told.results) >= before + count, timeout_s=60)

    def _run(self, number: int) -> None:
        node = list(self._cluster.nodes.values())[number % len(self._cluster.nodes)]
        with Client(str(node.socket), patience_s=1) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                try:
                    self._step(client, f"{number}.{turn}")
                except JobsError:
                    continue

    def _step(self, client: Client, name: str) -> None:
        key = f"/data/load/{name}"
        client.kv.put(key, name)
        self._note(self.told.keys, key, name)
        job = client.submit(ShellJob(payload=ShellPayload(argv=["echo", name]))).job.id
        self._note(self.told.jobs, job)
        if client.wait(job, timeout_s=30).state is JobState.COMPLETED:
            result = client.result(job)
            assert result.stdout is not None
            self._note(self.told.results, job, result.stdout.text or "")

    def _note(self, where: list[Any], *what: str) -> None:
        with self._noting:
            where.append((time.monotonic(), *what))


@contextmanager
def formed(directory: Path, place: Path) -> Iterator[EmbeddedCluster]:
    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]', "JOBS_BLOBS__GRACE_S": "1"}
    with EmbeddedCluster(directory, env=env, types=("shell", "replication")) as cluster:
        yield cluster


def check_there(client: Client, told: Acknowledged, began_s: float) -> None:
    """Whatever was acknowledged before a time is there as it was told."""
    for at_s, key, value in told.keys:
        if at_s < began_s:
            found = client.kv.get(key)
            assert found is not None, key
            assert found.value.text == value
    for at_s, job in told.jobs:
        if at_s < began_s:
            assert client.get(job).job.id == job
    for at_s, job, text in told.results:
        if at_s < began_s:
            result = client.result(job)
            assert (result.state, result.stdout and result.stdout.text) == (JobState.COMPLETED, text)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_three_nodes_are_lost_and_all_that_was_acknowledged_before_the_backup_is_there(tmp_path: Path) -> None:
    """Given three nodes under load of which backups are made all the while; when all three are killed and their disks
    lost, and a new cluster of three is made of the last backup; then every key, job and result that had been
    acknowledged when that began is there, and the new cluster works on."""
    place = tmp_path / "place"
    place.mkdir()
    series = place / "series"
    with formed(tmp_path / "old", place) as cluster, cluster.client() as client:
        blob = client.blobs.put(b"large output" * 5_000, tag="drill").hash
        with Load(cluster) as load:
            began_s = 0.0
            for _ in range(BACKUPS):
                load.go_on(5)
                began_s = time.monotonic()
                client.replication.backup(directory=str(series), full_every=3)
            load.go_on(5)
            for node in cluster.nodes.values():
                node.kill()
        old = cluster.nodes["n1"].directory
    shutil.rmtree(old.parent)
    told = load.told
    with opened(series) as there:
        assert [name.partition("-")[2] for name in there.names()] == ["full", "incremental", "incremental", "full"]

    env = {"JOBS_WORKERS__REPLICATION__ALLOW_FILES": f'["{place}"]'}
    new = EmbeddedCluster(tmp_path / "new", env=env, types=("shell", "replication"))
    first = new.nodes["n1"]
    command = [sys.executable, "-m", "jobs.node", "--embedded", str(first.directory), "restore", "--yes"]
    done = subprocess.run(
        [*command, "--from", str(series)], capture_output=True, text=True, timeout=60, env=first.environment
    )
    assert done.returncode == 0, done.stderr
    try:
        first.start()
        for node in (new.nodes["n2"], new.nodes["n3"]):
            node.start(wait=False)
            new.join(node)
        with first.client() as client:
            check_there(client, told, began_s)
            # What was acknowledged in time is a part worth the name.
            assert sum(at_s < began_s for at_s, *_ in told.results) > 10
            # Nothing waits for ever: jobs that had not ended end now.
            until(lambda: not list(client.list(state=["pending", "running"], type="shell")), timeout_s=60)
            assert client.blobs.get(blob) == b"large output" * 5_000
            until(lambda: len(client.blobs.stat(blob).nodes) >= 2, timeout_s=60)
            job = client.submit(ShellJob(payload=ShellPayload(argv=["echo", "again"]))).job.id
            assert client.wait(job).state is JobState.COMPLETED
        # The new cluster is another one: it does not go on with the series of the old.
        with first.client() as client, pytest.raises(JobsError, match="has backups of the cluster"):
            client.replication.backup(directory=str(series))
    finally:
        for node in list(new.running()):
            node.kill()
