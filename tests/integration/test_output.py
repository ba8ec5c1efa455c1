"""What jobs have written, read from anywhere: its end, from now on, across attempts, and not without reason empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs.errors import InvalidRequest, NotFound
from jobs.protocol import wire
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import JobState, Reason, Retry, Stream
from jobs.service import LogPiece, LogPosition, LogsWanted
from tests.support.peer import WorkerPeer
from tests.support.plane import ALICE, BOB, Plane, shell


async def written(pieces: AsyncIterator[LogPiece]) -> bytes:
    return b"".join([piece.data async for piece in pieces])


async def read(plane: Plane, job: JobId, **wanted: object) -> bytes:
    async with asyncio.timeout(10):
        return await written(plane.control.logs(ALICE, job, LogsWanted(**wanted)))  # type: ignore[arg-type]


class Attempts:
    """A job that fails as often as is asked, each attempt with output of its own."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.worker = WorkerPeer()

    async def start(self, attempts: int) -> JobId:
        await self.worker.register(self.plane.worker_socket)
        retry = Retry(max_attempts=attempts, backoff="none")
        (made,) = await self.plane.control.submit(ALICE, [shell(retry=retry)])
        self.item = await self.worker.assigned()
        return made.job.id

    async def write(self, seq: int, *segments: tuple[int, bytes]) -> None:
        self.worker.output(self.item, seq, *segments)
        await self.worker.expect(wire.OutputAck)

    async def fail(self, seq: int, *segments: tuple[int, bytes], last: bool = False) -> None:
        self.worker.finish(self.item, reason=Reason.EXIT_CODE, exit_code=1, seq=seq, segments=segments)
        assert (await self.worker.expect(wire.FinishedAck)).accepted
        if not last:
            self.item = await self.worker.assigned()


