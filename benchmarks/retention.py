"""What it costs to let ended jobs go: how fast they do, and what one who submits meanwhile notices of it.

    python -m benchmarks.retention [--jobs 100000] [--clients 4]

The store is filled with completed jobs, each with its submission, a result, some output and an idempotency key. Then
a node is started that keeps them, and one that keeps none of them; the same clients submit jobs to both.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

import uvloop
from msgspec.structs import replace

from benchmarks.load import TRUE, Connection, closed_loop, percentiles, request
from benchmarks.report import show
from jobs import jobs, keys, records
from jobs._native import Log, Store
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.transitions import write_ops
from jobs.protocol.ids import Attempt, Incarnation, JobId, JobIdSource, WorkerId
from jobs.protocol.model import Execution, JobState, ShellJob, ShellPayload, StreamInfo
from jobs.records import IdempotencyRecord, LogChunk, ResultRecord
from jobs.store import Op, Put, Txn
from jobs.testing import EmbeddedNode

LOT: Final = 1_000
HOUR_MS: Final = 3_600_000
OUTPUT: Final = b"x" * 200
KEPT: Final = {"JOBS_RETENTION__MAX_JOBS": "10000000"}
GONE: Final = {**KEPT, "JOBS_RETENTION__KEEP_S": "1800"}


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


async def metric(connection: Connection, name: str) -> float:
    text = await connection.text("/metrics")
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None, f"there is no metric {name}"
    return float(found[1])


async def submitted(node: EmbeddedNode, clients: int, until: Awaitable[object]) -> tuple[float, list[float]]:
    """Let clients submit jobs until something is done; return the rate and the latencies in ms."""
    job = request("POST", "/v1/jobs", {**TRUE, "not_before_ms": wall_ms() + 24 * HOUR_MS})
    done = asyncio.ensure_future(until)

    async def once(connection: Connection, number: int) -> None:
        await connection.send(job)

    rates: list[float] = []
    latencies: list[float] = []
    while not done.done():
        rate, found = await closed_loop(node.socket, clients, 1.0, once)
        rates.append(rate)
        latencies += found
    return sum(rates) / len(rates), latencies


async def until_removed(node: EmbeddedNode, count: int) -> float:
    """Return how long it takes until so many jobs are gone."""
    connection = await Connection().open(node.socket)
    began = time.perf_counter()
    while await metric(connection, "jobs_removed_total") < count:
        await asyncio.sleep(0.1)
    connection.close()
    return time.perf_counter() - began


def measure(directory: Path, count: int, clients: int, seconds: float) -> None:
    uvloop.run(fill(directory / "data", count))
    with EmbeddedNode(directory, env=KEPT) as node:
        rate, kept = uvloop.run(submitted(node, clients, asyncio.sleep(seconds)))
        node.kill()
        began = time.perf_counter()
        node.start()
        show(f"SIGKILL → serving, {count:,} ended jobs", f"{time.perf_counter() - began:.2f} s")
    node = EmbeddedNode(directory, env=GONE)
    with node:
        both: Any = uvloop.run(together(node, clients, count))
        spent_s, (busy_rate, busy) = both
    show("ended jobs that go a second, others submitting", f"{count / spent_s:.0f}/s", f"{count:,} in {spent_s:.1f} s")
    for name, now, before in zip(("p50", "p99"), percentiles(busy), percentiles(kept), strict=True):
        show(f"submit meanwhile, {clients} clients, {name}", f"{now:.2f} ms", f"{now / before:.2f} × {before:.2f} ms")
    show("submissions a second meanwhile", f"{busy_rate:.0f}/s", f"{busy_rate / rate:.2f} × {rate:.0f}/s")


async def together(node: EmbeddedNode, clients: int, count: int) -> tuple[float, tuple[float, list[float]]]:
    removed = asyncio.ensure_future(until_removed(node, count))
    found = await submitted(node, clients, asyncio.shield(removed))
    return await removed, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the measurement before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobs-retention-") as name:
        measure(Path(name) / "node", options.jobs, options.clients, options.seconds)


if __name__ == "__main__":
    main()
