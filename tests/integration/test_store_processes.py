"""A store that is read by other processes while it is written, and whose writer is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from jobs._native import Store
from jobs.store import Put, Txn, encode_command

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


def start(program: str, directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
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
