"""A control plane comes and goes with the leadership of its node: nothing of it stays, and nothing is lost by that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from jobs._native import MemoryStore
from jobs.api import ApiConfig, ApiServer, serve
from jobs.blobs.output import HostedOutput
from jobs.control import Control, ControlConfig, Site
from jobs.errors import Unavailable
from jobs.protocol.ids import JobId
from jobs.protocol.model import (
    ArrayRange,
    ArraySpec,
    Content,
    JobState,
    KvPut,
    Schedule,
)
from jobs.service import JobFilter
from jobs.workerdoor import WorkerDoor
from tests.support.api import Raw, job, request
from tests.support.backend import SiteBackend
from tests.support.memory import MemoryConsensus
from tests.support.peer import WorkerPeer
from tests.support.plane import ADMIN, ALICE, shell

STEP_S = 20.0


class Seat:
    """A node that leads when it is told to, over a store that outlives every leadership."""

    def __init__(self, directory: Path) -> None:
        self.worker_socket = directory / "worker.sock"
        self.api_socket = directory / "api.sock"
        self.store = MemoryStore()
        self.consensus = MemoryConsensus(self.store)
        self.site = Site("test", self.consensus, self.store, HostedOutput(), ControlConfig(worker_lease_s=600.0))  # type: ignore[arg-type]
        self.door = WorkerDoor("test", frozenset({os.getuid()}))
        self.api: ApiServer | None = None

    @property
    def control(self) -> Control:
        assert self.site.control is not None
        return self.site.control

    async def lead(self) -> Control:
        self.consensus.lead(True)
        await self.site.settled()
        return self.control

    def cease(self) -> None:
        self.consensus.lead(False)

    async def ended(self) -> None:
        """Return once the last control plane is no more."""
        assert self.site._leading is not None
        await asyncio.wait([self.site._leading])

    async def ask(self, method: str, target: str, body: Any = None) -> Raw:
        raw = await Raw.connect(self.api_socket)
        await raw.send(request(method, target, body))
        return raw


@asynccontextmanager
async def seat(directory: Path) -> AsyncIterator[Seat]:
    made = Seat(directory)
    made.site.on_change = lambda: made.door.lead(None if made.site.control is None else made.site.control.gateway)
    await made.door.start(made.worker_socket, 0o600, None)
    made.api = await serve(SiteBackend(made.site), str(made.api_socket), ApiConfig())
    try:
        yield made
    finally:
        await made.api.stop(1.0)
        await made.site.stop()
        await made.door.stop()


class Worker(WorkerPeer):
    """Comes back after every loss, ends what it is given, and keeps no connection of its own account."""

    def __init__(self, seat: Seat) -> None:
        super().__init__("shell-0", slots=4)
        self._seat = seat
        self.ended = 0

    async def work(self) -> None:
        while True:
            with suppress(EOFError, ConnectionError):
                await self.register(self._seat.worker_socket)
                while True:
                    frame = await self.receive()
                    for item in getattr(frame, "jobs", ()):
                        self.finish(item)
                        self.ended += 1
            self.writer.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def timers() -> int:
    """Return how many timers of the loop have not been cancelled."""
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def submit(control: Control, *argv: str, **changes: object) -> JobId:
    (made,) = await control.submit(ALICE, [shell(*argv, **changes)])
    return made.job.id


def test_fifty_leaderships_leave_nothing_behind_and_lose_nothing(tmp_path: Path) -> None:
    """Given jobs, an array, dependencies, a schedule, leases and a worker that comes back, when the node begins and
    ceases to lead fifty times, every other time half-way through the start, then no task, timer or descriptor stays
    of all that, and every job is run."""

    async def scenario() -> None:
        async with seat(tmp_path) as made:
            await turns(10)
            before = descriptors()
            control = await made.lead()
            jobs = [await submit(control, "true") for _ in range(20)]
            jobs.append(await submit(control, "true", depends_on=jobs[:3]))
            jobs.append(await submit(control, "true", array=ArraySpec(range=ArrayRange(stop=50))))
            every_hour = Schedule(cron="0 * * * *", job=shell("true"))
            await control.schedules.put(ALICE, "hourly", every_hour, None)
            lease = await control.lease_grant(ALICE, 3_600)
            await control.kv_put(ALICE, KvPut(key="/data/a", value=Content(text="1"), lease=lease.id))
            made.cease()
            await made.ended()
            baseline = len(asyncio.all_tasks())
            worker = Worker(made)
            working = asyncio.create_task(worker.work())
            for number in range(50):
                if number % 2:
                    made.consensus.lead(True)
                    await turns(number)
                else:
                    await made.lead()
                    await turns(number)
                made.cease()
            await made.ended()
            working.cancel()
            await asyncio.wait([working])
            worker.writer.close()
            async with asyncio.timeout(STEP_S):
                while made.door.guests or len(asyncio.all_tasks()) > baseline:
                    await asyncio.sleep(0.01)
            left = [task for task in asyncio.all_tasks() if "tests" not in str(task.get_coro())]
            assert timers() == 0, "a timer of a control plane is left"
            # One pidfd watches the worker, whose process goes on: that is the door's.
            assert descriptors() <= before + len(made.door._watched) + 1, left
            working = asyncio.create_task(worker.work())
            control = await made.lead()
            async with asyncio.timeout(STEP_S):
                for one in jobs:
                    assert (await control.wait(ALICE, one, STEP_S)).state is JobState.COMPLETED
            assert (await control.kv_get(ALICE, "/data/a", 0)) is not None
            assert (await control.lease_keepalive(ALICE, lease.id)).remaining_s > 3_000
            working.cancel()
            await asyncio.wait([working])
            worker.writer.close()

    asyncio.run(scenario())


def test_long_polls_streams_and_requests_of_a_former_control_plane_end_with_a_hint_to_ask_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with seat(tmp_path) as made:
            control = await made.lead()
            one = await submit(control, "true")
            waiting = await made.ask("GET", f"/v1/jobs/{one}/wait?timeout_s=60")
            watching = await made.ask("GET", "/v1/jobs:watch")
            assert (await watching.head())[0] == 200
            assert await watching.event()
            await turns(20)
            made.cease()
            assert (await watching.event())["event"] == "problem"
            assert await watching.closed()
            answer = await waiting.answer()
            # It began before that, so its patience may be over when an election could still be going well.
            answer.problem(503, "not_leader" if answer.json()["code"] == "not_leader" else "no_leader")
            assert int(answer.headers["retry-after"]) == 1
            refused = await (await made.ask("POST", "/v1/jobs", job())).answer()
            refused.problem(503, "no_leader")
            assert (await (await made.ask("GET", "/v1/health")).answer()).status == 200
            await made.lead()
            assert (await (await made.ask("GET", f"/v1/jobs/{one}")).answer()).status == 200

    asyncio.run(scenario())


def test_a_request_that_waited_for_work_of_a_former_control_plane_is_answered(tmp_path: Path) -> None:
    """Given a cancellation that waits for a background task of the control plane, when that ends with it, then the
    client is told so: a cancelled task is no lost connection."""

    async def scenario() -> None:
        async with seat(tmp_path) as made:
            control = await made.lead()
            array = await submit(control, "true", array=ArraySpec(range=ArrayRange(stop=50)))
            await turns(200)
            asking = await made.ask("POST", f"/v1/jobs/{array}/cancel")
            opened = control._arrays._open[array]
            async with asyncio.timeout(STEP_S):
                while opened.sweep is None:
                    await asyncio.sleep(0)
            made.cease()
            (await asking.answer()).problem(503, "outcome_unknown")

    asyncio.run(scenario())


def test_a_request_waits_a_moment_for_the_work_to_be_taken_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with seat(tmp_path) as made:
            made.consensus.lead(True)
            assert made.site.control is None
            assert (await (await made.ask("GET", "/v1/jobs")).answer()).status == 200

    asyncio.run(scenario())


def test_taking_up_much_work_lets_others_have_their_turns(tmp_path: Path) -> None:
    """Given thousands of jobs that wait, in lanes of their own, when the work is taken up, then the event loop has
    turned at least once for every page that was read."""

    async def scenario() -> None:
        async with seat(tmp_path) as made:
            control = await made.lead()
            for first in range(0, 4_000, 200):
                batch = [shell("true", concurrency_key=str(first + n), concurrency_limit=1) for n in range(200)]
                await control.submit(ALICE, batch)
            made.cease()
            counted = 0

            async def count() -> None:
                nonlocal counted
                while True:
                    await asyncio.sleep(0)
                    counted += 1

            counting = asyncio.create_task(count())
            again = await made.lead()
            counting.cancel()
            assert len(again._dispatcher.backlog) == 4_000
            assert counted >= 4_000 // 1_024 + 1

    asyncio.run(scenario())


def test_a_proposal_of_a_former_control_plane_starts_nothing_any_more(tmp_path: Path) -> None:
    """Given a submission under way, when its control plane ends before it is committed, then what follows from the
    commit starts no timer and no task of that control plane."""

    async def scenario() -> None:
        async with seat(tmp_path) as made:
            control = await made.lead()
            late = asyncio.create_task(submit(control, "true", not_before_ms=1 << 42, timeout_s=5.0))
            await turns(1)
            made.consensus.lead(False)
            with suppress(Unavailable):
                await late
            await made.site.stop()
            with suppress(Unavailable):
                await control.lease_grant(ALICE, 60)
            await turns(5)
            assert timers() == 0

    asyncio.run(scenario())


def test_a_stale_read_is_answered_without_a_control_plane(tmp_path: Path) -> None:
    """Given jobs, an array among them, when the node leads no more, then its own store still tells of them."""

    async def scenario() -> None:
        async with seat(tmp_path) as made:
            control = await made.lead()
            array = await submit(control, "true", array=ArraySpec(range=ArrayRange(stop=50)))
            await turns(200)
            led = await control.get(ALICE, array)
            made.cease()
            reads = made.site.reads
            stale = await reads.get(ALICE, array)
            assert stale.progress is not None
            assert led.progress is not None
            assert stale.progress.message == led.progress.message
            listed = await reads.list_jobs(ADMIN, JobFilter(), limit=9, cursor=None, newest_first=True)
            assert [item.id for item in listed.jobs] == [array]
            with pytest.raises(Unavailable, match="revision"):
                await reads.kv_get(ALICE, "/data/a", 1 << 40)

    asyncio.run(scenario())
