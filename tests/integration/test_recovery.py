"""What is left to an operator: a majority of the disks is lost, or all nodes have other addresses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import shell_job
from jobs._native import Endpoint, Log
from jobs.cluster.cluster import KEY_FILE
from jobs.cluster.file import Belonging, save
from jobs.cluster.recovery import ANYWHERE, Recovery
from jobs.protocol.model import JobState
from jobs.recover import warning
from jobs.testing import EmbeddedCluster, EmbeddedNode, free_port
from tests.support.waiting import until


def recover(node: EmbeddedNode, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a node's directory, with its configuration."""
    command = [sys.executable, "-m", "jobs.node", "--embedded", str(node.directory), "recover", *options]
    env = {**os.environ, "JOBS_NODE__ID": node.directory.name}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.timeout(240)
def test_what_is_left_of_a_cluster_goes_on_alone_and_grows_again(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        first, left, old = cluster.nodes.values()
        with first.client() as client:
            for number in range(20):
                client.kv.put(f"/data/k{number}", "v")
            revision = client.kv.put("/data/last", "v").revision
        with left.client() as client:
            former = client.cluster.view()
            until(lambda: client.health().revision >= revision)
        # Given that one disk is lost for good, and another node that is cut off, so that it has no majority either
        for node in (first, old):
            node.kill()
        shutil.rmtree(first.directory)
        # When it is told to go on while it runs, then nothing happens; nor when it is not told that this is meant
        refused = recover(left, "--yes")
        assert (refused.returncode, "stop it first" in refused.stderr) == (1, True), refused.stderr
        left.kill()
        asked = recover(left)
        assert asked.returncode == 2
        assert "THIS CAN LOSE DATA THAT WAS ACKNOWLEDGED" in asked.stderr
        assert "LOST is whatever the other members (n1, n3) acknowledged" in asked.stderr
        assert "Nothing was changed" in asked.stderr
        # When that is meant, then it leads alone, with all it has, also after another SIGKILL
        done = recover(left, "--yes")
        assert done.returncode == 0, done.stderr
        assert "n2 is the only member of cluster " in done.stdout
        for _ in range(2):
            left.start()
            with left.client() as client:
                view = client.cluster.view()
                assert (view.leader, [one.name for one in view.members]) == ("n2", ["n2"])
                assert view.cluster != former.cluster
                assert len(list(client.kv.scan("/data/"))) == 21
            left.kill()
        left.start()
        # And a former member that comes back with its data is a stranger to it
        old.start(wait=False)
        with old.client() as client:
            until(lambda: client.health().checks["consensus"] != "no leader")
            assert client.cluster.view().leader is None
        old.kill()
        shutil.rmtree(old.directory)
        # And fresh nodes join
        for node in (first, old):
            node.start(wait=False)
            cluster.join(node)
        with old.client() as client:
            assert sorted(one.name for one in client.cluster.view().members) == ["n1", "n2", "n3"]
            found = client.kv.get("/data/last")
            assert found is not None
            ended = client.wait(client.submit(shell_job("true")).job.id, timeout_s=60)
            assert ended.state is JobState.COMPLETED
        left.kill()
        with cluster.leader().client() as client:
            assert client.kv.get("/data/last") is not None


def test_who_has_more_is_told_by_the_last_entry_not_by_a_term_that_was_only_stood_in(tmp_path: Path) -> None:
    # Given a node that has stood for election in vain since its last entry
    with contextlib.closing(Log(str(tmp_path / "log"))) as log:
        log.append(1, 3, b"")
        log.append(2, 5, b"")
        log.sync()
        log.set_hard_state(9, "another")
    save(tmp_path, Belonging(cluster="c", founder=True))
    Endpoint(str(tmp_path / KEY_FILE), bind=ANYWHERE, cluster="c", node="n1").close()
    recovery = Recovery("n1", tmp_path, tmp_path / "log", tmp_path / "store", 64 << 20)
    # When an operator asks what it has, to compare it with other nodes
    with contextlib.closing(recovery):
        remains = recovery.remains()
    # Then it is the last entry that counts
    assert (remains.last_term, remains.last_index, remains.applied_index) == (5, 2, 0)
    assert "The last entry on its disk is 2, of term 5." in warning("n1", remains)


def test_only_a_node_of_a_cluster_is_recovered(tmp_path: Path) -> None:
    alone = EmbeddedNode(tmp_path / "n1", env={"JOBS_NODE__ID": "n1"})
    assert "there is no node of a cluster here" in recover(alone, "--yes").stderr
    with alone:
        pass
    refused = recover(alone, "--yes")
    assert (refused.returncode, "there is no node of a cluster here" in refused.stderr) == (1, True)
    # Nor one that a backup was restored as, which has the file of a founder
    save(alone.directory / "data", Belonging(cluster="c", founder=True))
    with alone, alone.client() as client:
        client.kv.put("/data/k", "v")
    refused = recover(alone, "--yes")
    assert (refused.returncode, "has never had other members" in refused.stderr) == (1, True)
    with alone, alone.client() as client:
        assert client.kv.get("/data/k") is not None


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nodes_that_have_all_moved_find_each_other_by_what_they_are_told(tmp_path: Path) -> None:
    with EmbeddedCluster(tmp_path) as cluster:
        with cluster.client() as client:
            client.kv.put("/data/k", "v")
        cluster.stop()
        # Given that all nodes have other addresses, and nobody knows those of the others
        places = {name: f"127.0.0.1:{free_port()}" for name in cluster.nodes}
        listen = {name: {"JOBS_CLUSTER__LISTEN": json.dumps([place])} for name, place in places.items()}
        for name, node in cluster.nodes.items():
            node.start(wait=False, env=listen[name])
        one = cluster.nodes["n1"]
        with one.client() as client:
            until(lambda: "n2, n3 not reached" in client.health().checks["consensus"])
        cluster.stop()
        # When they are told, then they find each other, and their new addresses are put on record
        told = {"JOBS_CLUSTER__MOVED": json.dumps({name: [place] for name, place in places.items()})}
        for name, node in cluster.nodes.items():
            node.start(wait=False, env=listen[name] | told)
        with cluster.leader().client() as client:
            assert client.kv.get("/data/k") is not None
            until(lambda: {each.name: each.addresses[0] for each in client.cluster.view().members} == places)
        with one.client() as client:
            until(lambda: {each.name: each.addresses[0] for each in client.cluster.view().members} == places)
        # So they need not be told for ever
        for name, node in cluster.nodes.items():
            node.stop()
            node.start(wait=False, env=listen[name])
        with cluster.leader().client() as client:
            client.kv.put("/data/k", "w")
