"""A worker acts for the owner of each job: what its user may do helps nobody."""

from __future__ import annotations

import os
from pathlib import Path

import uvloop

from jobs.protocol.model import (
    AddFrom,
    BlobAdd,
    BlobJob,
    BlobList,
    BlobPayload,
    BlobStat,
    BlobVerify,
    JobResult,
    JobState,
    Reason,
    ShellJob,
    ShellPayload,
)
from jobs.service import Caller
from tests.support.blobs import BlobApi, served
from tests.support.plane import ADMIN, ALICE, BOB
from tests.support.workerprocess import worker_process


async def run(api: BlobApi, caller: Caller, payload: BlobPayload) -> JobResult:
    """Have an operation carried out for somebody; return how it ended."""
    control = api.plane.control
    (submitted,) = await control.submit(caller, [BlobJob(payload=payload)])
    await control.wait(caller, submitted.job.id, 30.0)
    return await control.result(caller, submitted.job.id, None)


def test_what_is_somebody_elses_is_not_there_whoever_the_worker_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        workers = frozenset({os.geteuid()})
        async with served(tmp_path, worker_uids=workers) as api, worker_process(tmp_path, worker_type="blob"):
            added = await run(api, ALICE, BlobAdd(source=AddFrom(text="of alice"), tag="alice/1"))
            assert (added.state, added.message) == (JobState.COMPLETED, None)
            assert added.blob is not None
            assert added.blob.hash is not None
            blob = added.blob.hash
            assert (await api.plane.control.blobs.view(ADMIN, blob)).owners == [ALICE.uid]
            for caller, may in ((ALICE, True), (ADMIN, True), (BOB, False)):
                found = await run(api, caller, BlobStat(hash=blob))
                assert (found.state is JobState.COMPLETED) == may, caller
                listed = await run(api, caller, BlobList())
                assert (blob.encode() in bytes(listed.stdout)) == (caller is ALICE), "one lists what is one's own"
            refused = await run(api, BOB, BlobStat(hash=blob))
            assert refused.reason is Reason.BLOB_ERROR
            assert "there is no blob" in str(refused.message)
            taken = await run(api, BOB, BlobAdd(source=AddFrom(text="of bob"), tag="alice/1"))
            assert "alice/1" in str(taken.message)

    uvloop.run(scenario())


def test_the_output_of_somebody_elses_job_is_not_added(tmp_path: Path) -> None:
    async def scenario() -> None:
        workers = frozenset({os.geteuid()})
        async with served(tmp_path, worker_uids=workers) as api, worker_process(tmp_path, worker_type="blob"):
            (secret,) = await api.plane.control.submit(ALICE, [ShellJob(payload=ShellPayload(argv=["true"]))])
            refused = await run(api, BOB, BlobAdd(source=AddFrom(job=secret.job.id)))
            assert (refused.state, refused.reason) == (JobState.FAILED, Reason.BLOB_ERROR)
            assert "add on node" in str(refused.message)
            theirs = await run(api, ALICE, BlobAdd(source=AddFrom(job=secret.job.id)))
            assert "is pending" in str(theirs.message), "there is nothing of it yet"

    uvloop.run(scenario())


def test_a_node_that_takes_no_workers_of_this_user_refuses_to_be_asked_for_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path) as api, worker_process(tmp_path, worker_type="blob"):
            for payload in (BlobAdd(source=AddFrom(text="x")), BlobVerify(hash="00" * 32)):
                refused = await run(api, ALICE, payload)
                assert refused.reason is Reason.BLOB_ERROR
                assert "only workers act for others" in str(refused.message)

    uvloop.run(scenario())
