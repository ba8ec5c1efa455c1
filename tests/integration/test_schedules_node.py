"""Schedules on a real node: kills around fires, both clients, and `jobctl schedule`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.client import AsyncClient, Client, shell_job
from jobs.clock import rfc3339
from jobs.errors import InvalidRequest, NotFound, RevisionConflict
from jobs.protocol.model import JobView, Schedule, TimetablePreview
from jobs.testing import EmbeddedNode

KILLS = 3 * int(os.environ.get("JOBS_TEST_SCALE", "1"))
SEED = int(os.environ.get("JOBS_TEST_SEED", "0")) or random.randrange(1 << 32)
TELL = ["sh", "-c", "echo $JOBS_SCHEDULE $JOBS_NOMINAL_TIME"]


def fires(client: Client, name: str) -> list[JobView]:
    """Return the jobs of a schedule, oldest first."""
    return list(client.list(schedule=name, newest_first=False))


def next_fire(client: Client, name: str) -> None:
    """Wait until one more job of a schedule is there."""
    for event in client.watch(schedule=name, after_revision=client.health().revision):
        if event.job.state == "pending":
            return


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_kills_around_fires_leave_exactly_one_job_for_each_time(tmp_path: Path) -> None:
    print(f"replay with JOBS_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    schedule = Schedule(job=shell_job(TELL), every_s=1, catch_up="all", overlap="allow", max_per_minute=600)
    node = EmbeddedNode(tmp_path / "node")
    for _ in range(KILLS):
        # Given a schedule that fires every second, when its node is killed around a fire
        node.start()
        with node.client() as client:
            client.schedules.set("tick", schedule)
            next_fire(client, "tick")
        threading.Event().wait(1.0 + chance.uniform(-0.05, 0.05))
        node.kill()
        threading.Event().wait(chance.uniform(0, 2))
    with node, node.client() as client:
        next_fire(client, "tick")
        client.schedules.pause("tick")
        # Then every time from the first to the last has one job, and all of them end
        view = client.schedules.get("tick").schedule
        jobs = fires(client, "tick")
        times = [job.nominal_ms for job in jobs]
        assert times[0] is not None
        assert times == [times[0] + 1_000 * count for count in range(len(times))]
        assert (view.fired, view.skipped, view.missed) == (len(times), 0, 0)
        assert (view.last_nominal_ms, view.last_job) == (times[-1], jobs[-1].id)
        for job in jobs:
            ended = client.wait(job.id, 60)
            if ended.state == "completed":
                assert client.result(job.id).stdout.text == f"tick {rfc3339(job.nominal_ms or 0)}\n"


def test_the_client_sets_looks_ahead_runs_and_deletes(client: Client) -> None:
    schedules = client.schedules
    weekly = Schedule(job=shell_job(TELL), cron="0 6 * * 1", timezone="Europe/Berlin")
    view = schedules.set("c/weekly", weekly)
    assert schedules.set("c/weekly", weekly) == view
    detail = schedules.get("c/weekly")
    assert (detail.schedule.name, detail.job) == ("c/weekly", weekly.job)
    assert schedules.next("c/weekly", 1)[0].at_ms == view.next_ms
    wanted = TimetablePreview(cron="0 6 * * 1", timezone="Europe/Berlin", count=2)
    assert schedules.preview(wanted) == schedules.next("c/weekly", 2)
    made = schedules.trigger("c/weekly").job
    assert client.wait(made.id, 60).state == "completed"
    assert [job.id for job in fires(client, "c/weekly")] == [made.id]
    assert schedules.pause("c/weekly").paused
    assert not schedules.resume("c/weekly").paused
    with pytest.raises(RevisionConflict):
        schedules.delete("c/weekly", revision=view.revision + 1)
    with pytest.raises(InvalidRequest) as caught:
        schedules.set("c/weekly", Schedule(job=shell_job(TELL), cron="0 6 * *"))
    assert caught.value.field == "$.cron"
    assert "c/weekly" in [found.name for found in schedules.list()]
    schedules.delete("c/weekly", revision=view.revision)
    with pytest.raises(NotFound):
        schedules.get("c/weekly")


def test_the_asynchronous_client_does_the_same(client: Client) -> None:
    async def scenario() -> None:
        async with AsyncClient(client.socket_path) as other:
            schedules = other.schedules
            hourly = Schedule(job=shell_job(TELL), every_s=3600)
            view = await schedules.set("a/hourly", hourly, revision=0)
            assert (await schedules.get("a/hourly")).job == hourly.job
            assert [time.at_ms for time in await schedules.next("a/hourly", 1)] == [view.next_ms]
            assert len(await schedules.preview(TimetablePreview(every_s=60, count=3))) == 3
            made = (await schedules.trigger("a/hourly")).job
            assert (await other.wait(made.id, 60)).state == "completed"
            assert [job.id async for job in other.list(schedule="a/hourly")] == [made.id]
            assert (await schedules.pause("a/hourly")).paused
            assert not (await schedules.resume("a/hourly")).paused
            assert "a/hourly" in [found.name async for found in schedules.list()]
            with pytest.raises(RevisionConflict):
                await schedules.set("a/hourly", hourly, revision=0)
            await schedules.delete("a/hourly")
            with pytest.raises(NotFound):
                await schedules.delete("a/hourly")

    asyncio.run(scenario())


class Ctl:
    """Runs `jobctl schedule`."""

    def __init__(self, node: EmbeddedNode) -> None:
        self._env = {**os.environ, "JOBS_SOCKET": str(node.socket), "TZ": "UTC"}

    def run(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "jobs.cli.main", *arguments]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (arguments, done)
        return done.stdout if code == 0 else done.stderr


@pytest.fixture
def ctl(shared_node: EmbeddedNode) -> Ctl:
    return Ctl(shared_node)


def test_jobctl_sets_shows_and_deletes_a_schedule(ctl: Ctl) -> None:
    said = ctl.run(
        "schedule", "set", "night/ly", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--overlap", "queue",
        "--label", "team=build", "--", "sh", "-c", "echo --json -- $JOBS_SCHEDULE",
    )  # fmt: skip
    assert "30 2 * * * Europe/Berlin" in said
    assert said.count("T02:30:00+0") == 3
    shown = json.loads(ctl.run("schedule", "show", "night/ly", "--json"))
    assert shown["schedule"]["overlap"] == "queue"
    assert shown["job"]["payload"]["argv"] == ["sh", "-c", "echo --json -- $JOBS_SCHEDULE"]
    assert shown["job"]["labels"] == {"team": "build"}
    job = ctl.run("schedule", "trigger", "night/ly").strip()
    assert ctl.run("wait", job) == f"{job} completed\n"
    assert ctl.run("logs", job) == "--json -- night/ly\n"
    assert ctl.run("list", "--schedule", "night/ly").split().count(job) == 1
    assert "schedule   night/ly" in ctl.run("status", job)
    assert "paused" in ctl.run("schedule", "pause", "night/ly")
    (line,) = [line for line in ctl.run("schedule", "list").splitlines() if line.startswith("night/ly ")]
    assert "paused" in line
    assert "active" in ctl.run("schedule", "resume", "night/ly")
    assert len(ctl.run("schedule", "next", "night/ly", "-n", "4").splitlines()) == 4
    ctl.run("schedule", "delete", "night/ly")
    assert "no schedule" in ctl.run("schedule", "show", "night/ly", code=1)


def test_jobctl_takes_every_kind_of_timetable(ctl: Ctl) -> None:
    every = json.loads(ctl.run("schedule", "set", "e", "--every", "5m", "--catch-up", "all", "--json", "--", "true"))
    assert (every["every_s"], every["catch_up"]) == (300, "all")
    day = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    at = json.loads(ctl.run("schedule", "set", "a", "--at", f"{day}T18:00", "--json", "--", "true"))
    assert at["at_ms"] == int(datetime.fromisoformat(f"{day}T18:00+00:00").timestamp() * 1000)
    there = json.loads(
        ctl.run("schedule", "set", "a", "--at", f"{day}T18:00", "--timezone", "Asia/Tokyo", "--json", "--", "true")
    )
    assert there["at_ms"] == at["at_ms"] - 9 * 3_600_000
    times = ctl.run("schedule", "next", "--cron", "0 12 * * *", "--timezone", "Asia/Tokyo", "-n", "2").splitlines()
    assert all(line.endswith("T12:00:00+09:00") for line in times)
    ctl.run("schedule", "delete", "e", "a")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--cron", "61 * * * *"], 65, "$.cron"),
        (["--cron", "@daily", "--timezone", "Mars/Olympus"], 65, "$.timezone"),
        (["--every", "0.5"], 65, "$.every_s"),
        (["--every", "soon"], 2, "no duration"),
        (["--at", "tomorrow"], 2, "no moment"),
        (["--at", "2020-01-01T00:00"], 65, "$.at_ms"),
        (["--at", "2027-03-28T02:30", "--timezone", "Europe/Berlin"], 2, "does not exist"),
        (["--every", "5m", "--idempotency-key", "k"], 65, "$.job.idempotency_key"),
        ([], 65, "exactly one of cron, every_s and at_ms"),
        (["--every", "5m", "--revision", "7"], 1, "no schedule"),
    ],
)
def test_jobctl_says_what_is_wrong(ctl: Ctl, arguments: list[str], code: int, said: str) -> None:
    assert said in ctl.run("schedule", "set", "wrong", *arguments, "--", "true", code=code)
    assert "no schedule" in ctl.run("schedule", "show", "wrong", code=1)
