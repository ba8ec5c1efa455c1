"""Queries that will not end, take too much or crash: they fail alone, at once, and the worker goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import Client, QueryFailed, Reason, SqlJob, SqlLimits, sql_job
from jobs.protocol.model import JobState, Retry
from jobs.testing import EmbeddedNode
from jobs.workers.sql.engine import NICENESS
from tests.support import processes
from tests.support.waiting import until

ENGINE = "jobs.workers.sql.engine"
ENDLESS = (
    "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value * b.value % 7 = 3"
)
RECURSIVE = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"
CANCEL_S = 0.1
"""Within this a query is gone once its cancellation is told; a machine that is busy with others may take longer."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    directory = tmp_path_factory.mktemp("ends")
    env = {
        "JOBS_WORKERS__SQL__SPILL_DIR": str(directory / "spill"),
        "JOBS_WORKERS__SQL__SLOTS": "2",
        "JOBS_WORKERS__SQL__THREADS": "2",
    }
    with EmbeddedNode(directory / "node", types=("sql",), env=env) as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    """After each test the worker is the one that it was, and answers."""
    with node.client() as made:
        (before,) = made.workers()
        yield made
        (after,) = made.workers()
        assert after.incarnation == before.incarnation
        assert made.sql("SELECT 1 AS one").rows() == [{"one": 1}]


def engines(node: EmbeddedNode) -> set[int]:
    """Return the processes of this node's worker that are ready for queries."""
    below = processes.descendants(node.pid)
    return {pid for pid in below if ENGINE in _arguments(pid) and _is_warm(pid)}


def _is_warm(pid: int) -> bool:
    """Tell whether it has computed something: then it has threads for that."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        return any("tokio" in (task / "comm").read_text() for task in tasks.iterdir())
    except OSError:
        return False


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def begun(client: Client, node: EmbeddedNode, job: SqlJob) -> tuple[str, int]:
    """Submit a query that has much to do; return it, and the process that is at it."""
    until(lambda: len(engines(node)) == 2)
    before = {pid: cpu_s(pid) for pid in engines(node)}
    submitted = client.submit(job).job.id
    busy: set[int] = set()

    def is_busy() -> bool:
        busy.update(pid for pid in before if processes.is_alive(pid) and cpu_s(pid) > before[pid] + 0.2)
        return bool(busy)

    until(is_busy)
    (pid,) = busy
    return submitted, pid


@pytest.mark.parametrize("statement", [ENDLESS, RECURSIVE, f"SELECT * FROM ({ENDLESS}) ORDER BY 1"])
def test_a_cancelled_query_is_gone_at_once(client: Client, node: EmbeddedNode, statement: str) -> None:
    taken: list[float] = []
    for _ in range(3):
        job, pid = begun(client, node, sql_job(statement))
        pidfd = os.pidfd_open(pid)
        assert client.cancel(job).outcome == "requested"
        told = time.monotonic()
        assert processes.ended_within(pidfd, 5.0)
        taken.append(time.monotonic() - told)
        ended = client.result(job, timeout_s=10)
        assert (ended.state, ended.reason) == (JobState.FAILED, Reason.CANCELLED)
        assert ended.execution is not None
        assert ended.execution.cpu_user_s > 0
    assert min(taken) < CANCEL_S


def test_a_query_past_its_time_is_ended(client: Client, node: EmbeddedNode) -> None:
    with pytest.raises(QueryFailed, match=r"longer than 0\.5 s") as caught:
        client.sql(ENDLESS, timeout_s=0.5)
    assert caught.value.reason is Reason.TIMEOUT


def test_a_query_whose_process_is_killed_fails_alone(client: Client, node: EmbeddedNode) -> None:
    other = client.submit(sql_job(ENDLESS)).job.id
    until(lambda: client.get(other).job.state is JobState.RUNNING)
    job, pid = begun_beside(client, node)
    os.kill(pid, signal.SIGKILL)
    ended = client.result(job, timeout_s=10)
    assert (ended.state, ended.reason) == (JobState.FAILED, Reason.QUERY_ERROR)
    assert "SIGKILL" in str(ended.message)
    assert client.get(other).job.state is JobState.RUNNING
    client.cancel(other)
    client.wait(other)


def begun_beside(client: Client, node: EmbeddedNode) -> tuple[str, int]:
    """Begin a second query; return it and its process."""
    until(lambda: len(engines(node)) == 2)
    first = max(engines(node), key=cpu_s)
    job = client.submit(sql_job(ENDLESS)).job.id
    until(lambda: client.get(job).job.state is JobState.RUNNING)
    (pid,) = engines(node) - {first}
    before = cpu_s(pid)
    until(lambda: cpu_s(pid) > before + 0.2)
    return job, pid


def test_a_killed_query_is_tried_again_where_that_is_wanted(client: Client, node: EmbeddedNode) -> None:
    job, pid = begun(client, node, sql_job(ENDLESS, retry=Retry(max_attempts=2, delay_s=0), timeout_s=2))
    os.kill(pid, signal.SIGKILL)
    ended = client.result(job, timeout_s=20)
    assert (ended.reason, [attempt.reason for attempt in client.attempts(job)]) == (
        Reason.TIMEOUT,
        [Reason.QUERY_ERROR, Reason.TIMEOUT],
    )


@pytest.mark.parametrize(
    ("statement", "limits"),
    [
        ("SELECT repeat('x', 1000000000), value FROM generate_series(1, 100)", SqlLimits(memory_bytes=16 << 20)),
        ("SELECT array_agg(a.value) FROM generate_series(1, 200000000) a", SqlLimits(memory_bytes=64 << 20)),
        (
            "SELECT DISTINCT value * 3, repeat('x', 100) FROM generate_series(1, 5000000)",
            SqlLimits(memory_bytes=16 << 20, spill_bytes=0),
        ),
        (
            "SELECT value, repeat('x', 100) AS pad FROM generate_series(1, 3000000) ORDER BY value % 1001, pad",
            SqlLimits(memory_bytes=32 << 20, spill_bytes=1 << 20),
        ),
    ],
)
def test_a_query_that_takes_too_much_memory_or_disk_fails(client: Client, statement: str, limits: SqlLimits) -> None:
    with pytest.raises(QueryFailed) as caught:
        client.sql(statement, limits=limits, timeout_s=60)
    assert caught.value.reason is Reason.QUERY_ERROR, caught.value


def test_what_was_spilled_is_deleted(client: Client, node: EmbeddedNode) -> None:
    rows = "SELECT value, repeat('x', 100) AS pad FROM generate_series(1, 3000000)"
    numbered = f"SELECT row_number() OVER (ORDER BY value % 1001, pad) AS n FROM ({rows})"
    found = client.sql(f"SELECT max(n) AS n FROM ({numbered})", limits=SqlLimits(memory_bytes=64 << 20), timeout_s=60)
    assert found.rows() == [{"n": 3_000_000}]
    spill = node.directory.parent / "spill"
    assert list(spill.iterdir()), "there is no directory to spill to"
    until(lambda: not [path for path in spill.rglob("*") if path.is_file()])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
        "SELECT " + "-" * 1 + " -".join(["1"] * 50_000),
        "SELECT " + " + ".join(["1"] * 100_000),
        "SELECT 1 WHERE " + " OR ".join(["1 = 2"] * 30_000),
        " UNION ALL ".join(["SELECT 1"] * 20_000),
        "SELECT " + "CASE WHEN true THEN " * 10_000 + "1" + " END" * 10_000,
        "SELECT " + "[" * 30_000 + "]" * 30_000,
        "SELECT * FROM " + "(SELECT * FROM " * 5_000 + "kv" + ")" * 5_000,
        "SELECT '" + "x" * 1_000_000 + "'",
        "SELECT 1 IN (" + ", ".join(["1"] * 300_000) + ")",
        "(" * 1_000_000,
    ],
    ids=["brackets", "signs", "sums", "ors", "unions", "cases", "lists", "subqueries", "literal", "in", "open"],
)
def test_monstrous_statements_end(client: Client, statement: str) -> None:
    """They may be answered or refused; within their time, and without harm to anything else."""
    assert len(statement) <= 1 << 20
    job = client.submit(sql_job(statement, timeout_s=20)).job.id
    ended = client.result(job, timeout_s=40)
    assert ended.reason in (None, Reason.QUERY_ERROR, Reason.TIMEOUT), ended.message


def test_queries_wait_for_a_slot_and_all_are_answered(client: Client) -> None:
    jobs = [client.submit(sql_job("SELECT $1 AS n", parameters=[number])).job.id for number in range(20)]
    for number, job in enumerate(jobs):
        assert client.rows_of(client.result(job, timeout_s=60)).rows() == [{"n": number}]


def test_a_store_that_grows_under_warm_processes_is_read(client: Client, node: EmbeddedNode) -> None:
    """What maps the store's file does so once, for its life: the file outgrows whatever size it had then."""
    query = "SELECT count(*) AS n FROM kv WHERE key LIKE '/data/grown/%'"
    until(lambda: len(engines(node)) == 2)
    for number in range(1, 41):
        client.kv.put(f"/data/grown/{number:02}", os.urandom(512 << 10))
        if number % 10 == 0:
            assert [client.sql(query).rows() for _ in range(4)] == [[{"n": number}]] * 4
    client.kv.delete("/data/grown/", prefix=True)


