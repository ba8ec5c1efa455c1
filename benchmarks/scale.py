"""What a million pending jobs cost one node: to submit, to start, to hold, to read, and to restart with.

    python -m benchmarks.scale [--jobs 1000000] [--seconds 5]

All jobs ask for a label that the worker has only after a restart, so that the queue is full before anything of it
runs. The same is measured with 1,000 jobs pending and with all of them, in one run: wall time, and processor time of
the node, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from msgspec import Struct

from benchmarks.load import Connection, percentiles, request
from benchmarks.report import show
from jobs.testing import EmbeddedNode

BATCH = 160
FEW = 1_000
WARM = 200
STARTED = 1_000
"""Jobs whose start is measured at each depth."""
JOB = {"type": "shell", "payload": {"argv": ["/bin/true"]}, "requires": {"labels": {"bench": "yes"}}}
ABLE = {"JOBS_WORKERS__SHELL__LABELS": '{"bench": "yes"}', "JOBS_WORKERS__SHELL__SLOTS": "4"}
READS = {
    "list 100": "/v1/jobs?limit=100",
    "list 100 that nothing matches": "/v1/jobs?limit=100&label=no=such",
}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Cost(Struct, frozen=True):
    """Of one operation, in ms."""

    wall_ms: float
    cpu_ms: float


class Figures(Struct, kw_only=True):
    """What was measured at one depth."""

    pending: int
    batch: Cost
    """Of a job that is submitted with 249 others."""
    single: Cost
    start: Cost
    """From one end to the next, sandbox included."""
    restart_s: float
    own_bytes: int
    """Resident memory after the restart, without pages of files."""
    file_bytes: int
    reads: dict[str, Cost]
    stored_bytes: int


class Meter:
    """Wall time, and processor time of one process, from its making on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_s, self._wall_s = self._taken_s(), time.perf_counter()

    def cost(self, count: int) -> Cost:
        """Return what each of `count` operations has taken since."""
        wall_s, cpu_s = time.perf_counter() - self._wall_s, self._taken_s() - self._cpu_s
        return Cost(wall_s * 1000 / count, cpu_s * 1000 / count)

    def _taken_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident(pid: int) -> tuple[int, int]:
    """Return the bytes of a process in memory: its own, and those that are a file's."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("Rss"):
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"]


async def repeat(node: EmbeddedNode, data: bytes, seconds: float) -> tuple[Cost, int]:
    """Let one client repeat a request; return the median wall time, the mean processor time, and how often."""
    connection = await Connection().open(node.socket)
    latencies: list[float] = []
    meter, end = Meter(node.pid), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await connection.send(data)
        latencies.append((time.perf_counter() - began) * 1000)
    connection.close()
    return Cost(percentiles(latencies)[0], meter.cost(len(latencies)).cpu_ms), len(latencies)


async def fill(node: EmbeddedNode, count: int) -> tuple[list[str], Cost]:
    """Submit jobs in batches; return the ids of the first ones, and what each of the last ones cost."""
    batch = request("POST", "/v1/jobs:batch", {"jobs": [JOB] * BATCH})
    connection = await Connection().open(node.socket)
    ids: list[str] = []
    measured = min(count, 20_000) // BATCH * BATCH
    for left in range(count // BATCH * BATCH, 0, -BATCH):
        if left == measured:
            meter = Meter(node.pid)
        answer: Any = await connection.send(batch)
        if len(ids) < WARM + STARTED:
            ids += [item["job"]["id"] for item in answer["jobs"]]
    connection.close()
    return ids, meter.cost(measured)


async def start_cost(node: EmbeddedNode, ids: list[str]) -> Cost:
    """Return what each job costs that the worker runs one after the other."""
    connection = await Connection().open(node.socket)
    await connection.ask("GET", f"/v1/jobs/{ids[WARM - 1]}/wait?timeout_s=60")
    meter = Meter(node.pid)
    await connection.ask("GET", f"/v1/jobs/{ids[WARM + STARTED - 1]}/wait?timeout_s=300")
    connection.close()
    return meter.cost(STARTED)


def measure(directory: Path, count: int, seconds: float) -> Figures:
    with EmbeddedNode(directory) as node:
        # So many are left when starts have been measured.
        ids, batch = uvloop.run(fill(node, count + 2 * STARTED))
        os.sync()  # the kernel still writes out what the filling left
        single, _ = uvloop.run(repeat(node, request("POST", "/v1/jobs", JOB), seconds))
        node.kill()
        began = time.perf_counter()
        node.start()
        restart_s = time.perf_counter() - began
        own, of_files = resident(node.pid)
        reads = {
            name: uvloop.run(repeat(node, request("GET", target), seconds / 4))[0] for name, target in READS.items()
        }
        stored = sum(file.stat().st_blocks * 512 for file in directory.rglob("data.mdb") if file.is_file())
    with EmbeddedNode(directory, env=ABLE) as node:
        start = uvloop.run(start_cost(node, ids))
        node.kill()
    return Figures(
        pending=count,
        batch=batch,
        single=single,
        start=start,
        restart_s=restart_s,
        own_bytes=own,
        file_bytes=of_files,
        reads=reads,
        stored_bytes=stored,
    )


def compare(name: str, few: Cost, many: Cost) -> None:
    against = f"{many.wall_ms / few.wall_ms:.2f} × at {FEW:,} ({few.wall_ms:.3f} ms)"
    if few.cpu_ms:
        against += f"; processor {many.cpu_ms:.3f} ms, {many.cpu_ms / few.cpu_ms:.2f} ×"
    show(name, f"{many.wall_ms:.3f} ms", against)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-scale-") as name:
        few = measure(Path(name) / "few", FEW, options.seconds)
        many = measure(Path(name) / "many", options.jobs, options.seconds)
    depth = f"at {options.jobs:,} pending"
    compare(f"submit a job in a batch of {BATCH}, {depth}", few.batch, many.batch)
    compare(f"submit one job, p50, {depth}", few.single, many.single)
    compare(f"run a job, {depth}", few.start, many.start)
    for read, cost in many.reads.items():
        compare(f"{read}, p50, {depth}", few.reads[read], cost)
    show(f"SIGKILL → serving, {depth}", f"{many.restart_s:.2f} s", f"{few.restart_s:.2f} s at {FEW:,}")
    jobs = options.jobs - FEW
    own = (many.own_bytes - few.own_bytes) / jobs
    of_files = (many.file_bytes - few.file_bytes) / jobs
    show(
        "resident memory per pending job",
        f"{own:.0f} B",
        f"and {of_files:.0f} B of the store's file, which the kernel may drop",
    )
    show("disk per pending job", f"{(many.stored_bytes - few.stored_bytes) / jobs:.0f} B", "store without log")


if __name__ == "__main__":
    main()
