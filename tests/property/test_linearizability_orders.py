"""The checker of histories against trying every order, on small histories; and that it accepts what is right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.support.histories import make_history, without_revisions
from tests.support.linearizability import Operation, check

SCALE = int(os.environ.get("JOBS_TEST_SCALE", "1"))
REVISIONS = (10, 20, 30, 40)
"""Known revisions; there is room between them for changes whose revision nobody was told."""


@st.composite
def small_histories(draw: st.DrawFn, revisions: bool) -> list[Operation]:
    """Draw operations on one key with any times and any answers; most contradict each other."""
    made = []
    for client in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("put", "get", "get", "cas", "delete")))
        called = draw(st.integers(0, 8))
        answered = draw(st.one_of(st.none(), st.integers(called + 1, 10)))
        value = draw(st.sampled_from("ab")) if kind != "delete" else None
        if kind == "get":
            value = draw(st.sampled_from(("a", "b", None))) if answered is not None else None
        succeeded = answered is None or kind in ("put", "get") or draw(st.booleans())
        has_revision = revisions and answered is not None and succeeded and not (kind == "get" and value is None)
        expected: Any = draw(st.sampled_from(("a", "b", 0, *REVISIONS[:2] * revisions)))
        made.append(
            Operation(
                client=client,
                key="k",
                kind=kind,  # type: ignore[arg-type]
                called_ns=called,
                answered_ns=answered,
                value=value,
                expected=expected,
                succeeded=succeeded,
                revision=draw(st.sampled_from(REVISIONS)) if has_revision else None,
            )
        )
    return made


def explained(left: Sequence[Operation], value: str | None, revision: int, last: int, guessed: bool) -> bool:
    """Tell by trying every order, and every revision of a change whose revision is not known."""
    if not any(o.is_known for o in left):
        return True
    horizon = min(o.end_ns for o in left)
    for operation in left:
        if operation.called_ns > horizon:
            continue
        rest = [o for o in left if o is not operation]
        if any(explained(rest, *after) for after in outcomes(operation, value, revision, last, guessed)):
            return True
    # Those without an answer may never happen, so leaving them is always possible: `left` keeps them.
    return False


def outcomes(
    o: Operation, value: str | None, revision: int, last: int, guessed: bool
) -> Iterator[tuple[str | None, int, int, bool]]:
    """Yield what the key may be after an operation that is answered as this one was."""
    same = (value, revision, last, guessed)
    if o.kind == "get":
        if o.value == value and (value is None or o.revision in (None, revision)):
            yield same
        return
    if o.kind == "delete" and (value is not None) != o.succeeded:
        return
    if o.kind == "cas":
        holds = value == o.expected if isinstance(o.expected, str) else revision == o.expected
        # The checker believes a failed compare with a revision that nobody was told.
        if holds != o.succeeded and (o.succeeded or not guessed or isinstance(o.expected, str)):
            return
    if not o.succeeded:
        yield same
        return
    news = (
        {r for r in (*REVISIONS, last + 1) if r > last} if o.revision is None else {o.revision} - set(range(last + 1))
    )
    for new in news:
        yield (o.value, 0 if o.value is None else new, new, o.revision is None and o.value is not None)


def hold_to_every_order(history: list[Operation]) -> None:
    expected = explained([o for o in history if o.is_known or o.kind != "get"], None, 0, 0, False)
    verdict = check(history)
    event(f"linearizable: {expected}")
    known = [o.revision for o in history if o.is_known and o.changes and o.revision is not None]
    if len(set(known)) < len(known):
        expected = False
    assert verdict.outcome == ("linearizable" if expected else "violation"), verdict.explanation


@settings(max_examples=1_000 * SCALE, deadline=None)
@given(small_histories(revisions=False))
def test_the_checker_agrees_with_trying_every_order(history: list[Operation]) -> None:
    hold_to_every_order(history)


@settings(max_examples=1_000 * SCALE, deadline=None)
@given(small_histories(revisions=True))
def test_the_checker_agrees_with_trying_every_order_and_revision(history: list[Operation]) -> None:
    hold_to_every_order(history)


@settings(max_examples=100 * SCALE, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 10), st.integers(1, 3), st.sampled_from((0.0, 0.02, 0.3)))
def test_what_one_copy_answered_is_accepted(seed: int, clients: int, keys: int, lost_answers: float) -> None:
    history = make_history(random.Random(seed), operations=200, clients=clients, keys=keys, lost_answers=lost_answers)
    for told in (history, without_revisions(history)):
        assert check(told).outcome == "linearizable"
