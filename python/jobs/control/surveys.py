"""What retention would let go now, page by page and without letting go of anything: by the same rules, in its order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from msgspec import Struct, structs

from jobs import keys, records, retention
from jobs.control.removal import Removal
from jobs.control.transitions import Transitions
from jobs.records import EndedRecord
from jobs.retention import Entry, Kind, Limits, Order, Totals, order
from jobs.store import Store, prefix_end

PAGE_JOBS: Final = 256
"""Ended jobs of each list that one page looks at."""
MAX_HEADS: Final = 1_024
"""Entries that one look at the head of a list reads."""
LISTS: Final[Mapping[Kind, bytes]] = {"full": keys.ENDED_FULL, "bare": keys.ENDED_BARE, "own": keys.ENDED_OWN}


class Survey(Struct, frozen=True, array_like=True):
    """How far a survey is."""

    jobs: int
    """There are so many too many, of those that come yet."""
    size_bytes: int
    start: dict[str, bytes] = {}
    """Of each list, the key to go on with."""


class Found(Struct, frozen=True, kw_only=True):
    """What a page came to."""

    jobs: int
    outputs: int
    """Jobs of which only the output would go."""
    size_bytes: int
    rest: Survey | None
    """None at the end."""


def begin(totals: Totals | None, limits: Limits) -> Survey:
    if totals is None:
        return Survey(0, 0)
    return Survey(totals.jobs - limits.max_jobs, totals.bytes - limits.max_bytes)


def read_entries(store: Store, kind: Kind, start: bytes, limit: int) -> tuple[list[tuple[bytes, Entry]], bool]:
    """Return entries of a list of ended jobs with their keys, and whether there are more."""
    prefix = LISTS[kind]
    rows, more = store.range(start, prefix_end(prefix), limit=limit)
    return [(key, entry_of(kind, key, value)) for key, value, *_ in rows], more


def read_heads(store: Store, limits: Limits, count: int) -> tuple[list[Entry], Order | None]:
    """Return the entries of the lists that are next to go, of each so many that are not held and the held ones before
    them; and up to where there are no others, None for everywhere."""
    heads: list[Entry] = []
    ends: list[Order] = []
    for kind in LISTS:
        found, more = _read_head(store, kind, count)
        heads += found
        if more:
            ends.append(order(found[-1], limits))
    return heads, min(ends, default=None)


def _read_head(store: Store, kind: Kind, count: int) -> tuple[list[Entry], bool]:
    found: list[Entry] = []
    start, more = LISTS[kind], True
    while more and count > 0 and len(found) < MAX_HEADS:
        rows, more = read_entries(store, kind, start, count)
        found += (entry for _, entry in rows)
        count -= sum(not entry.held for _, entry in rows)
        if rows:
            start = rows[-1][0] + b"\x00"
    return found, more


def entry_of(kind: Kind, key: bytes, value: bytes) -> Entry:
    record = records.decode(EndedRecord, value)
    return Entry(kind, keys.job_of(key), keys.time_of(LISTS[kind], key), record.stored_bytes, record.held)


async def look(
    store: Store, transitions: Transitions, removal: Removal, limits: Limits, now_ms: int, survey: Survey
) -> Found:
    """Look at a page of the lists."""
    start = {kind: survey.start.get(kind, prefix) for kind, prefix in LISTS.items()}
    pages = {kind: read_entries(store, kind, start[kind], PAGE_JOBS) for kind in LISTS}
    # Beyond the end of a page that goes on, another job of that list may come first.
    ends = [order(entries[-1][1], limits) for entries, more in pages.values() if more]
    entries = sorted(
        (
            (key, entry)
            for rows, _ in pages.values()
            for key, entry in rows
            if not ends or order(entry, limits) <= min(ends)
        ),
        key=lambda row: order(row[1], limits),
    )
    count, rest = _Count(), structs.replace(survey, start=start)
    for key, entry in entries:
        rest.start[entry.kind] = max(rest.start[entry.kind], key + b"\x00")
        if (rest.jobs > 0 or rest.size_bytes > 0) and not entry.held:
            if await count.forced(entry, transitions, removal):
                rest = structs.replace(rest, jobs=rest.jobs - 1, size_bytes=rest.size_bytes - entry.bytes)
        elif retention.next_moment_ms(entry, limits) <= now_ms:
            await count.due(entry, transitions, removal, limits, now_ms)
        else:
            rest.start[entry.kind] = prefix_end(LISTS[entry.kind])
    return Found(jobs=count.jobs, outputs=count.outputs, size_bytes=count.size_bytes, rest=rest if ends else None)


class _Count:
    def __init__(self) -> None:
        self.jobs = 0
        self.outputs = 0
        self.size_bytes = 0

    async def forced(self, entry: Entry, transitions: Transitions, removal: Removal) -> bool:
        """Tell whether the job would go, as there are too many."""
        await asyncio.sleep(0)
        stored = transitions.read(entry.job)
        if stored is None or await removal.is_needed(entry.job, stored.record):
            return False
        self.jobs += 1
        self.size_bytes += entry.bytes
        return True

    async def due(self, entry: Entry, transitions: Transitions, removal: Removal, limits: Limits, now_ms: int) -> None:
        stored = transitions.read(entry.job)
        if stored is None or not stored.record.state.is_final:
            return
        what = retention.due(stored.record, limits, now_ms)
        if what is None or await removal.is_needed(entry.job, stored.record):
            return
        self.jobs += what == "job"
        self.outputs += what == "logs"
        self.size_bytes += entry.bytes if what == "job" else stored.record.log_bytes
        await asyncio.sleep(0)
