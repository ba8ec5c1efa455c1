"""Arrays as they stand in the store, for whoever has to know of a task or its array: reads only."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from jobs import arrays, indices, keys, records
from jobs.arrays import Tally
from jobs.control.transitions import COUNT_LIMIT, Stored, count_in_turns, read_job, scan, scan_in_turns
from jobs.errors import NotFound
from jobs.indices import Indices
from jobs.protocol.ids import JobId, Revision, array_id, task_id, task_index
from jobs.protocol.model import Reason
from jobs.records import ArrayRecord, JobRecord
from jobs.store import EQ, Compare, ModRevisionIs, Store, prefix_end


class StoredArray(Struct, frozen=True):
    """An array's job, what makes its tasks, and the compares that hold while both are as they were read."""

    parent: JobRecord
    record: ArrayRecord
    revision: Revision
    """Of the job."""
    guards: tuple[Compare, ...]


def read_array(store: Store, array: JobId) -> StoredArray | None:
    """Return the array; None for what is none, or is no longer kept."""
    job_key, array_key = keys.state(array), keys.array(array)
    job, made = store.get(job_key), store.get(array_key)
    if job is None or made is None:
        return None
    return StoredArray(
        records.decode(JobRecord, job[1]),
        records.decode(ArrayRecord, made[1]),
        Revision(job[4]),
        (ModRevisionIs(job_key, EQ, job[4]), ModRevisionIs(array_key, EQ, made[4])),
    )


def read_existing_array(store: Store, array: JobId) -> StoredArray:
    """Raises NotFound."""
    found = read_array(store, array)
    if found is None:
        raise NotFound(f"job {array} is no array", expected="the id of an array")
    return found


def read_indices(store: Store, kind: bytes, array: JobId) -> Indices:
    """Return a set of indices that is kept in chunks."""
    rows = scan(store, keys.of_array(kind, array))
    return indices.joined({keys.number_of(row[0]): row[1] for row in rows})


def members(store: Store, array: JobId, record: ArrayRecord) -> Indices:
    """Return the indices of all tasks of an array."""
    if record.is_subset:
        return read_indices(store, keys.ARRAY_MEMBERS, array)
    return indices.between(0, record.size)


def unsplit(store: Store, array: JobId, record: ArrayRecord) -> Indices:
    """Return the tasks that have neither been split off nor withdrawn."""
    if not record.is_subset and not record.withdrawn:
        return indices.between(record.next, record.size)
    withdrawn = read_indices(store, keys.ARRAY_WITHDRAWN, array) if record.withdrawn else 0
    return members(store, array, record) & ~withdrawn & ~indices.between(0, record.next)


def is_task(store: Store, array: JobId, record: ArrayRecord, index: int) -> bool:
    """Tell whether the array has a task of this index."""
    if not 0 <= index < record.size:
        return False
    return not record.is_subset or _has(store, keys.ARRAY_MEMBERS, array, index)


def _has(store: Store, kind: bytes, array: JobId, index: int) -> bool:
    chunk = store.get(keys.numbered(kind, array, indices.chunk_of(index)))
    return chunk is not None and indices.chunk_has(chunk[1], index)


def find(store: Store, job: JobId) -> Stored | None:
    """Return a job's record; for a task that is no job of its own yet, or never was, what stands for it."""
    return read_job(store, job) or _unsplit_task(store, job)


def watched(job: JobId, record: JobRecord) -> list[bytes]:
    """Return the keys that change when what `find` returns does."""
    if not record.is_task:
        return [keys.state(job)]
    return [keys.state(job), keys.state(array_id(job)), keys.array(array_id(job))]


def _unsplit_task(store: Store, task: JobId) -> Stored | None:
    array, index = array_id(task), task_index(task)
    found = None if index < 0 else read_array(store, array)
    if found is None or not is_task(store, array, found.record, index):
        return None
    withdrawn = bool(found.record.withdrawn) and _has(store, keys.ARRAY_WITHDRAWN, array, index)
    if index < found.record.next and not withdrawn:
        return None
    return Stored(arrays.unsplit_record(array, found.parent, found.record, withdrawn=withdrawn), found.revision)


def indices_of(store: Store, kind: bytes, array: JobId) -> Iterator[int]:
    """Yield the indices of the tasks of an array that stand under keys of a kind, in order."""
    return (keys.number_of(row[0]) for row in scan(store, keys.of_array(kind, array)))


def failed(store: Store, array: JobId, parent: JobRecord, record: ArrayRecord) -> Iterator[int]:
    """Yield the indices of the tasks that failed, in order, those included that never were jobs of their own."""
    yield from indices_of(store, keys.TASKS_FAILED, array)
    if arrays.rest(parent, record) not in (None, Reason.CANCELLED):
        yield from indices.each(unsplit(store, array, record))


def cancelled(store: Store, array: JobId, parent: JobRecord, record: ArrayRecord) -> Iterator[int]:
    """Yield the indices of the tasks that were cancelled, in any order."""
    yield from indices_of(store, keys.TASKS_CANCELLED, array)
    yield from indices.each(read_indices(store, keys.ARRAY_WITHDRAWN, array) if record.withdrawn else 0)
    if arrays.rest(parent, record) is Reason.CANCELLED:
        yield from indices.each(unsplit(store, array, record))


def count_tasks(store: Store, kind: bytes, array: JobId) -> int:
    """Return how many tasks of an array stand under keys of a kind."""
    prefix = keys.of_array(kind, array)
    return store.count(prefix, prefix_end(prefix), limit=COUNT_LIMIT)


async def tally(store: Store, array: JobId, record: ArrayRecord) -> Tally:
    """Return how the tasks of an array that has not ended stand."""
    found = Tally()
    found.split = record.split
    found.stored_bytes, found.log_bytes = record.stored_bytes, record.log_bytes
    found.failed = await count_in_turns(store, keys.of_array(keys.TASKS_FAILED, array))
    found.cancelled = await count_in_turns(store, keys.of_array(keys.TASKS_CANCELLED, array))
    async for page in scan_in_turns(store, keys.of_array(keys.TASKS_ACTIVE, array)):
        for row in page:
            task = read_job(store, task_id(array, keys.number_of(row[0])))
            if task is not None:  # None only where others write meanwhile
                found.add(task.record)
    return found


def spec_key(job: JobId, record: JobRecord) -> bytes:
    """Return where the submission of a job stands; of a task, its array's."""
    return keys.spec(array_id(job) if record.is_task else job)


def environment(store: Store, task: JobId) -> dict[str, str]:
    """Return the variables by which a task that runs knows which one it is."""
    array, index = array_id(task), task_index(task)
    made = store.get(keys.array(array))
    assert made is not None, f"task {task} has no array"
    record = records.decode(ArrayRecord, made[1])
    chunk = None if record.source == "range" else _items_with(store, array, index)
    return arrays.environment(array, index, record, arrays.item(record, index, chunk))


def _items_with(store: Store, array: JobId, index: int) -> tuple[int, bytes]:
    """Return the chunk of items that an index is in, and the index of its first."""
    start = keys.of_array(keys.ARRAY_ITEMS, array)
    end = keys.numbered(keys.ARRAY_ITEMS, array, index + 1)
    ((key, data, *_),), _ = store.range(start, end, limit=1, reverse=True)
    return keys.number_of(key), data
