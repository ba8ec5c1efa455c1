"""Both clients' blobs against a real node: content of any size, in little memory, while the node comes and goes."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, ConnectionFailed
from jobs.client.failures import SourceFailed, TargetFailed
from jobs.errors import InvalidRequest, NotFound, PayloadTooLarge, RangeNotSatisfiable, StorageFull
from jobs.testing import EmbeddedNode
from tests.support.blobpeer import content
from tests.support.waiting import until

MIB = 1 << 20
NOWHERE = "0" * 64


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("blobs") / "node", types=()) as made:
        yield made


def drafts(node: EmbeddedNode) -> list[str]:
    """Return what additions under way have on the disk."""
    return os.listdir(node.directory / "data/blobs/incoming")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def plant(directory: Path) -> dict[str, bytes]:
    """Make a directory of files."""
    files = {"a": b"", "b/c": b"c" * 70_000, "b/d/é f": content(3 * MIB, 1), "same": b"c" * 70_000}
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return files


def pipe_of(data: bytes) -> io.BufferedReader:
    """Return the end of a pipe that a thread writes to."""
    reader, writer = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), open(writer, "wb") as file:
            file.write(data)

    threading.Thread(target=write, daemon=True).start()
    return open(reader, "rb")


def test_content_goes_and_comes_from_wherever_it_is(node: EmbeddedNode, tmp_path: Path) -> None:
    data = content(2 * MIB + 5, 2)
    (tmp_path / "file").write_bytes(data)
    with node.client() as client, (tmp_path / "file").open("rb") as file, pipe_of(data) as pipe:
        added = client.blobs.put(data, tag="content")
        assert (added.created, added.size_bytes, added.tag) == (True, len(data), "content")
        for source in (tmp_path / "file", file, pipe, io.BytesIO(data)):
            seen: list[tuple[int, int | None]] = []
            again = client.blobs.put(source, on_bytes=lambda done, total: seen.append((done, total)))  # noqa: B023
            assert (again.hash, again.created) == (added.hash, False)
            assert seen[-1] == (len(data), None if source is pipe else len(data))
        file.seek(10)
        assert client.blobs.get(client.blobs.put(file).hash) == data[10:]
        assert client.blobs.get(client.blobs.put(b"").hash) == b""
        assert client.blobs.get(added.hash) == data
        assert client.blobs.get(added.hash, start=5, end=MIB + 7) == data[5 : MIB + 7]
        assert client.blobs.get(added.hash, start=MIB) == data[MIB:]
        assert client.blobs.get(added.hash, start=7, end=7) == b""
        assert client.blobs.save(added.hash, tmp_path / "saved") == len(data)
        assert (tmp_path / "saved").read_bytes() == data
        with pytest.raises(RangeNotSatisfiable):
            client.blobs.get(added.hash, start=len(data))
        with pytest.raises(NotFound):
            client.blobs.get(NOWHERE)
        with pytest.raises(InvalidRequest, match="has the hash"):
            client.blobs.put(data, expected=NOWHERE)
        with pytest.raises(TypeError):
            client.blobs.put("text")  # type: ignore[arg-type]


def test_the_asynchronous_client_does_the_same(node: EmbeddedNode, tmp_path: Path) -> None:
    data = content(2 * MIB + 5, 3)
    (tmp_path / "file").write_bytes(data)
    files = plant(tmp_path / "tree")

    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as client:
            with pipe_of(data) as pipe:
                for source in (data, tmp_path / "file", io.BytesIO(data), pipe):
                    added = await client.blobs.put(source)
                    assert added.size_bytes == len(data)
            assert await client.blobs.get(added.hash, start=5, end=MIB + 7) == data[5 : MIB + 7]
            assert await client.blobs.save(added.hash, tmp_path / "saved") == len(data)
            assert (tmp_path / "saved").read_bytes() == data
            with pytest.raises(InvalidRequest, match="has the hash"):
                await client.blobs.put(data, expected=NOWHERE)
            with pytest.raises(SourceFailed, match="No such file"):
                await client.blobs.put(tmp_path / "absent")
            with pytest.raises(SourceFailed, match="changed while"):
                await client.blobs.put(Shrinking(tmp_path / "shrinking"))
            made = await client.blobs.put_directory(tmp_path / "tree")
            assert set(await client.blobs.files(made.hash)) == set(files)
            await client.blobs.save_directory(made.hash, tmp_path / "copy")
            assert tree(tmp_path / "copy") == files
            assert await client.blobs.get(made.hash, path="b/c") == files["b/c"]

    asyncio.run(scenario())


class Shrinking(io.FileIO):
    """A file that somebody cuts short while it is read."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(3 * MIB))
        super().__init__(path, "r+")

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self.truncate(MIB)
        return piece


