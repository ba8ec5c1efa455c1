"""What a schedule does next, case by case; what holds in every case is in tests/property/test_schedule_clocks.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from jobs import schedules
from jobs.control.pace import Pace
from jobs.errors import InvalidRequest
from jobs.protocol.model import Schedule, ShellJob, ShellPayload, Timetable
from jobs.records import ScheduleRecord
from jobs.schedules import COUNT_LIMIT, Fire, Wait

SET_MS = 1_790_000_000_000
MINUTE = 60_000
JOB = ShellJob(payload=ShellPayload(argv=["true"]))


def schedule(**fields: Any) -> Schedule:
    if not {"cron", "every_s", "at_ms"} & set(fields):
        fields["every_s"] = 60.0
    return Schedule(job=JOB, **fields)


def made(**fields: Any) -> ScheduleRecord:
    return schedules.on_set(None, schedule(**fields), 1001, SET_MS)


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def play(record: ScheduleRecord, now_ms: int, *, unfinished: bool = False) -> tuple[ScheduleRecord, list[int], bool]:
    """Carry out the steps of one moment; return the record, the times that were fired, and whether jobs are ended.

    Each fire leaves a job that does not end.
    """
    fired: list[int] = []
    replaces = False
    while not isinstance(step := schedules.step(record, unfinished, now_ms), Wait):
        record = step.record
        if isinstance(step, Fire):
            fired.append(step.nominal_ms)
            unfinished = True
        else:
            replaces = replaces or step.replaces
    return record, fired, replaces


def after(minutes: float) -> int:
    return SET_MS + round(minutes * MINUTE)


# --- timetables ------------------------------------------------------------------------------------------------------


def test_every_counts_from_when_it_was_set_and_does_not_drift() -> None:
    record = made(every_s=60)
    for minute in range(1, 5):
        # However late each look is, times stay where they are
        record, fired, _ = play(record, after(minute) + 7_000 * minute)
        assert fired == [after(minute)]
    assert schedules.next_ms(record, after(4) + 28_000) == after(5)


def test_every_counts_from_its_start_where_it_has_one() -> None:
    early = made(every_s=3600, start_ms=SET_MS - 90 * MINUTE)
    assert schedules.next_ms(early, SET_MS) == after(30)
    late = made(every_s=3600, start_ms=after(10))
    assert schedules.next_ms(late, SET_MS) == after(10)


def test_at_fires_once() -> None:
    record, fired, _ = play(made(at_ms=after(5)), after(5))
    assert fired == [after(5)]
    assert schedules.next_ms(record, after(5)) is None
    assert play(record, after(100))[1] == []


def test_no_time_is_outside_start_and_end() -> None:
    record = made(cron="* * * * *", start_ms=after(2), end_ms=after(4), catch_up="all", overlap="allow")
    inside = [at_ms for at_ms in range(after(2), after(4) + 1) if at_ms % MINUTE == 0]
    record, fired, _ = play(record, after(30))
    assert fired == inside
    assert schedules.next_ms(record, after(30)) is None


def test_both_changes_of_the_clocks() -> None:
    record = replace(
        made(cron="30 2 * * *", timezone="Europe/Berlin"),
        since_ms=moment("2026-03-28T12:00+01:00"),
        passed_ms=moment("2026-03-28T12:00+01:00"),
    )
    # Forward: 02:30 does not come, it fires right after the gap
    record, fired, _ = play(record, moment("2026-03-29T03:00:01+02:00"))
    assert fired == [moment("2026-03-29T03:00+02:00")]
    # Back: 02:30 comes twice, it fires the first time
    record, fired, _ = play(record, moment("2026-10-25T02:30+02:00"))
    assert fired == [moment("2026-10-25T02:30+02:00")]
    record, fired, _ = play(record, moment("2026-10-25T02:30+01:00"))
    assert fired == []


# --- catching up -----------------------------------------------------------------------------------------------------


def test_none_fires_the_newest_time_if_it_is_no_more_than_a_minute_past() -> None:
    record = made(every_s=300, catch_up="none")
    assert play(record, after(5) + 60_000)[1] == [after(5)]
    late, fired, _ = play(record, after(5) + 60_001)
    assert (fired, late.missed) == ([], 1)
    assert late.last_lapse is not None
    assert (late.last_lapse.nominal_ms, late.last_lapse.outcome) == (after(5), "missed")
    # Of several only the newest can be on time
    late, fired, _ = play(record, after(20) + 1_000)
    assert (fired, late.missed) == ([after(20)], 3)


def test_one_fires_the_newest_time_within_the_window_for_all_that_were_missed() -> None:
    record = made(every_s=300, catch_up="one", catch_up_window_s=600)
    late, fired, _ = play(record, after(24))
    assert (fired, late.missed) == ([after(20)], 3)
    late, fired, _ = play(replace(record, timetable=replace(record.timetable, end_ms=after(6))), after(24))
    assert (fired, late.missed) == ([], 1)


def test_all_fires_the_newest_so_many_within_the_window_oldest_first() -> None:
    record = made(every_s=300, catch_up="all", max_catch_up=3, overlap="allow")
    late, fired, _ = play(record, after(31))
    assert (fired, late.missed) == ([after(20), after(25), after(30)], 3)
    record = made(every_s=300, catch_up="all", catch_up_window_s=660, overlap="allow")
    late, fired, _ = play(record, after(31))
    assert (fired, late.missed) == ([after(20), after(25), after(30)], 3)


def test_a_gap_of_years_costs_no_more_than_one_of_days() -> None:
    for fields in ({"every_s": 1.0}, {"cron": "* * * * *", "timezone": "Europe/Berlin"}):
        late, fired, _ = play(made(catch_up="none", **fields), moment("2126-01-01T00:00:00.900Z"))
        assert len(fired) == 1
        assert late.missed == COUNT_LIMIT
        assert play(late, moment("2126-01-01T00:00:00.901Z"))[1] == []


def test_times_that_pass_in_a_pause_are_passed_over() -> None:
    record = schedules.on_pause(made(catch_up="all"))
    assert schedules.step(record, False, after(10)) == Wait(None)
    record = schedules.on_resume(record, after(10.5))
    record, fired, _ = play(record, after(11))
    assert (fired, record.missed) == ([after(11)], 0)


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_allow_starts_another_beside_it() -> None:
    assert play(made(overlap="allow"), after(1), unfinished=True)[1] == [after(1)]


def test_skip_leaves_the_time_out() -> None:
    record, fired, _ = play(made(overlap="skip"), after(1), unfinished=True)
    assert (fired, record.skipped) == ([], 1)
    assert record.last_lapse is not None
    assert "a former job has not ended" in record.last_lapse.detail
    # It is not made up for when the job ends
    assert play(record, after(1) + 10_000)[1] == []
    assert play(record, after(2))[1] == [after(2)]


def test_queue_keeps_times_in_order_and_only_so_many() -> None:
    record = made(overlap="queue", max_queued=2)
    for minute in (1, 2, 3):
        record, fired, _ = play(record, after(minute), unfinished=True)
        assert fired == []
    assert (record.queued, record.skipped) == ((after(1), after(2)), 1)
    record, fired, _ = play(record, after(3.5))
    assert (fired, record.queued) == ([after(1)], (after(2),))
    # What comes while others wait goes behind them
    record, fired, _ = play(record, after(4), unfinished=True)
    assert record.queued == (after(2), after(4))
    record, fired, _ = play(record, after(4.5))
    assert (fired, record.queued) == ([after(2)], (after(4),))


def test_replace_ends_the_former_and_starts_after_its_end() -> None:
    record, fired, replaces = play(made(overlap="replace"), after(1), unfinished=True)
    assert (fired, replaces, record.queued) == ([], True, (after(1),))
    # A time that comes before it could start takes its place
    record, fired, replaces = play(record, after(2), unfinished=True)
    assert (fired, replaces, record.queued, record.skipped) == ([], True, (after(2),), 1)
    # Nothing more is ended for the one that waits
    assert play(record, after(2.5), unfinished=True)[2] is False
    record, fired, _ = play(record, after(2.5))
    assert (fired, record.queued) == ([after(2)], ())


def test_replace_does_not_start_what_it_would_end_at_once() -> None:
    record = made(overlap="replace", catch_up="all")
    record, fired, replaces = play(record, after(5))
    assert (fired, replaces, record.skipped) == ([after(5)], False, 4)


# --- caps and refusals -----------------------------------------------------------------------------------------------


def test_the_cap_holds_back_and_loses_nothing_that_catching_up_lets_through() -> None:
    record = made(every_s=1, catch_up="all", overlap="allow", max_per_minute=5)
    record, fired, _ = play(record, after(1))
    assert fired == [SET_MS + 1_000 * second for second in range(1, 6)]
    assert schedules.step(record, False, after(1)) == Wait(after(2))
    assert play(record, after(2) - 1)[1] == []
    record, fired, _ = play(record, after(2))
    assert fired == [SET_MS + 1_000 * second for second in range(21, 26)]
    assert record.missed == 15, "those that are no longer among the newest max_catch_up"


def test_every_second_fits_the_default_cap() -> None:
    record = made(every_s=1, overlap="allow")
    for second in range(1, 200):
        record, fired, _ = play(record, SET_MS + second * 1_000 + (second * 7) % 400)
        assert fired == [SET_MS + second * 1_000]


def test_a_node_that_may_not_fire_waits() -> None:
    assert schedules.step(made(), False, after(1), after(1) + 500) == Wait(after(1) + 500)


def test_a_refusal_is_recorded_for_all_that_is_due_or_waits() -> None:
    record, _, _ = play(made(overlap="queue"), after(1), unfinished=True)
    record = schedules.on_refused(record, after(2), "queue_full: 5 jobs wait")
    assert (record.missed, record.queued, record.fired) == (2, (), 0)
    assert record.last_lapse is not None
    assert record.last_lapse.detail == "queue_full: 5 jobs wait"
    assert play(record, after(2) + 1)[1] == []
    assert play(record, after(3))[1] == [after(3)]


def test_pace_lets_so_many_through_in_any_minute() -> None:
    pace = Pace(2)
    for now_ms in (0, 10_000):
        assert pace.wait_ms(now_ms) == 0
        pace.take(now_ms)
    assert (pace.room(30_000), pace.wait_ms(30_000)) == (0, 30_000)
    pace.give_back(10_000)
    assert pace.wait_ms(30_000) == 0
    pace.take(30_000)
    assert pace.wait_ms(60_000) == 0
    # After a restart it goes on by how long ago fires were
    again = Pace(2)
    again.load([50_000, 20_000, 55_000], 1_000)
    assert again.wait_ms(1_000) == 10_000


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_set_back_repeats_nothing_and_what_was_missed_ahead_comes_again() -> None:
    record, fired, _ = play(made(every_s=600), after(10))
    assert fired == [after(10)]
    # An hour back: nothing until the next time after the last
    assert play(record, after(-50))[1] == []
    assert schedules.step(record, False, after(-50)) == Wait(after(20))
    # A year ahead for a moment, with nothing to make up: back again, the schedule is alive
    ahead, fired, _ = play(replace(record, catch_up="none"), after(525_605))
    assert fired == []
    back, fired, _ = play(ahead, after(11))
    assert fired == []
    assert play(back, after(20))[1] == [after(20)]


def test_a_time_that_waits_does_not_come_again_by_a_clock_that_was_set_back() -> None:
    record, _, _ = play(made(overlap="queue", max_queued=5), after(1), unfinished=True)
    record, _, _ = play(record, after(0.5), unfinished=True)
    record, _, _ = play(record, after(1), unfinished=True)
    assert record.queued == (after(1),)


# --- setting ---------------------------------------------------------------------------------------------------------


def test_what_is_set_again_goes_on_unless_its_timetable_is_another() -> None:
    record, _, _ = play(made(every_s=60), after(1))
    same = schedules.on_set(record, schedule(every_s=60), 1001, after(1.5))
    assert same == record
    other = schedules.on_set(record, schedule(every_s=60, overlap="allow"), 1002, after(1.5))
    assert (other.owner, other.overlap, other.fired, other.last_nominal_ms) == (1001, "allow", 1, after(1))
    assert schedules.next_ms(other, after(1.5)) == after(2)
    anew = schedules.on_set(record, schedule(every_s=120), 1001, after(1.5))
    assert (schedules.next_ms(anew, after(1.5)), anew.fired) == (after(3.5), 1)


def test_a_timetable_says_exactly_one_thing() -> None:
    for fields, where in (
        ({}, "$"),
        ({"cron": "* * * * *", "at_ms": 5}, "$.at_ms"),
        ({"cron": "* * * * 9"}, "$.cron"),
        ({"every_s": 5.0, "timezone": "Mars/Olympus"}, "$.timezone"),
        ({"every_s": 5.0, "start_ms": 10, "end_ms": 9}, "$.end_ms"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            schedules.check_timetable(Timetable(**fields))
        assert caught.value.field == where


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"at_ms": SET_MS}, "$.at_ms"),
        ({"at_ms": after(5), "end_ms": after(4)}, "$.at_ms"),
        ({"every_s": 60.0, "end_ms": SET_MS}, "$.end_ms"),
        ({"cron": "0 0 29 2 *", "end_ms": after(60)}, "$.end_ms"),
    ],
)
def test_a_schedule_that_would_never_fire_is_refused(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedules.check_fires(made(**fields).timetable, SET_MS)
    assert caught.value.field == where


@pytest.mark.parametrize(
    "fields",
    [
        {"idempotency_key": "k"},
        {"unique_key": "k"},
        {"not_before_ms": 0},
        {"deadline_ms": SET_MS},
        {"depends_on": ["a"]},
        {"ref": "a"},
    ],
)
def test_a_job_that_can_be_made_only_once_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedules.check_template(replace(JOB, **fields))
    assert caught.value.field == f"$.job.{next(iter(fields))}"
    schedules.check_template(JOB)
