"""Whether and when to try again, and how long to wait for a job: pure, time and chance come as arguments."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from jobs.client.failures import ConnectionFailed
from jobs.errors import JobsError, NoLeader, QueueFull, TooManyRequests, Unavailable

DEFAULT_PATIENCE_S: Final = 15.0
"""Longer than a node's restart."""
NO_LEADER_SHARE: Final = 0.2
"""Of that, for how long a cluster is asked again that has had no leader for longer than an election takes."""
FIRST_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 2.0
MAX_POLL_S: Final = 300.0
"""Longest wait that the node takes in one request."""


class Patience:
    """Counts the failures of one operation and says how long to pause after each: exponential with equal jitter, at
    least what the node asks for, until `within_s` have passed since the first, or a fifth of that without a leader."""

    def __init__(self) -> None:
        self._failures = 0
        self._first_s = 0.0
        self._leaderless_since_s: float | None = None

    def pause_s(
        self,
        error: JobsError,
        *,
        within_s: float,
        now_s: float,
        chance: float,
        waits_for_room: bool = True,
    ) -> float | None:
        """Return the pause before the next try; None when there should be none. `chance` is between 0 and 1."""
        if not may_help(error) or (is_refusal(error) and not waits_for_room):
            return None
        if self._failures == 0:
            self._first_s = now_s
        self._failures += 1
        ends_s = self._first_s + within_s
        if not isinstance(error, NoLeader):
            self._leaderless_since_s = None
        else:
            if self._leaderless_since_s is None:
                self._leaderless_since_s = now_s
            ends_s = min(ends_s, self._leaderless_since_s + NO_LEADER_SHARE * within_s)
        full_s: float = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures, 16))
        pause_s = (error.retry_after_s or 0.0) + full_s * (0.5 + chance / 2)
        return pause_s if now_s + pause_s <= ends_s else None

    def reset(self) -> None:
        """Begin anew after a success."""
        self._failures = 0
        self._leaderless_since_s = None


def may_help(error: JobsError) -> bool:
    """Tell whether the same request may succeed a little later. It does no harm if it was done already."""
    return is_refusal(error) or isinstance(error, ConnectionFailed | Unavailable)


def is_refusal(error: JobsError) -> bool:
    """Tell whether the node refused a request as too much, before anything was done."""
    return isinstance(error, TooManyRequests | QueueFull)


class Deadline(Struct, frozen=True):
    """The moment up to which to wait; None: for ever."""

    at_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None, now_s: float) -> Deadline:
        return cls(None if timeout_s is None else now_s + timeout_s)

    def poll_s(self, now_s: float) -> float:
        """Return how long the next request may ask the node to wait."""
        return MAX_POLL_S if self.at_s is None else min(MAX_POLL_S, max(0.0, self.at_s - now_s))

    def is_over(self, now_s: float) -> bool:
        return self.at_s is not None and now_s >= self.at_s
