"""Embedded mode: the workers as children of the node, one of each type, restarted when they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

logger = logging.getLogger(__name__)

RESTART_MIN_S: Final = 0.2
RESTART_MAX_S: Final = 10.0
STEADY_S: Final = 30.0
"""A child that ran this long starts again without waiting."""
LAST_STREAM: Final = 2


def keep_files() -> None:
    """Have children get no file of this process but its streams.

    LMDB opens its data file in a way that they would: room that a compaction gives back would be theirs until they end.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > LAST_STREAM:
            with contextlib.suppress(OSError):  # that of the listing is closed
                os.set_inheritable(int(name), False)


class Children:
    """Keeps one process per command running until `stop`; they die with this process (`--die-with-parent`)."""

    def __init__(self, commands: Sequence[Sequence[str]], env: dict[str, str]) -> None:
        self._commands = commands
        self._env = env
        self._tasks: list[asyncio.Task[None]] = []
        self._running: set[asyncio.subprocess.Process] = set()
        self._stopping = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(command)) for command in self._commands]

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for those that are still there after `grace_s`."""
        self._stopping = True
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, command: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        delay_s = RESTART_MIN_S
        while not self._stopping:
            started = loop.time()
            keep_files()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *command, env=self._env, stdin=asyncio.subprocess.DEVNULL
            )
            self._running.add(process)
            try:
                code = await process.wait()
            finally:
                self._running.discard(process)
            if self._stopping:
                return
            delay_s = RESTART_MIN_S if loop.time() - started > STEADY_S else min(2 * delay_s, RESTART_MAX_S)
            logger.error("%s ended with %d; starting it again in %.1f s", command[0], code, delay_s)
            await asyncio.sleep(delay_s)
