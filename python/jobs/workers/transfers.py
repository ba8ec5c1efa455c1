"""Content of blobs on its way between a worker of another type and its node."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Final, TypeVar

from jobs.client.failures import gone
from jobs.client.patience import Patience
from jobs.errors import BlobDamaged, BlobUnavailable, JobsError
from jobs.protocol.model import BlobAdded
from jobs.workers.blob.api import NodeApi

T = TypeVar("T")
PATIENCE_S: Final = 60.0
"""For how long a node that cannot be reached is asked again."""
STALL_S: Final = 120.0
"""Without a byte for this long, a node that answers is given up: it looks for the blob on other nodes meanwhile."""


class _Persistence:
    """Tells whether to try again what has failed, and waits before that."""

    def __init__(self) -> None:
        self._patience = Patience()

    def reset(self) -> None:
        """It went on meanwhile."""
        self._patience.reset()

    async def pause(self, error: JobsError) -> None:
        """Wait before another try; raise the error when there should be none."""
        pause_s = None
        if not isinstance(error, BlobUnavailable):  # who has it does not change while the node is asked
            chance = random.random()  # noqa: S311 - jitter
            pause_s = self._patience.pause_s(error, within_s=PATIENCE_S, now_s=time.monotonic(), chance=chance)
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)


async def again(work: Callable[[], Awaitable[T]]) -> T:
    """Return what the work comes to; it is begun anew where that may help."""
    persistence = _Persistence()
    while True:
        try:
            return await work()
        except JobsError as error:
            await persistence.pause(error)


async def download(node: NodeApi, blob: str, path: str | None, size_bytes: int) -> AsyncGenerator[bytes]:
    """Yield the content of a blob, or of a file of a collection, going on where it was when the way to the node was
    lost. Raises JobsError, also for another size than it is to have."""
    done, persistence = 0, _Persistence()
    while True:
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(STALL_S):
                    exchange = node.exchange("GET", f"/v1/blobs/{blob}", {"path": path}, headers=headers)
                    answer = await stack.enter_async_context(exchange)
                if done + int(answer.headers.get("content-length", -1)) != size_bytes:
                    raise BlobDamaged(f"blob {blob} has another size than {size_bytes} bytes")
                pieces = await stack.enter_async_context(aclosing(answer.pieces()))
                while done < size_bytes:
                    async with asyncio.timeout(STALL_S):
                        piece = await anext(pieces)
                    done += len(piece)
                    persistence.reset()
                    yield piece
                return
        except TimeoutError as error:  # where it is not told as a lost connection
            await persistence.pause(gone(error))
        except JobsError as error:
            await persistence.pause(error)


async def upload(node: NodeApi, pieces: Callable[[], AsyncGenerator[bytes]]) -> BlobAdded:
    """Add what comes as a blob of whoever the node is asked for. Raises JobsError, and what the pieces raise."""
    return await again(lambda: node.upload("/v1/blobs", BlobAdded, {}, pieces()))
