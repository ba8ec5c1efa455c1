"""A worker's way to its node with every break that a connection can have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from jobs.client.failures import ConnectionFailed
from jobs.errors import BlobUnavailable, InternalError, PayloadTooLarge, Unavailable
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    BlobAdded,
    BlobDone,
    BlobExport,
    BlobGc,
    BlobResult,
    OperationLine,
)
from jobs.workers import perform, transfers
from jobs.workers.blob.work import Work
from jobs.workers.places import Places
from tests.support.scriptednode import Report, ScriptedNode, cut, failed, hangs_up, problem, says, tells

HASH = "ab" * 32
JOB = JobId("01890a5d-ac96-774b-bcce-b302099a8057")
DONE = BlobDone(result=BlobResult(operation="gc", hash=None, bytes=1, blobs=1, peers=[], seconds=0.5))
ADDED = BlobAdded(hash=HASH, size_bytes=3, kind="raw", created=True, nodes=["n1"], tag=None)
_encode = msgspec.json.Encoder().encode


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between tries are those of a client; their length is not what is tried here."""

    async def no_pause(self: object, error: Exception) -> bool:
        return isinstance(error, ConnectionFailed | Unavailable) and not isinstance(error, BlobUnavailable)

    monkeypatch.setattr(transfers.Persistence, "may_help", no_pause)


def made(node: ScriptedNode, directory: Path) -> tuple[Work, Report]:
    report = Report()
    return Work(Places([directory]), node.api, report, JOB), report


def test_what_an_operation_says_is_told_once_however_often_it_was_broken_off(tmp_path: Path) -> None:
    whole = tells(OperationLine(text="1"), b"\n", OperationLine(text="2"), DONE)

    async def scenario() -> None:
        stopped = tells(OperationLine(text="1"), failed("unavailable"))
        async with ScriptedNode(tmp_path / "s", hangs_up, cut, stopped, whole) as node:
            task, report = made(node, tmp_path)
            assert await task.carry_out(BlobGc()) == DONE.result
            assert report.data == b"1\n2\n"
            assert len(node.heads) == 4
            assert all(b"Jobs-Act-For: 1001\r\n" in head for head in node.heads)

    run(scenario)


def test_an_operation_that_is_broken_off_again_and_again_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", tells(OperationLine(text="1"), failed("unavailable"))) as node:
            task, report = made(node, tmp_path)
            with pytest.raises(Unavailable):
                await task.carry_out(BlobGc())
            assert len(node.heads) == perform.MAX_RESTARTS + 1
            assert report.data == b"1\n", "what it said last is told"

    run(scenario)


def test_an_endless_operation_outlives_any_number_of_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = perform.MAX_RESTARTS + 3
    broken = [tells(OperationLine(text="1"), failed("unavailable")) for _ in range(count)]

    async def asked(*, endless: bool) -> int:
        async with ScriptedNode(tmp_path / "s", *broken, tells(DONE)) as node:
            with suppress(Unavailable):
                await perform.perform(node.api, "/v1/blobs:perform", JOB, BlobGc(), BlobDone, Report(), endless=endless)
            return len(node.heads)

    async def scenario() -> None:
        assert await asked(endless=True) == perform.MAX_RESTARTS + 1, "it broke them"
        monkeypatch.setattr(perform, "STEADY_S", -1.0)
        assert await asked(endless=True) == count + 1
        assert await asked(endless=False) == perform.MAX_RESTARTS + 1

    run(scenario)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ((failed("blob_unavailable"),), BlobUnavailable),
        ((b"no event\n",), InternalError),
        ((b'{"event": "unknown"}\n',), InternalError),
        ((OperationLine(text="and no end"),), InternalError),
    ],
)
def test_what_does_not_pass_ends_an_operation_at_once(
    tmp_path: Path, events: tuple[msgspec.Struct | bytes, ...], error: type[Exception]
) -> None:
    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", tells(*events)) as node:
            with pytest.raises(error):
                await made(node, tmp_path)[0].carry_out(BlobGc())
            assert len(node.heads) == 1

    run(scenario)


def test_more_than_an_operation_may_say_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "MAX_LINES_BYTES", 8)

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", tells(*(OperationLine(text="abc") for _ in range(5)), DONE)) as node:
            task, report = made(node, tmp_path)
            await task.carry_out(BlobGc())
            assert (report.data, report.dropped) == (b"abc\nabc\n", 12)

    run(scenario)


def test_a_download_goes_on_where_it_was(tmp_path: Path) -> None:
    view = (
        b'{"hash":"%b","size_bytes":10,"kind":"raw","created_ms":0,"touched_ms":0,"replicas":1,"nodes":[],"owners":[],'
        b'"references":[]}'
    ) % HASH.encode()

    async def scenario() -> None:
        answers = (
            says(200, view),
            says(200, b"0123", length=10),
            hangs_up,
            says(206, b"456", length=6, headers="Content-Range: bytes 4-9/10\r\n"),
            says(206, b"789", headers="Content-Range: bytes 7-9/10\r\n"),
        )
        async with ScriptedNode(tmp_path / "s", *answers) as node:
            task, _ = made(node, tmp_path)
            result = await task.carry_out(BlobExport(hash=HASH, file=f"{tmp_path}/out"))
            assert result.bytes == 10
            assert (tmp_path / "out").read_bytes() == b"0123456789"
            ranges = [line for head in node.heads for line in head.split(b"\r\n") if line.startswith(b"Range")]
            assert ranges == [b"Range: bytes=4-", b"Range: bytes=4-", b"Range: bytes=7-"]

    run(scenario)


def test_an_upload_is_told_why_it_is_refused_before_it_is_all_sent(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal sent
        while True:
            yield bytes(1 << 16)
            sent += 1 << 16

    async def scenario() -> None:
        refused = says(413, _encode(problem("payload_too_large", 413)))
        async with ScriptedNode(tmp_path / "s", refused) as node:
            with pytest.raises(PayloadTooLarge, match="it is payload_too_large"):
                await node.api.upload("/v1/blobs", BlobAdded, {}, endless())
        before = sent
        await asyncio.sleep(0)
        assert sent == before, "nothing more is read"

    run(scenario)


def test_an_upload_whose_content_cannot_be_read_is_broken_off(tmp_path: Path) -> None:
    class Unreadable(Exception):
        pass

    received: list[bytes] = []

    async def breaks() -> AsyncGenerator[bytes]:
        yield b"abc"
        raise Unreadable

    async def takes_all(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", takes_all) as node:
            with pytest.raises(Unreadable):
                await node.api.upload("/v1/blobs", BlobAdded, {}, breaks())
            while not received:
                await asyncio.sleep(0.01)
        assert not received[0].endswith(b"0\r\n\r\n"), "nobody takes it for whole"

    run(scenario)


def test_an_upload_is_sent_whole_and_in_chunks(tmp_path: Path) -> None:
    async def content() -> AsyncGenerator[bytes]:
        for piece in (b"a", b"", b"bc"):
            yield piece

    async def takes(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        await says(201, _encode(ADDED))(head, reader, writer)

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", takes) as node:
            assert await node.api.upload("/v1/blobs", BlobAdded, {"tag": "a/b", "replicas": None}, content()) == ADDED
            assert node.heads[0].startswith(b"POST /v1/blobs?tag=a%2Fb HTTP/1.1\r\n")

    run(scenario)