def test_a_file_that_changes_is_not_taken(node: EmbeddedNode, tmp_path: Path) -> None:
    with node.client() as client:
        with pytest.raises(SourceFailed, match="changed while"):
            client.blobs.put(Shrinking(tmp_path / "shrinking"))
        with pytest.raises(SourceFailed, match="Is a directory"):
            client.blobs.put(tmp_path)
        until(lambda: drafts(node) == [])
        # What tells no length, such as these, is taken as it is.
        assert client.blobs.put(Path("/proc/self/status")).size_bytes > 0


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_content(node: EmbeddedNode, tmp_path: Path) -> None:
    """300 MiB up and down: node and client stay small, since neither ever has more than a few pieces."""
    source = tmp_path / "source"
    chance = random.Random(9)
    block = chance.randbytes(MIB)
    with source.open("wb") as file:
        for number in range(300):
            file.write(number.to_bytes(8, "big") + block[8:])
    with node.client() as client:
        client.blobs.get(client.blobs.put(block).hash)
        before = resident_bytes(node.pid)
        own_before = resident_bytes(os.getpid())
        added = client.blobs.put(source)
        assert added.size_bytes == 300 * MIB
        assert client.blobs.save(added.hash, tmp_path / "target") == 300 * MIB
        assert peak_bytes(node.pid) - before < 48 * MIB
        assert resident_bytes(os.getpid()) - own_before < 48 * MIB
        assert subprocess.run(["cmp", source, tmp_path / "target"], check=False).returncode == 0

    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as client:
            assert not (await client.blobs.put(source)).created
            assert await client.blobs.save(added.hash, tmp_path / "target2") == 300 * MIB

    asyncio.run(scenario())
    assert peak_bytes(node.pid) - before < 48 * MIB
    assert resident_bytes(os.getpid()) - own_before < 64 * MIB
    assert subprocess.run(["cmp", source, tmp_path / "target2"], check=False).returncode == 0


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_client_that_is_killed_leaves_nothing(node: EmbeddedNode) -> None:
    program = textwrap.dedent("""
        import sys
        from jobs import Client
        class Endless:
            name = "endless"
            def seekable(self): return False
            def read(self, size): return bytes(size)
        Client(sys.argv[1]).blobs.put(Endless(), on_bytes=lambda done, total: print(done, flush=True))
    """)
    kept = {path.name for path in (node.directory / "data/blobs/data").rglob("*")}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(node.socket)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20 * MIB:
            assert process.poll() is None
        assert drafts(node) != []
        process.send_signal(signal.SIGKILL)
    until(lambda: drafts(node) == [])
    assert {path.name for path in (node.directory / "data/blobs/data").rglob("*")} == kept


def once(act: Callable[[], None], after_bytes: int) -> Callable[[int, int | None], None]:
    """Return a progress callback that does something when so much has passed, once."""
    done_already: list[bool] = []

    def on_bytes(done: int, total: int | None) -> None:
        if done >= after_bytes and not done_already:
            done_already.append(True)
            act()

    return on_bytes


def test_content_outlives_a_node_that_is_killed_under_it(tmp_path: Path) -> None:
    """What can be read again is sent again, and what was being read goes on where it was."""
    data = content(24 * MIB, 4)
    (tmp_path / "file").write_bytes(data)
    with EmbeddedNode(tmp_path / "node", types=()) as node, node.client() as client:

        def kill() -> None:
            node.kill()
            node.start()

        added = client.blobs.put(tmp_path / "file", on_bytes=once(kill, 5 * MIB))
        assert drafts(node) == []
        assert client.blobs.get(added.hash, on_bytes=once(kill, 5 * MIB)) == data

        async def scenario() -> None:
            async with AsyncClient(str(node.socket)) as client:
                await client.health()
                again = await client.blobs.put(tmp_path / "file", on_bytes=once(kill, 5 * MIB))
                assert again.hash == added.hash
                assert await client.blobs.get(added.hash, on_bytes=once(kill, 5 * MIB)) == data

        asyncio.run(scenario())
        # What cannot be read again is told.
        with pipe_of(data) as pipe, pytest.raises(ConnectionFailed):
            client.blobs.put(pipe, on_bytes=once(kill, 5 * MIB))


def test_a_refusal_comes_before_the_content_and_in_its_middle(tmp_path: Path) -> None:
    env = {"JOBS_BLOBS__MAX_BLOB_BYTES": "10MiB"}
    with EmbeddedNode(tmp_path / "node", types=(), env=env) as node, node.client() as client:
        sent: list[int] = []
        big = tmp_path / "big"
        with big.open("wb") as file:
            file.truncate(64 * MIB)
        with pytest.raises(PayloadTooLarge, match=str(64 * MIB)):
            client.blobs.put(big, on_bytes=lambda done, total: sent.append(done))
        assert sent == []
        with pipe_of(bytes(64 * MIB)) as pipe, pytest.raises(PayloadTooLarge):
            client.blobs.put(pipe)

        async def scenario() -> None:
            async with AsyncClient(str(node.socket)) as client:
                with pytest.raises(PayloadTooLarge):
                    await client.blobs.put(big, on_bytes=lambda done, total: sent.append(done))
                assert sent == []
                with pipe_of(bytes(64 * MIB)) as pipe, pytest.raises(PayloadTooLarge):
                    await client.blobs.put(pipe)

        asyncio.run(scenario())
        until(lambda: drafts(node) == [])
        assert client.blobs.put(bytes(10 * MIB)).created


