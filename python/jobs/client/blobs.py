"""Blobs: the operations as typed requests, and the synchronous client's group `client.blobs`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from jobs.client.blobjobs import BlobJobsClient
from jobs.client.directories import FoundFile, Landing, scan, target_file, write_all
from jobs.client.downloads import Download
from jobs.client.failures import SourceFailed
from jobs.client.requests import Call, Request, change, get, post, segment, target, write
from jobs.client.sources import OnBytes, Source, Uploadable
from jobs.protocol.model import (
    BlobAdded,
    BlobCollection,
    BlobFiles,
    BlobPage,
    BlobShare,
    BlobTag,
    BlobTagPage,
    BlobTagSet,
    BlobTicket,
    BlobView,
)

if TYPE_CHECKING:
    from jobs.client.sync import Client

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE: Final = 8
"""Files of a directory that are on their way at a time."""
PAGE_SIZE: Final = 1_000
SHARE_S: Final = 86_400.0


# --- requests --------------------------------------------------------------------------------------------------------


def put_blob(tag: str | None, replicas: int | None, expected: str | None) -> Call[BlobAdded]:
    """The content goes as the body. Sent again it is the same blob."""
    query = {"tag": tag, "replicas": replicas, "expected": expected}
    return Call(Request(method="POST", target=target("/v1/blobs", query)), BlobAdded)


def put_collection(files: Mapping[str, str], tag: str | None, replicas: int | None) -> Call[BlobAdded]:
    wanted = BlobCollection(files=dict(files), tag=tag, replicas=replicas)
    return post("/v1/blobs:collection", BlobAdded, wanted)


def collection_files(blob: str) -> Call[BlobFiles]:
    return get(f"/v1/blobs/{segment(blob)}/files", BlobFiles)


def list_blobs(owner: int | None, cursor: str | None) -> Call[BlobPage]:
    return get("/v1/blobs", BlobPage, {"owner": owner, "limit": PAGE_SIZE, "cursor": cursor})


def stat_blob(blob: str) -> Call[BlobView]:
    return get(f"/v1/blobs/{segment(blob)}/stat", BlobView)


def forget_blob(blob: str) -> Request:
    return change("DELETE", f"/v1/blobs/{segment(blob)}")


def list_tags(prefix: str, cursor: str | None) -> Call[BlobTagPage]:
    return get("/v1/blob-tags", BlobTagPage, {"prefix": prefix or None, "limit": PAGE_SIZE, "cursor": cursor})


def get_tag(name: str) -> Call[BlobTag]:
    return get(f"/v1/blob-tags/{segment(name)}", BlobTag)


def set_tag(name: str, blob: str, replace: bool) -> Call[BlobTag]:
    return write("PUT", f"/v1/blob-tags/{segment(name)}", BlobTag, BlobTagSet(hash=blob, replace=replace))


def delete_tag(name: str) -> Request:
    return change("DELETE", f"/v1/blob-tags/{segment(name)}")


def share_blob(blob: str, ttl_s: float) -> Call[BlobTicket]:
    return post(f"/v1/blobs/{segment(blob)}/share", BlobTicket, BlobShare(ttl_s=ttl_s))


class Sum:
    """How much of several files has passed, told as one number, and whether to go on. Threads share it."""

    def __init__(self, total_bytes: int | None, on_bytes: OnBytes | None) -> None:
        self._total_bytes = total_bytes
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._parts: dict[str, int] = {}
        self._done_bytes = 0
        self.is_over = False
        """One has failed: the others are to end with their next bytes."""

    def of(self, name: str) -> OnBytes:
        """Return what a file's progress is told to. Raises SourceFailed where it is to end."""

        def tell(done: int, total: int | None) -> None:
            if self.is_over:
                raise SourceFailed("another file has failed")
            if self._on_bytes is None:
                return
            with self._lock:
                self._done_bytes += done - self._parts.get(name, 0)
                self._parts[name] = done
                self._on_bytes(self._done_bytes, self._total_bytes)

        return tell


# --- clients ---------------------------------------------------------------------------------------------------------


