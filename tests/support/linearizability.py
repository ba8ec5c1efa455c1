"""Is a history of reads and writes linearizable? A checker in the manner of Wing & Gong and Lowe, as Knossos and
Porcupine have it, for keys with put, get, delete and compare-and-set, and the revisions that the store gives.

A history is linearizable when each operation can be given one moment between its call and its answer at which it
happened, so that every answer is what a single copy would have said. Keys are independent of each other, so each is
searched alone; revisions are counted over all keys, so their order is checked over all.

An operation without an answer may have happened at any time after its call, or never. The search tries it only where
the next operation could not be explained without it: an effect that nobody saw can as well never have been.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct

LIMIT: Final = 2_000_000
"""Situations that the search of one key may look at before it gives up."""
SHRINK_LIMIT: Final = 2_000
"""The same for each try to leave something out of an explanation."""
SHOWN: Final = 40
"""Operations that an explanation lists; more are only counted."""
_NEVER_NS: Final = 1 << 62

Kind: TypeAlias = Literal["put", "get", "delete", "cas"]


class Operation(Struct, frozen=True, kw_only=True):
    """One call of one client and its answer. Times are of one monotonic clock."""

    client: int
    key: str
    kind: Kind
    called_ns: int
    answered_ns: int | None = None
    """None: the outcome is not known."""
    value: str | None = None
    """What put and cas write; what get found, None for nothing."""
    expected: str | int = 0
    """What cas compares: a value, or the revision of the last change, which is 0 for a key that is not there."""
    succeeded: bool = True
    """Whether cas found what it expected, and delete a key."""
    revision: int | None = None
    """The revision of the change, or what get found as the last one. None: not known, or nothing changed."""

    @property
    def is_known(self) -> bool:
        return self.answered_ns is not None

    @property
    def end_ns(self) -> int:
        return _NEVER_NS if self.answered_ns is None else self.answered_ns

    @property
    def changes(self) -> bool:
        """Tell whether it changed the key, if it took effect at all."""
        return self.kind == "put" or (self.kind != "get" and self.succeeded)


class Verdict(Struct, frozen=True):
    """What the checker found; "unknown" is a search that was given up, and no proof of anything."""

    outcome: Literal["linearizable", "violation", "unknown"]
    operations: int
    situations: int
    explanation: str = ""


_State: TypeAlias = "tuple[str | None, int | None, int]"
"""A key's value, None when it is not there; the revision of its last change, 0 when it is not there and None when that
is not known; and the newest known revision that this one is not before."""
_ABSENT: Final[_State] = (None, 0, 0)
_ANYTHING: Final[frozenset[str | None]] = frozenset(("(anything)",))


def check(history: Sequence[Operation], limit: int = LIMIT) -> Verdict:
    """Tell whether one copy of the data could have answered like this."""
    disorder = _revisions_out_of_order(history)
    if disorder:
        return Verdict("violation", len(history), 0, disorder)
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    situations = 0
    undecided = []
    for key, operations in sorted(by_key.items()):
        search = _Search(operations, limit)
        outcome = search.run()
        situations += search.situations
        if outcome is False:
            return Verdict("violation", len(history), situations, _explain(key, operations, limit))
        if outcome is None:
            undecided.append(key)
    if undecided:
        gave_up = f"gave up after {limit:,} situations each on {', '.join(undecided)}: this proves nothing"
        return Verdict("unknown", len(history), situations, gave_up)
    return Verdict("linearizable", len(history), situations)


def assert_linearizable(history: Sequence[Operation], limit: int = LIMIT) -> Verdict:
    """Fail, with the part that cannot be explained, unless the history is linearizable; giving up is a failure too."""
    verdict = check(history, limit)
    assert verdict.outcome == "linearizable", f"{verdict.outcome}: {verdict.explanation}"
    return verdict


def _step(state: _State, operation: Operation) -> _State | None:
    """Return the state after an operation; None when it could not have been answered so, or had no effect."""
    if operation.kind == "get":
        return _read(state, operation)
    value, _, floor = state
    if operation.kind == "delete" and (value is not None) != operation.succeeded:
        return None
    if operation.kind == "cas":
        if not _compares(state, operation):
            return None
        if isinstance(operation.expected, int):
            floor = max(floor, operation.expected)
    if not operation.succeeded:
        return state
    known = operation.revision
    if known is None:
        return (operation.value, 0 if operation.kind == "delete" else None, floor)
    if known <= floor:
        return None
    return (operation.value, 0 if operation.kind == "delete" else known, known)


def _compares(state: _State, operation: Operation) -> bool:
    """Tell whether a cas may have found what it says."""
    value, revision, floor = state
    expected = operation.expected
    if isinstance(expected, str):
        return (value == expected) == operation.succeeded
    if revision is None:
        # Any revision after the last known one may be the one that was compared, or another.
        return expected > floor or not operation.succeeded
    return (revision == expected) == operation.succeeded


def _read(state: _State, operation: Operation) -> _State | None:
    value, revision, floor = state
    if operation.value != value:
        return None
    if value is None or operation.revision is None or operation.revision == revision:
        return state
    if revision is None and operation.revision > floor:
        return (value, operation.revision, operation.revision)
    return None


class _Place(Struct):
    """A place in the search: what has happened so far, and which candidates for the next are still to be tried."""

    base: int
    """Every known operation before this one has happened."""
    done: int
    """Bits of the known operations that have happened, from `base` on."""
    used: int
    """Bits of the unknown operations that have."""
    changes: int
    """How many changes of a known revision have."""
    state: _State
    unless: _State | None
    """Set after an unknown operation: the state before it. What comes next must not have been possible there."""
    candidates: Iterator[_Place]


class _Search:
    """Looks through every order of one key's operations that their times allow, each situation once."""

    def __init__(self, operations: Sequence[Operation], limit: int) -> None:
        self._known = sorted((o for o in operations if o.is_known), key=lambda o: o.called_ns)
        unknown = _may_matter([o for o in operations if not o.is_known], self._known)
        self._unknown = sorted(unknown, key=lambda o: o.called_ns)
        revisions = sorted(o.revision for o in self._known if o.changes and o.revision is not None)
        # Changes happen in the order of their revisions.
        self._rank = [
            bisect_left(revisions, o.revision) if o.changes and o.revision is not None else None for o in self._known
        ]
        self._limit = limit
        self._seen: set[tuple[int, int, int, _State, _State | None]] = set()

    @property
    def situations(self) -> int:
        return len(self._seen)

    def run(self) -> bool | None:
        """Return whether there is an order that explains every answer; None when the limit is reached before."""
        start = self._place(0, 0, 0, 0, _ABSENT, None)
        stack = [start]
        while stack:
            place = stack[-1]
            if place.base == len(self._known):
                return True
            following = next(place.candidates, None)
            if following is None:
                stack.pop()
                continue
            situation = (following.base, following.done, following.used, following.state, following.unless)
            if situation in self._seen:
                continue
            if len(self._seen) >= self._limit:
                return None
            self._seen.add(situation)
            stack.append(following)
        return False

    def _place(self, base: int, done: int, used: int, changes: int, state: _State, unless: _State | None) -> _Place:
        while done & 1:
            base += 1
            done >>= 1
        place = _Place(base, done, used, changes, state, unless, iter(()))
        place.candidates = self._candidates(place)
        return place

    def _candidates(self, place: _Place) -> Iterator[_Place]:
        """Yield each place that one more operation leads to."""
        open_now, horizon_ns = self._open(place)
        moves = []
        for index in open_now:
            operation = self._known[index]
            rank = self._rank[index]
            if rank is not None and rank != place.changes:
                continue
            after = _step(place.state, operation)
            if after is None or (place.unless is not None and _step(place.unless, operation) is not None):
                continue
            changes = place.changes + (rank is not None)
            done = place.done | 1 << (index - place.base)
            move = (place.base, done, place.used, changes, after, None)
            if after is place.state and not operation.changes:
                # It changes nothing and may happen now: whatever comes later can as well come after it.
                yield self._place(*move)
                return
            moves.append(move)
        for move in moves:
            yield self._place(*move)
        yield from self._guesses(place, horizon_ns)

    def _open(self, place: _Place) -> tuple[list[int], int]:
        """Return the known operations that may come next, and the time by which one of them must have."""
        found = []
        horizon_ns = _NEVER_NS
        for index in range(place.base, len(self._known)):
            if place.done >> (index - place.base) & 1:
                continue
            operation = self._known[index]
            if operation.called_ns > horizon_ns:
                break
            horizon_ns = min(horizon_ns, operation.end_ns)
            found.append(index)
        return found, horizon_ns

    def _guesses(self, place: _Place, horizon_ns: int) -> Iterator[_Place]:
        """Yield the places where an operation without an answer happens now."""
        for index, operation in enumerate(self._unknown):
            if operation.called_ns > horizon_ns:
                break
            if place.used >> index & 1:
                continue
            after = _step(place.state, operation)
            if after is None or after in (place.state, place.unless):
                continue
            if place.unless is not None and _step(place.unless, operation) is not None:
                continue
            yield self._place(place.base, place.done, place.used | 1 << index, place.changes, after, place.state)


