"""Compares two sides, each at one revision, and says in which ranges they differ. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from msgspec import Struct

from jobs.errors import Compacted
from jobs.protocol.model import RangeDifference
from jobs.replication.comparing import At, Differing, Span, Walk
from jobs.replication.side import Side
from jobs.replication.tagsync import TAG_BYTES, hash_of, list_tags

MAX_TOLD: Final = 100
MAX_TRIES: Final = 5
"""At revisions that are forgotten before they have been compared."""


class Verified(Struct, kw_only=True):
    """What came of a comparison; `differing`: how many ranges, also those of which no more is told."""

    rows: int = 0
    bytes: int = 0
    differing: int = 0
    differences: list[RangeDifference] = []
    source_revision: int = 0
    target_revision: int = 0


class _Ranges:
    """Ranges that differ, of which neighbours are one."""

    def __init__(self, found: Verified, prefix: str) -> None:
        self._found = found
        self._prefix = prefix.encode()
        self._first = self._last = b""
        self._source_rows = self._target_rows = 0

    def add(self, first: bytes, last: bytes, source_rows: int, target_rows: int, *, is_next: bool) -> None:
        if not is_next:
            self.close()
            self._first = first
        self._last = last
        self._source_rows += source_rows
        self._target_rows += target_rows

    def close(self) -> None:
        if not (self._source_rows or self._target_rows):
            return
        self._found.differing += 1
        if len(self._found.differences) < MAX_TOLD:
            self._found.differences.append(
                RangeDifference(
                    first=self._text(self._first),
                    last=self._text(self._last),
                    source_rows=self._source_rows,
                    target_rows=self._target_rows,
                )
            )
        self._source_rows = self._target_rows = 0

    def _text(self, key: bytes) -> str:
        return (self._prefix + key).decode(errors="replace")


async def verify_keys(
    source: Side, target: Side, prefix: str, target_prefix: str, tell: Callable[[int], None]
) -> Verified:
    """`tell` gets the number of rows that have been compared. Raises Compacted where both sides forget too soon, again
    and again."""
    for attempt in range(1, MAX_TRIES + 1):
        here, there = await source.about(), await target.about()
        found = Verified(source_revision=here.revision, target_revision=there.revision, differences=[])
        walk = Walk(
            At(source, prefix.encode(), here.revision),
            At(target, target_prefix.encode(), there.revision),
        )
        try:
            await _walk(walk, _Ranges(found, prefix), tell)
        except Compacted:
            if attempt == MAX_TRIES:
                raise
            continue
        found.rows, found.bytes = walk.rows, walk.bytes
        break
    return found


async def _walk(walk: Walk, ranges: _Ranges, tell: Callable[[int], None]) -> None:
    async with aclosing(walk.run(b"")) as differences:
        async for one in differences:
            if isinstance(one, Differing):
                ranges.add(one.key, one.key, int(one.at_source), int(one.at_target), is_next=one.is_next)
            elif isinstance(one, Span):
                first = await walk.first_of(one)
                ranges.add(first, one.last, one.source_rows, one.target_rows, is_next=False)
            else:
                tell(walk.rows)
    ranges.close()


async def verify_tags(source: Side, target: Side, prefix: str) -> Verified:
    """A tag that differs is a range of its own."""
    here, ours = await list_tags(source, prefix)
    there, theirs = await list_tags(target, prefix)
    found = Verified(
        rows=len(ours),
        bytes=TAG_BYTES * len(ours),
        source_revision=here,
        target_revision=there,
        differences=[],
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if hash_of(ours, name) == hash_of(theirs, name):
            continue
        found.differing += 1
        if len(found.differences) < MAX_TOLD:
            rows = int(name in ours), int(name in theirs)
            found.differences.append(RangeDifference(first=name, last=name, source_rows=rows[0], target_rows=rows[1]))
    return found
