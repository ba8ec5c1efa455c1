"""The links of this cluster, as this node's store has them: with whose nodes it speaks, and what each may do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from jobs import keys, records
from jobs._native import NativeError
from jobs.cluster import ForeignPeer, Peers
from jobs.control.hub import Waiter
from jobs.control.replication.links import read_links
from jobs.errors import NotFound
from jobs.records import LinkRecord
from jobs.store import Store

logger = logging.getLogger(__name__)


class _Site(Protocol):
    def waiter(self, *prefixes: bytes) -> AbstractContextManager[Waiter]: ...


class Linked:
    """Tells the endpoint whom to speak with, at once when the links change. Its owner stops it."""

    def __init__(self, site: _Site, store: Store, peers: Peers | None) -> None:
        self._store = store
        self._peers = peers
        self._work = asyncio.get_running_loop().create_task(self._follow(site))

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])

    def named(self, name: str) -> LinkRecord:
        """Raises NotFound."""
        row = self._store.get(keys.link(name))
        if row is None:
            names = ", ".join(sorted(read_links(self._store))) or "none"
            raise NotFound(f"there is no link {name!r:.200}", expected=f"one of: {names} (jobctl replication links)")
        return records.decode(LinkRecord, row[1])

    def of(self, peer: str) -> LinkRecord | None:
        """Return the link to a node's cluster."""
        return next((link for link in read_links(self._store).values() if peer in link.peers), None)

    async def _follow(self, site: _Site) -> None:
        if self._peers is None:
            return
        with site.waiter(keys.LINKS) as bell:
            while True:
                allow(self._peers, read_links(self._store))
                await bell.wait(None)


def allow(peers: Peers, links: Mapping[str, LinkRecord]) -> None:
    """Have the endpoint speak with the nodes of these links, and with no other foreign ones."""
    try:
        peers.allow_foreign(_nodes(links))
    except NativeError as error:
        # Whatever was linked before must not stay: first nobody, then each link that can be had.
        logger.error("a link to another cluster cannot be had: %s", error)
        peers.allow_foreign({})
        taken: dict[str, LinkRecord] = {}
        for name, link in links.items():
            try:
                peers.allow_foreign(_nodes(taken | {name: link}))
                taken[name] = link
            except NativeError as refused:
                logger.error("link %s cannot be had: %s", name, refused)


def _nodes(links: Mapping[str, LinkRecord]) -> dict[str, ForeignPeer]:
    return {
        peer: ForeignPeer(cluster=link.cluster, addresses=addresses)
        for link in links.values()
        for peer, addresses in link.peers.items()
    }
