"""Steps of maintenance on this node, with pauses between them: how late the loop is, and how long commits take, is
looked at while a step goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from jobs.maintenance.pace import Pace

T = TypeVar("T")
BEAT_S: Final = 0.02


class Pacing:
    """`commit_s` tells how long a commit takes here at present; None where that is not known."""

    def __init__(self, commit_s: Callable[[], float | None]) -> None:
        self._commit_s = commit_s
        self._pace = Pace()
        self._lag_s = 0.0
        self._steps = 0
        self._beat: asyncio.TimerHandle | None = None

    async def step(self, work: Awaitable[T]) -> T:
        """Return what a step comes to, after the pause that it calls for."""
        self._steps += 1
        if self._beat is None:
            self._wind()
        began_s = time.monotonic()
        try:
            done = await work
        finally:
            self._steps -= 1
            if not self._steps and self._beat is not None:
                self._beat.cancel()
                self._beat = None
        lag_s, self._lag_s = self._lag_s, 0.0
        await asyncio.sleep(self._pace.pause_s(time.monotonic() - began_s, lag_s, self._commit_s()))
        return done

    def _wind(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + BEAT_S
        self._beat = loop.call_at(self._due_s, self._on_beat)

    def _on_beat(self) -> None:
        self._lag_s = max(self._lag_s, asyncio.get_running_loop().time() - self._due_s)
        self._wind()
