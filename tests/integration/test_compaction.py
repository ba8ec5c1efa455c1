"""The data file of a store is made compact while a member of a group writes it, and others read it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs._native import Compaction, Store
from jobs.errors import StorageFull, Unavailable
from jobs.store import Compact, Delete, Put, Txn, encode_command
from tests.support import member
from tests.support.disks import small_disk

KEYS = 4_000
LARGE = 20_000
"""So many are not copied at once."""


class Member(member.Member):
    """One with keys that it keeps writing."""

    async def fill(self, count: int = KEYS) -> None:
        for start in range(0, count, 500):
            numbers = range(start, start + 500)
            ops = (Put(b"k%06d" % number, os.urandom(500) * 2) for number in numbers)
            await self.apply(*ops, size_bytes=500_000)

    async def empty(self, count: int = KEYS) -> None:
        await self.apply(*(Delete(b"k%06d" % start, b"k%06d" % (start + 450)) for start in range(0, count, 500)))
        await self.apply(Compact(self.store.revision))
        for _ in range(200):
            await self.apply(Put(b"step", b""), Compact(self.store.revision))

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[list[int]]:
        """Write all the while; the keys that were acknowledged."""
        acknowledged: list[int] = []
        over = False

        async def write(lane: int) -> None:
            number = lane
            while not over:
                await self.apply(Put(b"w%08d" % number, b"%d" % number))
                acknowledged.append(number)
                number += 4

        writers = [asyncio.create_task(write(lane)) for lane in range(4)]
        try:
            yield acknowledged
        finally:
            over = True
            await asyncio.gather(*writers)

    def check(self, acknowledged: list[int]) -> None:
        rows, more = self.store.range(b"w", b"x", limit=1 << 30, max_bytes=1 << 30)
        assert not more
        assert [(key, value) for key, value, *_ in rows] == [
            (b"w%08d" % number, b"%d" % number) for number in sorted(acknowledged)
        ]


def test_a_member_goes_on_writing_while_its_file_is_compacted(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[tuple[int, int]] = []
        sizes: list[tuple[int, int]] = []
        async with Member(tmp_path) as lone:
            # Given a store of which most was deleted
            await lone.fill()
            await lone.empty()
            full, _ = lone.store.file_bytes()
            # When it is compacted as it is written
            async with lone.busy() as acknowledged:
                for _ in range(3):
                    sizes.append(await lone.consensus.compact_file(lambda *copied: told.append(copied)))
            # Then its file is smaller, and nothing is lost
            assert sizes[0][0] >= full
            assert all(after < full / 2 for _, after in sizes)
            assert all(copied <= total for copied, total in told)
            lone.check(acknowledged)
            state = lone.store.state_hash()
        async with Member(tmp_path) as lone:
            assert lone.store.recovered is None
            assert lone.store.state_hash() == state
            lone.check(acknowledged)

    asyncio.run(scenario())


def test_a_copy_whose_entries_are_cut_from_the_log_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as lone:
            await lone.fill()
            compactions = lone.consensus._compactions
            catch_up, copies = compactions._catch_up, list[int]()

            async def cut_before(copy: Compaction) -> bool:
                """Snapshots are taken, and the log is cut, as soon as a copy is made."""
                copies.append(copy.applied_index)
                if len(copies) <= cuts:
                    for number in range(20):
                        await lone.apply(Put(b"w%d" % number, b""))
                    await lone.consensus.snapshot()
                return await catch_up(copy)

            # Given that this happens once or twice, it is done again, and nothing is missing
            monkeypatch.setattr(compactions, "_catch_up", cut_before)
            for cuts in (1, 2):
                copies.clear()
                await lone.consensus.compact_file()
                assert len(copies) == cuts + 1
                assert lone.store.count(b"", b"\xff", limit=KEYS + 200) == KEYS + 20
            # If it always does, it is given up
            cuts = 100
            with pytest.raises(Unavailable, match="written faster"):
                await lone.consensus.compact_file()
            await lone.apply(Put(b"after", b""))

    asyncio.run(scenario())


def test_a_copy_is_begun_anew_when_a_snapshot_is_being_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as lone:
            await lone.fill()
            compactions, copies = lone.consensus._compactions, list[int]()
            catch_up = compactions._catch_up

            async def while_installing(copy: Compaction) -> bool:
                copies.append(copy.applied_index)
                lone.consensus._installing = len(copies) == 1
                try:
                    return await catch_up(copy)
                finally:
                    lone.consensus._installing = False

            monkeypatch.setattr(compactions, "_catch_up", while_installing)
            await lone.consensus.compact_file()
            assert len(copies) == 2
            await lone.apply(Put(b"after", b""))

    asyncio.run(scenario())


def test_who_is_cancelled_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as lone:
            await lone.fill(LARGE)
            store = tmp_path / "store"
            names = sorted(store.rglob("*"))
            reached = asyncio.Event()
            compacting = asyncio.create_task(lone.consensus.compact_file(lambda copied, total: reached.set()))
            await reached.wait()
            with pytest.raises(Unavailable, match="compacted already"):
                await lone.consensus.compact_file()
            compacting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await compacting
            assert [name for name in sorted(store.rglob("*")) if name.name != "CURRENT.new"] == names
            # And another one can have it done
            await lone.consensus.compact_file()
            assert (store / "CURRENT").exists()

    asyncio.run(scenario())


def test_a_member_that_stops_ends_its_compaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path) as lone:
            await lone.fill(LARGE)
            reached = asyncio.Event()
            compacting = asyncio.create_task(lone.consensus.compact_file(lambda copied, total: reached.set()))
            await reached.wait()
        with pytest.raises(Unavailable, match="stopping"):
            await compacting
        async with Member(tmp_path) as lone:
            assert lone.store.recovered is None
            assert lone.store.count(b"k", b"l", limit=LARGE + 1) == LARGE
            await lone.consensus.stop()
            with pytest.raises(Unavailable, match="stopped"):
                await lone.consensus.compact_file()

    asyncio.run(scenario())


def test_without_room_for_a_copy_it_is_refused_and_everything_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Member(tmp_path / "disk") as lone:
            await lone.fill(500)
            with pytest.raises(StorageFull, match="no room to compact it"):
                await lone.consensus.compact_file()
            await lone.apply(Put(b"after", b""))

    with small_disk(tmp_path / "disk"):
        asyncio.run(scenario())


# --- other processes ------------------------------------------------------------------------------------------------

READER = """
    import sys
    from jobs._native import {opener}

    last = seen = 0
    kept = []
    {opened}
    for line in sys.stdin:
        {read}
        values = {{value for _, value in rows}}
        assert len(rows) == 2 and len(values) == 1, f"torn: {{rows}}"
        assert revision >= max(last, int(line)), f"{{revision}} after {{last}}, {{line}}"
        seen += revision > last
        last = revision
        print(revision, flush=True)
    print(seen, flush=True)
