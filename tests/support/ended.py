"""Jobs that end, and what is left of them in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from jobs import jobs, keys, records
from jobs.control.transitions import scan
from jobs.protocol import wire
from jobs.protocol.ids import JobId
from jobs.protocol.model import JobSubmit, JobView, Reason
from jobs.records import EndedRecord, IdempotencyRecord, JobRecord
from jobs.service import Caller
from jobs.store import Store
from tests.support.peer import WorkerPeer
from tests.support.plane import ALICE, Plane, shell

TIMEOUT_S = 20.0
Segments = Sequence[tuple[int, bytes]]


class Ender:
    """A worker that ends jobs as it is told."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.worker = WorkerPeer(slots=1)

    async def start(self) -> Self:
        await self.worker.register(self.plane.worker_socket)
        return self

    async def end(self, *, reason: Reason | None = None, segments: Segments = (), chunks: int = 0) -> JobId:
        """End the next job, after so many chunks of output."""
        item = await self.worker.assigned()
        for seq in range(chunks):
            self.worker.output(item, seq, (1, b"%d\n" % seq))
        for _ in range(chunks):
            await self.worker.expect(wire.OutputAck)
        code = None if reason is Reason.SIGNAL else int(reason is not None)
        self.worker.finish(item, reason=reason, exit_code=code, seq=chunks, segments=segments)
        assert (await self.worker.expect(wire.FinishedAck)).accepted
        return item.job

    async def run(
        self, job: JobSubmit | None = None, caller: Caller = ALICE, *, reason: Reason | None = None,
        segments: Segments = ((1, b"output"),), chunks: int = 0,
    ) -> JobView:  # fmt: skip
        """Submit a job and end it."""
        (made,) = await self.plane.control.submit(caller, [job or shell()])
        assert await self.end(reason=reason, segments=segments, chunks=chunks) == made.job.id
        return made.job


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Look until something holds that nothing tells of; raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def until_gone(plane: Plane, *ids: JobId) -> None:
    await until(lambda: all(plane.store.get(keys.state(job)) is None for job in ids))


def left_of(store: Store, job: JobId) -> list[bytes]:
    """Return every key whose name or value tells of a job."""
    name = job.encode()
    return [key for key, value, *_ in scan(store, b"/") if name in key or name in value]


def check_whole(store: Store) -> dict[JobId, JobRecord]:
    """Check that nothing is stored of jobs that are not there, and that ended jobs stand where they should.

    Returns the records of all jobs.
    """
    found = {keys.job_of(key): records.decode(JobRecord, value) for key, value, *_ in scan(store, keys.STATE)}
    specs = {keys.job_of(key) for key, *_ in scan(store, keys.SPEC)}
    assert specs == set(found)
    for prefix in (keys.RESULT, keys.LOG, keys.PROGRESS):
        owners = {JobId(key[len(prefix) : len(prefix) + 36].decode()) for key, *_ in scan(store, prefix)}
        assert owners <= set(found), f"{prefix!r} tells of jobs that are not there"
    for _, value, *_ in scan(store, keys.IDEMPOTENCY):
        assert records.decode(IdempotencyRecord, value).job in found
    for prefix in (keys.ENDED, keys.DEAD_LETTERS):
        listed = {key for key, *_ in scan(store, prefix)}
        wanted = {
            key for job, record in found.items() for key in jobs.index_entries(job, record) if key.startswith(prefix)
        }
        assert listed == wanted
    for key, value, *_ in scan(store, keys.ENDED):
        assert records.decode(EndedRecord, value).stored_bytes == found[keys.job_of(key)].stored_bytes
    for key, *_ in scan(store, keys.GONE):
        assert keys.job_of(key) not in found
    return found
