"""What counts as a cron expression and a time zone, and the daylight-saving rule by example."""

from __future__ import annotations

import string
import zoneinfo
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.cron import ALIASES, check_cron, check_timezone, cron_times
from jobs.errors import InvalidRequest


def fires(expression: str, timezone: str, after: str, count: int) -> list[str]:
    """Return the next moments in local time with its offset."""
    zone = ZoneInfo(timezone)
    after_ms = int(datetime.fromisoformat(after).timestamp() * 1000)
    found = islice(cron_times(expression, timezone, after_ms), count)
    return [datetime.fromtimestamp(at_ms / 1000, zone).isoformat(timespec="minutes") for at_ms in found]


def test_a_fixed_time_in_the_gap_fires_right_after_it() -> None:
    assert fires("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_two_fixed_times_in_one_gap_fire_once() -> None:
    assert fires("10,50 2 * * *", "Europe/Berlin", "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:10+02:00",
    ]


def test_a_fixed_time_that_comes_twice_fires_the_first_time() -> None:
    assert fires("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00+02:00", 2) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    # Nor does one fire that was asked for in the second pass and has had its first.
    assert fires("30 2 * * *", "Europe/Berlin", "2026-10-25T02:10+01:00", 1) == ["2026-10-26T02:30+01:00"]


def test_a_wildcard_runs_by_elapsed_time() -> None:
    assert fires("*/30 * * * *", "Europe/Berlin", "2026-10-25T02:00+02:00", 4) == [
        "2026-10-25T02:30+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T02:30+01:00",
        "2026-10-25T03:00+01:00",
    ]
    assert fires("*/30 * * * *", "Europe/Berlin", "2026-03-29T01:30+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-29T03:30+02:00",
    ]


def test_a_midnight_that_does_not_exist() -> None:
    assert fires("@daily", "Africa/Cairo", "2026-04-23T12:00+02:00", 2) == [
        "2026-04-24T01:00+03:00",
        "2026-04-25T00:00+03:00",
    ]


def test_day_of_month_or_day_of_week_as_in_cron() -> None:
    # Both given: either of them; 2026-11-01 is a Sunday.
    assert fires("0 0 3 * mon", "UTC", "2026-11-01T00:00+00:00", 3) == [
        "2026-11-02T00:00+00:00",
        "2026-11-03T00:00+00:00",
        "2026-11-09T00:00+00:00",
    ]


def test_a_range_of_one_with_a_step_is_that_one() -> None:
    assert fires("5-5/10 01-1/2 * jan-JAN/3 *", "UTC", "2026-01-01T00:00+00:00", 2) == [
        "2026-01-01T01:05+00:00",
        "2026-01-02T01:05+00:00",
    ]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "*",
        "* * * *",
        "0 * * * * *",  # seconds are not cron's
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "-1 * * * *",
        "5-1 * * * *",
        "1-5-5/2 * * * *",
        "*/0 * * * *",
        "1.5 * * * *",
        "٣ * * * *",
        "@reboot",
        "@every 5m",
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "0 0 */20 * 1L",  # never: the last Monday is later than the 21st
        "a b c d e",
    ],
)
def test_nonsense_is_refused_by_its_field(expression: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_cron(expression, "$.cron")
    assert caught.value.field == "$.cron"
    assert "minute" in (caught.value.expected or "")


@pytest.mark.parametrize("expression", [*ALIASES, "@Daily", "0 0 29 2 *", "0 9-17/2 * * mon-fri", "0 0 l * *"])
def test_what_cron_takes_is_taken(expression: str) -> None:
    check_cron(expression, "$.cron")


@given(st.text(alphabet=string.digits + "*/,-#LWlw @ymonfri", max_size=40))
def test_any_text_is_a_schedule_or_refused(expression: str) -> None:
    try:
        check_cron(expression, "$.cron")
    except InvalidRequest:
        return
    moments = list(islice(cron_times(expression, "Europe/Berlin", 0), 3))
    assert moments == sorted(set(moments))


@pytest.mark.parametrize(
    "name", ["", "Europe", "europe berlin", "Mars/Olympus", "../UTC", "/etc/localtime", "localtime", "UTC\0", "\ud800"]
)
def test_an_unknown_zone_is_refused_by_its_field(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_timezone(name, "$.timezone")
    assert caught.value.field == "$.timezone"


def test_zones_come_from_the_package_where_the_system_has_none() -> None:
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([])
    try:
        assert ZoneInfo.no_cache("Europe/Berlin").utcoffset(datetime(2026, 7, 1)) is not None
    finally:
        zoneinfo.reset_tzpath(before)
