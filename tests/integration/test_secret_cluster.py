"""Secrets in a cluster: who comes by the key and who does not, and that neither is lost with a node."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import pytest

from jobs import Client, JobState, Requires, Retry, shell_job
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


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    """Three real nodes, each with a worker that jobs can ask for."""
    made = EmbeddedCluster(tmp_path, size=0, env=QUICK)
    for name in ("n1", "n2", "n3"):
        made.add(name, env={"JOBS_WORKERS__SHELL__LABELS": json.dumps({"node": name})})
    with made:
        yield made


def digest_on(worker: str, client: Client, name: str) -> str:
    """Run a job on a node's worker that has a secret; return the digest of what it was given, which is not hidden."""
    job = shell_job(
        "sha256sum < /run/secrets/t; cat /run/secrets/t >&2",
        secrets={"t": name},
        requires=Requires(labels={"node": worker}),
        retry=Retry(max_attempts=5, delay_s=0),
    )
    result = client.run(job)
    assert result.state is JobState.COMPLETED, result
    assert result.execution is not None
    assert result.execution.node == worker
    assert (result.stdout, result.stderr) != (None, None)
    assert result.stderr is not None
    assert result.stderr.text == "***"
    return "" if result.stdout is None else str(result.stdout.text).split()[0]


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def check_disks(made: EmbeddedCluster, *values: str) -> None:
    """Nothing of a value is on any disk, nor is a key but in its own file."""
    for node in made.nodes.values():
        for path in node.directory.rglob("*"):
            if path.is_file() and path.name != "secrets.key":
                content = path.read_bytes()
                assert not any(value.encode() in content for value in values), path
                assert b"AGE-SECRET-KEY-" not in content, path


def leader_of(made: EmbeddedCluster, without: str = "") -> str:
    node = next(node for name, node in made.nodes.items() if name != without and node.is_running)
    with node.client() as client:
        wait_until(lambda: client.cluster.view().leader not in (None, without))
        return str(client.cluster.view().leader)


def test_jobs_have_their_secrets_on_any_worker_and_after_the_loss_of_the_leader(nodes: EmbeddedCluster) -> None:
    with nodes.nodes["n2"].client() as client:
        client.secrets.set("token", VALUE)
        assert {digest_on(worker, client, "token") for worker in nodes.nodes} == {digest(VALUE)}
    killed = leader_of(nodes)
    nodes.nodes[killed].kill()
    leader = leader_of(nodes, without=killed)
    with nodes.nodes[leader].client() as client:
        assert client.secrets.key().present
        assert digest_on(leader, client, "token") == digest(VALUE)
    check_disks(nodes, VALUE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_leaders_that_are_killed_in_the_middle_of_a_rotation_lose_nothing(nodes: EmbeddedCluster) -> None:
    """Given 500 secrets; when the leader is killed in each rotation, at some moment of it; then another one ends it."""
    values = {f"s{number}": f"value number {number} of all" for number in range(500)}
    with nodes.nodes["n1"].client() as client:
        for name, value in values.items():
            client.secrets.set(name, value)
    for round_number in range(5):
        killed = leader_of(nodes)
        other = next(name for name in nodes.nodes if name != killed)
        with nodes.nodes[other].client() as client, ThreadPoolExecutor(1) as pool:
            former = client.secrets.key().fingerprint
            rotation = pool.submit(client_of(nodes.nodes[other]))
            wait_until(lambda: client.secrets.key().fingerprint != former)  # noqa: B023
            nodes.nodes[killed].kill()
            rotation.result(timeout=120)
            wait_until(lambda: client.secrets.key().to_rewrite == 0)
            assert client.secrets.key().present
            for name in list(values)[round_number::50]:
                assert digest_on(other, client, name) == digest(values[name])
            assert len(list(client.secrets.list())) == len(values)
        nodes.nodes[killed].start()
        wait_until(lambda: len(set(kept_keys(nodes))) == 1)
    check_disks(nodes, *values.values())


def client_of(node: EmbeddedNode) -> Callable[[], object]:
    def rotate() -> object:
        with Client(str(node.socket), patience_s=120) as client:
            return client.secrets.rotate_key()

    return rotate


def kept_keys(made: EmbeddedCluster) -> list[str]:
    return [(node.directory / "data" / "secrets.key").read_text() for node in made.nodes.values()]
