"""Repeating tasks of an array that has ended: which of them, and the array that does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal

from msgspec.structs import replace

from jobs import indices, keys
from jobs.control import arraystore
from jobs.control.newjobs import JobMaker, NewJob
from jobs.control.transitions import scan
from jobs.indices import Indices
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobSubmit
from jobs.store import Store

TURN: Final = 10_000
"""Tasks that are looked at before others have their turn."""


async def uncompleted(store: Store, array: JobId, only: Literal["failed", "cancelled"] | None = None) -> Indices:
    """Return the tasks of an ended array that failed or were cancelled, or only the ones or the others."""
    found = arraystore.read_existing_array(store, array)
    chosen = 0
    if only != "cancelled":
        chosen |= await _collected(arraystore.failed(store, array, found.parent, found.record))
    if only != "failed":
        chosen |= await _collected(arraystore.cancelled(store, array, found.parent, found.record))
    return chosen


def repeat_tasks(store: Store, maker: JobMaker, array: JobId, spec: JobSubmit, chosen: Indices, now_ms: int) -> NewJob:
    """Return an array of some tasks of another: they keep their indices and items, and the schedule's time."""
    found = arraystore.read_existing_array(store, array)
    rows = scan(store, keys.of_array(keys.ARRAY_ITEMS, array))
    items = ((keys.number_of(key), data) for key, data, *_ in rows)
    new = maker.repeat_array(array, found.parent.owner, spec, found.record, chosen, items, now_ms)
    parent = found.parent
    return replace(new, record=replace(new.record, schedule=parent.schedule, nominal_ms=parent.nominal_ms))


async def _collected(numbers: Iterator[int]) -> Indices:
    """Return the set of so many numbers that others must have their turn meanwhile."""
    found = 0
    while some := list(islice(numbers, TURN)):
        found |= indices.of(some)
        await asyncio.sleep(0)
    return found
