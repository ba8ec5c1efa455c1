"""Dependencies as people use them: `jobctl` and the clients against a real node, which dies in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jobs import AsyncClient, Client, JobState, shell_job
from jobs.errors import AlreadyStarted, InvalidRequest
from jobs.protocol.model import Reason
from jobs.testing import EmbeddedNode

NEVER_MS = 253_402_300_799_999


def jobctl(node: EmbeddedNode, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        text=True,
        env={**os.environ, "JOBS_SOCKET": str(node.socket)},
    )


def submit(node: EmbeddedNode, *arguments: str) -> str:
    done = jobctl(node, "submit", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_job_runs_after_those_that_it_depends_on_and_reads_their_results(shared_node: EmbeddedNode) -> None:
    first = submit(shared_node, "--", "sh", "-c", "sleep 0.3; echo from the first")
    bad = submit(shared_node, "--", "sh", "-c", "echo partial; exit 7")
    script = 'cat "$JOBS_PARENTS"/*/stdout; for p in "$JOBS_PARENTS"/*/result.json; do cat "$p"; echo; done'
    done = jobctl(
        shared_node, "run", "--depends-on", first, "--depends-on", bad, "--on-failure", "run", "--", "sh", "-c", script
    )
    assert done.returncode == 0, done.stderr
    *output, one, two = done.stdout.splitlines()
    assert output == ["from the first", "partial"]
    assert [(json.loads(line)["id"], json.loads(line)["exit_code"]) for line in (one, two)] == [(first, 0), (bad, 7)]
    # Without --on-failure run, the failure is passed on
    done = jobctl(shared_node, "run", "--depends-on", bad, "--", "true")
    assert done.returncode == 125
    assert f"dependency_failed: job {bad}, which it depends on, failed" in done.stderr


def test_a_file_of_jobs_reads_by_name(shared_node: EmbeddedNode) -> None:
    lines = [
        {"ref": "numbers", "payload": {"script": "seq 10"}},
        {"ref": "letters", "payload": {"script": "echo a b c"}},
        {
            "depends_on": ["numbers", "letters"],
            "payload": {"script": "cd $JOBS_PARENTS; paste -sd+ numbers/stdout; wc -w < letters/stdout"},
        },
    ]
    text = "".join(json.dumps({"type": "shell", **line}) + "\n" for line in lines)
    done = jobctl(shared_node, "submit", "--from", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    with shared_node.client() as client:
        result = client.result(done.stdout.split()[2], timeout_s=20)
    assert result.stdout.text == "1+2+3+4+5+6+7+8+9+10\n3\n"


def test_edges_and_graphs(shared_node: EmbeddedNode, client: Client, tmp_path: Path) -> None:
    never = client.submit(shell_job(["true"], not_before_ms=NEVER_MS, ref="never")).job.id
    done = client.submit(shell_job(["true"], ref="done")).job.id
    client.wait(done, 20)
    job = client.submit(shell_job(["true"], depends_on=[never], ref="middle")).job.id
    last = client.submit(shell_job(["true"], depends_on=[job], ref="last")).job.id
    # When an edge is added
    added = jobctl(shared_node, "depend", job, "--on", done, never, "--json")
    assert json.loads(added.stdout)["waits_for"] == 1
    assert client.get(job).parents == [never, done]
    assert f"parents  {never} {done}\n" in jobctl(shared_node, "status", job).stdout
    # Then the graph has it, as text, as JSON and as a drawing
    shown = [line.split() for line in jobctl(shared_node, "graph", job).stdout.splitlines()]
    assert shown == [
        ["#", "STATE", "REASON", "ID", "REF", "AFTER"],
        ["1", "pending", "-", never, "never", "-"],
        ["2", "completed", "-", done, "done", "-"],
        ["3*", "pending", "-", job, "middle", "1", "2"],
        ["4", "pending", "-", last, "last", "3"],
    ]
    found = json.loads(jobctl(shared_node, "graph", job, "--json").stdout)
    assert {(edge["parent"], edge["child"]) for edge in found["edges"]} == {(never, job), (done, job), (job, last)}
    path = tmp_path / "graph.svg"
    assert jobctl(shared_node, "graph", job, "--svg", str(path)).returncode == 0
    assert path.read_text() == jobctl(shared_node, "graph", job, "--svg", "-").stdout
    assert ET.fromstring(path.read_text()).tag.endswith("svg")
    bounded = jobctl(shared_node, "graph", job, "--limit", "2")
    assert len(bounded.stdout.splitlines()) == 3
    assert "there are more jobs; the 2 nearest are shown" in bounded.stderr
    assert "cannot write" in jobctl(shared_node, "graph", job, "--svg", "/no/such/place").stderr
    # What cannot be is refused by name
    circle = jobctl(shared_node, "depend", never, "--on", last)
    assert circle.returncode == 65
    assert f"{never} → {last} → {job} → {never}" in circle.stderr
    with pytest.raises(AlreadyStarted):
        client.depend(done, [never])
    with pytest.raises(InvalidRequest):
        client.depend(job, ["nonsense"])
    client.cancel(never)
    assert client.wait(last, 20).reason is Reason.DEPENDENCY_FAILED


def test_the_asynchronous_client_does_the_same(shared_node: EmbeddedNode) -> None:
    async def scenario() -> None:
        async with AsyncClient(str(shared_node.socket)) as client:
            parent = (await client.shell("echo hello", ref="p", not_before_ms=NEVER_MS)).job.id
            chain = [shell_job(["true"], ref="a"), shell_job(["true"], ref="b", depends_on=["a"])]
            first, second = [one.job.id async for one in client.submit_many(chain)]
            free = (await client.shell("true", not_before_ms=NEVER_MS)).job.id
            assert (await client.depend(free, [parent])).waits_for == 1
            graph = await client.graph(second, limit=10)
            assert [(edge.parent, edge.child) for edge in graph.edges] == [(first, second)]
            assert (await client.wait(second, 20)).state is JobState.COMPLETED
            await client.cancel(parent)

    asyncio.run(scenario())


def test_a_node_that_is_killed_while_it_tells_children_tells_the_rest(tmp_path: Path) -> None:
    count = 1_000
    node = EmbeddedNode(tmp_path / "node").start()
    with node.client() as client:
        parent = client.submit(shell_job(["true"], not_before_ms=NEVER_MS)).job.id
        never = client.submit(shell_job(["true"], not_before_ms=NEVER_MS)).job.id
        jobs = (shell_job(["true"], depends_on=[parent, never], on_failure="run") for _ in range(count))
        children = [one.job.id for one in client.submit_many(jobs)]
        # When the node is killed as soon as the first child has heard of it
        start = client.health().revision
        client.cancel(parent)
        for event in client.watch(children[0], after_revision=start):
            assert event.job.waits_for == 1
            break
        node.kill()
    with node, node.client() as client:
        # Then every child hears of it once: an end told twice would have let it run
        heard: dict[str, int] = {}
        while len(heard) < count:
            heard = {job.id: job.waits_for for job in client.list(page_size=1000) if job.waits_for == 1}
        assert set(heard) == set(children)
        assert client.submit(shell_job(["true"], depends_on=[children[-1]])).job.waits_for == 1
        assert {client.get(job).job.waits_for for job in children} == {1}
