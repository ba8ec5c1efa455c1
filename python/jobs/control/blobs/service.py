"""The catalogue as one object: what the API asks (`service.BlobService`), and what nodes ask (`Catalogue`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jobs.blobs.catalogue import Entry, NewBlob
from jobs.consensus import Consensus
from jobs.control.blobs.collect import Collector
from jobs.control.blobs.collections import Collections
from jobs.control.blobs.entries import Entries
from jobs.control.blobs.numbers import BlobConfig
from jobs.control.blobs.owners import Owners
from jobs.control.blobs.references import References
from jobs.control.blobs.sharing import Sharing
from jobs.control.blobs.tags import Tags
from jobs.control.blobs.upkeep import Upkeep
from jobs.control.blobs.views import Views
from jobs.control.blobs.writer import Decide, Writer
from jobs.control.hub import Hub
from jobs.control.queues import Queues
from jobs.control.tasks import Spawn
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.protocol.model import (
    BlobCollect,
    BlobCollectPage,
    BlobPage,
    BlobShare,
    BlobTag,
    BlobTagPage,
    BlobTagSet,
    BlobTicket,
    BlobView,
)
from jobs.service import Caller
from jobs.store import Store

T = TypeVar("T")


class Blobs:
    """Implements `service.BlobService` and `blobs.catalogue.Catalogue`."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        hub: Hub,
        queues: Queues,
        spawn: Spawn,
        config: BlobConfig,
        *,
        is_admin: Callable[[int], bool],
        check_space: Callable[[RequestId], None],
    ) -> None:
        self._spawn = spawn
        self._check_space = check_space
        self.references = References(store)
        self._writer = writer = Writer(consensus, store, spawn, config.replicas)
        owners = Owners(queues, config)
        collections = Collections(store, writer)
        self._entries = Entries(consensus, store, writer, owners, collections)
        self._tags = Tags(consensus, store, writer)
        self._sharing = Sharing(consensus, store, writer, owners, collections, is_admin)
        self._collector = Collector(consensus, store, writer, collections, self._sharing, config)
        self._views = Views(consensus, store, writer)
        self._upkeep = Upkeep(consensus, store, hub, writer, collections)

    def start(self) -> None:
        """Go on with what was begun, and follow the members."""
        self._spawn(self._upkeep.run())

    def stop(self) -> None:
        """Change nothing any more."""
        self._writer.stop()

    @property
    def condemned_total(self) -> int:
        return self._collector.condemned_total

    # --- what nodes ask ---------------------------------------------------------------------------------------------

    async def register(self, caller: Caller, blob: NewBlob, holder: str) -> tuple[Entry, bool]:
        self._check_space(NO_REQUEST)
        return await self._entries.register(caller, blob, holder)

    async def claim(self, caller: Caller, ticket: str) -> Entry:
        self._check_space(NO_REQUEST)
        return await self._sharing.claim(caller, ticket)

    async def readable(self, caller: Caller, blob: str) -> Entry:
        return await self._entries.readable(caller, blob)

    async def held(self, member: str, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        await self._entries.held(member, here, gone)

    async def wanted(self, member: str, blobs: tuple[str, ...]) -> tuple[bool, ...]:
        return await self._entries.wanted(member, blobs)

    async def replicate(self, caller: Caller, blob: str, replicas: int) -> Entry:
        return await self._entries.replicate(caller, blob, replicas)

    async def lacking(self, after: str, limit: int) -> tuple[Entry, ...]:
        return await self._entries.lacking(after, limit)

    async def entries(self, after: str, limit: int, holder: str = "") -> tuple[Entry, ...]:
        return await self._entries.entries(after, limit, holder)

    async def children(self, blob: str) -> tuple[str, ...]:
        return await self._entries.children(blob)

    async def change(self, decide: Decide[T], request: RequestId) -> T:
        """Change the catalogue, and what else is staged with it, as `Writer.change` does."""
        return await self._writer.change(decide, request)

    # --- what the API asks ------------------------------------------------------------------------------------------

    async def page(self, caller: Caller, *, owner: int | None, limit: int, cursor: str | None) -> BlobPage:
        return await self._views.page(caller, owner=owner, limit=limit, cursor=cursor)

    async def view(self, caller: Caller, blob: str) -> BlobView:
        return await self._views.get(caller, blob)

    async def forget(self, caller: Caller, blob: str) -> None:
        await self._sharing.forget(caller, blob)

    async def tags(self, caller: Caller, *, prefix: str, limit: int, cursor: str | None) -> BlobTagPage:
        return await self._tags.page(caller, prefix=prefix, limit=limit, cursor=cursor)

    async def tag(self, caller: Caller, name: str) -> BlobTag:
        return await self._tags.get(caller, name)

    async def set_tag(self, caller: Caller, name: str, wanted: BlobTagSet) -> BlobTag:
        self._check_space(caller.request_id)
        return await self._tags.set(caller, name, wanted)

    async def delete_tag(self, caller: Caller, name: str) -> None:
        await self._tags.delete(caller, name)

    async def share(self, caller: Caller, blob: str, wanted: BlobShare) -> BlobTicket:
        self._check_space(NO_REQUEST)
        return await self._sharing.share(caller, blob, wanted)

    async def collect(self, caller: Caller, wanted: BlobCollect) -> BlobCollectPage:
        return await self._collector.page(caller, wanted)
