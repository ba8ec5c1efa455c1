"""Schedules under any clock: what is fired, skipped and missed, in which order and how often."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import schedules
from jobs.cron import cron_times
from jobs.protocol.model import Schedule, ShellJob, ShellPayload
from jobs.records import ScheduleRecord, TimetableRecord
from jobs.schedules import COUNT_LIMIT, GRACE_MS, MINUTE_MS, Fire, Settle, Wait

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SET_MS = 1_790_000_000_123
HORIZON_MS = SET_MS + 10 * 86_400_000
MAX_STEPS = 1_500
"""Of one look: as many fires as may be caught up at once, and a few more."""

JOB = ShellJob(payload=ShellPayload(argv=["true"]))
SECOND, HOUR = 1_000, 3_600_000

timetables = st.one_of(
    st.fixed_dictionaries({"every_s": st.sampled_from([1.0, 1.5, 7.25, 60.0, 3_600.0, 90_000.0])}),
    st.fixed_dictionaries({"at_ms": st.integers(SET_MS + 1, SET_MS + 86_400_000)}),
    st.fixed_dictionaries(
        {
            "cron": st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0 0 * * 1", "5,6 1-3 * * *"]),
            "timezone": st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
        }
    ),
)
bounds = st.fixed_dictionaries(
    {},
    optional={
        "start_ms": st.integers(SET_MS - 10 * HOUR, SET_MS + 10 * HOUR),
        "end_ms": st.integers(SET_MS + 11 * HOUR, SET_MS + 100 * HOUR),
    },
)
policies = st.fixed_dictionaries(
    {
        "catch_up": st.sampled_from(["none", "one", "all"]),
        "max_catch_up": st.sampled_from([1, 2, 5, 100]),
        "catch_up_window_s": st.sampled_from([1.0, 90.0, 3_600.0, 86_400.0]),
        "overlap": st.sampled_from(["allow", "skip", "queue", "replace"]),
        "max_queued": st.sampled_from([1, 2, 10]),
        "max_per_minute": st.sampled_from([1, 3, 60, 600]),
    }
)


@st.composite
def specs(draw: st.DrawFn, **fixed: object) -> Schedule:
    return Schedule(job=JOB, **{**draw(timetables), **draw(bounds), **draw(policies), **fixed})


def lively() -> st.SearchStrategy[Schedule]:
    """Return schedules that are held back all the time: by caps, by jobs that do not end, by what waits already."""
    return st.builds(
        Schedule,
        job=st.just(JOB),
        every_s=st.sampled_from([1.0, 2.5, 10.0]),
        catch_up=st.sampled_from(["one", "all", "all"]),
        max_catch_up=st.sampled_from([3, 100]),
        overlap=st.sampled_from(["allow", "queue", "replace"]),
        max_queued=st.sampled_from([1, 2, 10]),
        max_per_minute=st.sampled_from([1, 2, 5, 50]),
    )


gaps = st.one_of(
    st.integers(0, 3 * SECOND), st.integers(0, 5 * MINUTE_MS), st.integers(0, 5 * HOUR), st.integers(0, 3 * 86_400_000)
)
events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["wait", "wait", "wait", "back"]), gaps),
        st.tuples(
            st.sampled_from(["soon", "soon", "soon", "end", "end", "pause", "resume", "refuse", "hold"]), st.just(0)
        ),
    ),
    min_size=1,
    max_size=40,
)


small_events = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "wait", "soon", "soon", "end", "end", "back", "refuse", "hold"]),
        st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 90 * SECOND)),
    ),
    min_size=10,
    max_size=60,
)
runs = st.one_of(st.tuples(specs(), events), st.tuples(lively(), small_events))


class Run:
    """A schedule whose steps are carried out as they come; jobs end when they are told to."""

    def __init__(self, spec: Schedule) -> None:
        self.record = schedules.on_set(None, spec, 1001, SET_MS)
        self.now_ms = SET_MS
        self.unfinished = 0
        self.fires: list[tuple[int, int]] = []
        """(when, for which time)"""
        self.refuses = False
        self.free_ms = 0
        self.asleep_until_ms: int | None = None

    def look(self) -> None:
        """Do what is to be done now."""
        for _ in range(MAX_STEPS):
            step = schedules.step(self.record, self.unfinished > 0, self.now_ms, self.free_ms)
            if isinstance(step, Wait):
                assert step.until_ms is None or step.until_ms > self.now_ms
                self.asleep_until_ms = step.until_ms
                return
            if isinstance(step, Settle):
                assert step.record != self.record, "what changes nothing would go on for ever"
                self.record = step.record
                if step.replaces:
                    self.unfinished = 0
            elif self.refuses:
                self.record = schedules.on_refused(self.record, self.now_ms, "the queue is full")
            else:
                self._fire(step)
        raise AssertionError(f"more than {MAX_STEPS} steps at one moment")

    def _fire(self, step: Fire) -> None:
        assert self.now_ms >= self.free_ms
        assert self.unfinished == 0 or self.record.overlap == "allow"
        if step.nominal_ms not in self.record.queued:
            assert step.nominal_ms in let_through(self.record, self.now_ms)
        self.record = step.record
        self.fires.append((self.now_ms, step.nominal_ms))
        self.unfinished += 1

    def apply(self, event: str, by_ms: int) -> None:
        if event == "wait":
            self.now_ms += by_ms
        elif event == "back":
            self.now_ms -= by_ms
        elif event == "soon" and self.asleep_until_ms is not None:
            self.now_ms = max(self.now_ms, min(self.asleep_until_ms, HORIZON_MS))
        elif event == "end":
            self.unfinished = max(0, self.unfinished - 1)
        elif event == "pause":
            self.record = schedules.on_pause(self.record)
        elif event == "resume":
            self.record = schedules.on_resume(self.record, self.now_ms)
        elif event == "refuse":
            self.refuses = not self.refuses
        elif event == "hold":
            self.free_ms = self.now_ms + 30 * SECOND
        self.look()


@lru_cache(maxsize=8)
def _times(table: TimetableRecord, since_ms: int, until_ms: int) -> list[int]:
    if table.every_ms is not None:
        found: Iterator[int] = iter(range(table.anchor_ms, until_ms + 1, table.every_ms))
    elif table.at_ms is not None:
        found = iter([table.at_ms])
    else:
        assert table.cron is not None
        found = cron_times(table.cron, table.timezone, since_ms)
    start_ms = max(since_ms + 1, table.start_ms or 0)
    end_ms = min(until_ms, table.end_ms or until_ms)
    return [at_ms for at_ms in takewhile(lambda at_ms: at_ms <= end_ms, found) if at_ms >= start_ms]


def all_times(record: ScheduleRecord, until_ms: int) -> list[int]:
    """Return every time of a schedule since it was set, counted from its beginning."""
    return _times(record.timetable, record.since_ms, until_ms)


def let_through(record: ScheduleRecord, now_ms: int) -> list[int]:
    """Return what catching up lets through of all times that have come, by its definition."""
    came = all_times(record, now_ms)
    if record.catch_up == "none":
        return [at_ms for at_ms in came[-1:] if now_ms - at_ms <= GRACE_MS]
    newest = came[-1:] if record.catch_up == "one" else came[-record.max_catch_up :]
    return [at_ms for at_ms in newest if now_ms - at_ms <= record.catch_up_window_ms]


@settings(max_examples=150 * SCALE, deadline=None)
@given(case=runs)
def test_whatever_the_clock_does_no_time_fires_twice_and_no_minute_sees_a_storm(
    case: tuple[Schedule, list[tuple[str, int]]],
) -> None:
    spec, happens = case
    run = Run(spec)
    stepped = False
    for event, by_ms in happens:
        if run.now_ms + by_ms > HORIZON_MS:
            continue
        stepped = stepped or event == "back"
        run.apply(event, by_ms)
    nominals = [nominal_ms for _, nominal_ms in run.fires]
    # Times are fired in order, each once, and all of them are times of the schedule
    assert nominals == sorted(set(nominals))
    assert set(nominals) <= set(all_times(run.record, HORIZON_MS))
    assert run.record.fired == len(nominals)
    # By a clock that only goes on, no minute has more fires than the cap says
    if not stepped:
        moments = [at_ms for at_ms, _ in run.fires]
        cap = spec.max_per_minute
        assert all(late - early >= MINUTE_MS for early, late in zip(moments, moments[cap:], strict=False))


@settings(max_examples=150 * SCALE, deadline=None)
@given(case=runs)
def test_every_time_that_came_is_fired_skipped_missed_or_waits(case: tuple[Schedule, list[tuple[str, int]]]) -> None:
    spec, happens = case
    run = Run(spec)
    for event, by_ms in happens:
        # Pauses are passed over, and gaps of more than COUNT_LIMIT times are not counted whole
        if event in ("back", "pause") or (spec.every_s or 60) * (COUNT_LIMIT - 100) * 1000 < by_ms:
            continue
        run.apply(event, by_ms)
    record = run.record
    came = [at_ms for at_ms in all_times(record, run.now_ms) if at_ms <= schedules.after_ms(record, run.now_ms)]
    assert len(came) == record.fired + record.skipped + record.missed + len(record.queued)
    assert len(record.queued) <= (spec.max_queued if spec.overlap == "queue" else 1)
    # What has come and is not dealt with is held back by a cap alone
    left = [at_ms for at_ms in all_times(record, run.now_ms) if at_ms not in set(came)]
    held = run.asleep_until_ms is not None and run.asleep_until_ms <= run.now_ms + MINUTE_MS
    assert not left or held


@settings(max_examples=100 * SCALE, deadline=None)
@given(spec=specs(overlap="allow", max_per_minute=600), gap_ms=gaps)
def test_after_a_gap_exactly_what_catching_up_lets_through_is_fired(spec: Schedule, gap_ms: int) -> None:
    run = Run(spec)
    run.apply("wait", gap_ms)
    expected = let_through(run.record, run.now_ms)
    assert [nominal_ms for _, nominal_ms in run.fires] == expected
    assert run.record.missed == min(COUNT_LIMIT, len(all_times(run.record, run.now_ms)) - len(expected))


@settings(max_examples=100 * SCALE, deadline=None)
@given(spec=st.one_of(specs(overlap="allow"), specs(overlap="allow", catch_up="none")), ahead_ms=gaps, back_ms=gaps)
def test_a_clock_set_ahead_and_back_fires_nothing_again_and_then_goes_on(
    spec: Schedule, ahead_ms: int, back_ms: int
) -> None:
    run = Run(spec)
    run.apply("wait", ahead_ms)
    former = max((nominal_ms for _, nominal_ms in run.fires), default=SET_MS)
    seen = len(run.fires)
    run.apply("back", back_ms)
    assert all(nominal_ms > former for _, nominal_ms in run.fires[seen:])
    # The next time to come is the first one after both the clock and the last fire
    upcoming = schedules.next_ms(run.record, run.now_ms)
    last = max((nominal_ms for _, nominal_ms in run.fires), default=SET_MS)
    expected = [at_ms for at_ms in all_times(run.record, HORIZON_MS) if at_ms > max(last, run.now_ms)]
    assert upcoming is None or upcoming > HORIZON_MS or upcoming == expected[0]
    assert expected == [] or upcoming == expected[0]


@settings(max_examples=100 * SCALE, deadline=None)
@given(spec=specs(), moment_ms=st.integers(SET_MS, SET_MS + 86_400_000))
def test_looking_back_finds_what_looking_ahead_does(spec: Schedule, moment_ms: int) -> None:
    table = schedules.timetable_of(spec, SET_MS)
    ahead = list(takewhile(lambda at_ms: at_ms <= moment_ms, schedules.times_after(table, SET_MS)))
    back = list(takewhile(lambda at_ms: at_ms > SET_MS, schedules.times_until(table, moment_ms)))
    assert ahead == back[::-1]
