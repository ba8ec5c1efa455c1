"""What the API asks about queues and owners: who may, pages, views, changes."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import groupby, islice
from typing import Final

from msgspec import UNSET, Struct
from msgspec.structs import asdict, replace

from jobs import keys
from jobs.consensus import Consensus
from jobs.control.blobs.lookup import read_usage
from jobs.control.queries import check_admin, decode_cursor, encode_cursor
from jobs.control.queues import Queues
from jobs.protocol.model import (
    OwnerChange,
    OwnerSettings,
    OwnerView,
    QueueChange,
    QueuePage,
    QueueSettings,
    QueueView,
)
from jobs.scheduler.usage import Usage
from jobs.service import Caller
from jobs.store import Store, prefix_end

_KINDS: Final = (keys.QUEUES, keys.QUEUE, keys.WAITING)
"""Keys that name queues, in order of the names."""


class QueueOperations:
    """Implements `service.QueueService`."""

    def __init__(self, consensus: Consensus, store: Store, queues: Queues, usage: Usage) -> None:
        self._consensus = consensus
        self._store = store
        self._queues = queues
        self._usage = usage

    # --- queues -------------------------------------------------------------------------------------------------

    async def page(self, caller: Caller, *, limit: int, cursor: str | None) -> QueuePage:
        await self._consensus.barrier()
        after = b"" if cursor is None else keys.queue_name_of(keys.QUEUES, decode_cursor(cursor, keys.QUEUES))
        names = [name.decode() for name in islice(self._names(after), limit + 1)]
        shown = names[:limit]
        return QueuePage(
            queues=[self.view(name) for name in shown],
            next_cursor=encode_cursor(keys.queue_settings(shown[-1])) if len(names) > limit else None,
        )

    def _names(self, after: bytes) -> Iterator[bytes]:
        """Yield the queues that have settings or jobs, in order; a step costs the same however many there are."""
        running = sorted(encoded for name in self._usage.queues() if (encoded := name.encode()) > after)
        for name, _ in groupby(merge(running, *(self._names_of(kind, after) for kind in _KINDS))):
            yield name

    def _names_of(self, kind: bytes, after: bytes) -> Iterator[bytes]:
        while True:
            rows, _ = self._store.range(keys.after_queue(kind, after), prefix_end(kind), limit=1, keys_only=True)
            if not rows:
                return
            after = keys.queue_name_of(kind, rows[0][0])
            yield after

    async def get(self, caller: Caller, name: str) -> QueueView:
        await self._consensus.barrier()
        return self.view(name)

    async def put(self, caller: Caller, name: str, settings: QueueSettings) -> QueueView:
        return await self._set(caller, name, asdict(settings))

    async def change(self, caller: Caller, name: str, change: QueueChange) -> QueueView:
        return await self._set(caller, name, given(change))

    async def _set(self, caller: Caller, name: str, settings: dict[str, object]) -> QueueView:
        check_admin(caller, "set queues")
        await self._queues.change_queue(caller, "queue.set", name, lambda record: replace(record, **settings))
        return self.view(name)

    async def pause(self, caller: Caller, name: str, *, paused: bool) -> QueueView:
        action = "pause" if paused else "resume"
        check_admin(caller, f"{action} queues")
        await self._queues.change_queue(caller, f"queue.{action}", name, lambda record: replace(record, paused=paused))
        return self.view(name)

    async def drain(self, caller: Caller, name: str, *, draining: bool) -> QueueView:
        action = "drain" if draining else "open"
        check_admin(caller, f"{action} queues")
        await self._queues.change_queue(
            caller, f"queue.{action}", name, lambda record: replace(record, draining=draining)
        )
        return self.view(name)

    def view(self, name: str) -> QueueView:
        """Return a queue with its counts. A queue that nobody has set or used is as any other: empty."""
        counts = self._queues.counts
        return QueueView(
            name=name,
            pending=counts.of_queue(name),
            waiting=counts.waiting(name),
            running=self._usage.of_queue(name),
            **asdict(self._queues.queue(name)),
        )

    # --- owners -------------------------------------------------------------------------------------------------

    async def get_owner(self, caller: Caller, uid: int) -> OwnerView:
        if uid != caller.uid:
            check_admin(caller, "look at other owners")
        await self._consensus.barrier()
        return self._owner_view(uid)

    async def put_owner(self, caller: Caller, uid: int, settings: OwnerSettings) -> OwnerView:
        return await self._set_owner(caller, uid, asdict(settings))

    async def change_owner(self, caller: Caller, uid: int, change: OwnerChange) -> OwnerView:
        return await self._set_owner(caller, uid, given(change))

    async def _set_owner(self, caller: Caller, uid: int, settings: dict[str, object]) -> OwnerView:
        check_admin(caller, "set owners")
        await self._queues.change_owner(caller, uid, lambda record: replace(record, **settings))
        return self._owner_view(uid)

    def _owner_view(self, uid: int) -> OwnerView:
        blobs = read_usage(self._store, uid)
        return OwnerView(
            uid=uid,
            pending=self._queues.counts.of_owner(uid),
            running=self._usage.of_owner(uid),
            blobs=blobs.blobs,
            blob_bytes=blobs.size_bytes,
            **asdict(self._queues.owner(uid)),
        )


def given(change: Struct) -> dict[str, object]:
    """Return the fields of a change that were given."""
    return {name: value for name, value in asdict(change).items() if value is not UNSET}
