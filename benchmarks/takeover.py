"""How long a node that begins to lead takes to take up the work, and for how long it answers nothing meanwhile.

    python -m benchmarks.takeover [--jobs 1000000]

The store holds so many pending jobs: most in one queue of one owner, the rest in lanes of their own. Heartbeats leave
from the same event loop, so its longest pause has to stay far below the time after which others elect another leader.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.report import show
from jobs import jobs, keys, records
from jobs._native import Store
from jobs.clock import wall_ms
from jobs.control import ControlConfig, Site
from jobs.control.transitions import write_ops
from jobs.node import settle_memory
from jobs.protocol.ids import JobIdSource
from jobs.protocol.model import ShellJob, ShellPayload
from jobs.store import Op, Put, Txn, encode_command

LOT: Final = 250
LANES: Final = 20
"""One job in so many has a concurrency key of its own."""
NOISE_S: Final = 2.0
TURN_S: Final = 0.001
"""How often the event loop is felt for."""


class Leader:
    """Leads when it is told to; nothing is written meanwhile."""

    is_leader = False
    leader = me = "one"
    no_room = None
    fsyncs = commands = transactions = 0

    def __init__(self) -> None:
        self.on_applied = lambda: None
        self.on_leadership = lambda leads: None
        self.on_leader = lambda: None

    async def barrier(self) -> None:
        return

    def propose(self, txn: Txn, size_bytes: int = 256) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


def fill(store: Store, count: int) -> None:
    """Put so many pending jobs into a store."""
    ids, now_ms = JobIdSource(), wall_ms()
    for first in range(0, count, LOT):
        ops: list[Op] = []
        for number in range(first, min(first + LOT, count)):
            alone = number % LANES == 0
            spec = ShellJob(
                payload=ShellPayload(argv=["/bin/true"]),
                queue=f"q{number % 100}" if alone else "default",
                concurrency_key=f"k{number}" if alone else None,
            )
            job = ids.next(now_ms, number)
            record = jobs.on_submit(spec, 1_000 + number % 7 if alone else 1_000, now_ms)
            ops += (Put(keys.spec(job), records.encode_spec(spec)), *write_ops(job, None, record))
        store.apply([(store.applied_index + 1, 1, encode_command([Txn(then=tuple(ops))]))])


async def feel(gaps: list[float]) -> None:
    """Note how late every turn of the event loop was."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(TURN_S)
        gaps.append(time.perf_counter() - before - TURN_S)


async def measure(store: Store, count: int) -> None:
    consensus = Leader()
    site = Site("one", consensus, store, ControlConfig(history_events=store.max_history_events))  # type: ignore[arg-type]
    gaps: list[float] = []
    feeling = asyncio.create_task(feel(gaps))
    await asyncio.sleep(NOISE_S)
    noise_s = max(gaps)
    gaps.clear()
    began_s = time.perf_counter()
    consensus.is_leader = True
    consensus.on_leadership(True)
    await site.settled()
    took_s = time.perf_counter() - began_s
    assert site.metrics()["jobs_pending"][1] == count
    show(f"take up {count:,} pending jobs", f"{took_s:.2f} s")
    beside = f"{1_000 * noise_s:.0f} ms with nothing to do for {NOISE_S:g} s; elections begin after 500 ms"
    show("longest pause of the event loop meanwhile", f"{1_000 * max(gaps):.0f} ms", beside)
    gaps.clear()
    consensus.is_leader = False
    consensus.on_leadership(False)
    await site.stop()
    await asyncio.sleep(0.1)
    feeling.cancel()
    show("the same while all that is given up", f"{1_000 * max(gaps):.0f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    count: int = parser.parse_args().jobs
    with tempfile.TemporaryDirectory(prefix="jobs-takeover-") as directory:
        store = Store(str(Path(directory) / "store"))
        fill(store, count)
        settle_memory()
        uvloop.run(measure(store, count))
        store.close()


if __name__ == "__main__":
    main()
