"""What it costs to let ended jobs go: how fast they do, and what one who submits meanwhile notices of it.

    python -m benchmarks.retention [--jobs 100000] [--turns 10]

The store is filled with completed jobs, each with its submission, a result, some output and an idempotency key. The
same control plane keeps all of them and none of them by turns, in which one client submits jobs one after the other:
what else goes on on the machine is in both. Then a node lets the rest go with nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop
from msgspec.structs import replace

from benchmarks.load import Connection, percentiles
from benchmarks.report import show
from jobs import jobs, keys, records
from jobs._native import Log, Store
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control import ControlConfig, Site
from jobs.control.retention import RetentionConfig
from jobs.control.transitions import write_ops
from jobs.protocol.ids import Attempt, Incarnation, JobId, JobIdSource, WorkerId
from jobs.protocol.model import Execution, JobState, ShellJob, ShellPayload, StreamInfo
from jobs.records import IdempotencyRecord, LogChunk, ResultRecord
from jobs.retention import Limits
from jobs.service import Caller
from jobs.store import Op, Put, Txn
from jobs.testing import EmbeddedNode

LOT: Final = 1_000
HOUR_MS: Final = 3_600_000
OUTPUT: Final = b"x" * 200
SETTLE_S: Final = 0.6
"""Until letting go has begun."""
KEEP: Final = Limits(max_jobs=10_000_000)
LET_GO: Final = Limits(max_jobs=10_000_000, keep_ms=HOUR_MS // 2)
KEEP_ENV: Final = {"JOBS_RETENTION__MAX_JOBS": "10000000"}
LET_GO_ENV: Final = {**KEEP_ENV, "JOBS_RETENTION__KEEP_S": "1800"}
CALLER: Final = Caller(uid=1_000, gid=1_000, admin=False)
JOB: Final = ShellJob(payload=ShellPayload(argv=["/bin/true"]), not_before_ms=253_402_300_799_000)
"""It waits until the year 9999."""


def ended_job(job: JobId, owner: int, now_ms: int) -> tuple[Op, ...]:
    """Return what stores a job that completed an hour ago."""
    spec = records.encode_spec(ShellJob(payload=ShellPayload(argv=["/bin/true"]), idempotency_key=job))
    info = StreamInfo(bytes=len(OUTPUT), stored_bytes=len(OUTPUT), truncated=False)
    execution = Execution(
        attempt=Attempt(1), worker=WorkerId("shell-0"), incarnation=Incarnation("0" * 32), node="node",
        queued_ms=now_ms, started_ms=now_ms, finished_ms=now_ms, wall_s=0.01, cpu_user_s=0.0, cpu_system_s=0.0,
        peak_memory_bytes=1 << 20, exit_code=0, signal=None, sandbox="strict", stdout=info,
        stderr=StreamInfo(bytes=0, stored_bytes=0, truncated=False),
    )  # fmt: skip
    record = replace(
        jobs.on_submit(records.decode_spec(spec), owner, now_ms),
        state=JobState.COMPLETED,
        attempt=Attempt(1),
        finished_ms=now_ms,
        exit_code=0,
        stored_bytes=2_000,
        log_bytes=len(OUTPUT),
    )
    result = ResultRecord(state=JobState.COMPLETED, reason=None, message=None, execution=execution)
    return (
        Put(keys.spec(job), spec),
        Put(keys.idempotency(owner, job), records.encode(IdempotencyRecord(job=job, body_sha256=b"0" * 32))),
        Put(keys.result(job, Attempt(1)), records.encode(result)),
        Put(keys.log(job, Attempt(1), 0), records.encode(LogChunk(segments=[(1, OUTPUT)]))),
        *write_ops(job, None, record),
    )


async def fill(data: Path, count: int) -> None:
    """Make a node's data directory with so many completed jobs."""
    data.mkdir(parents=True)
    log, store = Log(str(data / "log")), Store(str(data / "store"))
    consensus = Consensus("one", log, store)
    await consensus.start()
    ids, at_ms = JobIdSource(), wall_ms() - HOUR_MS
    for first in range(0, count, LOT):
        lot = (ended_job(ids.next(at_ms, number), 1_000, at_ms) for number in range(first, min(first + LOT, count)))
        await asyncio.gather(*(consensus.propose(Txn(then=ops), 2_048) for ops in lot))
    await consensus.stop()
    store.close()
    log.close()


