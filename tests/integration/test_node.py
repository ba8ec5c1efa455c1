"""The node as a process: signals, notifications, configuration, sockets, two on one directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.client import Client, shell_job
from jobs.errors import StorageFull
from jobs.protocol.model import JobState, Requires
from jobs.testing import EmbeddedNode, NodeFailed


class ServiceManager:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(20)

    def until(self, wanted: str) -> list[str]:
        """Return every state received up to the first that begins with `wanted`."""
        seen: list[str] = []
        while True:
            for line in self._socket.recv(4096).decode().splitlines():
                seen.append(line)
                if line.startswith(wanted):
                    return seen

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    made = ServiceManager(tmp_path)
    yield made
    made.close()


def test_the_service_manager_is_told_of_every_turn(tmp_path: Path, manager: ServiceManager) -> None:
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000", "JOBS_LOGGING__LEVEL": "info"}
    node = EmbeddedNode(tmp_path / "node", env=env).start()
    assert "READY=1" in manager.until("READY=1")
    manager.until("STATUS=0 jobs wait, 0 run on 1 workers")
    manager.until("WATCHDOG=1")
    os.kill(node.pid, signal.SIGHUP)
    turned = manager.until("READY=1")
    assert "RELOADING=1" in turned
    assert any(line.startswith("MONOTONIC_USEC=") for line in turned)
    assert node.stop() == 0
    manager.until("STOPPING=1")


def test_sigterm_leaves_nothing_running_and_a_restart_picks_up(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node")
    with node, node.client() as client:
        done = client.run(shell_job(["echo", "kept"]), timeout_s=20)
        waiting = client.submit(shell_job(["true"], requires=Requires(labels={"never": "there"}))).job
    assert not (tmp_path / "node" / "api.sock").exists()
    with node, node.client() as client:
        assert client.result(done.id) == done
        assert client.get(waiting.id).job.state is JobState.PENDING


def test_a_second_node_on_the_same_directory_is_refused_and_the_first_lives(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node:
        second = subprocess.run(
            [sys.executable, "-m", "jobs.node", "--embedded", str(node.directory)], capture_output=True, timeout=60
        )
        assert second.returncode == 1
        assert b"it is open already" in second.stderr
        assert b"Traceback" not in second.stderr
        with node.client() as client:
            assert client.run(shell_job(["echo", "still"]), timeout_s=20).stdout.text == "still\n"


def test_a_damaged_log_is_refused_naming_file_and_offset(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node")
    with node, node.client() as client:
        for number in range(20):
            client.kv.put(f"/data/{number}", "x" * 100)
    (segment,) = (tmp_path / "node" / "data" / "log").glob("*.seg")
    data = bytearray(segment.read_bytes())
    at = data.find(b"/data/3")
    data[at] ^= 1
    segment.write_bytes(data)
    with pytest.raises(NodeFailed, match=r"corrupt at byte \d+"):
        node.start()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[store]\nmax_byte = 1\n", b"did you mean 'max_bytes'"),
        ('[api]\nmode = "rw"\n', b"api.mode"),
        ("[log\n", b"is not TOML"),
    ],
)
def test_a_wrong_configuration_names_file_key_and_fix(tmp_path: Path, text: str, wanted: bytes) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    for command in (["check-config", str(file)], ["--config", str(file)]):
        done = subprocess.run([sys.executable, "-m", "jobs.node", *command], capture_output=True, timeout=60)
        assert done.returncode == 78
        assert wanted in done.stdout + done.stderr
        assert str(file).encode() in done.stdout + done.stderr


def test_logs_are_json_with_job_and_attempt(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        job = client.run(shell_job("exit 3"), timeout_s=20)
        lines = [json.loads(line) for line in node.log_file.read_text().splitlines()]
    ended = [line for line in lines if line["message"] == "attempt ended"]
    assert [(line["job"], line["attempt"], line["reason"]) for line in ended] == [(job.id, 1, "exit_code")]


def fill(client: Client) -> None:
    for number in range(200):
        client.kv.put(f"/data/{number}", "x" * 500_000)


def test_a_store_that_is_full_refuses_new_work_by_name_and_keeps_the_old(tmp_path: Path) -> None:
    env = {"JOBS_STORE__MAX_BYTES": "16MiB"}
    with EmbeddedNode(tmp_path / "node", env=env) as node, node.client() as client:
        first = client.run(shell_job(["echo", "kept"]), timeout_s=20)
        with pytest.raises(StorageFull, match="the limit is 16777216"):
            fill(client)
        assert client.result(first.id).stdout.text == "kept\n"
        assert client.health().status == "ok"


def test_room_is_made_in_a_store_that_is_full(tmp_path: Path) -> None:
    env = {"JOBS_STORE__MAX_BYTES": "16MiB"}
    with EmbeddedNode(tmp_path / "node", types=("shell", "maintenance"), env=env) as node, node.client() as client:
        with pytest.raises(StorageFull):
            fill(client)
        # What is deleted is still history, which only a job of maintenance gives back
        for number in range(200):
            client.kv.delete(f"/data/{number}")
        with pytest.raises(StorageFull):
            client.kv.put("/data/x", "x")
        client.maintenance.compact(history_age_s=0, history_events=0)
        assert client.run(shell_job(["true"]), timeout_s=20).state == "completed"
