"""Nothing of a job runs on after its end, however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason
from jobs.workers.sandbox import Configure, End, Launcher, LauncherError

from .conftest import Sandbox, children_of, descendants_of, limits, wait_gone

STUBBORN_TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):                      # double fork with a session of its own
    if os.fork():
        break
    os.setsid()
print("up", os.getpid(), flush=True)
time.sleep(1000)
"""


def end(job: JobId, **kwargs: object) -> End:
    return End(job=job, attempt=Attempt(1), **kwargs)  # type: ignore[arg-type]


def start_stubborn(sandbox: Sandbox, **spawn: object) -> tuple[JobId, set[int]]:
    """Start a tree of processes that ignores SIGTERM; return it with its host pids."""
    job = sandbox.start("/usr/bin/python3", "-I", "-c", STUBBORN_TREE, **spawn)
    sandbox.pump(lambda: sandbox.output(job).count(b"up") == 3)
    pid = sandbox.wait_started(job)
    processes = {pid, *descendants_of(pid)}
    assert len(processes) == 4  # the namespace's first one and the three
    return job, processes


def test_a_timeout_kills_a_tree_that_ignores_sigterm(sandbox: Sandbox) -> None:
    job, processes = start_stubborn(sandbox, timeout_s=0.7, grace_s=0.2)
    outcome = sandbox.wait(job).outcome
    # at the moment of the report, not later
    assert not {pid for pid in processes if Path(f"/proc/{pid}").exists()}
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.TIMEOUT, None, 9)
    assert outcome.message == "ran longer than its timeout of 0.7 s"
    assert 0.85 < outcome.wall_s < 5


def test_a_job_that_heeds_sigterm_ends_within_its_grace(sandbox: Sandbox) -> None:
    job = sandbox.start("sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done", grace_s=30.0)
    sandbox.wait_output(job, b"up")
    sandbox.launcher.send([end(job)])
    result = sandbox.wait(job)
    assert (result.outcome.reason, result.outcome.exit_code) == (Reason.CANCELLED, 5)
    assert result.stdout == "up\nbye\n"
    assert result.outcome.wall_s < 20


def test_background_processes_get_sigterm_too(sandbox: Sandbox) -> None:
    child = 'trap "echo child; exit" TERM; echo up; while :; do sleep 0.05; done'
    script = f"sh -c '{child}' & trap 'wait; exit 1' TERM; wait; wait"
    job = sandbox.start(script=script, grace_s=30.0)
    sandbox.wait_output(job, b"up")
    sandbox.launcher.send([end(job)])
    assert sandbox.wait(job).stdout == "up\nchild\n"


def test_a_stopped_job_can_be_ended(sandbox: Sandbox) -> None:
    job = sandbox.start("sh", "-c", "echo up; kill -STOP $$", grace_s=30.0)
    sandbox.wait_output(job, b"up")
    sandbox.launcher.send([end(job)])
    outcome = sandbox.wait(job).outcome
    assert (outcome.reason, outcome.signal) == (Reason.CANCELLED, 15)


def test_an_end_without_grace_is_at_once(sandbox: Sandbox) -> None:
    job, processes = start_stubborn(sandbox, grace_s=1000.0)
    sandbox.launcher.send([end(job, reason="worker_lost", now=True)])
    outcome = sandbox.wait(job).outcome
    assert not {pid for pid in processes if Path(f"/proc/{pid}").exists()}
    assert (outcome.reason, outcome.signal) == (Reason.WORKER_LOST, 9)


def test_a_second_end_hastens_the_first_whose_reason_stands(sandbox: Sandbox) -> None:
    job, _ = start_stubborn(sandbox, grace_s=1000.0)
    sandbox.launcher.send([end(job, reason="deadline"), end(job, reason="cancelled", now=True)])
    assert sandbox.wait(job).outcome.reason is Reason.DEADLINE


def test_an_unknown_job_is_ignored(sandbox: Sandbox) -> None:
    sandbox.launcher.send([end(JobId("unknown")), End(job=JobId("job-1"), attempt=Attempt(99))])
    assert sandbox.run("echo", "fine").stdout == "fine\n"