class BlobsClient(BlobJobsClient):
    """Content by its hash: `client.blobs`. An owner sees and changes their own, administrators all."""

    def __init__(self, client: Client) -> None:
        self._client = client

    # --- content ------------------------------------------------------------------------------------------------

    def put(
        self,
        source: Uploadable,
        *,
        tag: str | None = None,
        replicas: int | None = None,
        expected: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> BlobAdded:
        """Add bytes, the file of a `Path`, or what an open file holds, of any size and in little memory.

        Returns once as many nodes have it on their disks as are to. Without a `tag` or anything else that refers to it,
        it goes after the nodes' grace period. What is not `expected` by its hash is refused.
        """
        return self._client.upload(put_blob(tag, replicas, expected), Source(source, on_bytes))

    def get(
        self,
        blob: str,
        *,
        path: str | None = None,
        start: int = 0,
        end: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> bytes:
        """Return a blob, or a part of it; of a collection one of its files by `path`. Raises NotFound."""
        return b"".join(self.stream(blob, path=path, start=start, end=end, on_bytes=on_bytes))

    def stream(
        self,
        blob: str,
        *,
        path: str | None = None,
        start: int = 0,
        end: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Iterator[bytes]:
        """Yield it piece by piece; a lost connection is made anew, and it goes on where it was."""
        return self._client.download(Download(blob, path=path, start=start, end=end, on_bytes=on_bytes))

    def save(
        self, blob: str, target: os.PathLike[str], *, path: str | None = None, on_bytes: OnBytes | None = None
    ) -> int:
        """Write it to a file, which has its name once all of it is there; return its bytes. Raises TargetFailed."""
        download = Download(blob, path=path, on_bytes=on_bytes)
        with target_file(target) as file:
            for data in self._client.download(download):
                write_all(file, data)
        return download.position

    # --- collections --------------------------------------------------------------------------------------------

    def collect(self, files: Mapping[str, str], *, tag: str | None = None, replicas: int | None = None) -> BlobAdded:
        """Make one blob of several that are there, a collection: relative path → hash. It keeps them."""
        return self._client.call(put_collection(files, tag, replicas))

    def files(self, blob: str) -> dict[str, str]:
        """Return the files of a collection: relative path → hash. Raises InvalidRequest for any other blob."""
        return files_of(self._client.call(collection_files(blob)))

    def put_directory(
        self,
        directory: os.PathLike[str],
        *,
        tag: str | None = None,
        replicas: int | None = None,
        skip_others: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> BlobAdded:
        """Add a directory as a collection: names and contents of its files, which are sent several at a time.

        Raises SourceFailed for what is no file and no directory, such as a symbolic link, unless it is to be skipped.
        """
        found = scan(directory, skip_others=skip_others)
        total = total_of(found, on_bytes)

        def add(file: FoundFile) -> tuple[str, str]:
            added = self.put(Path(file.path), replicas=replicas, on_bytes=total.of(file.name))
            return file.name, added.hash

        return self.collect(dict(_several(add, found, total)), tag=tag, replicas=replicas)

    def save_directory(self, blob: str, directory: os.PathLike[str], *, on_bytes: OnBytes | None = None) -> int:
        """Write a collection's files below a directory, made where it is absent; return their bytes.

        Raises TargetFailed, also for a name that would be elsewhere, or where a symbolic link is in the way.
        """
        names = list(self.files(blob))
        total = Sum(None, on_bytes)
        with Landing(directory) as landing:

            def fetch(name: str) -> int:
                download = Download(blob, path=name, on_bytes=total.of(name))
                with landing.file(name) as file:
                    for data in self._client.download(download):
                        write_all(file, data)
                return download.position

            return sum(_several(fetch, names, total))

    # --- what is known of them ----------------------------------------------------------------------------------

    def list(self, *, owner: int | None = None) -> Iterator[BlobView]:
        """Yield blobs in the order of their hashes: yours, or for administrators all or those of an owner."""
        for page in self._client.pages(lambda cursor: list_blobs(owner, cursor)):
            yield from page.blobs

    def stat(self, blob: str) -> BlobView:
        """Return what is known of a blob: who has it, and what keeps it. Raises NotFound."""
        return self._client.call(stat_blob(blob))

    def forget(self, blob: str) -> None:
        """Give a blob up: it is yours no longer, and your tags no longer name it."""
        self._client.send(forget_blob(blob))

    def tags(self, prefix: str = "") -> Iterator[BlobTag]:
        """Yield tags that begin so, by name."""
        for page in self._client.pages(lambda cursor: list_tags(prefix, cursor)):
            yield from page.tags

    def tag(self, name: str) -> BlobTag:
        """Return what a tag names. Raises NotFound."""
        return self._client.call(get_tag(name))

    def pin(self, name: str, blob: str, *, replace: bool = True) -> BlobTag:
        """Let a tag name a blob, which keeps it. Raises TagTaken, unless a tag may be replaced."""
        return self._client.call(set_tag(name, blob, replace))

    def unpin(self, name: str) -> None:
        """Delete a tag; the blob goes after the grace period, unless something else keeps it."""
        self._client.send(delete_tag(name))

    def share(self, blob: str, *, ttl_s: float = SHARE_S) -> BlobTicket:
        """Return a ticket with which anybody can make a blob theirs as well."""
        return self._client.call(share_blob(blob, ttl_s))


def files_of(found: BlobFiles) -> dict[str, str]:
    return {file.name: file.hash for file in found.files}


def total_of(found: Sequence[FoundFile], on_bytes: OnBytes | None) -> Sum:
    return Sum(sum(file.size_bytes for file in found), on_bytes)


def _several(work: Callable[[T], R], items: Iterable[T], total: Sum) -> Sequence[R]:
    """Do it for each, several at a time; return what comes of it in order. The first failure ends all of it."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with ThreadPoolExecutor(AT_ONCE) as pool:
        doing = [pool.submit(work, item) for item in items]
        try:
            for done in as_completed(doing):
                done.result()
        except BaseException:
            total.is_over = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [done.result() for done in doing]
