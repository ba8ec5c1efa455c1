"""What the API asks about arrays: who may, how far they are, some of their tasks ended, what failed repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from jobs import indices, jobs, keys, records
from jobs.clock import wall_ms
from jobs.control.arrays import Arrays
from jobs.control.deadletters import DeadLetters
from jobs.control.newjobs import JobMaker
from jobs.control.once import idempotency_key
from jobs.control.queries import Queries
from jobs.control.repetition import repeat_tasks, uncompleted
from jobs.control.submission import Submission
from jobs.errors import InvalidRequest, NotFound, NotRedrivable
from jobs.indices import Indices
from jobs.protocol.ids import JobId
from jobs.protocol.model import ArrayRetry, ArrayView, CancelOutcome, Submitted
from jobs.service import Caller
from jobs.store import Store


class ArrayOperations:
    """Implements `service.ArrayService`."""

    def __init__(
        self,
        store: Store,
        arrays: Arrays,
        queries: Queries,
        submission: Submission,
        dead_letters: DeadLetters,
        maker: JobMaker,
        check_space: Callable[[], None],
    ) -> None:
        self._store = store
        self._arrays = arrays
        self._queries = queries
        self._submission = submission
        self._dead_letters = dead_letters
        self._maker = maker
        self._check_space = check_space

    async def view(self, caller: Caller, array: JobId) -> ArrayView:
        await self._queries.read(caller, array)
        return self._arrays.view(array)

    async def follow(self, caller: Caller, array: JobId) -> AsyncIterator[ArrayView]:
        await self._queries.read(caller, array)
        async for view in self._arrays.follow(array):
            yield view

    async def cancel(self, caller: Caller, array: JobId, chosen: str) -> CancelOutcome:
        await self._queries.read(caller, array)
        return await self._arrays.cancel_tasks(caller, array, indices.parse(chosen))

    async def retry(self, caller: Caller, array: JobId, wanted: ArrayRetry) -> Submitted:
        """Make an array of the tasks that did not complete: of all of them as a redrive does, or of some of them."""
        parent = (await self._queries.read(caller, array)).record
        if not parent.tasks:
            raise NotFound(f"job {array} is no array", expected="the id of an array")
        if wanted.indices is None and wanted.only is None:
            return await self._dead_letters.redrive(caller, array)
        self._check_space()
        if parent.state is not jobs.FAILED:
            raise NotRedrivable(f"array {array} is {parent.state}", expected="an array that failed")
        chosen = await uncompleted(self._store, array, wanted.only)
        if wanted.indices is not None:
            chosen = _given(wanted.indices, chosen)
        if not chosen:
            raise NotRedrivable(f"no task of array {array} ended as {wanted.only}")
        stored = self._store.get(keys.spec(array))
        if stored is None:
            raise NotFound(f"the submission of job {array} is no longer kept")
        # Keys, times and dependencies were for the whole, and for its first time.
        spec = replace(
            records.decode_spec(stored[1]),
            idempotency_key=wanted.idempotency_key or idempotency_key(caller.request_id),
            unique_key=None,
            not_before_ms=None,
            deadline_ms=None,
            depends_on=[],
            ref=None,
        )
        new = repeat_tasks(self._store, self._maker, array, spec, chosen, wall_ms())
        return await self._submission.repeat(caller, array, new)


def _given(text: str, chosen: Indices) -> Indices:
    """Return the tasks that are asked for. Raises InvalidRequest for one that is not among those possible."""
    given = indices.parse(text)
    if strange := given & ~chosen:
        raise InvalidRequest(
            f"task {next(indices.each(strange))} of the array did not end so",
            field="$.indices",
            expected="indices of tasks that failed or were cancelled",
        )
    return given
