"""What the worker for maintenance does by itself, and what it has its node do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    MaintenanceCleanup,
    MaintenanceDone,
    MaintenanceHealth,
    MaintenanceNode,
    MaintenanceResult,
    OperationAdvance,
    OperationLine,
)
from jobs.workers.maintenance.leftovers import GRACE_S, Place
from jobs.workers.maintenance.work import Work
from tests.support.scriptednode import Answering, Report, ScriptedNode, says, tells

JOB = JobId("01890a5d-ac96-774b-bcce-b302099a8057")
RESULT = MaintenanceResult(
    operation="cleanup",
    dry_run=False,
    status="ok",
    nodes=[MaintenanceNode(node="n1", freed_bytes=10, examined=2, outcome="one stays")],
    counts={"jobs": 3},
    freed_bytes=10,
    findings=[],
    seconds=0.5,
)


class Recording:
    """A node that tells this, and remembers what it was asked."""

    def __init__(self, *events: msgspec.Struct) -> None:
        self._tells = tells(*events)
        self.asked: list[dict[str, Any]] = []

    async def answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        self.asked.append(msgspec.json.decode(await reader.readexactly(int(length.split(b":")[1]))))
        await self._tells(head, reader, writer)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def made(node: ScriptedNode, report: Report, *places: Path) -> Work:
    return Work([Place("directory", place) for place in places], "n1", node.api, report, JOB)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A place where a worker's life has left a directory."""
    place = tmp_path / "place"
    made = place / "jobs-sql-0123456789-abcdefgh"
    made.mkdir(parents=True)
    (made / "spilled").write_bytes(bytes(4_096))
    return place


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.workers.maintenance.leftovers.GRACE_S", -GRACE_S)


def lines(report: Report) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in report.data.splitlines()]


def test_the_node_is_asked_and_what_it_tells_is_passed_on(tmp_path: Path) -> None:
    health = msgspec.structs.replace(RESULT, operation="health")
    node_says = Recording(
        OperationAdvance(done=1, total=3, message="n1"), OperationLine(text='{"a":1}'), MaintenanceDone(result=health)
    )

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", node_says.answer) as node:
            report = Report()
            assert await made(node, report).carry_out(MaintenanceHealth(nodes=["n1"])) == health
        assert node_says.asked == [{"job": JOB, "payload": {"operation": "health", "nodes": ["n1"]}}]
        assert report.data == b'{"a":1}\n'

    run(scenario)


def test_files_are_cleaned_here_and_the_rest_by_the_node(tmp_path: Path, left: Path) -> None:
    node_says = Recording(MaintenanceDone(result=RESULT))

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", node_says.answer) as node:
            report = Report()
            done = await made(node, report, left).carry_out(MaintenanceCleanup())
        (asked,) = node_says.asked
        assert asked["payload"]["parts"] == ["jobs", "audit", "leases", "arrays", "blobs"]
        assert done.counts == {"jobs": 3, "directories": 1, "cgroups": 0}
        assert done.freed_bytes == 10 + 4_096
        assert done.nodes == [MaintenanceNode(node="n1", freed_bytes=4_106, examined=3, outcome="one stays")]
        (told,) = lines(report)
        assert (told["node"], told["bytes"], told["outcome"]) == ("n1", 4_096, "deleted")
        assert list(left.iterdir()) == []

    run(scenario)


def refuses() -> Answering:
    return says(500, b"this node was not to be asked")


def test_files_alone_need_no_node_and_a_dry_run_deletes_nothing(tmp_path: Path, left: Path) -> None:
    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", refuses()) as node:
            report = Report()
            done = await made(node, report, left).carry_out(MaintenanceCleanup(parts=["files"], dry_run=True))
            assert node.heads == []
        assert (done.operation, done.dry_run, done.status) == ("cleanup", True, "ok")
        assert done.nodes == [MaintenanceNode(node="n1", freed_bytes=4_096, examined=1)]
        assert [told["outcome"] for told in lines(report)] == ["would go"]
        assert len(list(left.iterdir())) == 1

    run(scenario)


def test_what_cannot_be_touched_is_told_with_the_reason(tmp_path: Path, left: Path) -> None:
    (left / "jobs-inputs-0123456789-abcdefgh").symlink_to(tmp_path)
    no_directory = tmp_path / "file"
    no_directory.touch()

    async def scenario() -> None:
        async with ScriptedNode(tmp_path / "s", refuses()) as node:
            report = Report()
            work = made(node, report, no_directory, left)
            done = await work.carry_out(MaintenanceCleanup(parts=["files"]))
        assert [(told["outcome"], told["why"]) for told in lines(report)] == [
            ("stays", os.strerror(20)),
            ("stays", "it is no directory"),
            ("deleted", ""),
        ]
        (here,) = done.nodes
        assert here.outcome == "2 leftovers stay, as the output tells"
        assert done.counts == {"directories": 1, "cgroups": 0}

    run(scenario)
