"""Queries from end to end: submitted, assigned, run in a warm process, and their rows back; beside an echo and a read.

python -m benchmarks.sql_jobs
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.report import show
from jobs import Client, shell_job
from jobs.protocol.model import Content, KvOp, KvPut
from jobs.testing import EmbeddedNode

KEYS: Final = 10_000
COUNT: Final = 300
WARM: Final = 20


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory:
        node = EmbeddedNode(Path(directory), types=("shell", "sql"))
        with node, node.client() as client:
            measure(client)


def measure(client: Client) -> None:
    fill(client)
    point = "SELECT value FROM kv WHERE key = $1"
    inside: list[float] = []

    def look_up() -> None:
        found = client.sql(point, parameters=[f"/data/bench/{KEYS // 2:06}"])
        assert found.info.rows == 1
        execution = found.result.execution
        assert execution is not None
        inside.append(execution.wall_s)

    p50, p99 = timed(look_up)
    show("point look-up as a job, p50", f"{1_000 * p50:.1f} ms", f"p99 {1_000 * p99:.1f} ms")
    show("— in the worker", f"{1_000 * statistics.median(inside[WARM:]):.1f} ms", "from the assignment to the report")
    echo, _ = timed(lambda: client.run(shell_job(["echo", "hello"])))
    show("echo hello as a job, p50", f"{1_000 * echo:.1f} ms", f"the query takes {p50 / echo:.2f} ×")
    count, _ = timed(lambda: client.sql("SELECT count(*) AS n FROM kv WHERE key LIKE '/data/bench/0%'"), 50)
    show(f"count of {KEYS:,} keys below a prefix, p50", f"{1_000 * count:.1f} ms", "")
    read, _ = timed(lambda: client.kv.get(f"/data/bench/{KEYS // 2:06}"))
    show("the same key by the API, p50", f"{1_000 * read:.2f} ms", "")


def fill(client: Client) -> None:
    for start in range(0, KEYS, 1_000):
        names = [f"/data/bench/{number:06}" for number in range(start, start + 1_000)]
        client.kv.txn(then=[KvOp(put=KvPut(key=name, value=Content(text="x" * 100))) for name in names])


def timed(call: Callable[[], object], count: int = COUNT) -> tuple[float, float]:
    """Return the median and the 99th percentile of what calls take, in seconds, after some to warm up."""
    taken: list[float] = []
    for _ in range(WARM + count):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    measured = sorted(taken[WARM:])
    return statistics.median(measured), measured[int(len(measured) * 0.99)]


if __name__ == "__main__":
    main()
