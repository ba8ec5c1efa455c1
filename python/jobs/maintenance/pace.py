"""How long maintenance pauses after each of its steps, so that others have their turn. Pure: times come as arguments.

A pause is in proportion to the step. When the node's loop lags, or commits take longer than they did, pauses grow by
doubling; when that is over they shrink slowly. So maintenance takes a share of an idle node, and a small one of a busy
one, without anybody telling it which it is.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 1.0
"""Pauses, in lengths of a step, on an idle node."""
MOST: Final = 8.0
SHRINK: Final = 0.85
MAX_PAUSE_S: Final = 2.0
LAG_S: Final = 0.015
"""A loop that is this late keeps requests waiting."""
SLOWER: Final = 2.0
"""So many times the usual commit is slow."""
FLOOR_S: Final = 0.002
"""Commits that are faster than this are not slow, whatever is usual."""
_FALLING: Final = 0.3
_RISING: Final = 0.01


class Pace:
    def __init__(self) -> None:
        self._share = LEAST
        self._usual_s: float | None = None
        """What a commit takes when nobody is in its way: falls quickly to what is measured, rises slowly."""

    @property
    def share(self) -> float:
        """The present pause, in lengths of a step."""
        return self._share

    def pause_s(self, step_s: float, lag_s: float, commit_s: float | None) -> float:
        """Return how long to pause after a step, during which the loop was this late at most, and commits took so long
        (None: there were none)."""
        if lag_s > LAG_S or self._is_slow(commit_s):
            self._share = min(MOST, 2 * self._share)
        else:
            self._share = max(LEAST, self._share * SHRINK)
        return min(MAX_PAUSE_S, max(step_s, lag_s) * self._share)

    def _is_slow(self, commit_s: float | None) -> bool:
        if commit_s is None:
            return False
        usual_s = self._usual_s
        if usual_s is None:
            self._usual_s = commit_s
            return False
        self._usual_s = usual_s + (commit_s - usual_s) * (_FALLING if commit_s < usual_s else _RISING)
        return commit_s > max(FLOOR_S, SLOWER * usual_s)
