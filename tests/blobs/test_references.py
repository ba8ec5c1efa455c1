"""What jobs and schedules refer to: made with what refers, gone with it, and never without."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobs import keys
from jobs.control import arrayremoval, removal
from jobs.control.retention import RetentionConfig
from jobs.errors import InvalidRequest, NotFound
from jobs.protocol import wire
from jobs.protocol.ids import JobId, task_id
from jobs.protocol.model import (
    ArrayRange,
    ArraySpec,
    Artefact,
    BlobCollect,
    InputFile,
    JobSubmit,
    Reason,
    Retention,
    Retry,
    Schedule,
    ShellJob,
    ShellPayload,
)
from jobs.retention import Limits
from jobs.store import prefix_end
from jobs.validate import operations_of
from tests.support.catalogue import ME, blob, collection, hash_of, references
from tests.support.ended import until, until_gone
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, BOB, Plane

Scenario = Callable[[Plane], Awaitable[None]]
FAR_S = 3_600.0


def play(tmp_path: Path, scenario: Scenario, **limits: object) -> None:
    config = RetentionConfig(jobs=Limits(**limits))  # type: ignore[arg-type]

    async def inner() -> None:
        async with asyncio.timeout(60), Plane(tmp_path, retention=config) as plane:
            await scenario(plane)

    asyncio.run(inner())


def given(*names: object, **fields: object) -> JobSubmit:
    """A job that is given these blobs."""
    files = {f"in/{name}": InputFile(blob=hash_of(name)) for name in names}
    return ShellJob(payload=ShellPayload(argv=["true"], files=files), **fields)  # type: ignore[arg-type]


async def added(plane: Plane, *names: object) -> None:
    for name in names:
        await plane.control.blobs.register(ALICE, blob(name), ME)


async def submitted(plane: Plane, job: JobSubmit) -> JobId:
    (made,) = await plane.control.submit(ALICE, [job])
    return made.job.id


async def worker(plane: Plane, slots: int = 1) -> WorkerPeer:
    peer = WorkerPeer(slots=slots)
    await peer.register(plane.worker_socket)
    return peer


def left(*names: object) -> list[Artefact]:
    return [Artefact(path=f"out/{name}", hash=hash_of(name), size_bytes=10) for name in names]


def all_references(plane: Plane) -> list[bytes]:
    rows, _ = plane.store.range(keys.BLOB_REFERENCES, prefix_end(keys.BLOB_REFERENCES), limit=10_000, keys_only=True)
    return [row[0] for row in rows]


# --- submissions ------------------------------------------------------------------------------------------------------


def test_a_job_refers_to_what_it_is_given_from_its_submission_to_its_removal(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "a", "b")
        kept = await submitted(plane, given("a", retention=Retention(keep_s=FAR_S)))
        short = await submitted(plane, given("a", "b", retention=Retention(keep_s=0)))
        assert references(plane.store, "a") == {f"job/{kept}", f"job/{short}"}
        assert references(plane.store, "b") == {f"job/{short}"}
        peer = await worker(plane)
        for _ in range(2):
            peer.finish(await peer.assigned())
            await peer.expect(wire.FinishedAck)
        await until_gone(plane, short)
        assert (references(plane.store, "a"), references(plane.store, "b")) == ({f"job/{kept}"}, set())

    play(tmp_path, scenario)


def test_what_is_not_there_or_another_ones_is_refused_by_the_field_that_names_it(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "a")
        with pytest.raises(NotFound) as missing:
            await plane.control.submit(ALICE, [given("a"), given("a", "none")])
        assert missing.value.field == "$.jobs[1].payload.files['in/none'].blob"
        assert hash_of("none") in missing.value.detail
        with pytest.raises(NotFound) as foreign:
            await plane.control.submit(BOB, [given("a")])
        assert foreign.value.field == "$.payload.files['in/a'].blob"
        assert all_references(plane) == []
        await plane.control.submit(ADMIN, [given("a")])
        assert len(references(plane.store, "a")) == 1

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "file",
    [InputFile(), InputFile(text="x", blob=hash_of("a")), InputFile(base64="", blob=hash_of("a"))],
    ids=["nothing", "text too", "base64 too"],
)
def test_a_file_is_exactly_one_of_text_base64_and_blob(tmp_path: Path, file: InputFile) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "a")
        with pytest.raises(InvalidRequest):
            await plane.control.submit(ALICE, [ShellJob(payload=ShellPayload(argv=["true"], files={"in": file}))])

    play(tmp_path, scenario)


def test_the_jobs_of_one_request_may_share_blobs_as_far_as_its_operations_go(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, *range(250))
        shared = await plane.control.submit(ALICE, [given("0", "1") for _ in range(100)])
        assert references(plane.store, "0") == {f"job/{made.job.id}" for made in shared}
        widest = given(*range(250))
        assert operations_of(widest) >= 500
        whole = await submitted(plane, widest)
        assert all(f"job/{whole}" in references(plane.store, number) for number in range(250))
        with pytest.raises(InvalidRequest, match="operations of one transaction"):
            await plane.control.submit(ALICE, [widest] * 3)

    play(tmp_path, scenario)


def test_a_repeated_submission_refers_once(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "a")
        first = await submitted(plane, given("a", idempotency_key="k"))
        assert await submitted(plane, given("a", idempotency_key="k")) == first
        assert references(plane.store, "a") == {f"job/{first}"}

    play(tmp_path, scenario)


def test_what_a_job_refers_to_is_not_collected(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        blobs = plane.control.blobs
        await added(plane, "in", "names", "file", "unused")
        await blobs.register(ALICE, collection("tree", ["names", "file"]), ME)
        await submitted(plane, given("in", "tree"))
        page = await blobs.collect(ADMIN, BlobCollect(dry_run=True, grace_s=0))
        assert {one.hash for one in page.collected} == {hash_of("unused")}

    play(tmp_path, scenario)


# --- what jobs leave --------------------------------------------------------------------------------------------------


def test_what_an_attempt_leaves_is_referred_to_by_the_transaction_that_ends_it(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "x", "y")
        job = await submitted(plane, given(retention=Retention(keep_s=1)))
        peer = await worker(plane)
        peer.finish(await peer.assigned(), artefacts=left("x", "y"))
        assert (await peer.expect(wire.FinishedAck)).accepted
        assert references(plane.store, "x") == references(plane.store, "y") == {f"output/{job}"}
        result = await plane.control.result(ALICE, job, None)
        assert [(one.path, one.hash, one.size_bytes) for one in result.artefacts] == [
            ("out/x", hash_of("x"), 10),
            ("out/y", hash_of("y"), 10),
        ]
        await until_gone(plane, job)
        assert all_references(plane) == []

    play(tmp_path, scenario)


def test_a_late_report_refers_to_nothing(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "x")
        await submitted(plane, given())
        peer = await worker(plane)
        item = await peer.assigned()
        peer.finish(item)
        await peer.expect(wire.FinishedAck)
        peer.finish(item, artefacts=left("x"))
        assert not (await peer.expect(wire.FinishedAck)).accepted
        assert all_references(plane) == []

    play(tmp_path, scenario)


def test_a_job_whose_outputs_are_gone_by_its_end_has_failed(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "x")
        job = await submitted(plane, given())
        peer = await worker(plane)
        peer.finish(await peer.assigned(), artefacts=left("x", "gone"))
        assert (await peer.expect(wire.FinishedAck)).accepted
        result = await plane.control.result(ALICE, job, None)
        assert (result.reason, result.artefacts) == (Reason.BLOB_ERROR, [])
        assert hash_of("gone") in (result.message or "")
        assert all_references(plane) == []

    play(tmp_path, scenario)


def test_what_attempts_that_failed_left_goes_with_the_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more references than one transaction removes."""
    monkeypatch.setattr(removal, "EDGES", 3)

    async def scenario(plane: Plane) -> None:
        await added(plane, *range(8), "in")
        job = await submitted(
            plane, given("in", retry=Retry(max_attempts=2, backoff="none"), retention=Retention(keep_s=1))
        )
        peer = await worker(plane)
        peer.finish(await peer.assigned(), reason=Reason.EXIT_CODE, exit_code=1, artefacts=left(0, 1, 2, 3))
        await peer.expect(wire.FinishedAck)
        peer.finish(await peer.assigned(), artefacts=left(3, 4, 5, 6, 7))
        await peer.expect(wire.FinishedAck)
        first = await plane.control.result(ALICE, job, 1)  # type: ignore[arg-type]
        assert [one.path for one in first.artefacts] == ["out/0", "out/1", "out/2", "out/3"]
        assert len(all_references(plane)) == 9
        await until_gone(plane, job)
        assert all_references(plane) == []

    play(tmp_path, scenario)


