"""Run seeds: `python -m tests.support.simulation --seed 7`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.support.simulation.bugs import BUGS, Bug
from tests.support.simulation.plan import Plan
from tests.support.simulation.run import Report, simulate
from tests.support.simulation.world import Violation


def run(seed: int, bug: Bug | None, *, keep_trace: bool) -> Report:
    if bug is None:
        return simulate(Plan.of(seed), keep_trace=keep_trace)
    with bug.planted():
        return simulate(bug.plan_of(seed), keep_trace=keep_trace)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant a fault that must be found")
    parser.add_argument("--keep-going", action="store_true", help="tell every seed that breaks something")
    options = parser.parse_args()
    began = time.monotonic()
    totals: Counter[str] = Counter()
    broken = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            report = run(seed, BUGS.get(options.bug), keep_trace=options.trace)
        except Violation as violation:
            broken += 1
            print(violation, file=sys.stderr)
            if not options.keep_going:
                return 1
            continue
        totals.update(report.counts)
        totals.update(seeds=1, steps=report.steps)
        if options.trace:
            print("\n".join(report.trace))
        if options.count == 1:
            print(f"seed {seed}: {report.steps} steps, {report.virtual_s:.1f} s, trace {report.digest}")
    print(
        f"{time.monotonic() - began:.1f} s; " + ", ".join(f"{name} {count}" for name, count in sorted(totals.items()))
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
