"""Where two sides differ, found by digests of ever smaller pieces of what they have.

Pieces end after the same keys on both sides, wherever both have them, so that neighbouring pieces between two common
ends are the same rows or differ as a whole. What differs is looked at in smaller pieces, down to single rows; where one
side has nothing there is nothing to compare.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from jobs.replication.messages import MAX_RANGES, Piece, Range
from jobs.replication.side import Side

LEVELS: Final = (65_536, 1_024, 16, 4, 1)
"""Rows of a piece, on average."""
PAGE_PIECES: Final = 4
"""Of the first level that are looked at before anything is told."""
GROUP_ROWS: Final = 65_536
"""That are compared in small pieces at once."""
PIECE_BYTES: Final = 26
"""Of a piece in an answer, besides its key."""


class At(Struct, frozen=True):
    """A side's range of keys, at a revision (0: the newest)."""

    side: Side
    prefix: bytes
    revision: int = 0


class Span(Struct, frozen=True):
    """A part of what is compared, from one key on and before another."""

    start: bytes
    end: bytes | None
    source_rows: int
    target_rows: int
    is_equal: bool
    last: bytes = b""
    """The last key there is in it."""

    @property
    def is_one_sided(self) -> bool:
        """Whether one side has nothing there. Which rows the other one has need not be known then."""
        return self.source_rows == 0 or self.target_rows == 0


class Differing(Struct, frozen=True):
    """A single key of which the sides have different values, or which one of them has not."""

    key: bytes
    at_source: bool
    at_target: bool
    is_next: bool = False
    """Between it and the one that was told before there is nothing."""


class Passed(Struct, frozen=True):
    """Everything before this key has been told; None: all of it."""

    next: bytes | None


Found: TypeAlias = Differing | Span | Passed
"""A span is told where one side has nothing."""


class Walk:
    """A comparison from a key on. Everything is told in the order of keys."""

    def __init__(self, source: At, target: At) -> None:
        self._source = source
        self._target = target
        self.rows = 0
        """Of the source that were compared."""
        self.bytes = 0
        """Of digests that one side has told."""

    async def run(self, start: bytes) -> AsyncGenerator[Found]:
        at: bytes | None = start
        while at is not None:
            answer = await self._source.side.digests(
                self._source.prefix,
                ((at, None),),
                revision=self._source.revision,
                rows=LEVELS[0],
                limit=PAGE_PIECES,
            )
            (pieces,) = answer.ranges
            self._count(pieces)
            self.rows += sum(piece.rows for piece in pieces)
            page = (at, answer.next)
            (theirs,) = await self._all(self._target, (page,), LEVELS[0])
            async for found in self._descend(align(page, pieces, theirs), 1):
                yield found
            yield Passed(answer.next)
            at = answer.next

    async def first_of(self, span: Span) -> bytes:
        """Return the first key there is in a span of which one side has nothing."""
        at = self._source if span.source_rows else self._target
        found = await at.side.rows(at.prefix, (span.start, span.end), revision=at.revision, limit=1, values=False)
        return found.rows[0].key if found.rows else span.start

    async def _descend(self, spans: Sequence[Span], level: int) -> AsyncGenerator[Found]:
        """Tell of spans that have been compared at the level above."""
        for group in groups(spans):
            if group[0].is_one_sided:
                yield group[0]
            else:
                async for found in self._compare(group, level):
                    yield found
            yield Passed(group[-1].end)

    async def _compare(self, group: Sequence[Span], level: int) -> AsyncGenerator[Found]:
        ranges = tuple((span.start, span.end) for span in group)
        ours, theirs = await asyncio.gather(
            self._all(self._source, ranges, LEVELS[level], counted=True), self._all(self._target, ranges, LEVELS[level])
        )
        parts = list(zip(ranges, ours, theirs, strict=True))
        if level < len(LEVELS) - 1:
            async for found in self._descend([span for part in parts for span in align(*part)], level + 1):
                yield found
        else:
            for _, here, there in parts:
                for differing in single(here, there):
                    yield differing

    async def _all(self, at: At, ranges: tuple[Range, ...], rows: int, *, counted: bool = False) -> list[list[Piece]]:
        """Return all pieces of each of the ranges."""
        found: list[list[Piece]] = [[] for _ in ranges]
        done, start = 0, ranges[0][0]
        while done < len(ranges):
            wanted = ((start, ranges[done][1]), *ranges[done + 1 : done + MAX_RANGES])
            answer = await at.side.digests(at.prefix, wanted, revision=at.revision, rows=rows)
            for number, pieces in enumerate(answer.ranges, done):
                found[number].extend(pieces)
                if counted:
                    self._count(pieces)
            done += len(answer.ranges)
            if answer.next is not None:
                done, start = done - 1, answer.next
            elif done < len(ranges):
                start = ranges[done][0]
        return found

    def _count(self, pieces: Sequence[Piece]) -> None:
        self.bytes += sum(PIECE_BYTES + len(piece.last) for piece in pieces)


