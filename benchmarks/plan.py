"""What a plan costs, by what waits: the scheduler alone, without store, log or workers.

    python -m benchmarks.plan [--assignments 2000]

Each line is one backlog behind one worker. A round is what happens in a node whenever a job ends: its room and its
limits come free, a plan is made, one job is started. `peak` is the memory that the backlog took, by tracemalloc.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from jobs import keys
from jobs.protocol.ids import Incarnation, WorkerId, uuid7
from jobs.protocol.model import Requires
from jobs.records import Demand
from jobs.scheduler import Amounts, Backlog, Candidate, Plan, plan

PLAIN = Demand("shell", Requires())
Entries = Iterator[tuple[bytes, Demand]]


def entry(number: int, demand: Demand, owner: int = 1) -> tuple[bytes, Demand]:
    return keys.queue("default", owner, demand.lane(), 0, number, uuid7(number, number)), demand


def plain(count: int) -> Entries:
    return (entry(number, PLAIN) for number in range(count))


def owners(count: int) -> Entries:
    return (entry(number, PLAIN, owner=number) for number in range(count))


def lanes(count: int, of: int) -> Entries:
    demands = [replace(PLAIN, concurrency_key=f"key-{number}") for number in range(of)]
    return (entry(number, demands[number % of]) for number in range(count))


def one_key(count: int) -> Entries:
    """All under one concurrency key, and one job without it at the end of each thousand."""
    locked = replace(PLAIN, concurrency_key="one")
    return (entry(number, PLAIN if number % 10 == 9 else locked) for number in range(count))


def hopeless(count: int) -> Entries:
    """Nine of ten ask, each in its own way, for what no worker has."""
    for number in range(count):
        wrong = Demand("shell", Requires(labels={"host": str(number)}))
        yield entry(number, PLAIN if number % 10 == 9 else wrong)


def large(count: int) -> Entries:
    """Nine of ten ask, each in its own way, for all that the worker has; it is never idle."""
    for number in range(count):
        whole = Demand("shell", Requires(cpu_milli=1_000_000 - number))
        yield entry(number, PLAIN if number % 10 == 9 else whole)


SCENES: list[tuple[str, Callable[[], Entries]]] = [
    ("1,000 jobs in 1 lane", lambda: plain(1_000)),
    ("100,000 jobs in 1 lane", lambda: plain(100_000)),
    ("1,000 jobs in 10 lanes", lambda: lanes(1_000, 10)),
    ("100,000 jobs in 10 lanes", lambda: lanes(100_000, 10)),
    ("100,000 jobs in 100,000 lanes (keys)", lambda: lanes(100_000, 100_000)),
    ("100,000 jobs of 10,000 owners", lambda: (entry(n, PLAIN, owner=n % 10_000) for n in range(100_000))),
    ("100,000 jobs, 9 of 10 under one taken key", lambda: one_key(100_000)),
    ("100,000 jobs, 9 of 10 suit no worker, each its own way", lambda: hopeless(100_000)),
    ("100,000 jobs, 9 of 10 too large just now, each its own way", lambda: large(100_000)),
]


class Bench:
    """One worker with four slots, of which three and some of its CPU are always taken."""

    def __init__(self, entries: Entries) -> None:
        self.backlog = Backlog()
        self.now_ms = 1_000_000
        total = Amounts(slots=4, cpu_milli=1_000_000, memory_bytes=1 << 40)
        free = Amounts(slots=1, cpu_milli=1_000, memory_bytes=1 << 40)
        self.worker = Candidate(
            worker=WorkerId("w"),
            incarnation=Incarnation("i"),
            type="shell",
            labels={},
            open=True,
            total=total,
            free=free,
        )
        self.full = replace(self.worker, free=replace(free, slots=0))
        self.stored: dict[bytes, list[bytes]] = {}
        for key, demand in entries:
            self.stored.setdefault(keys.lane_of(key), []).append(key)
            self.backlog.add(key, demand)

    def round(self) -> Plan:
        made = plan(self.backlog, [self.worker], self.now_ms, 256)
        assert len(made.assignments) <= 1
        return made

    def settle(self) -> int:
        """Make plans until one starts a job: after a start of the node, every lane is looked at once."""
        count = 1
        while not (made := self.round()).assignments:
            count += 1
            assert made.wake_ms == self.now_ms, "nothing can be started"
        self._end(made)
        return count

    def _end(self, made: Plan) -> None:
        plan(self.backlog, [self.full], self.now_ms, 256)
        for item in made.assignments:
            self.backlog.end(item.job)
        for lane, after in self.backlog.wants_more():
            rest = [key for key in self.stored[lane] if key > after][:1024]
            demand = PLAIN
            self.backlog.fill(lane, [(key, demand) for key in rest], bool(rest) and rest[-1] != self.stored[lane][-1])

    def run(self, assignments: int) -> tuple[float, float]:
        """Return the mean and the longest time of a plan in microseconds."""
        spent, longest = 0.0, 0.0
        done = 0
        while done < assignments:
            began = time.perf_counter()
            made = self.round()
            took = time.perf_counter() - began
            spent, longest = spent + took, max(longest, took)
            done += len(made.assignments)
            if not made.assignments and made.wake_ms != self.now_ms:
                break
            began = time.perf_counter()
            for item in made.assignments:
                self.backlog.end(item.job)
            spent += time.perf_counter() - began
            self._end(Plan([], None))
        return spent / max(1, done) * 1e6, longest * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assignments", type=int, default=500)
    options = parser.parse_args()
    print(f"{'backlog':<60} {'first, ms':>10} {'mean, µs':>9} {'max, µs':>9} {'peak, MB':>9}")
    for name, entries in SCENES:
        gc.collect()
        tracemalloc.start()
        Backlog()
        before = tracemalloc.get_traced_memory()[0]
        held = Backlog()
        for key, demand in entries():
            held.add(key, demand)
        peak_mb = (tracemalloc.get_traced_memory()[0] - before) / 1e6
        tracemalloc.stop()
        del held
        bench = Bench(entries())
        began = time.perf_counter()
        bench.settle()
        first_ms = (time.perf_counter() - began) * 1e3
        mean_us, max_us = bench.run(options.assignments)
        print(f"{name:<60} {first_ms:>10.1f} {mean_us:>9.0f} {max_us:>9.0f} {peak_mb:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
