"""Putting what was exported below a prefix; all of it is verified before anything is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from jobs.backups.shelf import Shelf
from jobs.client.requests import segment
from jobs.errors import BackupInvalid, NotFound
from jobs.exports import manifest as m
from jobs.exports.formats import Pair, checked, pairs_of
from jobs.exports.manifest import Manifest
from jobs.protocol.ids import Revision
from jobs.protocol.model import BlobTag, ReplicationImport, ReplicationResult
from jobs.workers.replication.archive import told
from jobs.workers.replication.gauge import Gauge
from jobs.workers.replication.putting import put_rows
from jobs.workers.replication.scratch import scratch
from jobs.workers.replication.tagged import bring
from jobs.workers.replication.task import Task
from jobs.workers.transfers import again, in_thread

FOLDER: Final = "import"


async def bring_in(task: Task, wanted: ReplicationImport) -> ReplicationResult:
    """Raises BackupInvalid before anything is written, ReplicationConflict, and errors of `jobs.errors`."""
    gauge = Gauge(task.report, wanted.throttle)
    with told():
        async with _opened(task, wanted) as (shelf, found):
            gauge.say("verify", sum(file.size_bytes for file in found.files))
            await gauge.run(_verify, shelf, found, gauge)
            prefix = wanted.prefix or found.prefix
            gauge.say("write")
            came = await put_rows(
                task.node, prefix, lambda: _rows(shelf, found), wanted.existing, gauge, dry_run=wanted.dry_run
            )
            await task.report.write(came.line(dry_run=wanted.dry_run))
    return ReplicationResult(
        operation="import",
        rows=came.rows,
        bytes=gauge.done_bytes,
        conflicts=came.kept,
        source_revision=Revision(found.revision),
        place=wanted.tag or wanted.directory or "",
    )


@asynccontextmanager
async def _opened(task: Task, wanted: ReplicationImport) -> AsyncIterator[tuple[Shelf, Manifest]]:
    """Give the directory with the files of the export, and what it says of itself."""
    if wanted.directory is not None:
        descriptor = await in_thread(task.places.directory, wanted.directory)
        with Shelf(wanted.directory, descriptor) as shelf:
            yield shelf, await in_thread(_manifest, shelf)
        return
    assert wanted.tag is not None, "one of the two is given"
    path = f"/v1/blob-tags/{segment(wanted.tag)}"
    blob = (await again(lambda: task.node.get(path, BlobTag))).hash
    async with scratch(task) as aside:
        own = await in_thread(Shelf.open, aside)
        with own, await in_thread(own.make, FOLDER) as shelf:
            try:
                await bring(task.node, shelf, blob, m.FILE)
            except NotFound as error:
                raise BackupInvalid(
                    f"{wanted.tag}: it is no export: {error.detail}", expected="the tag of an export"
                ) from error
            found = await in_thread(_manifest, shelf)
            for file in found.files:
                await bring(task.node, shelf, blob, file.name)
            yield shelf, found


def _manifest(shelf: Shelf) -> Manifest:
    try:
        return m.decode(shelf.read(m.FILE, m.MAX_BYTES), shelf.called(m.FILE))
    except FileNotFoundError:
        raise BackupInvalid(
            f"{shelf.path}: it has no {m.FILE}, so it is no export, or incomplete", expected="an export"
        ) from None


def _verify(shelf: Shelf, found: Manifest, gauge: Gauge) -> None:
    """Raise BackupInvalid unless all is as it was written, and what can be put."""
    for file in found.files:
        shelf.verify(file.name, file.size_bytes, file.blake3, gauge.step)
    count = 0
    for _ in _rows(shelf, found):
        count += 1
        gauge.look(0)
    if count != found.rows:
        raise m.damaged(shelf.path, f"it has {count} rows, and {found.rows} were written")


def _rows(shelf: Shelf, found: Manifest) -> Iterator[Pair]:
    return checked(_all(shelf, found), found.prefix.encode(), shelf.path)


def _all(shelf: Shelf, found: Manifest) -> Iterator[Pair]:
    for file in found.files:
        with shelf.path_of(file.name) as path:
            yield from pairs_of(found.content, path, shelf.called(file.name))
