"""Clusters of real nodes: founding, tickets, joining, losing and removing members."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.client import Client
from jobs.client.cluster import make_ticket, remove_member, revoke_ticket, transfer_leadership
from jobs.cluster import Cluster, ClusterConfig
from jobs.cluster.tickets import decode, encode
from jobs.errors import Forbidden, InvalidRequest, MembershipConflict, NoLeader, NotFound, Unavailable
from jobs.protocol.model import ClusterJoin, LeaderTransfer, TicketRequest
from jobs.service import Caller
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.waiting import until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path) as made:
        yield made


def test_three_nodes_form_a_cluster_and_all_of_them_know_it(cluster: EmbeddedCluster) -> None:
    views = []
    for node in cluster.nodes.values():
        with node.client() as client:
            views.append(client.cluster.view())
    assert {view.state for view in views} == {"member"}
    assert len({view.cluster for view in views}) == 1
    assert {view.leader for view in views} == {"n1"}
    for view in views:
        assert [(one.name, one.role) for one in sorted(view.members, key=lambda one: one.name)] == [
            ("n1", "voter"),
            ("n2", "voter"),
            ("n3", "voter"),
        ]
        assert [one.name for one in view.members if one.leader] == ["n1"]
        assert [one.name for one in view.members if one.connected is None] == [view.node]


def test_the_leader_is_killed_and_what_it_acknowledged_is_there(cluster: EmbeddedCluster) -> None:
    for number in range(3):
        leader = cluster.leader()
        with leader.client() as client:
            client.kv.put(f"/data/k{number}", f"v{number}")
        leader.kill()
        successor = cluster.leader()
        with successor.client() as client:
            for past in range(number + 1):
                found = client.kv.get(f"/data/k{past}")
                assert found is not None
                assert found.value.text == f"v{past}"
        leader.start(wait=False)


def test_a_minority_refuses_soon_and_names_who_is_missing(cluster: EmbeddedCluster) -> None:
    for name in ("n2", "n3"):
        cluster.nodes[name].kill()
    alone = cluster.nodes["n1"]
    with Client(str(alone.socket), patience_s=0) as client:
        until(lambda: client.health().status == "failing")
    began_s = time.monotonic()
    refused = jobctl(alone, "kv", "put", "/data/k", "v")
    # An election's time, and a fifth of the client's patience
    assert time.monotonic() - began_s < 10
    assert refused.returncode == 69
    assert re.search(rb"no leader for \d+ s: n2, n3 not reached .*2 voters that reach each other", refused.stderr)
    with alone.client() as client, pytest.raises(NoLeader, match="n2, n3 not reached"):
        client.kv.get("/data/k")
    # What was refused was not done, and is when there are enough again
    cluster.nodes["n2"].start(wait=False)
    with alone.client() as client:
        until(lambda: client.kv.put("/data/k", "w").succeeded)


def test_a_node_alone_can_found_a_cluster_with_all_it_holds(tmp_path: Path) -> None:
    # Given a node that was alone and holds data
    alone = EmbeddedNode(tmp_path / "n1", env={"JOBS_NODE__ID": "n1"})
    with alone, alone.client() as client:
        client.kv.put("/data/k", "v")
        with pytest.raises(MembershipConflict, match=r"no address for others.*cluster\.listen"):
            client.cluster.init()
    # When it gets an address and founds a cluster, another joins it and has what it held
    cluster = EmbeddedCluster(tmp_path, 2)
    try:
        cluster.start()
        with cluster.nodes["n1"].client() as client:
            assert client.cluster.transfer("n2").leader == "n2"
        with cluster.nodes["n2"].client() as client:
            until(lambda: client.health().leader)
            found = client.kv.get("/data/k")
            assert found is not None
            assert found.value.text == "v"
    finally:
        cluster.__exit__(None, None, None)


def test_a_node_in_no_cluster_says_what_to_do(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(tmp_path, 1)
    node = cluster.nodes["n1"].start(wait=False)
    try:
        with node.client() as client:
            assert client.cluster.view().state == "unformed"
        with Client(str(node.socket), patience_s=0) as client, pytest.raises(Unavailable, match="jobctl cluster init"):
            client.kv.get("/data/k")
        with node.client() as client, pytest.raises((Unavailable, MembershipConflict)):
            client.cluster.ticket()
    finally:
        node.stop()


def test_tickets_that_are_none_are_refused_each_with_its_reason(cluster: EmbeddedCluster) -> None:
    other = cluster.add("n4").start(wait=False)
    with cluster.client(without=other) as client:
        made = client.cluster.ticket(1.0)
        good = client.cluster.ticket(600.0)
    # Without patience: a cluster that cannot be had is asked for once.
    with Client(str(other.socket), patience_s=0) as client:
        with pytest.raises(InvalidRequest, match="no ticket"):
            client.cluster.join("hello")
        with pytest.raises(InvalidRequest, match="damaged"):
            client.cluster.join(good.ticket[:-3])
        until(lambda: time.time() * 1000 > made.expires_ms)
        with pytest.raises(InvalidRequest, match="expired"):
            client.cluster.join(made.ticket)
        # A ticket whose time was changed by who has it lets nobody in: the cluster knows better
        ticket = decode(made.ticket, 0)
        forged = encode(type(ticket)(**{**_fields(ticket), "expires_ms": made.expires_ms + 10_000_000}))
        with pytest.raises((MembershipConflict, Unavailable)):
            client.cluster.join(forged)
        # One of another cluster neither
        strange = encode(type(ticket)(**{**_fields(decode(good.ticket, 0)), "cluster": "f" * 32}))
        with pytest.raises(Unavailable):
            client.cluster.join(strange)
        assert client.cluster.view().state == "unformed"
    # And after all that the right one lets in one node, though two use it at the same time
    both = [other, cluster.add("n5").start(wait=False)]

    def join(node: EmbeddedNode) -> str:
        with node.client() as client:
            try:
                return client.cluster.join(good.ticket).node
            except MembershipConflict as error:
                return error.detail

    with ThreadPoolExecutor(2) as threads:
        answers = sorted(threads.map(join, both))
    assert answers[0] in ("n4", "n5")
    assert answers[1] == "the ticket has been used"


def _fields(ticket: object) -> dict[str, object]:
    return {name: getattr(ticket, name) for name in ticket.__struct_fields__}  # type: ignore[attr-defined]


def test_a_member_whose_disk_is_lost_joins_anew_under_another_id(cluster: EmbeddedCluster) -> None:
    lost = cluster.nodes["n3"]
    with lost.client() as client:
        former = client.cluster.view().id
    lost.kill()
    # Given that only its key is left: with that it is a voter that has forgotten what it promised
    key = (lost.directory / "data" / "node.key").read_bytes()
    shutil.rmtree(lost.directory)
    (lost.directory / "data").mkdir(mode=0o700, parents=True)
    (lost.directory / "data" / "node.key").touch(0o600)
    (lost.directory / "data" / "node.key").write_bytes(key)
    lost.start(wait=False)
    with cluster.client(without=lost) as client:
        ticket = client.cluster.ticket().ticket
    with lost.client() as own, pytest.raises(MembershipConflict, match="key is there already: n3"):
        own.cluster.join(ticket)
    # Or that everything is lost
    lost.kill()
    shutil.rmtree(lost.directory)
    lost.start(wait=False)
    with cluster.client(without=lost) as client:
        with lost.client() as own, pytest.raises(MembershipConflict, match="another member is named 'n3'"):
            own.cluster.join(ticket)
        client.cluster.remove("n3")
    cluster.join(lost)
    with lost.client() as client:
        view = client.cluster.view()
        assert view.id != former
        assert sorted(one.name for one in view.members) == ["n1", "n2", "n3"]


def test_a_removed_node_that_comes_back_with_its_old_log_harms_nobody(cluster: EmbeddedCluster) -> None:
    old = cluster.nodes["n3"]
    old.kill()
    leader = cluster.leader()
    with leader.client() as client:
        client.cluster.remove("n3")
        term = client.cluster.view().term
        client.kv.put("/data/k", "v")
    old.start(wait=False)
    with old.client() as client:
        until(lambda: client.cluster.view().state == "removed")
        assert client.cluster.view().leader is None
        health = client.health()
        assert health.status == "failing"
        assert health.checks["consensus"] == "this node was removed from its cluster: n1, n2 will not speak with it"
        with pytest.raises(NoLeader, match=r"was removed from its cluster.*node\.data_dir"):
            client.kv.get("/data/k")
        with pytest.raises(MembershipConflict, match=r"was removed from cluster.*empty node\.data_dir"):
            client.cluster.join("any")
    assert b"removed from the cluster" in jobctl(old, "cluster", "members").stdout
    assert old.log_file.read_text().count("it does no work any more") == 1
    with leader.client() as client:
        until(lambda: _metric(client, "jobs_peers_refused_total") > 0)
        for _ in range(20):
            client.kv.put("/data/k", "v")
        view = client.cluster.view()
        assert view.term == term
        assert sorted(one.name for one in view.members) == ["n1", "n2"]


def _metric(client: Client, name: str) -> float:
    found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", client.metrics(), re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_a_member_is_not_removed_while_the_others_would_be_too_few(cluster: EmbeddedCluster) -> None:
    cluster.nodes["n2"].kill()
    with cluster.leader().client() as client:
        until(lambda: any((one.answered_ago_s or 0) > 1.0 for one in client.cluster.view().members))
        with pytest.raises(MembershipConflict, match="without n3 too few would answer: not n2"):
            client.cluster.remove("n3")
        client.cluster.remove("n2")
        client.kv.put("/data/k", "v")


def test_the_leader_is_removed_and_another_leads(cluster: EmbeddedCluster) -> None:
    leader = cluster.leader()
    with leader.client() as client:
        client.kv.put("/data/k", "v")
        gone = leader.directory.name
        client.cluster.remove(gone)
    until(lambda: cluster.leader() is not leader)
    with cluster.leader().client() as client:
        assert client.kv.get("/data/k") is not None
        rest = sorted({"n1", "n2", "n3"} - {gone})
        assert sorted(one.name for one in client.cluster.view().members) == rest
        with pytest.raises(NotFound, match=", ".join(rest)):
            client.cluster.remove(gone)


def test_what_changes_the_members_is_done_once_however_often_its_request_comes(cluster: EmbeddedCluster) -> None:
    first, other, third = cluster.nodes.values()
    with first.client() as client:
        # Given that leadership was handed over, and came back
        there = transfer_leadership("n2")
        assert client.call(there).leader == "n2"
        until(lambda: cluster.leader() is other)
        assert client.cluster.transfer("n1").leader == "n1"
        until(lambda: cluster.leader() is first)
        # When the first request comes again, then it tells who leads, and nothing moves
        term = client.cluster.view().term
        assert client.call(there).leader == "n1"
        assert client.cluster.view().term == term
        # Nor does one for whoever, or for who leads already
        anywhere = transfer_leadership(None)
        successor = client.call(anywhere).leader
        until(lambda: cluster.leader() is cluster.nodes[successor])
        term = client.cluster.view().term
        assert client.call(anywhere).leader == successor
        assert client.cluster.transfer(successor).leader == successor
        assert client.cluster.view().term == term
        assert [one.action for one in client.audit() if one.action == "cluster.transfer"] == ["cluster.transfer"] * 3
        client.cluster.transfer("n1")
        # Given that a member was removed, and another node joined under its name
        leave = remove_member("n3")
        client.call(leave)
        third.kill()
        shutil.rmtree(third.directory)
        third.start(wait=False)
        cluster.join(third)
        # When the request comes again, then that one stays
        assert sorted(one.name for one in client.call(leave).members) == ["n1", "n2", "n3"]


def test_tickets_are_listed_and_revoked(cluster: EmbeddedCluster) -> None:
    other = cluster.add("n4").start(wait=False)
    first = cluster.nodes["n1"]
    with first.client() as client, other.client() as own:
        assert client.cluster.tickets() == []
        made = client.cluster.ticket(600.0)
        listed = jobctl(first, "cluster", "tickets").stdout.decode()
        assert made.id[:16] in listed
        assert made.ticket not in listed
        revoke = revoke_ticket(made.id[:16])
        client.send(revoke)
        client.send(revoke)
        assert client.cluster.tickets() == []
        with pytest.raises(MembershipConflict, match="no member knows the ticket"):
            own.cluster.join(made.ticket)
        refused = jobctl(first, "cluster", "tickets", "--revoke", made.id)
        assert refused.returncode == 1
        assert b"no ticket has the id" in refused.stderr
        # One that was made again for a lost answer replaces the one that nobody has
        make = make_ticket(600.0)
        lost, kept = client.call(make), client.call(make)
        assert [one.id for one in client.cluster.tickets()] == [kept.id] != [lost.id]
        # A join that does not get there in time says how far it is, and fails
        late = jobctl(other, "cluster", "join", kept.ticket, "--wait", "1ms")
        assert (late.returncode, b"not done after 0.001 s: n4 " in late.stderr) == (124, True), late.stderr
        until(lambda: any(one.name == "n4" and one.role == "voter" for one in own.cluster.view().members))
        assert client.cluster.tickets() == []


def test_commands(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(tmp_path, 2)
    first, second = (node.start(wait=False) for node in cluster.nodes.values())
    try:
        assert b"jobctl cluster init" in jobctl(first, "cluster", "members").stdout
        assert jobctl(first, "cluster", "init", "--if-unformed").returncode == 0
        assert jobctl(first, "cluster", "init").returncode == 1
        assert jobctl(first, "cluster", "init", "--if-unformed").returncode == 0
        ticket = jobctl(first, "cluster", "ticket", "--ttl", "10m")
        assert ticket.stdout.startswith(b"jobs-ticket-")
        joined = jobctl(second, "cluster", "join", "-", stdin=ticket.stdout)
        assert joined.returncode == 0, joined.stderr
        assert jobctl(second, "cluster", "join", "-", "--if-unformed", stdin=ticket.stdout).returncode == 0
        members = jobctl(first, "cluster", "members").stdout.decode()
        assert re.search(r"n1\s+voter\s+leads", members)
        assert re.search(r"n2\s+voter\s+connected", members)
        assert jobctl(first, "cluster", "transfer-leader", "n2").stdout == b"n2 leads\n"
        until(lambda: cluster.leader() is second)
        removed = jobctl(first, "cluster", "remove", "n1")
        assert removed.returncode == 0
        assert b"n1, removed from the cluster" in removed.stdout
        assert "n1" not in jobctl(second, "cluster", "members").stdout.decode().split("NAME")[1]
        assert jobctl(first, "cluster", "join", "-", "--if-unformed", stdin=b"").returncode == 1
    finally:
        cluster.__exit__(None, None, None)


def test_only_administrators_change_the_cluster(tmp_path: Path) -> None:
    somebody = Caller(uid=1000, gid=1000, admin=False)
    alone = Cluster(ClusterConfig(name="n1", data_dir=tmp_path, incoming_dir=tmp_path))
    for asked in (
        alone.init(somebody),
        alone.join(somebody, ClusterJoin(ticket="t")),
        alone.ticket(somebody, TicketRequest()),
        alone.tickets(somebody),
        alone.revoke_ticket(somebody, "abcd"),
        alone.remove(somebody, "n1"),
        alone.transfer(somebody, LeaderTransfer()),
    ):
        with pytest.raises(Forbidden, match="only administrators"):
            asyncio.run(asked)  # type: ignore[arg-type]
