"""However connections break between a worker and its node, no output and no end of a job is lost or doubled."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobs.protocol import wire
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import Reason
from jobs.protocol.wire import Assignment
from jobs.workers.executor import Ended, Produced, Segments, Start, never_ran
from jobs.workers.session import Identity, Session

SLOTS = 2
JOBS = 6
ATTEMPT = Attempt(1)


class _Store:
    """Keeps what it receives as a node does: output by its sequence number, the first report of an end."""

    def __init__(self) -> None:
        self.output: dict[str, dict[int, Segments]] = {}
        self.ends: dict[str, tuple[int, wire.Outcome]] = {}

    def take(self, frame: wire.WorkerFrame) -> wire.NodeFrame | None:
        """Store a frame and return the acknowledgement."""
        match frame:
            case wire.Output(job=job, attempt=attempt, seq=seq, segments=segments):
                self._keep(job, seq, segments)
                return wire.OutputAck(job=job, attempt=attempt, seq=seq)
            case wire.Finished(job=job, attempt=attempt, seq=seq, outcome=outcome, segments=segments):
                self._keep(job, seq, segments)
                assert self.ends.setdefault(job, (seq, outcome)) == (seq, outcome)
                return wire.FinishedAck(job=job, attempt=attempt, accepted=True)
        return None

    def _keep(self, job: str, seq: int, segments: Segments) -> None:
        kept = self.output.setdefault(job, {}).setdefault(seq, segments)
        assert kept == segments, "a number means the same output every time"


class Exchange(RuleBasedStateMachine):
    """A session, the jobs it was given, the frames on their way, and what the node has stored."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(
            Identity(
                worker=WorkerId("w"),
                incarnation=Incarnation("0" * 32),
                type="shell",
                slots=SLOTS,
                labels={},
                cpu_milli=0,
                memory_bytes=0,
                sandbox="strict",
                pid=1,
            )
        )
        self.node = _Store()
        self.written: dict[JobId, bytes] = {}
        self.running: list[JobId] = []
        self.in_flight: list[wire.WorkerFrame] = []

    @rule()
    @precondition(lambda self: not self.session.registered)
    def connect(self) -> None:
        self.session.register(0.0)
        self._tell(wire.Registered(node="n", heartbeat_s=1, lease_ttl_s=4, fenced=[]))

    @rule(stored=st.integers(0, 6))
    def lose_the_connection(self, stored: int) -> None:
        """Some of what was sent has been stored, and no acknowledgement of it arrives."""
        for frame in self.in_flight[:stored]:
            self.node.take(frame)
        self.in_flight.clear()
        self.session.on_disconnected()

    @rule()
    @precondition(lambda self: self.session.registered and len(self.written) < JOBS)
    def assign(self) -> None:
        job = JobId(f"job{len(self.written)}")
        self.written[job] = b""
        self._tell(wire.Assign(jobs=[Assignment(job=job, attempt=ATTEMPT, payload=b"{}", timeout_s=None, owner=0)]))

    @rule(which=st.integers(0, SLOTS - 1))
    @precondition(lambda self: self.running)
    def write(self, which: int) -> None:
        job = self.running[which % len(self.running)]
        data = b"%d," % len(self.written[job])
        self.written[job] += data
        self.session.on_event(Produced(job=job, attempt=ATTEMPT, segments=[(1, data)]), 0.0)
        self._settle()

    @rule(which=st.integers(0, SLOTS - 1))
    @precondition(lambda self: self.running)
    def end(self, which: int) -> None:
        job = self.running.pop(which % len(self.running))
        self.written[job] += b"!"
        outcome = never_ran(Reason.TIMEOUT, job, at_ms=1, sandbox="strict")
        self.session.on_event(Ended(job=job, attempt=ATTEMPT, outcome=outcome, segments=[(1, b"!")]), 0.0)
        self._settle()

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        delivered, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        for frame in delivered:
            answer = self.node.take(frame)
            if answer is not None:
                self._tell(answer)

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        assert len(self.running) == self.session.running <= SLOTS

    @invariant()
    def nothing_is_sent_to_nobody(self) -> None:
        assert self.session.registered or not self.in_flight

    def teardown(self) -> None:
        """The node is back for good and every job ends: then it has everything, and the worker owes nothing."""
        if not self.session.registered:
            self.connect()
        while self.running:
            self.end(0)
        self.deliver(len(self.in_flight))
        assert self.session.register(0.0).running == []
        assert set(self.node.ends) == set(self.written)
        for job, text in self.written.items():
            last, _ = self.node.ends[job]
            pieces = [self.node.output[job][seq] for seq in range(last + 1)]
            assert b"".join(data for piece in pieces for _, data in piece) == text

    def _tell(self, frame: wire.NodeFrame) -> None:
        self.session.on_frame(frame, 0.0, 0)
        self._settle()

    def _settle(self) -> None:
        effects = self.session.take()
        self.in_flight += effects.frames
        self.running += [item.assignment.job for item in effects.commands if isinstance(item, Start)]


Exchange.TestCase.settings = settings(
    max_examples=150 * int(os.environ.get("JOBS_TEST_SCALE", "1")), stateful_step_count=60, deadline=None
)
TestExchange = Exchange.TestCase
