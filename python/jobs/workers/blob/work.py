"""What is done for a job of type blob: each operation, from its payload to its result."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs.blobs.together import each
from jobs.client.requests import Page, segment
from jobs.content import content_bytes
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    AddFrom,
    BlobAdd,
    BlobAdded,
    BlobCollection,
    BlobDone,
    BlobExport,
    BlobFile,
    BlobFiles,
    BlobList,
    BlobPage,
    BlobPayload,
    BlobPeer,
    BlobResult,
    BlobStat,
    BlobTagPage,
    BlobView,
    Content,
    JobResult,
    StreamInfo,
)
from jobs.workers.nodeapi import NodeApi
from jobs.workers.perform import perform
from jobs.workers.places import File, OpenFile, Place, Places, Target
from jobs.workers.task import Report
from jobs.workers.transfers import again, download, held, in_thread

T = TypeVar("T")
P = TypeVar("P", bound=Page)
HAS_IT: Final = "has it"
"""What is said of a node where nothing had to be done."""
PIECE_BYTES: Final = 1 << 20
PAGE: Final = 1_000
AT_ONCE: Final = 8
"""Files of a directory that are added or written at a time."""
_encode = msgspec.json.Encoder().encode


class Work:
    """Carries out operations for the owner of one job."""

    def __init__(self, places: Places, node: NodeApi, report: Report, job: JobId) -> None:
        self._node = node
        self._places = places
        self._report = report
        self._job = job
        self._draft = f".jobs-{job}.part"

    async def carry_out(self, payload: BlobPayload) -> BlobResult:
        """Return what it came to. Raises errors of `jobs.errors`, and TaskError. It may be begun again at any time."""
        began_s = time.monotonic()
        match payload:
            case BlobExport():
                result = await self._export(payload)
            case BlobStat(hash=blob):
                result = await self._stat(blob)
            case BlobList():
                result = await self._list(payload)
            case BlobAdd(source=AddFrom(snapshot=False)):
                result = await self._add(payload)
            case _:
                done = await perform(self._node, "/v1/blobs:perform", self._job, payload, BlobDone, self._report)
                return done.result
        return replace(result, seconds=time.monotonic() - began_s)

    # --- additions ----------------------------------------------------------------------------------------------------

    async def _add(self, wanted: BlobAdd) -> BlobResult:
        source = wanted.source
        if source.file is not None:
            return await self._add_place(source.file, wanted)
        if source.job is not None:
            return await self._add_output(source.job, source.stream, wanted)
        data = content_bytes(Content(text=source.text, base64=source.base64), "$.source")
        return _added(await self._upload(lambda: _once(data), wanted, _Share(self._report, len(data))))

    async def _add_output(self, job: str, stream: Literal["stdout", "stderr"], wanted: BlobAdd) -> BlobResult:
        path = f"/v1/jobs/{segment(job)}"
        found = await again(lambda: self._node.get(f"{path}/result", JobResult))
        info: StreamInfo | None = None if found.execution is None else getattr(found.execution, stream)
        share = _Share(self._report, 0 if info is None else info.stored_bytes)

        async def content() -> AsyncGenerator[bytes]:
            async with self._node.exchange("GET", f"{path}/logs", {"stream": stream}) as answer:
                async for piece in answer.pieces():
                    yield piece

        return _added(await self._upload(content, wanted, share))

    async def _add_place(self, path: str, wanted: BlobAdd) -> BlobResult:
        async with held(self._places.source, path) as place:
            if place.is_directory:
                return await self._add_directory(place, wanted)
            share = _Share(self._report, place.size_bytes)
            return _added(await self._upload(lambda: _read(place.open), wanted, share))

    async def _add_directory(self, place: Place, wanted: BlobAdd) -> BlobResult:
        """Add each file, and then the collection of all of them, which has the tag."""
        files = await in_thread(place.files)
        share = _Share(self._report, sum(file.size_bytes for file in files))
        untagged = replace(wanted, tag=None)

        async def add(file: File) -> BlobAdded:
            return await self._upload(lambda: _read(place.open_file, file.name), untagged, share, file.name)

        added = await each(files, AT_ONCE, add)
        names = {file.name: one.hash for file, one in zip(files, added, strict=True)}
        collection = BlobCollection(files=names, tag=wanted.tag, replicas=wanted.replicas)
        made = await again(lambda: self._node.post("/v1/blobs:collection", BlobAdded, collection))
        size_bytes = sum(one.size_bytes for one in added)
        return replace(_added(made), bytes=size_bytes, blobs=len(set(names.values())) + 2)

    async def _upload(
        self, content: Callable[[], AsyncGenerator[bytes]], wanted: BlobAdd, share: _Share, name: str = ""
    ) -> BlobAdded:
        """Add what comes; once more from its beginning when the way to the node was lost."""
        query = {"tag": wanted.tag, "replicas": wanted.replicas}
        return await again(lambda: self._node.upload("/v1/blobs", BlobAdded, query, share.told(content(), name)))

    # --- export -------------------------------------------------------------------------------------------------------

    async def _export(self, wanted: BlobExport) -> BlobResult:
        blob = wanted.hash
        async with held(self._places.target, wanted.file, self._draft) as target:
            view = await again(lambda: self._node.get(f"/v1/blobs/{blob}/stat", BlobView))
            if view.kind == "collection":
                written, blobs = await self._export_collection(blob, target)
            else:
                written, blobs = await self._export_file(view, target), 1
        return BlobResult(operation="export", hash=blob, bytes=written, blobs=blobs, peers=[], seconds=0.0)

    async def _export_file(self, view: BlobView, target: Target) -> int:
        share = _Share(self._report, view.size_bytes)
        async with held(target.begin_file) as file:
            await _write(file, share.told(download(self._node, view.hash)))
            await in_thread(target.finish_file, file)
        return view.size_bytes

    async def _export_collection(self, blob: str, target: Target) -> tuple[int, int]:
        listed = await again(lambda: self._node.get(f"/v1/blobs/{blob}/files", BlobFiles))
        await in_thread(target.begin_directory)
        done = 0

        async def write(entry: BlobFile) -> int:
            nonlocal done
            async with held(target.begin_member, entry.name) as file:
                size_bytes = await _write(file, download(self._node, blob, entry.name))
                await in_thread(file.sync)
            done += 1
            self._report.progress(done, len(listed.files), entry.name)
            return size_bytes

        sizes = await each(listed.files, AT_ONCE, write)
        await in_thread(target.finish_directory)
        return sum(sizes), len({entry.hash for entry in listed.files}) + 2

    # --- what is known ------------------------------------------------------------------------------------------------

    async def _stat(self, blob: str) -> BlobResult:
        view = await again(lambda: self._node.get(f"/v1/blobs/{blob}/stat", BlobView))
        await self._report.write(_line(view))
        peers = [BlobPeer(node=node, bytes=0, outcome=HAS_IT) for node in view.nodes]
        return BlobResult(operation="stat", hash=blob, bytes=view.size_bytes, blobs=1, peers=peers, seconds=0.0)

    async def _list(self, wanted: BlobList) -> BlobResult:
        count, size_bytes = 0, 0
        if wanted.tags:
            async for tags in self._pages("/v1/blob-tags", BlobTagPage):
                await self._report.write(b"".join(map(_line, tags.tags)))
                count += len(tags.tags)
        else:
            async for page in self._pages("/v1/blobs", BlobPage, owner=self._node.owner):
                await self._report.write(b"".join(map(_line, page.blobs)))
                count += len(page.blobs)
                size_bytes += sum(blob.size_bytes for blob in page.blobs)
        return BlobResult(operation="list", hash=None, bytes=size_bytes, blobs=count, peers=[], seconds=0.0)

    async def _pages(self, path: str, kind: type[P], **query: object) -> AsyncIterator[P]:
        query |= {"limit": PAGE, "cursor": None}
        while True:
            page = await again(lambda: self._node.get(path, kind, query))
            yield page
            query["cursor"] = page.next_cursor
            if page.next_cursor is None:
                return


class _Share:
    """What each file has of an operation's progress."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._parts: dict[str, int] = {}
        self._done = 0

    async def told(self, pieces: AsyncGenerator[bytes], name: str = "") -> AsyncGenerator[bytes]:
        """Pass the pieces of a file on, from its beginning, and tell how far that is."""
        done = 0
        self._tell(name, done)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
                done += len(piece)
                self._tell(name, done)

    def _tell(self, name: str, done: int) -> None:
        self._done += done - self._parts.get(name, 0)
        self._parts[name] = done
        self._report.progress(self._done, self._total, name)


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _read(opening: Callable[..., OpenFile], *arguments: object) -> AsyncGenerator[bytes]:
    async with held(opening, *arguments) as file:
        while piece := await in_thread(file.read, PIECE_BYTES):
            yield piece


async def _write(file: OpenFile, pieces: AsyncGenerator[bytes]) -> int:
    """Write what comes to a file; return how much that was."""
    written = 0
    async with aclosing(pieces):
        async for piece in pieces:
            await in_thread(file.write, piece)
            written += len(piece)
    return written


def _line(item: Struct) -> bytes:
    return _encode(item) + b"\n"


def _added(added: BlobAdded) -> BlobResult:
    peers = [BlobPeer(node=node, bytes=0, outcome=HAS_IT) for node in added.nodes]
    return BlobResult(operation="add", hash=added.hash, bytes=added.size_bytes, blobs=1, peers=peers, seconds=0.0)
