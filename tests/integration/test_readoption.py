"""Node, worker and launcher as processes of their own, each ended while jobs print numbered lines all the while."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jobs import AsyncClient, JobState, Reason, Retry, shell_job
from tests.support import processes
from tests.support.nodeprocess import node_process
from tests.support.workerprocess import worker_process

STEP_S = 30.0
JOBS = 4
MORE_LINES = 500
COUNTER = """
trap stop=1 USR1
i=0
until [ "$stop" ]; do
  echo "$i"
  i=$((i + 1))
  [ $((i % 50)) -ne 0 ] || sleep 0.02
done
echo "end $i"
"""
"""Prints numbers until it is told to stop; in between it sleeps, so as to print all the while."""


class Counter:
    """A job that prints numbers, and everything that a follower was given of it since its submission."""

    def __init__(self, client: AsyncClient, job: str, marker: str) -> None:
        self.id = job
        self._client = client
        self._marker = marker
        self.output = b""
        self._changed = asyncio.Event()
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for event in self._client.logs(self.id, follow=True):
            self.output += bytes(event.data)
            self._changed.set()

    def pids(self) -> list[int]:
        """Return the job's shell; what it forks looks like it for a moment, and is of its session."""
        return [pid for pid in processes.with_argument(self._marker) if processes.session_of(pid) == pid]

    @property
    def lines(self) -> int:
        return self.output.count(b"\n")

    async def until_lines(self, count: int) -> None:
        """Return when so many lines have come."""
        async with asyncio.timeout(STEP_S):
            while self.lines < count:
                self._changed.clear()
                await self._changed.wait()

    def stop(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGUSR1)

    async def followed(self) -> bytes:
        """Return what the follower was given, to the end of the job."""
        async with asyncio.timeout(STEP_S):
            await self._following
        return self.output


async def start_counters(client: AsyncClient, **options: Any) -> list[Counter]:
    """Submit jobs that print; return when each has printed something."""
    counters = []
    for _ in range(JOBS):
        marker = f"9{secrets.randbelow(10**9):09}"
        job = (await client.submit(shell_job(["sh", "-c", COUNTER, marker], **options))).job
        counters.append(Counter(client, job.id, marker))
    for counter in counters:
        await counter.until_lines(MORE_LINES)
    return counters


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def log_of(client: AsyncClient, job: str, attempt: int) -> bytes:
    return b"".join([bytes(event.data) async for event in client.logs(job, attempt=attempt)])


def numbered(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(count))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_run_on_while_their_node_is_restarted_and_no_line_is_lost(tmp_path: Path, how: signal.Signals) -> None:
    async def scenario() -> None:
        async with (
            node_process(tmp_path) as node,
            worker_process(tmp_path, "--slots", str(JOBS)),
            AsyncClient(str(node.socket), patience_s=STEP_S) as client,
        ):
            # Given jobs that print all the while, and somebody who follows each
            counters = await start_counters(client)
            before = [counter.pids() for counter in counters]
            for _ in range(2):
                # When their node ends and is started again
                seen = [counter.lines for counter in counters]
                assert await node.end(how) == (0 if how == signal.SIGTERM else -how)
                await node.start()
                for counter, lines in zip(counters, seen, strict=True):
                    await counter.until_lines(lines + MORE_LINES)
            # Then the same processes run on, in their first attempt
            assert [counter.pids() for counter in counters] == before
            for counter in counters:
                counter.stop()
                ended = await client.wait(counter.id, STEP_S)
                assert (ended.state, ended.attempt) == (JobState.COMPLETED, 1)
                # And every line is in the log exactly once, in order, for the follower and for who comes later
                stored = await log_of(client, counter.id, 1)
                printed = stored.count(b"\n") - 1
                assert stored == numbered(printed) + b"end %d\n" % printed
                assert await counter.followed() == stored

    run(scenario)


@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_a_worker_that_is_killed_ends_its_jobs_before_its_next_life(tmp_path: Path, victim: str) -> None:
    async def scenario() -> None:
        async with (
            node_process(tmp_path) as node,
            worker_process(tmp_path, "--slots", str(2 * JOBS)) as worker,
            AsyncClient(str(node.socket), patience_s=STEP_S) as client,
        ):
            # Given jobs that print all the while, half of which may be tried again
            again = await start_counters(client, retry=Retry(max_attempts=2, delay_s=0))
            once = await start_counters(client)
            (lives,) = await client.workers()
            left = {counter.id: counter.pids() for counter in (*again, *once)}
            # What is acknowledged to the worker by now, everybody can read
            seen = {counter.id: counter.output for counter in (*again, *once)}
            # When the worker, or what runs its jobs, is killed, and the next life is started at once
            if victim == "worker":
                worker.process.kill()
            else:
                os.kill(worker.launcher(), signal.SIGKILL)
                assert await worker.exit_code() == 1
            former = worker.process
            await worker.start("--slots", str(2 * JOBS))
            await former.wait()
            # Then the jobs that may be are tried again, with nothing left of what ran before
            async with asyncio.timeout(STEP_S), aclosing(client.watch(after_revision=0)) as changes:
                waiting = {counter.id for counter in again}
                async for change in changes:
                    if change.job.attempt == 2 and change.job.state is JobState.RUNNING:
                        waiting.discard(change.job.id)
                    if not waiting:
                        break
            assert [pid for pids in left.values() for pid in pids if processes.is_alive(pid)] == []
            (reborn,) = await client.workers()
            assert (reborn.id, reborn.incarnation != lives.incarnation) == (lives.id, True)
            for counter in again:
                second = await until_output(client, counter.id, attempt=2)
                assert second.startswith(b"0\n1\n2\n")
                await client.cancel(counter.id)
                ended = await client.wait(counter.id, STEP_S)
                assert (ended.reason, ended.attempt) == (Reason.CANCELLED, 2)
            for counter in once:
                ended = await client.wait(counter.id, STEP_S)
                assert (ended.state, ended.reason, ended.attempt) == (JobState.FAILED, Reason.WORKER_LOST, 1)
            # And what the lost attempts had printed stays, under their number
            for job, output in seen.items():
                stored = await log_of(client, job, 1)
                assert stored.startswith(output)
                assert numbered(stored.count(b"\n") + 1).startswith(stored)

    run(scenario)


async def until_output(client: AsyncClient, job: str, *, attempt: int) -> bytes:
    """Follow an attempt until it has printed something."""
    async with asyncio.timeout(STEP_S), aclosing(client.logs(job, attempt=attempt, follow=True)) as pieces:
        async for event in pieces:
            return bytes(event.data)
    raise AssertionError(f"attempt {attempt} of {job} printed nothing")
