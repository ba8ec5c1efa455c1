"""A real launcher, started as root (each slot its own uid) and as an ordinary user, and a check that nothing leaks."""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.wire import Outcome
from jobs.workers.sandbox import (
    Ack,
    Configure,
    Event,
    Exited,
    JobLimits,
    Launcher,
    LauncherError,
    Output,
    Spawn,
    Started,
)

USER_ID = 54321
PATIENCE_S = 60.0


@dataclass
class Result:
    """What came of one job."""

    outcome: Outcome
    segments: list[tuple[int, bytes]]
    events: list[Event]

    @property
    def stdout(self) -> str:
        return b"".join(data for stream, data in self.segments if stream == 1).decode()

    @property
    def stderr(self) -> str:
        return b"".join(data for stream, data in self.segments if stream == 2).decode()


@dataclass
class Sandbox:
    """A launcher with the worker's side of the conversation."""

    launcher: Launcher
    helpers: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    acknowledge: bool = True
    count: int = 0

    def start(self, *argv: str, **spawn: object) -> JobId:
        """Ask for a job and return its id."""
        self.count += 1
        job = JobId(f"job-{self.count}")
        waits = self.launcher.send([Spawn(job=job, attempt=Attempt(1), argv=list(argv), **spawn)])  # type: ignore[arg-type]
        while waits:
            select.select([], [self.launcher], [], PATIENCE_S)
            waits = self.launcher.flush()
        return job

    def pump(self, until: Callable[[], bool]) -> None:
        """Receive events until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came of it; events: {self.events[-5:]}"
            select.select([self.launcher], [], [], left)
            for event in self.launcher.receive():
                self.events.append(event)
                if isinstance(event, Output) and self.acknowledge:
                    size = sum(len(data) for _, data in event.segments)
                    self.launcher.send([Ack(job=event.job, attempt=event.attempt, count=size)])

    def of(self, job: JobId) -> list[Event]:
        return [event for event in self.events if getattr(event, "job", None) == job]

    def output(self, job: JobId) -> bytes:
        """What the job has written so far, both streams in arrival order."""
        segments = [pair for event in self.of(job) if isinstance(event, Output | Exited) for pair in event.segments]
        return b"".join(data for _, data in segments)

    def wait_output(self, job: JobId, text: bytes) -> None:
        self.pump(lambda: text in self.output(job))

    def wait_started(self, job: JobId) -> int:
        """Wait until the job is announced; return the host pid of its first process."""
        self.pump(lambda: any(isinstance(event, Started) for event in self.of(job)))
        return next(event.pid for event in self.of(job) if isinstance(event, Started))

    def wait(self, job: JobId) -> Result:
        self.pump(lambda: any(isinstance(event, Exited) for event in self.of(job)))
        events = self.of(job)
        exited = events[-1]
        assert isinstance(exited, Exited), "an event after the end"
        segments = [pair for event in events if isinstance(event, Output | Exited) for pair in event.segments]
        return Result(exited.outcome, segments, events)

    def run(self, *argv: str, **spawn: object) -> Result:
        return self.wait(self.start(*argv, **spawn))

    def python(self, program: str, **spawn: object) -> Result:
        """Run a Python program in the sandbox, with the system's interpreter."""
        if not Path("/usr/bin/python3").exists():
            pytest.skip("no /usr/bin/python3 to run in the sandbox")
        return self.run("/usr/bin/python3", "-I", "-c", program, **spawn)


def children_of(pid: int) -> set[int]:
    """Living children of a process, found in /proc."""
    children = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                children.add(int(entry.name))
    return children


def descendants_of(pid: int) -> set[int]:
    found = children_of(pid)
    for child in list(found):
        found |= descendants_of(child)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_gone(pids: set[int]) -> None:
    """Wait until none of the processes is alive."""
    deadline = time.monotonic() + PATIENCE_S
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        os.sched_yield()


def start_launcher(identity: str, config: Configure, tag: str = "jobs-launcher") -> Launcher:
    """Start a launcher as `root`, as an ordinary `user`, or as a `capable` one, who may give uids to jobs; skips where
    that cannot be."""
    if identity != "user" and os.geteuid() != 0:
        pytest.skip("not root")
    if identity == "root" or os.geteuid() != 0:
        return Launcher.start(config, tag=tag)
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    wrapper = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"]
    if identity == "capable":
        wrapper += [f"--{which}-caps=+setuid,+setgid" for which in ("inh", "ambient")]
    return Launcher.start(config, tag=tag, wrapper=wrapper)


@pytest.fixture(scope="session", params=["root", "user"])
def identity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def _shared(identity: str) -> Iterator[Sandbox]:
    launcher = start_launcher(identity, Configure(slots=4))
    sandbox = Sandbox(launcher, helpers=children_of(launcher.pid))
    yield sandbox
    assert launcher.close() == 0
    wait_gone(sandbox.helpers)


@pytest.fixture
def sandbox(_shared: Sandbox) -> Iterator[Sandbox]:
    """A launcher of four slots that all tests share; after each of them nothing but its helper runs."""
    _shared.events.clear()
    _shared.acknowledge = True
    yield _shared
    # The first process of a namespace may still be on its way out, alone.
    wait_gone(children_of(_shared.launcher.pid) - _shared.helpers)


@pytest.fixture
def fresh(identity: str) -> Iterator[Callable[..., Sandbox]]:
    """Makes launchers of the test's own; all their processes are gone afterwards."""
    made: list[tuple[Sandbox, set[int]]] = []

    def make(*, tag: str = "jobs-launcher", **config: object) -> Sandbox:
        launcher = start_launcher(identity, Configure(**{"slots": 2, **config}), tag)  # type: ignore[arg-type]
        sandbox = Sandbox(launcher, helpers=children_of(launcher.pid))
        made.append((sandbox, {launcher.pid, *sandbox.helpers}))
        return sandbox

    yield make
    for sandbox, pids in made:
        everything = pids | descendants_of(sandbox.launcher.pid)
        sandbox.launcher.close()
        wait_gone(everything)


def limits(**kwargs: int) -> JobLimits:
    return JobLimits(**kwargs)


__all__ = ["LauncherError", "Result", "Sandbox", "children_of", "descendants_of", "is_alive", "limits", "wait_gone"]
