"""Links of real nodes: with another cluster that keeps to nothing, and between clusters on networks of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec import structs

from jobs import Client, ReplicationSync, replication_job
from jobs._native import Endpoint
from jobs.client.failures import OperationFailed
from jobs.cluster import Asked, ForeignPeer, Peers
from jobs.errors import JobsError
from jobs.forward.questions import Answer
from jobs.forward.speech import Refused
from jobs.net import RequestFailed, StreamBroken
from jobs.protocol.model import Invitation, LinkScopes
from jobs.replication import frames as f
from jobs.replication import messages as m
from jobs.replication.invitation import Invited, encode
from jobs.testing import EmbeddedCluster, EmbeddedNode
from tests.cluster.namespaces import Network, network
from tests.support.apart import ALL, ApartCluster
from tests.support.loop import on_loop
from tests.support.waiting import until

T = TypeVar("T")
PATIENCE_S = 60
OTHER = "d" * 32
SCOPES = LinkScopes(read=["/data/r/"], write=["/data/w/"])


class Stranger:
    """The only node of another cluster, in the test's own process."""

    def __init__(self, folder: Path, invited: Invitation) -> None:
        endpoint = Endpoint(
            str(folder / "stranger.key"),
            bind=["127.0.0.1:0"],
            cluster=OTHER,
            node="stranger",
            limits={"idle_ms": 2_000},
        )
        self.peers = Peers(endpoint, folder)
        self.theirs = tuple(invited.peers)
        self.peers.allow_foreign(
            {
                peer: ForeignPeer(cluster=invited.cluster, addresses=tuple(addresses))
                for peer, addresses in invited.peers.items()
            }
        )
        self.invitation = encode(Invited(cluster=OTHER, peers={self.peers.id: list(self.peers.addresses)}))

    async def ask(self, body: bytes, peer: str | None = None) -> Answer | Refused:
        return f.replies.decode(await self.peers.ask_foreign(peer or self.theirs[0], body, PATIENCE_S))

    async def is_answered(self, peer: str) -> bool:
        try:
            return isinstance(await self.ask(f.questions.encode(f.About()), peer), Answer)
        except RequestFailed:
            return False

    async def until(self, peer: str, *, answered: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.is_answered(peer) is not answered:
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path_factory.mktemp("three"), 3, types=()) as made:
        yield made


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(tmp_path_factory.mktemp("one"), 1, types=("replication",)) as made:
        yield made


@contextlib.asynccontextmanager
async def stranger(folder: Path, cluster: EmbeddedCluster, *, linked: bool = True) -> AsyncIterator[Stranger]:
    made = Stranger(folder, await change(cluster, lambda client: client.replication.invitation()))
    try:
        if linked:
            await link(cluster, made)
            for peer in made.theirs:
                await made.until(peer, answered=True)
        yield made
    finally:
        await made.peers.close()
        with contextlib.suppress(JobsError):
            await change(cluster, lambda client: client.replication.unlink("far"))


async def change(cluster: EmbeddedCluster, work: Callable[[Client], T]) -> T:
    def run() -> T:
        with cluster.client() as client:
            return work(client)

    return await asyncio.to_thread(run)


async def link(cluster: EmbeddedCluster, other: Stranger, scopes: LinkScopes = SCOPES) -> None:
    await change(cluster, lambda client: client.replication.link("far", other.invitation, scopes))


def rows(prefix: bytes) -> bytes:
    return f.questions.encode(f.Rows(prefix, (b"", None), 0, 10, values=True))


@on_loop
async def test_every_member_speaks_with_a_linked_cluster_and_none_once_the_link_is_cut(
    tmp_path: Path, three: EmbeddedCluster
) -> None:
    await change(three, lambda client: client.kv.put("/data/r/1", "one"))
    async with stranger(tmp_path, three, linked=False) as far:
        assert len(far.theirs) == 3
        for peer in far.theirs:
            assert not await far.is_answered(peer)
        await link(three, far)
        for peer in far.theirs:
            await far.until(peer, answered=True)
            found = await far.ask(rows(b"/data/r/"), peer)
            assert isinstance(found, Answer)
            assert b"one" in found.body
        # What is under way on each of them ends with the link
        waiting = f.questions.encode(f.Changes(b"/data/r/", 1_000_000, 10, 50.0))
        asked = [asyncio.ensure_future(far.peers.ask_foreign(peer, waiting, PATIENCE_S)) for peer in far.theirs]
        open_streams = [await far.peers.open_foreign(peer, b"") for peer in far.theirs]
        for stream in open_streams:
            await stream.write(f.openings.framed(f.ReadBlob("", "a" * 64, 0))[:9])
        await change(three, lambda client: client.replication.unlink("far"))
        for task in asked:
            with pytest.raises(RequestFailed):
                await asyncio.wait_for(task, PATIENCE_S)
        for stream in open_streams:
            with pytest.raises(StreamBroken):
                await asyncio.wait_for(stream.read(), PATIENCE_S)
        for peer in far.theirs:
            await far.until(peer, answered=False)
        # Also for members that start anew
        for node in list(three.nodes.values()):
            node.kill()
            node.start(wait=False)
        await asyncio.to_thread(three.leader)
        for peer in far.theirs:
            assert not await far.is_answered(peer)


