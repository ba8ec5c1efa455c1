"""Large output becomes blobs once its attempt has ended, and nobody who reads it sees a difference."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from jobs import keys, records
from jobs.control.blobs import BlobConfig
from jobs.control.output import KEPT_BYTES
from jobs.errors import LogsGone
from jobs.jobs import INLINE_BYTES
from jobs.protocol import wire
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import BlobCollect, Reason, Retry, Stream
from jobs.records import LogChunk
from jobs.service import LogPosition, LogsWanted
from jobs.store import prefix_end
from jobs.testing import EmbeddedNode
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, Plane, shell
from tests.support.waiting import until

Segments = list[tuple[int, bytes]]


def chunks_of(chance: random.Random, total_bytes: int) -> list[Segments]:
    """Return output in chunks of every size, of both streams, with lines that end or do not."""
    chunks, size = list[Segments](), 0
    while size < total_bytes:
        segments = []
        for _ in range(chance.choice((1, 1, 2, 5))):
            line = chance.randbytes(chance.choice((1, 3, 100, 5_000))).hex().encode()
            segments.append((chance.choice((1, 1, 1, 2)), line + b"\n" * chance.choice((0, 1, 1))))
        chunks.append(segments)
        size += sum(len(data) for _, data in segments)
    return chunks


class Writer:
    """A worker whose job writes what it is told."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._worker = WorkerPeer()

    async def start(self, attempts: int = 1) -> JobId:
        await self._worker.register(self._plane.worker_socket)
        retry = Retry(max_attempts=attempts, backoff="none")
        (made,) = await self._plane.control.submit(ALICE, [shell(retry=retry)])
        self._item = await self._worker.assigned()
        return made.job.id

    async def write(self, chunks: list[Segments], *, again: bool = False) -> None:
        """Write all of this, and end: to be tried again, or for good."""
        for seq, segments in enumerate(chunks):
            self._worker.output(self._item, seq, *segments)
            await self._worker.expect(wire.OutputAck)
        reason = Reason.EXIT_CODE if again else None
        self._worker.finish(self._item, reason=reason, exit_code=1 if again else 0, seq=len(chunks), segments=[])
        assert (await self._worker.expect(wire.FinishedAck)).accepted
        if again:
            self._item = await self._worker.assigned()


async def moved(plane: Plane, job: JobId) -> None:
    """Return once nothing of the job's output is to be moved."""
    async with asyncio.timeout(60):
        with plane.site.waiter(keys.output_to_move(job)) as waiter:
            while plane.store.get(keys.output_to_move(job)) is not None:
                await waiter.wait(None)


async def pieces(plane: Plane, job: JobId, **wanted: object) -> list[tuple[int, int, Stream, bytes]]:
    async with asyncio.timeout(60):
        found = plane.control.logs(ALICE, job, LogsWanted(**wanted))  # type: ignore[arg-type]
        return [(piece.attempt, piece.seq, piece.stream, piece.data) async for piece in found]


def kept_bytes(plane: Plane, job: JobId, attempt: int = 1) -> int:
    prefix = keys.log_prefix(job, Attempt(attempt))
    rows, more = plane.store.range(prefix, prefix_end(prefix), limit=10_000, max_bytes=64 << 20)
    assert not more
    return sum(len(data) for row in rows for _, data in records.decode(LogChunk, row[1]).segments)


