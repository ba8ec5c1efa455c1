"""Operations on blobs whose worker or node is killed under them, and nodes that go away in the middle."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path

import pytest
import uvloop

from jobs import Client, JobState, Reason, Retry
from jobs.client.blobjobs import blob_job
from jobs.protocol.model import AddFrom, BlobAdd, BlobExport, BlobPayload, BlobVerify
from jobs.testing import EmbeddedNode
from tests.support import processes
from tests.support.waiting import until
from tests.support.workerprocess import worker_process

SIZE_BYTES = 1 << 29
"""It takes about a second."""


@pytest.fixture
def source(tmp_path: Path) -> BlobAdd:
    path = tmp_path / "place" / "large"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return BlobAdd(source=AddFrom(file=str(path)), tag="large")


def worker_of(node: EmbeddedNode) -> int:
    (pid,) = processes.children_of(node.pid)
    return pid


def under_way(client: Client, job: str) -> None:
    """Return when it has been begun."""
    until(lambda: client.get(job).job.state is not JobState.PENDING)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drafts(node: EmbeddedNode) -> list[Path]:
    return list((node.directory / "data/blobs/incoming").iterdir())


def test_an_operation_whose_worker_is_killed_is_lost_and_done_by_its_next_life(tmp_path: Path, source: BlobAdd) -> None:
    env = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{tmp_path}/place"]'}
    with EmbeddedNode(tmp_path / "node", types=("blob",), env=env) as node, node.client() as client:
        job = client.submit(blob_job(source, retry=Retry(max_attempts=2, backoff="none"))).job.id
        under_way(client, job)
        os.kill(worker_of(node), signal.SIGKILL)
        result = client.result(job, timeout_s=60)
        assert result.state is JobState.COMPLETED
        assert result.blob is not None
        assert result.blob.bytes == SIZE_BYTES
        assert [attempt.reason for attempt in client.attempts(job)] == [Reason.WORKER_LOST, None]
        until(lambda: not drafts(node))


def test_what_a_killed_worker_has_written_of_a_directory_goes_with_the_next_attempt(
    tmp_path: Path, source: BlobAdd
) -> None:
    env = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{tmp_path}/place"]'}
    place = tmp_path / "place"
    with EmbeddedNode(tmp_path / "node", types=("blob",), env=env) as node, node.client() as client:
        blob = client.blobs.perform(source).hash
        assert blob is not None
        tree = client.blobs.collect({"a": blob, "b/c": blob}, tag="tree").hash
        wanted = BlobExport(hash=tree, file=f"{place}/tree")
        job = client.submit(blob_job(wanted, retry=Retry(max_attempts=2, backoff="none"))).job.id
        until(lambda: any(place.glob(".jobs-*")))
        os.kill(worker_of(node), signal.SIGKILL)
        assert not (place / "tree").exists()
        assert client.result(job, timeout_s=60).state is JobState.COMPLETED
        assert len(client.attempts(job)) == 2
        assert {path.name for path in place.iterdir()} == {"large", "tree"}
        assert digest(place / "tree" / "b" / "c") == digest(place / "large")


@pytest.mark.parametrize("operation", ["add", "export", "verify"])
def test_an_operation_goes_on_when_the_node_is_killed_and_comes_back(
    tmp_path: Path, source: BlobAdd, operation: str
) -> None:
    """The worker is no child of the node here: it outlives it, and has its lease kept by the next one."""

    async def scenario() -> None:
        node = EmbeddedNode(tmp_path / "node", types=(), env={"JOBS_WORKERS__LEASE_S": "30"})
        allowed = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{tmp_path}/place"]'}
        with node:
            async with worker_process(node.directory, worker_type="blob", **allowed):
                await asyncio.to_thread(over_a_restart, node)

    def over_a_restart(node: EmbeddedNode) -> None:
        with node.client() as client:
            job = client.submit(blob_job(wanted(client))).job.id
            under_way(client, job)
            node.kill()
            killed_ms = time.time_ns() // 1_000_000
            node.start()
            result = client.result(job, timeout_s=60)
        assert result.state is JobState.COMPLETED, result
        assert result.blob is not None
        assert (result.blob.operation, result.blob.bytes) == (operation, SIZE_BYTES)
        assert result.execution is not None
        assert result.execution.attempt == 1, "the operation was begun anew, not the job"
        assert result.execution.finished_ms > killed_ms
        until(lambda: not drafts(node))
        if operation == "export":
            assert digest(tmp_path / "place" / "out") == digest(tmp_path / "place" / "large")

    def wanted(client: Client) -> BlobPayload:
        if operation == "add":
            return source
        blob = client.blobs.perform(source).hash
        assert blob is not None
        return BlobVerify(hash=blob) if operation == "verify" else BlobExport(hash=blob, file=f"{tmp_path}/place/out")

    uvloop.run(scenario())


def test_an_operation_ends_with_its_workers_lease(tmp_path: Path, source: BlobAdd) -> None:
    """A node that stays away does not leave a worker that asks for ever."""

    async def scenario() -> None:
        node = EmbeddedNode(tmp_path / "node", types=(), env={"JOBS_WORKERS__LEASE_S": "2"})
        allowed = {"JOBS_WORKERS__BLOB__ALLOW_FILES": f'["{tmp_path}/place"]'}
        with node:
            async with worker_process(node.directory, worker_type="blob", **allowed) as worker:
                await asyncio.to_thread(past_the_lease, node, worker.log)

    def past_the_lease(node: EmbeddedNode, log: Path) -> None:
        with node.client() as client:
            job = client.submit(blob_job(source)).job.id
            under_way(client, job)
            node.kill()
            until(lambda: "no contact with the node for the time of the lease" in log.read_text())
            until(lambda: "worker_lost" in log.read_text())
            node.start()
            ended = client.wait(job, 60)
        assert (ended.state, ended.reason) == (JobState.FAILED, Reason.WORKER_LOST)

    uvloop.run(scenario())
