"""Changes made ready for a target: as few batches as their bounds allow, cut between revisions wherever that can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Final, TypeVar

from msgspec import structs

from jobs.replication.messages import (
    MAX_BATCH_BYTES,
    PRESENT,
    UNKNOWN,
    Change,
    Row,
    digest_of,
)

T = TypeVar("T")
BATCH_CHANGES: Final = 500
"""What a leader plans and writes in a few milliseconds; the most that it takes is `MAX_CHANGES`."""
CHANGE_BYTES: Final = 32
"""Of a change on its way, besides key and value."""


def size_of(change: Change) -> int:
    return CHANGE_BYTES + len(change.key) + (0 if change.value is None else len(change.value))


def change_of(row: Row, position: int) -> Change:
    """Return what a target that stands at a position is to have of a row; what is known of the row as it was then is
    its base."""
    base = UNKNOWN
    if row.mod_revision <= position:
        base = digest_of(row.value)
    elif row.create_revision <= position:
        base = PRESENT
    return Change(row.key, row.value, row.mod_revision, row.at_ms, base)


class _Gathered:
    """The changes of a batch: of a key only what it is in the end, with what it was in the beginning."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, Change] = {}
        self.bytes = 0

    def fits(self, changes: Iterable[Change]) -> bool:
        new, size = 0, self.bytes
        for change in changes:
            former = self.by_key.get(change.key)
            new += former is None
            size += size_of(change) - (0 if former is None else size_of(former))
        return len(self.by_key) + new <= BATCH_CHANGES and size <= MAX_BATCH_BYTES

    def add(self, change: Change) -> None:
        former = self.by_key.get(change.key)
        if former is not None:
            self.bytes -= size_of(former)
            change = structs.replace(change, base=former.base)
        self.by_key[change.key] = change
        self.bytes += size_of(change)

    def take(self) -> tuple[Change, ...]:
        found = tuple(self.by_key.values())
        self.by_key, self.bytes = {}, 0
        return found


def cut(changes: Iterable[Change], position: int, up_to: int) -> Iterator[tuple[tuple[Change, ...], int]]:
    """Return batches of changes in the order of revisions, each with the revision up to which everything is at the
    target after it; the last of them with `up_to`. A revision that is too large for a batch is cut itself: the position
    stays before it until it is whole, and to apply a part of it twice changes nothing."""
    gathered = _Gathered()
    whole = position
    for revision, group in _by_revision(changes):
        if gathered.by_key and not gathered.fits(group):
            yield gathered.take(), whole
        for change in group:
            if gathered.by_key and not gathered.fits((change,)):
                yield gathered.take(), whole
            gathered.add(change)
        whole = revision
    yield gathered.take(), up_to


def _by_revision(changes: Iterable[Change]) -> Iterator[tuple[int, list[Change]]]:
    group: list[Change] = []
    for change in changes:
        if group and group[-1].revision != change.revision:
            yield group[-1].revision, group
            group = []
        group.append(change)
    if group:
        yield group[-1].revision, group


def pieces(changes: Iterable[Change]) -> Iterator[tuple[Change, ...]]:
    """Return changes, none of them of a key that another has, in their order, as many at a time as a batch takes."""
    part: list[Change] = []
    size = 0
    for change in changes:
        if part and (len(part) == BATCH_CHANGES or size + size_of(change) > MAX_BATCH_BYTES):
            yield tuple(part)
            part, size = [], 0
        part.append(change)
        size += size_of(change)
    if part:
        yield tuple(part)


async def ahead(items: AsyncGenerator[T], most: int = 2) -> AsyncGenerator[T]:
    """Yield what comes, while so many more are already being made. Raises what comes to an error, in its turn."""
    queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(most)

    async def fill() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    await queue.put((item,))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    filling = asyncio.ensure_future(fill())
    try:
        while (got := await queue.get()) is not None:
            if isinstance(got, Exception):
                raise got
            yield got[0]
    finally:
        filling.cancel()
        await asyncio.wait([filling])
