"""What operations with files have in common: where series are, what is read of the node, and errors in words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from jobs.backups import messages as m
from jobs.backups.crypt import IdentityError, read_identities
from jobs.backups.frames import FrameDecoder, FrameError
from jobs.backups.series import Series
from jobs.backups.shelf import Shelf, ShelfError
from jobs.client.failures import gone
from jobs.errors import InternalError
from jobs.workers.nodeapi import Answer, NodeApi
from jobs.workers.replication.task import Task
from jobs.workers.task import TaskError
from jobs.workers.transfers import STALL_S, in_thread

if TYPE_CHECKING:
    from pyrage.x25519 import Identity


@contextmanager
def told() -> Iterator[None]:
    """Tell what stands in the way in words for the job's owner."""
    try:
        yield
    except (ShelfError, IdentityError) as error:
        raise TaskError(str(error)) from error


@asynccontextmanager
async def series_in(task: Task, directory: str, *, make: bool = False) -> AsyncIterator[Series]:
    """Give the series in a directory, which is made if that is wanted. Raises PlaceError."""
    descriptor = await in_thread(_open, task, directory, make)
    with Shelf(directory, descriptor) as shelf:
        yield Series(shelf)


def _open(task: Task, directory: str, make: bool) -> int:
    return task.places.directory(directory, make=make)


def identities_of(task: Task) -> list[Identity]:
    """Return the secret keys that the worker has; none unless they are configured. Raises IdentityError."""
    return [] if task.identity_file is None else read_identities(task.identity_file)


@asynccontextmanager
async def reading(
    node: NodeApi, path: str, query: dict[str, Any]
) -> AsyncIterator[tuple[Answer, AsyncGenerator[bytes]]]:
    """Give the answer of a node that goes on, and its pieces. Raises JobsError, also when nothing comes for long."""
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(STALL_S):
                answer = await stack.enter_async_context(node.exchange("GET", path, query))
            yield answer, await stack.enter_async_context(aclosing(_unstalled(answer)))
    except TimeoutError as error:
        raise gone(error) from error


async def _unstalled(answer: Answer) -> AsyncGenerator[bytes]:
    async with aclosing(answer.pieces()) as pieces:
        while True:
            async with asyncio.timeout(STALL_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            if piece:
                yield piece


class FrameStream:
    """The frames that a node gives, one after the other."""

    def __init__(self, kind: bytes) -> None:
        self._decoder = FrameDecoder(kind)

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises InternalError for what no node says."""
        try:
            return self._decoder.feed(piece)
        except FrameError as error:
            raise InternalError(f"what the node said cannot be read: {error}") from error

    def finish(self) -> None:
        """Raises ConnectionFailed when it broke off."""
        try:
            self._decoder.finish()
        except FrameError as error:
            raise gone(error) from error


async def rows_of(
    node: NodeApi, prefix: bytes, revision: int, *, keys_only: bool = False
) -> AsyncGenerator[list[m.Row] | m.RowsHead]:
    """Yield the head, and then the rows of a prefix, some at a time. Raises JobsError: Compacted for a revision that is
    no longer there."""
    query = {"prefix": prefix.decode(), "revision": revision, "keys_only": "true" if keys_only else "false"}
    frames, has_head = FrameStream(m.ROWS), False
    async with reading(node, "/v1/replication/rows", query) as (_, pieces):
        async for piece in pieces:
            for frame in frames.feed(piece):
                try:
                    yield m.decode_rows(frame) if has_head else m.decode_rows_head(frame)
                except m.MessageError as error:
                    raise InternalError(f"what the node said cannot be read: {error}") from error
                has_head = True
        frames.finish()


def line(**fields: object) -> bytes:
    """Return a line of a job's standard output: an object, as with all operations."""
    return msgspec.json.encode(fields) + b"\n"
