"""A scripted worker for arrays: takes tasks as they come, and ends each as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from jobs.protocol import wire
from jobs.protocol.model import Reason
from tests.support.peer import WorkerPeer

End = Callable[[int], Reason | None]
"""Why the task of an index fails; None if it completes."""


def index_of(item: wire.Assignment) -> int:
    return int(item.env["JOBS_ARRAY_INDEX"])


class TaskPeer(WorkerPeer):
    """Keeps what it has been given, and remembers all of it."""

    def __init__(self, name: str = "shell-0", *, slots: int = 4) -> None:
        super().__init__(name, slots=slots)
        self.given: list[wire.Assignment] = []
        self.held: dict[int, wire.Assignment] = {}
        self.cancelled: list[int] = []
        self.refused: list[wire.FinishedAck] = []

    async def join(self, path: Path) -> TaskPeer:
        """Register, with what it still has."""
        running = [wire.JobRef(job=item.job, attempt=item.attempt) for item in self.held.values()]
        answer = await self.register(path, running)
        assert isinstance(answer, wire.Registered), answer
        assert not answer.fenced
        return self

    async def take(self, count: int) -> list[wire.Assignment]:
        """Return the next so many tasks."""
        before = len(self.given)
        while len(self.given) < before + count:
            await self.listen()
        assert len(self.given) == before + count
        return self.given[before:]

    async def listen(self) -> wire.NodeFrame:
        """Take note of one frame."""
        frame = await self.receive()
        if isinstance(frame, wire.Assign):
            for item in frame.jobs:
                assert self.held.get(index_of(item), item) == item, "another attempt of a task that runs here"
                if index_of(item) not in self.held:
                    self.given.append(item)
                self.held[index_of(item)] = item
        elif isinstance(frame, wire.Cancel):
            self.cancelled += [index for index, item in self.held.items() if item.job == frame.job]
        elif isinstance(frame, wire.FinishedAck) and not frame.accepted:
            self.refused.append(frame)
        return frame

    def end(self, index: int, reason: Reason | None = None) -> None:
        item = self.held.pop(index)
        self.finish(item, reason=reason, exit_code=0 if reason is None else None)

    async def work(self, ends: End = lambda index: None) -> None:
        """End every task that comes, until the connection does."""
        try:
            while True:
                for index in list(self.held):
                    self.end(index, ends(index))
                await self.listen()
        except (EOFError, ConnectionError, asyncio.CancelledError):
            return