async def turn(data: Path, limits: Limits, seconds: float) -> tuple[list[float], float]:
    """Submit jobs for a while; return the latencies in ms, and how many jobs went a second."""
    log, store = Log(str(data / "log")), Store(str(data / "store"))
    consensus = Consensus("one", log, store)
    site = Site("one", consensus, store, ControlConfig(retention=RetentionConfig(jobs=limits)))
    await consensus.start()
    await site.settled()
    control = site.control
    assert control is not None
    await asyncio.sleep(SETTLE_S)
    latencies: list[float] = []
    removed, began = control.metrics()["jobs_removed_total"][1], time.perf_counter()
    while (start := time.perf_counter()) < began + seconds:
        await control.submit(CALLER, [JOB])
        latencies.append((time.perf_counter() - start) * 1_000)
    rate = (control.metrics()["jobs_removed_total"][1] - removed) / (time.perf_counter() - began)
    await site.stop()
    await consensus.stop()
    store.close()
    log.close()
    return latencies, rate


async def by_turns(data: Path, turns: int, seconds: float) -> tuple[list[float], list[float], float]:
    """Return the latencies while jobs are kept and while they go, and how many go a second."""
    kept: list[float] = []
    busy: list[float] = []
    rates: list[float] = []
    for _ in range(turns):
        kept += (await turn(data, KEEP, seconds))[0]
        latencies, rate = await turn(data, LET_GO, seconds)
        busy += latencies
        rates.append(rate)
    return kept, busy, sum(rates) / turns


async def until_gone(node: EmbeddedNode) -> tuple[float, float]:
    """Return how many ended jobs went, and how long it took until none was left."""
    connection = await Connection().open(node.socket)
    began = time.perf_counter()
    while not await metric(connection, "jobs_ended"):
        await asyncio.sleep(0.01)
    while await metric(connection, "jobs_ended"):
        await asyncio.sleep(0.05)
    removed = await metric(connection, "jobs_removed_total")
    connection.close()
    return removed, time.perf_counter() - began


async def metric(connection: Connection, name: str) -> float:
    text = await connection.text("/metrics")
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None, f"there is no metric {name}"
    return float(found[1])


def measure(directory: Path, count: int, turns: int, seconds: float) -> None:
    uvloop.run(fill(directory / "data", count))
    with EmbeddedNode(directory, env=KEEP_ENV) as node:
        node.kill()
        began = time.perf_counter()
        node.start()
        show(f"SIGKILL → serving, {count:,} ended jobs", f"{time.perf_counter() - began:.2f} s")
    kept, busy, rate = uvloop.run(by_turns(directory / "data", turns, seconds))
    show("ended jobs that go a second, one client submitting", f"{rate:.0f}/s")
    for name, now, before in zip(("p50", "p99"), percentiles(busy), percentiles(kept), strict=True):
        show(f"submit one job meanwhile, {name}", f"{now:.2f} ms", f"{now / before:.2f} × {before:.2f} ms")
    with EmbeddedNode(directory, env=LET_GO_ENV) as node:
        removed, spent_s = uvloop.run(until_gone(node))
        show("ended jobs that go a second, nothing else to do", f"{removed / spent_s:.0f}/s", f"{removed:,.0f} jobs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="per turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-retention-") as name:
        measure(Path(name) / "node", options.jobs, options.turns, options.seconds)


if __name__ == "__main__":
    main()
