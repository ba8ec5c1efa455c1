"""Both clients against a real node, also while it goes and comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, ConnectionFailed, shell_job
from jobs.content import content_bytes
from jobs.errors import IdempotencyConflict, LeaseNotFound, NotFinished, NotFound
from jobs.protocol.model import JobState, KvCompare, KvOp, Stream
from jobs.testing import EmbeddedNode
from tests.support.waiting import until

MISSING = "01900000-0000-7000-8000-000000000000"


def test_the_whole_life_of_a_job_synchronously(client: Client) -> None:
    submitted = client.shell("echo out; echo err >&2; exit 4", labels={"who": "sync"})
    assert submitted.created
    job = submitted.job.id
    assert client.wait(job, 20).state is JobState.FAILED
    result = client.result(job)
    assert (result.stdout.text, result.stderr.text) == ("out\n", "err\n")
    assert result.execution is not None
    assert result.execution.exit_code == 4
    assert client.get(job).spec.payload.script is not None
    assert [found.id for found in client.list(labels={"who": "sync"})] == [job]
    assert [(event.stream, content_bytes(event.data, "")) for event in client.logs(job, streams=(Stream.STDERR,))] == [
        (Stream.STDERR, b"err\n")
    ]
    assert client.cancel(job).outcome == "already_final"
    states = []
    for event in client.watch(job, after_revision=0):
        states.append(event.job.state)
        if event.job.state.is_final:
            break
    assert states == [JobState.PENDING, JobState.RUNNING, JobState.FAILED]
    with pytest.raises(NotFound):
        client.get(MISSING)
    assert client.workers()[0].state == "ready"
    assert client.ready().status == "ok"
    assert "jobs_submitted_total" in client.metrics()


def test_the_whole_life_of_a_job_asynchronously(shared_node: EmbeddedNode) -> None:
    async def scenario() -> None:
        async with AsyncClient(str(shared_node.socket)) as client:
            submitted = await client.shell("for i in 1 2 3; do echo $i; sleep 0.15; done", labels={"who": "async"})
            job = submitted.job.id
            live = [content_bytes(event.data, "") async for event in client.logs(job, follow=True)]
            assert b"".join(live) == b"1\n2\n3\n"
            assert len(live) == 3, "the output came in one piece, not live"
            assert (await client.result(job, timeout_s=20)).state is JobState.COMPLETED
            assert [found.id async for found in client.list(labels={"who": "async"})] == [job]
            many = [item async for item in client.submit_many(shell_job(["true"]) for _ in range(260))]
            assert len({item.job.id for item in many}) == 260
            results = await asyncio.gather(*(client.run(shell_job(["echo", str(n)])) for n in range(20)))
            assert [result.stdout.text for result in results] == [f"{n}\n" for n in range(20)]
            async for event in client.watch(job, after_revision=0):
                if event.job.state.is_final:
                    break
            with pytest.raises(NotFound):
                await client.cancel(MISSING)
            assert (await client.health()).status == "ok"
            assert (await client.ready()).leader
            assert await client.workers()
            assert "jobs_pending" in await client.metrics()

    asyncio.run(scenario())


def test_key_values_with_both_clients(client: Client, shared_node: EmbeddedNode) -> None:
    client.kv.put("/data/c/a", b"\xff\x00")
    assert client.kv.get("/data/c/none") is None
    absent = KvCompare(key="/data/c/a", target="version", number=0)
    assert not client.kv.txn(compare=[absent], then=[KvOp(delete=None, get="/data/c/a")]).succeeded

    async def scenario() -> None:
        async with AsyncClient(str(shared_node.socket)) as other:
            found = await other.kv.get("/data/c/a")
            assert found is not None
            assert content_bytes(found.value, "") == b"\xff\x00"
            start = found.mod_revision
            await other.kv.put("/data/c/b", "2")
            assert [kv.key async for kv in other.kv.scan("/data/c/")] == ["/data/c/a", "/data/c/b"]
            async for event in other.kv.watch("/data/c/", prefix=True, after_revision=start):
                assert (event.type, event.key) == ("put", "/data/c/b")
                break
            lease = await other.kv.grant(60)
            assert (await other.kv.keepalive(lease.id)).remaining_s > 50
            await other.kv.revoke(lease.id)
            with pytest.raises(LeaseNotFound):
                await other.kv.keepalive(lease.id)
            assert await other.kv.delete("/data/c/", prefix=True) == 2

    asyncio.run(scenario())


def test_errors_carry_their_class_and_what_would_be_right(client: Client) -> None:
    client.submit(shell_job(["true"], idempotency_key="client-errors"))
    with pytest.raises(IdempotencyConflict) as caught:
        client.submit(shell_job(["false"], idempotency_key="client-errors"))
    assert caught.value.field == "$.idempotency_key"
    sleeping = client.shell(["sleep", "60"]).job.id
    with pytest.raises(NotFinished):
        client.result(sleeping, timeout_s=0.1)
    client.cancel(sleeping)


def test_threads_share_a_client(client: Client) -> None:
    results: list[str | None] = []

    def work(number: int) -> None:
        results.append(client.run(shell_job(["echo", str(number)]), timeout_s=60).stdout.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == sorted((f"{number}\n" for number in range(16)), key=str)


def test_submissions_and_followers_survive_a_restart_of_the_node(tmp_path: Path) -> None:
    # Given a follower of a waiting job, and a node that goes away
    node = EmbeddedNode(tmp_path / "node").start()
    client = node.client()
    first = client.run(shell_job(["echo", "before"]), timeout_s=20)
    seen: list[JobState] = []

    def follow(events: Iterator[object]) -> None:
        for event in events:
            seen.append(event.job.state)  # type: ignore[attr-defined]
            if event.job.state.is_final:  # type: ignore[attr-defined]
                return

    waiting = client.shell(["sleep", "600"]).job
    until(lambda: client.get(waiting.id).job.state is JobState.RUNNING)
    patient = Client(str(node.socket), patience_s=60)
    follower = threading.Thread(target=follow, args=(patient.watch(waiting.id, after_revision=0),))
    follower.start()
    patient.health()
    node.kill()
    # When a submission is made while nobody answers, and the node comes back
    submitted: list[str] = []
    late = threading.Thread(
        target=lambda: submitted.append(patient.run(shell_job(["echo", "during"])).stdout.text or "")
    )
    late.start()
    node.start()
    late.join(60)
    follower.join(60)
    # Then the submission was made once, the follower saw the end, and what was before is there
    assert submitted == ["during\n"]
    assert seen[-1] is JobState.FAILED
    assert client.result(first.id) == first
    assert len(list(client.list())) == 3
    node.stop()


def test_a_node_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="No such file"):
        Client(str(tmp_path / "none.sock")).health()

    async def scenario() -> None:
        async with AsyncClient(str(tmp_path / "none.sock")) as client:
            with pytest.raises(ConnectionFailed, match="No such file"):
                await client.health()

    asyncio.run(scenario())