def _revisions_out_of_order(history: Sequence[Operation]) -> str:
    """Return what contradicts that revisions count the changes of all keys one by one, "" when nothing does."""
    told = [o for o in history if o.is_known and o.revision is not None]
    by_revision: dict[int | None, Operation] = {}
    for change in (o for o in told if o.changes):
        other = by_revision.setdefault(change.revision, change)
        if other is not change:
            return _listing("two changes have one revision", [other, change])
    newest: dict[str | None, Operation] = {}
    """By key, and of all keys under None, what told the newest revision so far."""
    answers = sorted(told, key=lambda o: o.end_ns)
    place = 0
    for operation in sorted(told, key=lambda o: o.called_ns):
        while place < len(answers) and answers[place].end_ns < operation.called_ns:
            for scope in (None, answers[place].key):
                if scope not in newest or _revision(answers[place]) > _revision(newest[scope]):
                    newest[scope] = answers[place]
            place += 1
        before = newest.get(None if operation.changes else operation.key)
        if before is not None and _revision(operation) < _revision(before) + operation.changes:
            what = "a change has" if operation.changes else "a read found"
            return _listing(f"{what} an older revision than was told before it was asked for", [before, operation])
    return ""


def _revision(operation: Operation) -> int:
    assert operation.revision is not None
    return operation.revision


