"""Snapshots of a node's store, taken by another process while the node writes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jobs._native import Store
from jobs.client import Client, shell_job
from jobs.protocol.model import Content, KvOp, KvPut
from jobs.store import Keep, Put, Txn, encode_command
from jobs.testing import EmbeddedNode
from tests.support.sqlstore import answer, open_session
from tests.support.users import let_others_in

KEYS = 400
CHECK = """
    SELECT count(*) AS n, count(DISTINCT value) AS different, max(mod_revision) AS last
    FROM kv WHERE key LIKE '/data/x/%'
"""


class Writer(threading.Thread):
    """Sets many keys to one number after the other, each time all of them in one transaction."""

    def __init__(self, node: EmbeddedNode) -> None:
        super().__init__()
        self._client = Client(str(node.socket))
        self._done = threading.Event()
        self.written = 0

    def write(self) -> None:
        self.written += 1
        value = Content(text=str(self.written))
        ops = [KvOp(put=KvPut(key=f"/data/x/{number:04d}", value=value)) for number in range(KEYS)]
        assert self._client.kv.txn(then=ops).succeeded

    def run(self) -> None:
        with self._client:
            while not self._done.is_set():
                self.write()

    def end(self) -> None:
        self._done.set()
        self.join()


def test_a_query_sees_one_revision_while_the_node_writes(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path) as node:
        # Given a node that changes many keys at once, over and over
        writer = Writer(node)
        writer.write()
        writer.start()
        try:
            revisions = []
            for _ in range(15):
                with open_session(tmp_path / "data" / "store") as (snapshot, context):
                    # When a query reads them by several threads, then it sees them all as of one write
                    first = answer(context, CHECK)
                    assert [first[0]["n"], first[0]["different"]] == [KEYS, 1]
                    # And later queries of the snapshot see the same, whatever has been written since
                    before = writer.written
                    while writer.written < before + 2:
                        assert answer(context, CHECK) == first
                    revisions.append(snapshot.revision)
            assert revisions == sorted(set(revisions))
        finally:
            writer.end()


def test_the_tables_of_a_node_show_its_jobs(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path) as node, Client(str(node.socket)) as client:
        done = client.run(shell_job(["/bin/echo", "hello"], labels={"team": "a"}))
        failed = client.run(shell_job(["/bin/sh", "-c", "exit 3"]))
        with open_session(tmp_path / "data" / "store", owner=os.getuid()) as (_, context):
            rows = answer(context, "SELECT id, state, exit_code, labels['team'] AS team FROM jobs ORDER BY id")
            assert rows == [
                {"id": done.id, "state": "completed", "exit_code": 0, "team": "a"},
                {"id": failed.id, "state": "failed", "exit_code": 3, "team": None},
            ]
            (result,) = answer(context, f"SELECT stdout_bytes, worker FROM results WHERE job_id = '{done.id}'")
            assert result["stdout_bytes"] == len("hello\n")
            (worker,) = answer(context, f"SELECT type FROM workers WHERE id = '{result['worker']}'")
            assert worker == {"type": "shell"}
            assert len(answer(context, "SELECT * FROM audit WHERE action = 'job.submit'")) == 2


def test_pages_of_a_reader_that_was_killed_are_used_again(tmp_path: Path) -> None:
    """What it saw would otherwise be kept for good: the file would grow with every write."""
    store = Store(str(tmp_path))

    def grows_by(rounds: int) -> int:
        before = (tmp_path / "data.mdb").stat().st_size
        for _ in range(rounds):
            ops = (Keep(10), *(Put(b"/data/x/%d" % number, os.urandom(1_000)) for number in range(200)))
            store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=ops)]))])
        return (tmp_path / "data.mdb").stat().st_size - before

    # Given a store that needs no more room for the same keys, and a reader that is killed as it sees it
    grows_by(40)
    assert grows_by(40) < 1 << 20
    program = (
        "import sys; from jobs._native import SqlSnapshot; s = SqlSnapshot(sys.argv[1]); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"1\n"
    reader.kill()
    reader.communicate()
    assert grows_by(40) > 4 << 20
    # When the store takes a snapshot, as a node does now and then, then it grows no more
    store.snapshot()
    grows_by(10)
    assert grows_by(40) < 1 << 20
    store.close()


def test_a_reader_follows_a_file_that_grows(tmp_path: Path) -> None:
    """Of a process the files are open once, for all its snapshots, however large they were then."""
    store = Store(str(tmp_path))

    def write(value: bytes) -> None:
        ops = tuple(Put(b"/data/x/%d" % number, value) for number in range(100))
        store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=ops)]))])

    write(b"1")
    program = textwrap.dedent("""
        import sys
        from tests.support.sqlstore import answer, session
        from jobs._native import SqlSnapshot
        first = SqlSnapshot(sys.argv[1])
        for _ in sys.stdin:
            next = SqlSnapshot(sys.argv[1])
            print(answer(session(next), "SELECT sum(version) AS n FROM kv WHERE value > X'00'")[0]["n"], flush=True)
            next.close()
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in range(2, 6):
            write(b"x" * 200_000)
            print(file=reader.stdin, flush=True)
            assert int(reader.stdout.readline()) == 100 * number
        reader.stdin.close()
    assert (tmp_path / "data.mdb").stat().st_size > 50 << 20
    store.close()


@pytest.mark.skipif(os.getuid() != 0, reason="gives up rights that only root has")
def test_a_process_that_cannot_write_the_store_can_read_it(tmp_path: Path) -> None:
    """It needs to write the lock file alone, where it says what it sees."""
    with EmbeddedNode(tmp_path) as node:
        writer = Writer(node)
        writer.write()
        store = tmp_path / "data" / "store"
        store.chmod(0o755)
        store.parent.chmod(0o755)
        let_others_in(tmp_path)
        (store / "lock.mdb").chmod(0o666)
        (store / "data.mdb").chmod(0o644)
        program = textwrap.dedent("""
            import os, sys
            from tests.support.sqlstore import answer, open_session
            os.setgroups([])
            os.setgid(65_534)
            os.setuid(65_534)
            with open_session(sys.argv[1]) as (_, context):
                print(answer(context, sys.argv[2])[0]["n"])
        """)
        command = [sys.executable, "-c", program, str(store), CHECK]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{KEYS}\n", done.stderr
