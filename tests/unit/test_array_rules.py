"""What an array decides by itself: when to split tasks off, how its tasks stand, how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from jobs import arrays, indices, jobs, keys
from jobs.arrays import Count, Tally
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.jobs import Refusal
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId, array_id, task_id, uuid7
from jobs.protocol.model import ArrayRange, ArraySpec, JobState, Reason, ShellJob, ShellPayload
from jobs.records import ArrayRecord, JobRecord
from jobs.validate import array_items, check_job

ARRAY = array_id(uuid7(1_000, 1 << 70))
RANGE = ArrayRecord(source="range", size=10, start=100, step=5)


def parent(tasks: int = 10, **fields: Any) -> JobRecord:
    job = ShellJob(payload=ShellPayload(argv=["true"]), **fields)
    return jobs.on_submit(job, 1000, 5_000, tasks)


def running(**fields: Any) -> JobRecord:
    record = jobs.on_split(parent(**fields), 6_000)
    assert isinstance(record, JobRecord)
    return record


def tally(**numbers: int) -> Tally:
    made = Tally()
    for name, number in numbers.items():
        setattr(made, name, number)
    return made


def kinds(job: JobId, record: JobRecord) -> set[bytes]:
    """Return where a job stands, without what names it there."""
    return {b"/".join(key.split(b"/")[:3]) + b"/" for key in jobs.index_entries(job, record)}


# --- the table of transitions -----------------------------------------------------------------------------------------


def test_an_array_waits_runs_without_a_worker_and_ends() -> None:
    waits = parent(not_before_ms=9_000)
    assert isinstance(jobs.on_split(waits, 6_000), Refusal)
    due = jobs.on_due(waits, 9_000)
    assert isinstance(due, JobRecord)
    # Due, it waits for its driver and for no worker
    assert not jobs.is_ready(due)
    assert isinstance(jobs.on_assigned(due, WorkerId("w"), Incarnation("i"), 9_000), Refusal)
    begun = jobs.on_split(due, 9_100)
    assert isinstance(begun, JobRecord)
    assert (begun.state, begun.started_ms, begun.attempt) == (JobState.RUNNING, 9_100, 0)
    assert jobs.on_split(begun, 9_200) is begun
    ended = jobs.on_tasks_ended(begun, None, None, 5_000, 2_000, 9_300)
    assert isinstance(ended, JobRecord)
    assert (ended.state, ended.finished_ms) == (JobState.COMPLETED, 9_300)
    assert (ended.stored_bytes, ended.log_bytes) == (5_000, 2_000)
    assert isinstance(jobs.on_split(ended, 9_400), Refusal)
    assert isinstance(jobs.on_tasks_ended(ended, None, None, 0, 0, 9_400), Refusal)


def test_an_array_stands_where_it_is_found_again() -> None:
    assert kinds(ARRAY, parent()) == {b"/arrays/open/", b"/waiting/default\x00" + b"1000\x00" + ARRAY.encode() + b"/"}
    assert kinds(ARRAY, running()) == {b"/arrays/open/"}
    failed = jobs.on_tasks_ended(running(), Reason.EXIT_CODE, "1 of 10", 0, 0, 7_000)
    assert isinstance(failed, JobRecord)
    stands = jobs.index_entries(ARRAY, failed)
    assert set(stands) == {keys.ended(keys.ENDED_BARE, 7_000, ARRAY), keys.dead_letter(7_000, ARRAY)}


def test_a_task_stands_only_below_its_array_once_it_has_ended() -> None:
    task = arrays.task_record(ARRAY, running(), RANGE)
    job = task_id(ARRAY, 7)
    active = keys.numbered(keys.TASKS_ACTIVE, ARRAY, 7)
    assert active in jobs.index_entries(job, task)
    given = jobs.on_assigned(task, WorkerId("w"), Incarnation("i"), 7_000)
    assert isinstance(given, JobRecord)
    assert active in jobs.index_entries(job, given)
    completed = replace(given, state=JobState.COMPLETED, finished_ms=8_000)
    failed = replace(given, state=JobState.FAILED, finished_ms=8_000, reason=Reason.OOM)
    assert jobs.index_entries(job, completed) == {}
    assert set(jobs.index_entries(job, failed)) == {keys.numbered(keys.TASKS_FAILED, ARRAY, 7)}
    assert set(jobs.index_entries(job, replace(failed, reason=Reason.CANCELLED))) == {
        keys.numbered(keys.TASKS_CANCELLED, ARRAY, 7)
    }


def test_at_its_deadline_a_running_array_begins_nothing_more_and_an_unbegun_one_fails() -> None:
    late = jobs.on_due(parent(deadline_ms=9_000), 9_000)
    assert isinstance(late, JobRecord)
    assert (late.state, late.reason) == (JobState.FAILED, Reason.DEADLINE)
    begun = running(deadline_ms=9_000)
    assert jobs.next_moment_ms(begun) == 9_000
    assert keys.timer(9_000, ARRAY) in jobs.index_entries(ARRAY, begun)
    assert isinstance(jobs.on_due(begun, 8_999), Refusal)
    closed = jobs.on_due(begun, 9_000)
    assert isinstance(closed, JobRecord)
    assert (closed.state, jobs.rest_of(closed)) == (JobState.RUNNING, Reason.DEADLINE)
    assert isinstance(jobs.on_split(closed, 9_001), Refusal)
    assert jobs.next_moment_ms(closed) is None
    # What the deadline has decided, a later cancellation does not change
    cancelled = jobs.on_cancel(closed, 9_002)
    assert isinstance(cancelled, JobRecord)
    assert jobs.rest_of(cancelled) is Reason.DEADLINE


def test_a_cancelled_array_begins_nothing_more() -> None:
    asked = jobs.on_cancel(running(), 7_000)
    assert isinstance(asked, JobRecord)
    assert (asked.state, jobs.rest_of(asked)) == (JobState.RUNNING, Reason.CANCELLED)
    assert isinstance(jobs.on_split(asked, 7_001), Refusal)
    at_once = jobs.on_cancel(parent(), 7_000)
    assert isinstance(at_once, JobRecord)
    assert (at_once.state, jobs.rest_of(at_once)) == (JobState.FAILED, Reason.CANCELLED)


# --- splitting off ----------------------------------------------------------------------------------------------------


def test_tasks_are_split_off_when_half_of_the_window_is_empty() -> None:
    assert arrays.wanted(tally(), 256) == arrays.SPLIT
    assert arrays.wanted(tally(ready=128), 256) == 128
    assert arrays.wanted(tally(ready=129), 256) == 0
    assert arrays.wanted(tally(ready=100, running=10_000), 256) == 156
    assert arrays.wanted(tally(retrying=arrays.MAX_RETRYING), 256) == 0


def test_many_arrays_share_the_windows_and_each_keeps_its_least() -> None:
    assert arrays.window(1) == arrays.window(64) == 256
    assert arrays.window(1_024) == 16
    assert arrays.window(100_000) == arrays.LEAST_WINDOW


def test_a_task_is_of_the_age_of_its_array_and_held_to_its_limit() -> None:
    array = parent(priority=7, labels={"a": "b"}, deadline_ms=90_000)
    task = arrays.task_record(ARRAY, array, replace(RANGE, max_running=3))
    assert (task.priority, task.labels, task.deadline_ms, task.ready_ms) == (7, {"a": "b"}, 90_000, array.ready_ms)
    assert (task.concurrency_key, task.concurrency_limit) == (f"array={ARRAY}", 3)
    keyed = arrays.task_record(ARRAY, parent(concurrency_key="db", concurrency_limit=2), RANGE)
    assert (keyed.concurrency_key, keyed.concurrency_limit) == ("db", 2)


def test_a_task_is_told_which_it_is() -> None:
    given = arrays.item(RANGE, 3, None)
    assert arrays.environment(ARRAY, 3, RANGE, given) == {
        "JOBS_ARRAY_ID": ARRAY, "JOBS_ARRAY_INDEX": "3", "JOBS_ARRAY_COUNT": "10", "JOBS_ARRAY_ITEM": "115",
    }  # fmt: skip


# --- how it stands, and how it ends -----------------------------------------------------------------------------------


def test_each_task_is_counted_in_one_state() -> None:
    stands = tally(split=8, ready=1, retrying=2, running=1, failed=1, cancelled=1)
    # Ten tasks: eight split off, one withdrawn, one not looked at yet
    assert arrays.count(10, stands, 1, None) == Count(4, 1, 2, 1, 2)
    assert arrays.count(10, stands, 1, Reason.CANCELLED) == Count(3, 1, 2, 1, 3)
    assert arrays.count(10, stands, 1, Reason.DEADLINE) == Count(3, 1, 2, 2, 2)


def test_tallies_follow_the_changes_of_tasks() -> None:
    kept = Tally()
    task = arrays.task_record(ARRAY, running(), RANGE)
    kept.move(None, task)
    given = jobs.on_assigned(task, WorkerId("w"), Incarnation("i"), 7_000)
    assert isinstance(given, JobRecord)
    kept.move(task, given)
    again = replace(given, state=JobState.PENDING, delayed=True, reason=Reason.EXIT_CODE)
    kept.move(given, again)
    assert (kept.split, kept.ready, kept.retrying, kept.running, kept.active) == (1, 0, 1, 0, 1)
    kept.move(again, replace(again, state=JobState.FAILED, reason=Reason.CANCELLED))
    assert (kept.active, kept.cancelled, kept.failed, kept.completed) == (0, 1, 0, 0)
    kept.move(None, task)
    kept.move(task, replace(task, state=JobState.COMPLETED))
    assert (kept.split, kept.completed, kept.active) == (2, 1, 0)


@pytest.mark.parametrize(
    ("count", "first", "cancelled", "expected"),
    [
        (Count(0, 0, 1000, 0, 0), None, False, (None, None)),
        # A cancellation that came too late to end anything
        (Count(0, 0, 1000, 0, 0), None, True, (None, None)),
        (
            Count(0, 0, 997, 3, 0), (17, Reason.EXIT_CODE), False,
            (Reason.EXIT_CODE, "3 of 1,000 tasks failed, first index 17: exit_code"),
        ),
        (
            Count(0, 0, 990, 3, 7), (17, Reason.OOM), False,
            (Reason.OOM, "3 of 1,000 tasks failed, first index 17: oom"),
        ),
        (Count(0, 0, 995, 0, 5), None, False, (Reason.CANCELLED, "5 of 1,000 tasks were cancelled")),
        (
            Count(0, 0, 90, 3, 907), (17, Reason.OOM), True,
            (Reason.CANCELLED, "907 of 1,000 tasks were cancelled; 3 failed"),
        ),
    ],
)  # fmt: skip
def test_an_array_ends_as_its_tasks_did(
    count: Count,
    first: tuple[int, Reason] | None,
    cancelled: bool,
    expected: tuple[Reason | None, str | None],
) -> None:
    array = replace(running(tasks=1_000), cancel_requested=cancelled)
    assert arrays.outcome(array, count, first) == expected


def test_progress_is_100_percent_only_when_all_have_ended() -> None:
    array = running(tasks=1_000_000)
    said = arrays.progress(array, Count(0, 1, 999_000, 999, 0), 7)
    assert said.percent == 99.9
    assert said.message == "999,999 of 1,000,000 tasks ended, 999 failed, 1 running"
    assert arrays.percent(array, Count(0, 0, 1_000_000, 0, 0)) == 100


def test_a_task_that_is_no_job_yet_is_what_its_array_makes_of_it() -> None:
    def unsplit(array: JobRecord, record: ArrayRecord = RANGE, *, withdrawn: bool = False) -> tuple[JobState, object]:
        stands = arrays.unsplit_record(ARRAY, array, record, withdrawn=withdrawn)
        assert stands.is_task
        assert (stands.finished_ms is not None) == stands.state.is_final
        return stands.state, stands.reason

    asked = jobs.on_cancel(running(), 7_000)
    assert isinstance(asked, JobRecord)
    ended = jobs.on_tasks_ended(asked, Reason.CANCELLED, "", 0, 0, 8_000)
    assert isinstance(ended, JobRecord)
    assert unsplit(parent()) == unsplit(running()) == (JobState.PENDING, None)
    assert unsplit(running(), withdrawn=True) == (JobState.FAILED, Reason.CANCELLED)
    assert unsplit(asked) == unsplit(ended, replace(RANGE, rest=Reason.CANCELLED)) == (
        JobState.FAILED, Reason.CANCELLED,
    )  # fmt: skip
    depends = jobs.on_depends(parent(), 1)
    assert isinstance(depends, JobRecord)
    orphaned = jobs.on_parent_ended(depends, ARRAY, JobState.FAILED, 7_000)
    assert isinstance(orphaned, JobRecord)
    assert unsplit(orphaned) == (JobState.FAILED, Reason.DEPENDENCY_FAILED)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(array: ArraySpec, **fields: Any) -> str | None:
    job = ShellJob(payload=ShellPayload(argv=["true"]), array=array, **fields)
    try:
        check_job(job)
        array_items(array)
    except (InvalidRequest, PayloadTooLarge) as error:
        return error.field
    return None


def test_wrong_arrays_are_refused_by_the_field() -> None:
    assert refused(ArraySpec()) == "$.array"
    assert refused(ArraySpec(lines=["a"], range=ArrayRange(stop=1))) == "$.array"
    assert refused(ArraySpec(range=ArrayRange(start=5, stop=5))) == "$.array.range"
    assert refused(ArraySpec(range=ArrayRange(stop=1_000_001))) == "$.array.range"
    assert refused(ArraySpec(lines=["a", "b\nc"])) == "$.array.lines[1]"
    assert refused(ArraySpec(lines=["a", "b", "\x00"])) == "$.array.lines[2]"
    assert refused(ArraySpec(lines=["a", "\ud800"])) == "$.array.lines"
    assert refused(ArraySpec(lines=["a", "x" * 65_537])) == "$.array.lines[1]"
    assert refused(ArraySpec(lines=["x" * 65_536] * 3 + ["x" * 65_537, ""])) == "$.array.lines[3]"
    assert refused(ArraySpec(lines=["x" * 65_536, "", "x" * 65_536])) is None
    assert refused(ArraySpec(items=["x" * 65_535])) == "$.array.items[0]"
    assert refused(ArraySpec(lines=["x" * 65_000] * 520)) == "$.array.lines"
    assert refused(ArraySpec(range=ArrayRange(stop=1), max_running=1), concurrency_key="k") == "$.array.max_running"


def test_items_are_json_without_line_ends_in_any_depth() -> None:
    values = [{"a": "line\nline"}, [1, 2.5, None], "text", True, {"é": "ü"}]
    listed = array_items(ArraySpec(items=values))
    assert listed is not None
    assert listed.decode().split("\n") == ['{"a":"line\\nline"}', "[1,2.5,null]", '"text"', "true", '{"é":"ü"}']


@pytest.mark.parametrize("text", ["", "-", "5-", "-5", "a", "1,,2", "20-10", "1000000", "0-1000000", "٣", "1 2"])
def test_what_is_no_set_of_indices_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        indices.parse(text)


def test_attempts_of_tasks_are_those_of_any_job() -> None:
    task = arrays.task_record(ARRAY, running(), RANGE)
    given = jobs.on_assigned(task, WorkerId("w"), Incarnation("i"), 7_000)
    assert isinstance(given, JobRecord)
    lost = jobs.on_worker_lost(given, Attempt(1), Incarnation("i"), 8_000, 0.0)
    assert isinstance(lost, JobRecord)
    assert (lost.state, lost.reason, lost.is_task) == (JobState.FAILED, Reason.WORKER_LOST, True)