@on_loop
async def test_nothing_but_what_the_link_allows_is_had_from_a_node(tmp_path: Path, three: EmbeddedCluster) -> None:
    await change(three, lambda client: client.kv.put("/data/secret/1", "hidden"))
    cursor = structs.replace(CURSOR, target_prefix="/data/secret/")
    async with stranger(tmp_path, three) as far:
        for body, words in [
            (rows(b"/data/"), "'/data/'"),
            (rows(b"/data/secret/"), "'/data/secret/'"),
            (rows(b"/jobs/"), "'/jobs/'"),
            (rows(b""), "''"),
            (f.questions.encode(f.Changes(b"/", 0, 10, 0.0)), "'/'"),
            (f.questions.encode(f.Apply(m.Batch(OTHER, "s", 0, cursor, (PUT,)))), "'/data/secret/'"),
            (f.questions.encode(f.Apply(m.Batch("e" * 32, "s", 0, CURSOR, (PUT,)))), "syncs of cluster eee"),
            (f.questions.encode(f.Tags("", "", 10)), "tags"),
        ]:
            for peer in far.theirs:
                refused = await far.ask(body, peer)
                assert isinstance(refused, Refused)
                assert refused.code == "forbidden"
                assert words in refused.detail
                assert "hidden" not in refused.detail
        # What it may write it writes below that, and nowhere else
        done = await far.ask(f.questions.encode(f.Apply(m.Batch(OTHER, "s", 0, CURSOR, (PUT,)))))
        assert isinstance(done, Answer)

        def check(client: Client) -> None:
            assert {pair.key for pair in client.kv.scan("/data/")} >= {"/data/w/../secret/1", "/data/secret/1"}
            assert client.kv.get("/data/secret/1").value.text == "hidden"

        await change(three, check)
        # A scope that is taken away is so for the next question, at every member
        await link(three, far, LinkScopes(read=["/data/x/"]))
        for peer in far.theirs:
            refused = await far.ask(rows(b"/data/r/"), peer)
            assert isinstance(refused, Refused)
            assert "'/data/x/'" in (refused.expected or "")


CURSOR = m.CursorRecord(source=OTHER, prefix="/data/a/", target_prefix="/data/w/", is_tags=False)
PUT = m.Change(b"../secret/1", b"mine", 1)


@on_loop
async def test_frames_of_any_kind_are_refused_and_the_node_serves_on(tmp_path: Path, three: EmbeddedCluster) -> None:
    async with stranger(tmp_path, three) as far:
        whole = rows(b"/data/r/")
        for body, words in [
            (b"", "version None"),
            (b"\x07" + whole[1:], "of version 7; this node speaks version 1"),
            (whole[:-1], "cannot be read"),
            (whole + b"\x00", "cannot be read"),
        ]:
            for peer in far.theirs:
                refused = await far.ask(body, peer)
                assert isinstance(refused, Refused)
                assert words in refused.detail
        for said in (b"\xff" * 8, b"\x00\x00\x00\x01\x07", b"\x00"):
            stream = await far.peers.open_foreign(far.theirs[0], b"")
            await stream.write(said)
            await stream.finish()
            size = int.from_bytes(await stream.read_exactly(4), "big")
            refused = f.told.decode(await stream.read_exactly(size))
            assert isinstance(refused, Refused)
            assert refused.code == "invalid_request"
        # What members say to each other is nothing for strangers
        for asked in Asked:
            if asked is not Asked.FOREIGN:
                with pytest.raises(RequestFailed, match="may not ask this here"):
                    await far.peers.request(far.theirs[0], asked, b"x", PATIENCE_S)
        await change(three, lambda client: client.kv.put("/data/r/1", "served"))
        assert isinstance(await far.ask(whole), Answer)
        # And it is counted
        told = await change(three, lambda client: client.metrics())
        refused = next(line for line in told.splitlines() if line.startswith("jobs_links_refused_total"))
        assert float(refused.split()[-1]) > 0


