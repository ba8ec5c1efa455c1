"""Rates of events, at made-up times."""

from __future__ import annotations

import pytest

from jobs.control.meter import SPAN_S, Meter


def steady(meter: Meter, per_s: int, from_s: float, to_s: float) -> None:
    for number in range(int((to_s - from_s) * per_s)):
        meter.count(from_s + (number + 1) / per_s)


@pytest.mark.parametrize("seconds", [1, 5, 100])
def test_a_steady_rate_is_told_from_the_beginning_on(seconds: int) -> None:
    meter = Meter(1_000.0)
    steady(meter, 20, 1_000.0, 1_000.0 + seconds)
    assert meter.total == 20 * seconds
    assert meter.per_s(1_000.0 + seconds) == pytest.approx(20, rel=0.06)


def test_what_is_over_is_forgotten_and_what_begins_is_seen() -> None:
    meter = Meter(0.0)
    steady(meter, 100, 0.0, 60.0)
    assert meter.per_s(60.0 + SPAN_S) == pytest.approx(100 / 2.718, rel=0.05)
    assert meter.per_s(60.0 + 10 * SPAN_S) < 0.01
    steady(meter, 50, 160.0, 200.0)
    assert meter.per_s(200.0) == pytest.approx(50, rel=0.05)


def test_nothing_is_nothing_and_many_at_once_are_many() -> None:
    meter = Meter(5.0)
    assert meter.per_s(5.0) == meter.per_s(500.0) == 0
    meter.count(6.0, 160)
    assert meter.total == 160
    assert 16 < meter.per_s(6.0) < 170


def test_a_clock_that_stands_still_or_steps_back_does_no_harm() -> None:
    meter = Meter(10.0)
    meter.count(12.0)
    meter.count(11.0)
    assert 0 < meter.per_s(9.0) < 3
