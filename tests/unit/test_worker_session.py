"""The worker's session: frames, events and time in, frames and commands out. No sockets, no clocks."""

from __future__ import annotations

import math
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import Reason
from jobs.protocol.wire import OUTPUT_CHUNK_BYTES, Assignment, JobRef
from jobs.workers.executor import Command, Credit, Ended, Produced, Start, Stop, never_ran
from jobs.workers.session import Identity, ProtocolError, RefusedError, Session, chunks

T = TypeVar("T")
TTL_S = 10.0
WALL_MS = 1_800_000_000_000
REGISTERED = wire.Registered(node="n", heartbeat_s=2.5, lease_ttl_s=TTL_S, fenced=[])


def new_session(slots: int = 2) -> Session:
    return Session(
        Identity(
            worker=WorkerId("w"),
            incarnation=Incarnation("0" * 32),
            type="shell",
            slots=slots,
            labels={},
            cpu_milli=1000,
            memory_bytes=1 << 30,
            sandbox="strict",
            pid=1,
        )
    )


def registered(slots: int = 2, now_s: float = 0.0) -> Session:
    session = new_session(slots)
    session.register(now_s)
    session.on_frame(REGISTERED, now_s, WALL_MS)
    return session


def assign(session: Session, *jobs: str) -> None:
    items = [Assignment(job=JobId(job), attempt=Attempt(1), payload=b"{}", timeout_s=None, owner=0) for job in jobs]
    session.on_frame(wire.Assign(jobs=items), 0.0, WALL_MS)


def tell(session: Session, kind: type[T], job: str, **fields: object) -> None:
    session.on_frame(kind(job=JobId(job), attempt=Attempt(1), **fields), 0.0, WALL_MS)  # type: ignore[arg-type,call-arg]


def produce(session: Session, job: str, *segments: tuple[int, bytes]) -> None:
    session.on_event(Produced(job=JobId(job), attempt=Attempt(1), segments=list(segments)), 0.0)


def end(session: Session, job: str, *segments: tuple[int, bytes], reason: Reason = Reason.EXIT_CODE) -> None:
    outcome = never_ran(reason, "over", at_ms=1, sandbox="strict")
    session.on_event(Ended(job=JobId(job), attempt=Attempt(1), outcome=outcome, segments=list(segments)), 0.0)


def frames(session: Session) -> list[wire.WorkerFrame]:
    return session.take().frames


def commands(session: Session) -> list[Command]:
    return session.take().commands


def running(session: Session) -> list[str]:
    return [ref.job for ref in session.register(0.0).running]


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_an_assigned_job_is_started_reported_and_forgotten_when_acknowledged() -> None:
    session = registered()
    assign(session, "a")
    effects = session.take()
    assert [item.assignment.job for item in effects.commands if isinstance(item, Start)] == ["a"]
    produce(session, "a", (1, b"x"), (2, b"y"))
    end(session, "a", (1, b"z"))
    output, finished = frames(session)
    assert isinstance(output, wire.Output)
    assert isinstance(finished, wire.Finished)
    assert (output.seq, output.segments) == (0, [(1, b"x"), (2, b"y")])
    assert (finished.seq, finished.segments) == (1, [(1, b"z")])
    assert (session.running, session.unreported, running(session)) == (0, 1, ["a"])
    tell(session, wire.FinishedAck, "a", accepted=True)
    assert (session.unreported, running(session)) == (0, [])


def test_jobs_beyond_the_slots_start_as_slots_come_free_in_order() -> None:
    session = registered(slots=2)
    assign(session, "a", "b", "c", "d")
    assert [item.assignment.job for item in commands(session) if isinstance(item, Start)] == ["a", "b"]
    assert running(session) == ["a", "b", "c", "d"]
    end(session, "b")
    assert [item.assignment.job for item in commands(session) if isinstance(item, Start)] == ["c"]


def test_an_assignment_that_is_told_again_is_not_started_again() -> None:
    session = registered()
    assign(session, "a")
    session.take()
    session.on_disconnected()
    session.register(0.0)
    session.on_frame(REGISTERED, 0.0, WALL_MS)
    assign(session, "a")
    assert commands(session) == []


