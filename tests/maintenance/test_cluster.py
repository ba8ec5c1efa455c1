"""Operations of maintenance as jobs of a cluster of three real nodes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator

import pytest

from jobs import Client, JobState
from jobs._native import Store
from jobs.client.maintenance import maintenance_job
from jobs.protocol.model import Content, KvOp, KvPut, MaintenanceResult, MaintenanceVerify
from jobs.store import Put, Txn, encode_command
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.waiting import until

ENV = {"JOBS_MAINTENANCE__DISK_WARNING_PERCENT": "99.9", "JOBS_BLOBS__MIN_FREE_BYTES": "0"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(tmp_path_factory.mktemp("cluster"), 3, env=ENV, types=("maintenance",))
    with made:
        yield made


@pytest.fixture
def client(cluster: EmbeddedCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


def fill(client: Client, count: int, *, size: int = 100, times: int = 1, prefix: str = "/data/k") -> None:
    for turn in range(times):
        for number in range(count):
            client.kv.put(f"{prefix}{number:05d}", f"{turn}".ljust(size, "."))


def nodes(result: MaintenanceResult) -> set[str]:
    return {one.node for one in result.nodes}


def test_health_looks_at_every_node(client: Client) -> None:
    done = client.maintenance.health()
    assert {one.node for one in done.findings} == {"n1", "n2", "n3"}
    assert done.status != "failing", done.findings
    checks = {one.check for one in done.findings}
    assert {"disk", "fsync", "clock", "store", "keys", "lag", "quorum"} <= checks
    assert {one.node for one in client.maintenance.health(nodes=["n2"]).findings} == {"n2"}


def test_everything_is_found_whole_and_the_same_on_all(client: Client) -> None:
    fill(client, 300)
    client.maintenance.compact(parts=["log"])
    done = client.maintenance.verify()
    assert (done.status, done.findings) == ("ok", [])
    assert nodes(done) == {"n1", "n2", "n3"}
    assert done.counts["replicas"] >= 300
    assert done.counts["store"] >= 900
    assert done.counts["snapshots"] >= 900


def test_history_and_logs_of_all_nodes_are_given_back(cluster: EmbeddedCluster, client: Client) -> None:
    fill(client, 50, times=20, size=2_000)
    dry = client.maintenance.compact(parts=["history", "log"], history_age_s=0, history_events=0, dry_run=True)
    assert dry.counts["events"] >= 1_000
    done = client.maintenance.compact(parts=["history", "log"], history_age_s=0, history_events=0)
    assert done.counts["events"] >= 900
    assert nodes(done) == {"n1", "n2", "n3"}
    assert all(one.freed_bytes > 1_000_000 for one in done.nodes), done.nodes
    assert client.kv.get("/data/k00000") is not None


def test_who_reads_page_by_page_on_any_node_comes_to_the_end(cluster: EmbeddedCluster, client: Client) -> None:
    for first in range(0, 2_500, 500):
        ops = [KvOp(put=KvPut(f"/data/many{number:05d}", Content(text="x"))) for number in range(first, first + 500)]
        client.kv.txn(then=ops)
    follower = next(node for node in cluster.running() if node is not cluster.leader())
    with follower.client() as reader:
        until(lambda: reader.kv.get("/data/many02499", consistency="stale") is not None)
        rows = reader.kv.scan("/data/many", consistency="stale")
        next(rows)
        # When all of it is changed, and history goes as far as it can
        for first in range(0, 2_500, 500):
            ops = [KvOp(put=KvPut(f"/data/many{n:05d}", Content(text="y"))) for n in range(first, first + 500)]
            client.kv.txn(then=ops)
        done = client.maintenance.compact(parts=["history"], history_age_s=0, history_events=0)
        # Then the reader still sees what there was
        assert [row.value.text for row in rows] == ["x"] * 2_499
    assert any(f"a reader on {follower.directory.name}" in one.outcome for one in done.nodes)


def test_the_files_of_all_nodes_become_smaller(cluster: EmbeddedCluster, client: Client) -> None:
    for turn in range(8):
        ops = [KvOp(put=KvPut(f"/data/large{number:05d}", Content(text=f"{turn}" * 10_000))) for number in range(400)]
        client.kv.txn(then=ops)
    client.kv.delete("/data/large", prefix=True)
    done = client.maintenance.compact(history_age_s=0, history_events=0)
    assert done.counts["file_bytes"] > 3 * 4_000_000
    assert nodes(done) == {"n1", "n2", "n3"}
    assert client.maintenance.verify().status == "ok"


def test_usage_is_told_by_a_node_that_does_not_lead(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    follower = next(node for node in cluster.running() if node is not leader)
    lines: list[str] = []
    with follower.client() as client:
        done = client.maintenance.metrics(on_line=lines.append)
    assert done.counts["jobs"] >= 1
    assert len(lines) == done.counts["lines"] >= 1


def test_a_node_that_is_not_reached_is_told_of_and_keeps_nobody_from_the_others(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    lost = next(node for node in cluster.running() if node is not leader)
    name = lost.directory.name
    lost.kill()
    try:
        with leader.client() as client:
            health = client.maintenance.health()
            assert ("failing", "reached") in [
                (one.status, one.check) for one in health.findings if one.node == name and one.advice
            ]
            done = client.maintenance.compact(parts=["log"])
            assert [one.node for one in done.nodes if one.outcome.startswith("log: ")] == [name]
            assert done.status == "warning"
    finally:
        lost.start()


def test_a_job_goes_on_where_the_node_was_killed(cluster: EmbeddedCluster) -> None:
    """Whatever node the job is at: the claim says how far it is."""
    with cluster.client() as client:
        fill(client, 200, size=1_000)
        job = client.submit(maintenance_job(MaintenanceVerify(parts=["log", "store", "replicas"]))).job.id
        until(lambda: client.get(job).job.state is not JobState.PENDING)
        worker = client.get(job).job.worker or ""
    name = next((one for one in cluster.nodes if one in worker), "n1")
    cluster.nodes[name].kill()
    cluster.nodes[name].start()
    with cluster.client() as client:
        ended = client.wait(job, timeout_s=60)
        assert ended.state is JobState.COMPLETED, ended
        result = client.result(job).maintenance
        assert result is not None
        assert result.status == "ok"
        assert result.counts["replicas"] >= 200


def test_another_leader_in_the_middle_changes_nothing(cluster: EmbeddedCluster, client: Client) -> None:
    done: list[MaintenanceResult] = []

    def work() -> None:
        with cluster.client() as own:
            for _ in range(4):
                done.append(own.maintenance.verify(parts=["log", "store", "replicas"]))

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        leader = cluster.leader().directory.name
        client.cluster.transfer(next(name for name in cluster.nodes if name != leader))
    thread.join(120)
    assert [one.status for one in done] == ["ok"] * 4


def test_two_of_a_kind_are_done_one_after_the_other(client: Client) -> None:
    done: list[MaintenanceResult] = []
    threads = [threading.Thread(target=lambda: done.append(client.maintenance.verify(parts=["store"]))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.status for one in done] == ["ok", "ok"]


def test_a_replica_that_differs_is_named_with_the_first_row_that_does(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    odd = next(node for node in cluster.running() if node is not leader)
    make_another_of(odd, cluster)
    with cluster.client() as client:
        done = client.maintenance.verify(parts=["replicas"])
    assert done.status == "failing"
    (found,) = done.findings
    assert (found.node, found.check) == (odd.directory.name, "replicas")
    assert "'/a'" in found.value
    assert found.value.count("has nothing") == 2
    assert "join anew" in found.advice


def make_another_of(node: EmbeddedNode, cluster: EmbeddedCluster) -> None:
    """Let a node apply something else in place of an entry, as a fault of its state machine would."""
    store, former = node.directory / "data" / "store", node.directory / "former"
    node.stop()
    shutil.copytree(store, former)
    node.start()
    with cluster.client() as client:
        fill(client, 50, prefix="/data/since")
    with node.client() as client:
        until(lambda: client.kv.get("/data/since00049", consistency="stale") is not None)
    node.stop()
    shutil.rmtree(store)
    shutil.copytree(former, store)
    opened = Store(str(store))
    opened.apply([(opened.applied_index + 1, opened.applied_term, encode_command([Txn(then=(Put(b"/a", b"x"),))]))])
    opened.close()
    node.start()
