"""A store that is read by other processes while it is written, and whose writer is killed."""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from jobs._native import Store
from jobs.store import Put, Txn, encode_command

SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)

READER = """
    import sys
    from jobs._native import StoreReader

    reader = StoreReader(sys.argv[1])
    last = seen = 0
    for line in sys.stdin:
        rows, more, revision = reader.range(b"pair/", b"pair0", limit=10)
        values = {value for _, value, *_ in rows}
        assert len(rows) == 2 and len(values) == 1, f"torn: {rows}"
        assert revision >= last and rows[0][4] == revision
        seen += revision > last
        last = revision
        print(revision, flush=True)
    assert seen > 5, f"only {seen} revisions seen"
"""

WRITER = """
    import sys
    from jobs._native import Store
    from jobs.store import Put, Txn, encode_command

    store = Store(sys.argv[1])
    while True:
        index = store.applied_index + 1
        store.apply([(index, 1, encode_command([Txn(then=(Put(b"k%09d" % index, b"x" * 50),))]))])
        sys.stdout.write(f"{index}\\n")
        sys.stdout.flush()
"""

INSTALLER = """
    import shutil
    import sys
    from jobs._native import Store

    directory, source = sys.argv[1:3]
    store = Store(directory)
    shutil.copyfile(source, directory + "/received")
    print("ready", flush=True)
    store.install(directory + "/received")
    print("done", flush=True)
    sys.stdin.read()
"""

SEER = """
    import sys
    from jobs._native import StoreReader

    reader = StoreReader(sys.argv[1])
    for _ in range(2):
        print(reader.snapshot_revision(), reader.get(b"pair/a")[1].decode(), flush=True)
        sys.stdin.readline()
"""


def start(program: str, directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(directory), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_readers_in_other_processes_see_whole_revisions_while_the_store_is_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def write(index: int) -> None:
        value = b"%d" % index
        store.apply([(index, 1, encode_command([Txn(then=(Put(b"pair/a", value), Put(b"pair/b", value)))]))])

    write(1)
    readers = [start(READER, tmp_path) for _ in range(3)]
    index = 1
    for _ in range(30):
        for reader in readers:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write(b"now\n")
            reader.stdin.flush()
            for _ in range(20):
                index += 1
                write(index)
            assert 1 <= int(reader.stdout.readline()) <= index
    # One of them is killed in the middle; the store and the others go on
    readers[0].kill()
    readers[0].wait()
    for reader in readers[1:]:
        reader.communicate(b"", timeout=30)
        assert reader.returncode == 0
    index += 1
    write(index)
    store.close()
    assert Store(str(tmp_path)).revision == index


def test_kill_9_of_the_writer_loses_nothing_that_was_applied(tmp_path: Path) -> None:
    for kill in range(4 * int(os.environ.get("JOBS_TEST_SCALE", "1"))):
        writer = start(WRITER, tmp_path)
        assert writer.stdout is not None
        for _ in range(30 + 97 * kill % 500):
            applied = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split(b"\n")[:-1]
        applied = int(rest[-1]) if rest else applied
        writer.wait()
        store = Store(str(tmp_path))
        assert store.recovered is None
        assert store.applied_index >= applied
        assert store.applied_index == store.revision
        rows, _ = store.range(b"k", b"l", limit=1 << 30, keys_only=True, max_bytes=1 << 40)
        assert [row[0] for row in rows] == [b"k%09d" % index for index in range(1, store.applied_index + 1)]
        store.close()


def test_kill_9_in_the_middle_of_an_installation_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"replay with JOBS_TEST_SEED={SEED}")

    def fill(store: Store, count: int, size: int) -> bytes:
        for number in range(count):
            index = store.applied_index + 1
            put = Put(b"%d/%d" % (size, number), b"x" * size)
            store.apply([(index, 1, encode_command([Txn(then=(put,))]))])
        store.snapshot()
        return store.state_hash()

    leader = Store(str(tmp_path / "leader"))
    new = fill(leader, 2_000, 5_000)
    begun = tmp_path / "begun"
    follower = Store(str(begun))
    old = fill(follower, 500, 4_000)
    follower.close()
    took_s = 0.1
    outcomes = []
    for attempt in range(8 * int(os.environ.get("JOBS_TEST_SCALE", "1"))):
        # given a follower in the middle of an installation
        directory = tmp_path / f"follower{attempt}"
        shutil.copytree(begun, directory)
        installer = start(INSTALLER, directory, leader.snapshot_path() or "")
        assert installer.stdout is not None
        assert installer.stdout.readline() == b"ready\n"
        since = time.monotonic()
        # when it is killed
        patience_s = chance.uniform(0, took_s) if attempt else 60
        finished = bool(select.select([installer.stdout], [], [], patience_s)[0])
        took_s = time.monotonic() - since if finished and not attempt else took_s
        installer.kill()
        installer.communicate(timeout=30)
        # then the next one finds the old state, or the new one, and the snapshot that belongs to it
        store = Store(str(directory))
        outcomes.append((finished, store.applied_index))
        expected = (new, 2_000) if store.applied_index == 2_000 else (old, 500)
        assert (store.state_hash(), store.snapshot_index) == expected
        assert not (finished and store.applied_index == 500)
        # and can install again
        if store.applied_index == 500:
            shutil.copyfile(leader.snapshot_path() or "", directory / "received")
            store.install(str(directory / "received"))
            assert store.state_hash() == new
        store.close()
        shutil.rmtree(directory)
    assert (False, 500) in outcomes, outcomes


def test_a_reader_in_another_process_sees_what_was_installed(tmp_path: Path) -> None:
    # given a reader of a follower's store, and a leader that is ahead
    leader, follower = Store(str(tmp_path / "leader")), Store(str(tmp_path / "follower"))
    for store, last in ((leader, 50), (follower, 2)):
        for index in range(1, last + 1):
            value = b"%d" % index
            pair = (Put(b"pair/a", value), Put(b"pair/b", value))
            store.apply([(index, 1, encode_command([Txn(then=pair)]))])
    reader = start(SEER, tmp_path / "follower")
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"2 2\n"
    # when the follower takes the leader's snapshot
    leader.snapshot()
    shutil.copyfile(leader.snapshot_path() or "", tmp_path / "follower" / "received")
    follower.install(str(tmp_path / "follower" / "received"))
    # then the reader, which has the directory open, reads it
    out, _ = reader.communicate(b"now\n", timeout=30)
    assert out == b"50 50\n"