def test_acknowledged_output_gives_credit_by_the_byte_once() -> None:
    session = registered()
    assign(session, "a")
    produce(session, "a", (1, b"12345"))
    produce(session, "a", (2, b"678"))
    produce(session, "a", (1, b"9"))
    session.take()
    tell(session, wire.OutputAck, "a", seq=1)
    assert commands(session) == [Credit(job=JobId("a"), attempt=Attempt(1), count=8)]
    tell(session, wire.OutputAck, "a", seq=1)
    assert commands(session) == []
    end(session, "a")
    tell(session, wire.OutputAck, "a", seq=2)
    assert commands(session) == [], "what has ended needs no credit"


def test_a_cancelled_job_is_ended_politely_and_a_fenced_one_at_once_without_a_report() -> None:
    session = registered()
    assign(session, "a", "b")
    session.take()
    tell(session, wire.Cancel, "a")
    tell(session, wire.Fence, "b")
    assert commands(session) == [
        Stop(job=JobId("a"), attempt=Attempt(1), reason=Reason.CANCELLED, now=False),
        Stop(job=JobId("b"), attempt=Attempt(1), reason=Reason.WORKER_LOST, now=True),
    ]
    assert running(session) == ["a"]
    produce(session, "b", (1, b"late"))
    end(session, "b")
    assert frames(session) == []
    assert (session.running, running(session)) == (1, ["a"])


def test_a_waiting_job_that_is_cancelled_never_starts() -> None:
    session = registered(slots=1)
    assign(session, "a", "b", "c")
    session.take()
    tell(session, wire.Cancel, "b")
    tell(session, wire.Fence, "c")
    (report,) = frames(session)
    assert isinstance(report, wire.Finished)
    assert (report.job, report.outcome.reason, report.outcome.finished_ms) == ("b", Reason.CANCELLED, WALL_MS)
    end(session, "a")
    assert commands(session) == []
    assert running(session) == ["a", "b"]


def test_frames_about_unknown_attempts_are_late_and_ignored() -> None:
    session = registered()
    for kind in (wire.Cancel, wire.Fence):
        tell(session, kind, "ghost")
    tell(session, wire.OutputAck, "ghost", seq=9)
    tell(session, wire.FinishedAck, "ghost", accepted=False)
    effects = session.take()
    assert (effects.frames, effects.commands) == ([], [])


# --- connections -----------------------------------------------------------------------------------------------------


def test_what_was_not_acknowledged_is_sent_again_after_a_reconnect_in_order() -> None:
    session = registered()
    assign(session, "a")
    for text in (b"0", b"1", b"2"):
        produce(session, "a", (1, text))
    before = frames(session)
    tell(session, wire.OutputAck, "a", seq=0)
    session.on_disconnected()
    produce(session, "a", (1, b"3"))
    end(session, "a")
    assert frames(session) == [], "nobody is there to send to"
    session.register(0.0)
    session.on_frame(REGISTERED, 0.0, WALL_MS)
    again = frames(session)
    assert again[:2] == before[1:]
    assert [frame.seq for frame in again if isinstance(frame, wire.Output | wire.Finished)] == [1, 2, 3, 4]
    assert isinstance(again[-1], wire.Finished)


def test_a_registration_that_fences_attempts_drops_what_was_owed_for_them() -> None:
    session = registered(slots=1)
    assign(session, "done", "runs", "waits")
    end(session, "done")
    produce(session, "runs", (1, b"x"))
    session.on_disconnected()
    session.take()
    fenced = [JobRef(job=JobId(job), attempt=Attempt(1)) for job in ("done", "runs", "waits", "ghost")]
    session.register(0.0)
    session.on_frame(wire.Registered(node="n", heartbeat_s=1, lease_ttl_s=2, fenced=fenced), 0.0, WALL_MS)
    effects = session.take()
    assert effects.frames == []
    assert effects.commands == [Stop(job=JobId("runs"), attempt=Attempt(1), reason=Reason.WORKER_LOST, now=True)]
    end(session, "runs")
    assert (commands(session), running(session), session.running) == ([], [], 0)