@on_loop
async def test_a_job_fails_with_what_is_wrong_with_the_other_cluster(tmp_path: Path, one: EmbeddedCluster) -> None:
    async with stranger(tmp_path, one) as far:

        async def fails(words: str) -> None:
            def verify(client: Client) -> None:
                with pytest.raises(OperationFailed, match=words):
                    client.replication.verify(source="far", prefix="/data/r/", target_prefix="/data/copy/")
                assert list(client.kv.scan("/data/copy/")) == []

            await change(one, verify)

        def say(reply: bytes) -> Callable[[str, bytes], Awaitable[bytes]]:
            async def answer(peer: str, body: bytes) -> bytes:
                return reply

            return answer

        for reply, words in [
            (b"\x02anything", "version 2; this node speaks version 1.*nodes of the same release"),
            (b"\x01\xc1", "cannot be read"),
            (f.replies.encode(Answer(b"\x01")), "cannot be used"),
            (f.replies.encode(Refused("forbidden", "not\x1b[2J for you")), "link far: not.*for you"),
            (f.replies.encode(Refused("not_leader", "I do not lead")), "I do not lead"),
        ]:
            far.peers.on_foreign_request = say(reply)
            await fails(words)
        # It does not know this cluster any more
        far.peers.allow_foreign({})
        await fails("no node of the other cluster is reached.*not on the allowlist")
        await far.peers.close()
        await fails("no node of the other cluster is reached")


def test_a_node_alone_has_no_links_and_says_what_to_do(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path, types=()) as node, node.client() as client:
        with pytest.raises(JobsError, match="belongs to no cluster") as alone:
            client.replication.invitation()
        assert "jobctl cluster init" in (alone.value.expected or "")
        assert client.replication.links() == []


# --- two clusters, each on networks of its own -----------------------------------------------------------------------


class Two:
    """A cluster of three nodes, from which another one of a single node reads, and to which it writes."""

    def __init__(self, folder: Path, net: Network) -> None:
        self.net = net
        self.many = ApartCluster(folder / "many", net, first=1, size=3, types=())
        self.single = ApartCluster(folder / "single", net, first=4, size=1)

    def link(self, scopes: LinkScopes = ALL) -> None:
        """Make both links; the single node's cluster may do this in the other one."""
        self.single.link("many", self.many, LinkScopes())
        self.many.link("single", self.single, scopes)

    def unlink(self) -> None:
        for cluster in (self.many, self.single):
            with cluster.client() as client:
                for one in client.replication.links():
                    client.replication.unlink(one.name)

    def follow(self, name: str, prefix: str) -> str:
        """Begin to bring over what is below a prefix for as long as nobody ends it; the job's id."""
        sync = ReplicationSync(name=name, source="many", prefix=prefix, continuous=True)
        with self.single.client() as client:
            return client.submit(replication_job(sync)).job.id

    def put(self, prefix: str, *names: str) -> None:
        with self.many.client() as client:
            for name in names:
                client.kv.put(prefix + name, f"value of {name}")

    def brought(self, prefix: str) -> set[str]:
        with self.single.client() as client:
            return {pair.key.removeprefix(prefix) for pair in client.kv.scan(prefix)}

    def error(self, name: str) -> str:
        with self.single.client() as client:
            return next((one.last_error for one in client.replication.syncs() if one.name == name), "")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with network(4) as net:
        made = Two(tmp_path_factory.mktemp("apart"), net)
        with made.many, made.single:
            yield made


@pytest.fixture
def two(apart: Two) -> Iterator[Two]:
    """Clusters without links, whose nodes all reach each other."""
    yield apart
    apart.net.heal()
    for node in apart.many.nodes.values():
        if not node.is_running:
            node.start(wait=False)
    apart.many.leader()
    with apart.single.client() as client:
        for job in client.list(state=["running"]):
            client.cancel(job.id)
    apart.unlink()


