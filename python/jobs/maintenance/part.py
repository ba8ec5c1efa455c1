"""A node's part in the maintenance of its cluster, put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs._native import Log, Store
from jobs.blobs.part import BlobPart
from jobs.cluster import Peers
from jobs.consensus import Consensus
from jobs.control import Site
from jobs.forward.orders import OrderDesk
from jobs.forward.questions import QuestionDesk
from jobs.forward.reach import Reach
from jobs.maintenance.attending import Attending
from jobs.maintenance.examination import Machine
from jobs.maintenance.link import SUBJECT, LeaderLink
from jobs.maintenance.members import KIND, Members
from jobs.maintenance.operations import MaintenanceConfig, Operations
from jobs.maintenance.pacing import Pacing


class MaintenancePart:
    """Of a member, or of a node that is alone."""

    def __init__(
        self,
        site: Site,
        consensus: Consensus,
        store: Store,
        log: Log,
        blobs: BlobPart,
        peers: Peers | None,
        reach: Reach | None,
        *,
        directories: dict[str, Path],
        secrets: Callable[[], tuple[Path, ...]],
        max_store_bytes: int,
        config: MaintenanceConfig,
    ) -> None:
        machine = Machine(
            consensus,
            store,
            directories=directories,
            secrets=secrets,
            max_store_bytes=max_store_bytes,
            quarantined=blobs.quarantined,
        )
        pacing = Pacing(lambda: consensus.commit_s)
        attending = Attending(site, consensus, store, log, machine, pacing)
        members = Members(peers, consensus, attending)
        self.operations = Operations(
            LeaderLink(site, reach),
            members,
            pacing,
            site,
            store,
            blobs.operations,
            blobs.replicator.members,
            config,
        )
        if peers is not None:
            QuestionDesk(SUBJECT, site, peers, lambda member: member in members.ids)
            OrderDesk(KIND, peers, attending.carry_out)
