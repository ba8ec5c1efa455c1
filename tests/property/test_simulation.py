"""Several members under faults, with virtual time: whatever the seed, what holds always holds.

A failure prints its seed; `python -m tests.support.simulation --seed N` shows the same again, step by step.
JOBS_TEST_SCALE makes the campaign longer, JOBS_TEST_SEED runs one seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.simulation.bugs import BUGS, Bug, seeds_to_try
from tests.support.simulation.plan import FAULTS, SCENARIOS, Plan
from tests.support.simulation.run import simulate
from tests.support.simulation.world import Violation

ROOT = Path(__file__).parents[2]
SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEEDS = 200
LOTS = 8
BUG_SEEDS = 60


def seeds(lot: int) -> Iterator[int]:
    one = os.environ.get("JOBS_TEST_SEED")
    if one is not None:
        return iter([int(one)] if lot == 0 else [])
    # A longer campaign tries others, too.
    return iter(range(lot, SEEDS * SCALE, LOTS))


@pytest.mark.parametrize("lot", range(LOTS))
def test_nothing_is_lost_doubled_or_stale_whatever_goes_wrong(lot: int) -> None:
    totals: Counter[str] = Counter()
    for seed in seeds(lot):
        report = simulate(Plan.of(seed))
        totals.update(report.counts)
        totals["seeds"] += 1
    print(", ".join(f"{name} {count}" for name, count in sorted(totals.items())))
    if totals["seeds"] < SEEDS // LOTS:
        return
    # The campaign did what it says: every kind of fault, and enough of what they are to disturb.
    for fault in (*FAULTS, *SCENARIOS):
        assert totals[f"fault {fault}"] > 0, fault
    for what in (
        "acknowledged write",
        "linearizable read",
        "result",
        "election",
        "truncation",
        "install",
        "snapshot",
        "done before",
    ):
        assert totals[what] > 0, what


def test_the_same_seed_does_the_same_byte_for_byte_also_in_another_process() -> None:
    program = (
        "from tests.support.simulation.run import simulate\n"
        "from tests.support.simulation.plan import Plan\n"
        "for seed in range(3, 9): print(*simulate(Plan.of(seed), keep_trace=True).trace, sep='\\n')"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(traces.pop().splitlines()) > 500


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_a_planted_fault_is_found(bug: Bug) -> None:
    with bug.planted():
        for tried, seed in enumerate(seeds_to_try(bug, BUG_SEEDS), 1):
            try:
                simulate(bug.plan_of(seed))
            except Violation as violation:
                if violation.rule == "nothing unexpected is raised":
                    pytest.fail(f"this mistake does not fit the code any more: {violation}")
                print(f"{bug.about}: seed {seed}, the {tried}. one: {violation.rule}")
                return
    pytest.fail(f"{bug.about}: not found by {BUG_SEEDS} seeds")


def test_a_violation_says_how_to_see_it_again() -> None:
    bug = BUGS["answer-before-sync"]
    with bug.planted(), pytest.raises(Violation) as caught:
        simulate(bug.plan_of(bug.seed))
    text = str(caught.value)
    assert "what is acknowledged is durable" in text
    seed = caught.value.seed
    assert f"python -m tests.support.simulation --seed {seed} --bug answer-before-sync" in text
    # The command shows the same step.
    again = subprocess.run(
        [sys.executable, "-m", "tests.support.simulation", "--seed", str(seed), "--bug", bug.name],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 1
    assert f"step {caught.value.step};" in again.stderr
