"""Ids of tasks, sets of indices, chunks of items: whatever goes in comes out again, in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import arrays, indices, keys
from jobs.control.newjobs import JobMaker
from jobs.protocol.ids import MAX_TASKS, JobId, array_id, is_job_id, last_task_id, task_id, task_index, uuid7
from jobs.protocol.model import ArraySpec, ShellJob, ShellPayload
from jobs.records import ArrayRecord
from jobs.store import MAX_TXN_OPS, MAX_VALUE_BYTES
from jobs.validate import array_items, operations_of

index = st.integers(0, MAX_TASKS - 1)
some = st.sets(st.one_of(index, st.integers(0, 70_000)), max_size=60)
job_ids = st.builds(uuid7, st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1))
line = st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"]), max_size=40)


@given(job_ids, index, index)
def test_tasks_stand_behind_their_array_by_index_and_before_any_other_array(job: JobId, one: int, other: int) -> None:
    array = array_id(job)
    task = task_id(array, one)
    assert is_job_id(array)
    assert is_job_id(task)
    assert (array_id(task), task_index(task), task_index(array)) == (array, one, -1)
    assert array < task <= last_task_id(array)
    assert (task < task_id(array, other)) == (one < other)
    assert keys.state(task).startswith(keys.of_tasks(keys.STATE, array))
    following = array_id(JobId(f"{int(array.replace('-', ''), 16) + (1 << 20):032x}"))
    assert last_task_id(array).replace("-", "") < following


@given(some)
def test_a_set_is_the_same_as_text_and_in_chunks(numbers: set[int]) -> None:
    held = indices.of(numbers)
    assert held.bit_count() == len(numbers)
    assert list(indices.each(held)) == sorted(numbers)
    chunks = indices.chunks(held)
    assert indices.joined(chunks) == held
    assert all(indices.chunk_has(chunks[indices.chunk_of(number)], number) for number in numbers)
    if numbers:
        assert indices.parse(indices.text(indices.spans(held))) == held
    start = min(numbers, default=0) + 1
    assert list(indices.each(held, start)) == [number for number in sorted(numbers) if number >= start]


@given(st.lists(st.tuples(index, st.integers(0, 300)), min_size=1, max_size=8))
def test_runs_may_overlap_and_stand_in_any_order(runs: list[tuple[int, int]]) -> None:
    runs = [(first, min(first + more, MAX_TASKS - 1)) for first, more in runs]
    held = indices.parse(",".join(f"{first}-{last}" for first, last in runs))
    assert set(indices.each(held)) == {number for first, last in runs for number in range(first, last + 1)}
    stretches = list(indices.runs(indices.each(held)))
    assert all(stop < start for (_, stop), (start, _) in pairwise(stretches))


@given(some, st.integers(1, 5))
def test_a_text_that_leaves_runs_out_says_so(numbers: set[int], limit: int) -> None:
    held = list(indices.runs(sorted(numbers)))
    assert list(indices.spans(indices.of(numbers))) == held
    shown = indices.text(held, limit)
    cut = len(held) > limit
    assert shown.endswith(indices.MORE) == cut
    assert not cut or shown.removesuffix(indices.MORE).count(",") == limit - 1


@given(st.lists(line, min_size=1, max_size=60), st.sampled_from([1, 7, 64, 1 << 15]))
def test_every_task_is_given_its_own_line_from_whatever_chunk(lines: list[str], chunk_bytes: int) -> None:
    listed = array_items(ArraySpec(lines=lines))
    assert listed is not None
    chunks = dict(arrays.cut(listed, chunk_bytes))
    record = ArrayRecord(source="lines", size=len(lines))
    for number, expected in enumerate(lines):
        first = max(first for first in chunks if first <= number)
        assert arrays.item(record, number, (first, chunks[first])) == expected
    assert all(len(data) <= chunk_bytes or b"\n" not in data for data in chunks.values())


@given(st.lists(line, min_size=1, max_size=30), st.data())
def test_a_repetition_keeps_the_items_of_its_tasks_where_they_were(lines: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    chunk = "\n".join(lines).encode()
    kept = arrays.only(chunk, 5, indices.of(number + 5 for number in chosen))
    assert (kept is None) == (not chosen)
    if kept is not None:
        record = ArrayRecord(source="lines", size=len(lines))
        assert all(arrays.item(record, number + 5, (5, kept)) == lines[number] for number in chosen)


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_splitting_off_takes_every_task_once_and_in_order(size: int, lot: int, data: st.DataObject) -> None:
    wanted = indices.of(data.draw(st.sets(st.integers(0, size - 1))))
    record = ArrayRecord(source="range", size=size)
    taken: list[int] = []
    while record.next < size:
        found, following = arrays.following(record, wanted & ~indices.between(0, record.next), lot)
        assert len(found) <= lot
        assert record.next < following <= size
        taken += found
        record = ArrayRecord(source="range", size=size, next=following)
    assert taken == list(indices.each(wanted))


@given(st.lists(st.sampled_from([0, 1, 9_000, 16_385, 20_000, 40_000, 65_000]), min_size=1, max_size=60))
def test_a_list_takes_no_more_operations_than_are_planned_for_it(sizes: list[int]) -> None:
    array = ArraySpec(lines=["x" * size for size in sizes])
    job = ShellJob(payload=ShellPayload(argv=["true"]), array=array)
    new = JobMaker(None, None, max_pending=1).make(job, 1000, 1_000)  # type: ignore[arg-type]
    with_idempotency_key = len(new.ops()) + 1
    assert with_idempotency_key <= operations_of(job)


@pytest.mark.parametrize("sizes", [[65_000] * 515, [40_000, 0] * 800, [83_000 // 2 + 1] * 800, [33] * 950_000])
def test_the_largest_lists_fit_one_transaction(sizes: list[int]) -> None:
    array = ArraySpec(lines=["x" * size for size in sizes])
    job = ShellJob(payload=ShellPayload(argv=["true"]), array=array)
    new = JobMaker(None, None, max_pending=1).make(job, 1000, 1_000)  # type: ignore[arg-type]
    assert len(new.ops()) <= operations_of(job) < MAX_TXN_OPS - 100
    assert max(len(put.value) for put in new.tasks) < MAX_VALUE_BYTES
