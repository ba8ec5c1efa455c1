"""Jobs of type replication through real nodes and workers: by both clients, and while workers and nodes come and go."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvloop

from jobs import AsyncClient, Client, JobState, Reason, ReplicationSync, ReplicationVerify, replication_job
from jobs.client.failures import OperationFailed
from jobs.client.requests import change
from jobs.errors import Forbidden
from jobs.protocol.model import JobSubmit, Progress, ReplicationPerform
from jobs.testing import EmbeddedNode
from tests.support import processes
from tests.support.plane import ADMIN, ALICE, Plane
from tests.support.waiting import until
from tests.support.workerprocess import worker_process

LIVE = ReplicationSync(name="live", prefix="/data/a/", target_prefix="/data/b/", continuous=True)


def put(client: Client, *names: str) -> None:
    for name in names:
        client.kv.put(f"/data/a/{name}", f"value of {name}")


def names(client: Client, prefix: str = "/data/b/") -> set[str]:
    return {pair.key.removeprefix(prefix) for pair in client.kv.scan(prefix)}


def test_both_clients_bring_over_and_compare(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", types=("replication",)) as node, node.client() as client:
        put(client, "1", "2", "3")
        differing = client.replication.verify(prefix="/data/a/", target_prefix="/data/b/")
        assert sum(one.source_rows - one.target_rows for one in differing.differences) == 3
        told: list[Progress] = []
        done = client.replication.sync("copy", prefix="/data/a/", target_prefix="/data/b/", on_progress=told.append)
        assert (done.operation, done.rows, done.deleted) == ("sync", 3, 0)
        assert names(client) == {"1", "2", "3"}
        client.kv.delete("/data/a/2")

        async def again() -> None:
            async with AsyncClient(str(node.socket)) as other:
                done = await other.replication.sync("copy", prefix="/data/a/", target_prefix="/data/b/")
                assert (done.rows, done.deleted) == (0, 1)
                same = await other.replication.verify(prefix="/data/a/", target_prefix="/data/b/")
                assert same.differences == []
                assert [one.name for one in await other.replication.syncs()] == ["copy"]
                assert [one async for one in other.replication.conflicts("copy")] == []
                await other.replication.forget("copy")
                assert await other.replication.links() == []

        asyncio.run(again())
        assert names(client) == {"1", "3"}
        with pytest.raises(OperationFailed, match=r"sync far on node .*: there is no link 'nowhere'") as failure:
            client.replication.sync("far", source="nowhere", prefix="/data/a/")
        assert failure.value.reason is Reason.REPLICATION_ERROR


def test_only_workers_have_it_carried_out_and_only_administrators_submit_it(tmp_path: Path) -> None:
    verify = ReplicationVerify(prefix="/data/a/", target_prefix="/data/b/")
    with EmbeddedNode(tmp_path / "node", types=()) as node, node.client() as client:
        job = client.submit(replication_job(verify)).job.id
        with pytest.raises(Forbidden, match="only workers"):
            client.send(change("POST", "/v1/replication:perform", ReplicationPerform(job=job, payload=verify)))

    async def scenario() -> None:
        async with Plane(tmp_path / "plane") as made:
            wanted: list[JobSubmit] = [replication_job(verify)]
            with pytest.raises(Forbidden, match="only administrators"):
                await made.control.submit(ALICE, wanted)
            await made.control.submit(ADMIN, wanted)
            for ask in (made.control.replication.links, made.control.replication.syncs):
                with pytest.raises(Forbidden):
                    await ask(ALICE)

    uvloop.run(scenario())


def test_a_continuous_sync_outlives_its_worker(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", types=("replication",)) as node, node.client() as client:
        put(client, "1")
        job = client.submit(replication_job(LIVE)).job.id
        until(lambda: names(client) == {"1"})
        (worker,) = processes.children_of(node.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: client.attempts(job)[0].reason is Reason.WORKER_LOST)
        put(client, "2")
        until(lambda: names(client) == {"1", "2"})
        assert client.get(job).job.state is JobState.RUNNING
        assert client.get(job).job.attempt == 2


def test_a_worker_that_is_stopped_does_not_wait_for_what_has_no_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        with EmbeddedNode(tmp_path / "node", types=()) as node:
            async with worker_process(node.directory, worker_type="replication") as worker:
                job = await asyncio.to_thread(begun, node)
                worker.process.terminate()
                assert await worker.exit_code() == 0, "long before the 60 seconds that others have to finish"
            async with worker_process(node.directory, worker_type="replication"):
                await asyncio.to_thread(gone_on, node, job)

    def begun(node: EmbeddedNode) -> str:
        with node.client() as client:
            put(client, "1")
            job = client.submit(replication_job(LIVE)).job.id
            until(lambda: names(client) == {"1"})
            return job

    def gone_on(node: EmbeddedNode, job: str) -> None:
        with node.client() as client:
            put(client, "2")
            until(lambda: names(client) == {"1", "2"})
            first = client.attempts(job)[0]
            assert (first.reason, first.message) == (Reason.WORKER_LOST, "its worker was stopped")

    uvloop.run(scenario())


def test_a_continuous_sync_goes_on_when_its_node_is_killed_and_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        with EmbeddedNode(tmp_path / "node", types=(), env={"JOBS_WORKERS__LEASE_S": "30"}) as node:
            async with worker_process(node.directory, worker_type="replication"):
                await asyncio.to_thread(over_a_restart, node)

    def over_a_restart(node: EmbeddedNode) -> None:
        with node.client() as client:
            put(client, "1")
            job = client.submit(replication_job(LIVE)).job.id
            until(lambda: names(client) == {"1"})
            node.kill()
            node.start()
            put(client, "2")
            until(lambda: names(client) == {"1", "2"})
            assert len(client.attempts(job)) == 1, "the operation was begun anew, not the job"
            client.cancel(job)
            assert client.wait(job, timeout_s=30).reason is Reason.CANCELLED

    uvloop.run(scenario())
