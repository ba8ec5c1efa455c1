"""Content of blobs on its way between a worker and its node, and what is done with files meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Final, Protocol, TypeVar

from jobs.client.failures import gone
from jobs.client.patience import Patience
from jobs.errors import BlobDamaged, BlobUnavailable, JobsError
from jobs.protocol.model import BlobAdded
from jobs.workers.nodeapi import NodeApi


class Closeable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T")
C = TypeVar("C", bound=Closeable)
PATIENCE_S: Final = 60.0
"""For how long a node that does not answer is asked again. Mostly the worker's lease ends before."""
STALL_S: Final = 120.0
"""Without a byte for this long, a node that answers is given up: it looks for the blob on other nodes meanwhile."""


# --- the node ---------------------------------------------------------------------------------------------------------


class Persistence:
    """Tells whether to try again what has failed, and waits before that."""

    def __init__(self) -> None:
        self._patience = Patience()

    def reset(self) -> None:
        """It went on meanwhile."""
        self._patience.reset()

    async def may_help(self, error: JobsError) -> bool:
        """Wait before another try, or tell that there should be none."""
        if isinstance(error, BlobUnavailable):
            return False  # who has it does not change while the node is asked
        chance = random.random()  # noqa: S311 - jitter
        pause_s = self._patience.pause_s(error, within_s=PATIENCE_S, now_s=time.monotonic(), chance=chance)
        if pause_s is None:
            return False
        await asyncio.sleep(pause_s)
        return True

    async def pause(self, error: JobsError) -> None:
        """Wait before another try; raise the error when there should be none."""
        if not await self.may_help(error):
            raise error


async def again(work: Callable[[], Awaitable[T]]) -> T:
    """Return what the work comes to; it is begun again where that may help."""
    persistence = Persistence()
    while True:
        try:
            return await work()
        except JobsError as error:
            await persistence.pause(error)


async def download(
    node: NodeApi, blob: str, path: str | None = None, size_bytes: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield a blob, or a file of a collection, going on where it was when the way to the node was lost.

    Raises JobsError, also for another size than it is to have.
    """
    done, total, persistence = 0, size_bytes, Persistence()
    while True:
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(STALL_S):
                    exchange = node.exchange("GET", f"/v1/blobs/{blob}", {"path": path}, headers=headers)
                    answer = await stack.enter_async_context(exchange)
                found = done + int(answer.headers["content-length"])
                if total is not None and found != total:
                    raise BlobDamaged(f"blob {blob} has {found} bytes; it had {total}")
                total = found
                pieces = await stack.enter_async_context(aclosing(answer.pieces()))
                while done < total:
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


# --- files ------------------------------------------------------------------------------------------------------------


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Return what the work returns; whoever gives up meanwhile waits for its end, as it uses what is theirs."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await _over(running)
        raise


@asynccontextmanager
async def held(opening: Callable[..., C], *arguments: object) -> AsyncIterator[C]:
    """Give what is opened, and close it in the end: also when it was given up while it was opened."""
    running = asyncio.ensure_future(asyncio.to_thread(opening, *arguments))
    try:
        opened = await asyncio.shield(running)
    except asyncio.CancelledError:
        await _over(running)
        if running.exception() is None:
            await in_thread(running.result().close)
        raise
    try:
        yield opened
    finally:
        await in_thread(opened.close)


async def _over(running: asyncio.Future[T]) -> None:
    """Return when it has ended, however often it is asked not to wait for that: it cannot be stopped."""
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    running.exception()


async def upload(node: NodeApi, pieces: Callable[[], AsyncGenerator[bytes]]) -> BlobAdded:
    """Add what comes as a blob of whoever the node is asked for. Raises JobsError, and what the pieces raise."""
    return await again(lambda: node.upload("/v1/blobs", BlobAdded, {}, pieces()))
