"""Waiting for something that real processes bring about."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.errors import JobsError


def until(holds: Callable[[], bool], timeout_s: float = 30.0, otherwise: str = "it did not come about in time") -> None:
    """Wait until it holds; a node that cannot be asked meanwhile is asked again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if holds():
                return
        except JobsError:
            pass
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
