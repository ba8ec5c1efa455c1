"""When a cron expression fires in a time zone. Pure.

cronsim knows what an expression means on a clock that never changes; this module puts such clocks onto a zone's time,
by the rule of Debian's cron (cron(8), "daylight saving time"):

- An expression with fixed times (neither minute nor hour begins with `*`) fires at the first moment at which the local
  clock shows such a time or a later one: once right after a gap that holds the time, and once, the first time, where
  the local clock shows the time twice.
- Any other fires whenever the local clock shows one of its times: not at all in a gap, and in both passes of an hour
  that comes twice. So `*/15 * * * *` fires every 15 minutes of elapsed time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.errors import InvalidRequest

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
FIELDS: Final = 5
CHANGES_APART: Final = timedelta(days=1)
"""No zone changes its offset twice within this time."""

_LONE_RANGE: Final = re.compile(r"(?<![\w-])0*(\w+)-0*\1/0*[1-9]\d*(?!\w)", re.IGNORECASE | re.ASCII)
"""A range of one value with a step."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_SECOND: Final = timedelta(seconds=1)


def check_cron(expression: str, field: str) -> None:
    """Raise InvalidRequest when this is no cron expression, or one that never fires within 50 years."""
    try:
        moments = CronSim(_five_fields(expression), datetime(2000, 1, 1))
        if next(moments, None) is None:
            raise CronSimError("it never fires")
    except CronSimError as error:
        raise InvalidRequest(
            f"{expression!r} is no schedule: {error}",
            field=field,
            expected="minute, hour, day of month, month and day of week, such as `30 6 * * 1-5`, or such as @daily",
        ) from error


def check_timezone(name: str, field: str) -> None:
    """Raise InvalidRequest when the system knows no such zone."""
    try:
        zone_of(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidRequest(
            f"{name!r} is no time zone", field=field, expected="a name of the tz database, such as Europe/Berlin"
        ) from error


def cron_times(expression: str, timezone: str, after_ms: int) -> Iterator[int]:
    """Yield the moments later than `after_ms` at which the expression fires, in order; checked arguments only.

    It ends where the next moment would be 50 years away.
    """
    expression = _five_fields(expression)
    moments = _at_fixed_times if _is_fixed(expression) else _at_every_match
    for moment in moments(expression, zone_of(timezone), _EPOCH + after_ms * _MS):
        yield (moment - _EPOCH) // _MS


def cron_times_until(expression: str, timezone: str, until_ms: int) -> Iterator[int]:
    """Yield the moments up to and with `until_ms` at which the expression fires, the last one first.

    It ends where the former moment would be 50 years away.
    """
    expression = _five_fields(expression)
    moments = _back_through_fixed_times if _is_fixed(expression) else _back_through_matches
    for moment in moments(expression, zone_of(timezone), _EPOCH + until_ms * _MS):
        yield (moment - _EPOCH) // _MS


def _is_fixed(expression: str) -> bool:
    minute, hour, *_ = expression.split()
    return not minute.startswith("*") and not hour.startswith("*")


def _at_fixed_times(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    last = after
    for local in CronSim(expression, after.astimezone(zone).replace(tzinfo=None)):
        moment = _first_moment(local, zone)
        if moment > last:  # the local clock may have shown it before, or two times may fall into one gap
            yield moment
            last = moment


def _back_through_fixed_times(expression: str, zone: ZoneInfo, until: datetime) -> Iterator[datetime]:
    # Where clocks were set back within the last day they may have shown a later time than now.
    set_back = _offset(until - CHANGES_APART, zone) - _offset(until, zone)
    latest = until.astimezone(zone).replace(tzinfo=None) + max(set_back, timedelta())
    last: datetime | None = None
    for local in CronSim(expression, latest.replace(microsecond=0) + _SECOND, reverse=True):
        moment = _first_moment(local, zone)
        if moment <= until and moment != last:
            yield moment
            last = moment


def _first_moment(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment at which the local clock shows `local` or a later time."""
    moment = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == local:
        return moment
    # In a gap, fold 0 counts by the offset before it and fold 1 by the one after (PEP 495): the gap lies between.
    return _change_between(local.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def _at_every_match(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Between two changes of the offset the local clock is like any other; go from change to change."""
    start: datetime | None = _EPOCH + ((after - _EPOCH) // _SECOND + 1) * _SECOND
    while start is not None:
        offset = _offset(start, zone)
        change = None
        for local in CronSim(expression, (start + offset - _SECOND).replace(tzinfo=None)):
            moment = local.replace(tzinfo=UTC) - offset
            change = _first_change(start, moment, zone)
            if change is not None:
                break
            yield moment
            start = moment
        start = change


def _back_through_matches(expression: str, zone: ZoneInfo, until: datetime) -> Iterator[datetime]:
    end: datetime | None = _EPOCH + (until - _EPOCH) // _SECOND * _SECOND
    while end is not None:
        offset = _offset(end, zone)
        change = None
        for local in CronSim(expression, (end + offset + _SECOND).replace(tzinfo=None), reverse=True):
            moment = local.replace(tzinfo=UTC) - offset
            change = _last_change(moment, end, zone)
            if change is not None:
                break
            yield moment
            end = moment
        end = None if change is None else change - _SECOND


def _first_change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first moment in (start, end] from which another offset holds than at `start`."""
    offset = _offset(start, zone)
    while start < end:
        until = min(start + CHANGES_APART, end)
        if _offset(until, zone) != offset:
            return _change_between(start, until, zone)
        start = until
    return None


def _last_change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first moment of those up to `end` at which the same offset holds; None when `start` is one of them."""
    offset = _offset(end, zone)
    while end > start:
        since = max(end - CHANGES_APART, start)
        if _offset(since, zone) != offset:
            return _change_between(since, end, zone)
        end = since
    return None


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment in (before, after] from which the offset of `after` holds."""
    offset = _offset(before, zone)
    low = (before - _EPOCH) // _SECOND
    high = -((_EPOCH - after) // _SECOND)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(_EPOCH + middle * _SECOND, zone) == offset:
            low = middle
        else:
            high = middle
    return _EPOCH + high * _SECOND


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _five_fields(expression: str) -> str:
    """Return the expression in the words of cronsim, which also knows seconds and reads `5-5/10` as `5-59/10`.

    Raises CronSimError for one without five fields.
    """
    expression = _LONE_RANGE.sub(r"\1", ALIASES.get(expression.lower(), expression))
    if len(expression.split()) != FIELDS:
        raise CronSimError(f"it has {len(expression.split())} fields")
    return expression


@functools.lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return a zone that `check_timezone` has let through."""
    if name == "localtime":  # what it means depends on the machine
        raise ValueError(name)
    return ZoneInfo(name)
