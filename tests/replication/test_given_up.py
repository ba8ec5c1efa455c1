"""What a worker makes of a sync that its node has given up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import LinkUnavailable
from jobs.protocol.ids import JobId
from jobs.protocol.model import ReplicationSync
from jobs.workers.replication.work import Work
from tests.support.loop import on_loop

JOB = JobId("01985f2e-0000-7000-8000-000000000001")
TRIED = {"event": "progress", "done": 0, "total": 0, "message": "tried again"}
FAILED = {
    "event": "failed",
    "problem": {"type": "x", "title": "x", "status": 503, "code": "link_unavailable", "detail": "it is gone"},
}


class Node:
    """Tries for a while, and gives up."""

    def __init__(self) -> None:
        self.asked = 0

    @asynccontextmanager
    async def exchange(self, method: str, path: str, *, body: bytes) -> AsyncIterator[Any]:
        self.asked += 1
        yield self

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b"".join(json.dumps(event).encode() + b"\n" for event in (TRIED, FAILED))


class Report:
    def progress(self, done: int, total: int, message: str) -> None: ...

    def drop(self, size_bytes: int) -> None: ...


@on_loop
async def test_a_sync_that_has_waited_for_the_other_cluster_is_not_begun_again(tmp_path: Path) -> None:
    node: Any = Node()
    report: Any = Report()
    places: Any = None
    work = Work(places, None, None, node, report, JOB)
    with pytest.raises(LinkUnavailable, match="it is gone"):
        await work.carry_out(ReplicationSync(name="s", source="there", prefix="/data/a/"))
    assert node.asked == 1
