"""The clock by which members measure how long they have heard nothing of each other."""

from __future__ import annotations

import time


def now_s() -> float:
    """Return the time of a clock that is never set and that also counts while the machine is suspended, so that a lease
    cannot outlive its time in a sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
