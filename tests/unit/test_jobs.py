"""The transition table, event by event."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.jobs import Refusal
from jobs.protocol.ids import Attempt, Incarnation, JobId, JobIdSource, WorkerId, is_job_id, uuid7
from jobs.protocol.model import JobState, JobSubmit, Reason, Requires, Retry, StreamInfo
from jobs.protocol.wire import Outcome
from jobs.records import Demand, JobRecord

JOB = uuid7(1_000, 7)
WORKER = WorkerId("shell-0")
LIFE = Incarnation("a" * 32)
OTHER_LIFE = Incarnation("b" * 32)
NOTHING = StreamInfo(bytes=0, stored_bytes=0, truncated=False)


def submitted(retry: Retry | None = None) -> JobRecord:
    job = msgspec.json.decode(b'{"type":"shell","payload":{"argv":["true"]}}', type=JobSubmit)
    return replace(jobs.on_submit(job, owner=1000, now_ms=1_000), retry=retry or Retry())


def running(retry: Retry | None = None) -> JobRecord:
    record = jobs.on_assigned(submitted(retry), WORKER, LIFE, 2_000)
    assert isinstance(record, JobRecord)
    return record


def outcome(reason: Reason | None = None, exit_code: int | None = 0, signal: int | None = None) -> Outcome:
    return Outcome(
        reason=reason,
        message=None if reason is None else "it went wrong",
        exit_code=exit_code,
        signal=signal,
        started_ms=2_000,
        finished_ms=3_000,
        wall_s=1.0,
        cpu_user_s=0.0,
        cpu_system_s=0.0,
        peak_memory_bytes=0,
        sandbox="strict",
        stdout=NOTHING,
        stderr=NOTHING,
    )


def finish(record: JobRecord, end: Outcome, attempt: int = 1, life: Incarnation = LIFE) -> jobs.Step:
    return jobs.on_finished(record, Attempt(attempt), life, end, 3_000, 0.5)


def test_a_job_runs_and_completes() -> None:
    record = running()
    assert (record.state, record.attempt, record.worker) == (JobState.RUNNING, 1, WORKER)
    done = finish(record, outcome())
    assert isinstance(done, JobRecord)
    assert (done.state, done.reason, done.exit_code, done.finished_ms) == (JobState.COMPLETED, None, 0, 3_000)


def test_a_failed_attempt_without_retries_fails_the_job_with_its_reason() -> None:
    done = finish(running(), outcome(Reason.EXIT_CODE, exit_code=3))
    assert isinstance(done, JobRecord)
    assert (done.state, done.reason, done.exit_code, done.message) == (
        JobState.FAILED,
        Reason.EXIT_CODE,
        3,
        "it went wrong",
    )


def test_a_failed_attempt_with_retries_waits_its_delay_and_comes_back() -> None:
    retry = Retry(max_attempts=2, backoff="fixed", delay_s=5, jitter=0)
    waiting = finish(running(retry), outcome(Reason.EXIT_CODE, exit_code=1))
    assert isinstance(waiting, JobRecord)
    assert (waiting.state, waiting.delayed, waiting.ready_ms) == (JobState.PENDING, True, 8_000)
    assert set(jobs.index_entries(JOB, waiting)) == {keys.timer(8_000, JOB), keys.waiting("default", 1000, JOB)}
    assert isinstance(jobs.on_due(waiting, 7_999), Refusal)
    ready = jobs.on_due(waiting, 8_000)
    assert isinstance(ready, JobRecord)
    demand = jobs.demand_of(ready)
    assert jobs.index_entries(JOB, ready) == {keys.queue("default", 1000, demand.lane(), 0, 8_000, JOB): demand}
    again = jobs.on_assigned(ready, WORKER, OTHER_LIFE, 9_000)
    assert isinstance(again, JobRecord)
    assert (again.attempt, again.reason) == (2, None)
    last = jobs.on_finished(again, Attempt(2), OTHER_LIFE, outcome(Reason.EXIT_CODE, 1), 9_500, 0.0)
    assert isinstance(last, JobRecord)
    assert last.state is JobState.FAILED


def test_the_late_report_of_an_old_attempt_is_refused() -> None:
    record = running(Retry(max_attempts=3, delay_s=0))
    lost = jobs.on_worker_lost(record, Attempt(1), LIFE, 3_000, 0.0)
    assert isinstance(lost, JobRecord)
    again = jobs.on_assigned(lost, WORKER, OTHER_LIFE, 4_000)
    assert isinstance(again, JobRecord)
    for attempt, life in ((1, LIFE), (1, OTHER_LIFE), (2, LIFE)):
        assert isinstance(finish(again, outcome(), attempt, life), Refusal)
    assert isinstance(finish(again, outcome(), 2, OTHER_LIFE), JobRecord)


def test_a_final_state_takes_no_event() -> None:
    for end in (outcome(), outcome(Reason.SIGNAL, None, 9)):
        done = finish(running(), end)
        assert isinstance(done, JobRecord)
        dead = {keys.dead_letter(3_000, JOB)} if done.state is JobState.FAILED else set()
        assert set(jobs.index_entries(JOB, done)) == {keys.ended(keys.ENDED_BARE, 3_000, JOB)} | dead
        for step in (
            jobs.on_due(done, 5_000),
            jobs.on_depends(done, 1),
            jobs.on_child(done),
            jobs.on_parent_ended(done, JOB, JobState.COMPLETED, 5_000),
            jobs.on_assigned(done, WORKER, LIFE, 5_000),
            jobs.on_cancel(done, 5_000),
            finish(done, outcome()),
            jobs.on_worker_lost(done, Attempt(1), LIFE, 5_000, 0.0),
        ):
            assert isinstance(step, Refusal)


def test_cancelling_a_waiting_job_ends_it_at_once() -> None:
    done = jobs.on_cancel(submitted(), 1_500)
    assert isinstance(done, JobRecord)
    assert (done.state, done.reason, done.attempt) == (JobState.FAILED, Reason.CANCELLED, 0)


def test_cancelling_a_running_job_waits_for_its_end_and_wins_over_it_and_over_retries() -> None:
    asked = jobs.on_cancel(running(Retry(max_attempts=5)), 2_500)
    assert isinstance(asked, JobRecord)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert jobs.on_cancel(asked, 2_600) is asked
    for done in (
        finish(asked, outcome(Reason.SIGNAL, None, 15)),
        jobs.on_worker_lost(asked, Attempt(1), LIFE, 3_000, 0.0),
    ):
        assert isinstance(done, JobRecord)
        assert (done.state, done.reason) == (JobState.FAILED, Reason.CANCELLED)


def test_a_job_that_completes_although_cancelled_stays_completed() -> None:
    asked = jobs.on_cancel(running(), 2_500)
    assert isinstance(asked, JobRecord)
    done = finish(asked, outcome())
    assert isinstance(done, JobRecord)
    assert done.state is JobState.COMPLETED


@pytest.mark.parametrize(
    ("retry", "failed", "chance", "delay_ms"),
    [
        (Retry(backoff="fixed", delay_s=2, jitter=0), 5, 0.9, 2_000),
        (Retry(backoff="exponential", delay_s=1, jitter=0), 1, 0.0, 1_000),
        (Retry(backoff="exponential", delay_s=1, jitter=0), 4, 0.0, 8_000),
        (Retry(backoff="exponential", delay_s=1, cap_s=5, jitter=0), 1_000, 0.0, 5_000),
        (Retry(backoff="fixed", delay_s=10, jitter=0.5), 1, 0.5, 12_500),
        (Retry(delay_s=0), 9, 0.99, 0),
    ],
)
def test_retry_delays(retry: Retry, failed: int, chance: float, delay_ms: int) -> None:
    assert jobs.retry_delay_ms(retry, failed, chance) == delay_ms


def test_records_survive_their_encoding_and_a_foreign_version_is_named() -> None:
    record = running()
    data = records.encode(record)
    assert records.decode(JobRecord, data) == record
    with pytest.raises(Exception, match="version 63; this build knows 1"):
        records.decode(JobRecord, b"c" + data[1:])
    with pytest.raises(Exception, match="cannot be read"):
        records.decode(JobRecord, data[: len(data) // 2])


def test_queue_keys_sort_by_priority_then_age_and_keep_queues_and_lanes_apart() -> None:
    urgent = keys.queue("q", 7, b"l", 10, 9_999, JOB)
    old = keys.queue("q", 7, b"l", 0, 1_000, JOB)
    young = keys.queue("q", 7, b"l", 0, 2_000, JOB)
    low = keys.queue("q", 7, b"l", -100, 1, JOB)
    assert sorted([low, young, old, urgent]) == [urgent, old, young, low]
    assert {keys.lane_of(key) for key in (urgent, old, young, low)} == {keys.lane_of(old)}
    for other in (("qq", 7, b"l"), ("q", 7, b"ll"), ("q", 77, b"l")):
        assert not keys.queue(*other, 0, 1, JOB).startswith(keys.lane_of(old))
    assert (keys.job_of(old), keys.share_of(old), keys.ready_ms_of(old)) == (JOB, ("q", 7), 1_000)


def test_equal_demands_share_a_lane_and_others_do_not() -> None:
    one = Demand("shell", Requires(labels={"a": "1", "b": "2"}))
    same = Demand("shell", Requires(labels={"b": "2", "a": "1"}))
    others = [Demand("sql", Requires()), Demand("shell", Requires()), Demand("shell", Requires(cpu_milli=1))]
    assert one.lane() == same.lane()
    others += [Demand("shell", Requires(), "key"), Demand("shell", Requires(), "key", 2)]
    assert len({demand.lane() for demand in [one, *others]}) == 6
    assert b"\x00" not in one.lane()


def test_uuid7_has_the_form_of_rfc_9562_and_sorts_by_time() -> None:
    # The example of RFC 9562, appendix A.6.
    rfc = uuid7(0x017F22E279B0, 0xCC3 << 62 | 0x18C4DC0C0C07398F)
    assert rfc == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    assert is_job_id(rfc)
    assert uuid7(5, (1 << 74) - 1) < uuid7(6, 0)
    for bad in (rfc.upper(), rfc[:-1], rfc.replace("-7", "-4"), rfc + "\n", "../../etc"):
        assert not is_job_id(JobId(bad))


def test_ids_sort_in_the_order_they_were_made_whatever_the_clock_does() -> None:
    source = JobIdSource()
    times = [5] * 10_000 + [3] * 10 + [6, 5, 1_000_000, 7]
    made = [source.next(unix_ms, (1 << 62) - 1 - number) for number, unix_ms in enumerate(times)]
    assert made == sorted(set(made))
    assert all(is_job_id(job) for job in made)
