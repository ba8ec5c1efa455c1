"""Virtual time, the queue of events, and the trace."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.simulation.plan import Plan

TRACE_LINES = 400
"""How much of a trace is kept for a report."""
REPORT_LINES = 60
MAX_STEPS = 150_000
"""Several times what any seed takes: more is a flood of messages that ask for each other."""


class Violation(AssertionError):
    """Something that must hold does not. The text has all that is needed to see it again."""

    def __init__(self, rule: str, text: str, world: World) -> None:
        self.rule = rule
        self.seed = world.plan.seed
        self.step = world.steps
        trace = "\n".join(world.trace.tail(REPORT_LINES))
        super().__init__(
            f"{rule}: {text}\n  at {world.now_s:.6f} s, step {world.steps}; replay with\n"
            f"  python -m tests.support.simulation --seed {self.seed}{world.plan.options}\n{trace}"
        )


class Trace:
    """Lines that say what happened. All count for `digest`; the last ones are kept, or all."""

    def __init__(self, *, keep_all: bool = False) -> None:
        self._lines: deque[str] = deque(maxlen=None if keep_all else TRACE_LINES)
        self._hash = hashlib.blake2b(digest_size=16)
        self.count = 0

    def add(self, line: str) -> None:
        self.count += 1
        self._lines.append(line)
        self._hash.update(line.encode())

    def tail(self, count: int) -> list[str]:
        return list(self._lines)[-count:]

    def all(self) -> list[str]:
        return list(self._lines)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class World:
    """Everything happens here, one event after the other, at virtual times."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.now_s = 0.0
        self.steps = 0
        self.trace = Trace(keep_all=keep_trace)
        self.broken: Violation | None = None
        """The first violation: whoever catches exceptions on the way does not hide it."""
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0

    def rng(self, name: str) -> Random:
        """A source of chance of its own for each part, so that one does not disturb another."""
        return Random(f"{self.plan.seed}/{name}")

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._numbers, action, arguments))

    def note(self, who: str, text: str) -> None:
        self.trace.add(f"{self.now_s:10.6f} {who:5} {text}")

    def violated(self, rule: str, text: str) -> Violation:
        violation = Violation(rule, text, self)
        if self.broken is None:
            self.broken = violation
        return violation

    def run(self, until_s: float, done: Callable[[], bool] | None = None) -> bool:
        """Let events happen until a time; earlier when `done`, which is looked at now and then. Tell whether it is."""
        look_s = self.now_s
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, action, arguments = heapq.heappop(self._queue)
            self.steps += 1
            action(*arguments)
            if self.broken is not None:
                raise self.broken
            if self.steps > MAX_STEPS:
                raise self.violated("the group does not exhaust itself", f"{self.steps} steps")
            if done is not None and self.now_s >= look_s:
                if done():
                    return True
                look_s = self.now_s + 0.1
        self.now_s = max(self.now_s, until_s)
        return done is not None and done()
