"""Blobs: the asynchronous client's group `client.blobs`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs.client.blobjobs import AsyncBlobJobsClient
from jobs.client.blobs import (
    AT_ONCE,
    SHARE_S,
    Sum,
    collection_files,
    delete_tag,
    files_of,
    forget_blob,
    get_tag,
    list_blobs,
    list_tags,
    put_blob,
    put_collection,
    set_tag,
    share_blob,
    stat_blob,
    total_of,
)
from jobs.client.directories import FoundFile, Landing, scan, target_file, write_all
from jobs.client.downloads import Download
from jobs.client.sources import OnBytes, Source, Uploadable
from jobs.protocol.model import BlobAdded, BlobTag, BlobTicket, BlobView

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient

T = TypeVar("T")
R = TypeVar("R")


class AsyncBlobsClient(AsyncBlobJobsClient):
    """Content by its hash: `client.blobs`; see `BlobsClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    # --- content ------------------------------------------------------------------------------------------------

    async def put(
        self,
        source: Uploadable,
        *,
        tag: str | None = None,
        replicas: int | None = None,
        expected: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> BlobAdded:
        """Add bytes, the file of a `Path`, or what an open file holds, of any size: see `BlobsClient.put`."""
        return await self._client.upload(put_blob(tag, replicas, expected), Source(source, on_bytes))

    async def get(
        self,
        blob: str,
        *,
        path: str | None = None,
        start: int = 0,
        end: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> bytes:
        """Return a blob, or a part of it; of a collection one of its files by `path`. Raises NotFound."""
        pieces = self.stream(blob, path=path, start=start, end=end, on_bytes=on_bytes)
        return b"".join([piece async for piece in pieces])

    def stream(
        self,
        blob: str,
        *,
        path: str | None = None,
        start: int = 0,
        end: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield it piece by piece; a lost connection is made anew, and it goes on where it was."""
        return self._client.download(Download(blob, path=path, start=start, end=end, on_bytes=on_bytes))

    async def save(
        self, blob: str, target: os.PathLike[str], *, path: str | None = None, on_bytes: OnBytes | None = None
    ) -> int:
        """Write it to a file, which has its name once all of it is there; return its bytes. Raises TargetFailed."""
        download = Download(blob, path=path, on_bytes=on_bytes)
        with target_file(target) as file:
            async for data in self._client.download(download):
                await asyncio.to_thread(write_all, file, data)
        return download.position

    # --- collections --------------------------------------------------------------------------------------------

    async def collect(
        self, files: Mapping[str, str], *, tag: str | None = None, replicas: int | None = None
    ) -> BlobAdded:
        """Make one blob of several that are there, a collection: relative path → hash. It keeps them."""
        return await self._client.call(put_collection(files, tag, replicas))

    async def files(self, blob: str) -> dict[str, str]:
        """Return the files of a collection: relative path → hash. Raises InvalidRequest for any other blob."""
        return files_of(await self._client.call(collection_files(blob)))

    async def put_directory(
        self,
        directory: os.PathLike[str],
        *,
        tag: str | None = None,
        replicas: int | None = None,
        skip_others: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> BlobAdded:
        """Add a directory as a collection: see `BlobsClient.put_directory`."""
        found = await asyncio.to_thread(lambda: scan(directory, skip_others=skip_others))
        total = total_of(found, on_bytes)

        async def add(file: FoundFile) -> str:
            return (await self.put(Path(file.path), replicas=replicas, on_bytes=total.of(file.name))).hash

        hashes = await _several(add, found)
        files = {file.name: blob for file, blob in zip(found, hashes, strict=True)}
        return await self.collect(files, tag=tag, replicas=replicas)

    async def save_directory(self, blob: str, directory: os.PathLike[str], *, on_bytes: OnBytes | None = None) -> int:
        """Write a collection's files below a directory: see `BlobsClient.save_directory`."""
        names = list(await self.files(blob))
        total = Sum(None, on_bytes)
        with Landing(directory) as landing:

            async def fetch(name: str) -> int:
                download = Download(blob, path=name, on_bytes=total.of(name))
                with landing.file(name) as file:
                    async for data in self._client.download(download):
                        await asyncio.to_thread(write_all, file, data)
                return download.position

            return sum(await _several(fetch, names))

    # --- what is known of them ----------------------------------------------------------------------------------

    async def list(self, *, owner: int | None = None) -> AsyncIterator[BlobView]:
        """Yield blobs in the order of their hashes: yours, or for administrators all or those of an owner."""
        async for page in self._client.pages(lambda cursor: list_blobs(owner, cursor)):
            for blob in page.blobs:
                yield blob

    async def stat(self, blob: str) -> BlobView:
        """Return what is known of a blob: who has it, and what keeps it. Raises NotFound."""
        return await self._client.call(stat_blob(blob))

    async def forget(self, blob: str) -> None:
        """Give a blob up: it is yours no longer, and your tags no longer name it."""
        await self._client.send(forget_blob(blob))

    async def tags(self, prefix: str = "") -> AsyncIterator[BlobTag]:
        """Yield tags that begin so, by name."""
        async for page in self._client.pages(lambda cursor: list_tags(prefix, cursor)):
            for tag in page.tags:
                yield tag

    async def tag(self, name: str) -> BlobTag:
        """Return what a tag names. Raises NotFound."""
        return await self._client.call(get_tag(name))

    async def pin(self, name: str, blob: str, *, replace: bool = True) -> BlobTag:
        """Let a tag name a blob, which keeps it. Raises TagTaken, unless a tag may be replaced."""
        return await self._client.call(set_tag(name, blob, replace))

    async def unpin(self, name: str) -> None:
        """Delete a tag; the blob goes after the grace period, unless something else keeps it."""
        await self._client.send(delete_tag(name))

    async def share(self, blob: str, *, ttl_s: float = SHARE_S) -> BlobTicket:
        """Return a ticket with which anybody can make a blob theirs as well."""
        return await self._client.call(share_blob(blob, ttl_s))


async def _several(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Do it for each, several at a time, in order; the first failure ends all of it."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> R:
        async with room:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
