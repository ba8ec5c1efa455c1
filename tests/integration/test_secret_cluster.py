"""Secrets in a cluster: who comes by the key and who does not, and that neither is lost with a node."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec
import pytest

from jobs import JobState, Retry, shell_job
from jobs._native import Endpoint
from jobs.cluster import Peers
from jobs.cluster.peers import LIMITS, Asked, ForeignPeer
from jobs.net import RequestFailed
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.support import waiting
from tests.support.cluster import Cluster, Member, cluster, until

VALUE = "correct-horse-battery-staple"
QUICK = {
    "JOBS_RAFT__HEARTBEAT_S": "0.1",
    "JOBS_RAFT__ELECTION_MIN_S": "0.5",
    "JOBS_RAFT__ELECTION_MAX_S": "1.0",
}
wait_until = partial(waiting.until, timeout_s=60.0)


async def put(member: Member, name: str = "token", value: str = VALUE) -> int:
    answer = await member.change("PUT", f"/v1/secrets/{name}", {"value": {"text": value}})
    return answer.status


def holders(made: Cluster) -> list[Member]:
    return [member for member in made.members if member.keyring.held]


def test_a_key_is_used_only_once_a_majority_has_it(tmp_path: Path) -> None:
    """Given a leader that reaches neither of the two others for a moment, when the first secret comes."""

    async def run() -> None:
        async with cluster(tmp_path) as made:
            leader = made.leader
            for member in made.members:
                member.peers.requests.pop(Asked.SECRET_KEYS)
            refused = await leader.ask("PUT", "/v1/secrets/token", {"value": {"text": VALUE}})
            assert (refused.status, refused.json()["code"]) == (503, "unavailable")
            assert "reached 0 of 2" in refused.json()["detail"]
            listed = await leader.ask("GET", "/v1/secrets")
            assert listed.json()["secrets"] == []

    asyncio.run(run())


def test_every_member_gets_the_key_and_any_of_them_takes_secrets(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path) as made:
            assert await put(made.followers[0]) == 201
            assert len(holders(made)) >= 2
            await until(lambda: len(holders(made)) == 3)
            assert len({member.keyring.held for member in made.members}) == 1
            assert await put(made.leader, value="another") == 200

    asyncio.run(run())


def test_a_member_that_was_away_gets_the_key_when_it_is_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path) as made:
            away = made.followers[0]
            await away.stop()
            leader = await_leader(made, without=away)
            assert await put(await leader) == 201
            assert not away.keyring.held
            await away.start()
            await until(lambda: bool(away.keyring.held))

    asyncio.run(run())


async def await_leader(made: Cluster, without: Member) -> Member:
    rest = [member for member in made.members if member is not without]
    await until(lambda: any(member.site.control is not None for member in rest))
    return next(member for member in rest if member.site.control is not None)


def test_a_rotation_reaches_all_and_the_former_key_is_forgotten(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path) as made:
            await put(made.leader)
            await until(lambda: len(holders(made)) == 3)
            former = made.leader.keyring.held
            answer = await made.leader.change("POST", "/v1/secret-key:rotate", {})
            assert (answer.status, answer.json()["rewritten"]) == (200, 1)
            fresh = frozenset({answer.json()["fingerprint"]})
            assert former != fresh
            await until(lambda: all(member.keyring.held == fresh for member in made.members))
            text = [(tmp_path / member.name / "secrets.key").read_text() for member in made.members]
            assert not any(fingerprint in one for one in text for fingerprint in former)

    asyncio.run(run())


def test_nobody_but_a_member_is_given_the_key(tmp_path: Path) -> None:
    """Given a guest, who has a ticket, and a node of a linked cluster, who both ask a member for the key."""

    async def run() -> None:
        async with cluster(tmp_path) as made:
            await put(made.leader)
            await until(lambda: len(holders(made)) == 3)
            asked = made.leader
            (fingerprint,) = asked.keyring.held
            body = msgspec.msgpack.encode(("fetch", fingerprint))
            for kind in ("guest", "foreign", "member"):
                directory, of = tmp_path / kind, "other" if kind == "foreign" else "test"
                directory.mkdir()
                endpoint = Endpoint(
                    str(directory / "node.key"), bind=["127.0.0.1:0"], cluster=of, node=kind, limits=LIMITS
                )
                other = Peers(endpoint, directory)
                members = {other.id: other.addresses} if kind == "member" else {}
                asked.peers.allow(asked.known | members, [other.id] if kind == "guest" else [])
                foreign = ForeignPeer(cluster=of, addresses=tuple(other.addresses))
                asked.peers.allow_foreign({other.id: foreign} if kind == "foreign" else {})
                if kind == "foreign":
                    far = ForeignPeer(cluster="test", addresses=tuple(asked.peers.addresses))
                    other.allow_foreign({asked.id: far})
                else:
                    other.allow({asked.id: asked.peers.addresses})
                try:
                    if kind == "member":
                        answer = await other.request(asked.id, Asked.SECRET_KEYS, body, 10.0)
                        assert answer.startswith(b"AGE-SECRET-KEY-")
                    else:
                        with pytest.raises(RequestFailed, match="may"):
                            await other.request(asked.id, Asked.SECRET_KEYS, body, 10.0)
                finally:
                    await other.close()
            asked.heal()

    asyncio.run(run())


def run_with_secret(node: EmbeddedNode) -> tuple[str, str]:
    """Run a job that reads the secret; return what it wrote, and the node that its worker is of."""
    command = "wc -c < /run/secrets/t; cat /run/secrets/t; echo; tr a-z n-za-m < /run/secrets/t"
    with node.client() as client:
        result = client.run(shell_job(command, secrets={"t": "token"}, retry=Retry(max_attempts=5, delay_s=0)))
    assert result.state is JobState.COMPLETED, result
    assert result.execution is not None
    return str(result.stdout.text), result.execution.node


def check(node: EmbeddedNode) -> None:
    text, _ = run_with_secret(node)
    assert text == f"{len(VALUE)}\n***\npbeerpg-ubefr-onggrel-fgncyr", text


def leader_of(made: EmbeddedCluster, without: str = "") -> str:
    node = next(node for name, node in made.nodes.items() if name != without and node.is_running)
    with node.client() as client:
        wait_until(lambda: client.cluster.view().leader not in (None, without))
        return str(client.cluster.view().leader)


def test_jobs_have_their_secrets_whichever_node_leads_or_is_lost(tmp_path: Path) -> None:
    """Given three real nodes with workers, of which the one that leads is killed."""
    with EmbeddedCluster(tmp_path, env=QUICK) as made:
        with made.nodes["n2"].client() as client:
            client.secrets.set("token", VALUE)
        wait_until(lambda: all((tmp_path / name / "data" / "secrets.key").exists() for name in made.nodes))
        for node in made.nodes.values():
            check(node)
        killed = leader_of(made)
        made.nodes[killed].kill()
        leader = leader_of(made, without=killed)
        check(made.nodes[leader])
        with made.nodes[leader].client() as client:
            assert client.secrets.rotate_key().rewritten == 1
        check(made.nodes[leader])
        for name in made.nodes:
            place = tmp_path / name / "data"
            kept = [path for path in place.rglob("*") if path.is_file() and path.name != "secrets.key"]
            assert not any(VALUE.encode() in path.read_bytes() for path in kept), name
            assert not any(b"AGE-SECRET-KEY-" in path.read_bytes() for path in kept), name
