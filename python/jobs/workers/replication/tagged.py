"""Series of backups that are blobs: `TAG/000001` and so on, each a collection of the files of one backup.

They are read, and made, as a directory of the worker's own. The blobs that belong to a backup are in its collection as
they are: they are in the cluster already.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Final

from jobs.backups import manifest as m
from jobs.backups.manifest import Manifest
from jobs.backups.series import Series
from jobs.backups.shelf import Shelf, said
from jobs.blobs.collection import MAX_FILES
from jobs.blobs.together import each
from jobs.client.requests import segment
from jobs.errors import BackupInvalid, InvalidRequest, NotFound
from jobs.protocol.model import (
    BlobAdded,
    BlobCollection,
    BlobFiles,
    BlobTag,
    BlobTagPage,
    BlobTagSet,
    ReplicationBackup,
    ReplicationResult,
)
from jobs.workers.nodeapi import NodeApi
from jobs.workers.replication.backup import Making
from jobs.workers.replication.blobs import Copied, find_blobs, without_holder
from jobs.workers.replication.task import Task
from jobs.workers.transfers import again, download, in_thread, upload

FOLDER: Final = "series"
PIECE_BYTES: Final = 1 << 20
AT_ONCE: Final = 4
_PAGE: Final = 1_000


class Tagged:
    """The series of a tag, in a directory of ours: manifests at first, the rest of a backup once it is needed."""

    def __init__(self, task: Task, tag: str, shelf: Shelf) -> None:
        self.prefix = f"{tag}/"
        self.series = Series(shelf)
        self._node = task.node
        self._shelf = shelf
        self._blobs: dict[str, str] = {}
        """Collection by the name of a backup's directory."""

    @classmethod
    async def open(cls, task: Task, tag: str, aside: Path) -> Tagged:
        """Raises BackupInvalid for a tag that is no backup's."""
        directory = aside / FOLDER
        with said(f"cannot write {directory}"):
            directory.mkdir(mode=0o700)
        found = cls(task, tag, await in_thread(Shelf.open, directory))
        try:
            for one in await found._tags():
                await found._bring_manifest(one)
        except BaseException:
            found.close()
            raise
        return found

    def __enter__(self) -> Tagged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._shelf.close()

    async def bring(self, chain: Sequence[Manifest]) -> None:
        """Have the files of these backups here, their blobs apart."""
        for one in chain:
            below = await in_thread(self._shelf.below, one.directory)
            with below:
                for entry in one.files:
                    if await in_thread(below.size_of, entry.name) is None:
                        await bring(self._node, below, self._blobs[one.directory], entry.name)

    async def missing(self, one: Manifest) -> list[str]:
        """Return the blobs of a backup that its collection, or every node, lacks."""
        files = await again(lambda: self._node.get(f"/v1/blobs/{self._blobs[one.directory]}/files", BlobFiles))
        there = {entry.hash for entry in files.files}
        listed = set(await in_thread(self.series.listing, one))
        return sorted(listed - there | set(await again(lambda: without_holder(self._node, listed))))

    async def put(self, one: Manifest, blobs: Mapping[str, int]) -> str:
        """Make a backup that is here a collection with its tag, and return that."""
        below = await in_thread(self._shelf.below, one.directory)
        with below:
            names = [entry.name for entry in one.files] + [m.FILE]
            if len(names) + len(blobs) > MAX_FILES:
                raise InvalidRequest(
                    f"the cluster has {len(blobs)} blobs, and a collection at most {MAX_FILES} files",
                    field="$.tag",
                    expected="a directory, or no blobs",
                )

            async def add(name: str) -> tuple[str, str]:
                return name, (await upload(self._node, lambda: content_of(below, name))).hash

            files = dict(await each(names, AT_ONCE, add))
        files |= {f"{m.BLOBS}/{blob[:2]}/{blob}": blob for blob in blobs}
        tag = f"{self.prefix}{one.number:06d}"
        wanted = BlobCollection(files=files)
        made = await again(lambda: self._node.post("/v1/blobs:collection", BlobAdded, wanted))
        named = BlobTagSet(hash=made.hash, replace=False)
        await again(lambda: self._node.put(f"/v1/blob-tags/{segment(tag)}", BlobTag, named))
        return tag

    async def drop_before(self, keep_full: int) -> list[str]:
        """Remove the tags before the last so many full backups, the newest of them first."""
        found = await in_thread(self.series.all)
        full = [number for number, one in enumerate(found) if one.kind == "full"]
        old = found[: full[-keep_full]] if len(full) > keep_full else []
        for one in reversed(old):
            await again(lambda one=one: self._drop(one))  # type: ignore[misc]
        return [f"{self.prefix}{one.number:06d}" for one in old]

    async def _drop(self, one: Manifest) -> None:
        try:
            await self._node.delete(f"/v1/blob-tags/{segment(f'{self.prefix}{one.number:06d}')}")
        except NotFound:
            return  # by a former try

    async def _tags(self) -> list[BlobTag]:
        found: list[BlobTag] = []
        cursor: str | None = None
        while True:
            query = {"prefix": self.prefix, "limit": _PAGE, "cursor": cursor}
            page = await again(lambda query=query: self._node.get("/v1/blob-tags", BlobTagPage, query))  # type: ignore[misc]
            found += [tag for tag in page.tags if tag.name.removeprefix(self.prefix).isdigit()]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def _bring_manifest(self, tag: BlobTag) -> None:
        try:
            data = b"".join([piece async for piece in download(self._node, tag.hash, m.FILE)])
        except (NotFound, InvalidRequest) as error:
            raise BackupInvalid(
                f"{tag.name}: it is no backup: {error.detail}", expected="tags of backups alone"
            ) from error
        one = m.decode(data, f"{tag.name}/{m.FILE}")
        self._blobs[one.directory] = tag.hash

        def write() -> None:
            with self._shelf.make(one.directory) as below:
                _write_file(below, m.FILE, data)

        await in_thread(write)


