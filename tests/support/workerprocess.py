"""A real `jobs-worker` process for the node, or what stands for one, in a directory."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support import processes

EXIT_S = 20.0


class WorkerProcess:
    """The process, started with `jobs-worker --embedded DIRECTORY`; its log is `worker.log` there."""

    def __init__(self, directory: Path, worker_type: str = "shell") -> None:
        self.directory = directory
        self._type = worker_type
        self.log = directory / "worker.log"
        self.process: asyncio.subprocess.Process

    async def start(self, *arguments: str, **env: str) -> None:
        command = ["-m", "jobs.worker", "--type", self._type, "--embedded", str(self.directory), *arguments]
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        env = {**kept, "JOBS_LOGGING__LEVEL": "debug", **env}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env, stderr=log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def launcher(self) -> int:
        """Return the pid of the sandbox launcher."""
        (pid,) = processes.children_of(self.pid)
        return pid

    async def exit_code(self) -> int:
        async with asyncio.timeout(EXIT_S):
            return await self.process.wait()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def worker_process(
    directory: Path, *arguments: str, worker_type: str = "shell", **env: str
) -> AsyncIterator[WorkerProcess]:
    """Run a worker for as long as the context lasts."""
    made = WorkerProcess(directory, worker_type)
    await made.start(*arguments, **env)
    try:
        yield made
    finally:
        await made.kill()
