"""Queries on any node of a cluster: what they see, and what they write when the leader is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from jobs import Client, sql_job
from jobs.protocol.model import JobState, Requires, Retry
from jobs.testing import EmbeddedCluster

INSERTS = 12


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    env = {"JOBS_WORKERS__SQL__SLOTS": "1", "JOBS_WORKERS__SQL__THREADS": "1"}
    with EmbeddedCluster(tmp_path_factory.mktemp("cluster"), 3, types=("sql",), env=env) as made:
        yield made


def on(name: str) -> Requires:
    """Only the worker of this node."""
    return Requires(labels={"node": name})


@pytest.fixture
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """A cluster whose workers can be asked for by their node."""
    made = EmbeddedCluster(tmp_path_factory.mktemp("labelled"), 0, types=("sql",))
    for number in (1, 2, 3):
        env = {"JOBS_WORKERS__SQL__LABELS": f'{{"node": "n{number}"}}', "JOBS_WORKERS__SQL__SLOTS": "1"}
        made.add(f"n{number}", env=env)
    with made:
        yield made


def test_a_query_on_a_follower_sees_what_was_acknowledged_anywhere(labelled: EmbeddedCluster) -> None:
    leader = labelled.leader()
    followers = [name for name, node in labelled.nodes.items() if node is not leader]
    with leader.client() as client:
        for number in range(15):
            for name in (*followers, next(name for name, node in labelled.nodes.items() if node is leader)):
                client.kv.put("/data/seen", f"{number} {name}")
                found = client.sql("SELECT value FROM kv WHERE key = '/data/seen'", requires=on(name))
                assert found.rows() == [{"value": f"{number} {name}".encode()}]
                assert found.result.execution is not None
                assert found.result.execution.node == name
    with labelled.nodes[followers[0]].client() as client:
        assert client.sql("SELECT count(*) AS n FROM workers").rows() == [{"n": 3}]


def test_inserts_are_written_once_when_the_leader_is_killed(cluster: EmbeddedCluster) -> None:
    with cluster.client() as client:
        client.sql("CREATE EXTERNAL TABLE once (n BIGINT) STORED AS JSON LOCATION '/data/once/'")
    leader = cluster.leader()
    survivor = next(node for node in cluster.nodes.values() if node is not leader)
    ended: list[tuple[int, JobState]] = []
    halfway = threading.Event()

    def insert() -> None:
        with Client(str(survivor.socket), patience_s=60) as client:
            for number in range(INSERTS):
                job = sql_job(
                    "INSERT INTO once VALUES ($1)", parameters=[number], retry=Retry(max_attempts=20, delay_s=0.1)
                )
                made = client.submit(job).job.id
                ended.append((number, client.wait(made, timeout_s=60).state))
                if number == INSERTS // 3:
                    halfway.set()

    thread = threading.Thread(target=insert)
    thread.start()
    assert halfway.wait(60)
    leader.kill()
    thread.join(120)
    assert not thread.is_alive()
    done = [number for number, state in ended if state is JobState.COMPLETED]
    assert len(ended) == INSERTS
    with Client(str(survivor.socket), patience_s=60) as client:
        rows = sorted(row["n"] for row in client.sql("SELECT n FROM once", retry=Retry(max_attempts=5)).rows())
        assert rows == done
        assert len(list(client.audit(action="table.insert"))) == len(done)
