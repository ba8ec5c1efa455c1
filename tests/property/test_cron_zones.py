"""Cron times in every zone of the tz database, around every change of its clocks from 2024 to 2034, against a scan of
every single minute there."""

from __future__ import annotations

import os
import random
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from msgspec import Struct

from jobs.cron import cron_times, cron_times_until

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.SystemRandom().getrandbits(32)
FIRST, LAST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)
AROUND = timedelta(hours=3)
MINUTE = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = sorted(zoneinfo.available_timezones() - {"localtime"})


class Expression(Struct):
    """A cron expression as text, and what it means as plain sets."""

    text: str
    minutes: set[int]
    hours: set[int]
    month: int
    days: set[int] | None
    weekdays: set[int] | None  # 0 is Sunday
    fixed: bool

    def matches(self, local: datetime) -> bool:
        if local.month != self.month or local.minute not in self.minutes or local.hour not in self.hours:
            return False
        day = self.days is None or local.day in self.days
        weekday = self.weekdays is None or local.isoweekday() % 7 in self.weekdays
        either = self.days is not None and self.weekdays is not None
        return (day or weekday) if either else (day and weekday)


def expression(chance: random.Random, near: datetime) -> Expression:
    """Return an expression that is likely to mean moments near a local time."""
    minute_text, minutes = chance.choice([_one, _listed, _ranged, _every, _stepped])(chance, 60, near.minute)
    hour_text, hours = chance.choice([_one, _one, _listed, _ranged, _every, _stepped])(chance, 24, near.hour)
    days = {near.day} if chance.random() < 0.2 else None
    weekdays = {near.isoweekday() % 7, chance.randrange(7)} if chance.random() < 0.2 else None
    day_text = "*" if days is None else ",".join(map(str, days))
    weekday_text = "*" if weekdays is None else ",".join(map(str, weekdays))
    return Expression(
        f"{minute_text} {hour_text} {day_text} {near.month} {weekday_text}",
        minutes,
        hours,
        near.month,
        days,
        weekdays,
        fixed=minute_text[0] != "*" and hour_text[0] != "*",
    )


def _near(chance: random.Random, size: int, near: int) -> int:
    return chance.choice([(near + chance.randint(-2, 2)) % size, chance.randrange(size)])


def _one(chance: random.Random, size: int, near: int) -> tuple[str, set[int]]:
    value = _near(chance, size, near)
    return str(value), {value}


def _listed(chance: random.Random, size: int, near: int) -> tuple[str, set[int]]:
    values = [_near(chance, size, near) for _ in range(3)]
    return ",".join(map(str, values)), set(values)


def _ranged(chance: random.Random, size: int, near: int) -> tuple[str, set[int]]:
    first, last = sorted((_near(chance, size, near), _near(chance, size, near)))
    step = chance.randint(1, 7)
    return f"{first}-{last}/{step}", set(range(first, last + 1, step))


def _every(chance: random.Random, size: int, near: int) -> tuple[str, set[int]]:
    return "*", set(range(size))


def _stepped(chance: random.Random, size: int, near: int) -> tuple[str, set[int]]:
    step = chance.choice([2, 5, 7, 15])
    return f"*/{step}", set(range(0, size, step))


def changes(zone: zoneinfo.ZoneInfo) -> Iterator[datetime]:
    """Yield the moments at which a zone's clocks change."""

    def offset(moment: datetime) -> timedelta | None:
        return moment.astimezone(zone).utcoffset()

    day, before = FIRST, offset(FIRST)
    while day < LAST:
        day += timedelta(days=1)
        if offset(day) != before:
            minutes = (day - timedelta(days=1) + MINUTE * count for count in range(1, 1441))
            yield next(minute for minute in minutes if offset(minute) != before)
            before = offset(day)


def scan(wanted: Expression, clock: list[tuple[datetime, datetime]]) -> list[int]:
    """Return when an expression fires, by looking at every minute of UTC with what the local clock shows then.

    Fixed times: whenever the clock shows more than ever before, the times that it has come to or jumped over count.
    """
    found = []
    shown = clock[0][1] - MINUTE
    for moment, local in clock:
        if not wanted.fixed:
            fires = wanted.matches(local)
        else:
            passed = range((local - shown) // MINUTE)
            fires = any(wanted.matches(local - MINUTE * back) for back in passed)
            shown = max(shown, local)
        if fires:
            found.append(ms(moment))
    return found


def until(end_ms: int, moments: Iterator[int]) -> list[int]:
    return list(takewhile(lambda at_ms: at_ms <= end_ms, moments))


def since(start_ms: int, moments: Iterator[int]) -> list[int]:
    return list(takewhile(lambda at_ms: at_ms > start_ms, moments))


def ms(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


@pytest.mark.slow
def test_every_change_of_the_clocks_of_every_zone_fires_as_the_minutes_say() -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    seen, fired = 0, 0
    for name in ZONES:
        zone = zoneinfo.ZoneInfo(name)
        for change in changes(zone):
            seen += 1
            moments = [change - AROUND + MINUTE * count for count in range(2 * AROUND // MINUTE)]
            clock = [(moment, moment.astimezone(zone).replace(tzinfo=None)) for moment in moments]
            for _ in range(2 * SCALE):
                # Given an expression that means times near the change
                wanted = expression(chance, chance.choice(clock[120:240])[1])
                # When it is asked for all moments around the change, and from some moment among them on
                expected = scan(wanted, clock)
                after_ms = ms(chance.choice(moments)) + chance.randint(-1, 1)
                start, end = ms(moments[0]) - 1, ms(moments[-1])
                found = until(end, cron_times(wanted.text, name, start))
                later = until(end, cron_times(wanted.text, name, after_ms))
                before = since(start, cron_times_until(wanted.text, name, after_ms))
                # Then all are what the minutes say
                where = f"seed {SEED}: {wanted.text!r} in {name} around {change}"
                assert found == expected, where
                assert later == [at for at in expected if at > after_ms], f"{where}, after {after_ms}"
                assert before[::-1] == [at for at in expected if at <= after_ms], f"{where}, until {after_ms}"
                fired += len(found)
    assert seen > 4_000, "the zones' clocks change twice a year in some two hundred of them"
    assert fired > seen
