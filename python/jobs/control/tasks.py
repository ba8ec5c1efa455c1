"""Background tasks of the control plane: kept, and their failures never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from jobs.consensus import ConsensusError
from jobs.errors import Unavailable

logger = logging.getLogger(__name__)

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Tasks:
    """Holds running tasks, logs those that fail, and ends them all at the end: what is spawned later ends unbegun."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        if self._stopped:
            task.cancel()
        return task

    async def stop(self) -> None:
        self._stopped = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Unavailable | ConsensusError):
            logger.warning("given up, because the node cannot write: %s", error)
        elif error is not None:
            logger.error("background task failed", exc_info=error)
