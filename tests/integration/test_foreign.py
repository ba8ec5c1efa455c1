"""Nodes of two clusters: what they may ask of each other, on one machine and over links that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from jobs._native import Endpoint, NativeError
from jobs.cluster.peers import LIMITS, MAX_FOREIGN, Asked, ForeignPeer, Opened, Peers
from jobs.net import RequestFailed, Stream, StreamBroken
from tests.support.loop import on_loop
from tests.support.netns import Network, network
from tests.support.netpeer import NetProcess, net_process

PATIENCE_S = 60
QUICK = {"idle_ms": 1_500, "backoff_cap_ms": 200, "handshake_ms": 500}


class Node:
    """A node's peers with handlers that say what came."""

    def __init__(self, folder: Path, name: str, cluster: str) -> None:
        endpoint = Endpoint(
            str(folder / f"{name}.key"), bind=["127.0.0.1:0"], cluster=cluster, node=name, limits=LIMITS
        )
        self.cluster = cluster
        self.peers = Peers(endpoint, folder)
        self.came: list[tuple[str, str, bytes]] = []
        for asked in Asked:
            if asked is not Asked.FOREIGN:
                self.peers.requests[asked] = self._answerer(asked.name)
        for opened in Opened:
            if opened is not Opened.FOREIGN:
                self.peers.streams[opened] = self._server(opened.name)
        self.peers.on_raft = lambda peer, message: self.came.append((peer, "RAFT", message))
        self.peers.on_foreign_request = self._answerer("foreign")
        self.peers.on_foreign_stream = self._server("foreign")
        self.hanging = asyncio.Event()
        self.given_up = asyncio.Event()

    def _answerer(self, what: str) -> Callable[[str, bytes], Awaitable[bytes]]:
        async def answer(peer: str, body: bytes) -> bytes:
            self.came.append((peer, what, body))
            if body == b"hang":
                self.hanging.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.given_up.set()
            return body[::-1]

        return answer

    def _server(self, what: str) -> Callable[[str, bytes, Stream], Awaitable[None]]:
        async def serve(peer: str, header: bytes, stream: Stream) -> None:
            self.came.append((peer, what, header))
            while part := await stream.read():
                await stream.write(part[::-1])

        return serve

    @property
    def entry(self) -> dict[str, ForeignPeer]:
        return {self.peers.id: ForeignPeer(cluster=self.cluster, addresses=tuple(self.peers.addresses))}


@contextlib.asynccontextmanager
async def pair(folder: Path, one: str = "blue", two: str = "green") -> AsyncIterator[tuple[Node, Node]]:
    """Nodes that know each other, as foreign when their clusters differ."""
    made = Node(folder, "n1", one), Node(folder, "n2", two)
    try:
        for node, other in (made, made[::-1]):
            if one == two:
                node.peers.allow({other.peers.id: other.peers.addresses})
            else:
                node.peers.allow_foreign(other.entry)
        yield made
    finally:
        for node in made:
            await node.peers.close()


async def echo(stream: Stream, data: bytes) -> bytes:
    await stream.write(data)
    await stream.finish()
    return await stream.read_exactly(len(data))


