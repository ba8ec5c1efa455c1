"""The links that a node's store has are the foreign peers of its endpoint, at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs import keys, records
from jobs._native import Endpoint
from jobs.cluster import ForeignPeer, Peers
from jobs.errors import NotFound
from jobs.net import RequestFailed
from jobs.protocol.model import LinkScopes
from jobs.records import LinkRecord
from jobs.replication.linked import Linked
from jobs.store import Delete, Op, Put, Txn
from tests.support.loop import on_loop
from tests.support.plane import Plane

PATIENCE_S = 60


async def answer(peer: str, body: bytes) -> bytes:
    return body[::-1]


class Far:
    """A node of another cluster."""

    def __init__(self, folder: Path, cluster: str) -> None:
        endpoint = Endpoint(str(folder / f"{cluster}.key"), bind=["127.0.0.1:0"], cluster=cluster, node=cluster)
        self.peers = Peers(endpoint, folder)

    def record(self, cluster: str) -> LinkRecord:
        peers = {self.peers.id: tuple(self.peers.addresses)}
        return LinkRecord(cluster=cluster, peers=peers, scopes=LinkScopes(), created_ms=1)


class Near:
    """A node whose endpoint follows its store."""

    def __init__(self, plane: Plane) -> None:
        endpoint = Endpoint(str(plane.directory / "near.key"), bind=["127.0.0.1:0"], cluster="blue", node="near")
        self.peers = Peers(endpoint, plane.directory)
        self.peers.on_foreign_request = answer
        self._plane = plane
        self.linked = Linked(plane.site, plane.store, self.peers)

    async def write(self, **links: LinkRecord | None) -> None:
        ops: list[Op] = [
            Delete(keys.link(name)) if link is None else Put(keys.link(name), records.encode(link))
            for name, link in links.items()
        ]
        await self._plane.consensus.propose(Txn(then=tuple(ops)))

    async def reaches(self, far: Far) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await far.peers.ask_foreign(self.peers.id, b"abc", PATIENCE_S) == b"cba"
        except RequestFailed:
            return False

    async def until(self, far: Far, *, reached: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.reaches(far) is not reached:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[tuple[Near, Far, Far]]:
    async with Plane(folder) as plane:
        near, far = Near(plane), (Far(folder, "green"), Far(folder, "red"))
        for one in far:
            one.peers.allow_foreign({near.peers.id: _entry(near)})
        try:
            yield near, *far
        finally:
            await near.linked.stop()
            for peers in (near.peers, *(one.peers for one in far)):
                await peers.close()


def _entry(near: Near) -> ForeignPeer:
    return ForeignPeer(cluster="blue", addresses=tuple(near.peers.addresses))


@on_loop
async def test_links_are_followed_as_they_come_change_and_go(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (near, green, red):
        assert not await near.reaches(green)
        await near.write(north=green.record("green"), south=red.record("red"))
        await near.until(green, reached=True)
        await near.until(red, reached=True)
        assert near.linked.named("north") == near.linked.of(green.peers.id) == green.record("green")
        # One is cut while the other stays
        await near.write(north=None)
        await near.until(green, reached=False)
        await near.until(red, reached=True)
        with pytest.raises(NotFound, match="there is no link 'north'") as gone:
            near.linked.named("north")
        assert "south" in (gone.value.expected or "")
        assert near.linked.of(green.peers.id) is None
        # It leads to another cluster than the node's own now
        await near.write(south=red.record("green"))
        await near.until(red, reached=False)


@on_loop
async def test_a_link_that_cannot_be_had_keeps_none_from_being_cut(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (near, green, red):
        await near.write(north=green.record("green"), south=red.record("red"))
        await near.until(green, reached=True)
        await near.write(
            north=None, broken=LinkRecord(cluster="blue", peers={"x": ()}, scopes=LinkScopes(), created_ms=1)
        )
        await near.until(green, reached=False)
        await near.until(red, reached=True)


@on_loop
async def test_a_node_that_starts_again_knows_its_links(tmp_path: Path) -> None:
    async with nodes(tmp_path) as (near, green, _):
        await near.write(north=green.record("green"))
        await near.until(green, reached=True)
    async with nodes(tmp_path) as (near, green, _):
        await near.until(green, reached=True)