def test_progress_is_told(client: Client, node: EmbeddedNode) -> None:
    job = client.submit(sql_job(ENDLESS)).job.id
    until(lambda: client.get(job).progress is not None)
    said = client.get(job).progress
    assert said is not None
    assert str(said.message).startswith("read 0 rows")
    client.cancel(job)
    assert client.wait(job).reason is Reason.CANCELLED


def test_nothing_is_left_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", types=("sql",)) as node, node.client() as client:
        job, pid = begun(client, node, sql_job(ENDLESS))
        worker = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        pidfds = [os.pidfd_open(one) for one in engines(node)]
        os.kill(int(worker), signal.SIGKILL)
        for pidfd in pidfds:
            assert processes.ended_within(pidfd, 5.0)
        assert client.result(job, timeout_s=20).reason is Reason.WORKER_LOST
        # The next life of the worker answers
        assert client.sql("SELECT 1 AS one", timeout_s=60).rows() == [{"one": 1}]


def test_engines_let_the_node_go_first(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node", types=("sql",)) as node:
        until(lambda: len(engines(node)) == 2)
        own = os.getpriority(os.PRIO_PROCESS, node.pid)
        with node.client() as client:
            client.sql("SELECT 1")
        threads = [int(task.name) for pid in engines(node) for task in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) > 2
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {min(own + NICENESS, 19)}


def test_the_engines_end_with_their_node(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node", types=("sql",)).start()
    with node.client() as client:
        assert client.sql("SELECT 1 AS one").info.rows == 1
    until(lambda: len(engines(node)) == 2)
    pidfds = [os.pidfd_open(one) for one in engines(node)]
    node.kill()
    for pidfd in pidfds:
        assert processes.ended_within(pidfd, 5.0)