"""
READERS = {
    "rows": READER.format(
        opener="StoreReader",
        opened="reader = StoreReader(sys.argv[1])",
        read="found, more, revision = reader.range(b'pair/', b'pair0', limit=10); rows = [row[:2] for row in found]",
    ),
    # One snapshot is open all the while, and each of the others until the one after it.
    "queries": READER.format(
        opener="SqlSnapshot",
        opened="first = SqlSnapshot(sys.argv[1]); pair = first.scan(b'pair/', limit=10)",
        read="kept = [*kept[-1:], SqlSnapshot(sys.argv[1])]; revision = kept[-1].revision; "
        "rows = [row[:2] for row in kept[-1].scan(b'pair/', limit=10)]; "
        "assert first.scan(b'pair/', limit=10) == pair",
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_readers_in_other_processes_go_over_to_each_new_file(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path))

    def write(count: int) -> None:
        for _ in range(count):
            index = store.applied_index + 1
            value = b"%d" % index
            ops = (Put(b"pair/a", value), Put(b"pair/b", value), Put(b"k%06d" % (index % 500), os.urandom(1_000)))
            store.apply([(index, 1, encode_command([Txn(then=ops)]))])

    write(500)
    command = [sys.executable, "-c", textwrap.dedent(READERS[kind]), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in range(60):
            # The reader is at it while the file is replaced, and pages are used again
            reader.stdin.write(f"{store.revision}\n")
            reader.stdin.flush()
            write(20)
            if number % 3 == 0:
                copy = store.begin_compaction()
                assert copy.finish()
                write(20)
                copy.close()
            assert int(reader.stdout.readline()) <= store.revision
        reader.stdin.close()
        assert int(reader.stdout.readline()) > 20
    assert reader.returncode == 0
    assert sum(path.name == "data.mdb" for path in tmp_path.rglob("*")) == 1
    store.close()


COMPACTOR = """
    import sys
    from jobs._native import DiskFullError, NativeError, Store, arm_failpoints
    from jobs.store import Put, Txn, encode_command

    store = Store(sys.argv[1])
    arm_failpoints()
    print("ready", flush=True)
    for number in range(3):
        try:
            copy = store.begin_compaction()
            index = store.applied_index + 1
            entry = (index, 1, encode_command([Txn(then=(Put(b"more/%d" % number, b""),))]))
            store.apply([entry])
            assert not copy.finish()
            copy.apply([entry])
            assert copy.finish()
            copy.close()
            print("compacted", store.applied_index, flush=True)
        except NativeError as error:
            print(type(error).__name__, store.applied_index, flush=True)
            store.check_rows()
            try:
                copy.close()
            except NameError:
                pass
    store.close()
