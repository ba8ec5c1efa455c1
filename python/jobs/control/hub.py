"""Wakes whoever waits for a change in the store: pull, not push.

A watcher keeps its own cursor and reads what it missed from the store's history, at its own pace; the hub only tells
it that there is something under its prefix. A slow watcher therefore holds up nothing and costs no memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from jobs._native import CompactedError
from jobs.errors import Compacted, InvalidRequest
from jobs.store import Store

PAGE_EVENTS: Final = 512
IDLE_S: Final = 15.0
"""After this long without a change a watcher is told how far it has seen."""
READ_S: Final = 60
"""Who has read an old revision may go on with it for so long."""

Event: TypeAlias = tuple[int, bytes, bytes | None, int, int, int]
"""(revision, key, value or None for a delete, version, create_revision, lease)"""


class Waiter:
    """One watcher's bell."""

    __slots__ = ("_future", "_rung")

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        self._rung = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout_s: float | None) -> bool:
        """Return True once the bell rang since the last wait, False after `timeout_s`."""
        if not self._rung:
            self._future = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._future
            except TimeoutError:
                return False
            finally:
                self._future = None
        self._rung = False
        return True


class Reader:
    """Somebody who reads on from a revision: the history after it is needed."""

    __slots__ = ("revision",)

    def __init__(self, revision: int) -> None:
        self.revision = revision


class Hub:
    """Which prefixes are waited for, by whom, and from where on readers need history."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: set[Reader] = set()
        self._read: deque[tuple[int, int]] = deque()
        """Of each of the last seconds the oldest revision that was read, earliest first."""
        self._waiters: dict[int, dict[bytes, set[Waiter]]] = {}
        self._seen = store.revision

    @contextmanager
    def waiter(self, *prefixes: bytes) -> Iterator[Waiter]:
        """Ring the yielded waiter at every change of a key with one of these prefixes."""
        waiter = Waiter()
        if not self._waiters:
            self._seen = self._store.revision
        for prefix in prefixes:
            self._waiters.setdefault(len(prefix), {}).setdefault(prefix, set()).add(waiter)
        try:
            yield waiter
        finally:
            for prefix in prefixes:
                self._forget(prefix, waiter)

    def _forget(self, prefix: bytes, waiter: Waiter) -> None:
        by_prefix = self._waiters[len(prefix)]
        by_prefix[prefix].discard(waiter)
        if not by_prefix[prefix]:
            del by_prefix[prefix]
        if not by_prefix:
            del self._waiters[len(prefix)]

    # --- history ------------------------------------------------------------------------------------------------------

    @contextmanager
    def history(self, revision: int) -> Iterator[Reader]:
        """Yield a reader, who is to be moved on as it reads: what it may still want to see is not compacted because of
        its age, though it may be because there is too much."""
        reader = Reader(revision)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def on_read(self, revision: int) -> None:
        """Somebody has read the store as it was at a revision, and may go on with that page by page."""
        second = self._forget_reads()
        if self._read and self._read[-1][0] == second:
            revision = min(revision, self._read.pop()[1])
        self._read.append((second, revision))

    @property
    def oldest_needed(self) -> int | None:
        """Revision after which the history is needed, or which itself is; None where nobody reads.

        Who asks for what is gone already keeps nothing.
        """
        self._forget_reads()
        needed = [*(reader.revision for reader in self._readers), *(revision for _, revision in self._read)]
        return min((revision for revision in needed if revision >= self._store.compact_revision), default=None)

    def _forget_reads(self) -> int:
        """Leave only what was read lately; return which second it is."""
        second = int(time.monotonic())
        while self._read and self._read[0][0] < second - READ_S:
            self._read.popleft()
        return second

    # --- watching -----------------------------------------------------------------------------------------------------

    def on_applied(self) -> None:
        """Ring everyone whose prefix changed since the last call."""
        while self._waiters and self._seen < self._store.revision:
            try:
                events, self._seen = self._store.events(self._seen, [b""], limit=PAGE_EVENTS)
            except CompactedError:
                self._seen = self._store.revision
                self._ring_all()
                return
            for event in events:
                for length, by_prefix in self._waiters.items():
                    for waiter in by_prefix.get(event[1][:length], ()):
                        waiter.ring()

    def _ring_all(self) -> None:
        for by_prefix in self._waiters.values():
            for waiters in by_prefix.values():
                for waiter in waiters:
                    waiter.ring()

    async def watch(self, prefix: bytes, after_revision: int | None) -> AsyncIterator[list[Event] | int]:
        """Yield events after a revision (None: from now) as they come, and the revision seen so far when there are
        none at first, and when idle.

        Raises Compacted when the history after that revision is no longer kept, and InvalidRequest for a revision that
        has not been reached: of another store, or of a later time than this one was restored to.
        """
        cursor = self._store.revision if after_revision is None else after_revision
        if cursor > self._store.revision:
            raise InvalidRequest(
                f"revision {cursor} has not been reached",
                field="after_revision",
                expected=f"at most {self._store.revision}",
            )
        greeted = False
        with self.waiter(prefix) as waiter, self.history(cursor) as reader:
            while True:
                try:
                    events, seen = self._store.events(cursor, [prefix], limit=PAGE_EVENTS)
                except CompactedError as error:
                    raise Compacted(
                        str(error), expected=f"a revision from {self._store.compact_revision} on, or a fresh read"
                    ) from error
                progressed, cursor = seen > cursor, max(seen, cursor)
                reader.revision = cursor
                if events:
                    yield events
                elif not progressed and (not greeted or not await waiter.wait(IDLE_S)):
                    yield cursor
                greeted = greeted or bool(events) or not progressed
