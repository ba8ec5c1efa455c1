"""A node's part in the blobs of its cluster, put together: what it does for itself, for members and for who asks."""

from __future__ import annotations

import random

from jobs._native import Store
from jobs.blobs.host import BlobHost
from jobs.blobs.link import SUBJECT, LeaderLink
from jobs.blobs.members import KIND, Members
from jobs.blobs.operations import Operations
from jobs.blobs.repair import Reconciler, Repairer
from jobs.blobs.replication import Replicator
from jobs.blobs.snapshots import Snapshots
from jobs.blobs.store import BlobStore
from jobs.blobs.tending import Tending
from jobs.cluster import Peers
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.forward.orders import OrderDesk
from jobs.forward.questions import QuestionDesk
from jobs.forward.reach import Reach


class BlobPart:
    """Of a member, or of a node that is alone. `catalogue`, `replicator` and `snapshots` are what others here ask."""

    def __init__(
        self,
        blobs: BlobStore,
        site: Site,
        consensus: Consensus,
        store: Store,
        peers: Peers | None,
        reach: Reach | None,
        *,
        max_blob_bytes: int,
        grace_s: float,
    ) -> None:
        member = consensus.me
        self._blobs = blobs
        self.catalogue = link = LeaderLink(site, reach)
        tending = Tending(blobs, link, member, max_blob_bytes=max_blob_bytes, grace_ms=int(grace_s * 1_000))
        members = Members(peers, consensus, tending)
        self.replicator = Replicator(members, link)
        self.host = BlobHost(blobs, link, self.replicator, tending, member, max_blob_bytes)
        self.snapshots = Snapshots(site, consensus, store)
        self.operations = Operations(blobs, link, members, self.replicator, self.snapshots)
        chance = random.random
        self._repairer = Repairer(site, link, self.replicator, chance)
        self._reconciler = Reconciler(blobs, link, tending, member, chance)
        if peers is not None:
            QuestionDesk(SUBJECT, site, peers, lambda member: member in members.ids)
            OrderDesk(KIND, peers, tending.carry_out)
            peers.on_up = lambda peer: self._repairer.ring()
            peers.carry(blobs)

    def metrics(self) -> dict[str, tuple[str, float]]:
        """Prometheus metrics: name → (help, value)."""
        used = self._blobs.counted()
        told = {
            "jobs_blobs": ("Blobs on this node", "blobs"),
            "jobs_blobs_bytes": ("Their bytes", "bytes"),
            "jobs_blobs_partial_bytes": ("Bytes of blobs that are not whole yet", "partial_bytes"),
            "jobs_blobs_free_bytes": ("Bytes that blobs may still take on this node", "free_bytes"),
            "jobs_blobs_quarantined": ("Damaged blobs that were put aside", "quarantined"),
            "jobs_blobs_damages_total": ("Blobs that were found damaged", "damages"),
        }
        found: dict[str, tuple[str, float]] = {
            name: (text, used[field]) for name, (text, field) in told.items() if field in used
        }
        found["jobs_blob_copies_total"] = ("Copies that were made while this node led", self._repairer.repaired)
        return found

    def quarantined(self) -> int:
        """Return how many damaged blobs were put aside."""
        return self._blobs.counted().get("quarantined", 0)

    async def stop(self) -> None:
        await self._repairer.stop()
        await self._reconciler.stop()
        self.replicator.stop()
        self.catalogue.stop()
