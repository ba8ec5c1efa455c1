"""The blobs that a worker shows its jobs, against a node that says what the test tells it to."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import msgspec
import pytest

from jobs.config import ShellWorker
from jobs.errors import BlobUnavailable
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import InputFile, Reason, ShellPayload
from jobs.protocol.wire import Assignment
from jobs.workers import inputs, transfers
from jobs.workers.errands import Errands
from jobs.workers.executor import Ended, Event, Stop
from jobs.workers.inputs import Held, InputCache, InputError
from jobs.workers.nodeapi import NodeApi
from jobs.workers.sandbox import Spawn

STEP_S = 20.0
A, B, C, TREE = (name * 64 for name in "abcd")
Scenario = Callable[["Scene"], Awaitable[None]]


class Scene:
    """A cache and a node that has some blobs."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir()
        self.cache = InputCache(directory, max_bytes)
        self.socket = directory.parent / "api.sock"
        self.blobs: dict[str, bytes] = {A: b"A" * 1000, B: b"B" * 1000, C: b"C" * 1000}
        self.trees: dict[str, dict[str, bytes]] = {}
        self.open = asyncio.Event()
        """Content is sent while this is set."""
        self.open.set()
        self.breaks: list[int] = []
        """How many bytes each of the next answers sends before the connection is lost."""
        self.asked: list[str] = []
        self.barred = 0
        """This user may read nothing any more."""

    async def hold(self, *blobs: str, owner: int = 1000, **paths: str) -> Held:
        wanted = {f"in{number}": blob for number, blob in enumerate(blobs)} | paths
        node = NodeApi(self.socket, owner, admin=False)
        async with asyncio.timeout(STEP_S):
            return await self.cache.hold(node, wanted, lambda size_bytes: None)

    def holding(self, *blobs: str, owner: int = 1000) -> asyncio.Task[Held]:
        return asyncio.ensure_future(self.hold(*blobs, owner=owner))

    def here(self) -> dict[str, bytes]:
        """Every file of the cache, drafts too."""
        found = self.cache.directory.rglob("*")
        return {str(path.relative_to(self.cache.directory)): path.read_bytes() for path in found if path.is_file()}

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(STEP_S):
            while not holds():
                await asyncio.sleep(0.01)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        found = re.match(r"GET /v1/blobs/(\w+)(/files)?(?:\?path=(\S+))? ", head)
        assert found is not None, head
        blob, listing, name = found.groups()
        part = re.search(r"(?i)range: bytes=(\d+)-(\d*)", head)
        if f"Jobs-Act-For: {self.barred}\r\n" in head:
            await self._send(writer, blob, None, None)
        elif listing:
            files = [{"name": name, "hash": format(number, "064x")} for number, name in enumerate(self.trees[blob])]
            body = msgspec.json.encode({"hash": blob, "files": files})
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        else:
            content = (
                self.trees[blob][unquote(name)] if name else self.blobs.get(blob, b"x" if blob in self.trees else None)
            )
            await self._send(writer, blob, content, part)
        await writer.drain()
        writer.close()

    async def _send(
        self, writer: asyncio.StreamWriter, blob: str, content: bytes | None, part: re.Match[str] | None
    ) -> None:
        kind = b"collection" if blob in self.trees else b"raw"
        if content is None:
            body = msgspec.json.encode(
                {"type": "urn:jobs:error:not_found", "title": "t", "status": 404, "code": "not_found", "detail": "no"}
            )
            writer.write(b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        start, end = (int(part[1]), int(part[2] or len(content) - 1) + 1) if part else (0, len(content))
        if start >= len(content) > 0 or (part and not content):
            body = msgspec.json.encode(
                {"type": "t", "title": "t", "status": 416, "code": "range_not_satisfiable", "detail": "no"}
            )
            writer.write(b"HTTP/1.1 416 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        is_look = part is not None and part[2] == "0"
        ranged = b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, len(content)) if part else b""
        writer.write(
            b"HTTP/1.1 206 Part\r\nJobs-Blob-Kind: %b\r\n%bContent-Length: %d\r\n\r\n" % (kind, ranged, end - start)
        )
        if not is_look:
            self.asked.append(f"{blob[0]}{start}")
            await self.open.wait()
            if self.breaks:
                end = min(end, start + self.breaks.pop(0))
        writer.write(content[start:end])


def play(tmp_path: Path, scenario: Scenario, max_bytes: int = 2_500) -> None:
    @asynccontextmanager
    async def served(scene: Scene) -> AsyncIterator[None]:
        async with await asyncio.start_unix_server(scene.answer, str(scene.socket)):
            yield

    async def inner() -> None:
        scene = Scene(tmp_path / "shown", max_bytes)
        async with served(scene):
            await scenario(scene)

    asyncio.run(inner())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of the pauses between tries is not what is tried here."""
    real = transfers.Persistence.may_help

    async def at_once(self: transfers.Persistence, error: BaseException) -> bool:
        task = asyncio.ensure_future(real(self, error))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        if task.done():
            return task.result()
        task.cancel()
        return True

    monkeypatch.setattr(transfers.Persistence, "may_help", at_once)


def test_a_blob_is_fetched_once_and_stays_for_the_next(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.hold(A)
        assert first.names == {"in0": A}
        first.release()
        (await scene.hold(A, again=A)).release()
        assert (scene.asked, scene.here()) == (["a0"], {A: b"A" * 1000})

    play(tmp_path, scenario)


def test_a_fetch_goes_on_where_its_connection_was_lost(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.breaks = [0, 1, 500, 498]
        (await scene.hold(A)).release()
        assert (scene.asked, scene.here()) == (["a0", "a0", "a1", "a501", "a999"], {A: b"A" * 1000})

    play(tmp_path, scenario)


def test_a_blob_that_changes_its_size_meanwhile_is_refused(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.open.clear()
        holding = scene.holding(A)
        await scene.until(lambda: scene.asked == ["a0"])
        scene.breaks = [500]
        scene.blobs[A] = b"other" * 300
        scene.open.set()
        with pytest.raises(InputError, match=r"input in0, blob a+: blob a+ has 1500 bytes; it had 1000"):
            await holding
        await scene.until(lambda: scene.here() == {})

    play(tmp_path, scenario)


def test_what_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        with pytest.raises(InputError, match=r"input data/x, blob e+: no"):
            await scene.hold(A, **{"data/x": "e" * 64})
        assert scene.here() == {}
        (await scene.hold(A)).release()

    play(tmp_path, scenario)


def test_a_collection_is_a_directory_and_an_empty_file_a_file(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.trees[TREE] = {"one": b"1", "deep/two": b"22", "none": b""}
        scene.blobs["f" * 64] = b""
        held = await scene.hold(TREE, "f" * 64)
        assert scene.here() == {f"{TREE}/one": b"1", f"{TREE}/deep/two": b"22", f"{TREE}/none": b"", "f" * 64: b""}
        for path in scene.cache.directory.rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o555)
        held.release()

    play(tmp_path, scenario)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../x"])
def test_a_collection_never_leaves_its_directory(tmp_path: Path, name: str) -> None:
    """Given a node that lies; an honest one takes in no such names."""

    async def scenario(scene: Scene) -> None:
        scene.trees[TREE] = {name: b"x"}
        with pytest.raises(InputError):
            await scene.hold(TREE)
        await scene.until(lambda: not list(scene.cache.directory.iterdir()))
        assert {path.name for path in tmp_path.iterdir()} == {"shown", "api.sock"}

    play(tmp_path, scenario)


def test_one_who_gives_up_does_not_take_it_from_another(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.open.clear()
        one, two = scene.holding(A), scene.holding(A)
        await scene.until(lambda: scene.asked == ["a0"])
        one.cancel()
        await asyncio.wait([one])
        scene.open.set()
        (await two).release()
        assert (scene.asked, scene.here()) == (["a0"], {A: b"A" * 1000})

    play(tmp_path, scenario)


def test_what_nobody_waits_for_any_more_is_dropped_and_can_be_had_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.open.clear()
        one = scene.holding(A)
        await scene.until(lambda: scene.asked == ["a0"])
        one.cancel()
        await asyncio.wait([one])
        again = scene.holding(A)
        scene.open.set()
        (await again).release()
        await scene.until(lambda: scene.here() == {A: b"A" * 1000})

    play(tmp_path, scenario)


def test_room_is_made_by_what_was_used_longest_ago_and_never_by_what_is_held(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        held = await scene.hold(A)
        (await scene.hold(B)).release()
        (await scene.hold(C)).release()
        await scene.until(lambda: set(scene.here()) == {A, C})
        held.release()
        (await scene.hold(C)).release()
        (await scene.hold(B)).release()
        await scene.until(lambda: set(scene.here()) == {B, C})

    play(tmp_path, scenario)


def test_jobs_wait_for_room_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.hold(A, B)
        large, small = scene.holding(B, C), scene.holding(C)
        await asyncio.sleep(0.05)
        assert not large.done()
        assert not small.done()
        first.release()
        (await large).release()
        (await small).release()

    play(tmp_path, scenario)


def test_what_was_on_its_way_for_another_may_be_gone_when_there_is_room(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.hold(B)
        scene.open.clear()
        other = scene.holding(A)
        await scene.until(lambda: scene.asked == ["b0", "a0"])
        waiting = scene.holding(A, C)
        await asyncio.sleep(0.05)
        other.cancel()
        await asyncio.wait([other])
        scene.open.set()
        first.release()
        (await waiting).release()
        await scene.until(lambda: set(scene.here()) == {A, C})

    play(tmp_path, scenario)


def test_one_who_may_read_it_has_it_though_another_for_whom_it_came_may_not_any_more(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.open.clear()
        one = scene.holding(A, owner=1)
        await scene.until(lambda: scene.asked == ["a0"])
        two = scene.holding(A, owner=2)
        await asyncio.sleep(0.05)
        scene.breaks, scene.barred = [500], 1
        scene.open.set()
        with pytest.raises(InputError):
            await one
        (await two).release()
        assert scene.here() == {A: b"A" * 1000}

    play(tmp_path, scenario)


def test_a_collection_that_is_given_up_at_its_very_end_can_be_had_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_go, real = threading.Event(), threading.Event(), inputs._open_up

    def open_up(path: Path) -> None:
        real(path)
        opening.set()
        may_go.wait(STEP_S)

    monkeypatch.setattr(inputs, "_open_up", open_up)

    async def scenario(scene: Scene) -> None:
        scene.trees[TREE] = {"one": b"1"}
        holding = scene.holding(TREE)
        await scene.until(opening.is_set)
        holding.cancel()
        await asyncio.wait([holding])
        again = scene.holding(TREE)
        may_go.set()
        (await again).release()
        await scene.until(lambda: scene.here() == {f"{TREE}/one": b"1"})

    play(tmp_path, scenario)


def test_two_jobs_that_need_all_the_room_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async def use(*blobs: str) -> None:
            (await scene.hold(*blobs)).release()

        async with asyncio.timeout(STEP_S):
            await asyncio.gather(*(use(*blobs) for blobs in ((A, B), (B, C), (C, A)) * 10))
        assert sum(map(len, scene.here().values())) <= 2_500

    play(tmp_path, scenario)


def test_more_than_there_is_room_for_at_all_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        with pytest.raises(InputError, match="the inputs have 3000 bytes; this worker has room for 2500"):
            await scene.hold(A, B, C)
        assert (scene.asked, scene.here()) == ([], {})

    play(tmp_path, scenario)


def test_a_node_that_has_nobody_who_can_give_it_is_not_asked_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        tries = 0

        async def unavailable() -> None:
            nonlocal tries
            tries += 1
            raise BlobUnavailable("nobody has it")

        with pytest.raises(BlobUnavailable):
            await transfers.again(unavailable)
        assert tries == 1

    play(tmp_path, scenario)


def test_a_file_that_was_opened_for_one_who_has_given_up_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, opened = threading.Event(), list[BinaryIO]()

    def create(path: Path) -> BinaryIO:
        opened.append(open(path, "xb"))  # noqa: SIM115 - its owner closes it
        may_go.wait(STEP_S)
        return opened[0]

    monkeypatch.setattr(inputs, "_create", create)

    async def scenario(scene: Scene) -> None:
        holding = scene.holding(A)
        await scene.until(lambda: bool(opened))
        holding.cancel()
        await asyncio.wait([holding])
        may_go.set()
        await scene.until(lambda: opened[0].closed and scene.here() == {})

    play(tmp_path, scenario)


@pytest.mark.parametrize("started", [False, True])
def test_an_attempt_that_is_stopped_before_it_runs_ends_exactly_once(tmp_path: Path, started: bool) -> None:
    """Given a stop that comes with the start, and one that comes when the blobs are under way."""

    async def scenario(scene: Scene) -> None:
        scene.open.clear()
        events: list[Event] = []
        errands = Errands(
            ShellWorker(slots=1), scene.cache.directory, None, scene.socket, sandbox="strict",
            spawn=lambda spawn: pytest.fail("it was started"), on_events=events.extend,
        )  # fmt: skip
        job, attempt = JobId("j"), Attempt(1)
        payload = ShellPayload(argv=["true"], files={"in": InputFile(blob=A)})
        assignment = Assignment(job=job, attempt=attempt, payload=b"", timeout_s=None, owner=1000)
        errands.begin(assignment, payload, Spawn(job=job, attempt=attempt, argv=["true"]))
        if started:
            await scene.until(lambda: scene.asked == ["a0"])
        for _ in range(2):
            assert errands.stop(Stop(job=job, attempt=attempt, reason=Reason.CANCELLED, now=True))
        await scene.until(lambda: any(isinstance(event, Ended) for event in events))
        scene.open.set()
        (ended,) = [event for event in events if isinstance(event, Ended)]
        assert (ended.outcome.reason, ended.outcome.message) == (Reason.CANCELLED, "ended before it was started")
        assert not errands.stop(Stop(job=job, attempt=attempt, reason=Reason.CANCELLED, now=True))
        await scene.until(lambda: scene.here() == {})
        errands.close()

    play(tmp_path, scenario)