@on_loop
async def test_a_foreign_peer_is_heard_by_its_handlers_alone(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        # What it may: both ways
        for asker, asked in ((one, two), (two, one)):
            assert await asker.peers.ask_foreign(asked.peers.id, b"abc", PATIENCE_S) == b"cba"
            assert await echo(await asker.peers.open_foreign(asked.peers.id, b"header"), b"12") == b"21"
            assert asked.came == [(asker.peers.id, "foreign", b"abc"), (asker.peers.id, "foreign", b"header")]
            asked.came.clear()
        # What only members or guests may
        for what in Asked:
            if what is not Asked.FOREIGN:
                with pytest.raises(RequestFailed, match="a peer of another cluster may not ask this") as failed:
                    await two.peers.request(one.peers.id, what, b"abc", PATIENCE_S)
                assert (failed.value.kind, failed.value.maybe_done) == ("refused", False)
        for opened in Opened:
            if opened is not Opened.FOREIGN:
                stream = await two.peers.open_stream(one.peers.id, opened, b"header")
                with pytest.raises(StreamBroken) as broken:
                    await stream.read()
                assert broken.value.kind == "reset"
        assert not two.peers.send(one.peers.id, b"message")
        assert one.came == []
        assert one.peers.not_allowed == len(Asked) + len(Opened) - 2
        assert one.peers.up == two.peers.up == {}


@on_loop
async def test_without_handlers_nothing_is_heard(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        one.peers.on_foreign_request = one.peers.on_foreign_stream = None
        with pytest.raises(RequestFailed, match="may not ask this"):
            await two.peers.ask_foreign(one.peers.id, b"abc", PATIENCE_S)
        with pytest.raises(StreamBroken):
            await (await two.peers.open_foreign(one.peers.id, b"header")).read()
        assert one.peers.not_allowed == 2


@on_loop
async def test_a_member_is_not_heard_as_a_foreign_peer(tmp_path: Path) -> None:
    async with pair(tmp_path, "blue", "blue") as (one, two):
        # Whatever else is said of it: a member stays one
        one.peers.allow_foreign({two.peers.id: ForeignPeer(cluster="green", addresses=())})
        with pytest.raises(RequestFailed, match="not known here"):
            await two.peers.ask_foreign(one.peers.id, b"abc", PATIENCE_S)
        with pytest.raises(StreamBroken):
            await (await two.peers.open_foreign(one.peers.id, b"header")).read()
        assert one.came == []
        assert await two.peers.request(one.peers.id, Asked.MOVED, b"abc", PATIENCE_S) == b"cba"
        # Until it is none any more
        one.peers.allow({})
        cut_off = True
        while cut_off:
            with pytest.raises(RequestFailed) as failed:
                await two.peers.request(one.peers.id, Asked.MOVED, b"abc", PATIENCE_S)
            cut_off = failed.value.kind == "closed"
        assert 'known to be of, which is "green"' in str(failed.value)


@on_loop
async def test_who_is_no_longer_known_is_cut_off_while_members_change(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        member = Node(tmp_path, "n3", "blue")
        # A change of the members does not touch the foreign ones, and the other way round
        one.peers.allow({member.peers.id: member.peers.addresses})
        member.peers.allow({one.peers.id: one.peers.addresses})
        stream = await two.peers.open_foreign(one.peers.id, b"header")
        await stream.write(b"12")
        assert await stream.read_exactly(2) == b"21"
        waiting = asyncio.ensure_future(two.peers.ask_foreign(one.peers.id, b"hang", PATIENCE_S))
        await asyncio.wait_for(one.hanging.wait(), PATIENCE_S)
        one.peers.allow({})
        await stream.write(b"34")
        assert await stream.read_exactly(2) == b"43"
        one.peers.allow({member.peers.id: member.peers.addresses})
        # Taken off the list: what it has asked ends on both sides
        one.peers.allow_foreign({})
        with pytest.raises(RequestFailed, match="off the allowlist"):
            await waiting
        with pytest.raises(StreamBroken, match="off the allowlist"):
            await stream.read()
        await asyncio.wait_for(one.given_up.wait(), PATIENCE_S)
        with pytest.raises(RequestFailed, match="not on the allowlist"):
            await two.peers.ask_foreign(one.peers.id, b"abc", PATIENCE_S)
        with pytest.raises(RequestFailed, match="allowlist"):
            await one.peers.ask_foreign(two.peers.id, b"abc", PATIENCE_S)
        assert await member.peers.request(one.peers.id, Asked.MOVED, b"abc", PATIENCE_S) == b"cba"
        await member.peers.close()


@on_loop
async def test_what_cannot_be_a_foreign_peer_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        for number, (wrong, words) in enumerate(
            [
                ({"0" * 63: ForeignPeer(cluster="green", addresses=())}, "no endpoint id"),
                ({two.peers.id: ForeignPeer(cluster="blue", addresses=())}, "this node's own"),
                ({two.peers.id: ForeignPeer(cluster="green", addresses=("localhost:1",))}, "IP:PORT"),
                (dict.fromkeys(map(str, range(MAX_FOREIGN + 1)), ForeignPeer(cluster="x", addresses=())), "at most"),
            ]
        ):
            with pytest.raises(NativeError, match=words):
                one.peers.allow_foreign(wrong)
            # Nor is it in the way of the next change of the members
            one.peers.allow({Endpoint.generate_key()[1]: []} if number % 2 else {})
            assert await two.peers.ask_foreign(one.peers.id, b"abc", PATIENCE_S) == b"cba"


async def start(stack: contextlib.AsyncExitStack, net: Network, number: int, folder: Path, cluster: str) -> NetProcess:
    """Start the node of a cluster in a namespace of its own."""
    options = {
        "bind": f"{net.address(number)}:4700",
        "namespace": net.names[number - 1],
        "limits": QUICK,
        "env": {"NETPEER_CLUSTER": cluster},
    }
    return await stack.enter_async_context(net_process(folder, cluster, **options))


async def ask(asker: NetProcess, asked: NetProcess, body: str, words: str) -> None:
    """Ask until the answer, or why there is none, is in these words."""
    async with asyncio.timeout(PATIENCE_S):
        ended = ""
        while words not in ended:
            asker.order(ask=body, to=asked.id)
            ended = str(await asker.wait("answer", "failed"))


@on_loop
async def test_another_cluster_is_reached_again_after_a_partition_and_a_kill(tmp_path: Path) -> None:
    with network(2) as net:
        async with contextlib.AsyncExitStack() as stack:
            one, two = [
                await start(stack, net, number, tmp_path / cluster, cluster)
                for number, cluster in enumerate(("blue", "green"), 1)
            ]
            one.know_foreign((two, "green"))
            two.know_foreign((one, "blue"))
            for round_ in range(2):
                # Given work under way in the middle of a partition
                await ask(one, two, "abc", "abc")
                one.order(open=f"stream {round_}", to=two.id)
                await two.wait("stream", stream=f"stream {round_}")
                one.order(ask="hang", to=two.id)
                await two.wait("hanging")
                net.cut(2)
                # Then both sides are told, and nothing is reached meanwhile
                for end in (one, two):
                    await end.wait("broken", broken="closed")
                await one.wait("failed", failed="closed")
                await ask(two, one, "lost", "unreachable")
                net.mend(2)
                for asker, asked in ((one, two), (two, one)):
                    await ask(asker, asked, "again", "again")
            # When one is killed in the middle and lives again, it is the same peer
            one.order(ask="hang", to=two.id)
            await two.wait("hanging")
            await two.kill()
            await one.wait("failed", failed="closed")
            two = await start(stack, net, 2, two.folder, "green")
            two.know_foreign((one, "blue"))
            for asker, asked in ((one, two), (two, one)):
                await ask(asker, asked, "alive", "alive")
            # With its key, and in another cluster, nobody speaks for it
            await two.kill()
            other = await start(stack, net, 2, two.folder, "red")
            other.know_foreign((one, "blue"))
            for asker, asked in ((one, other), (other, one)):
                await ask(asker, asked, "secret", 'cluster "red" is not the one')
            counters = await one.counters()
            assert counters["refused_cluster"] >= 2
            assert [counters[f"refused_{kind}"] for kind in ("malformed", "truncated", "too_large")] == [0, 0, 0]
