"""Partitions of which each side sees something else, on real network namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import shell_job
from jobs.client import Client
from jobs.errors import NoLeader
from jobs.protocol.model import JobState
from tests.cluster.members import Members, members
from tests.support.waiting import until


def cut(cluster: Members, one: int, other: int) -> None:
    """Lose everything between two nodes."""
    cluster.net.lose(one, other)
    cluster.net.lose(other, one)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_who_is_cut_off_from_the_leader_alone_is_answered_and_nobody_is_deposed(tmp_path: Path) -> None:
    with members(tmp_path, 3) as cluster:
        leader = cluster.leader_number()
        follower, other = (number for number in cluster.numbers() if number != leader)
        with cluster.node(leader).client() as client:
            term = client.cluster.view().term
        # When a follower and the leader lose each other, then the follower answers by way of the third node
        cut(cluster, leader, follower)
        with cluster.node(follower).client() as client:
            until(lambda: f"through n{other}" in client.health().checks["consensus"])
            client.kv.put("/data/k", "v")
            found = client.kv.get("/data/k")
            assert found is not None
            assert found.value.text == "v"
            # And its worker has work again
            until(lambda: {one.node for one in client.workers() if one.state == "ready"} == {"n1", "n2", "n3"})
            ended = client.wait(client.submit(shell_job("true")).job.id, timeout_s=60)
            assert ended.state is JobState.COMPLETED
            view = client.cluster.view()
            assert (view.leader, view.term) == (f"n{leader}", term)
            assert {one.name: one.connected for one in view.members if one.name == f"n{leader}"} == {
                f"n{leader}": False
            }
        # When it loses the third one too, then it refuses, and says whom it does not reach
        cut(cluster, other, follower)
        with Client(str(cluster.node(follower).socket), patience_s=0) as client:
            until(lambda: "through" not in client.health().checks["consensus"])
        missing = ", ".join(f"n{number}" for number in sorted((leader, other)))
        with cluster.node(follower).client() as client, pytest.raises(NoLeader, match=f"{missing} not reached"):
            client.kv.put("/data/k", "w")
        # When the network is mended, then it follows as before
        cluster.net.heal()
        with cluster.node(follower).client() as client:
            until(lambda: client.health().checks["consensus"] == f"following n{leader}")
            client.kv.put("/data/k", "x")
            assert client.cluster.view().term == term
