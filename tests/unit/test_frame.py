"""The frames of `jobctl top`: every line fits, whatever is told, and what matters is there."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs import jobs
from jobs.cli.columns import cut, fit, width
from jobs.cli.frame import allot, flow, paint, render, uptime
from jobs.control.transitions import view
from jobs.protocol.ids import Incarnation, JobId, WorkerId, uuid7
from jobs.protocol.model import (
    DeadLetter,
    JobView,
    Overview,
    OwnerView,
    Progress,
    QueueView,
    Rates,
    Reason,
    RunningJob,
    ShellJob,
    ShellPayload,
    WorkerView,
)
from jobs.records import JobRecord

NOW_MS = 1_000_000_000


def queue(name: str = "default", **fields: object) -> QueueView:
    return QueueView(name=name, paused=False, draining=False, pending=1_234, waiting=3, running=7, **fields)  # type: ignore[arg-type]


def worker(name: str = "shell-a", **fields: object) -> WorkerView:
    told = WorkerView(
        id=WorkerId(name), type="shell", incarnation=Incarnation("i"), node="n", state="ready", slots=8, running=4,
        labels={}, cpu_milli=0, memory_bytes=0, sandbox="strict", registered_ms=0,
    )  # fmt: skip
    return replace(told, **fields)


def job(number: int, **fields: object) -> JobView:
    submitted = jobs.on_submit(ShellJob(payload=ShellPayload(argv=["true"])), 1001, 0)
    started = jobs.on_assigned(submitted, WorkerId("shell-a"), Incarnation("i"), NOW_MS - 61_000)
    assert isinstance(started, JobRecord)
    return replace(view(uuid7(number, number), started, 1), **fields)


def failed(number: int, message: str | None = "exited with code 3") -> DeadLetter:
    return DeadLetter(
        id=uuid7(number, number), owner=1001, queue="default", reason=Reason.EXIT_CODE, message=message,
        finished_ms=NOW_MS - 120_000,
    )  # fmt: skip


def overview(**fields: object) -> Overview:
    told = Overview(
        node="n1", version="1.2", leader=True, uptime_s=93_784.0, now_ms=NOW_MS, pending=12_345, waiting=3, running=7,
        slots=16, rates=Rates(submitted=120.04, started=118.0, ended=0.0),
        own=OwnerView(uid=1001, pending=2, running=1, max_running=5), all_owners=True,
        queues=[queue()], more_queues=0, workers=[worker()], more_workers=0,
        jobs=[RunningJob(job=job(1), progress=None)], more_jobs=0, failed=[failed(2)],
    )  # fmt: skip
    return replace(told, **fields)


def text(told: Overview, columns: int = 120, rows: int | None = None, problem: str | None = None) -> str:
    return "\n".join(line.text for line in render(told, columns=columns, rows=rows, clock="12:00:00", problem=problem))


# --- widths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "columns"), [("abc", 3), ("äöü", 3), ("東京", 4), ("e\u0301", 1), ("a\u200bb", 2), ("🎉", 2), ("", 0)]
)
def test_text_is_as_wide_as_a_terminal_shows_it(said: str, columns: int) -> None:
    assert width(said) == columns


def test_what_does_not_fit_is_cut_with_an_ellipsis() -> None:
    assert [cut("東京都", columns) for columns in range(8)] == ["", "…", "…", "東…", "東…", "東京…", "東京都", "東京都"]
    assert (fit("ab", 4), fit("ab", 4, right=True), fit("abcdef", 4)) == ("ab  ", "  ab", "abc…")
    assert fit("東京", 3) == "東…"
    assert fit("anything", 0) == fit("anything", -3) == ""


@given(st.text(max_size=60), st.integers(0, 70), st.booleans())
def test_fitted_text_takes_its_columns_exactly(said: str, columns: int, right: bool) -> None:
    assert width(fit(said, columns, right=right)) == columns
    assert width(cut(said, columns)) <= columns


def test_room_is_shared_so_that_nobody_is_left_out() -> None:
    assert allot(100, [3, 5, 1]) == [3, 5, 1]
    assert allot(8, [1, 9, 9]) == [1, 4, 3]
    assert allot(2, [4, 4, 4]) == [1, 1, 0]
    assert allot(0, [4]) == allot(-3, [4]) == [0]


def test_texts_flow_onto_as_few_lines_as_they_need() -> None:
    assert flow(["one", "two", "three"], 100) == ["one   two   three"]
    assert flow(["one", "two", "three"], 9) == ["one   two", "three"]
    assert flow(["much too long"], 5) == ["much…"]


# --- content ----------------------------------------------------------------------------------------------------------


def test_the_header_tells_the_node_its_load_and_its_rates() -> None:
    lines = text(overview()).splitlines()
    assert lines[0] == "node n1 leads, jobs 1.2, up 1 d 2:03:04".ljust(112) + "12:00:00"
    assert lines[1].startswith("pending 12,345 (3 for a time or other jobs)   running 7 on 16 slots")
    assert lines[2] == "per second: submitted 120.0, started 118.0, ended 0.0"
    assert "does not lead" in text(overview(leader=False))
    assert "no answer" in text(overview(), problem="no answer").splitlines()[1]
    assert uptime(59.9) == "0:59"


def test_each_part_has_its_rows() -> None:
    running = RunningJob(
        job=job(1, cancel_requested=True), progress=Progress(percent=45.9, message="at it", at_ms=NOW_MS)
    )
    told = text(
        overview(
            queues=[queue("team/a", weight=2.5, max_running=7, rate_count=10), replace(queue("p"), paused=True)],
            workers=[
                worker(pressed=True, pressure={"memory": 31.5, "io": 0.4}),
                worker("b", state="lost", drained=True),
            ],
            jobs=[running],
        )
    )
    assert re.search(r"team/a +7 +1,234 +3 +2\.5 +open +7 running; 10 starts in 1 s", told)
    assert re.search(r"p +7 +1,234 +3 +1 +paused", told)
    assert re.search(r"shell-a +shell +ready, pressed +████░░░░ 4 of 8 +memory=32%", told)
    assert re.search(r"b +shell +lost, drained +████░░░░ 4 of 8", told)
    assert f"{uuid7(1, 1)}     1:01  default  1001   shell-a  being ended  45 % ███░░░░░ at it" in told
    assert re.search(r"2m +default +1001 +exit_code +exited with code 3", told)


def test_an_empty_node_is_told_to_be_empty() -> None:
    told = text(overview(queues=[], workers=[], jobs=[], failed=[]))
    assert told.count("\nnone") == 4


def test_who_is_no_admin_is_told_of_their_own() -> None:
    told = text(overview(all_owners=False))
    assert "yours: 2 pending, 1 running (limits: 5 running)" in told
    assert "YOUR RUNNING JOB" in told
    assert "YOUR FAILED JOB" in told
    assert "OWNER" not in told


def test_what_has_no_room_is_counted() -> None:
    running = [RunningJob(job=job(number), progress=None) for number in range(1, 30)]
    told = text(overview(jobs=running, more_jobs=1_000), rows=20)
    assert re.search(r"RUNNING JOB \((\d) of 1,029\)", told)
    assert len(told.splitlines()) == 20


def test_colors_are_around_whole_lines_and_only_where_they_are_wanted() -> None:
    lines = render(overview(), columns=80, rows=24, clock="12:00:00")
    plain, colored = paint(lines, color=False), paint(lines, color=True)
    assert not any("\x1b" in line for line in plain)
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in colored] == plain
    assert all(line.count("\x1b") in (0, 2) for line in colored)


# --- anything ---------------------------------------------------------------------------------------------------------

hostile = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("\x1b\x07\r\n\t\x9b\u202e\u2066\u2028東e\u0301\u200d🎉"),
    ),
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(
    name=hostile,
    message=hostile,
    columns=st.integers(1, 200),
    rows=st.none() | st.integers(1, 60),
    counts=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    admin=st.booleans(),
)
def test_every_line_fits_and_nothing_steers_the_terminal(
    name: str, message: str, columns: int, rows: int | None, counts: list[int], admin: bool
) -> None:
    running = RunningJob(
        job=job(1, queue=name, worker=WorkerId(name), id=JobId(name)),
        progress=Progress(percent=100.0, message=message, at_ms=0),
    )
    told = overview(
        node=name,
        all_owners=admin,
        queues=[queue(name)] * counts[0],
        workers=[worker(name, type=name)] * counts[1],
        jobs=[running] * counts[2],
        failed=[replace(failed(1, message), queue=name)] * counts[3],
    )
    lines = render(told, columns=columns, rows=rows, clock="12:00:00", problem=message)
    assert rows is None or len(lines) <= rows
    for line in lines:
        assert width(line.text) <= columns
        assert all(unicodedata.category(char) not in ("Cc", "Zl", "Zp") for char in line.text), line
        assert not any(char in line.text for char in "\u202e\u2066\u200f")