def align(span: Range, source: Sequence[Piece], target: Sequence[Piece]) -> list[Span]:
    """Return what the pieces of a range on both sides come to, neighbours that are equal or differ taken together."""
    start, end = span
    ends = {piece.last for piece in source} & {piece.last for piece in target}
    found: list[Span] = []
    for (last, here), (_, there) in zip(_parts(source, ends), _parts(target, ends), strict=True):
        is_equal = [piece.digest for piece in here] == [piece.digest for piece in there]
        until = end if last is None else last + b"\x00"
        latest = max((one.last for one in (*here[-1:], *there[-1:])), default=b"")
        part = Span(start, until, sum(one.rows for one in here), sum(one.rows for one in there), is_equal, latest)
        if found and ((last is None and not (here or there)) or _alike(found[-1], part)):
            before = found.pop()
            rows = before.source_rows + part.source_rows, before.target_rows + part.target_rows
            part = Span(before.start, until, *rows, before.is_equal, max(before.last, latest))
        found.append(part)
        start = part.end or b""
    return found


def _alike(before: Span, after: Span) -> bool:
    """Tell whether two neighbours may be taken together."""
    if before.is_equal or after.is_equal:
        return before.is_equal and after.is_equal
    return (before.source_rows == 0, before.target_rows == 0) == (after.source_rows == 0, after.target_rows == 0)


def _parts(pieces: Sequence[Piece], ends: set[bytes]) -> Iterator[tuple[bytes | None, list[Piece]]]:
    """Return the pieces between each two of the ends, and at last those after the last one."""
    part: list[Piece] = []
    for piece in pieces:
        part.append(piece)
        if piece.last in ends:
            yield piece.last, part
            part = []
    yield None, part


def groups(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Return spans that are to be looked at together: several in which both sides have something, of bounded size, and
    each other one by itself. Equal ones are left out."""
    group: list[Span] = []
    rows = 0
    for span in spans:
        if span.is_equal:
            continue
        span_rows = max(span.source_rows, span.target_rows)
        if group and (span.is_one_sided or len(group) == MAX_RANGES or rows + span_rows > GROUP_ROWS):
            yield group
            group, rows = [], 0
        if span.is_one_sided:
            yield [span]
        else:
            group.append(span)
            rows += span_rows
    if group:
        yield group


def single(source: Sequence[Piece], target: Sequence[Piece]) -> Iterator[Differing]:
    """Return which keys differ, where each piece is a row."""
    theirs = {piece.last: piece.digest for piece in target}
    ours = {piece.last: piece.digest for piece in source}
    follows = False
    for key in sorted(ours.keys() | theirs.keys()):
        differs = ours.get(key) != theirs.get(key)
        if differs:
            yield Differing(key, key in ours, key in theirs, follows)
        follows = differs