def test_the_lease_runs_from_the_last_contact_and_its_end_ends_everything_at_once() -> None:
    session = new_session(slots=1)
    assert session.lease_ends_s is None
    session.register(99.0)
    session.on_frame(REGISTERED, 100.0, WALL_MS)
    assert session.lease_ends_s == 109.0, "the leader may have kept it as soon as it was asked to"
    session.on_heartbeat_due(104.0, {}, pressed=False)
    session.on_heartbeat_due(107.0, {}, pressed=False)
    assert session.lease_ends_s == 109.0, "what was sent may not have come to the leader"
    session.on_frame(wire.HeartbeatAck(), 108.0, WALL_MS)
    assert session.lease_ends_s == 114.0
    session.on_frame(wire.HeartbeatAck(), 108.0, WALL_MS)
    assert session.lease_ends_s == 117.0
    assign(session, "done", "runs", "waits")
    end(session, "done")
    session.on_disconnected()
    session.on_heartbeat_due(200.0, {}, pressed=False)
    session.take()
    session.end_lease(WALL_MS)
    assert session.lease_ends_s is None
    assert commands(session) == [Stop(job=JobId("runs"), attempt=Attempt(1), reason=Reason.WORKER_LOST, now=True)]
    end(session, "runs", reason=Reason.WORKER_LOST)
    assert session.running == 0
    session.register(300.0)
    session.on_frame(REGISTERED, 300.0, WALL_MS)
    reports = {frame.job: frame.outcome.reason for frame in frames(session) if isinstance(frame, wire.Finished)}
    assert reports == {"done": Reason.EXIT_CODE, "runs": Reason.WORKER_LOST, "waits": Reason.WORKER_LOST}


def test_a_drain_ends_when_the_node_has_confirmed_it_and_every_report_is_acknowledged() -> None:
    session = registered()
    assign(session, "a")
    session.take()
    session.drain()
    session.drain()
    assert frames(session) == [wire.Draining()]
    end(session, "a")
    tell(session, wire.FinishedAck, "a", accepted=True)
    assert not session.is_drained, "an assignment may be on its way"
    session.on_frame(wire.DrainConfirmed(), 0.0, WALL_MS)
    assert session.is_drained


def test_a_node_that_confirms_what_was_not_said_is_no_honest_node() -> None:
    session = registered()
    with pytest.raises(ProtocolError):
        session.on_frame(wire.DrainConfirmed(), 0.0, WALL_MS)


def test_a_node_that_returns_is_told_of_the_drain_again() -> None:
    session = registered()
    assign(session, "a")
    session.drain()
    session.on_frame(wire.DrainConfirmed(), 0.0, WALL_MS)
    session.on_disconnected()
    assert not session.is_drained
    session.take()
    session.register(0.0)
    session.on_frame(REGISTERED, 0.0, WALL_MS)
    assert frames(session) == [wire.Draining()]
    end(session, "a")
    tell(session, wire.FinishedAck, "a", accepted=True)
    assert not session.is_drained
    session.on_disconnected()
    assert session.is_drained, "without a node nothing more can come"


@pytest.mark.parametrize(
    "frame",
    [
        wire.Assign(jobs=[]),
        wire.DrainConfirmed(),
        wire.Registered(node="n", heartbeat_s=0, lease_ttl_s=1, fenced=[]),
        wire.Registered(node="n", heartbeat_s=2, lease_ttl_s=1, fenced=[]),
        wire.Registered(node="n", heartbeat_s=math.nan, lease_ttl_s=1, fenced=[]),
    ],
)
def test_what_no_node_says_before_or_as_the_registration_is_an_error(frame: wire.NodeFrame) -> None:
    session = new_session()
    with pytest.raises(ProtocolError):
        session.on_frame(frame, 0.0, WALL_MS)
    assert not session.registered


def test_acknowledgements_of_what_was_never_sent_are_errors() -> None:
    session = registered()
    assign(session, "a")
    with pytest.raises(ProtocolError):
        tell(session, wire.OutputAck, "a", seq=0)
    with pytest.raises(ProtocolError):
        tell(session, wire.FinishedAck, "a", accepted=True)
    session.register(0.0)
    with pytest.raises(ProtocolError):
        session.on_frame(REGISTERED, 0.0, WALL_MS)


def test_a_refusal_carries_its_code() -> None:
    with pytest.raises(RefusedError, match=r"too old \(protocol\)") as error:
        new_session().on_frame(wire.Refused(code="protocol", detail="too old"), 0.0, WALL_MS)
    assert error.value.code == "protocol"


# --- sizes ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3 * OUTPUT_CHUNK_BYTES)), max_size=6))
def test_large_output_is_cut_into_frames_that_fit(sizes: list[tuple[int, int]]) -> None:
    segments = [(stream, bytes([index]) * size) for index, (stream, size) in enumerate(sizes)]
    pieces = chunks(segments)
    assert all(0 < sum(len(data) for _, data in piece) <= OUTPUT_CHUNK_BYTES for piece in pieces)
    for stream in (1, 2):
        whole = b"".join(data for kind, data in segments if kind == stream)
        assert b"".join(data for piece in pieces for kind, data in piece if kind == stream) == whole
