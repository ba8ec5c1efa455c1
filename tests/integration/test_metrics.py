"""The metrics as Prometheus gets them: by TCP where that is configured, and what they tell of jobs."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import Client, shell_job
from jobs.protocol.model import Retry
from jobs.testing import EmbeddedNode, NodeFailed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of each series of an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(port: int, method: str, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_prometheus_is_given_the_metrics_by_tcp_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    env = {"JOBS_METRICS__LISTEN": f"127.0.0.1:{port}"}
    with EmbeddedNode(tmp_path / "node", env=env) as node:
        status, kind, text = ask(port, "GET", "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        with node.client() as client:
            # The same series as on the Unix socket.
            assert {name for name, _ in values(text)} <= {name for name, _ in values(client.metrics())}
        for method, path, expected in (
            ("GET", "/", 404),
            ("GET", "/v1/jobs", 404),
            ("POST", "/v1/jobs", 404),
            ("POST", "/metrics", 405),
        ):
            assert ask(port, method, path)[0] == expected
        # Connections that do nothing take no room from others for long, nor from the API.
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        with node.client() as client:
            assert client.health().status == "ok"
        refused = sum(_is_closed(one) for one in idle)
        assert refused >= 40 - 16
        for one in idle:
            one.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert ask(port, "GET", "/metrics")[0] == 200
                break
            except (ConnectionError, http.client.HTTPException):
                assert time.monotonic() < deadline
        # A port that is taken is told.
        with pytest.raises(NodeFailed, match=rf"metrics.listen: 127.0.0.1:{port} cannot be listened on"):
            EmbeddedNode(tmp_path / "other", env=env).start()


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_waits_and_ends_of_attempts_are_counted_over_leaderships(embedded_node: EmbeddedNode) -> None:
    with embedded_node.client() as client:
        client.run(shell_job("true"))
        client.run(shell_job("exit 3", retry=Retry(max_attempts=2, backoff="none")))
        found = values(client.metrics())
    shell = frozenset({("type", "shell")})
    assert found["jobs_queue_wait_seconds_count", shell] == 3
    assert found["jobs_attempt_seconds_count", shell] == 3
    assert 0 < found["jobs_attempt_seconds_sum", shell] < 60
    assert found["jobs_attempts_ended_total", shell | {("outcome", "completed")}] == 1
    assert found["jobs_attempts_ended_total", shell | {("outcome", "exit_code")}] == 2
    assert found["jobs_leader_known", frozenset()] == 1
    assert found["jobs_store_max_bytes", frozenset()] == 32 << 30
    assert found["process_resident_memory_bytes", frozenset()] > 0


def test_a_cancelled_job_counts_as_that(client: Client) -> None:
    key = "jobs_attempts_ended_total", frozenset({("type", "shell"), ("outcome", "cancelled")})
    before = values(client.metrics()).get(key, 0)
    job = client.shell("sleep 60").job.id
    for event in client.watch(job, after_revision=0):
        if event.job.state == "running":
            break
    client.cancel(job)
    client.wait(job, 20)
    assert values(client.metrics())[key] == before + 1
