"""`make bench`: what the node does beside what the same machine can do, in one run; prints ratios.

python -m benchmarks [--seconds 5] [--queued 100000] [--only jobs,latency,kv,ids,depth,memory]
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import spawn_rate
from benchmarks.load import ECHO, TRUE, Connection, closed_loop, percentiles, request
from benchmarks.report import show
from jobs.protocol.ids import uuid7
from jobs.testing import EmbeddedNode

SLOTS = 4
BATCH = 160
ID_TURNS = 5
"""Turns with and without request ids each; the median counts."""


async def jobs_rate(node: EmbeddedNode, options: argparse.Namespace) -> None:
    """Durable, isolated jobs a second against the raw rate of the same isolation."""
    raw = spawn_rate.measure(options.seconds, SLOTS)["sandbox_per_s"]
    connection = await Connection().open(node.socket)
    warm = BATCH
    count = int(raw * options.seconds) // BATCH * BATCH + BATCH
    batch = request("POST", "/v1/jobs:batch", {"jobs": [TRUE] * BATCH})
    started = 0.0
    ids: list[str] = []
    for number in range(0, count + warm, BATCH):
        answer: Any = await connection.send(batch)
        ids += [item["job"]["id"] for item in answer["jobs"]]
        if number == 0:
            await connection.ask("GET", f"/v1/jobs/{ids[warm - 1]}/wait?timeout_s=60")
            started = time.perf_counter()
    for job in ids[-1:-20:-1]:
        await connection.ask("GET", f"/v1/jobs/{job}/wait?timeout_s=300")
    rate = (len(ids) - warm) / (time.perf_counter() - started)
    show("shell jobs, durable and isolated, 4 slots", f"{rate:.0f}/s", f"{rate / raw:.0%} of raw spawns ({raw:.0f}/s)")


async def latency(node: EmbeddedNode, options: argparse.Namespace) -> None:
    """Submit to result of `echo hello` on an idle node, one client."""
    submit = request("POST", "/v1/jobs", ECHO)

    async def once(connection: Connection, number: int) -> None:
        answer: Any = await connection.send(submit)
        result: Any = await connection.ask("GET", f"/v1/jobs/{answer['job']['id']}/result?timeout_s=10")
        assert result["stdout"]["text"] == "hello\n"

    await closed_loop(node.socket, 1, 1, once)
    _, latencies = await closed_loop(node.socket, 1, options.seconds, once)
    raw = spawn_rate.measure(1, 1)
    p50, p99 = percentiles(latencies)
    show("submit → result of echo hello, p50", f"{p50:.2f} ms", f"{p50 / raw['echo_p50_ms']:.2f} × the sandbox alone")
    show("submit → result of echo hello, p99", f"{p99:.2f} ms", f"{p99 / raw['echo_p99_ms']:.2f} × the sandbox alone")


def fsync_rate(directory: Path, seconds: float) -> float:
    """Return how many 256-byte writes, each made durable, one thread does a second in a file allocated before."""
    descriptor = os.open(directory / "fsync-probe", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, bytes(16 << 20), 0)
        os.fsync(descriptor)
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            os.pwrite(descriptor, b"x" * 256, (count * 256) % (16 << 20))
            os.fdatasync(descriptor)
            count += 1
        return count / seconds
    finally:
        os.close(descriptor)
        (directory / "fsync-probe").unlink()


async def kv_writes(node: EmbeddedNode, options: argparse.Namespace) -> None:
    """Key-value writes a second, each acknowledged after its fsync, at 1, 16 and 256 clients."""
    value = "v" * 256

    async def once(connection: Connection, number: int) -> None:
        put = {"key": f"/data/bench/{number}", "value": {"text": value}}
        await connection.send(request("POST", "/v1/kv:put", put))

    for clients in (1, 16, 256):
        disk = fsync_rate(node.directory, options.seconds / 2)
        rate, latencies = await closed_loop(node.socket, clients, options.seconds, once)
        p50, p99 = percentiles(latencies)
        against = f"{rate / disk:.2f} × the disk's fsyncs ({disk:.0f}/s), p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        show(f"KV writes, fsynced, {clients} clients", f"{rate:.0f}/s", against)


async def request_ids(node: EmbeddedNode, options: argparse.Namespace) -> None:
    """The same writes with an id each, which the node remembers, and without; turn by turn, so that both have the same
    machine and the same store."""
    value = "v" * 256

    def once(with_ids: bool) -> Callable[[Connection, int], Awaitable[object]]:
        async def send(connection: Connection, number: int) -> None:
            put = {"key": f"/data/bench/{number}", "value": {"text": value}}
            name = uuid7(time.time_ns() // 1_000_000, secrets.randbits(74)) if with_ids else None
            await connection.send(request("POST", "/v1/kv:put", put, request_id=name))

        return send

    for clients in (1, 16, 256):
        rates: dict[bool, list[float]] = {True: [], False: []}
        costs_us: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * ID_TURNS):
            with_ids, used_s = turn % 2 == 1, processor_s(node.pid)
            rate, latencies = await closed_loop(node.socket, clients, options.seconds / ID_TURNS, once(with_ids))
            rates[with_ids].append(rate)
            costs_us[with_ids].append((processor_s(node.pid) - used_s) / len(latencies) * 1e6)
        (known, plain), (cost, plain_cost) = (
            (statistics.median(found[True]), statistics.median(found[False])) for found in (rates, costs_us)
        )
        against = (
            f"{known / plain:.2f} × without ({plain:.0f}/s); "
            f"{cost:.0f} µs of processor a write, {cost / plain_cost:.2f} × without"
        )
        show(f"KV writes with request ids, {clients} clients", f"{known:.0f}/s", against)


async def depth(node: EmbeddedNode, options: argparse.Namespace) -> None:
    """What a submission costs at 1,000 and at many queued jobs; nobody takes them."""
    waiting = {"type": "shell", "payload": {"argv": ["true"]}, "requires": {"labels": {"never": "there"}}}
    batch = request("POST", "/v1/jobs:batch", {"jobs": [waiting] * BATCH})
    single = request("POST", "/v1/jobs", waiting)

    async def once(connection: Connection, number: int) -> None:
        await connection.send(single)

    connection = await Connection().open(node.socket)
    costs: dict[int, float] = {}
    memory: dict[int, int] = {}
    queued = 0
    for target in (1_000, options.queued):
        while queued < target:
            await connection.send(batch)
            queued += BATCH
        _, latencies = await closed_loop(node.socket, 1, options.seconds, once)
        queued += len(latencies)
        costs[target], _ = percentiles(latencies)
        memory[target] = anonymous_bytes(node.pid)
    first, last = costs[1_000], costs[options.queued]
    show(
        f"submit at {options.queued:,} queued, p50", f"{last:.3f} ms", f"{last / first:.2f} × at 1,000 ({first:.3f} ms)"
    )
    per_job = (memory[options.queued] - memory[1_000]) / (options.queued - 1_000)
    show("resident memory per queued job", f"{per_job:.0f} B", "beside the page cache's share of the store")


async def memory(node: EmbeddedNode, options: argparse.Namespace) -> None:
    show("resident memory of an idle node", f"{anonymous_bytes(node.pid) / 1048576:.0f} MiB", "without file pages")


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory that is not a file's, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no RssAnon")


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_node(directory: Path) -> EmbeddedNode:
    return EmbeddedNode(directory, env={"JOBS_WORKERS__SHELL__SLOTS": str(SLOTS)})


PARTS: dict[str, Callable[[EmbeddedNode, argparse.Namespace], Awaitable[None]]] = {
    "memory": memory,
    "latency": latency,
    "jobs": jobs_rate,
    "kv": kv_writes,
    "ids": request_ids,
    "depth": depth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    for part in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory, bench_node(Path(directory)) as node:
            uvloop.run(PARTS[part](node, options))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