def test_a_full_disk_is_told_and_nothing_half_kept(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", types=(), env={"JOBS_BLOBS__MIN_FREE_BYTES": "16TiB"}) as node:
        with node.client() as client, pytest.raises(StorageFull, match="room"):
            client.blobs.put(b"content")
        assert drafts(node) == []
        assert not [path for path in (node.directory / "data/blobs/data").rglob("*") if path.is_file()]


# --- directories ------------------------------------------------------------------------------------------------------


def test_directories_come_back_as_they_were(node: EmbeddedNode, tmp_path: Path) -> None:
    files = plant(tmp_path / "tree")
    seen: list[tuple[int, int | None]] = []
    with node.client() as client:
        made = client.blobs.put_directory(tmp_path / "tree", on_bytes=lambda done, total: seen.append((done, total)))
        assert made.kind == "collection"
        assert seen[-1] == (sum(map(len, files.values())),) * 2
        assert client.blobs.put_directory(tmp_path / "tree").hash == made.hash
        assert client.blobs.save_directory(made.hash, tmp_path / "copy") == sum(map(len, files.values()))
        assert tree(tmp_path / "copy") == files
        (tmp_path / "copy/a").write_bytes(b"other")
        client.blobs.save_directory(made.hash, tmp_path / "copy")
        assert tree(tmp_path / "copy") == files
        (tmp_path / "tree/link").symlink_to("a")
        with pytest.raises(SourceFailed, match="neither a file nor a directory"):
            client.blobs.put_directory(tmp_path / "tree")
        assert client.blobs.put_directory(tmp_path / "tree", skip_others=True).hash == made.hash
        with pytest.raises(InvalidRequest, match="no collection"):
            client.blobs.save_directory(client.blobs.put(b"x").hash, tmp_path / "none")


def test_the_first_file_that_fails_ends_a_directory(node: EmbeddedNode, tmp_path: Path) -> None:
    """And not the last byte of those that are on their way."""
    (tmp_path / "tree").mkdir()
    for number in range(20):
        (tmp_path / f"tree/{number:02}").write_bytes(b"%d" % number)
    with (tmp_path / "tree/00").open("wb") as file:
        file.truncate(1_024 * MIB)
    seen: list[int] = []
    with node.client() as client:

        def on_bytes(done: int, total: int | None) -> None:
            seen.append(done)
            (tmp_path / "tree/19").unlink(missing_ok=True)

        with pytest.raises(SourceFailed, match="19: No such file"):
            client.blobs.put_directory(tmp_path / "tree", on_bytes=on_bytes)
        assert max(seen) < 1_024 * MIB

    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as client:
            seen.clear()
            (tmp_path / "tree/19").write_bytes(b"19")
            with pytest.raises(SourceFailed, match="19: No such file"):
                await client.blobs.put_directory(tmp_path / "tree", on_bytes=on_bytes)
            assert max(seen) < 1_024 * MIB

    asyncio.run(scenario())
    until(lambda: drafts(node) == [])


def test_nothing_is_written_through_a_link(node: EmbeddedNode, tmp_path: Path) -> None:
    plant(tmp_path / "tree")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with node.client() as client:
        made = client.blobs.put_directory(tmp_path / "tree")
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy/b").symlink_to(elsewhere)
        with pytest.raises(TargetFailed, match="no directory"):
            client.blobs.save_directory(made.hash, tmp_path / "copy")
        assert list(elsewhere.iterdir()) == []
        (tmp_path / "copy/b").unlink()
        # A link at a file's own place is replaced, and what it names stays as it is.
        (elsewhere / "kept").write_bytes(b"kept")
        (tmp_path / "copy/a").unlink(missing_ok=True)
        (tmp_path / "copy/a").symlink_to(elsewhere / "kept")
        client.blobs.save_directory(made.hash, tmp_path / "copy")
        assert (elsewhere / "kept").read_bytes() == b"kept"
        assert not (tmp_path / "copy/a").is_symlink()


def test_a_target_has_its_name_only_once_it_is_whole(node: EmbeddedNode, tmp_path: Path) -> None:
    with node.client() as client:
        blob = client.blobs.put(b"content").hash
        with pytest.raises(NotFound):
            client.blobs.save(NOWHERE, tmp_path / "target")
        with pytest.raises(TargetFailed, match="No such file"):
            client.blobs.save(blob, tmp_path / "absent/target")
        (tmp_path / "directory").mkdir()
        with pytest.raises(TargetFailed):
            client.blobs.save(blob, tmp_path / "directory")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["directory"]
        # What is no file is written to, not replaced.
        os.mkfifo(tmp_path / "pipe")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        client.blobs.save(blob, tmp_path / "pipe")
        reader.join(10)
        assert read == [b"content"]
        assert (tmp_path / "pipe").is_fifo()


def test_a_client_is_light_until_it_has_blobs_to_send() -> None:
    program = "import sys, jobs.client.sync; print([name for name in ('asyncio', 'aiohttp') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_threads_share_a_client(node: EmbeddedNode) -> None:
    with Client(str(node.socket)) as client:
        made: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: made.append(client.blobs.put(content(MIB, n)).hash)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(set(made)) == 8
