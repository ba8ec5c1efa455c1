"""A real node with its workers in a directory, for tests: started, stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from jobs.client import Client
from jobs.errors import JobsError

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02


class NodeFailed(Exception):
    """The node ended, or did not come up in time; the text holds the end of its log."""


class EmbeddedNode:
    """`jobs-node --embedded DIR` as a child process. With `with`, it is started and stopped."""

    def __init__(
        self, directory: Path, *, env: Mapping[str, str] | None = None, workers: int = 1, prefix: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory
        self.socket = directory / "api.sock"
        self.log_file = directory / "node.log"
        self._env = {**os.environ, "JOBS_LOGGING__FORMAT": "json", **(env or {})}
        self._workers = workers
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the node is not running"
        return self._process.pid

    def start(self) -> EmbeddedNode:
        """Start the node and wait until it and its workers serve. Raises NodeFailed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [*self._prefix, sys.executable, "-m", "jobs.node", "--embedded", str(self.directory)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env)
        try:
            self._wait_until_it_serves(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def restart(self) -> EmbeddedNode:
        """Stop the node if it still runs, and start it again on the same directory."""
        if self._process is not None:
            self.stop()
        return self.start()

    def _wait_until_it_serves(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._serves():
            if process.poll() is not None:
                raise NodeFailed(f"the node ended with {process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise NodeFailed(f"the node did not serve within {START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def _serves(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            with Client(str(self.socket), patience_s=0) as client:
                ready = [worker for worker in client.workers() if worker.state == "ready"]
                return client.health().status == "ok" and len(ready) >= self._workers
        except JobsError:
            return False

    def stop(self) -> int:
        """SIGTERM, and wait; return the exit code."""
        assert self._process is not None, "the node is not running"
        self._process.terminate()
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process = None
        return code

    def kill(self) -> None:
        """SIGKILL: the node, and with it its workers and their jobs, have no chance to say goodbye."""
        assert self._process is not None, "the node is not running"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def client(self) -> Client:
        """Return a client of the node."""
        return Client(str(self.socket))

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> EmbeddedNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()
