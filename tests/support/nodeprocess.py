"""A real `jobs-node` process without workers, which a test runs beside it (`workerprocess`) in the same directory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from jobs import AsyncClient

START_S = 20.0


class NodeProcess:
    """Its data and sockets are in the directory, as in an embedded one; its log is `node.log` there."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.socket = directory / "api.sock"
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        places = {"JOBS_NODE__DATA_DIR": str(directory / "data"), "JOBS_NODE__RUN_DIR": str(directory)}
        self._env = {**kept, **places, "JOBS_MAINTENANCE__SCHEDULES": "false", **env}
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start the process; return when it serves."""
        with (self.directory / "node.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "jobs.node", env=self._env, stderr=log
            )
        async with asyncio.timeout(START_S), AsyncClient(str(self.socket), patience_s=0) as client:
            while True:
                try:
                    await client.ready()
                    return
                except Exception:
                    assert self.process.returncode is None, (self.directory / "node.log").read_text()[-2000:]
                    await asyncio.sleep(0.01)

    async def end(self, how: signal.Signals) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(how)
        async with asyncio.timeout(START_S):
            return await self.process.wait()


@asynccontextmanager
async def node_process(directory: Path, **env: str) -> AsyncIterator[NodeProcess]:
    """Run a node for as long as the context lasts."""
    made = NodeProcess(directory, **env)
    await made.start()
    try:
        yield made
    finally:
        if made.process.returncode is None:
            await made.end(signal.SIGKILL)
