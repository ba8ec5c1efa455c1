"""Snapshots of one member: taken, so that the log can be cut; sent to who lacks what was cut; taken in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from jobs._native import Log, Store, failpoint
from jobs.consensus import clock
from jobs.consensus.member import Member
from jobs.consensus.network import Network
from jobs.errors import Unavailable

logger = logging.getLogger(__name__)

RETRY_S: Final = 1.0
TRAIL_SHARE: Final = 0.5
"""Of the log: how much is kept behind a snapshot for members that lack it."""


class Snapshots:
    """`answers` tells whether a member is there; `fail` is told when log and store cannot be gone on with."""

    def __init__(
        self,
        member: Member,
        log: Log,
        store: Store,
        network: Network,
        threads: Executor,
        *,
        answers: Callable[[str], bool],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._member = member
        self._log = log
        self._store = store
        self._network = network
        self._threads = threads
        self._answers = answers
        self._fail = fail
        self._taking: asyncio.Future[int] | None = None
        self._sending: set[str] = set()
        """Members that a snapshot is on its way to, or that one could not be sent to just now."""
        self.sent = 0
        self.taken_in = 0

    # --- taking -----------------------------------------------------------------------------------------------------

    @property
    def is_taking(self) -> bool:
        return self._taking is not None

    async def take(self) -> int:
        """Write a snapshot of the store, cut the log behind it, and return the snapshot's index."""
        if self._taking is None:
            self._taking = asyncio.get_running_loop().run_in_executor(self._threads, self._store.snapshot)
            self._taking.add_done_callback(self._on_taken)
        return await asyncio.shield(self._taking)

    async def take_in_background(self) -> None:
        try:
            await self.take()
        except Exception:
            logger.exception("snapshot failed; the log keeps growing until one succeeds")

    async def finish_taking(self) -> None:
        """Return when none is being taken."""
        if self._taking is not None:
            await asyncio.wait([self._taking])

    def _on_taken(self, future: asyncio.Future[int]) -> None:
        self._taking = None
        if future.cancelled() or future.exception() is not None:
            return
        try:
            failpoint("consensus.cut.before")
            self._member.cut_log(self._cut_index(future.result()))
            failpoint("consensus.cut.after")
            logger.info("snapshot taken", extra={"index": future.result(), "log_bytes": self._log.size_bytes})
        except Exception as error:
            self._fail(error)

    def _cut_index(self, snapshot: int) -> int:
        """Return the oldest entry to keep: the snapshot's own, or what members that are there still lack, as long as
        that is not too much."""
        raft, members = self._member.raft, self._member.members
        lacking = [raft.match_index(record.id) for record in members.records if self._answers(record.id)]
        keep = min([snapshot, *lacking]) if raft.leads else snapshot
        entries = self._log.last_index - self._log.first_index + 1
        most = int(entries * TRAIL_SHARE)
        return min(snapshot, max(keep, self._log.last_index - most))

    # --- sending ----------------------------------------------------------------------------------------------------

    def take_needy(self) -> list[str]:
        """Return members that lack what is no longer in the log, and that no snapshot is on its way to: `send` is to be
        called for each."""
        needy = sorted(self._member.raft.needs_snapshot - self._sending)
        self._sending.update(needy)
        return needy

    async def send(self, peer: str) -> None:
        """Send a member the newest snapshot from which the log goes on."""
        try:
            if self._store.snapshot_index < max(self._log.first_index, 1):
                await self.take()
            index, path = self._store.snapshot_index, self._store.snapshot_path()
            if path is None:
                raise Unavailable("there is no snapshot")
            name = self._member.members.name_of(peer)
            logger.info("%s lacks entries that are gone: it is sent a snapshot", name, extra={"index": index})
            failpoint("consensus.snapshot.send.before")
            await self._network.send_file(peer, f"snapshot-{index}", Path(path))
            failpoint("consensus.snapshot.send.after")
            self._member.raft.needs_snapshot.discard(peer)
            self.sent += 1
        except Exception as error:
            logger.warning("a snapshot could not be sent to %s: %s", self._member.members.name_of(peer), error)
            await asyncio.sleep(RETRY_S)
        finally:
            self._sending.discard(peer)

    # --- taking in --------------------------------------------------------------------------------------------------

    async def take_in(self, peer: str, path: Path) -> None:
        """Take in a snapshot file of a peer, which the store then owns. No step may come meanwhile.

        Raises NativeError for a file that is damaged.
        """
        await self.finish_taking()
        failpoint("consensus.install.before")
        await asyncio.get_running_loop().run_in_executor(self._threads, self._store.install, str(path))
        failpoint("consensus.install.after")
        try:
            self._member.on_snapshot_installed(clock.now_s())
        except Exception as error:
            # The store is ahead of the log now: a restart mends that.
            self._fail(error)
            raise
        self.taken_in += 1
        logger.info("snapshot taken in", extra={"index": self._store.applied_index, "peer": peer})
