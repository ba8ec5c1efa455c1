"""How far an operation with files is: told, held back by its throttle, and given up between two pieces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from jobs.protocol.model import Throttle
from jobs.workers.task import Report
from jobs.workers.transfers import in_thread

T = TypeVar("T")
TELL_S: Final = 0.2
"""Between two words at least."""
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""A node cuts off who takes nothing for half a minute, so nothing is read more slowly."""


class GivenUp(Exception):
    """The operation was given up; nobody waits for what this is raised in."""


class Gauge:
    """`step` is for threads that `run` has started, `advance` for the event loop."""

    def __init__(self, report: Report, throttle: Throttle) -> None:
        self._report = report
        self._bytes_per_s = max(throttle.bytes_per_s, SLOWEST_BYTES_PER_S) if throttle.bytes_per_s else None
        self._operations_per_s = throttle.operations_per_s
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._due_s = time.monotonic()
        self._told_s = 0.0
        self._message = ""
        self.done_bytes = 0
        self.total_bytes = 0

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what the work returns, which runs in a thread. Who gives up waits until it has noticed."""
        running = asyncio.ensure_future(in_thread(work, *arguments))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stop.set()
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            running.exception()
            raise

    def say(self, message: str, total_bytes: int | None = None) -> None:
        """Begin with another part, of so many bytes more."""
        self._message = message
        if total_bytes is not None:
            self.total_bytes = self.done_bytes + total_bytes
        self._told_s = time.monotonic()
        self._report.progress(self.done_bytes, self.total_bytes, message)

    def step(self, size_bytes: int) -> None:
        """So many bytes more are done; wait for as long as the throttle says. Raises GivenUp."""
        pause_s = self._count(size_bytes, 0)
        if self._is_time():
            self._loop.call_soon_threadsafe(self._report.progress, self.done_bytes, self.total_bytes, self._message)
        if self._stop.wait(pause_s) if pause_s > 0 else self._stop.is_set():
            raise GivenUp

    def look(self, size_bytes: int) -> None:
        """Go on with what counts for nothing. Raises GivenUp."""
        if self._stop.is_set():
            raise GivenUp

    async def advance(self, size_bytes: int, operations: int = 0) -> None:
        """So much more is done; wait for as long as the throttle says."""
        pause_s = self._count(size_bytes, operations)
        if self._is_time():
            self._report.progress(self.done_bytes, self.total_bytes, self._message)
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    def _count(self, size_bytes: int, operations: int) -> float:
        self.done_bytes += size_bytes
        now_s = time.monotonic()
        self._due_s = max(self._due_s, now_s)
        if self._bytes_per_s:
            self._due_s += size_bytes / self._bytes_per_s
        if self._operations_per_s:
            self._due_s += operations / self._operations_per_s
        return self._due_s - now_s

    def _is_time(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._told_s < TELL_S:
            return False
        self._told_s = now_s
        return True
