"""Progress: what a job's lines say, and how often the node is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import Reason
from jobs.protocol.wire import Assignment
from jobs.workers.executor import Ended, Progressed, never_ran
from jobs.workers.notes import Progress, Reading, read_lines
from jobs.workers.session import PROGRESS_INTERVAL_S, Identity, Session

REGISTERED = wire.Registered(node="n", heartbeat_s=2.5, lease_ttl_s=10.0, fenced=[])


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "percent", "message"),
    [
        (b"progress 40 loading", 40.0, "loading"),
        (b"progress 0", 0.0, None),
        (b"  progress   12.5%   two  words \r", 12.5, "two words"),
        (b"progress 100 \xff\x1b[2J\xe2\x80\xaedone", 100.0, "\ufffd [2J done"),
        (b"progress 1e1 " + "é".encode() * 300, 10.0, "é" * 256),
    ],
)
def test_a_line_of_progress_is_read_and_its_message_is_cleaned(line: bytes, percent: float, message: str) -> None:
    assert read_lines(line + b"\n") == Reading(progress=Progress(percent, message), ignored=0)


@pytest.mark.parametrize(
    "line",
    [
        *(b"progress " + said for said in (b"", b"-1", b"101", b"nan", b"inf x", b"forty", b"0" * 400)),
        *(b"", b"progress", b"Progress 4", b"hello", b"\x00\xff", b"heartbeats"),
    ],
)
def test_anything_else_is_passed_over_and_counted(line: bytes) -> None:
    assert read_lines(line + b"\n") == Reading(progress=None, ignored=1)


def test_the_newest_progress_counts_and_a_heartbeat_says_nothing_of_it() -> None:
    said = read_lines(b"progress 1 a\nprogress 2 b\nheartbeat\nwhat?\nprogress x\n")
    assert said == Reading(progress=Progress(2.0, "b"), ignored=2)


@given(st.binary(max_size=300))
def test_whatever_a_job_writes_can_be_sent_to_the_node_and_shown(lines: bytes) -> None:
    said = read_lines(b"progress 7 " + lines)
    if said.progress is not None:
        percent, message = said.progress.percent, said.progress.message
        frame = wire.Progress(job=JobId("a"), attempt=Attempt(1), percent=percent, message=message)
        assert wire.decode_worker_frame(wire.encode_frame(frame)[4:]) == frame
        assert message is None or message.isprintable()


# --- how often --------------------------------------------------------------------------------------------------------


def session_with(*jobs: str) -> Session:
    session = Session(
        Identity(
            worker=WorkerId("w"),
            incarnation=Incarnation("0" * 32),
            type="shell",
            slots=len(jobs),
            labels={},
            cpu_milli=1000,
            memory_bytes=1 << 30,
            sandbox="strict",
            pid=1,
        )
    )
    session.register(0.0)
    session.on_frame(REGISTERED, 0.0, 0)
    items = [Assignment(job=JobId(job), attempt=Attempt(1), payload=b"{}", timeout_s=None, owner=0) for job in jobs]
    session.on_frame(wire.Assign(jobs=items), 0.0, 0)
    session.take()
    return session


def say(session: Session, job: str, percent: float, now_s: float) -> None:
    session.on_event(Progressed(job=JobId(job), attempt=Attempt(1), percent=percent, message=None), now_s)


def end(session: Session, job: str, now_s: float) -> None:
    outcome = never_ran(Reason.EXIT_CODE, "over", at_ms=1, sandbox="strict")
    session.on_event(Ended(job=JobId(job), attempt=Attempt(1), outcome=outcome, segments=[]), now_s)


def told(session: Session) -> list[tuple[str, float | None]]:
    """What the node has been told since the last call: progress, or None for the end of an attempt."""
    frames = session.take().frames
    return [
        (frame.job, frame.percent if isinstance(frame, wire.Progress) else None)
        for frame in frames
        if isinstance(frame, wire.Progress | wire.Finished)
    ]


def test_the_node_is_told_at_once_then_the_newest_once_an_interval() -> None:
    session = session_with("a")
    for percent in range(10):
        say(session, "a", percent, 5.0 + percent / 100)
    assert told(session) == [("a", 0.0)]
    assert session.progress_due_s == 5.0 + PROGRESS_INTERVAL_S
    session.on_progress_due(5.9)
    assert told(session) == []
    session.on_progress_due(6.0)
    assert told(session) == [("a", 9.0)]
    assert session.progress_due_s is None
    say(session, "a", 50, 7.5)
    assert told(session) == [("a", 50.0)]


def test_the_last_progress_is_told_before_the_end_however_early_it_is() -> None:
    session = session_with("a")
    say(session, "a", 1, 0.0)
    say(session, "a", 99, 0.1)
    end(session, "a", 0.2)
    assert told(session) == [("a", 1.0), ("a", 99.0), ("a", None)]
    session.on_progress_due(60.0)
    assert told(session) == []


def test_attempts_are_due_in_the_order_of_their_times() -> None:
    session = session_with("a", "b")
    say(session, "a", 1, 0.0)
    say(session, "b", 1, 0.5)
    say(session, "b", 2, 0.6)
    say(session, "a", 2, 0.7)
    told(session)
    session.on_progress_due(1.0)
    assert told(session) == [("a", 2.0)]
    session.on_progress_due(1.5)
    assert told(session) == [("b", 2.0)]


def test_without_a_node_the_newest_is_kept_for_its_return() -> None:
    session = session_with("a")
    session.on_disconnected()
    say(session, "a", 1, 0.0)
    say(session, "a", 2, 5.0)
    assert told(session) == []
    session.register(6.0)
    session.on_frame(REGISTERED, 6.0, 0)
    assert told(session) == [("a", 2.0)]
    say(session, "a", 3, 6.5)
    session.on_progress_due(6.9)
    assert told(session) == []
    session.on_progress_due(7.0)
    assert told(session) == [("a", 3.0)]


def test_of_a_fenced_attempt_nothing_is_told() -> None:
    session = session_with("a")
    session.on_frame(wire.Fence(job=JobId("a"), attempt=Attempt(1)), 0.0, 0)
    say(session, "a", 1, 0.0)
    end(session, "a", 0.5)
    assert told(session) == []
