"""What is done for a job of type blob: each operation, from its payload to its result."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs.blobs.together import each
from jobs.client.requests import Page, segment
from jobs.content import content_bytes
from jobs.errors import InternalError, JobsError, error_types
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    AddFrom,
    BlobAdd,
    BlobAdded,
    BlobAdvance,
    BlobCollection,
    BlobDone,
    BlobEvent,
    BlobExport,
    BlobFailed,
    BlobFile,
    BlobFiles,
    BlobLine,
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
    Problem,
    StreamInfo,
)
from jobs.workers.blob.api import NodeApi
from jobs.workers.blob.places import File, OpenFile, Place, Places, Target
from jobs.workers.transfers import Persistence, again, download, held, in_thread

T = TypeVar("T")
P = TypeVar("P", bound=Page)
HAS_IT: Final = "has it"
"""What is said of a node where nothing had to be done."""
PIECE_BYTES: Final = 1 << 20
PAGE: Final = 1_000
AT_ONCE: Final = 8
"""Files of a directory that are added or written at a time."""
MAX_RESTARTS: Final = 20
"""Of an operation that was broken off after it had begun: what breaks it off so often is the operation."""
MAX_LINES_BYTES: Final = 8 << 20
"""Of what an operation says that may have to be begun again; what is more is counted and dropped."""
_encode = msgspec.json.Encoder().encode
_decode_event = msgspec.json.Decoder(BlobEvent).decode


class Report(Protocol):
    """Where an operation tells of itself."""

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Of `total`, which is 0 while that is not known, so much is done."""

    async def write(self, data: bytes) -> None:
        """Add to the job's standard output; waits until there is room."""

    def drop(self, size_bytes: int) -> None:
        """So much more would have been written."""


class Work:
    """Carries out operations for the owner of one job."""

    def __init__(self, node: NodeApi, places: Places, report: Report, job: JobId) -> None:
        self._node = node
        self._places = places
        self._report = report
        self._job = job
        self._draft = f".jobs-{job}.part"

    async def carry_out(self, payload: BlobPayload) -> BlobResult:
        """Return what it came to. Raises errors of `jobs.errors`, and PlaceError. It may be begun again at any time."""
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
                return await self._perform(payload)
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

    # --- what the node does -------------------------------------------------------------------------------------------

    async def _perform(self, payload: BlobPayload) -> BlobResult:
        """Have the node carry it out, from the beginning again when the way to it was lost; what it says of the last
        time counts."""
        patience = Persistence()
        restarts = 0
        wanted = _encode({"job": self._job, "payload": payload})
        while True:
            lines, was_begun = _Lines(), False
            try:
                async with aclosing(self._events(wanted)) as events:
                    async for event in events:
                        patience.reset()
                        was_begun = True
                        match event:
                            case BlobAdvance(done_bytes=done, total_bytes=total, message=message):
                                self._report.progress(done, total, message)
                            case BlobLine(text=text):
                                lines.add(text)
                            case BlobDone(result=result):
                                await lines.write(self._report)
                                return result
                            case BlobFailed(problem=problem):
                                raise _error(problem)
                raise InternalError("the node said nothing of how it ended")
            except JobsError as error:
                restarts += was_begun
                if restarts > MAX_RESTARTS or not await patience.may_help(error):
                    await lines.write(self._report)
                    raise

    async def _events(self, wanted: bytes) -> AsyncGenerator[BlobEvent]:
        buffer = bytearray()
        async with self._node.exchange("POST", "/v1/blobs:perform", body=wanted) as answer:
            async for piece in answer.pieces():
                buffer += piece
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    if line:  # an empty one is a sign of life
                        yield _event(bytes(line))


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


class _Lines:
    """What an operation says, held back until it is known to be all."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size_bytes = 0
        self._dropped_bytes = 0

    def add(self, text: str) -> None:
        line = text.encode(errors="replace") + b"\n"
        if self._dropped_bytes or self._size_bytes + len(line) > MAX_LINES_BYTES:
            self._dropped_bytes += len(line)
        else:
            self._held.append(line)
            self._size_bytes += len(line)

    async def write(self, report: Report) -> None:
        if self._held:
            await report.write(b"".join(self._held))
        report.drop(self._dropped_bytes)


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


def _event(line: bytes) -> BlobEvent:
    try:
        event: BlobEvent = _decode_event(line)
        return event
    except msgspec.MsgspecError as error:
        raise InternalError(f"the node said what is no event: {error}") from error


def _error(problem: Problem) -> JobsError:
    kind = error_types().get(problem.code, InternalError)
    return kind(problem.detail, field=problem.field, expected=problem.expected)


def _added(added: BlobAdded) -> BlobResult:
    peers = [BlobPeer(node=node, bytes=0, outcome=HAS_IT) for node in added.nodes]
    return BlobResult(operation="add", hash=added.hash, bytes=added.size_bytes, blobs=1, peers=peers, seconds=0.0)
