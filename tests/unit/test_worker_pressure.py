"""Pressure: reading the kernel's account of it, and when it is too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import PressureLimits
from jobs.workers.pressure import RELIEF, Gauge, over_limit, read_pressure, some_avg10

PSI = "some avg10={} avg60=0.00 avg300=0.00 total=7\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"


def readable(path: Path) -> bool:
    try:
        return path.read_bytes() != b""
    except OSError:
        return False


def write(directory: Path, **percent: float) -> None:
    for name, value in percent.items():
        (directory / name).write_text(PSI.format(value))


def test_what_this_kernel_says_is_read() -> None:
    found = read_pressure()
    assert set(found) <= {"cpu", "memory", "io"}
    assert all(0.0 <= percent <= 100.0 for percent in found.values())
    assert ("memory" in found) is readable(Path("/proc/pressure/memory"))


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        (PSI.format("12.34"), 12.34),
        ("full avg10=1.00 avg60=0.00\n", None),
        ("some avg60=1.00 total=0\n", None),
        ("some avg10=\n", None),
        ("some avg10=nan\n", None),
        ("some avg10=101\n", None),
        ("some\n\n", None),
        ("", None),
    ],
)
def test_the_share_of_time_in_which_something_waited_is_read(text: str, percent: float | None) -> None:
    assert some_avg10(text) == percent


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    percent = some_avg10(text)
    assert percent is None or 0.0 <= percent <= 100.0


def test_a_resource_is_pressed_above_its_limit_until_well_below_it() -> None:
    course = [(20.0, False), (20.1, True), (19.0, True), (RELIEF * 20.0, True), (15.9, False), (19.0, False)]
    over: frozenset[str] = frozenset()
    for percent, pressed in course:
        over = over_limit({"memory": percent}, {"memory": 20.0, "cpu": None}, over)  # type: ignore[arg-type,assignment]
        assert (over == {"memory"}) is pressed, percent


def test_without_a_limit_or_without_an_account_nothing_is_pressed() -> None:
    assert over_limit({"cpu": 100.0}, {"cpu": None}, frozenset()) == frozenset()
    assert over_limit({"cpu": 100.0}, {}, frozenset(["cpu"])) == frozenset()
    assert over_limit({}, {"memory": 20.0}, frozenset(["memory"])) == frozenset()


def test_the_gauge_remembers_between_readings_and_does_without_files(tmp_path: Path) -> None:
    gauge = Gauge(PressureLimits(memory_percent=10.0, io_percent=50.0), tmp_path)
    gauge.read()
    assert (gauge.pressure, gauge.over) == ({}, frozenset())
    write(tmp_path, cpu=90.0, memory=11.0, io=50.0)
    gauge.read()
    assert gauge.pressure == {"cpu": 90.0, "memory": 11.0, "io": 50.0}
    assert gauge.over == {"memory"}
    write(tmp_path, memory=9.0, io=51.0)
    gauge.read()
    assert gauge.over == {"memory", "io"}
    write(tmp_path, memory=7.9, io=41.0)
    gauge.read()
    assert gauge.over == {"io"}
    (tmp_path / "io").unlink()
    gauge.read()
    assert gauge.over == frozenset()


def test_memory_alone_has_a_limit_by_default() -> None:
    limits = PressureLimits()
    assert (limits.cpu_percent, limits.memory_percent, limits.io_percent) == (None, 20.0, None)
