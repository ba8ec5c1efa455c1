"""Deletes the tasks of an ended array, or what they have written, in bounded transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from jobs import keys
from jobs.consensus import Consensus
from jobs.control.jobreferences import JobReferences
from jobs.control.transitions import Transitions, check, guard, scan_in_turns
from jobs.protocol.ids import JobId, task_id
from jobs.store import Delete, Op, Store, Txn, prefix_end

KEYS: Final = 2_000
"""Keys that one transaction deletes."""
STEP_REFERENCES: Final = 500
"""References to blobs that one removes."""

_OF_TASKS: Final = (keys.LOG, keys.RESULT, keys.PROGRESS, keys.OUTPUT_TO_MOVE, keys.CHILDREN, keys.PARENT_ENDED)
"""What stands under a task's id, apart from its record."""
_OF_ARRAYS: Final = (
    keys.TASKS_FAILED,
    keys.TASKS_CANCELLED,
    keys.ARRAY_ITEMS,
    keys.ARRAY_MEMBERS,
    keys.ARRAY_WITHDRAWN,
)


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
    yield keys.array(array), keys.array(array) + b"\x00"