def test_a_cluster_that_does_not_know_the_other_is_not_read_and_nothing_is_written(two: Two) -> None:
    two.put("/data/unknown/", "1")
    two.single.link("many", two.many)
    with two.single.client() as client:
        with pytest.raises(OperationFailed, match=r"is reached.*not on the allowlist"):
            client.replication.verify(source="many", prefix="/data/unknown/")
        (link,) = client.replication.links()
        assert (link.reached, "not on the allowlist" in link.problem) == (False, True)
        # The same for the other way
        with pytest.raises(OperationFailed, match="not on the allowlist"):
            client.replication.verify(target="many", prefix="/data/unknown/")
    assert two.brought("/data/unknown/") == set()
    # With a link there it is, without anything done here
    two.many.link("single", two.single, LinkScopes(read=["/data/unknown/"]))
    with two.single.client() as client:
        assert client.replication.sync("unknown", source="many", prefix="/data/unknown/").rows == 1
    # Each says that the other one answers, also the one that has asked it nothing
    for cluster in (two.single, two.many):
        with cluster.client() as client:
            assert [(one.reached, one.problem) for one in client.replication.links()] == [(True, "")]


def test_a_scope_that_is_not_given_is_denied_by_name_and_the_target_stays_as_it_is(two: Two) -> None:
    two.put("/data/private/", "1")
    two.link(LinkScopes(read=["/data/public/"], write=["/data/inbox/"]))
    with two.single.client() as client, two.many.client() as there:
        client.kv.put("/data/private/1", "mine")
        client.kv.put("/data/inbox/1", "mail")
        for ends in ({"source": "many"}, {"target": "many"}):
            with pytest.raises(OperationFailed, match=r"does not let cluster .* '/data/private/'"):
                client.replication.sync("private", prefix="/data/private/", **ends)
        assert client.kv.get("/data/private/1").value.text == "mine"
        assert there.kv.get("/data/private/1").value.text == "value of 1"
        with pytest.raises(OperationFailed, match=r"does not let cluster .* tags that begin with 'v'"):
            client.replication.sync("tags", source="many", tags="v")
        # What may only be written is written all the same, and is not to be read
        done = client.replication.sync("inbox", target="many", prefix="/data/inbox/")
        assert (done.rows, done.conflicts) == (1, 0)
        assert there.kv.get("/data/inbox/1").value.text == "mail"
        with pytest.raises(OperationFailed, match="read keys that begin with '/data/inbox/'"):
            client.replication.sync("outbox", source="many", prefix="/data/inbox/", target_prefix="/data/back/")


def test_a_link_that_is_cut_while_it_is_used_ends_what_comes_over_it_until_it_is_made_again(two: Two) -> None:
    two.link()
    two.put("/data/cut/", "1", "2")
    job = two.follow("cut", "/data/cut/")
    until(lambda: two.brought("/data/cut/") == {"1", "2"}, PATIENCE_S)
    # Cut by the one that is read
    with two.many.client() as there:
        there.replication.unlink("single")
    two.put("/data/cut/", "3")
    until(lambda: "allowlist" in two.error("cut"), PATIENCE_S)
    assert two.brought("/data/cut/") == {"1", "2"}
    # Made again it goes on
    two.many.link("single", two.single)
    until(lambda: two.brought("/data/cut/") == {"1", "2", "3"}, PATIENCE_S)
    # What it may read is narrowed: it fails, and says why
    two.many.link("single", two.single, LinkScopes(read=["/data/other/"]))
    two.put("/data/cut/", "4")
    with two.single.client() as client:
        result = client.result(client.wait(job, timeout_s=PATIENCE_S).id)
        assert "'/data/cut/'" in result.message
        # Cut by the one that reads, there is no such link
        client.replication.unlink("many")
        with pytest.raises(OperationFailed, match="there is no link"):
            client.replication.sync("cut", source="many", prefix="/data/cut/")
    assert two.brought("/data/cut/") == {"1", "2", "3"}


@pytest.mark.slow
def test_a_partition_and_the_loss_of_the_node_that_is_read_are_got_over(two: Two) -> None:
    two.link()
    two.put("/data/lost/", "1")
    two.follow("lost", "/data/lost/")
    until(lambda: two.brought("/data/lost/") == {"1"}, PATIENCE_S)
    two.many.part(two.single)
    two.put("/data/lost/", "2")
    with two.many.client() as there:
        there.kv.delete("/data/lost/1")
    until(lambda: "is reached" in two.error("lost") or "sign of life" in two.error("lost"), PATIENCE_S)
    two.net.heal()
    until(lambda: two.brought("/data/lost/") == {"2"}, PATIENCE_S)
    # The one that leads, which may be the one that is read from
    two.many.leader().kill()
    two.many.leader()
    two.put("/data/lost/", "3")
    until(lambda: two.brought("/data/lost/") == {"2", "3"}, PATIENCE_S)
    with two.single.client() as client:
        assert client.replication.verify(source="many", prefix="/data/lost/").differences == []
