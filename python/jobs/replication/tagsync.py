"""Keeps the tags of a target that begin with a prefix, and the blobs that they name, as they are at a source.

Tags are few and small: whenever some have changed, all of them are compared. A blob that the target has not is
streamed, verified by its hash, and only then the tag is set. What no tag names any more is the garbage collection's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from msgspec import structs

from jobs.errors import Compacted, NotFound
from jobs.records import CursorRecord
from jobs.replication import messages as m
from jobs.replication.run import POLL_S, Progress, Run
from jobs.replication.side import Side

CHUNK_TAGS: Final = 100
"""Whose blobs are brought before the tags are set."""
MAX_DEPTH: Final = 16
"""Of collections in collections."""
MAX_TRIES: Final = 3
"""At a tag whose blob went at the target before the tag was set."""
TAG_BYTES: Final = 100


class TagSync(Run[m.TagChange]):
    """One run of a sync of tags and blobs."""

    async def run(self) -> Progress:
        await self._begin()
        if self._cursor.comparing:
            await self._round(self._cursor.comparing)
        self._seen = self._cursor.position
        wait_s = 0.0
        while not self._is_done():
            moved = await self._source.tags_changed(self._work.prefix, self._seen, wait_s=wait_s)
            if moved > self._seen or not self._work.continuous:
                await self._round((await self._source.about()).revision)
            else:
                # It was asked after the goal was known: up to there nothing has changed either.
                self._saw(max(self._seen, self._goal), self._goal)
            await self._look()
            wait_s = POLL_S
        return self.progress

    async def _send(self, changes: tuple[m.TagChange, ...], cursor: CursorRecord) -> m.Applied:
        work = self._work
        return await self._target.apply_tags(
            m.TagBatch(work.origin, work.name, self._expected, cursor, changes, work.policy)
        )

    async def _round(self, revision: int) -> None:
        """Have at the target what the source has, which is at this revision at least."""
        _, here = await list_tags(self._source, self._work.prefix)
        _, there = await list_tags(self._target, self._work.prefix)
        self.progress.compared += len(here)
        names = sorted(name for name in here.keys() | there.keys() if hash_of(here, name) != hash_of(there, name))
        for chunk in _chunks(names):
            for attempt in range(1, MAX_TRIES + 1):
                changes = await self._changes(chunk, here)
                try:
                    await self._write(self._cursor, changes)
                    break
                except NotFound:
                    if attempt == MAX_TRIES:
                        raise
        self._seen = max(self._seen, revision)
        await self._write(structs.replace(self._cursor, position=self._seen, comparing=0, after=b""))
        self._saw(revision, revision)

    async def _changes(self, names: Sequence[str], here: dict[str, m.Tag]) -> tuple[m.TagChange, ...]:
        """Return what is to become of tags of which all blobs are at the target; a tag whose blob is gone at the source
        has been given another one, which the next round sees."""
        wanted = [name for name in names if name in here]
        gone = await self._bring([here[name].hash for name in wanted])
        names = [name for name in names if hash_of(here, name) not in gone]
        bases = await self._bases(names)
        await self._take_turn(TAG_BYTES * len(names), len(names))
        return tuple(
            m.TagChange(
                name,
                hash_of(here, name),
                here[name].revision if name in here else 0,
                here[name].at_ms if name in here else 0,
                base,
            )
            for name, base in zip(names, bases, strict=True)
        )

    async def _bases(self, names: Sequence[str]) -> Sequence[str | None]:
        position = self._cursor.position
        if position:
            try:
                found = await self._source.tagged(self._work.prefix, tuple(names), position)
                return [blob or "" for blob in found]
            except Compacted:
                pass
        return [None] * len(names)

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def _bring(self, blobs: Sequence[str], depth: int = 0) -> frozenset[str]:
        """Have blobs at the target, with what they consist of; return those that are gone at the source."""
        lacking = await self._target.lacking(self._work.prefix, tuple(dict.fromkeys(blobs))) if blobs else ()
        gone: set[str] = set()
        for one in lacking:
            try:
                blob = await self._source.blob(self._work.prefix, one)
                if blob.children and (depth == MAX_DEPTH or await self._bring(blob.children, depth + 1)):
                    gone.add(one)
                    continue
                await self._target.add_blob(self._work.prefix, blob, self._content(blob))
            except NotFound:
                gone.add(one)
                continue
            self.progress.blobs += 1
            self._tell(self.progress)
        return frozenset(gone)

    async def _content(self, blob: m.Blob) -> AsyncIterator[bytes]:
        await self._take_turn(0, 1)
        async for piece in self._source.read_blob(self._work.prefix, blob.hash):
            await self._take_turn(len(piece), 0)
            self._tell(self.progress)
            yield piece


async def list_tags(side: Side, prefix: str) -> tuple[int, dict[str, m.Tag]]:
    """Return all tags of a side that begin so, by name, and its revision before they were read."""
    found: dict[str, m.Tag] = {}
    after: str | None = ""
    revision = 0
    while after is not None:
        page = await side.tags(prefix, after)
        revision = revision or page.revision
        found.update((tag.name, tag) for tag in page.tags)
        after = page.next
    return revision, found


def hash_of(tags: dict[str, m.Tag], name: str) -> str | None:
    """Return which blob a tag names, if it is there."""
    return tags[name].hash if name in tags else None


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + CHUNK_TAGS] for start in range(0, len(names), CHUNK_TAGS))
