"""Compaction of the store's data file while it is used: a compact copy is made, follows it, and takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeAlias, TypeVar

from jobs._native import Compaction, DiskFullError, Log, Store
from jobs.consensus.member import APPLY_BYTES, APPLY_ENTRIES, command_of
from jobs.consensus.proposals import storage_full
from jobs.errors import Unavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

OnCopied: TypeAlias = Callable[[int, int], None]
"""Told on the event loop how many bytes are copied, of about how many."""

TRIES: Final = 3
"""How often a copy is begun that cannot catch up: what it lacks is cut from the log."""
LAST_ENTRIES: Final = 16
LAST_BYTES: Final = 1 << 20
"""What may be applied to the copy on the event loop, just before it takes the store's place."""
LAST_DOUBLINGS: Final = 3
"""How often the bound is doubled while it is exceeded, by a node that writes more than that in a moment."""


class _GivenUp(Exception):
    """Whoever wanted the compaction, or the node, has ended it."""


class Compactions:
    """Compactions of one store, one at a time. `installing` tells whether a snapshot is being taken in just now."""

    def __init__(self, log: Log, store: Store, threads: Executor, installing: Callable[[], bool]) -> None:
        self._log = log
        self._store = store
        self._threads = threads
        self._installing = installing
        self._compaction: Compaction | None = None
        self._over: asyncio.Event | None = None
        self._given_up = False

    @property
    def is_running(self) -> bool:
        return self._over is not None

    async def run(self, on_copied: OnCopied) -> tuple[int, int]:
        """Compact the data file; return its size in bytes before and after.

        Raises StorageFull when there is no room for a copy, Unavailable when there is a compaction already or the node
        stops, and when a copy could not catch up.
        """
        if self.is_running:
            raise Unavailable("the store is being compacted already", retry_after_s=60)
        self._over, self._given_up = asyncio.Event(), False
        before_bytes, _ = self._store.file_bytes()
        try:
            for _ in range(TRIES):
                if await self._try(on_copied):
                    after_bytes, _ = self._store.file_bytes()
                    logger.info("store compacted", extra={"before_bytes": before_bytes, "after_bytes": after_bytes})
                    return before_bytes, after_bytes
        except _GivenUp:
            raise Unavailable("the node is stopping", retry_after_s=1) from None
        except DiskFullError as error:
            raise storage_full(str(error)) from error
        finally:
            self._over.set()
            self._over = None
        raise Unavailable("the store is written faster than it can be compacted", retry_after_s=60)

    async def end(self) -> None:
        """Give up, and return when nothing of it is left."""
        if self._over is not None:
            self._given_up = True
            await self._over.wait()

    async def _try(self, on_copied: OnCopied) -> bool:
        """Make a copy and let it take the store's place. False: it lacks what is no longer in the log."""
        loop, total = asyncio.get_running_loop(), self._store.used_bytes()

        def on_bytes(copied: int) -> None:
            self._check_wanted()
            loop.call_soon_threadsafe(on_copied, min(copied, total), total)

        def begin() -> None:
            self._compaction = self._store.begin_compaction(on_bytes)

        try:
            await self._in_thread(begin)
            assert self._compaction is not None
            return await self._catch_up(self._compaction)
        finally:
            await self._in_thread(self._let_go)

    async def _catch_up(self, copy: Compaction) -> bool:
        doublings = 0
        while await self._in_thread(lambda: self._follow(copy)):
            # From here on nothing is applied to the store in between.
            if self._installing():
                return False
            lacking = self._store.applied_index - copy.applied_index
            entries = self._log.entries(copy.applied_index + 1, LAST_ENTRIES, LAST_BYTES << doublings)[:lacking]
            if len(entries) == lacking:
                self._apply(copy, entries)
                return copy.finish()
            doublings = min(doublings + 1, LAST_DOUBLINGS)
        return False

    def _follow(self, copy: Compaction) -> bool:
        """Apply to the copy what the store has applied. False: that is no longer in the log."""
        while (lacking := self._store.applied_index - copy.applied_index) > 0:
            self._check_wanted()
            entries = self._log.entries(copy.applied_index + 1, min(lacking, APPLY_ENTRIES), APPLY_BYTES)
            if not entries:
                return False
            self._apply(copy, entries)
        return True

    @staticmethod
    def _apply(copy: Compaction, entries: list[tuple[bytes, int, int]]) -> None:
        copy.apply([(index, term, command_of(payload, index)) for payload, index, term in entries])

    def _let_go(self) -> None:
        if self._compaction is not None:
            self._compaction.close()
            self._compaction = None

    def _check_wanted(self) -> None:
        if self._given_up:
            raise _GivenUp

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do some work on a thread. Who is cancelled meanwhile waits for it to notice."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._given_up = True
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            # What it came to is of no interest to who was cancelled.
            running.exception()
            raise
