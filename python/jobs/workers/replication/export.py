"""Writing keys as they are at one revision to files, which are in their place once all of them are whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import PurePosixPath
from typing import Final

from jobs._native import __version__
from jobs.backups import messages
from jobs.backups.shelf import Draft, Shelf
from jobs.blobs.together import each
from jobs.clock import wall_ms
from jobs.errors import InternalError, InvalidRequest
from jobs.exports import manifest as m
from jobs.exports.formats import SUFFIXES, Row, Writer, writer_of
from jobs.exports.manifest import Manifest, RowsFile
from jobs.protocol.ids import Revision
from jobs.protocol.model import BlobAdded, BlobCollection, ReplicationExport, ReplicationResult
from jobs.workers.replication.archive import rows_of, told
from jobs.workers.replication.gauge import Gauge
from jobs.workers.replication.scratch import scratch
from jobs.workers.replication.tagged import AT_ONCE, content_of
from jobs.workers.replication.task import Task
from jobs.workers.task import TaskError
from jobs.workers.transfers import again, in_thread, upload

FOLDER: Final = "export"
FILE_BYTES: Final = 256 << 20
"""Keys and values of a file; the next one begins when it has more."""


async def export(task: Task, wanted: ReplicationExport) -> ReplicationResult:
    """Raises errors of `jobs.errors`, and TaskError."""
    gauge = Gauge(task.report, wanted.throttle)
    with told():
        if wanted.tag is not None:
            made = await _to_tag(task, wanted, wanted.tag, gauge)
        else:
            assert wanted.directory is not None, "one of the two is given"
            made = await _to_directory(task, wanted, wanted.directory, gauge)
    return ReplicationResult(
        operation="export",
        rows=made.rows,
        bytes=sum(file.size_bytes for file in made.files),
        source_revision=Revision(made.revision),
        place=wanted.tag or wanted.directory or "",
    )


async def _to_directory(task: Task, wanted: ReplicationExport, directory: str, gauge: Gauge) -> Manifest:
    path, draft = PurePosixPath(directory), f".jobs-{task.job}.part"
    async with AsyncExitStack() as stack:
        descriptor = await in_thread(task.places.directory, str(path.parent))
        parent = stack.enter_context(Shelf(str(path.parent), descriptor))
        if path.name in await in_thread(parent.names):
            raise TaskError(f"{directory} is there already; an export makes its own directory")
        await in_thread(parent.remove, draft)  # what a killed worker has left
        stack.push_async_callback(in_thread, parent.remove, draft)
        shelf = stack.enter_context(await in_thread(parent.make, draft))
        made = await _fill(task, wanted, shelf, gauge)
        await in_thread(parent.rename, draft, path.name)
        return made


async def _to_tag(task: Task, wanted: ReplicationExport, tag: str, gauge: Gauge) -> Manifest:
    async with AsyncExitStack() as stack:
        aside = await stack.enter_async_context(scratch(task))
        own = stack.enter_context(await in_thread(Shelf.open, aside))
        shelf = stack.enter_context(await in_thread(own.make, FOLDER))
        made = await _fill(task, wanted, shelf, gauge)
        names = [*(file.name for file in made.files), m.FILE]
        gauge.say("add blobs")

        async def add(name: str) -> tuple[str, str]:
            return name, (await upload(task.node, lambda: content_of(shelf, name))).hash

        collection = BlobCollection(files=dict(await each(names, AT_ONCE, add)), tag=tag)
        await again(lambda: task.node.post("/v1/blobs:collection", BlobAdded, collection))
        return made


async def _fill(task: Task, wanted: ReplicationExport, shelf: Shelf, gauge: Gauge) -> Manifest:
    """Return what was written, all of it on the disk."""
    made = await again(lambda: _write_rows(task, wanted, shelf, gauge))
    await gauge.run(_write_manifest, shelf, made)
    return made


async def _write_rows(task: Task, wanted: ReplicationExport, shelf: Shelf, gauge: Gauge) -> Manifest:
    await gauge.run(_clear, shelf)
    gauge.say("write")
    head: messages.RowsHead | None = None
    files = _Files(shelf, wanted.format)
    try:
        async for page in rows_of(task.node, wanted.prefix.encode(), wanted.revision or 0):
            if isinstance(page, messages.RowsHead):
                head = page
                continue
            size_bytes = await gauge.run(files.write, page)
            await gauge.advance(size_bytes, len(page))
        await gauge.run(files.finish)
    finally:
        await in_thread(files.abandon)
    if head is None:
        raise InternalError("the node said nothing of the rows")
    return Manifest(
        content=wanted.format,
        cluster=head.cluster,
        prefix=wanted.prefix,
        revision=head.revision,
        created_ms=wall_ms(),
        release=__version__,
        rows=sum(file.rows for file in files.done),
        files=files.done,
    )


def _clear(shelf: Shelf) -> None:
    """Remove what a former try has written."""
    for name in shelf.names():
        shelf.remove(name)


def _write_manifest(shelf: Shelf, made: Manifest) -> None:
    shelf.put(m.FILE, m.encode(made))
    shelf.sync()  # all names in it, before it has its own


class _Files:
    """The files of rows, one after the other."""

    def __init__(self, shelf: Shelf, content: m.Content) -> None:
        self._shelf = shelf
        self._content: m.Content = content
        self._open: tuple[str, Draft, Writer] | None = None
        self._rows = self._size_bytes = 0
        self.done: list[RowsFile] = []

    def write(self, rows: Sequence[Row]) -> int:
        """Return how many bytes the rows have. Raises ShelfError, StorageFull, InvalidRequest for too many files."""
        if self._open is None:
            self._open = self._begin()
        self._open[2].write(rows)
        size_bytes = sum(len(key) + len(value) for key, value, *_ in rows)
        self._rows += len(rows)
        self._size_bytes += size_bytes
        if self._size_bytes >= FILE_BYTES:
            self.finish()
        return size_bytes

    def finish(self) -> None:
        """End the file that is being written."""
        if self._open is None:
            return
        name, draft, writer = self._open
        writer.finish()
        written = draft.finish()
        self.done.append(RowsFile(name=name, rows=self._rows, size_bytes=written.size_bytes, blake3=written.blake3))
        self._open, self._rows, self._size_bytes = None, 0, 0

    def abandon(self) -> None:
        if self._open is not None:
            self._open[1].abandon()

    def _begin(self) -> tuple[str, Draft, Writer]:
        if len(self.done) >= m.MAX_FILES:
            raise InvalidRequest("there is too much for one export", field="$.prefix", expected="a longer prefix")
        name = f"rows-{len(self.done) + 1:06d}.{SUFFIXES[self._content]}"
        draft = self._shelf.create(name)
        return name, draft, writer_of(self._content, draft.write)
