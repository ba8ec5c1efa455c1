"""Jobs of type blob in the control plane: what is let in, what their worker is given, what is kept of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from jobs.errors import Forbidden, InvalidRequest
from jobs.protocol import wire
from jobs.protocol.model import (
    AddFrom,
    BlobAdd,
    BlobFetch,
    BlobGc,
    BlobJob,
    BlobPayload,
    BlobPeer,
    BlobResult,
    BlobVerify,
    JobState,
    Reason,
    Schedule,
)
from jobs.service import Caller, JobFilter
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, Plane

HASH = "ab" * 32
GC = BlobJob(payload=BlobGc())
RESULT = BlobResult(
    operation="add", hash=HASH, bytes=1, blobs=1, peers=[BlobPeer(node="n1", bytes=0, outcome="has it")], seconds=0.5
)


async def assigned(plane: Plane, peer: WorkerPeer, payload: BlobPayload, caller: Caller = ALICE) -> wire.Assignment:
    await plane.control.submit(caller, [BlobJob(payload=payload)])
    return await peer.assigned()


def test_a_worker_is_told_for_whom_it_works_and_its_result_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            peer = WorkerPeer("blob-0")
            await peer.register(plane.worker_socket, type="blob")
            payload = BlobAdd(source=AddFrom(text="x"))
            item = await assigned(plane, peer, payload)
            assert (item.owner, item.admin) == (ALICE.uid, False)
            assert msgspec.json.decode(item.payload, type=BlobPayload) == payload
            peer.finish(item, exit_code=None, blob=RESULT)
            await peer.expect(wire.FinishedAck)
            result = await plane.control.result(ALICE, item.job, None)
            assert (result.state, result.blob) == (JobState.COMPLETED, RESULT)
            assert (await assigned(plane, peer, BlobGc(), ADMIN)).admin

    asyncio.run(scenario())


def test_a_failure_keeps_its_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            peer = WorkerPeer("blob-0")
            await peer.register(plane.worker_socket, type="blob")
            item = await assigned(plane, peer, BlobAdd(source=AddFrom(text="x")))
            peer.finish(item, reason=Reason.BLOB_ERROR, exit_code=None)
            await peer.expect(wire.FinishedAck)
            result = await plane.control.result(ALICE, item.job, None)
            assert (result.state, result.reason, result.blob) == (JobState.FAILED, Reason.BLOB_ERROR, None)

    asyncio.run(scenario())


def test_what_is_not_allowed_or_malformed_is_stored_neither_as_a_job_nor_as_a_schedule(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Plane(tmp_path) as plane:
            everything = BlobJob(payload=BlobVerify())
            for job in (GC, everything):
                with pytest.raises(Forbidden) as caught:
                    await plane.control.submit(ALICE, [BlobJob(payload=BlobAdd(source=AddFrom(text="x"))), job])
                assert caught.value.field == "$.jobs[1].payload"
                with pytest.raises(Forbidden):
                    await plane.control.schedules.put(ALICE, "nightly", Schedule(job=job, every_s=60.0), None)
            with pytest.raises(InvalidRequest):
                await plane.control.submit(ALICE, [BlobJob(payload=BlobFetch())])
            page = await plane.control.list_jobs(ADMIN, JobFilter(), limit=10, cursor=None, newest_first=True)
            assert page.jobs == []
            assert (await plane.control.schedules.page(ADMIN, limit=10, cursor=None)).schedules == []
            await plane.control.schedules.put(ADMIN, "nightly", Schedule(job=GC, every_s=60.0), None)

    asyncio.run(scenario())
