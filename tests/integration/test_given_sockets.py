"""A node whose sockets are the service manager's (sd_listen_fds(3)).

Who connects while it is away is answered by its next life.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jobs import Client, shell_job

STEP_S = 60.0
Start = Callable[[Path, list[socket.socket]], subprocess.Popen[bytes]]


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket as a service manager makes it."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(128)
        yield made


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes; none outlives the test."""
    with ExitStack() as stack:

        def started(directory: Path, given: list[socket.socket]) -> subprocess.Popen[bytes]:
            node = start_node(directory, given)
            stack.callback(lambda: (node.kill(), node.wait()))
            return node

        yield started


def start_node(directory: Path, given: list[socket.socket]) -> subprocess.Popen[bytes]:
    """Start a node as a service manager does: its sockets from descriptor 3 on, in its variables its own pid."""
    first = 3
    moves = "".join(f"{first + place}<&{one.fileno()} " for place, one in enumerate(given))
    command = f'LISTEN_PID=$$ LISTEN_FDS={len(given)} exec "$0" -m jobs.node --embedded {directory} {moves}'
    env = {
        **os.environ,
        "JOBS_WORKERS__EMBEDDED": json.dumps(["shell"]),
        "JOBS_MAINTENANCE__SCHEDULES": "false",
    }
    with (directory / "node.log").open("ab") as log:
        return subprocess.Popen(
            ["/bin/bash", "-c", command, sys.executable],
            pass_fds=[one.fileno() for one in given],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_connects_while_the_node_is_away_is_answered_by_its_next_life(
    tmp_path: Path, start: Start, how: signal.Signals
) -> None:
    with ExitStack() as stack:
        given = [stack.enter_context(listening(tmp_path / name)) for name in ("api.sock", "worker.sock")]
        inodes = [os.stat(one.getsockname()).st_ino for one in given]
        node = start(tmp_path, given)
        client = Client(str(tmp_path / "api.sock"), patience_s=STEP_S)
        # Given a node that has answered, and has a worker, by sockets that it was given
        assert client.run(shell_job(["echo", "one"]), timeout_s=STEP_S).stdout.text == "one\n"
        node.send_signal(how)
        node.wait(STEP_S)
        # When somebody connects while there is none
        told: list[str | None] = []
        asking = threading.Thread(
            target=lambda: told.append(client.run(shell_job(["echo", "two"]), timeout_s=STEP_S).stdout.text)
        )
        asking.start()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(tmp_path / "api.sock"))
            early.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            node = start(tmp_path, given)
            # Then the next life answers that very connection, and carries out what was asked
            early.settimeout(STEP_S)
            assert early.recv(64).startswith(b"HTTP/1.1 ")
        asking.join(STEP_S)
        assert told == ["two\n"]
        # And the sockets are the same ones still
        assert [os.stat(one.getsockname()).st_ino for one in given] == inodes
        node.send_signal(signal.SIGTERM)
        assert node.wait(STEP_S) == 0
        assert [os.stat(one.getsockname()).st_ino for one in given] == inodes


def test_sockets_of_other_paths_and_for_other_processes_are_not_taken(tmp_path: Path, start: Start) -> None:
    with listening(tmp_path / "other.sock") as other:
        node = start(tmp_path, [other])
        deadline = time.monotonic() + STEP_S
        while not (tmp_path / "api.sock").exists():
            assert node.poll() is None, (tmp_path / "node.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "node.log").read_text()
            time.sleep(0.02)
        client = Client(str(tmp_path / "api.sock"), patience_s=STEP_S)
        assert client.run(shell_job(["echo", "own"]), timeout_s=STEP_S).stdout.text == "own\n"
        node.send_signal(signal.SIGTERM)
        assert node.wait(STEP_S) == 0
        assert not (tmp_path / "api.sock").exists()
