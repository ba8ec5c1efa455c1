"""`jobctl maintenance` as a process and `client.maintenance`, against a real node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs import AsyncClient, OperationFailed
from jobs.protocol.model import JobState, MaintenanceHealth, MaintenanceResult, Reason, UsageLine
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl

OPERATIONS = ("compact", "cleanup", "health", "verify", "metrics")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNode]:
    with EmbeddedNode(tmp_path_factory.mktemp("commands") / "node", types=("shell", "maintenance")) as made:
        with made.client() as client:
            client.result(client.shell(["echo", "hello"]).job.id, timeout_s=30)
            client.result(client.shell(["false"]).job.id, timeout_s=30)
        yield made


def objects(output: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in output.splitlines()]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_ends_with_its_result(node: EmbeddedNode, operation: str) -> None:
    done = jobctl(node, "maintenance", operation, "--json")
    *_, last = objects(done.stdout)
    result = msgspec.convert(last, MaintenanceResult)
    assert (result.operation, result.dry_run) == (operation, False)
    assert done.returncode == (1 if result.status == "failing" else 0), done.stderr
    told = jobctl(node, "maintenance", operation)
    assert told.returncode == done.returncode, told.stderr
    assert b"took" in told.stdout


@pytest.mark.parametrize("operation", ["compact", "cleanup"])
def test_a_dry_run_says_that_it_is_one(node: EmbeddedNode, operation: str) -> None:
    done = jobctl(node, "maintenance", operation, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    *_, result = objects(done.stdout)
    assert result["dry_run"]


def test_parts_and_nodes_are_chosen(node: EmbeddedNode) -> None:
    done = jobctl(node, "maintenance", "cleanup", "--part", "files", "--json")
    assert done.returncode == 0, done.stderr
    *_, result = objects(done.stdout)
    assert set(result["counts"]) == {"directories", "cgroups"}
    done = jobctl(node, "maintenance", "health", "--node", "nobody")
    assert done.returncode == 1
    assert b"nobody" in done.stderr


def test_usage_is_a_table_for_people_and_lines_for_programs(node: EmbeddedNode) -> None:
    *lines, _ = objects(jobctl(node, "maintenance", "metrics", "--json").stdout)
    used = {line.type: line for line in (msgspec.convert(line, UsageLine) for line in lines)}
    shell = used["shell"]
    assert (shell.owner, shell.jobs, shell.failed, shell.attempts) == (os.geteuid(), 2, 1, 2)
    shown = jobctl(node, "maintenance", "metrics").stdout.decode().splitlines()
    assert shown[0].split() == [
        "BEGINS",
        "(UTC)",
        "OWNER",
        "TYPE",
        "JOBS",
        "FAILED",
        "ATTEMPTS",
        "TIME",
        "CPU",
        "OUTPUT",
        "STORED",
    ]
    assert any(" shell " in line for line in shown[1:])


def test_the_client_tells_progress_and_lines_and_raises_what_failed(node: EmbeddedNode) -> None:
    with node.client() as client:
        lines: list[dict[str, Any]] = []
        done = client.maintenance.metrics(on_line=lines.append)
        assert done.operation == "metrics"
        assert lines
        with pytest.raises(OperationFailed, match="health on node") as failure:
            client.maintenance.health(nodes=["nobody"])
        assert failure.value.reason is Reason.MAINTENANCE_ERROR

    async def scenario() -> None:
        async with AsyncClient(str(node.socket)) as client:
            assert (await client.maintenance.perform(MaintenanceHealth())).operation == "health"

    asyncio.run(scenario())


def test_workers_keep_no_room_of_a_file_that_was_compacted(node: EmbeddedNode) -> None:
    """Given workers that the node has started; then none of them got the store's file, which would keep its room."""
    lists = Path(f"/proc/{node.pid}/task").glob("*/children")
    children = [int(child) for path in lists for child in path.read_text().split()]
    assert children
    held = [os.readlink(file) for child in children for file in Path(f"/proc/{child}/fd").iterdir()]
    assert not [name for name in held if "data.mdb" in name]


def test_detached_it_is_a_job_like_any_other(node: EmbeddedNode) -> None:
    done = jobctl(node, "maintenance", "health", "--detach")
    assert done.returncode == 0, done.stderr
    with node.client() as client:
        job = done.stdout.decode().strip()
        assert client.wait(job, 30.0).state is JobState.COMPLETED
        result = client.result(job)
        assert result.maintenance is not None
    shown = jobctl(node, "result", job).stdout.decode()
    assert "WHAT TO DO" in shown
    assert f"status  {result.maintenance.status}" in shown
    assert result.maintenance.operation == "health"
