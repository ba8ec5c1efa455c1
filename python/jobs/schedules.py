"""What a schedule does next. Pure: time comes as an argument.

A timetable has nominal times. Of those that have come since the last look, `catch_up` lets through the newest if it is
no further past than `GRACE_MS` (`none`) or the window (`one`), or the newest `max_catch_up` within the window (`all`);
the others are missed. What is let through makes a job, waits or is skipped, as `overlap` says. No time up to the last
one for which a job was made, or is to be made, comes again, wherever the clock goes. No more jobs are made in a minute
than the caps allow; what they hold back is looked at again when they allow it, as if it had come only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from jobs.cron import check_cron, check_timezone, cron_times, cron_times_until
from jobs.errors import InvalidRequest
from jobs.protocol.model import JobSubmit, Schedule, Timetable
from jobs.records import LapseRecord, ScheduleRecord, TimetableRecord

GRACE_MS: Final = 60_000
"""With `catch_up` `none` a time is on time for so long, if the next one has not come by then."""
MINUTE_MS: Final = 60_000
COUNT_LIMIT: Final = 1_000
"""Missed times of one look that are counted; the way back to the last one taken may be long."""

ONCE_ONLY: Final = ("idempotency_key", "unique_key", "not_before_ms", "deadline_ms", "depends_on", "ref")
"""What a job that is made again and again cannot have."""


# --- what is asked for -----------------------------------------------------------------------------------------------


def check_timetable(timetable: Timetable) -> None:
    """Raise InvalidRequest for a timetable that says nothing, too much, or what cannot be."""
    given = [name for name in ("cron", "every_s", "at_ms") if getattr(timetable, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"{' and '.join(given) or 'none of cron, every_s and at_ms'} is given",
            field=f"$.{given[-1]}" if given else "$",
            expected="exactly one of cron, every_s and at_ms",
        )
    check_timezone(timetable.timezone, "$.timezone")
    if timetable.cron is not None:
        check_cron(timetable.cron, "$.cron")
    start_ms, end_ms = timetable.start_ms, timetable.end_ms
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        raise InvalidRequest("the end is before the start", field="$.end_ms", expected="start_ms or later")


def check_template(job: JobSubmit) -> None:
    """Raise InvalidRequest for a job with something that only a job of its own can have."""
    for field in ONCE_ONLY:
        if getattr(job, field) not in (None, []):
            raise InvalidRequest(
                f"{field} makes no sense for a job that is made again and again",
                field=f"$.job.{field}",
                expected="a job without it",
            )


def check_fires(timetable: TimetableRecord, now_ms: int) -> None:
    """Raise InvalidRequest for a timetable none of whose times is still to come."""
    if next(times_after(timetable, now_ms), None) is not None:
        return
    if timetable.at_ms is not None:
        field, expected = "$.at_ms", f"a moment after {now_ms}, between start_ms and end_ms"
    elif timetable.end_ms is not None:
        field, expected = "$.end_ms", "a moment after the first time to come"
    else:
        field, expected = "$.cron", "an expression that fires within 50 years"
    raise InvalidRequest("the schedule would never fire", field=field, expected=expected)


def timetable_of(timetable: Timetable, now_ms: int) -> TimetableRecord:
    return TimetableRecord(
        cron=timetable.cron,
        every_ms=None if timetable.every_s is None else round(timetable.every_s * 1000),
        at_ms=timetable.at_ms,
        timezone=timetable.timezone,
        start_ms=timetable.start_ms,
        end_ms=timetable.end_ms,
        anchor_ms=now_ms if timetable.start_ms is None else timetable.start_ms,
    )


def on_set(former: ScheduleRecord | None, schedule: Schedule, owner: int, now_ms: int) -> ScheduleRecord:
    """Return the record of a schedule as it is to be. One whose timetable stays goes on where it is; a new timetable
    counts from now on, and what waits of the old one still waits."""
    timetable = timetable_of(schedule, now_ms)
    settings: dict[str, Any] = {
        "catch_up": schedule.catch_up,
        "max_catch_up": schedule.max_catch_up,
        "catch_up_window_ms": round(schedule.catch_up_window_s * 1000),
        "overlap": schedule.overlap,
        "max_queued": schedule.max_queued,
        "max_per_minute": schedule.max_per_minute,
        "managed_by": schedule.managed_by,
    }
    if former is None:
        return ScheduleRecord(owner=owner, timetable=timetable, since_ms=now_ms, passed_ms=now_ms, **settings)
    if replace(timetable, anchor_ms=former.timetable.anchor_ms) == former.timetable:
        return replace(former, **settings)
    return replace(former, timetable=timetable, since_ms=now_ms, passed_ms=now_ms, **settings)


def on_pause(record: ScheduleRecord) -> ScheduleRecord:
    return replace(record, paused=True)


def on_resume(record: ScheduleRecord, now_ms: int) -> ScheduleRecord:
    """Go on from now: times that came while it was paused are passed over."""
    return replace(record, paused=False, passed_ms=now_ms) if record.paused else record


# --- times -----------------------------------------------------------------------------------------------------------


def times_after(timetable: TimetableRecord, after_ms: int) -> Iterator[int]:
    """Yield the times later than a moment, in order."""
    if timetable.start_ms is not None:
        after_ms = max(after_ms, timetable.start_ms - 1)
    return takewhile(lambda at_ms: timetable.end_ms is None or at_ms <= timetable.end_ms, _after(timetable, after_ms))


def _after(timetable: TimetableRecord, after_ms: int) -> Iterator[int]:
    if timetable.cron is not None:
        yield from cron_times(timetable.cron, timetable.timezone, after_ms)
    elif timetable.every_ms is not None:
        count = max(0, (after_ms - timetable.anchor_ms) // timetable.every_ms + 1)
        while True:
            yield timetable.anchor_ms + count * timetable.every_ms
            count += 1
    elif timetable.at_ms is not None and timetable.at_ms > after_ms:
        yield timetable.at_ms


def times_until(timetable: TimetableRecord, until_ms: int) -> Iterator[int]:
    """Yield the times up to and with a moment, the last one first."""
    if timetable.end_ms is not None:
        until_ms = min(until_ms, timetable.end_ms)
    start_ms = timetable.start_ms
    return takewhile(lambda at_ms: start_ms is None or at_ms >= start_ms, _until(timetable, until_ms))


def _until(timetable: TimetableRecord, until_ms: int) -> Iterator[int]:
    if timetable.cron is not None:
        yield from cron_times_until(timetable.cron, timetable.timezone, until_ms)
    elif timetable.every_ms is not None:
        for count in range((until_ms - timetable.anchor_ms) // timetable.every_ms, -1, -1):
            yield timetable.anchor_ms + count * timetable.every_ms
    elif timetable.at_ms is not None and timetable.at_ms <= until_ms:
        yield timetable.at_ms


def after_ms(record: ScheduleRecord, now_ms: int) -> int:
    """Return the moment up to which the schedule's times are dealt with.

    What was missed or skipped while the clock was ahead comes again when it is set back; what made a job does not.
    """
    taken_ms = max(record.since_ms, record.last_nominal_ms or 0, *record.queued[-1:])
    return max(taken_ms, min(record.passed_ms, now_ms))


def next_ms(record: ScheduleRecord, now_ms: int) -> int | None:
    """Return the first time to come."""
    if record.paused:
        return None
    return next(times_after(record.timetable, max(after_ms(record, now_ms), now_ms)), None)


class Due(Struct, frozen=True):
    """Times that have come since the last look: those to take, in order, and how many are missed up to which one."""

    times: tuple[int, ...]
    missed: int
    missed_ms: int | None


def due(record: ScheduleRecord, now_ms: int) -> Due:
    """Return what has come, parted as `catch_up` says."""
    last_ms = after_ms(record, now_ms)
    came = takewhile(lambda at_ms: at_ms > last_ms, times_until(record.timetable, now_ms))
    most = record.max_catch_up if record.catch_up == "all" else 1
    window_ms = GRACE_MS if record.catch_up == "none" else record.catch_up_window_ms
    found = list(islice(came, most + COUNT_LIMIT))
    taken = [at_ms for at_ms in found[:most] if at_ms >= now_ms - window_ms]
    missed = found[len(taken) : len(taken) + COUNT_LIMIT]
    return Due(tuple(reversed(taken)), len(missed), missed[0] if missed else None)


# --- steps -----------------------------------------------------------------------------------------------------------


class Wait(Struct, frozen=True):
    """Nothing to do before a moment; None: before something else happens."""

    until_ms: int | None


class Settle(Struct, frozen=True):
    """Store the record: no job is made. `replaces`: and end the unfinished jobs, for a later time waits for that."""

    record: ScheduleRecord
    replaces: bool = False


class Fire(Struct, frozen=True):
    """Make a job for this time, and store the record with it."""

    nominal_ms: int
    record: ScheduleRecord


Step: TypeAlias = Wait | Settle | Fire


def step(record: ScheduleRecord, unfinished: bool, now_ms: int, free_ms: int = 0) -> Step:
    """Return what to do now; the caller asks again after each step, until it is to wait.

    `unfinished`: a job of the schedule has not ended. `free_ms`: until then no schedule may fire.
    """
    if record.paused:
        return Wait(None)
    found = due(record, now_ms)
    seen = _note_missed(record, found, now_ms)
    times = found.times
    if record.overlap == "replace" and len(seen.queued) + len(times) > 1:
        seen, times = _keep_last(seen, times, now_ms)
    if unfinished and record.overlap != "allow":
        seen, replaces = _hold(seen, times, now_ms)
        return Settle(seen, replaces) if seen != record else Wait(next_ms(seen, now_ms))
    line = (*seen.queued, *times)
    if line:
        allowed_ms = max(_allowed_from_ms(record, now_ms), free_ms)
        if allowed_ms <= now_ms:
            return Fire(line[0], _fired(seen, line[0], now_ms))
        return Settle(seen) if seen != record else Wait(allowed_ms)
    return Settle(seen) if seen != record else Wait(next_ms(seen, now_ms))


def on_refused(record: ScheduleRecord, now_ms: int, why: str) -> ScheduleRecord:
    """No job can be made now: what is due or waits is missed, and is not tried again and again."""
    found = due(record, now_ms)
    line = (*record.queued, *found.times)
    seen = _note_missed(record, found, now_ms)
    if not line:
        return seen
    return replace(
        seen,
        passed_ms=found.times[-1] if found.times else seen.passed_ms,
        queued=(),
        missed=seen.missed + len(line),
        last_lapse=_lapse(line[-1], now_ms, "missed", why),
    )


def _note_missed(record: ScheduleRecord, found: Due, now_ms: int) -> ScheduleRecord:
    """Count what came too late. A clock that was set back is followed as far as no time is taken twice."""
    if found.missed_ms is None:
        passed_ms = min(record.passed_ms, after_ms(record, now_ms))
        return record if passed_ms == record.passed_ms else replace(record, passed_ms=passed_ms)
    detail = {
        "none": f"the node came to it more than {GRACE_MS // 1000} s late, or when a later time had come",
        "one": "a later time stands for it, or it is outside catch_up_window_s",
        "all": "it is outside max_catch_up or catch_up_window_s",
    }[record.catch_up]
    lapse = _lapse(found.missed_ms, now_ms, "missed", f"{detail}; catch_up is {record.catch_up}")
    return replace(record, passed_ms=found.missed_ms, missed=record.missed + found.missed, last_lapse=lapse)


def _keep_last(record: ScheduleRecord, times: tuple[int, ...], now_ms: int) -> tuple[ScheduleRecord, tuple[int, ...]]:
    """Leave only the last of the times that wait or have come."""
    *dropped, last = (*record.queued, *times)
    seen = _skip(record, dropped, now_ms, "a later time came before its job could be made")
    if not times:
        return replace(seen, queued=(last,)), ()
    return replace(seen, queued=(), passed_ms=times[-2] if len(times) > 1 else record.passed_ms), (last,)


def _hold(record: ScheduleRecord, times: tuple[int, ...], now_ms: int) -> tuple[ScheduleRecord, bool]:
    """Deal with times that come while a former job has not ended; tell whether that job is to be ended."""
    if not times:
        return record, False
    passed = replace(record, passed_ms=times[-1])
    if record.overlap == "skip":
        return _skip(passed, times, now_ms, "a former job has not ended"), False
    if record.overlap == "replace":
        return replace(passed, queued=times), True
    room = max(0, record.max_queued - len(record.queued))
    queued = replace(passed, queued=(*record.queued, *times[:room]))
    return _skip(queued, times[room:], now_ms, f"{record.max_queued} times wait already"), False


def _skip(record: ScheduleRecord, times: Sequence[int], now_ms: int, why: str) -> ScheduleRecord:
    if not times:
        return record
    lapse = _lapse(times[-1], now_ms, "skipped", f"{why}; overlap is {record.overlap}")
    return replace(record, skipped=record.skipped + len(times), last_lapse=lapse)


def _lapse(nominal_ms: int, now_ms: int, outcome: Literal["skipped", "missed"], detail: str) -> LapseRecord:
    return LapseRecord(nominal_ms=nominal_ms, at_ms=now_ms, outcome=outcome, detail=detail)


def _fired(record: ScheduleRecord, nominal_ms: int, now_ms: int) -> ScheduleRecord:
    fires = (*_last_minute(record, now_ms), now_ms)
    return replace(
        record,
        passed_ms=record.passed_ms if record.queued else nominal_ms,
        queued=record.queued[1:],
        last_nominal_ms=nominal_ms,
        fired=record.fired + 1,
        fired_ms=fires[-record.max_per_minute :],
    )


def _allowed_from_ms(record: ScheduleRecord, now_ms: int) -> int:
    """Return from when on the schedule's own cap allows a fire."""
    fires = _last_minute(record, now_ms)
    return now_ms if len(fires) < record.max_per_minute else fires[-record.max_per_minute] + MINUTE_MS


def _last_minute(record: ScheduleRecord, now_ms: int) -> tuple[int, ...]:
    """Return the fires that count; those that seem to come yet are from before the clock was set back."""
    return tuple(at_ms for at_ms in record.fired_ms if now_ms - MINUTE_MS < at_ms <= now_ms)