"""


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("store.compact.copy.before", "kill"),
        ("store.compact.copy.before", "kill@5"),
        ("store.compact.copy.before", "error:ENOSPC@3"),
        ("store.replace.sync.before", "kill"),
        ("store.replace.sync.before", "error:ENOSPC"),
        ("store.compact.switch.before", "kill"),
        ("store.compact.switch.before", "error:EIO"),
        ("store.replace.rename.before", "kill"),
        ("store.replace.rename.before", "error:EIO"),
        ("store.replace.rename.after", "kill"),
        ("store.compact.switch.after", "kill"),
        ("store.compact.remove.after", "kill"),
        ("store.compact.remove.after", "kill@2"),
        ("store.directory.sync.before", "kill"),
    ],
)
def test_kill_9_and_errors_of_the_disk_leave_the_one_file_or_the_other(tmp_path: Path, point: str, action: str) -> None:
    # Given a store that is compacted and written, over and over
    store = Store(str(tmp_path))
    for start in range(0, 20_000, 500):
        ops = tuple(Put(b"k%06d" % number, b"x" * 1_000) for number in range(start, start + 500))
        store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=ops)]))])
    applied = store.applied_index
    store.close()
    program = textwrap.dedent(COMPACTOR)
    env = {**os.environ, "JOBS_FAILPOINTS": f"report={tmp_path.with_suffix('.report')};{point}={action}"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120
    )
    assert point in tmp_path.with_suffix(".report").read_text(), done.stderr
    # When it is killed, or its disk fails once
    lines = [line.split() for line in done.stdout.splitlines()]
    if action.startswith("kill"):
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert lines[1][0] == ("DiskFullError" if "ENOSPC" in action else "NativeError")
        assert [line[0] for line in lines[2:]] == ["compacted", "compacted"]
    reached = max([applied, *(int(line[1]) for line in lines[1:])])
    # Then everything that was applied is there, in one file
    store = Store(str(tmp_path))
    assert store.recovered is None
    assert store.applied_index >= reached
    assert store.count(b"k", b"l", limit=30_000) == 20_000
    assert store.count(b"more/", b"more0", limit=10) == store.applied_index - applied
    assert store.check_rows(max_rows=1_000_000)[3] == []
    assert sum(path.name == "data.mdb" for path in tmp_path.rglob("*")) == 1
    copy = store.begin_compaction()
    assert copy.finish()
    copy.close()
    store.close()
