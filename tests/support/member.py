"""A member of a group of one, over a real log and store."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from jobs._native import Log, Store
from jobs.consensus import Consensus, ConsensusConfig
from jobs.store import Op, Put, Txn


class Member:
    """Log, store and consensus in a directory."""

    def __init__(self, directory: Path, config: ConsensusConfig | None = None) -> None:
        self.directory = directory
        self.config = config

    async def __aenter__(self) -> Self:
        self.log = Log(str(self.directory / "log"), segment_bytes=1 << 20)
        self.store = Store(str(self.directory / "store"))
        self.consensus = Consensus("one", self.log, self.store, self.config)
        await self.consensus.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.consensus.stop()
        self.store.close()
        self.log.close()

    async def put(self, key: str, value: str = "v") -> int:
        return await self.apply(Put(key.encode(), value.encode()))

    async def apply(self, *ops: Op, size_bytes: int = 256) -> int:
        return (await self.consensus.propose(Txn(then=ops), size_bytes)).revision
