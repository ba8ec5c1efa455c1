"""What clients notice of maintenance, and how much room it gives back.

    python -m benchmarks.maintenance [--jobs 50000] [--churn 200000] [--turns 3] [--seconds 5] [--only verify,metrics]

A node has ended jobs, and keys of which most were changed and deleted again. One client runs `echo hello`, one puts
keys, one gets keys, each as soon as it has its last answer: by turns while nothing else goes on, and while an operation
of maintenance does, again and again. Then history, log and file are compacted, and held against what the store has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.load import ECHO, Connection, closed_loop, percentiles, request
from benchmarks.report import show
from benchmarks.retention import fill
from jobs._native import Log, Store
from jobs.client.maintenance import maintenance_job
from jobs.consensus import Consensus
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceCompact,
    MaintenanceHealth,
    MaintenanceMetrics,
    MaintenancePayload,
    MaintenanceResult,
    MaintenanceVerify,
)
from jobs.store import Delete, Op, Put, Txn, prefix_end
from jobs.testing import EmbeddedNode

LOT: Final = 500
VALUE: Final = b"v" * 400
CHURN: Final = b"/data/churn/"
KEPT: Final = 20
"""One key of so many stays."""
KEYS: Final = 1_000
"""That the clients put and get."""
ENV: Final = {"JOBS_RETENTION__MAX_JOBS": "10000000", "JOBS_MAINTENANCE__SCHEDULES": "false"}
OPERATIONS: Final[dict[str, MaintenancePayload]] = {
    "compact log": MaintenanceCompact(parts=["log"]),
    "compact history": MaintenanceCompact(parts=["history"], history_age_s=0, history_events=0),
    "compact file": MaintenanceCompact(parts=["file"]),
    "cleanup": MaintenanceCleanup(parts=["jobs", "audit", "leases", "arrays", "blobs"]),
    "health": MaintenanceHealth(),
    "verify": MaintenanceVerify(parts=["log", "store", "snapshots"]),
    "metrics": MaintenanceMetrics(),
}


async def churn(data: Path, count: int) -> None:
    """Put and delete so many keys."""
    log, store = Log(str(data / "log")), Store(str(data / "store"))
    consensus = Consensus("one", log, store)
    await consensus.start()
    for first in range(0, count, LOT):
        puts: list[Op] = [Put(CHURN + b"%09d" % number, VALUE) for number in range(first, first + LOT)]
        await consensus.propose(Txn(then=tuple(puts)), LOT * len(VALUE))
    for first in range(0, count, LOT):
        gone: list[Op] = [Delete(CHURN + b"%09d" % number) for number in range(first, first + LOT) if number % KEPT]
        await consensus.propose(Txn(then=tuple(gone)), LOT * 64)
    await consensus.stop()
    store.close()
    log.close()


# --- what clients notice ----------------------------------------------------------------------------------------------

Latencies = dict[str, list[float]]
"""In ms, by what was asked."""


async def echo(connection: Connection, number: int) -> None:
    answer: Any = await connection.send(request("POST", "/v1/jobs", ECHO))
    await connection.ask("GET", f"/v1/jobs/{answer['job']['id']}/result?timeout_s=60")


async def kv_put(connection: Connection, number: int) -> None:
    body = {"key": f"/data/front/{number % KEYS}", "value": {"text": "x" * 100}}
    await connection.send(request("POST", "/v1/kv:put", body))


async def kv_get(connection: Connection, number: int) -> None:
    await connection.send(request("GET", f"/v1/kv?key=/data/front/{number % KEYS}"))


FOREGROUND: Final[dict[str, Callable[[Connection, int], Awaitable[object]]]] = {
    "echo hello": echo,
    "kv put": kv_put,
    "kv get": kv_get,
}


async def foreground(socket: Path, seconds: float) -> Latencies:
    found = await asyncio.gather(*(closed_loop(socket, 1, seconds, once) for once in FOREGROUND.values()))
    return {name: latencies for name, (_, latencies) in zip(FOREGROUND, found, strict=True)}


def repeat(node: EmbeddedNode, payload: MaintenancePayload, until_s: float) -> list[MaintenanceResult]:
    """Carry an operation out again and again; return what each came to."""
    done: list[MaintenanceResult] = []
    with node.client() as client:
        while time.monotonic() < until_s or not done:
            done.append(client.maintenance.perform(payload))
    return done


async def turn(node: EmbeddedNode, payload: MaintenancePayload, seconds: float) -> tuple[Latencies, int, float]:
    """Measure while an operation goes on; return that, how often it was carried out, and how long it took first."""
    began_s = time.monotonic()
    work = asyncio.create_task(asyncio.to_thread(repeat, node, payload, began_s + seconds))
    latencies = await foreground(node.socket, seconds)
    done = await work
    return latencies, len(done), done[0].seconds


async def measure(node: EmbeddedNode, names: list[str], turns: int, seconds: float) -> None:
    connection = await Connection().open(node.socket)
    for number in range(KEYS):
        await kv_put(connection, number)
    connection.close()
    await foreground(node.socket, 2.0)
    for name in names:
        idle: Latencies = {kind: [] for kind in FOREGROUND}
        busy: Latencies = {kind: [] for kind in FOREGROUND}
        times, took_s = 0, 0.0
        for number in range(turns):
            _add(idle, await foreground(node.socket, seconds))
            latencies, count, first_s = await turn(node, OPERATIONS[name], seconds)
            _add(busy, latencies)
            times += count
            took_s = took_s if number else first_s
        show(name, f"{took_s:.2f} s", f"the first time; {times} times in all")
        for kind in FOREGROUND:
            for what, now, before in zip(("p50", "p99"), percentiles(busy[kind]), percentiles(idle[kind]), strict=True):
                show(f"  {kind} meanwhile, {what}", f"{now:.2f} ms", f"{now / before:.2f} × {before:.2f} ms")


def _add(sums: Latencies, latencies: Latencies) -> None:
    for kind, found in latencies.items():
        sums[kind] += found


# --- room -------------------------------------------------------------------------------------------------------------


def sizes(directory: Path) -> tuple[int, int]:
    """Return the bytes of a stopped node's store on disk, and of its log."""
    data = directory / "data"
    store = Store(str(data / "store"))
    file_bytes, _ = store.file_bytes()
    store.close()
    return file_bytes, sum(path.stat().st_blocks * 512 for path in (data / "log").iterdir())