def _explain(key: str, operations: Sequence[Operation], limit: int) -> str:
    """Return the smallest part found of a key's history that cannot be explained by itself."""

    def fails(part: Sequence[Operation], limit: int = limit) -> bool:
        return _Search(part, limit).run() is False

    cut = _shortest_prefix(operations, fails)
    # A weaker claim of each operation: a read that was never made, a write of unknown outcome. What is impossible
    # without a claim does not need it.
    needed = _minimise(cut, lambda part: fails(part, SHRINK_LIMIT))
    shown = sorted(needed, key=lambda o: o.called_ns)
    return _listing(f"key {key!r}: no order explains these {len(shown)} of {len(operations)} operations", shown)


def _shortest_prefix(operations: Sequence[Operation], fails: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    """Return what was known at the first moment at which the history could no longer be explained."""
    moments = sorted(o.end_ns for o in operations if o.is_known)

    def until(moment_ns: int) -> list[Operation]:
        called = [o for o in operations if o.called_ns <= moment_ns]
        return [o if o.end_ns <= moment_ns else _without_answer(o) for o in called]

    low, high = 0, len(moments) - 1
    while low < high:
        middle = (low + high) // 2
        if fails(until(moments[middle])):
            high = middle
        else:
            low = middle + 1
    return until(moments[high])


def _minimise(part: list[Operation], fails: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    """Weaken what is not needed for the contradiction; return the rest, and of the weak what the rest saw."""
    claims = [o for o in sorted(part, key=lambda o: o.end_ns) if o.is_known]
    weak = [o for o in part if not o.is_known]

    def try_with(kept: list[Operation]) -> bool:
        nonlocal claims, weak
        weaker = weak + [_without_answer(o) for o in claims if o not in kept]
        if not fails(kept + weaker):
            return False
        claims, weak = kept, weaker
        return True

    # Those that many writes could explain make the search long, and are seldom needed.
    try_with([o for o in claims if _needs(o) is not _ANYTHING])
    # The last answer is part of it, and most often the others are near.
    size = 1
    while size < len(claims) and not try_with(claims[-size:]):
        size += (size + 1) // 2
    size = max(1, len(claims) // 2)
    while True:
        place = 0
        while place < len(claims):
            if not try_with(claims[:place] + claims[place + size :]):
                place += size
        if size == 1:
            return claims + _seen_by(claims, weak)
        size //= 2


def _without_answer(operation: Operation) -> Operation:
    return Operation(
        client=operation.client,
        key=operation.key,
        kind=operation.kind,
        called_ns=operation.called_ns,
        value=None if operation.kind == "get" else operation.value,
        expected=operation.expected,
    )


def _may_matter(unknown: Sequence[Operation], known: Sequence[Operation]) -> list[Operation]:
    """Return the operations without an answer whose effect another could need: what none needs can as well never have
    been. A get needs its value, a cas what it expects, a delete that found a key any value at all."""
    wanted: set[str | None] = set()
    found: list[Operation] = []
    left = [o for o in unknown if o.kind != "get"]
    new = list(known)
    while new:
        for operation in new:
            needed = _needs(operation)
            if needed is _ANYTHING:
                return left + found
            wanted |= needed
        new = [o for o in left if o.value in wanted]
        left = [o for o in left if o.value not in wanted]
        found += new
    return found


def _needs(operation: Operation) -> frozenset[str | None]:
    """Return the values of which one must be there for the operation to go as it did; `_ANYTHING` for many."""
    if operation.kind == "put":
        return frozenset()
    if operation.kind == "get":
        return frozenset((operation.value,))
    if operation.kind == "delete":
        if operation.is_known:
            return _ANYTHING if operation.succeeded else frozenset((None,))
        # Where it found nothing it did nothing.
        return frozenset()
    if not operation.succeeded or (isinstance(operation.expected, int) and operation.expected > 0):
        return _ANYTHING
    return frozenset((operation.expected if isinstance(operation.expected, str) else None,))


def _seen_by(claims: Sequence[Operation], weak: Sequence[Operation]) -> list[Operation]:
    """Return the operations of unknown outcome that wrote what the claims found or compared."""
    seen = {o.value for o in claims if o.kind == "get"} | {o.expected for o in claims if o.kind == "cas"}
    found: list[Operation] = []
    writes = [o for o in weak if o.kind in ("put", "cas")]
    while more := [o for o in writes if o not in found and o.value in seen]:
        found += more
        seen |= {o.expected for o in more if o.kind == "cas"}
    return found


def _listing(title: str, operations: Sequence[Operation]) -> str:
    """Return a title and one line an operation, with times in milliseconds from the first call on."""
    if not operations:
        return title
    start_ns = min(o.called_ns for o in operations)
    lines = [_line(operation, start_ns) for operation in operations[-SHOWN:]]
    if len(operations) > SHOWN:
        lines.insert(0, f"({len(operations) - SHOWN} earlier ones)")
    return "\n  ".join([title, *lines])


def _line(operation: Operation, start_ns: int) -> str:
    called = (operation.called_ns - start_ns) / 1e6
    answered = "…" if operation.answered_ns is None else f"{(operation.answered_ns - start_ns) / 1e6:.3f}"
    what = {
        "put": f"put {operation.value!r}",
        "get": "get",
        "delete": "delete",
        "cas": f"cas {operation.expected!r} → {operation.value!r}",
    }[operation.kind]
    answer = "no answer"
    if operation.is_known:
        found = repr(operation.value) if operation.kind == "get" else "done" if operation.succeeded else "not so"
        answer = found + ("" if operation.revision is None else f" at revision {operation.revision}")
    return f"[{called:.3f}, {answered}] ms  client {operation.client}  {operation.key}  {what}: {answer}"
