"""Real nodes with their workers in directories, for tests: started, stopped, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from jobs.client import Client
from jobs.client.cluster import has_vote, is_founded
from jobs.errors import JobsError
from jobs.protocol.model import ClusterView

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.02


class NodeFailed(Exception):
    """The node ended, or did not come up in time; the text holds the end of its log."""


class EmbeddedNode:
    """`jobs-node --embedded DIR` as a child process. With `with`, it is started and stopped.

    It makes no schedules by itself, unless `env` says JOBS_MAINTENANCE__SCHEDULES=true.
    """

    def __init__(
        self,
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        types: Sequence[str] = ("shell",),
        prefix: tuple[str, ...] = (),
        module: str = "jobs.node",
    ) -> None:
        """`env`: on top of the environment. `types`: of the workers that it has. `prefix`: what its command begins
        with, such as one that changes a namespace. `module`: what is run, a node and maybe more."""
        self.directory = directory
        self.socket = directory / "api.sock"
        self.log_file = directory / "node.log"
        settings = {
            "JOBS_LOGGING__FORMAT": "json",
            "JOBS_WORKERS__EMBEDDED": json.dumps(list(types)),
            "JOBS_MAINTENANCE__SCHEDULES": "false",
        }
        self.environment = {**os.environ, **settings, **(env or {})}
        """Of its process, and for other commands of the same node."""
        self._workers = len(types)
        self._prefix = prefix
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped or killed."""
        return self._process is not None

    @property
    def is_alive(self) -> bool:
        """Whether its process runs; one that ended by itself does not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the node is not running"
        return self._process.pid

    def start(self, *, wait: bool = True, env: Mapping[str, str] | None = None) -> EmbeddedNode:
        """Start the node and wait until it and its workers serve; without `wait` only until it answers at all, as one
        does that belongs to no cluster yet or whose cluster has no leader. `env` is for this run alone, on top of the
        other one. Raises NodeFailed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [*self._prefix, sys.executable, "-m", self._module, "--embedded", str(self.directory)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**self.environment, **(env or {})}
            )
        try:
            self._wait_until(self._serves if wait else self._answers)
        except BaseException:
            self.kill()
            raise
        return self

    def restart(self) -> EmbeddedNode:
        """Stop the node if it still runs, and start it again on the same directory."""
        if self._process is not None:
            self.stop()
        return self.start()

    def wait_until_it_serves(self) -> None:
        """Wait until it and its workers serve. Raises NodeFailed."""
        self._wait_until(self._serves)

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        process = self._process
        assert process is not None, "the node is not running"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not holds():
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
                health = client.health()
                own = [one for one in client.workers() if one.state == "ready" and one.node == health.node]
                return health.status == "ok" and len(own) >= self._workers
        except JobsError:
            return False

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            with Client(str(self.socket), patience_s=0) as client:
                client.health()
                return True
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

    def wait_for_end(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until the node has ended by itself, and return its exit code. Raises NodeFailed."""
        assert self._process is not None, "the node is not running"
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"the node did not end within {timeout_s:g} s:\n{self.log_tail()}") from None
        self._process = None
        return code

    def client(self) -> Client:
        """Return a client of the node."""
        return Client(str(self.socket))

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> EmbeddedNode:
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.stop()


class EmbeddedCluster:
    """Several embedded nodes on this machine's loopback addresses that form a cluster: `n1`, `n2`, and so on, each in a
    directory of its name. With `with`, it is formed and stopped."""

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        env: Mapping[str, str] | None = None,
        types: Sequence[str] = ("shell",),
        prefix: tuple[str, ...] = (),
    ) -> None:
        """`env`, `types`, `prefix`: of each node; see `EmbeddedNode`."""
        self.directory = directory
        self._types = types
        self._prefix = prefix
        self._env = dict(env or {})
        self.nodes: dict[str, EmbeddedNode] = {}
        for number in range(1, size + 1):
            self.add(f"n{number}")

    def add(self, name: str, *, env: Mapping[str, str] | None = None) -> EmbeddedNode:
        """Make a further node; it is not started and in no cluster. `env` is for it alone."""
        assert name not in self.nodes
        env = {
            **self._env,
            **(env or {}),
            "JOBS_NODE__ID": name,
            "JOBS_CLUSTER__LISTEN": f'["127.0.0.1:{free_port()}"]',
        }
        made = self.nodes[name] = EmbeddedNode(self.directory / name, env=env, types=self._types, prefix=self._prefix)
        return made

    def start(self) -> EmbeddedCluster:
        """Start the nodes and form a cluster of them. Raises NodeFailed and the errors of joining."""
        self.directory.mkdir(parents=True, exist_ok=True)
        first, *others = self.nodes.values()
        first.start(wait=False)
        with first.client() as client:
            client.cluster.init()
        first.wait_until_it_serves()
        self._wait_for(first, is_founded, "told its address")
        for node in others:
            node.start(wait=False)
            self.join(node)
        return self

    def join(self, node: EmbeddedNode, timeout_s: float = START_TIMEOUT_S) -> None:
        """Let a node that runs and is in no cluster join, and wait until it has its vote."""
        with self.client(without=node) as client:
            ticket = client.cluster.ticket(timeout_s).ticket
            with node.client() as joining:
                joining.cluster.join(ticket)
        self._wait_for(node, has_vote, "got its vote", timeout_s)

    def _wait_for(
        self,
        node: EmbeddedNode,
        holds: Callable[[ClusterView], bool],
        what: str,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Return once something holds of the cluster as the node sees it. Raises NodeFailed."""
        deadline = time.monotonic() + timeout_s
        with node.client() as client:
            while True:
                with suppress(JobsError):
                    if holds(client.cluster.view()):
                        return
                if time.monotonic() > deadline:
                    raise NodeFailed(f"the node has not {what} within {timeout_s:.0f} s:\n{node.log_tail()}")
                time.sleep(POLL_S)

    def leader(self, timeout_s: float = START_TIMEOUT_S) -> EmbeddedNode:
        """Return the node that leads and has taken up the work. Raises NodeFailed when there is none in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for node in self.running():
                try:
                    with Client(str(node.socket), patience_s=0) as client:
                        health = client.health()
                except JobsError:
                    continue
                if health.leader and health.status == "ok":
                    return node
            time.sleep(POLL_S)
        raise NodeFailed(f"nobody led within {timeout_s:.0f} s")

    def running(self) -> Iterator[EmbeddedNode]:
        return (node for node in self.nodes.values() if node.is_running)

    def client(self, *, without: EmbeddedNode | None = None) -> Client:
        """Return a client of the first node that runs, or of the first other one."""
        return next(node for node in self.running() if node is not without).client()

    def stop(self) -> None:
        for node in list(self.running()):
            node.stop()

    def __enter__(self) -> EmbeddedCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in list(self.running()):
            node.kill()


def free_port() -> int:
    """Return a UDP port of the loopback address that was free just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
