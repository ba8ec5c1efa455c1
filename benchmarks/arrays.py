"""What an array of a million tasks costs, and how its tasks run beside plain jobs.

    python -m benchmarks.arrays [--tasks 1000000] [--jobs 3000]

Each line compares with plain jobs of the same run: submitted in batches of 160, run by the same node.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.__main__ import bench_node
from benchmarks.report import show
from benchmarks.scale import resident
from jobs.client import Client, shell_job
from jobs.protocol.model import ArrayRange, ArraySpec, JobState
from jobs.testing import EmbeddedNode

PAUSED = "paused"
MEASURED_EVERY = 64
"""Commits between two looks of the store at its size."""


def stored_bytes(client: Client) -> int:
    """Return how many bytes of the store are in use, which it looks at every few commits."""
    for _ in range(MEASURED_EVERY):
        client.kv.put("/data/bench", "")
    for line in client.metrics().splitlines():
        if line.startswith("jobs_store_used_bytes "):
            return int(float(line.split()[1]))
    raise RuntimeError("the node does not tell how much of its store is in use")


def submissions(node: EmbeddedNode, client: Client, tasks: int, plain: int) -> None:
    """Submit so many tasks in each way, and fewer plain jobs; nothing of them is run."""
    client.queues.pause(PAUSED)
    lines = [f"{number:07}" for number in range(tasks)]

    def measured(name: str, count: int, submit: Callable[[], object]) -> None:
        before, memory, began = stored_bytes(client), resident(node.pid)[0], time.perf_counter()
        submit()
        spent_s = time.perf_counter() - began
        grown = stored_bytes(client) - before
        own = resident(node.pid)[0] - memory
        cost = f"store {grown / 1e6:.2f} MB, {grown / count:.1f} B each; resident {own / 1e6:+.1f} MB"
        show(f"submit {count:,} {name}", f"{spent_s * 1000:.1f} ms", cost)

    array = ArraySpec(range=ArrayRange(stop=tasks))
    measured("tasks by range", tasks, lambda: client.submit(shell_job(["true"], queue=PAUSED, array=array)))
    listed = ArraySpec(lines=lines)
    measured("tasks by lines", tasks, lambda: client.submit(shell_job(["true"], queue=PAUSED, array=listed)))
    jobs = (shell_job(["true"], queue=PAUSED) for _ in range(plain))
    measured("plain jobs", plain, lambda: list(client.submit_many(jobs)))


def cancellation(client: Client, tasks: int) -> None:
    array = client.submit(shell_job(["true"], not_before_ms=1 << 42, array=ArraySpec(range=ArrayRange(stop=tasks)))).job
    began = time.perf_counter()
    client.cancel(array.id, indices=f"1-{tasks - 2}")
    by_index_s = time.perf_counter() - began
    began = time.perf_counter()
    client.cancel(array.id)
    show(
        f"cancel {tasks:,} tasks",
        f"{(time.perf_counter() - began) * 1000:.1f} ms",
        f"by index {by_index_s * 1000:.1f} ms",
    )


def rates(client: Client, count: int) -> None:
    """Run as many tasks as plain jobs, by turns, and compare how long they take."""

    def run_plain() -> float:
        began = time.perf_counter()
        jobs = [submitted.job.id for submitted in client.submit_many(shell_job(["/bin/true"]) for _ in range(count))]
        for job in jobs[-16:]:
            assert client.wait(job, 600).state is JobState.COMPLETED
        return count / (time.perf_counter() - began)

    def run_array() -> float:
        began = time.perf_counter()
        array = client.submit(shell_job(["/bin/true"], array=ArraySpec(range=ArrayRange(stop=count)))).job
        assert client.wait(array.id, 600).state is JobState.COMPLETED
        return count / (time.perf_counter() - began)

    run_plain()
    plain, tasks = [], []
    for _ in range(3):
        plain.append(run_plain())
        tasks.append(run_array())
    best_plain, best_tasks = max(plain), max(tasks)
    against = f"{best_tasks / best_plain:.2f} × plain jobs ({best_plain:.0f}/s); best of 3 by turns"
    show(f"tasks run, arrays of {count:,}, 4 slots", f"{best_tasks:.0f}/s", against)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--plain", type=int, default=16_000, help="plain jobs to compare a submission with")
    parser.add_argument("--jobs", type=int, default=3_000, help="to run, of each kind and by turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory:
        with bench_node(Path(directory)) as node, node.client() as client:
            submissions(node, client, options.tasks, options.plain)
            cancellation(client, options.tasks)
            rates(client, options.jobs)
        began = time.perf_counter()
        with bench_node(Path(directory)):
            show(f"restart with {2 * options.tasks:,} tasks waiting", f"{time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
