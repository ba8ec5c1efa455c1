"""Queries from end to end: submitted, assigned, run in a warm process, and their rows back; beside an echo and a read,
and beside the look-ups of another tree.

python -m benchmarks.sql_jobs [--beside OTHER_TREE/python]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks.report import show
from jobs import Client, shell_job
from jobs.protocol.model import Content, KvOp, KvPut
from jobs.testing import EmbeddedNode

KEYS: Final = 10_000
COUNT: Final = 300
WARM: Final = 20


POINT: Final = "SELECT value FROM kv WHERE key = $1"
BELOW: Final = "SELECT count(*) AS n FROM kv WHERE key LIKE '/data/bench/0%'"


class Look(Struct, frozen=True):
    """One look-up: what it took in all, in the worker, and of processor time of its process. In seconds."""

    total_s: float
    worker_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="directory of another version's Python package, with its extension")
    beside: Path | None = parser.parse_args().beside
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory, ExitStack() as stack:
        client = started(Path(directory) / "node", None, stack)
        measure(client)
        if beside is not None:
            compare(client, started(Path(directory) / "other", beside, stack))


def started(directory: Path, package: Path | None, stack: ExitStack) -> Client:
    """Return a client of a new node with keys, of this tree or of the one with this package."""
    env = {} if package is None else {"PYTHONPATH": str(package.resolve(strict=True))}
    node = stack.enter_context(EmbeddedNode(directory, types=("shell", "sql"), env=env))
    client = stack.enter_context(node.client())
    fill(client)
    return client


def measure(client: Client) -> None:
    looks: list[Look] = []
    echoes: list[float] = []
    for _ in range(WARM + COUNT):  # by turns, as the machine may have other work
        looks.append(look_up(client))
        echoes.append(seconds(lambda: client.run(shell_job(["echo", "hello"]))))
    p50, p99 = middle_and_end([look.total_s for look in looks])
    show("point look-up as a job, p50", f"{1_000 * p50:.1f} ms", f"p99 {1_000 * p99:.1f} ms")
    inside, _ = middle_and_end([look.worker_s for look in looks])
    show("— in the worker", f"{1_000 * inside:.1f} ms", "from the assignment to the report")
    echo, _ = middle_and_end(echoes)
    ratio, _ = middle_and_end([look.total_s / echo_s for look, echo_s in zip(looks, echoes, strict=True)])
    show("echo hello as a job, p50", f"{1_000 * echo:.1f} ms", f"the query takes {ratio:.2f} ×")
    counts = [seconds(lambda: client.sql(BELOW)) for _ in range(WARM + 50)]
    show(f"count of {KEYS:,} keys below a prefix, p50", f"{1_000 * middle_and_end(counts)[0]:.1f} ms", "")
    reads = [seconds(lambda: client.kv.get(f"/data/bench/{KEYS // 2:06}")) for _ in range(WARM + COUNT)]
    show("the same key by the API, p50", f"{1_000 * middle_and_end(reads)[0]:.2f} ms", "")


def compare(own: Client, other: Client) -> None:
    """Look up by turns at two nodes, of which now one is asked first, now the other."""
    pairs: list[tuple[Look, Look]] = []
    for turn in range(WARM + COUNT):
        if turn % 2:
            first = look_up(other)
            pairs.append((first, look_up(own)))
        else:
            first = look_up(own)
            pairs.append((look_up(other), first))
    del pairs[:WARM]
    for what in Look.__struct_fields__:
        before, after = (statistics.median(getattr(look, what) for look in looks) for looks in zip(*pairs, strict=True))
        ratio = statistics.median(getattr(new, what) / getattr(old, what) for old, new in pairs)
        show(
            f"beside the other tree, by turns, {what}, p50",
            f"{1_000 * after:.1f} ms",
            f"{1_000 * before:.1f} ms, {ratio:.2f} ×",
        )


def look_up(client: Client) -> Look:
    began = time.perf_counter()
    found = client.sql(POINT, parameters=[f"/data/bench/{KEYS // 2:06}"])
    total_s = time.perf_counter() - began
    assert found.info.rows == 1
    execution = found.result.execution
    assert execution is not None
    return Look(total_s=total_s, worker_s=execution.wall_s, cpu_s=execution.cpu_user_s + execution.cpu_system_s)


def fill(client: Client) -> None:
    for start in range(0, KEYS, 1_000):
        names = [f"/data/bench/{number:06}" for number in range(start, start + 1_000)]
        client.kv.txn(then=[KvOp(put=KvPut(key=name, value=Content(text="x" * 100))) for name in names])


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def middle_and_end(taken: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, without the first, which were to warm up."""
    measured = sorted(taken[WARM:])
    return statistics.median(measured), measured[int(len(measured) * 0.99)]


if __name__ == "__main__":
    main()
