"""Queues, owners and drained workers by both clients and by `jobctl`; full queues, through a real node."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, shell_job
from jobs.errors import InvalidRequest, QueueClosed, QueueFull
from jobs.protocol.model import BATCH_JOBS, JobState, OwnerSettings, QueueSettings, Requires, Retry
from jobs.testing import EmbeddedNode
from tests.support.api import job

Jobctl = Callable[..., subprocess.CompletedProcess[str]]
ME = os.getuid()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("queues") / "node") as made:
        yield made


@pytest.fixture
def client(node: EmbeddedNode) -> Iterator[Client]:
    with Client(str(node.socket), patience_s=0) as made:
        yield made


@pytest.fixture
def jobctl(node: EmbeddedNode) -> Jobctl:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=60, env=environment(node), check=False
        )

    return run


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli.main", *arguments]


def environment(node: EmbeddedNode) -> dict[str, str]:
    return {**os.environ, "JOBS_SOCKET": str(node.socket)}


# --- clients ----------------------------------------------------------------------------------------------------------


def test_queues_and_owners_with_the_synchronous_client(client: Client) -> None:
    name = "sync/q"
    assert client.queues.change(name, max_running=2, rate_count=5).max_running == 2
    changed = client.queues.change(name, max_running=None, weight=2.5)
    assert (changed.max_running, changed.weight, changed.rate_count) == (None, 2.5, 5)
    assert client.queues.pause(name).paused
    assert not client.queues.resume(name).paused
    assert client.queues.drain(name).draining
    with pytest.raises(QueueClosed):
        client.shell(["true"], queue=name)
    assert not client.queues.open(name).draining
    assert client.queues.put(name, QueueSettings(max_pending=7)) == client.queues.get(name)
    assert [queue.name for queue in client.queues.list() if queue.name == name] == [name]
    assert client.owners.change(77, max_running=3).max_running == 3
    assert client.owners.put(77, OwnerSettings(weight=2.0)) == client.owners.get(77)
    with pytest.raises(InvalidRequest) as caught:
        client.queues.change("/absolute", weight=1.0)
    assert caught.value.field == "id"


def test_queues_owners_and_drains_with_the_asynchronous_client(node: EmbeddedNode) -> None:
    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as client:
            name = "async/q"
            assert (await client.queues.change(name, max_running=2)).max_running == 2
            assert (await client.queues.pause(name)).paused
            assert not (await client.queues.resume(name)).paused
            assert (await client.queues.drain(name)).draining
            assert not (await client.queues.open(name)).draining
            assert await client.queues.put(name, QueueSettings(weight=7.0)) == await client.queues.get(name)
            assert name in [queue.name async for queue in client.queues.list()]
            assert (await client.owners.change(78, max_pending=3)).max_pending == 3
            assert await client.owners.put(78, OwnerSettings()) == await client.owners.get(78)
            (worker,) = await client.workers()
            assert (await client.drain(worker.id)).state == "draining"
            assert (await client.undrain(worker.id)).state == "ready"

    asyncio.run(scenario())


# --- jobctl -----------------------------------------------------------------------------------------------------------


def test_what_is_set_of_a_queue_is_only_what_is_given(jobctl: Jobctl) -> None:
    first = jobctl("queue", "set", "cli/q", "--weight", "2", "--max-running", "5", "--rate", "10/1m", "--json")
    assert first.returncode == 0, first.stderr
    second = json.loads(jobctl("queue", "set", "cli/q", "--max-running", "none", "--max-pending", "9", "--json").stdout)
    assert (second["weight"], second["max_running"], second["max_pending"]) == (2.0, None, 9)
    assert (second["rate_count"], second["rate_period_s"]) == (10, 60.0)
    third = json.loads(jobctl("queue", "set", "cli/q", "--rate", "none", "--json").stdout)
    assert (third["rate_count"], third["max_pending"]) == (None, 9)
    shown = jobctl("queue", "show", "cli/q").stdout
    assert "limits   9 pending\n" in shown


def test_a_queue_is_paused_resumed_drained_and_opened(jobctl: Jobctl, client: Client) -> None:
    assert "paused" in jobctl("queue", "pause", "cli/p").stdout
    waiting = client.shell(["true"], queue="cli/p").job.id
    assert "paused, draining" in jobctl("queue", "drain", "cli/p").stdout
    refused = jobctl("submit", "--queue", "cli/p", "--", "true")
    assert (refused.returncode, "being drained" in refused.stderr) == (1, True)
    lines = [line.split() for line in jobctl("queues").stdout.splitlines()]
    assert lines[0][:6] == ["NAME", "WEIGHT", "PENDING", "WAITING", "RUNNING", "STATE"]
    assert ["cli/p", "1", "1", "0", "0", "paused,", "draining", "-"] in lines
    assert "state    draining" in jobctl("queue", "resume", "cli/p").stdout
    assert client.wait(waiting, 30).state is JobState.COMPLETED, "what waits in a drained queue is still run"
    assert "state    open" in jobctl("queue", "open", "cli/p").stdout
    names = [json.loads(line)["name"] for line in jobctl("queues", "--json").stdout.splitlines()]
    assert names == sorted(names)


def test_an_owner_is_shown_and_set(jobctl: Jobctl) -> None:
    done = jobctl("owner", "set", "4711", "--weight", "0.5", "--max-pending", "10", "--max-blob-bytes", "5GiB")
    assert (done.returncode, "10 pending" in done.stdout) == (0, True)
    shown = json.loads(jobctl("owner", "show", "4711", "--json").stdout)
    assert (shown["uid"], shown["weight"], shown["max_running"]) == (4711, 0.5, None)
    assert (shown["max_blob_bytes"], shown["blobs"], shown["blob_bytes"]) == (5 << 30, 0, 0)


def test_a_drain_is_undone_and_the_same_process_takes_jobs_again(jobctl: Jobctl, client: Client) -> None:
    (before,) = client.workers()
    assert "draining, 0 jobs running" in jobctl("drain", before.id).stdout
    waiting = client.shell(["echo", "now"]).job.id
    assert client.wait(waiting, 0).state is JobState.PENDING
    assert "draining" in jobctl("workers").stdout
    assert "ready" in jobctl("drain", "--undo", before.id).stdout
    assert client.wait(waiting, 30).state is JobState.COMPLETED
    assert client.workers()[0].incarnation == before.incarnation


def test_a_job_is_explained_by_jobctl_and_by_both_clients(node: EmbeddedNode, jobctl: Jobctl, client: Client) -> None:
    hopeless = client.shell(["true"], requires=Requires(labels={"zone": "a"}, resources={"gpu": 1})).job.id
    found = client.explain(hopeless)
    assert [obstacle.kind for obstacle in found.obstacles] == ["unsuitable"]

    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as other:
            assert await other.explain(hopeless) == found

    asyncio.run(scenario())
    told = jobctl("explain", hopeless).stdout
    assert "why    the only registered worker can never take it; it stays pending until one comes that can" in told
    assert "no     label zone=a wanted, has none; gpu 1 wanted, none" in told
    client.queues.pause("held")
    held = client.shell(["true"], queue="held", concurrency_key="k").job.id
    told = jobctl("explain", held).stdout
    assert "why    queue held is paused" in told
    assert "ahead  0 of the same owner" in told
    client.queues.resume("held")
    failed = client.shell("exit 3", retry=Retry(max_attempts=2, delay_s=0)).job.id
    client.wait(failed, 30)
    one, two = map(json.loads, jobctl("explain", "--json", hopeless, failed).stdout.splitlines())
    assert (one["obstacles"][0]["kind"], two["obstacles"]) == ("unsuitable", [])
    told = jobctl("explain", failed).stdout
    assert "its command ended with exit code 3; attempt 2 of 2" in told
    assert [line.split()[:2] for line in told.splitlines()[-2:]] == [["2", "exit_code"], ["1", "exit_code"]]
    client.cancel(hopeless)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["explain", "nothing"], 65, "UUIDv7"),
        (["explain", "01900000-0000-7000-8000-000000000000"], 1, "there is no job"),
        (["queue", "set", "q"], 2, "nothing is to be set"),
        (["queue", "set", "q", "--rate", "fast"], 2, "is no rate"),
        (["queue", "set", "q", "--rate", "0/1s"], 65, "$.rate_count"),
        (["queue", "set", "q", "--max-running", "-1"], 2, "less than 0"),
        (["queue", "set", "q", "--max-running", "few"], 2, "no whole number"),
        (["queue", "set", "q", "--weight", "0"], 65, "$.weight"),
        (["queue", "show", "../q"], 65, "is no name at id"),
        (["queue"], 2, "required"),
        (["owner", "set", "alice", "--weight", "1"], 2, "no whole number"),
        (["owner", "set", "1", "--max-running-per-owner", "1"], 2, "unrecognized"),
        (["drain", "--undo", "nobody"], 1, "there is no worker"),
    ],
)
def test_what_is_wrong_is_said_in_words(jobctl: Jobctl, arguments: list[str], code: int, text: str) -> None:
    done = jobctl(*arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


# --- full queues ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["queue", "share", "owner"])
def test_a_full_queue_is_429_with_retry_after_and_nothing_accepted_is_lost(
    node: EmbeddedNode, client: Client, limit: str
) -> None:
    # Given a limit of three, and that many jobs
    name = f"full/{limit}"
    client.queues.pause(name)
    try:
        if limit == "owner":
            client.owners.change(ME, max_pending=3)
        else:
            client.queues.change(name, **{"max_pending" if limit == "queue" else "max_pending_per_owner": 3})
        accepted = [client.shell(["echo", str(n)], queue=name).job.id for n in range(3)]
        # When there is one more, alone or among others, then it is refused, and when to come again is said
        with pytest.raises(QueueFull) as caught:
            client.shell(["echo", "more"], queue=name)
        assert caught.value.retry_after_s == 5
        assert "the limit is 3" in str(caught.value)
        for target, body in (
            ("/v1/jobs", job("true", queue=name)),
            ("/v1/jobs:batch", {"jobs": [job("true", queue=name)] * 2}),
        ):
            status, headers, problem = post(node.socket, target, body)
            assert (status, problem["code"], headers["Retry-After"]) == (429, "queue_full", "5")
        assert [found.id for found in client.list(queue=name, newest_first=False)] == accepted
        client.queues.resume(name)
        for number, one in enumerate(accepted):
            assert client.wait(one, 30).state is JobState.COMPLETED
            assert client.result(one).stdout.text == f"{number}\n"
    finally:
        client.owners.put(ME, OwnerSettings())


def test_jobctl_waits_for_room(node: EmbeddedNode, client: Client) -> None:
    client.queues.change("room", max_pending=0)
    before = refused(client)
    waits = subprocess.Popen(
        command("submit", "--queue", "room", "--", "echo", "late"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(node),
    )  # fmt: skip
    until_refused(client, before + 1)
    client.queues.change("room", max_pending=1)
    out, err = waits.communicate(timeout=60)
    assert waits.returncode == 0, err
    assert client.wait(out.strip(), 30).state is JobState.COMPLETED


def test_submit_many_waits_for_room_and_makes_each_job_once(client: Client) -> None:
    client.queues.change("many", max_pending=BATCH_JOBS)
    waits: list[str] = []
    made = [
        submitted.job.id
        for submitted in client.submit_many(
            (shell_job(["true"], queue="many", labels={"n": str(n)}) for n in range(BATCH_JOBS + 20)),
            on_progress=lambda told: waits.append(told.waits_for.code) if told.waits_for else None,
        )
    ]
    assert len(set(made)) == BATCH_JOBS + 20
    assert set(waits) == {"queue_full"}
    labels = sorted(int(found.labels["n"]) for found in client.list(queue="many", page_size=1000))
    assert labels == list(range(BATCH_JOBS + 20))
    for one in made:
        assert client.wait(one, 60).state is JobState.COMPLETED


def refused(client: Client) -> float:
    """Return how many single submissions the node has answered with 429."""
    samples = [line for line in client.metrics().splitlines() if 'route="/v1/jobs",status="429"' in line]
    return float(samples[0].split()[-1]) if samples else 0.0


def until_refused(client: Client, count: float) -> None:
    deadline = time.monotonic() + 30
    while refused(client) < count:
        assert time.monotonic() < deadline, "nobody was refused"
        time.sleep(0.01)


def post(path: Path, target: str, body: object) -> tuple[int, http.client.HTTPMessage, dict[str, object]]:
    made = http.client.HTTPConnection("jobs")
    made.sock = socket.socket(socket.AF_UNIX)
    made.sock.connect(str(path))
    made.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
    answer = made.getresponse()
    return answer.status, answer.headers, json.loads(answer.read())
