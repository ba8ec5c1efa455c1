"""Attempts, their output and what is tried again, as people see them: commands and clients against a real node."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, Retry, shell_job
from jobs.protocol.model import JobState, Reason
from jobs.testing import EmbeddedNode
from tests.support.jobctl import COMMAND, jobctl


def failing(client: Client, *options: str, node: EmbeddedNode, script: str) -> tuple[int, str]:
    """Submit a script with `jobctl`; return how many attempts were made and the last one's reason."""
    done = jobctl(node, "submit", "--retries", "2", "--backoff", "none", *options, "--", "sh", "-c", script)
    job = done.stdout.decode().strip()
    assert job, done.stderr
    client.wait(job, 30)
    listed = jobctl(node, "attempts", "--json", job).stdout.splitlines()
    attempts = [json.loads(line) for line in listed]
    assert [attempt["attempt"] for attempt in attempts] == list(range(1, len(attempts) + 1))
    return len(attempts), attempts[-1]["reason"]


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        ([], "exit 3", (3, "exit_code")),
        (["--retry-exit-codes", "3,75"], "exit 3", (3, "exit_code")),
        (["--retry-exit-codes", "75"], "exit 3", (1, "exit_code")),
        (["--no-retry-exit-codes", "3"], "exit 3", (1, "exit_code")),
        (["--no-retry-exit-codes", "4"], "exit 3", (3, "exit_code")),
        (["--retry-on", "signal"], "exit 3", (1, "exit_code")),
        (["--retry-on", "signal", "--retry-on", "exit_code"], "exit 3", (3, "exit_code")),
        (["--retry-on", "signal"], "kill -9 $$", (3, "signal")),
        (["--retry-exit-codes", "75"], "kill -9 $$", (3, "signal")),
        (["--timeout", "300ms", "--retry-on", "timeout"], "sleep 60", (3, "timeout")),
        (["--timeout", "300ms", "--retry-on", "exit_code"], "sleep 60", (1, "timeout")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_tried_again(
    client: Client, shared_node: EmbeddedNode, options: list[str], script: str, expected: tuple[int, str]
) -> None:
    assert failing(client, *options, node=shared_node, script=script) == expected


@pytest.mark.parametrize("codes", ["0", "256", "x", "1,,2", ""])
def test_codes_that_are_none_are_refused(shared_node: EmbeddedNode, codes: str) -> None:
    refused = jobctl(shared_node, "submit", "--retry-exit-codes", codes, "--", "true")
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"exit codes" in refused.stderr


def test_the_output_of_every_attempt(client: Client, shared_node: EmbeddedNode) -> None:
    retry = Retry(max_attempts=3, backoff="fixed", delay_s=0.3, jitter=0)
    job = client.submit(shell_job("date +%N; echo error >&2; exit 1", retry=retry)).job.id
    # Followed from the first attempt, and from before it, by both clients and the command
    command = subprocess.Popen(
        [*COMMAND, "--socket", str(shared_node.socket), "logs", "-f", "--all-attempts", job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    live = list(client.logs(job, attempt="all", follow=True))
    shown, errors = command.communicate(timeout=30)
    assert {event.attempt for event in live} == {1, 2, 3}
    assert errors == b"error\n" * 3

    async def asynchronously() -> None:
        async with AsyncClient(str(shared_node.socket)) as other:
            assert [event async for event in other.logs(job, attempt="all")] == live
            assert [attempt.state for attempt in await other.attempts(job)] == [JobState.FAILED] * 3

    asyncio.run(asynchronously())
    attempts = [jobctl(shared_node, "logs", "--attempt", number, job).stdout for number in ("1", "2", "3")]
    assert len(set(attempts)) == 3
    assert shown == b"".join(attempts) == jobctl(shared_node, "logs", "--attempt", "all", job).stdout
    assert jobctl(shared_node, "logs", job).stdout == attempts[2]
    assert jobctl(shared_node, "logs", "--attempt", "4", job).returncode == 1
    table = jobctl(shared_node, "attempts", job).stdout.splitlines()
    assert table[0].split()[:4] == [b"ATTEMPT", b"STATE", b"REASON", b"EXIT"]
    assert [row.split()[:4] for row in table[1:]] == [[b"%d" % n, b"failed", b"exit_code", b"1"] for n in (1, 2, 3)]


def test_tails_and_from_now(client: Client, shared_node: EmbeddedNode) -> None:
    job = client.submit(shell_job("seq 1 1000; read go; echo end", stdin="")).job.id
    client.wait(job, 30)
    last = b"".join(b"%d\n" % number for number in range(982, 1001)) + b"end\n"
    assert jobctl(shared_node, "logs", "--tail", "20", job).stdout == last
    assert jobctl(shared_node, "logs", "--tail", "0", job).stdout == b""
    assert b"".join(bytes(event.data) for event in client.logs(job, tail_bytes=9)) == b"1000\nend\n"
    assert jobctl(shared_node, "logs", "--tail", "1", "--from-now", job).returncode == 2
    assert jobctl(shared_node, "logs", "--all-attempts", "--attempt", "1", job).returncode == 2
    assert jobctl(shared_node, "logs", "--attempt", "0", job).returncode == 2


def test_from_now_begins_with_what_comes(client: Client, shared_node: EmbeddedNode) -> None:
    job = client.submit(shell_job("echo before; sleep 1.5; echo after", timeout_s=30)).job.id
    assert next(iter(client.logs(job, follow=True))).data.text == "before\n"
    assert jobctl(shared_node, "logs", "--from-now", job).stdout == b"after\n"
    assert client.wait(job).state is JobState.COMPLETED


def test_a_follower_that_comes_back_goes_on_to_later_attempts(client: Client, shared_node: EmbeddedNode) -> None:
    job = client.submit(shell_job("echo x; exit 1", retry=Retry(max_attempts=2, backoff="none"))).job.id
    assert client.wait(job, 30).reason is Reason.EXIT_CODE
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(shared_node.socket))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1.0"}
    connection.request("GET", f"/v1/jobs/{job}/logs?follow=true", headers=headers)
    events = connection.getresponse().read().decode().split("\n\n")
    assert [event.partition("\n")[0] for event in events if event] == ["id: 1.0", "id: 2.0"]
    connection.close()


def test_a_worker_that_dies_leaves_an_attempt_with_its_output(tmp_path: Path) -> None:
    with EmbeddedNode(tmp_path / "node") as node, node.client() as client:
        job = client.submit(shell_job("echo $$; sleep 60", retry=Retry(max_attempts=2, backoff="none"))).job.id
        next(iter(client.logs(job, follow=True)))
        node.kill()
        node.start()
        # The job runs on its second attempt; the first one is told of as lost, with what it wrote
        events = client.logs(job, attempt="all", follow=True)
        assert [next(events).attempt, next(events).attempt] == [1, 2]
        first, second = client.attempts(job)
        assert (first.state, first.reason, first.execution) == (JobState.FAILED, Reason.WORKER_LOST, None)
        assert second.state is JobState.RUNNING
        client.cancel(job)
        assert client.wait(job, 30).reason is Reason.CANCELLED
        assert [attempt.reason for attempt in client.attempts(job)] == [Reason.WORKER_LOST, Reason.CANCELLED]
