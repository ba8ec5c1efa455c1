"""The executor whose attempts are tasks: each start has exactly one end, whatever becomes of the work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from jobs.errors import InvalidRequest, NotFound
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import BlobResult, Reason
from jobs.protocol.wire import OUTPUT_WINDOW_BYTES, Assignment
from jobs.workers.executor import Command, Credit, Ended, Event, Produced, Progressed, Start, Stop
from jobs.workers.nodeapi import NodeApi
from jobs.workers.task import Report, TaskError, TaskExecutor, TaskKind

JOB, ATTEMPT = JobId("01890a5d-ac96-774b-bcce-b302099a8057"), Attempt(1)
RESULT = BlobResult(operation="gc", hash=None, bytes=1, blobs=1, peers=[], seconds=0.5)


class Work:
    """Does what its payload says."""

    def __init__(self, node: NodeApi, report: Report, job: JobId) -> None:
        self._report = report

    async def carry_out(self, payload: str) -> BlobResult:
        match payload:
            case "writes":
                await self._report.write(bytes(OUTPUT_WINDOW_BYTES + 1))
                self._report.drop(5)
            case "waits" | "goes on":
                self._report.progress(1, 4, "a quarter")
                await asyncio.Event().wait()
            case "fails":
                raise TaskError("the disk is gone")
            case "is refused":
                raise NotFound("no such blob")
            case "breaks":
                raise ZeroDivisionError("by 0")
            case "gives up":
                raise asyncio.CancelledError
        return RESULT


def check(payload: str, where: str) -> None:
    if payload == "is nothing":
        raise InvalidRequest("nothing", field=where, expected="something")


KIND = TaskKind[str, BlobResult](
    type="blob",
    noun="a word",
    failure=Reason.BLOB_ERROR,
    decode=msgspec.json.Decoder(str).decode,
    check=check,
    called=lambda payload: f"what {payload}",
    begin=Work,
    put=lambda outcome, result: replace(outcome, blob=result),
    endless=lambda payload: payload == "goes on",
)


class Running:
    """An executor, and what it has told."""

    def __init__(self, timeout_s: float | None = None) -> None:
        self._executor = TaskExecutor(KIND, slots=2, timeout_s=timeout_s, node="n1", api_socket=Path("/nowhere"))
        self._executor.attach(self._on_events, lambda why: None)
        self._told = asyncio.Event()
        self.events: list[Event] = []

    def _on_events(self, events: Sequence[Event]) -> None:
        self.events += events
        self._told.set()

    def perform(self, *commands: Command) -> None:
        self._executor.perform(commands)

    def drain(self) -> None:
        self._executor.drain()

    def close(self) -> None:
        self._executor.close()

    async def until(self, kind: type[Event]) -> None:
        while not any(isinstance(event, kind) for event in self.events):
            self._told.clear()
            await self._told.wait()

    async def end(self) -> Ended:
        """Return the end, which is the last that is told."""
        await self.until(Ended)
        for _ in range(5):
            await asyncio.sleep(0)
        (ended,) = (event for event in self.events if isinstance(event, Ended))
        assert self.events[-1] is ended
        return ended


def start(payload: str, timeout_s: float | None = None) -> Start:
    data = msgspec.json.encode(payload)
    return Start(Assignment(job=JOB, attempt=ATTEMPT, payload=data, timeout_s=timeout_s, owner=1001))


def stop(reason: Reason = Reason.CANCELLED) -> Stop:
    return Stop(job=JOB, attempt=ATTEMPT, reason=reason, now=False)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_what_it_came_to_is_its_outcome() -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start("succeeds"))
        outcome = (await running.end()).outcome
        assert (outcome.reason, outcome.message, outcome.blob) == (None, None, RESULT)

    run(scenario)


@pytest.mark.parametrize(
    ("payload", "reason", "message"),
    [
        ("fails", Reason.BLOB_ERROR, "what fails on node n1: the disk is gone"),
        ("is refused", Reason.BLOB_ERROR, "what is refused on node n1: no such blob"),
        ("breaks", Reason.BLOB_ERROR, "what breaks on node n1: ZeroDivisionError: by 0"),
        ("gives up", Reason.WORKER_LOST, None),
        ("is nothing", Reason.INVALID_PAYLOAD, "nothing at $ (expected something)"),
    ],
)
def test_why_it_failed_is_told(payload: str, reason: Reason, message: str | None) -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start(payload))
        outcome = (await running.end()).outcome
        assert (outcome.reason, outcome.message, outcome.blob) == (reason, message, None)

    run(scenario)


def test_one_that_is_stopped_before_it_has_begun_ends_as_well() -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start("waits"), stop())
        assert (await running.end()).outcome.reason is Reason.CANCELLED
        assert len(running.events) == 1, "it never began"

    run(scenario)


def test_what_ends_it_first_is_why_it_ended() -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start("waits"))
        await running.until(Progressed)
        running.perform(stop(Reason.DEADLINE), stop(Reason.CANCELLED))
        assert (await running.end()).outcome.reason is Reason.DEADLINE
        running.perform(stop(Reason.CANCELLED))  # of what has ended: ignored

    run(scenario)


@pytest.mark.parametrize(("of_type", "of_job", "told"), [(0.01, None, "0.01"), (1_000.0, 0.02, "0.02")])
def test_one_that_takes_too_long_is_given_up(of_type: float, of_job: float | None, told: str) -> None:
    async def scenario() -> None:
        running = Running(of_type)
        running.perform(start("waits", of_job))
        outcome = (await running.end()).outcome
        assert (outcome.reason, outcome.message) == (Reason.TIMEOUT, f"ran for longer than {told} s")

    run(scenario)


def test_no_more_is_written_than_there_is_room_for() -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start("writes"))
        await running.until(Produced)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(isinstance(event, Ended) for event in running.events), "it waits for room"
        written = sum(
            len(data) for event in running.events if isinstance(event, Produced) for _, data in event.segments
        )
        assert written <= OUTPUT_WINDOW_BYTES
        running.perform(Credit(job=JOB, attempt=ATTEMPT, count=written))
        stdout = (await running.end()).outcome.stdout
        size_bytes = OUTPUT_WINDOW_BYTES + 1
        assert (stdout.stored_bytes, stdout.bytes, stdout.truncated) == (size_bytes, size_bytes + 5, True)

    run(scenario)


def test_an_executor_that_is_closed_tells_no_more() -> None:
    async def scenario() -> None:
        running = Running()
        running.perform(start("waits"))
        await running.until(Progressed)
        running.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(running.events) == 1

    run(scenario)


def test_a_worker_that_is_stopped_waits_for_nothing_without_an_end() -> None:
    async def scenario() -> None:
        patient, endless = Running(), Running()
        patient.perform(start("waits"))
        endless.perform(start("goes on"))
        await patient.until(Progressed)
        await endless.until(Progressed)
        patient.drain()
        endless.drain()
        outcome = (await endless.end()).outcome
        assert (outcome.reason, outcome.message) == (Reason.WORKER_LOST, "its worker was stopped")
        assert not any(isinstance(event, Ended) for event in patient.events)
        patient.close()

    run(scenario)
