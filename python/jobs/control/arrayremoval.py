"""Deletes the tasks of an ended array, what they have written, or what is left of an array that is gone; in bounded
transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from jobs import keys
from jobs.consensus import Consensus
from jobs.control.jobreferences import JobReferences
from jobs.control.transitions import Transitions, check, guard, scan_in_turns
from jobs.maintenance.messages import Cleaned
from jobs.protocol.ids import JobId, task_id
from jobs.store import EQ, Delete, Op, Store, Txn, VersionIs, prefix_end

KEYS: Final = 2_000
"""Keys that one transaction deletes."""
STEP_REFERENCES: Final = 500
"""References to blobs that one removes."""

_OF_TASKS: Final = (keys.LOG, keys.RESULT, keys.PROGRESS, keys.OUTPUT_TO_MOVE, keys.CHILDREN, keys.PARENT_ENDED)
"""What stands under a task's id, apart from its record."""
_OF_ARRAYS: Final = (
    keys.TASKS_ACTIVE,
    keys.TASKS_FAILED,
    keys.TASKS_CANCELLED,
    keys.ARRAY_ITEMS,
    keys.ARRAY_MEMBERS,
    keys.ARRAY_WITHDRAWN,
)
_KINDS: Final = (keys.ARRAYS, keys.ARRAYS_OPEN, *_OF_ARRAYS)
"""Whose keys name an array."""
STEP_ARRAYS: Final = 256
"""Arrays that one step looks at."""
ID_CHARACTERS: Final = 36


class TaskRemoval:
    """What retention needs of arrays: they go with their tasks, which have no place in its lists."""

    def __init__(self, consensus: Consensus, store: Store, transitions: Transitions, references: JobReferences) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._references = references

    async def remove(self, array: JobId) -> bool:
        """Delete everything of an array's tasks; False when the array changed meanwhile. Its own record goes after."""
        if not await self._remove_references(array):
            return False
        for start, end in _everything(array):
            if not await self._delete(array, start, end):
                return False
        return True

    async def remove_output(self, array: JobId) -> bool:
        """Delete what the tasks have written; False when the array changed meanwhile."""
        prefix = keys.of_tasks(keys.LOG, array)
        return await self._delete(array, prefix, prefix_end(prefix))

    async def _remove_references(self, array: JobId) -> bool:
        """Remove the references to what the tasks have left, which their results name; those go after."""
        async for page in scan_in_turns(self._store, keys.of_tasks(keys.RESULT, array)):
            ops = [
                op
                for key, value, *_ in page
                for op in self._references.output_removal(keys.job_of_result(key), (value,))
            ]
            for start in range(0, len(ops), STEP_REFERENCES):
                if not await self._try(array, tuple(ops[start : start + STEP_REFERENCES])):
                    return False
        return True

    async def _delete(self, array: JobId, start: bytes, end: bytes) -> bool:
        more = True
        while more:
            rows, more = self._store.range(start, end, limit=KEYS, keys_only=True)
            if rows and not await self._try(array, (Delete(start, rows[-1][0] + b"\x00"),)):
                return False
        return True

    async def _try(self, array: JobId, ops: tuple[Op, ...]) -> bool:
        """Do this unless the array has changed, or has not ended; then return False."""
        stored = self._transitions.read(array)
        if stored is None or not stored.record.state.is_final:
            return False
        done = await self._consensus.propose(Txn((guard(array, stored),), ops))
        check(done)
        await asyncio.sleep(0)
        return done.succeeded


def _everything(array: JobId) -> Iterator[tuple[bytes, bytes]]:
    """Yield the ranges of keys; what the others are found by comes last."""
    first = task_id(array, 0).encode()
    for kind in _OF_TASKS:
        yield kind + first, prefix_end(keys.of_tasks(kind, array))
    for kind in _OF_ARRAYS:
        prefix = keys.of_array(kind, array)
        yield prefix, prefix_end(prefix)
    yield keys.STATE + first, prefix_end(keys.of_tasks(keys.STATE, array))
    for key in (keys.array_open(array), keys.array(array)):
        yield key, key + b"\x00"


class Orphans:
    """Finds and deletes what is left of arrays that are gone."""

    def __init__(self, consensus: Consensus, store: Store) -> None:
        self._consensus = consensus
        self._store = store

    async def clean(self, cursor: bytes, *, dry_run: bool) -> Cleaned:
        """Look at a number of arrays from a key on, and delete what is left of those that are gone, or count it."""
        place, _, start = cursor.partition(b" ")
        number = int(place or 0)
        kind = _KINDS[number]
        start = start or kind
        keys_gone = arrays_gone = 0
        for _ in range(STEP_ARRAYS):
            rows, _ = self._store.range(start, prefix_end(kind), limit=1, keys_only=True)
            if not rows:
                rest = None if number + 1 == len(_KINDS) else b"%d " % (number + 1)
                break
            array = JobId(rows[0][0][len(kind) : len(kind) + ID_CHARACTERS].decode())
            start = keys.of_array(kind, array)[:-1] + b"\x01"
            rest = b"%d %s" % (number, start)
            if self._is_gone(array):
                arrays_gone += 1
                keys_gone += await (self._count(array) if dry_run else self._delete(array))
        return Cleaned({"arrays": arrays_gone, "keys": keys_gone}, 0, rest)

    def _is_gone(self, array: JobId) -> bool:
        return self._store.get(keys.state(array)) is None and self._store.get(keys.spec(array)) is None

    async def _count(self, array: JobId) -> int:
        found = 0
        for start, end in _everything(array):
            found += self._store.count(start, end, limit=KEYS)
            await asyncio.sleep(0)
        return found

    async def _delete(self, array: JobId) -> int:
        """Delete it in bounded transactions, each only while the array is not there."""
        guards = (VersionIs(keys.state(array), EQ, 0), VersionIs(keys.spec(array), EQ, 0))
        deleted = 0
        for start, end in _everything(array):
            more = True
            while more:
                rows, more = self._store.range(start, end, limit=KEYS, keys_only=True)
                if rows:
                    delete = Delete(start, rows[-1][0] + b"\x00")
                    done = await self._consensus.propose(Txn(guards, (delete,)))
                    check(done)
                    if not done.succeeded:
                        return deleted
                    deleted += len(rows)
        return deleted