def live_bytes(directory: Path) -> int:
    """Return the bytes of the keys and values that there are."""
    store = Store(str(directory / "data" / "store"))
    total, start, more = 0, b"\x00", True
    while more:
        rows, more = store.range(start, prefix_end(b"\xfe"), limit=10_000)
        total += sum(len(key) + len(value) for key, value, *_ in rows)
        start = rows[-1][0] + b"\x00" if rows else start
    store.close()
    return total


def room(directory: Path) -> None:
    """Compact all, and say what that gives back."""
    before_file, before_log = sizes(directory)
    with EmbeddedNode(directory, types=("maintenance",), env=ENV) as node, node.client() as client:
        client.run(maintenance_job(MaintenanceCompact(history_age_s=0, history_events=0)))
        # What was free in the file and is not in its copy
        client.run(maintenance_job(MaintenanceCompact(parts=["log"])))
    after_file, after_log = sizes(directory)
    live = live_bytes(directory)
    show("store's file", f"{after_file / 1e6:.1f} MB", f"of {before_file / 1e6:.1f} MB")
    show("  beside the keys and values that there are", f"{after_file / live:.2f} ×", f"{live / 1e6:.1f} MB")
    show("log", f"{after_log / 1e6:.1f} MB", f"of {before_log / 1e6:.1f} MB")


@contextlib.contextmanager
def filled(options: argparse.Namespace) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jobs-maintenance-") as name:
        directory = Path(name) / "node"
        uvloop.run(fill(directory / "data", options.jobs))
        uvloop.run(churn(directory / "data", options.churn))
        yield directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--churn", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="per turn")
    parser.add_argument("--only", default=",".join(OPERATIONS), help="operations, by commas")
    options = parser.parse_args()
    with filled(options) as directory:
        with EmbeddedNode(directory, types=("shell", "maintenance"), env=ENV) as node:
            uvloop.run(measure(node, options.only.split(","), options.turns, options.seconds))
        room(directory)


if __name__ == "__main__":
    main()