# --- arrays, repetitions, schedules -----------------------------------------------------------------------------------


def test_an_array_refers_for_all_its_tasks_and_each_task_to_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrayremoval, "STEP_REFERENCES", 2)

    async def scenario(plane: Plane) -> None:
        await added(plane, "in", *range(3), "same")
        array = await submitted(
            plane, given("in", array=ArraySpec(range=ArrayRange(stop=3)), retention=Retention(keep_s=1))
        )
        assert references(plane.store, "in") == {f"job/{array}"}
        peer = await worker(plane)
        for number in range(3):
            peer.finish(await peer.assigned(), artefacts=left(number, "same"))
            await peer.expect(wire.FinishedAck)
        assert references(plane.store, "same") == {f"output/{task_id(array, number)}" for number in range(3)}
        await until_gone(plane, array)
        assert all_references(plane) == []

    play(tmp_path, scenario)


def test_a_job_that_is_redriven_refers_anew(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await added(plane, "in")
        job = await submitted(plane, given("in", retention=Retention(keep_s=FAR_S)))
        peer = await worker(plane)
        peer.finish(await peer.assigned(), reason=Reason.EXIT_CODE, exit_code=1)
        await peer.expect(wire.FinishedAck)
        again = (await plane.control.dead_letters.redrive(ALICE, job)).job.id
        assert references(plane.store, "in") == {f"job/{job}", f"job/{again}"}

    play(tmp_path, scenario)


def test_a_schedule_refers_for_the_job_that_it_has_now(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        schedules = plane.control.schedules
        await added(plane, "a", "b", "c")
        await schedules.put(ALICE, "s", Schedule(job=given("a", "b"), every_s=FAR_S), None)
        await schedules.put(ALICE, "s", Schedule(job=given("b", "c"), every_s=FAR_S), None)
        assert [references(plane.store, name) for name in "abc"] == [set(), {"schedule/s"}, {"schedule/s"}]
        with pytest.raises(NotFound) as missing:
            await schedules.put(ALICE, "s", Schedule(job=given("none"), every_s=FAR_S), None)
        assert missing.value.field == "$.job.payload.files['in/none'].blob"
        job = (await schedules.trigger(ALICE, "s")).job.id
        assert references(plane.store, "b") == {"schedule/s", f"job/{job}"}
        await schedules.delete(ALICE, "s", None)
        assert [references(plane.store, name) for name in "abc"] == [set(), {f"job/{job}"}, {f"job/{job}"}]

    play(tmp_path, scenario)


def test_a_schedule_whose_blob_its_owner_has_given_up_says_so(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        schedules = plane.control.schedules
        await added(plane, "a")
        await schedules.put(ALICE, "s", Schedule(job=given("a"), every_s=1), None)
        await plane.control.blobs.forget(ALICE, hash_of("a"))

        def told() -> bool:
            stored = plane.control._schedule_driver.read("s")
            return stored is not None and stored.record.last_lapse is not None

        await until(told)
        view = (await schedules.get(ALICE, "s")).schedule
        assert view.last_error is not None
        assert hash_of("a") in view.last_error.detail

    play(tmp_path, scenario)
