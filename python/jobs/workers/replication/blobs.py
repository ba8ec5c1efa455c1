"""The blobs that belong to a backup: which ones something refers to, and their content as files of the series."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

from jobs import keys, records
from jobs._native import Blake3
from jobs.backups import manifest as m
from jobs.backups import messages
from jobs.backups.frames import FrameEncoder
from jobs.backups.manifest import FileEntry
from jobs.backups.series import DRAFT, Series, blob_file
from jobs.backups.shelf import Shelf
from jobs.blobs.together import each
from jobs.client.requests import segment
from jobs.errors import BlobDamaged, BlobUnavailable, Compacted, NotFound
from jobs.protocol.model import BlobView
from jobs.records import BlobRecord
from jobs.workers.nodeapi import NodeApi
from jobs.workers.replication.archive import line, rows_of
from jobs.workers.replication.gauge import Gauge
from jobs.workers.replication.task import Task
from jobs.workers.transfers import again, download, in_thread

AT_ONCE = 4
"""Blobs that are copied at a time."""
LIST_ROWS = 1_000
NO_TAG = ""


class Copied(Struct):
    """What came of the blobs of a backup."""

    sizes: dict[str, int] = {}
    """Of those that belong to it and are there, by their hashes."""
    lost: list[str] = []
    """Hashes of those that no node gave."""
    blobs: int = 0
    """How many had not been there before."""


async def find_blobs(node: NodeApi, revision: int, own_tags: str = NO_TAG) -> dict[str, int]:
    """Return the blobs that something refers to at a revision, or by now where that is not kept any more: their sizes.

    With `own_tags` those are left out that only tags refer to which begin so, with what is in their collections.
    """
    try:
        return await again(lambda: _find(node, revision, own_tags))
    except Compacted:
        return await again(lambda: _find(node, 0, own_tags))


async def _find(node: NodeApi, revision: int, own_tags: str) -> dict[str, int]:
    kept: dict[str, list[tuple[str, str]]] = {}
    async for rows in rows_of(node, keys.BLOB_REFERENCES, revision, keys_only=True):
        if isinstance(rows, messages.RowsHead):
            revision = rows.revision
            continue
        for key, *_ in rows:
            kind, name = keys.reference_of(key)
            kept.setdefault(key[len(keys.BLOB_REFERENCES) :][:64].decode(), []).append((kind, name))
    own = {
        blob
        for blob, references in kept.items()
        if own_tags and all(kind == "tag" and name.startswith(own_tags) for kind, name in references)
    }
    wanted = {
        blob
        for blob, references in kept.items()
        if blob not in own and any(kind != "collection" or name not in own for kind, name in references)
    }
    found: dict[str, int] = {}
    async for rows in rows_of(node, keys.BLOBS, revision):
        if not isinstance(rows, messages.RowsHead):
            for key, value, *_ in rows:
                if (blob := keys.blob_of(key)) in wanted:
                    found[blob] = records.decode(BlobRecord, value).size_bytes
    return found


async def without_holder(node: NodeApi, blobs: Collection[str]) -> list[str]:
    """Return which of these the catalogue has, and no node."""
    found: list[str] = []
    async for rows in rows_of(node, keys.BLOBS, 0):
        if not isinstance(rows, messages.RowsHead):
            for key, value, *_ in rows:
                if (blob := keys.blob_of(key)) in blobs and not records.decode(BlobRecord, value).holders:
                    found.append(blob)
    return found


class Copying:
    """Copies what a series lacks. It is locked."""

    def __init__(self, task: Task, gauge: Gauge, series: Series, recipients: Sequence[str]) -> None:
        self._node = task.node
        self._report = task.report
        self._gauge = gauge
        self._series = series
        self._recipients = list(recipients)

    async def copy(self, wanted: Mapping[str, int]) -> Copied:
        copied = Copied(sizes=dict(wanted), lost=[])
        lacking = await self._gauge.run(self._lacking, wanted)
        if not lacking:
            return copied
        self._gauge.say("blobs", sum(wanted[blob] for blob in lacking))
        blobs = await in_thread(self._series.shelf.make, m.BLOBS)
        with blobs:
            await self._gauge.run(_clear, blobs)
            await each(lacking, AT_ONCE, lambda blob: self._copy(blobs, blob, wanted[blob], copied))
            await self._gauge.run(blobs.sync)
        return copied

    def _lacking(self, wanted: Mapping[str, int]) -> list[str]:
        return [blob for blob in wanted if not self._series.has_blob(blob_file(blob, self._recipients))]

    async def _copy(self, blobs: Shelf, blob: str, size_bytes: int, copied: Copied) -> None:
        try:
            await self._write(blobs, blob, size_bytes)
        except (BlobUnavailable, BlobDamaged, NotFound) as error:
            del copied.sizes[blob]
            if await self._is_there(blob):
                copied.lost.append(blob)
                await self._report.write(line(note=f"lacks blob {blob}: {error.detail}"))
        else:
            copied.blobs += 1

    async def _is_there(self, blob: str) -> bool:
        """Tell whether the catalogue has it by now: what nothing refers to any more may go at any time."""
        try:
            await again(lambda: self._node.get(f"/v1/blobs/{segment(blob)}/stat", BlobView))
        except NotFound:
            return False
        return True

    async def _write(self, blobs: Shelf, blob: str, size_bytes: int) -> None:
        name, hashing = blob_file(blob, self._recipients), Blake3()
        draft_name = f"{DRAFT}{name}"
        part = await in_thread(blobs.make, name[:2])
        with part:
            draft = await in_thread(part.create, draft_name, self._recipients)
            try:
                async for piece in download(self._node, blob, size_bytes=size_bytes):
                    hashing.update(piece)
                    await in_thread(draft.write, piece)
                    await self._gauge.advance(len(piece))
                await in_thread(draft.finish)
                if hashing.digest().hex() != blob:
                    raise BlobDamaged(f"what the node gave of blob {blob} is not its content")
                await in_thread(part.rename, draft_name, name)
            finally:
                await in_thread(draft.abandon)
                await in_thread(part.remove, draft_name)


def _clear(blobs: Shelf) -> None:
    """Remove what was begun and never finished."""
    for part_name in blobs.names():
        with blobs.below(part_name) as part:
            for name in part.names():
                if name.startswith(DRAFT):
                    part.remove(name)


def write_listing(draft: Shelf, sizes: Mapping[str, int]) -> FileEntry:
    """Write which blobs belong to a backup."""
    encoder = FrameEncoder(messages.BLOBS)
    listed = sorted(sizes.items())
    file = draft.create(m.LISTING)
    try:
        file.write(encoder.head())
        for start in range(0, len(listed), LIST_ROWS):
            file.write(encoder.frame(msgspec.msgpack.encode(listed[start : start + LIST_ROWS])))
        file.write(encoder.end())
        written = file.finish()
    finally:
        file.abandon()
    return FileEntry(name=m.LISTING, size_bytes=written.size_bytes, blake3=written.blake3)