def test_attempts_one_after_the_other_also_those_to_come(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            job = Attempts(plane)
            name = await job.start(3)
            live = asyncio.create_task(read(plane, name, attempt="all", follow=True))
            newest = asyncio.create_task(read(plane, name, follow=True))
            second = asyncio.create_task(read(plane, name, attempt=Attempt(2), follow=True))
            await job.fail(0, (1, b"first\n"), (2, b"e1\n"))
            # The second attempt writes nothing at all
            await job.fail(0)
            late = asyncio.create_task(read(plane, name, attempt="all", follow=True))
            await job.write(0, (1, b"thi"))
            assert await read(plane, name) == b"thi"
            assert await read(plane, name, attempt="all") == b"first\ne1\nthi"
            await job.fail(1, (1, b"rd\n"), last=True)
            whole = b"first\ne1\nthird\n"
            assert [await live, await late, await newest, await second] == [whole, whole, whole, b""]
            # Also after the end
            assert await read(plane, name) == b"third\n"
            assert await read(plane, name, attempt="all") == whole
            assert await read(plane, name, attempt="all", follow=True, streams=(Stream.STDERR,)) == b"e1\n"
            assert await read(plane, name, attempt=Attempt(1)) == b"first\ne1\n"
            for follow in (False, True):
                with pytest.raises(NotFound):
                    await read(plane, name, attempt=Attempt(4), follow=follow)

    asyncio.run(run())


def test_a_follower_of_one_attempt_is_done_when_that_is_over(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            retry = Retry(max_attempts=2, backoff="fixed", delay_s=3_600, cap_s=3_600)
            (made,) = await plane.control.submit(ALICE, [shell(retry=retry)])
            item = await worker.assigned()
            follower = asyncio.create_task(read(plane, made.job.id, attempt=Attempt(1), follow=True))
            worker.finish(item, reason=Reason.EXIT_CODE, exit_code=1, segments=[(1, b"x")])
            # Though the job waits for an hour to be tried again
            assert await follower == b"x"

    asyncio.run(run())


def test_tails_across_chunks_attempts_and_streams(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            job = Attempts(plane)
            name = await job.start(2)
            await job.write(0, (1, b"a1\na2\n"), (2, b"A1\n"))
            await job.fail(1, (1, b"a3\n"))
            for seq in range(100):
                await job.write(seq, (1, b"b%d\nbb" % seq), (1, b"\n"))
            whole = b"a1\na2\nA1\na3\n" + b"".join(b"b%d\nbb\n" % seq for seq in range(100))
            lines = whole.splitlines(keepends=True)
            for count in (0, 1, 2, 3, 150, 200, 201, 203, 204, 500):
                assert await read(plane, name, attempt="all", tail_lines=count) == b"".join(
                    lines[-count:] * bool(count)
                )
                last = b"".join(lines[4:][-count:] * bool(count))
                assert await read(plane, name, tail_lines=count) == last
            for size in (0, 1, 2, 5, 700, len(whole) - 1, len(whole), 10_000):
                assert (
                    await read(plane, name, attempt="all", tail_bytes=size) == whole[len(whole) - size :] * bool(size)
                    if size <= len(whole)
                    else whole
                )
            assert await read(plane, name, attempt="all", streams=(Stream.STDERR,), tail_lines=1) == b"A1\n"
            with pytest.raises(InvalidRequest):
                await read(plane, name, tail_lines=1, tail_bytes=1)

    asyncio.run(run())


def test_a_tail_reads_no_more_than_its_end(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            job = Attempts(plane)
            name = await job.start(1)
            for seq in range(200):
                await job.write(seq, (1, b"line %d\n" % seq))
            read_bytes = 0
            range_of = plane.store.range

            class Counting:
                """The store, with what is read from it counted."""

                def __getattr__(self, attribute: str) -> object:
                    return getattr(plane.store, attribute)

                def range(self, *bounds: bytes, **options: object) -> object:
                    nonlocal read_bytes
                    rows, more = range_of(*bounds, **options)  # type: ignore[arg-type]
                    read_bytes += len(rows)
                    return rows, more

            plane.control._queries._logs._store = Counting()  # type: ignore[assignment]
            assert await read(plane, name, tail_lines=2) == b"line 198\nline 199\n"
            assert read_bytes <= 40

    asyncio.run(run())


def test_from_now_on_and_resumed_where_it_was(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            job = Attempts(plane)
            name = await job.start(2)
            await job.write(0, (1, b"old\n"))
            follower = plane.control.logs(ALICE, name, LogsWanted(follow=True, tail_bytes=0))
            start = await anext(follower)
            assert (start.data, start.attempt) == (b"", 1)
            # What is written after that is not missed, also by one who comes back without having seen anything
            await job.write(1, (1, b"new\n"))
            await job.fail(2, (1, b"end\n"))
            await job.fail(0, (1, b"again\n"), last=True)
            assert await written(follower) == b"new\nend\nagain\n"
            position = LogPosition(start.attempt, start.seq)
            assert await read(plane, name, follow=True, tail_bytes=0, after=position) == b"new\nend\nagain\n"
            assert await read(plane, name, follow=True, tail_bytes=0) == b""

    asyncio.run(run())


def test_from_now_on_of_a_job_that_has_not_begun(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            (made,) = await plane.control.submit(ALICE, [shell()])
            follower = plane.control.logs(ALICE, made.job.id, LogsWanted(follow=True, tail_bytes=0))
            assert (await anext(follower)).seq == -1
            worker = WorkerPeer()
            await worker.register(plane.worker_socket)
            worker.finish(await worker.assigned(), segments=[(1, b"all\n")])
            assert await written(follower) == b"all\n"

    asyncio.run(run())


def test_every_attempt_is_listed_with_how_it_ended(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path) as plane:
            job = Attempts(plane)
            name = await job.start(3)
            await job.fail(0, (1, b"12345"))
            await job.write(0, (1, b"lost"))
            listed = (await plane.control.attempts(ALICE, name)).attempts
            assert [(one.attempt, one.state) for one in listed] == [(1, JobState.FAILED), (2, JobState.RUNNING)]
            # When the worker of the second one is lost, and the third one completes in the worker's next life
            other = WorkerPeer()
            await other.register(plane.worker_socket)
            other.finish(await other.assigned(), segments=[(1, b"done")])
            assert (await other.expect(wire.FinishedAck)).accepted
        async with Plane(tmp_path) as plane:
            found = await plane.control.attempts(ALICE, name)
            first, lost, done = found.attempts
            assert (first.reason, first.worker) == (Reason.EXIT_CODE, "shell-0")
            assert first.execution is not None
            assert first.execution.stdout.stored_bytes == 5
            assert (lost.attempt, lost.state, lost.reason) == (2, JobState.FAILED, Reason.WORKER_LOST)
            assert (lost.worker, lost.execution) == ("shell-0", None)
            assert lost.started_ms is not None
            assert lost.finished_ms is not None
            assert lost.started_ms <= lost.finished_ms
            assert (done.attempt, done.state, done.worker) == (3, JobState.COMPLETED, "shell-0")
            assert not found.logs_gone
            # Each has its own output and result
            assert await read(plane, name, attempt="all") == b"12345lostdone"
            assert await read(plane, name, attempt=Attempt(2)) == b"lost"
            result = await plane.control.result(ALICE, name, Attempt(2))
            assert (result.reason, result.stdout.text, result.execution) == (Reason.WORKER_LOST, "lost", None)
            with pytest.raises(Exception, match="belongs to uid"):
                await plane.control.attempts(BOB, name)

    asyncio.run(run())