WAYS: list[dict[str, object]] = [
    {},
    {"streams": (Stream.STDOUT,)},
    {"streams": (Stream.STDERR,)},
    {"attempt": "all"},
    {"follow": True},
    *({"tail_lines": lines} for lines in (0, 1, 7, 200)),
    *({"tail_bytes": size} for size in (1, 1_000, 100_000)),
    {"tail_lines": 30, "streams": (Stream.STDERR,)},
]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_who_reads_sees_a_difference(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    total = chance.choice((100 << 10, 3 << 20))

    async def run() -> None:
        async with Plane(tmp_path) as plane:
            writer = Writer(plane)
            job = await writer.start(2)
            await writer.write(chunks_of(chance, 200 << 10), again=True)
            await writer.write(chunks_of(chance, total))
            before = [await pieces(plane, job, **way) for way in WAYS]
            result = await plane.control.result(ALICE, job, None)
            places = [piece[1] for piece in before[0]]
            assert kept_bytes(plane, job, 2) > INLINE_BYTES
            assert plane.store.get(keys.output_to_move(job)) is not None
        # The next life of the node takes it up
        async with Plane(tmp_path, with_blobs=True) as plane:
            await moved(plane, job)
            assert [await pieces(plane, job, **way) for way in WAYS] == before
            for seq in chance.sample(places, 5):
                rest = await pieces(plane, job, after=LogPosition(Attempt(2), seq))
                assert rest[1:] == [piece for piece in before[0][1:] if piece[1] > seq]
            after = await plane.control.result(ALICE, job, None)
            assert (after.stdout, after.stderr) == (result.stdout, result.stderr)
            # What was written is a blob by itself, and its owner's
            assert after.execution is not None
            whole = b"".join(data for *_, stream, data in before[0] if stream is Stream.STDOUT)
            blob = after.execution.stdout.blob
            assert blob is not None
            assert await plane.output.read(blob, 0, len(whole) + 1) == whole
            view = await plane.control.blobs.view(ALICE, blob)
            assert [(reference.kind, reference.name) for reference in view.references] == [("log", job)]
            # And the store holds little of it
            assert kept_bytes(plane, job, 2) < sum(KEPT_BYTES) + 20_002

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(6))
def test_a_node_that_ends_in_the_middle_goes_on(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def run() -> None:
        async with Plane(tmp_path) as plane:
            writer = Writer(plane)
            job = await writer.start()
            await writer.write(chunks_of(chance, 4 << 20))
            before = await pieces(plane, job)
        for _ in range(4):
            async with Plane(tmp_path, with_blobs=True) as plane:
                await asyncio.sleep(chance.random() * 0.2)
                assert await pieces(plane, job) == before
        async with Plane(tmp_path, with_blobs=True) as plane:
            await moved(plane, job)
            assert await pieces(plane, job) == before

    asyncio.run(run())


def test_a_follower_reads_on_where_it_was_while_the_output_moves(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, with_blobs=True) as plane:
            writer = Writer(plane)
            job = await writer.start()
            chunks = chunks_of(random.Random(1), 6 << 20)
            found, first = list[bytes](), asyncio.Event()

            async def follow() -> None:
                async for piece in plane.control.logs(ALICE, job, LogsWanted(follow=True)):
                    found.append(piece.data)
                    first.set()
                    if len(found) == 100:
                        await moved_at_last.wait()

            moved_at_last = asyncio.Event()
            follower = asyncio.create_task(follow())
            await writer.write(chunks)
            await moved(plane, job)
            assert len(found) == 100
            moved_at_last.set()
            await follower
            assert b"".join(found) == b"".join(data for segments in chunks for _, data in segments)

    asyncio.run(run())


def test_what_is_small_stays_and_makes_no_blob(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, with_blobs=True) as plane:
            writer = Writer(plane)
            job = await writer.start()
            # More than 64 KiB in all, but not of one stream
            await writer.write([[(1, b"x" * (60 << 10))], [(2, b"y" * (60 << 10))]])
            await moved(plane, job)
            assert (await plane.control.blobs.page(ADMIN, owner=None, limit=10, cursor=None)).blobs == []
            result = await plane.control.result(ALICE, job, None)
            assert result.execution is not None
            assert result.execution.stdout.blob is None
            assert kept_bytes(plane, job) == 120 << 10

    asyncio.run(run())


def test_output_that_its_owner_has_no_room_for_stays_in_the_store(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, with_blobs=True, blobs=BlobConfig(max_bytes_per_owner=100 << 10)) as plane:
            writer = Writer(plane)
            job = await writer.start()
            chunks = chunks_of(random.Random(1), 300 << 10)
            await writer.write(chunks)
            await moved(plane, job)
            found = await pieces(plane, job)
            assert b"".join(piece[3] for piece in found) == b"".join(data for part in chunks for _, data in part)
            assert kept_bytes(plane, job) >= 300 << 10

    asyncio.run(run())


def test_the_blobs_go_with_the_output(tmp_path: Path) -> None:
    async def run() -> None:
        async with Plane(tmp_path, with_blobs=True, blobs=BlobConfig(grace_ms=0)) as plane:
            writer = Writer(plane)
            job = await writer.start()
            await writer.write(chunks_of(random.Random(1), 300 << 10))
            await moved(plane, job)
            kept = await plane.control.blobs.collect(ADMIN, BlobCollect())
            assert kept.collected == []
            assert kept.kept == {"log": 3}
            await plane.control._retention.removal.remove_output(job)
            gone = await plane.control.blobs.collect(ADMIN, BlobCollect())
            assert [one.outcome for one in gone.collected] == ["condemned"] * 3
            with pytest.raises(LogsGone):
                await pieces(plane, job)
            result = await plane.control.result(ALICE, job, None)
            assert result.logs_gone
            assert result.execution is not None
            assert result.execution.stdout.blob is None

    asyncio.run(run())


def test_large_output_of_a_real_node_is_read_across_a_kill_and_as_a_blob(tmp_path: Path) -> None:
    expected = b"".join(b"%d\n" % number for number in range(1, 300_001))
    with EmbeddedNode(tmp_path) as node, node.client() as client:
        made = client.shell(["sh", "-c", "seq 300000; seq 100000 >&2"])
        client.wait(made.job.id)
        node.kill()
        node.start()

        def blob() -> str | None:
            execution = client.result(made.job.id).execution
            return None if execution is None else execution.stdout.blob

        until(lambda: blob() is not None)
        wanted = blob()
        assert wanted is not None
        assert client.blobs.get(wanted) == expected
        pieces = list(client.logs(made.job.id))
        assert b"".join(bytes(piece.data) for piece in pieces if piece.stream is Stream.STDOUT) == expected
        assert list(client.logs(made.job.id, tail_lines=1, streams=[Stream.STDOUT]))[-1].data.text == "300000\n"