def test_children_that_hold_the_pipes_do_not_keep_the_job(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    result = sandbox.run("sh", "-c", "sleep 1000 & setsid sleep 1000 & echo done")
    assert (result.stdout, result.outcome.reason) == ("done\n", None)
    assert time.monotonic() - begin < 10


def test_when_the_end_is_told_nothing_runs_any_more(sandbox: Sandbox) -> None:
    """Given jobs that end by themselves, each with many processes that would stay."""
    for _ in range(5):
        many = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & setsid sleep 1000 & done"
        job = sandbox.start("sh", "-c", f"{many}; echo up; sleep 0.3")
        sandbox.wait_output(job, b"up")
        first = sandbox.wait_started(job)
        others = descendants_of(first) - {first}
        assert len(others) >= 20
        sandbox.wait(job)
        assert not {pid for pid in others if Path(f"/proc/{pid}").exists()}


def test_what_was_written_before_the_end_is_all_there(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "head -c 60000 /dev/zero | tr '\\0' x; exit 4")
    assert (len(result.stdout), result.outcome.exit_code) == (60_000, 4)


def test_a_fork_bomb_is_bounded_and_leaves_nothing(sandbox: Sandbox) -> None:
    program = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except OSError as error:
    print(count, error.errno, flush=True)
"""
    result = sandbox.python(program, limits=limits(pids=40))
    assert result.stdout == "39 11\n"  # EAGAIN; the forty are the program and its children
    bomb = sandbox.start("sh", "-c", ":(){ :|:& };:; sleep 1000", limits=limits(pids=64), timeout_s=0.5, grace_s=0.0)
    assert sandbox.wait(bomb).outcome.reason in (Reason.TIMEOUT, Reason.EXIT_CODE)
    assert sandbox.run("true").outcome.reason is None


def test_the_job_s_own_sigterm_to_the_first_process_changes_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run("sh", "-c", "kill -TERM 1; sleep 0.1; echo alive").stdout == "alive\n"


def test_nothing_survives_the_sudden_death_of_the_launcher(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh()
    _, first = start_stubborn(sandbox)
    _, second = start_stubborn(sandbox)
    helpers = children_of(sandbox.launcher.pid)
    os.kill(sandbox.launcher.pid, signal.SIGKILL)
    wait_gone(first | second | helpers)
    with pytest.raises(LauncherError, match="gone"):
        sandbox.pump(lambda: False)


def maker_of_networks(sandbox: Sandbox) -> int:
    """Return the launcher's child that has no job; what is left of jobs that have ended goes by itself."""
    deadline = time.monotonic() + 10
    while len(makers := {pid for pid in children_of(sandbox.launcher.pid) if not children_of(pid)}) != 1:
        assert time.monotonic() < deadline, f"these are there: {makers}"
        time.sleep(0.01)
    return makers.pop()


def test_a_maker_of_networks_that_is_killed_is_followed_by_another(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh()
    job, _ = start_stubborn(sandbox)
    for _ in range(2):
        os.kill(maker_of_networks(sandbox), signal.SIGKILL)
        # Those that lie ready are used up first, then the next maker's
        for number in range(20):
            assert sandbox.run("echo", str(number)).stdout == f"{number}\n"
    sandbox.launcher.send([end(job, now=True)])
    assert sandbox.wait(job).outcome.reason is Reason.CANCELLED


def test_nothing_survives_the_end_of_the_worker(fresh: Callable[..., Sandbox]) -> None:
    sandbox = fresh()
    _, processes = start_stubborn(sandbox)
    processes |= children_of(sandbox.launcher.pid)
    # the worker's end is closed, as the kernel does at its death; close() returns when the launcher has ended
    assert sandbox.launcher.close() == 0
    assert not {pid for pid in processes if Path(f"/proc/{pid}").exists() and pid not in sandbox.helpers}
    wait_gone(processes)


def test_a_killed_first_process_is_told_from_an_exit(sandbox: Sandbox) -> None:
    job = sandbox.start("sleep", "1000")
    pid = sandbox.wait_started(job)
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        sandbox.launcher.send([end(job, now=True)])
        sandbox.wait(job)
        pytest.skip("not allowed to kill it from here")
    outcome = sandbox.wait(job).outcome
    assert (outcome.reason, outcome.signal) == (Reason.SIGNAL, 9)
    assert outcome.message == "killed from outside of the sandbox"


def test_signals_for_the_worker_s_group_do_not_end_the_launcher(sandbox: Sandbox, identity: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(sandbox.launcher.pid, number)
    assert sandbox.run("echo", "still here").stdout == "still here\n"


@pytest.mark.parametrize("slots", [0, 5000])
def test_an_impossible_number_of_slots_is_refused_in_words(slots: int) -> None:
    with pytest.raises(LauncherError, match=f"slots: {slots}"):
        Launcher.start(Configure(slots=slots))


def test_many_jobs_leave_nothing_open_in_the_launcher(sandbox: Sandbox, identity: str) -> None:
    if identity != "root" and os.geteuid() == 0:
        pytest.skip("root alone may look")
    descriptors = Path(f"/proc/{sandbox.launcher.pid}/fd")
    try:
        sandbox.run("true")
        before = len(list(descriptors.iterdir()))
    except PermissionError:
        pytest.skip("not allowed to look into the launcher")
    for _ in range(50):
        sandbox.run("true", stdin=b"x", files={"a": b"b"})
        sandbox.run("nope")
    # It keeps as many network namespaces for the next jobs as run at once, each by two descriptors.
    assert abs(len(list(descriptors.iterdir())) - before) <= 2 + 2 * 4
