"""Replication as one object: what the API asks (`service.ReplicationService`), and what nodes ask of the leader."""

from __future__ import annotations

from collections.abc import Callable

from jobs.consensus import Consensus
from jobs.control.blobs import Blobs
from jobs.control.replication.apply import Applier
from jobs.control.replication.bounds import ReplicationConfig
from jobs.control.replication.links import Links
from jobs.control.replication.syncs import Syncs
from jobs.control.replication.tags import TagApplier
from jobs.protocol.ids import RequestId
from jobs.protocol.model import ConflictPage, Invitation, LinkList, LinkSet, LinkView, SyncList
from jobs.records import SyncRecord
from jobs.replication.messages import Applied, Batch, TagBatch
from jobs.service import Caller
from jobs.store import Store


class Replication:
    """Implements `service.ReplicationService`."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        blobs: Blobs,
        config: ReplicationConfig,
        check_space: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._links = Links(consensus, store, config)
        self._syncs = Syncs(consensus, store, config)
        self._applier = Applier(consensus, store, config, check_space)
        self._tags = TagApplier(store, blobs, self._applier, config)

    # --- what the API asks ------------------------------------------------------------------------------------------

    async def links(self, caller: Caller) -> LinkList:
        return await self._links.all(caller)

    async def set_link(self, caller: Caller, name: str, wanted: LinkSet) -> LinkView:
        return await self._links.set(caller, name, wanted)

    async def delete_link(self, caller: Caller, name: str) -> None:
        await self._links.delete(caller, name)

    async def invitation(self, caller: Caller) -> Invitation:
        return await self._links.invitation(caller)

    async def syncs(self, caller: Caller) -> SyncList:
        return await self._syncs.all(caller)

    async def delete_sync(self, caller: Caller, name: str) -> None:
        await self._syncs.delete(caller, name)

    async def conflicts(self, caller: Caller, name: str, *, limit: int, cursor: str | None) -> ConflictPage:
        return await self._syncs.conflicts(caller, name, limit=limit, cursor=cursor)

    # --- what nodes ask ---------------------------------------------------------------------------------------------

    async def apply(self, batch: Batch, request: RequestId) -> Applied:
        return await self._applier.apply(batch, request)

    async def apply_tags(self, batch: TagBatch, request: RequestId) -> Applied:
        return await self._tags.apply(batch, request)

    async def set_sync(self, name: str, record: SyncRecord) -> None:
        await self._syncs.set(name, record)

    async def reached(self) -> int:
        """Return a revision of the store that holds all that was answered before this was asked."""
        await self._consensus.barrier()
        return self._store.revision
