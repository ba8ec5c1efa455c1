"""Many jobs in few requests: how they are cut, what they are known by, what is counted. Pure."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import SubmitProgress, shell_job
from jobs.client.batches import KEY_ROOM_BYTES, LOT_BYTES, Cutter, Lots, Tally
from jobs.client.operations import submit_batch
from jobs.control.transitions import view
from jobs.errors import InvalidRequest, QueueFull, Unavailable
from jobs.jobs import on_submit
from jobs.protocol.ids import JobId, uuid7
from jobs.protocol.model import BATCH_JOBS, BATCH_OPERATIONS, MAX_PARENTS, Batch, JobSubmit, Submitted
from jobs.validate import operations_of

MAX_BODY_BYTES = 10 << 20


def cut(jobs: list[JobSubmit], batch: str | None = None) -> list[list[JobSubmit]]:
    """Return the lots as a node would read them, having checked that it would."""
    found: list[list[JobSubmit]] = []
    lots = Lots(jobs, batch)
    for lot in lots:
        body = submit_batch(lot).request.body
        assert body is not None
        assert len(body) <= MAX_BODY_BYTES
        found.append(msgspec.json.decode(body, type=Batch).jobs)
        assert sum(map(operations_of, found[-1])) <= BATCH_OPERATIONS
        first = sum(map(len, found[:-1]))
        lots.on_answer([answer(first + index) for index in range(len(found[-1]))])
    return found


def answer(number: int) -> Submitted:
    """Return what a node says to the job of this number, from 0 on."""
    record = on_submit(shell_job(["true"]), 1000, 1)
    return Submitted(job=view(id_of(number), record, 1), created=True)


def id_of(number: int) -> JobId:
    return uuid7(number, number)


def test_lots_hold_as_many_jobs_as_a_request_takes() -> None:
    found = cut([shell_job(["echo", str(number)]) for number in range(2 * BATCH_JOBS + 1)])
    assert [len(lot) for lot in found] == [BATCH_JOBS, BATCH_JOBS, 1]
    assert [job.payload.argv for lot in found for job in lot] == [["echo", str(n)] for n in range(2 * BATCH_JOBS + 1)]
    assert cut([]) == []


def test_lots_hold_no_more_bytes_than_a_request_takes() -> None:
    large = shell_job(["cat"], stdin="x" * 1_000_000)
    assert [len(lot) for lot in cut([large] * 23)] == [10, 10, 3]


@given(st.lists(st.integers(min_value=1, max_value=1 << 20), max_size=600))
def test_a_cutter_neither_overfills_a_lot_nor_ends_it_early(sizes: list[int]) -> None:
    cutter = Cutter()
    cuts: list[list[int]] = []
    for size in sizes:
        if cutter.begins(size, 1):
            cuts.append([])
        cuts[-1].append(size + KEY_ROOM_BYTES)
    assert all(len(lot) <= BATCH_JOBS and sum(lot) <= LOT_BYTES for lot in cuts)
    for lot, after in itertools.pairwise(cuts):
        assert len(lot) == BATCH_JOBS or sum(lot) + after[0] > LOT_BYTES


def test_a_lot_of_jobs_with_many_parents_fits_a_transaction() -> None:
    parents = [f"r{number}" for number in range(MAX_PARENTS)]
    jobs = [shell_job(["true"], ref=ref) for ref in parents]
    jobs += [shell_job(["true"], depends_on=parents, unique_key=str(n), deadline_ms=1) for n in range(9)]
    found = cut(jobs)
    assert [len(lot) for lot in found] == [MAX_PARENTS + 2, 4, 3]
    assert found[0][-1].depends_on == parents


def test_refs_of_former_lots_become_ids_the_same_ones_each_time() -> None:
    # Given a chain over three lots, and a job that depends on the first of all
    count = 2 * BATCH_JOBS + 2
    jobs = [shell_job(["true"], ref=str(n), depends_on=[str(n - 1)] if n else []) for n in range(count)]
    jobs.append(shell_job(["true"], depends_on=["0", id_of(7), str(count - 1)]))
    found = cut(jobs, "night")
    flat = [job for lot in found for job in lot]
    # Then only what crosses a lot's border is replaced
    firsts = {0, *itertools.accumulate(len(lot) for lot in found)}
    assert len(firsts) > 3
    for number, job in enumerate(flat[1:-1], 1):
        assert job.depends_on == [id_of(number - 1) if number in firsts else str(number - 1)]
    assert flat[-1].depends_on == [id_of(0), id_of(7), str(count - 1)]
    assert cut(jobs, "night") == found


@pytest.mark.parametrize(
    ("jobs", "field", "said"),
    [
        (
            [shell_job(["true"], depends_on=["late"]), shell_job(["true"], ref="late")],
            "$.depends_on[0]",
            "job 1: 'late'",
        ),
        ([shell_job(["true"], ref="a", depends_on=["a"])], "$.depends_on[0]", "job 1: 'a' is neither"),
        ([shell_job(["true"], ref="a")] * 2, "$.ref", "job 2: 'a' is the ref of job 1 too"),
    ],
)
def test_a_job_that_depends_on_none_before_it_is_named(jobs: list[JobSubmit], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cut(jobs)
    assert (caught.value.field, said in caught.value.detail) == (field, True)


def test_jobs_of_a_batch_are_known_by_its_name_and_their_number() -> None:
    jobs = [shell_job(["true"]), shell_job(["true"], idempotency_key="own"), shell_job(["true"])]
    keys = ["batch:night:1", "own", "batch:night:3"]
    assert [job.idempotency_key for job in cut(jobs, "night")[0]] == keys
    assert [job.idempotency_key for job in cut(jobs, "night")[0]] == keys


def test_jobs_of_no_batch_are_known_by_chance() -> None:
    jobs = [shell_job(["true"])] * 3
    keys = {job.idempotency_key for _ in range(2) for lot in cut(jobs) for job in lot}
    assert len(keys) == 6


def test_lots_are_cut_alike_whatever_the_batch_is_called() -> None:
    jobs = [shell_job(["cat"], stdin="x" * 40_000)] * 600
    longest = '"' * 200
    assert [len(lot) for lot in cut(jobs, "b")] == [len(lot) for lot in cut(jobs, longest)]


@pytest.mark.parametrize("name", ["", "x" * 201, "é" * 101, "a\nb"])
def test_a_name_that_makes_no_key_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(InvalidRequest, match="batch"):
        Lots([shell_job(["true"])], name)


def test_text_that_json_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        cut([shell_job(["\udcff"])])


def test_a_refusal_is_told_and_waited_out_only_where_the_node_says_how_long() -> None:
    told: list[SubmitProgress] = []
    tally = Tally(told.append)
    tally.on_answer([])
    full = QueueFull("full", retry_after_s=5)
    assert tally.on_refusal(full) == 5
    assert told == [SubmitProgress(), SubmitProgress(waits_for=full, pause_s=5)]
    for error in (QueueFull("never"), Unavailable("later", retry_after_s=1)):
        with pytest.raises(type(error)):
            tally.on_refusal(error)
    assert len(told) == 2
