"""Two systems with one face, for tests that hold both to the same model: control over a store in memory, in the test's
own process, and a real node process behind its sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from jobs import AsyncClient
from jobs._native import MemoryStore
from jobs.blobs.output import HostedOutput
from jobs.client.requests import post
from jobs.control import Control, ControlConfig, Site
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    AttemptView,
    Batch,
    BatchSubmitted,
    CancelOutcome,
    JobSubmit,
    JobView,
    QueueChange,
    Submitted,
)
from jobs.service import Caller, JobFilter
from jobs.workerdoor import WorkerDoor
from tests.support.memory import MemoryConsensus
from tests.support.nodeprocess import NodeProcess

LEASE_S = 600.0
"""No worker is lost by time: a test that stops to think is no fault."""
ME = Caller(uid=os.getuid(), gid=os.getgid(), admin=True)


class System(Protocol):
    """What a scenario does; errors are those of `jobs.errors`. Workers connect to `worker_socket`."""

    worker_socket: Path

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def restart(self, how: signal.Signals) -> None: ...

    async def submit(self, jobs: Sequence[JobSubmit]) -> Sequence[Submitted]: ...

    async def list(self) -> Sequence[JobView]: ...

    async def until(self, job: str, holds: Callable[[JobView], bool]) -> None:
        """Return when something is so of a job."""

    async def attempts(self, job: str) -> Sequence[AttemptView]: ...

    async def cancel(self, job: str) -> CancelOutcome: ...

    async def depend(self, job: str, parents: Sequence[str]) -> JobView: ...

    async def redrive(self, job: str) -> Submitted: ...

    async def pause(self, queue: str, *, paused: bool) -> None: ...

    async def limit(self, queue: str, max_running: int | None) -> None: ...


class InMemory:
    """Control over a store that outlives it; a restart makes a new control."""

    def __init__(self, directory: Path) -> None:
        self.worker_socket = directory / "worker.sock"
        self._store = MemoryStore()
        self._consensus = MemoryConsensus(self._store)

    async def start(self) -> None:
        config = ControlConfig(worker_lease_s=LEASE_S)
        self._site = Site("test", self._consensus, self._store, HostedOutput(), config)  # type: ignore[arg-type]
        self._door = WorkerDoor("test", frozenset({os.getuid()}))
        await self._door.start(self.worker_socket, 0o600, None)
        self._consensus.lead(True)
        await self._site.settled()
        self._door.lead(self._control.gateway)

    @property
    def _control(self) -> Control:
        assert self._site.control is not None
        return self._site.control

    async def stop(self) -> None:
        self._consensus.lead(False)
        await self._site.stop()
        await self._door.stop()

    async def restart(self, how: signal.Signals) -> None:
        await self.stop()
        await self.start()

    async def submit(self, jobs: Sequence[JobSubmit]) -> Sequence[Submitted]:
        return await self._control.submit(ME, jobs)

    async def list(self) -> Sequence[JobView]:
        found: list[JobView] = []
        cursor: str | None = None
        while True:
            page = await self._control.list_jobs(ME, JobFilter(), limit=1000, cursor=cursor, newest_first=False)
            found += page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def until(self, job: str, holds: Callable[[JobView], bool]) -> None:
        now = (await self._control.get(ME, JobId(job))).job
        if holds(now):
            return
        watch = self._control.watch_jobs(ME, JobFilter(), after_revision=now.revision, job=JobId(job))
        async with aclosing(watch) as changes:  # type: ignore[type-var]
            async for change in changes:
                if not isinstance(change, int) and holds(change.job):
                    return

    async def attempts(self, job: str) -> Sequence[AttemptView]:
        return (await self._control.attempts(ME, JobId(job))).attempts

    async def cancel(self, job: str) -> CancelOutcome:
        return await self._control.cancel(ME, JobId(job))

    async def depend(self, job: str, parents: Sequence[str]) -> JobView:
        return await self._control.depend(ME, JobId(job), [JobId(parent) for parent in parents])

    async def redrive(self, job: str) -> Submitted:
        return await self._control.dead_letters.redrive(ME, JobId(job))

    async def pause(self, queue: str, *, paused: bool) -> None:
        await self._control.queues.pause(ME, queue, paused=paused)

    async def limit(self, queue: str, max_running: int | None) -> None:
        await self._control.queues.change(ME, queue, QueueChange(max_running=max_running))


class OverSockets:
    """A node process; a restart is a signal and another process."""

    def __init__(self, directory: Path) -> None:
        self.worker_socket = directory / "worker.sock"
        self._node = NodeProcess(directory, JOBS_WORKERS__LEASE_S=str(LEASE_S))
        self._client = AsyncClient(str(self._node.socket))

    async def start(self) -> None:
        await self._node.start()

    async def stop(self) -> None:
        await self._client.close()
        await self._node.end(signal.SIGKILL)

    async def restart(self, how: signal.Signals) -> None:
        await self._node.end(how)
        await self._node.start()

    async def submit(self, jobs: Sequence[JobSubmit]) -> Sequence[Submitted]:
        # In one request, and without the keys that the client would give them.
        call = post("/v1/jobs:batch", BatchSubmitted, Batch(jobs=list(jobs)))
        return (await self._client.call(call)).jobs

    async def list(self) -> Sequence[JobView]:
        return [job async for job in self._client.list(newest_first=False, page_size=1000)]

    async def until(self, job: str, holds: Callable[[JobView], bool]) -> None:
        now = (await self._client.get(job)).job
        if holds(now):
            return
        async with aclosing(self._client.watch(job, after_revision=now.revision)) as changes:  # type: ignore[type-var]
            async for change in changes:
                if holds(change.job):
                    return

    async def attempts(self, job: str) -> Sequence[AttemptView]:
        return await self._client.attempts(job)

    async def cancel(self, job: str) -> CancelOutcome:
        return await self._client.cancel(job)

    async def depend(self, job: str, parents: Sequence[str]) -> JobView:
        return await self._client.depend(job, parents)

    async def redrive(self, job: str) -> Submitted:
        return await self._client.dead_letters.redrive(job)

    async def pause(self, queue: str, *, paused: bool) -> None:
        await (self._client.queues.pause(queue) if paused else self._client.queues.resume(queue))

    async def limit(self, queue: str, max_running: int | None) -> None:
        await self._client.queues.change(queue, max_running=max_running)