async def backup(
    task: Task, wanted: ReplicationBackup, tag: str, recipients: Sequence[str], aside: Path
) -> ReplicationResult:
    """Make a backup that is blobs."""
    with await Tagged.open(task, tag, aside) as tagged:
        making = Making(task, wanted, tagged.series, aside, recipients, tagged.bring)
        blobs: dict[str, int] = {}

        async def add_blobs(one: Manifest, draft: Shelf) -> tuple[Manifest, Copied]:
            blobs.update(await find_blobs(task.node, one.to_revision, tagged.prefix))
            lost = await again(lambda: without_holder(task.node, blobs))
            for blob in lost:
                del blobs[blob]
                await making.say(f"lacks blob {blob}: no node has it")
            copied = Copied(sizes=blobs, lost=lost)
            return await making.listed(one, draft, copied), copied

        made, copied = await making.make(add_blobs)
        place = await tagged.put(made, blobs)
        if wanted.keep_full is not None and (dropped := await tagged.drop_before(wanted.keep_full)):
            await making.say(f"removed: {', '.join(dropped)}")
        return making.result(made, copied, place)


async def bring(node: NodeApi, below: Shelf, blob: str, name: str) -> None:
    """Have a file of a collection in a directory of ours. Raises NotFound, and as `download`."""
    draft = await in_thread(below.create, name)
    try:
        async for piece in download(node, blob, name):
            await in_thread(draft.write, piece)
        await in_thread(draft.finish)
    finally:
        await in_thread(draft.abandon)


async def content_of(below: Shelf, name: str) -> AsyncGenerator[bytes]:
    """Yield a file, piece by piece."""
    pieces = below.pieces(name, lambda size_bytes: None)
    while (piece := await in_thread(next, pieces, None)) is not None:
        yield piece


def _write_file(below: Shelf, name: str, data: bytes) -> None:
    draft = below.create(name)
    try:
        draft.write(data)
        draft.finish()
    finally:
        draft.abandon()
