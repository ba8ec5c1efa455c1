"""Syncs between two clusters that know nothing of each other but a link, as real processes on real disks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.client import Client, replication_job
from jobs.content import content_of
from jobs.errors import JobsError
from jobs.protocol.model import JobState, KvDelete, KvOp, KvPut, LinkScopes, ReplicationSync, Throttle
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.waiting import until

ALL = LinkScopes(read=["/data/"], write=["/data/"], read_tags=[""], write_tags=[""])
SHORT = {"JOBS_STORE__HISTORY_EVENTS": "10000"}
"""So little history that it is soon forgotten."""
KEYS_A_WRITE = 10


def linked(one: EmbeddedNode, other: EmbeddedNode) -> None:
    """Make links both ways: each may do everything at the other."""
    with one.client() as here, other.client() as there:
        invitation = here.replication.invitation().invitation
        here.replication.link("there", there.replication.invitation().invitation, ALL)
        there.replication.link("here", invitation, ALL)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedNode, EmbeddedNode]]:
    """This cluster, which has a worker, and the other one."""
    with (
        EmbeddedCluster(tmp_path_factory.mktemp("here"), 1, types=("replication",)) as here,
        EmbeddedCluster(tmp_path_factory.mktemp("there"), 1, types=()) as there,
    ):
        nodes = here.nodes["n1"], there.nodes["n1"]
        linked(*nodes)
        yield nodes


@pytest.fixture
def clients(two: tuple[EmbeddedNode, EmbeddedNode]) -> Iterator[tuple[Client, Client]]:
    with two[0].client() as here, two[1].client() as there:
        yield here, there


def values(client: Client, prefix: str) -> dict[str, bytes]:
    return {pair.key.removeprefix(prefix): bytes(pair.value) for pair in client.kv.scan(prefix)}


def tags(client: Client, prefix: str) -> dict[str, str]:
    return {tag.name: tag.hash for tag in client.blobs.tags(prefix)}


def test_keys_come_from_another_cluster_and_go_to_it(clients: tuple[Client, Client]) -> None:
    here, there = clients
    for number in range(300):
        there.kv.put(f"/data/a/{number:04d}", f"value {number}")
    pulled = here.replication.sync("pull", source="there", prefix="/data/a/", target_prefix="/data/b/")
    assert (pulled.rows, pulled.conflicts) == (300, 0)
    assert values(here, "/data/b/") == values(there, "/data/a/")
    pushed = here.replication.sync("push", target="there", prefix="/data/b/", target_prefix="/data/c/")
    assert pushed.rows == 300
    assert values(there, "/data/c/") == values(there, "/data/a/")
    there.kv.delete("/data/a/0007")
    there.kv.put("/data/a/0008", "changed")
    again = here.replication.sync("pull", source="there", prefix="/data/a/", target_prefix="/data/b/")
    assert (again.rows, again.deleted, again.snapshots) == (1, 1, 0)
    same = here.replication.verify(source="there", prefix="/data/a/", target_prefix="/data/b/")
    assert (same.rows, same.differences) == (299, [])
    differing = here.replication.verify(target="there", prefix="/data/b/", target_prefix="/data/c/")
    assert [one.first for one in differing.differences] == ["/data/b/0007"]
    with pytest.raises(JobsError, match="comes from"):
        here.replication.sync("circle", target="there", prefix="/data/b/", target_prefix="/data/a/")


def test_tags_come_with_their_blobs_and_go_with_them(clients: tuple[Client, Client], tmp_path: Path) -> None:
    here, there = clients
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "one").write_bytes(b"1" * 100_000)
    (tree / "below" / "two").write_bytes(b"2" * 2_000_000)
    there.blobs.put(b"small", tag="m.small")
    there.blobs.put_directory(tree, tag="m.tree")
    there.blobs.put(b"other", tag="other")
    done = here.replication.sync("models", source="there", tags="m.")
    assert (done.rows, done.conflicts) == (2, 0)
    assert done.bytes > 2_100_000
    assert tags(here, "m.") == tags(there, "m.")
    assert tags(here, "other") == {}
    assert here.blobs.get(tags(here, "m.")["m.small"]) == b"small"
    here.blobs.save_directory(tags(here, "m.")["m.tree"], tmp_path / "saved")
    assert (tmp_path / "saved" / "below" / "two").read_bytes() == b"2" * 2_000_000
    there.blobs.put(b"smaller", tag="m.small")
    there.blobs.unpin("m.tree")
    again = here.replication.sync("models", source="there", tags="m.")
    assert (again.rows, again.deleted, again.conflicts) == (1, 1, 0)
    assert tags(here, "m.") == tags(there, "m.")
    here.blobs.put(b"mine", tag="m.small")
    there.blobs.put(b"theirs", tag="m.small")
    third = here.replication.sync("models", source="there", tags="m.")
    assert third.conflicts == 1
    assert [one.key for one in here.replication.conflicts("models")] == ["m.small"]
    assert here.replication.verify(source="there", tags="m.").differences == []


class Writer(threading.Thread):
    """Writes and deletes all the while at one cluster, and goes on when that is away for a time."""

    def __init__(self, node: EmbeddedNode, prefix: str) -> None:
        super().__init__()
        self._node = node
        self._prefix = prefix
        self.ended = threading.Event()
        self.written = 0

    def wait_for(self, count: int) -> None:
        """Return once so much more has been written."""
        wanted = self.written + count
        until(lambda: self.written >= wanted, 120.0, "nothing can be written")

    def _op(self, number: int) -> KvOp:
        key = f"{self._prefix}{number * 7 % 700:04d}"
        return (
            KvOp(delete=KvDelete(key=key))
            if number % 5 == 0
            else KvOp(put=KvPut(key=key, value=content_of(b"%d" % number)))
        )

    def run(self) -> None:
        with self._node.client() as client:
            while not self.ended.is_set():
                try:
                    client.kv.txn(then=[self._op(self.written * 3 + at) for at in range(KEYS_A_WRITE)])
                    self.written += 1
                except JobsError:
                    self.ended.wait(0.05)


@pytest.mark.slow
def test_a_sync_outlives_kills_of_either_side_and_of_history(tmp_path: Path) -> None:
    with (
        EmbeddedCluster(tmp_path / "here", 1, types=("replication",)) as here_cluster,
        EmbeddedCluster(tmp_path / "there", 1, types=(), env=SHORT) as there_cluster,
    ):
        here, there = here_cluster.nodes["n1"], there_cluster.nodes["n1"]
        linked(here, there)
        writer = Writer(there, "/data/a/")
        writer.start()
        try:
            with here.client() as client:
                job = client.submit(
                    replication_job(
                        ReplicationSync(
                            name="live", source="there", prefix="/data/a/", continuous=True, conflicts="fail"
                        )
                    )
                ).job.id
                until(lambda: len(values(client, "/data/a/")) > 50)
            for node, written in ((there, 0), (here, 1_500)):
                node.kill()
                # The second time for longer than the other side keeps its history.
                writer.wait_for(written)
                node.start()
                with here.client() as client:
                    until(partial(_is_running, client, job), 60.0)
                writer.wait_for(100)
        finally:
            writer.ended.set()
            writer.join()
        with here.client() as client, there.client() as other:
            wanted = values(other, "/data/a/")
            until(lambda: values(client, "/data/a/") == wanted, 60.0, "the target never had what the source has")
            until(lambda: client.replication.syncs()[0].lag_s == 0, 10.0, "it says that it lags")
            (status,) = client.replication.syncs()
            assert (status.phase, status.lag_revisions, status.conflicts) == ("following", 0, 0)
            assert status.snapshots > 1, "history was forgotten"
            client.cancel(job)
            until(lambda: client.replication.syncs()[0].phase == "stopped")
            assert client.replication.verify(source="there", prefix="/data/a/").differences == []


@pytest.mark.slow
def test_a_blob_that_breaks_off_is_brought_again_and_only_then_named(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(12 << 20)
    with (
        EmbeddedCluster(tmp_path / "here", 1, types=("replication",)) as here_cluster,
        EmbeddedCluster(tmp_path / "there", 1, types=()) as there_cluster,
    ):
        here, there = here_cluster.nodes["n1"], there_cluster.nodes["n1"]
        linked(here, there)
        with here.client() as client:
            with there.client() as other:
                added = other.blobs.put(content, tag="m.big")
            wanted = ReplicationSync(
                name="models", source="there", tags="m.", continuous=True, throttle=Throttle(bytes_per_s=3 << 20)
            )
            job = client.submit(replication_job(wanted)).job.id
            until(lambda: any(one.bytes_per_s > 0 for one in client.replication.syncs()))
            there.kill()
            until(lambda: client.replication.syncs()[0].last_error != "")
            assert tags(client, "m.") == {}
            there.start()
            until(lambda: tags(client, "m.") == {"m.big": added.hash}, 60.0)
            assert client.blobs.get(added.hash) == content
            until(lambda: client.replication.syncs()[0].last_error == "")
            client.cancel(job)


def _is_running(client: Client, job: str) -> bool:
    return client.get(job).job.state is JobState.RUNNING
