"""Jobs by the clock."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model.base import DurationS, Model, Name
from jobs.protocol.model.submission import JobSubmit

CatchUp = Literal["none", "one", "all"]
Overlap = Literal["allow", "skip", "queue", "replace"]
MomentMs = Annotated[int, Meta(ge=0, le=7_258_118_400_000)]
"""Milliseconds since 1970, until the year 2200."""
PREVIEW_TIMES: Final = 100
"""Times of a schedule that one request tells."""
TimesCount = Annotated[int, Meta(ge=1, le=PREVIEW_TIMES)]


class Timetable(Model, frozen=True):
    """When: exactly one of `cron`, `every_s` and `at_ms`."""

    cron: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Minute, hour, day of month, month and day of week, such as `30 2 * * 1-5`, or such as `@daily`."""
    every_s: Annotated[float, Meta(ge=1, le=31_536_000)] | None = None
    """Counted from `start_ms`, or from when the schedule was set; whole milliseconds."""
    at_ms: MomentMs | None = None
    """Once."""
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    """Name of the tz database in whose local time `cron` is meant."""
    start_ms: MomentMs | None = None
    """No time earlier than this."""
    end_ms: MomentMs | None = None
    """No time later than this."""


class ScheduleSettings(Timetable, frozen=True, kw_only=True):
    """When a schedule fires, and what it does when it could not, or when its last job has not ended."""

    catch_up: CatchUp = "one"
    """Of times that were missed: nothing, the newest, or all up to `max_catch_up` within `catch_up_window_s`."""
    max_catch_up: Annotated[int, Meta(ge=1, le=1_000)] = 100
    catch_up_window_s: DurationS = 86_400.0
    """A time longer past than this is not made up."""
    overlap: Overlap = "skip"
    """While a job of the schedule has not ended: start another, skip the time, start after it, or cancel it first."""
    max_queued: Annotated[int, Meta(ge=1, le=100)] = 10
    """Times that wait with `overlap` `queue`; one more is skipped."""
    max_per_minute: Annotated[int, Meta(ge=1, le=600)] = 120
    """Most jobs that it makes in any minute."""
    managed_by: Name | None = None
    """Name of the declaration that it belongs to; `jobctl apply` deletes what that does not declare any more."""


class Schedule(ScheduleSettings, frozen=True, kw_only=True):
    """A job to be made again and again."""

    job: JobSubmit
    """As for a submission, but without what makes sense once only: keys, `not_before_ms`, `deadline_ms`, `depends_on`
    and `ref`."""


class ScheduleLapse(Model, frozen=True):
    """A time for which no job was made, and why."""

    nominal_ms: int
    at_ms: int
    """When that was decided."""
    outcome: Literal["skipped", "missed"]
    detail: str


class ScheduleView(ScheduleSettings, frozen=True, kw_only=True):
    """A schedule as it is."""

    name: str
    owner: int
    """uid of whoever set it first; its jobs are theirs."""
    paused: bool
    next_ms: int | None
    """Its next time, if there is one and it is not paused."""
    last_nominal_ms: int | None
    """The last time that a job was made for."""
    last_job: JobId | None
    unfinished: int
    """Jobs of it that have not ended; more than 1,000 are not counted."""
    queued: list[int]
    """Times that wait for the end of a former job, oldest first."""
    fired: int
    """Times that a job was made for."""
    skipped: int
    """Times without a job because of `overlap`."""
    missed: int
    """Times without a job because the node came to them too late, or its queue took none; of one gap up to 1,000."""
    last_error: ScheduleLapse | None
    """The last time that was skipped or missed."""
    revision: Revision
    """Revision of the store at which it was last set."""


class ScheduleDetail(Model, frozen=True):
    """A schedule, and the job that it makes."""

    schedule: ScheduleView
    job: JobSubmit


class SchedulePage(Model, frozen=True):
    schedules: list[ScheduleView]
    next_cursor: str | None


class TimetablePreview(Timetable, frozen=True, kw_only=True):
    """A timetable whose times are asked for, without a schedule."""

    after_ms: MomentMs | None = None
    """By default from now on."""
    count: TimesCount = 10


class ScheduleTime(Model, frozen=True):
    at_ms: int
    local: str
    """In the timetable's zone, as of RFC 3339."""


class ScheduleTimes(Model, frozen=True):
    """Fewer than were asked for when there are no more."""

    times: list[ScheduleTime]
