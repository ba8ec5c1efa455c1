"""What a job finds in its directory of the jobs that it depends on; bounded whatever they wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from jobs import keys
from jobs.control.parents import FILE_BYTES, TOTAL_BYTES
from jobs.protocol import wire
from jobs.protocol.model import MAX_PARENTS, JobState, JobView, ParentResult, Reason
from jobs.store import Delete, Txn
from tests.support.peer import WorkerPeer
from tests.support.plane import ALICE, Plane, shell

NEVER_MS = 253_402_300_799_999


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def one(plane: Plane, **fields: Any) -> JobView:
    (made,) = await plane.control.submit(ALICE, [shell("true", **fields)])
    return made.job


async def end(worker: WorkerPeer, segments: Sequence[tuple[int, bytes]], **how: Any) -> wire.Assignment:
    """End the next job that the worker is given with this output."""
    item = await worker.assigned()
    *first, last = segments or [(1, b"")]
    for seq, segment in enumerate(first):
        worker.output(item, seq, segment)
        await worker.expect(wire.OutputAck)
    worker.finish(item, seq=len(first), segments=[last], **how)
    await worker.expect(wire.FinishedAck)
    return item


def result_of(item: wire.Assignment, name: str) -> ParentResult:
    return msgspec.json.decode(item.files[f"parents/{name}/result.json"], type=ParentResult)


def test_a_child_is_given_the_results_of_its_parents_by_id_and_ref(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            good = await one(plane, ref="good")
            assert (await end(worker, [(1, b"\xff out"), (2, b"err")])).files == {}
            bad = await one(plane, ref="bad")
            await end(worker, [(2, b"why")], reason=Reason.EXIT_CODE, exit_code=3)
            twin = await one(plane, ref="good")
            await end(worker, [(1, b"another")])
            lost = await one(plane, not_before_ms=NEVER_MS)
            await plane.control.cancel(ALICE, lost.id)
            child = await one(plane, depends_on=[good.id, bad.id, twin.id, lost.id], on_failure="run")
            item = await worker.assigned()
            # Then it has a directory for each, by id and by ref, of which the first has the name that two share
            assert item.job == child.id
            assert item.env == {"JOBS_PARENTS": "/work/.jobs/parents"}
            assert {path.split("/")[1] for path in item.files} == {good.id, bad.id, twin.id, lost.id, "good", "bad"}
            assert item.files["parents/good/stdout"] == item.files[f"parents/{good.id}/stdout"] == b"\xff out"
            assert item.files[f"parents/{twin.id}/stdout"] == b"another"
            found = result_of(item, "good")
            assert (found.id, found.state, found.exit_code, found.stderr.text) == (
                good.id,
                JobState.COMPLETED,
                0,
                "err",
            )
            assert found.execution is not None
            assert bytes(found.stdout) == b"\xff out"
            found = result_of(item, "bad")
            assert (found.state, found.reason, found.exit_code, found.stderr.text) == (
                JobState.FAILED,
                Reason.EXIT_CODE,
                3,
                "why",
            )
            found = result_of(item, lost.id)
            assert (found.reason, found.execution) == (Reason.CANCELLED, None)
            # And is given them again by a node that was restarted
        async with Plane(tmp_path) as plane:
            await worker.close()
            await worker.register(plane.worker_socket)
            assert (await worker.assigned()).files == item.files

    run(scenario())


def test_a_parent_that_is_no_longer_kept_is_named_as_such(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            parent = await one(plane, ref="p")
            await end(worker, [])
            await worker.close()
            await one(plane, depends_on=[parent.id])
            await plane.consensus.propose(Txn(then=(Delete(keys.state(parent.id)),)))
            await worker.register(plane.worker_socket)
            item = await worker.assigned()
            assert item.files[f"parents/{parent.id}/stdout"] == b""
            assert result_of(item, parent.id) == ParentResult(id=parent.id, ref=None, state=None)

    run(scenario())


def test_long_output_is_cut_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            parent = await one(plane, ref="p")
            chunk = b"\x01" * (200 << 10)
            await end(worker, [(1, chunk)] * 6 + [(2, b"short")])
            await one(plane, depends_on=[parent.id])
            item = await worker.assigned()
            assert item.files["parents/p/stdout"] == b"\x01" * FILE_BYTES
            found = result_of(item, "p")
            assert bytes(found.stdout) == b"\x01" * (64 << 10)
            assert found.stderr.text == "short"

    run(scenario())


def test_the_files_of_as_many_parents_as_can_be_fit_a_frame_whatever_they_wrote(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            # Given parents whose output takes six bytes each in JSON
            noise = b"\x01" * (100 << 10)
            parents = []
            for number in range(MAX_PARENTS):
                parents.append(await one(plane, ref=f"p{number}"))
                await end(worker, [(1, noise), (2, noise)])
            child = await one(plane, depends_on=[parent.id for parent in parents])
            item = await worker.assigned()
            assert (item.job, len(item.files)) == (child.id, 4 * MAX_PARENTS)
            size_bytes = sum(map(len, item.files.values()))
            assert TOTAL_BYTES // 2 < size_bytes < TOTAL_BYTES + 2 * MAX_PARENTS * 1024
            assert size_bytes < wire.MAX_FRAME_BYTES // 2
            found = result_of(item, "p99")
            assert found.stderr_truncated
            assert 1024 < len(bytes(found.stdout)) < len(item.files["parents/p99/stdout"]) < len(noise)

    run(scenario())
