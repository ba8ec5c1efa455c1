"""Random lives of a job: whatever happens in whatever order, the promises of the transition table hold."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from jobs import jobs, keys
from jobs.jobs import TRANSITIONS, Refusal, Step
from jobs.protocol.ids import Attempt, Incarnation, WorkerId, uuid7
from jobs.protocol.model import JobState, Reason, Retry, ShellJob, ShellPayload, StreamInfo
from jobs.protocol.wire import Outcome
from jobs.records import JobRecord

JOB = uuid7(1, 1)
NOTHING = StreamInfo(bytes=0, stored_bytes=0, truncated=False)
LIVES = [Incarnation(letter * 32) for letter in "abc"]


class JobLife(RuleBasedStateMachine):
    """Events in any order, also late and doubled ones, against what must never happen."""

    @initialize(
        max_attempts=st.integers(1, 4),
        delay_s=st.sampled_from([0.0, 1.0]),
        backoff=st.sampled_from(["none", "fixed", "exponential"]),
        not_before_ms=st.none() | st.integers(0, 5_000),
        deadline_ms=st.none() | st.integers(0, 5_000),
        on_failure=st.sampled_from(["fail", "run"]),
    )
    def submit(self, max_attempts: int, delay_s: float, backoff: str, **times: object) -> None:
        job = ShellJob(
            payload=ShellPayload(argv=["true"]),
            retry=Retry(max_attempts=max_attempts, delay_s=delay_s, backoff=backoff),  # type: ignore[arg-type]
            **times,  # type: ignore[arg-type]
        )
        self.now_ms = 1_000
        self.record = jobs.on_submit(job, 1000, self.now_ms)
        self.given: list[tuple[Attempt, Incarnation]] = []
        self.recorded: list[Attempt] = []

    def take(self, step: Step) -> bool:
        if isinstance(step, Refusal):
            assert step.why
            return False
        assert step.state in TRANSITIONS[self.record.state]
        assert step.attempt - self.record.attempt in (0, 1)
        self.record = step
        self.now_ms += 10
        return True

    @rule(life=st.sampled_from(LIVES))
    def assign(self, life: Incarnation) -> None:
        record = self.record
        ready = record.state is JobState.PENDING and not record.delayed and record.waits_for == 0
        assert self.take(jobs.on_assigned(self.record, WorkerId("w"), life, self.now_ms)) == ready
        if ready:
            self.given.append((self.record.attempt, life))

    @rule(later_ms=st.integers(0, 3_000))
    def due(self, later_ms: int) -> None:
        self.now_ms += later_ms
        before = self.record
        if self.take(jobs.on_due(before, self.now_ms)) and self.record.state is JobState.FAILED:
            assert self.record.reason is Reason.DEADLINE
            assert before.attempt == 0, "a deadline ended a job that had been started"

    @rule(parents=st.integers(1, 3))
    def depend(self, parents: int) -> None:
        fresh = self.record.state is JobState.PENDING and self.record.attempt == 0
        assert self.take(jobs.on_depends(self.record, parents)) == fresh

    @rule(ended=st.sampled_from([JobState.COMPLETED, JobState.FAILED]))
    def parent_ends(self, ended: JobState) -> None:
        before = self.record
        if self.take(jobs.on_parent_ended(before, JOB, ended, self.now_ms)):
            fails = ended is JobState.FAILED and before.on_failure == "fail"
            assert (self.record.reason is Reason.DEPENDENCY_FAILED) == fails
            assert fails or self.record.waits_for == before.waits_for - 1

    @rule()
    def get_a_child(self) -> None:
        before = self.record
        taken = self.take(jobs.on_child(before))
        assert taken != before.state.is_final
        assert not taken or self.record.has_children

    @rule()
    def cancel(self) -> None:
        final = self.record.state.is_final
        assert self.take(jobs.on_cancel(self.record, self.now_ms)) != final
        assert self.record.cancel_requested or final

    @rule(
        data=st.data(),
        reason=st.sampled_from([None, Reason.EXIT_CODE, Reason.TIMEOUT, Reason.CANCELLED]),
        chance=st.floats(0, 0.999),
    )
    def report(self, data: st.DataObject, reason: Reason | None, chance: float) -> None:
        if not self.given:
            return
        attempt, life = data.draw(st.sampled_from(self.given))
        current = self.record.state is JobState.RUNNING and self.given[-1] == (attempt, life)
        end = Outcome(
            reason=reason, message=None, exit_code=0, signal=None, started_ms=1, finished_ms=2, wall_s=0, cpu_user_s=0,
            cpu_system_s=0, peak_memory_bytes=0, sandbox="strict", stdout=NOTHING, stderr=NOTHING,
        )  # fmt: skip
        if self.take(jobs.on_finished(self.record, attempt, life, end, self.now_ms, chance)):
            assert current, "a report of an attempt that was over was applied"
            self.recorded.append(attempt)

    @rule(data=st.data(), chance=st.floats(0, 0.999))
    def lose_worker(self, data: st.DataObject, chance: float) -> None:
        if self.given:
            attempt, life = data.draw(st.sampled_from(self.given))
            if self.take(jobs.on_worker_lost(self.record, attempt, life, self.now_ms, chance)):
                self.recorded.append(attempt)

    @rule(successor=st.integers(1, 3))
    def redrive(self, successor: int) -> None:
        """Whoever asks first is the one; the end stays what it was."""
        before = self.record
        step = jobs.on_redriven(before, uuid7(2, successor))
        if isinstance(step, Refusal):
            assert before.state is not JobState.FAILED or before.redriven_as is not None
            return
        self.record = step
        assert not jobs.is_dead_letter(step)
        assert replace(step, settled=before.settled, redriven_as=None) == before

    @rule()
    def purge(self) -> None:
        before = self.record
        step = jobs.on_purged(before)
        assert isinstance(step, Refusal) != jobs.is_dead_letter(before)
        if not isinstance(step, Refusal):
            self.record = step
            assert replace(step, settled=False) == before

    @invariant()
    def promises(self) -> None:
        record = self.record
        assert len(set(self.recorded)) == len(self.recorded), "an attempt ended twice"
        assert record.attempt <= record.retry.max_attempts
        assert (record.finished_ms is not None) == record.state.is_final
        assert record.reason is None or record.state is not JobState.COMPLETED
        assert record.state is not JobState.FAILED or record.reason is not None
        self.stands_where_it_should(record)

    def stands_where_it_should(self, record: JobRecord) -> None:
        """One place for what is to happen next with the job, and a timer whenever that is up to time."""
        places = set(jobs.index_entries(JOB, record))
        timers = {key for key in places if key.startswith(keys.TIMERS)}
        assert len(timers) <= 1
        assert bool(timers) == (jobs.next_moment_ms(record) is not None)
        if record.state.is_final:
            wanted = {jobs.ended_key(JOB, record)}
            wanted |= {keys.parent_ended(JOB)} if record.has_children else set()
            dead = record.state is JobState.FAILED and record.reason is not Reason.CANCELLED and not record.settled
            wanted |= {keys.dead_letter(record.finished_ms or 0, JOB)} if dead else set()
        elif record.state is JobState.RUNNING:
            wanted = {keys.running(WorkerId("w"), JOB)}
        elif jobs.is_ready(record):
            wanted = {jobs.ready_key(JOB, record)}
        else:
            wanted = {keys.waiting(record.queue, record.owner, JOB)}
        assert places - timers == wanted

    @invariant()
    def replaying_an_event_on_a_final_record_changes_nothing(self) -> None:
        if self.record.state.is_final:
            assert isinstance(jobs.on_cancel(self.record, self.now_ms), Refusal)
            assert isinstance(jobs.on_due(self.record, self.now_ms), Refusal)


TestJobLife = JobLife.TestCase


def test_final_states_have_no_way_out() -> None:
    assert all(not TRANSITIONS[state] for state in JobState if state.is_final)
    assert set(TRANSITIONS) == set(JobState)
