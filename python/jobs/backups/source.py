"""What a node gives to the worker that makes backups: its store as a snapshot, as changes, and as rows at a revision.

Each answer holds all that was acknowledged before it was asked for, whatever node is asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from jobs._native import CompactedError, FutureRevisionError
from jobs.backups import messages as m
from jobs.backups.frames import FrameEncoder
from jobs.backups.rebuild import state_of
from jobs.control.queries import check_admin
from jobs.errors import Compacted, InvalidRequest
from jobs.protocol.ids import Revision
from jobs.protocol.model import StoreState
from jobs.service import Caller
from jobs.store import Store, prefix_end

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAGE: Final = 5_000
PIECE_BYTES: Final = 1 << 20
_ALL: Final = [b""]


class Snapshots(Protocol):
    """The store of this node, as a snapshot of it is made."""

    async def reach(self, revision: int) -> None:
        """Return once the store is so far."""

    async def make(self) -> int:
        """Write a snapshot and return a descriptor of its file, which the caller closes."""


class SnapshotFile(Struct, frozen=True):
    """An open snapshot, which the caller closes."""

    descriptor: int
    size_bytes: int
    cluster: str

    async def pieces(self) -> AsyncGenerator[bytes]:
        while piece := await asyncio.to_thread(os.read, self.descriptor, PIECE_BYTES):
            yield piece


class BackupSource:
    """`reached` returns a revision that holds all that was answered before; `cluster` is the id of this node's."""

    def __init__(
        self,
        store: Store,
        snapshots: Snapshots,
        reached: Callable[[Caller], Awaitable[int]],
        cluster: Callable[[], str],
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._reached = reached
        self._cluster = cluster

    async def snapshot(self, caller: Caller) -> SnapshotFile:
        """Return the store as it is now, in the form of `Store.install`."""
        await self._catch_up(caller)
        descriptor = await self._snapshots.make()
        try:
            return SnapshotFile(descriptor, os.fstat(descriptor).st_size, self._cluster())
        except BaseException:
            os.close(descriptor)
            raise

    async def changes(self, caller: Caller, after: int) -> AsyncGenerator[bytes]:
        """Yield what was changed after a revision up to now, as frames. Raises Compacted, and InvalidRequest for a
        revision that is not there yet."""
        await self._catch_up(caller)
        # Both of one moment: what is applied is applied on this thread.
        until, leases = self._store.revision, self._store.leases()
        _check_there(after, until, "after")
        encoder = FrameEncoder(m.CHANGES)
        head = m.ChangesHead(cluster=self._cluster(), from_revision=after, to_revision=until, leases=leases)
        yield encoder.head() + encoder.frame(m.encode(head))
        at = after
        while at < until:
            events, at = await self._read(self._store.events, at, _ALL, limit=PAGE, max_bytes=m.ENTRY_BYTES)
            wanted = [event for event in events if event[0] <= until]
            if wanted:
                yield encoder.frame(m.encode(wanted))
        yield encoder.end()

    async def rows(self, caller: Caller, prefix: bytes, revision: int, *, keys_only: bool) -> AsyncGenerator[bytes]:
        """Yield the keys with a prefix at a revision, by default the newest, as frames. Raises Compacted."""
        await self._catch_up(caller)
        newest = self._store.revision
        _check_there(revision, newest, "revision")
        revision = revision or newest
        encoder = FrameEncoder(m.ROWS)
        yield encoder.head() + encoder.frame(m.encode(m.RowsHead(cluster=self._cluster(), revision=revision)))
        start, more = prefix, True
        while more:
            rows, more = await self._read(
                self._store.range,
                start,
                prefix_end(prefix),
                limit=PAGE,
                revision=revision,
                keys_only=keys_only,
                max_bytes=m.ENTRY_BYTES,
            )
            if rows:
                start = rows[-1][0] + b"\x00"
                yield encoder.frame(m.encode(rows))
        yield encoder.end()

    async def state(self, caller: Caller, revision: int) -> StoreState:
        """Return what all keys come to at a revision. Raises Compacted."""
        await self._catch_up(caller)
        _check_there(revision, self._store.revision, "revision")
        found = await self._read(state_of, self._store, revision)
        return StoreState(revision=Revision(revision), digest=found.digest, rows=found.rows, bytes=found.size_bytes)

    async def _catch_up(self, caller: Caller) -> None:
        check_admin(caller, "read the whole store")
        await self._snapshots.reach(await self._reached(caller))

    async def _read(self, reading: Callable[..., T], *arguments: object, **options: object) -> T:
        """Read in a thread, so that others have their turn."""
        try:
            return await asyncio.to_thread(reading, *arguments, **options)
        except CompactedError as error:
            raise Compacted(str(error), expected="a later revision, or a full backup") from error
        except FutureRevisionError as error:
            raise InvalidRequest(str(error), field="revision", expected="a revision of this cluster") from error


def _check_there(revision: int, newest: int, field: str) -> None:
    """Raise InvalidRequest for a revision that the cluster has not come to."""
    if revision > newest:
        raise InvalidRequest(
            f"the store is at revision {newest}, and {revision} is asked for",
            field=field,
            expected="a revision of this cluster",
        )
