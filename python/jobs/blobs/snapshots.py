"""The store of this node as a snapshot of it is made, for whoever reads all of it."""

from __future__ import annotations

import os
from pathlib import Path

from jobs._native import Store
from jobs.consensus import Consensus
from jobs.control import Site


class Snapshots:
    """Implements `operations.Snapshots` and `backups.source.Snapshots` with the snapshots that cut the log."""

    def __init__(self, site: Site, consensus: Consensus, store: Store) -> None:
        self._site = site
        self._consensus = consensus
        self._store = store

    async def reach(self, revision: int) -> None:
        await self._site.reach(revision)

    async def make(self) -> int:
        applied = self._store.applied_index
        while True:
            if await self._consensus.snapshot() < applied:
                continue  # it was being taken already, of what was there before
            path = self._store.snapshot_path()
            assert path is not None, "one was just taken"
            try:
                return os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # a newer one has taken its place
