"""Jobs of type blob on three real nodes, each with a worker of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import JobState, Requires
from jobs.client.blobjobs import blob_job
from jobs.client.failures import OperationFailed
from jobs.protocol.model import AddFrom, BlobAdd
from jobs.testing import EmbeddedCluster
from tests.support.waiting import until

SIZE_BYTES = 1 << 29


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    (tmp_path / "place").mkdir()
    made = EmbeddedCluster(tmp_path / "cluster", 0, types=("blob",))
    for name in ("n1", "n2", "n3"):
        labels = f'{{"on": "{name}"}}'
        allowed = f'["{tmp_path}/place"]'
        made.add(name, env={"JOBS_WORKERS__BLOB__LABELS": labels, "JOBS_WORKERS__BLOB__ALLOW_FILES": allowed})
    with made:
        yield made


def on(name: str) -> Requires:
    return Requires(labels={"on": name})


def test_a_blob_is_fetched_and_replicated_where_it_is_asked_for(cluster: EmbeddedCluster) -> None:
    data = bytes(range(256)) * 10_000
    with cluster.nodes["n1"].client() as client:
        blob = client.blobs.put(data, replicas=1, tag="data").hash
        assert client.blobs.stat(blob).nodes == ["n1"]
        fetched = client.blobs.fetch(blob, requires=on("n2"))
        assert ("n1", len(data)) in {(peer.node, peer.bytes) for peer in fetched.peers}
        until(lambda: client.blobs.stat(blob).nodes == ["n1", "n2"])
        replicated = client.blobs.replicate(blob, nodes=["n3"], requires=on("n1"))
        assert "n3" in {peer.node for peer in replicated.peers}
        until(lambda: client.blobs.stat(blob).nodes == ["n1", "n2", "n3"])
        assert client.blobs.verify(blob).blobs == 3
        with pytest.raises(OperationFailed, match=rf"fetch of {blob} on node n2: .*nobody"):
            client.blobs.fetch(blob, providers=["nobody"], requires=on("n2"))


@pytest.mark.slow
def test_an_operation_names_the_nodes_that_it_did_not_reach(cluster: EmbeddedCluster) -> None:
    with cluster.nodes["n1"].client() as client:
        blob = client.blobs.put(b"for three", replicas=1, tag="data").hash
        cluster.nodes["n3"].kill()
        with pytest.raises(OperationFailed, match=rf"replicate of {blob} on node n1: .*n3"):
            client.blobs.replicate(blob, replicas=3, requires=on("n1"), timeout_s=60)
        cluster.nodes["n3"].start()
        # The leader goes on by itself.
        until(lambda: len(client.blobs.stat(blob).nodes) == 3)


def test_an_operation_outlives_the_leader(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    path = tmp_path / "place" / "large"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    leader = cluster.leader()
    name, follower = next((name, node) for name, node in cluster.nodes.items() if node is not leader)
    with follower.client() as client:
        wanted = blob_job(BlobAdd(source=AddFrom(file=str(path)), replicas=1, tag="large"), requires=on(name))
        job = client.submit(wanted).job.id
        until(lambda: client.get(job).job.state is not JobState.PENDING)
        leader.kill()
        result = client.result(job, timeout_s=90)
        assert result.state is JobState.COMPLETED, result
        assert result.execution is not None
        assert (result.execution.attempt, result.execution.node) == (1, name)
        assert result.blob is not None
        assert client.blobs.stat(result.blob.hash or "").size_bytes == SIZE_BYTES
