"""When other clusters have answered last, as far as this node knows."""

from __future__ import annotations

import time
from typing import Final

RECENT_S: Final = 60.0


class Answers:
    def __init__(self) -> None:
        self._at_s: dict[str, float] = {}

    def note(self, cluster: str) -> None:
        """A node of this cluster has just answered."""
        self._at_s[cluster] = time.monotonic()

    def is_recent(self, cluster: str) -> bool:
        """Tell whether one has in the last minute."""
        at_s = self._at_s.get(cluster)
        return at_s is not None and time.monotonic() - at_s <= RECENT_S
