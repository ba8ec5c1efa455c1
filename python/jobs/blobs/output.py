"""What jobs have written, kept as blobs of the node: `control.output.OutputBlobs` over a `BlobHost`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from jobs.blobs.host import BlobHost
from jobs.errors import Unavailable
from jobs.service import Caller

READER: Final = Caller(uid=0, gid=0, admin=True)
"""Who may see the job may see what it wrote: that is decided where the job is read."""


PATIENCE_S: Final = 10.0
"""A reader waits so long for a node that has just begun."""


class HostedOutput:
    """Made before the control plane, which needs it; the host, which needs the control plane, is given later."""

    def __init__(self) -> None:
        self._host: BlobHost | None = None
        self._given = asyncio.Event()

    def give(self, host: BlobHost) -> None:
        self._host = host
        self._given.set()

    async def add(self, owner: int, pieces: AsyncIterator[bytes]) -> str:
        """As `OutputBlobs` says."""
        await self._given.wait()
        assert self._host is not None
        added = await self._host.add(Caller(uid=owner, gid=owner, admin=False), pieces)
        return added.hash

    async def read(self, blob: str, offset: int, size_bytes: int) -> bytes:
        """As `OutputBlobs` says. Raises BlobUnavailable, BlobDamaged and Unavailable."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._given.wait()
        except TimeoutError:
            raise Unavailable("this node has not taken up its blobs yet", retry_after_s=1) from None
        assert self._host is not None
        async with self._host.reading(READER, blob) as found:
            return b"".join([piece async for piece in found.pieces(offset, offset + size_bytes)])
