"""The checker of histories: what it accepts, what it catches, and how it says so."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.histories import FAULTS, Fault, make_history, without_revisions
from tests.support.linearizability import Operation, assert_linearizable, check

SEEDS = range(8)


def op(kind: Any, called: int, answered: int | None, value: str | None = None, **more: Any) -> Operation:
    return Operation(client=0, key="k", kind=kind, called_ns=called, answered_ns=answered, value=value, **more)


@pytest.mark.parametrize("lost_answers", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_one_copy_answered_is_linearizable(seed: int, lost_answers: float) -> None:
    # Given clients of one copy of the data, whose calls overlap, and some of whose answers are lost
    history = make_history(random.Random(seed), operations=400, clients=8, keys=3, lost_answers=lost_answers)
    # Then their history is found to be linearizable, also by a checker that is told no revisions
    assert_linearizable(history)
    assert_linearizable(without_revisions(history))


@pytest.mark.parametrize("revisions", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_caught(fault: Fault, revisions: bool) -> None:
    # Given histories with one fault each, and with lost answers that could excuse much
    for seed in SEEDS:
        history = make_history(random.Random(seed), operations=1000, keys=6, lost_answers=0.05, fault=fault)
        # When they are checked, then the fault is found, and shown with a few of the operations
        verdict = check(history if revisions else without_revisions(history))
        assert verdict.outcome == "violation", f"seed {seed}"
        assert 0 < verdict.explanation.count("client") <= 20, verdict.explanation


def test_the_explanation_is_the_contradiction_and_nothing_else() -> None:
    # Given a stale read among many other operations
    noise = [op("put", at, at + 5, f"n{at}") for at in range(1, 1000, 10)]
    old = op("put", 2000, 2001, "old")
    new = op("put", 2002, 2003, "new")
    stale = op("get", 2004, 2005, "old")
    later = [op("get", at, at + 1, "new") for at in range(3000, 3100, 2)]
    # Then it is told by the read, the write that it did not see, and the one that it saw
    verdict = check([*noise, old, new, stale, *later])
    assert verdict.outcome == "violation"
    title, *lines = [line.split("  k  ")[-1] for line in verdict.explanation.splitlines()]
    assert title == "key 'k': no order explains these 3 of 153 operations"
    assert lines == ["put 'old': done", "put 'new': done", "get: 'old'"]


def test_a_write_without_an_answer_may_have_happened_late_or_never() -> None:
    lost = op("put", 0, None, "lost")
    # It may be seen long after, and stay unseen before
    assert_linearizable([lost, op("put", 1, 2, "a"), op("get", 3, 4, "a"), op("get", 50, 51, "lost")])
    # It may never be seen
    assert_linearizable([lost, op("put", 1, 2, "a"), op("get", 3, 4, "a"), op("get", 50, 51, "a")])
    # It happens once at most: what was overwritten does not come back
    verdict = check(
        [lost, op("get", 1, 2, "lost"), op("put", 3, 4, "a"), op("get", 5, 6, "a"), op("get", 7, 8, "lost")]
    )
    assert verdict.outcome == "violation"
    # It does not happen before it was called
    assert check([op("get", 0, 1, "late"), op("put", 2, None, "late")]).outcome == "violation"


def test_lost_deletes_and_compare_and_sets() -> None:
    a = op("put", 0, 1, "a")
    # A lost delete explains that the key is gone; a lost cas that it has the new value, from the old one only
    assert_linearizable([a, op("delete", 2, None), op("get", 3, 4, None)])
    assert_linearizable([a, op("cas", 2, None, "b", expected="a"), op("get", 3, 4, "b")])
    assert check([a, op("cas", 2, None, "b", expected="x"), op("get", 3, 4, "b")]).outcome == "violation"
    # They may build on each other
    chain = [op("cas", 2, None, "b", expected="a"), op("cas", 2, None, "c", expected="b"), op("get", 3, 4, "c")]
    assert_linearizable([a, *chain])
    # A cas that found what it did not expect, or did not find what was there, is a contradiction
    assert check([a, op("cas", 2, 3, "b", expected="x")]).outcome == "violation"
    assert check([a, op("cas", 2, 3, "b", expected="a", succeeded=False)]).outcome == "violation"


def test_revisions_are_held_to_the_clock_over_all_keys() -> None:
    first = Operation(client=0, key="a", kind="put", called_ns=0, answered_ns=1, value="1", revision=5)
    second = Operation(client=1, key="b", kind="put", called_ns=2, answered_ns=3, value="2", revision=4)
    assert "an older revision" in check([first, second]).explanation
    stale = Operation(client=1, key="a", kind="get", called_ns=2, answered_ns=3, value="0", revision=4)
    assert "a read found an older revision" in check([first, stale]).explanation
    assert_linearizable(
        [first, replace(stale, key="b"), Operation(client=2, key="b", kind="put", called_ns=0, value="0")]
    )
    twin = Operation(client=1, key="b", kind="put", called_ns=0, answered_ns=3, value="2", revision=5)
    assert "two changes have one revision" in check([first, twin]).explanation


def test_giving_up_is_said_and_is_a_failure() -> None:
    # Given a history whose search is longer than allowed: writes that all overlap, and a read that saw none of them
    many = [op("put", 0, 100, f"v{number}") for number in range(30)]
    history = [*many, op("get", 101, 102, "v1"), op("get", 103, 104, "v2")]
    # Then the outcome is neither yes nor no, and a test fails by it
    verdict = check(history, limit=5_000)
    assert verdict.outcome == "unknown"
    assert "proves nothing" in verdict.explanation
    with pytest.raises(AssertionError, match="unknown"):
        assert_linearizable(history, limit=5_000)


def test_tens_of_thousands_of_operations_are_checked_in_seconds() -> None:
    history = make_history(random.Random(1), operations=30_000, clients=30, keys=30, lost_answers=0.01)
    started = time.process_time()
    assert_linearizable(history)
    assert time.process_time() - started < 20
