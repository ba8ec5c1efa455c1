"""How far something is, told to a terminal and to a file."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator

import pytest

from jobs.cli.meter import LINE_S, Meter, amounts, bar, clock_time
from jobs.cli.output import size


@pytest.mark.parametrize(
    ("done", "elapsed_s", "said"),
    [
        (0, 0.0, "0 of 1,000,000 (0 %)"),
        (0, 3.0, "0 of 1,000,000 (0 %)"),
        (250_000, 10.0, "250,000 of 1,000,000 (25 %), 25,000/s, 0:30 left"),
        (999_999, 10.0, "999,999 of 1,000,000 (99 %), 100,000/s, 0:00 left"),
        (1_000_000, 10.0, "1,000,000 of 1,000,000 (100 %), 100,000/s, 0:00 left"),
        (100, 1.0, "100 of 1,000,000 (0 %), 100/s, 2:46:39 left"),
    ],
)
def test_amounts_tell_share_pace_and_what_is_left(done: int, elapsed_s: float, said: str) -> None:
    assert amounts(done, 1_000_000, elapsed_s) == said


def test_nothing_to_do_is_done() -> None:
    assert amounts(0, 0, 1.0) == "0 of 0 (100 %)"
    assert bar(0, 0, 4) == "████"


def test_bytes_are_told_in_short_and_without_a_total_there_is_no_share() -> None:
    assert amounts(3 << 20, 12 << 20, 2.0, size) == "3.0 MiB of 12.0 MiB (25 %), 1.5 MiB/s, 0:06 left"
    assert amounts(3 << 20, None, 2.0, size) == "3.0 MiB, 1.5 MiB/s"
    assert amounts(3, None, 0.0, size) == "3 B"
    assert [size(amount) for amount in (0, 999, 1_000, 1_023_999, 1 << 30, 5 << 40, 5_000 << 40)] == [
        "0 B", "999 B", "1.0 KiB", "1000.0 KiB", "1.0 GiB", "5.0 TiB", "5000.0 TiB",
    ]  # fmt: skip


def test_a_bar_is_full_only_at_the_end() -> None:
    assert [bar(done, 3, 4) for done in range(4)] == ["░░░░", "█░░░", "██░░", "████"]


def test_durations_read_as_clocks_do() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.6, 61, 3_600, 86_461)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "24:01:01",
    ]


def test_a_file_gets_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, LINE_S - 0.1, LINE_S, LINE_S + 0.1])
    meter = Meter("submitting", 10, out=io.StringIO(), now_s=lambda: next(times))
    for done in (1, 5, 6):
        meter.show(done)
    assert capsys.readouterr().err == "jobctl: submitting 5 of 10 (50 %), 1/s, 0:05 left\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    parent, child = pty.openpty()
    yield parent, child
    os.close(parent)
    os.close(child)


def test_a_terminal_gets_one_line_that_is_drawn_over_and_taken_away(terminal: tuple[int, int]) -> None:
    parent, child = terminal
    times = iter([0.0, 1.0, 1.05, 2.0])
    with open(child, "w", closefd=False) as out:
        meter = Meter("submitting", 10, out=out, now_s=lambda: next(times))
        for done in (5, 6, 7):
            meter.show(done)
        meter.clear()
        meter.clear()
    drawn = ""
    while drawn.count("\r\x1b[K") < 3:  # a read may return a part
        drawn += os.read(parent, 4096).decode()
    assert drawn.split("\r\x1b[K") == [
        "",
        "submitting ███████████████░░░░░░░░░░░░░░░ 5 of 10 (50 %), 5/s, 0:01 left",
        "submitting █████████████████████░░░░░░░░░ 7 of 10 (70 %), 4/s, 0:01 left",
        "",
    ]


def test_quiet_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter("submitting", 10, quiet=True, now_s=iter(range(0, 1000, 100)).__next__)
    meter.show(5)
    meter.tell("something")
    assert capsys.readouterr().err == ""
