"""What is no longer kept, for any jobs, limits and clocks: nothing too early, nothing for ever, the bounds hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs import jobs, keys, retention
from jobs.protocol.ids import JobId, uuid7
from jobs.protocol.model import JobState, Retention, ShellJob, ShellPayload
from jobs.records import JobRecord
from jobs.retention import MAX_IDLE_MS, SPEED, AgeClock, Entry, Kind, Limits, Totals

SPEC = ShellJob(payload=ShellPayload(argv=["true"]))
KINDS: dict[bytes, Kind] = {keys.ENDED_FULL: "full", keys.ENDED_BARE: "bare", keys.ENDED_OWN: "own"}
seconds = st.none() | st.integers(0, 40).map(float)


def ended(finished_ms: int, log_bytes: int, keep_s: float | None, logs_s: float | None) -> JobRecord:
    if keep_s is not None and logs_s is not None:
        logs_s = min(keep_s, logs_s)
    return replace(
        jobs.on_submit(SPEC, 1000, finished_ms),
        state=JobState.COMPLETED,
        finished_ms=finished_ms,
        log_bytes=log_bytes,
        stored_bytes=100 + log_bytes,
        retention=Retention(keep_s=keep_s, logs_s=logs_s),
    )


records = st.builds(ended, st.integers(0, 20_000), st.sampled_from([0, 50]), seconds, seconds)
limits = st.builds(
    lambda keep_s, logs_s, **most: Limits(
        keep_ms=keep_s * 1_000, logs_ms=None if logs_s is None else min(keep_s, logs_s) * 1_000, **most
    ),
    keep_s=st.integers(0, 40),
    logs_s=st.none() | st.integers(0, 40),
    max_jobs=st.integers(0, 12),
    max_bytes=st.integers(0, 2_000),
)


def entry_of(job: JobId, record: JobRecord) -> Entry:
    """Return the job as it stands in its list."""
    key = jobs.ended_key(job, record)
    prefix = next(prefix for prefix in KINDS if key.startswith(prefix))
    held = record.held_until_ms is not None
    return Entry(KINDS[prefix], keys.job_of(key), keys.time_of(prefix, key), record.stored_bytes, held)


@given(records, limits)
def test_a_place_in_a_list_says_exactly_when_something_is_due(record: JobRecord, bounds: Limits) -> None:
    moment_ms = retention.next_moment_ms(entry_of(uuid7(1, 1), record), bounds)
    assert retention.due(record, bounds, moment_ms - 1) is None
    what = retention.due(record, bounds, moment_ms)
    assert what is not None
    if what == "logs":
        # Without its output it stands elsewhere, where it is not looked at before its own time is over
        bare = jobs.on_output_gone(record, True)
        assert isinstance(bare, JobRecord)
        assert bare.stored_bytes == 100
        last_ms = retention.next_moment_ms(entry_of(uuid7(1, 1), bare), bounds)
        assert last_ms >= moment_ms
        assert retention.due(bare, bounds, last_ms) == "job"
        assert retention.due(bare, bounds, max(moment_ms, last_ms - 1)) in (
            None,
            "job" if last_ms == moment_ms else None,
        )


@given(st.lists(records, max_size=12), limits, st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_everything_goes_in_its_time_and_the_bounds_hold(
    ended_jobs: list[JobRecord], bounds: Limits, needed: list[bool], step: int
) -> None:
    """A simulation of the driver: steps over the heads of the lists until nothing is due, time after time."""
    kept = {uuid7(1, number): record for number, record in enumerate(ended_jobs)}
    wanted = {job for job, need in zip(kept, needed, strict=False) if need}
    for now_ms in range(0, 100_000, 5_000):
        if now_ms == 70_000:
            wanted = set()
        for _ in range(200):
            entries = [entry_of(job, record) for job, record in kept.items()]
            heads: list[Entry] = []
            for kind in ("full", "bare", "own"):
                own = sorted((e for e in entries if e.kind == kind), key=lambda e: (e.time_ms, e.job))
                heads += own[:step]
            totals = Totals(len(kept), sum(entry.bytes for entry in entries))
            made = retention.plan(heads, totals, bounds, now_ms)
            if not made.steps:
                break
            for item in made.steps:
                record = kept[item.entry.job]
                what = "job" if item.forced else retention.due(record, bounds, now_ms)
                too_much = totals.jobs > bounds.max_jobs or totals.bytes > bounds.max_bytes
                assert not item.forced or too_much
                if what is not None and item.entry.job in wanted:
                    changed = jobs.on_held(record, retention.hold_ms(record, now_ms))
                elif what == "job":
                    del kept[item.entry.job]
                    continue
                elif what == "logs":
                    changed = jobs.on_output_gone(record, True)
                else:
                    assert record.held_until_ms is not None, "nothing was to be done about a job that was looked at"
                    changed = jobs.on_held(record, None)
                assert isinstance(changed, JobRecord)
                kept[item.entry.job] = changed
        else:
            raise AssertionError("the driver finds no end")
        free = {job: record for job, record in kept.items() if record.held_until_ms is None}
        assert wanted <= set(kept)
        size = sum(record.stored_bytes for record in kept.values())
        assert not free or (len(kept) <= bounds.max_jobs and size <= bounds.max_bytes)
        assert all(retention.due(record, bounds, now_ms) is None for record in free.values())
    assert not kept or all(record.held_until_ms is not None for record in kept.values())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(-(10**9), 10**12)), max_size=20))
def test_age_grows_with_the_clock_but_not_by_its_jumps(course: list[tuple[int, int]]) -> None:
    wall_ms = 10**12
    clock = AgeClock(wall_ms)
    for elapsed_ms, jump_ms in course:
        before, wall_ms = clock, max(0, wall_ms + elapsed_ms + jump_ms)
        assert before.ms is not None
        clock = retention.advance(before, elapsed_ms, wall_ms, before.ms + 1)
        assert clock.ms is not None
        assert clock.ms <= wall_ms
        assert clock.ms <= before.ms + SPEED * elapsed_ms or wall_ms <= before.ms
        # Where nothing has anything to lose, or the clock does not jump, it is the wall clock
        assert retention.advance(before, elapsed_ms, wall_ms, None).ms == wall_ms
        assert retention.advance(AgeClock(wall_ms), elapsed_ms, wall_ms + elapsed_ms, 0).ms == wall_ms + elapsed_ms


HOUR_MS = 3_600_000
WEEK_MS = 7 * 24 * HOUR_MS


def time_to_lose(moments: list[int], clock: AgeClock, wall_ms: int) -> int:
    """Return how long it takes until all has gone that is to go at these moments."""
    spent_ms = 0
    while moments:
        clock = retention.advance(clock, 60_000, wall_ms + spent_ms, moments[0])
        assert clock.ms is not None
        moments = [moment for moment in moments if moment > clock.ms]
        spent_ms += 60_000
    # What is kept after that ages by the clock as it is
    assert retention.advance(clock, 60_000, wall_ms + spent_ms, None).ms == wall_ms + spent_ms
    return spent_ms


def test_a_jump_of_a_year_does_not_take_a_week_of_jobs_at_once() -> None:
    year_ms = 52 * WEEK_MS
    hourly = [WEEK_MS + HOUR_MS * number for number in range(7 * 24)]
    assert time_to_lose(hourly, AgeClock(WEEK_MS - 1), WEEK_MS + year_ms) >= WEEK_MS // SPEED - HOUR_MS
    # Nor does a restart with that clock
    assert time_to_lose(hourly, AgeClock(), WEEK_MS + year_ms) >= WEEK_MS // SPEED - HOUR_MS
    daily = [WEEK_MS + 24 * HOUR_MS * number for number in range(7)]
    assert time_to_lose(daily, AgeClock(WEEK_MS - 1), WEEK_MS + year_ms) >= 6 * MAX_IDLE_MS


def test_a_clock_that_is_set_for_the_first_time_does_not_keep_jobs_for_decades() -> None:
    decades_ms = 52 * 50 * WEEK_MS
    moments = [WEEK_MS, WEEK_MS + 1, decades_ms, decades_ms + 1]
    assert time_to_lose(moments, AgeClock(0), decades_ms + WEEK_MS) <= 4 * HOUR_MS


def test_after_a_while_off_what_is_over_goes_soon() -> None:
    # A node that was off while a job's time was over each second
    moments = [1_000 * number for number in range(24 * 3_600)]
    assert time_to_lose(moments[:3_600], AgeClock(), HOUR_MS) == 60_000
    assert time_to_lose(moments, AgeClock(), 24 * HOUR_MS) <= 24 * HOUR_MS // SPEED + HOUR_MS
