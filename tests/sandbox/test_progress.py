"""What a job says of itself through descriptor 3, and what a job can do to it."""

from __future__ import annotations

import time

import pytest

from jobs.protocol.model import Reason
from jobs.workers.sandbox import Notes

from .conftest import Sandbox, limits
from .test_ends import end

MAX_NOTES_BYTES_PER_S = 64 << 10


def notes(sandbox: Sandbox, job: str) -> bytes:
    return b"".join(event.lines for event in sandbox.events if isinstance(event, Notes) and event.job == job)


def test_a_shell_script_tells_of_itself_and_nothing_of_it_is_output(sandbox: Sandbox) -> None:
    job = sandbox.start(script='echo out; echo "progress 40 loading" >&$JOBS_FD; echo heartbeat >&3; echo fd $JOBS_FD')
    result = sandbox.wait(job)
    assert (result.stdout, result.outcome.reason) == ("out\nfd 3\n", None)
    assert notes(sandbox, job) == b"progress 40 loading\nheartbeat\n"
    assert result.outcome.stdout.bytes == len("out\nfd 3\n")
    assert result.outcome.stderr.bytes == 0


def test_a_running_job_is_heard(sandbox: Sandbox) -> None:
    job = sandbox.start(
        script='trap "exit 0" TERM; echo "progress 1" >&3; while :; do sleep 0.02; done', timeout_s=60.0
    )
    sandbox.pump(lambda: notes(sandbox, job) == b"progress 1\n")
    sandbox.launcher.send([end(job)])
    assert sandbox.wait(job).outcome.reason is Reason.CANCELLED


def test_the_descriptor_can_be_opened_by_name_and_is_the_only_one_more(sandbox: Sandbox) -> None:
    job = sandbox.start(script='echo "progress 5" > /dev/fd/3; ls /proc/self/fd')
    result = sandbox.wait(job)
    assert notes(sandbox, job) == b"progress 5\n"
    assert result.stdout.split()[:4] == ["0", "1", "2", "3"]
    assert len(result.stdout.split()) == 5, "the fifth is the directory that ls reads"


def test_a_silent_job_is_ended_and_one_that_beats_is_not(sandbox: Sandbox) -> None:
    silent = sandbox.start("sleep", "1000", heartbeat_s=0.3, timeout_s=60.0)
    beats = sandbox.start(script="for i in 1 2 3 4 5 6 7 8; do sleep 0.1; echo anything >&3; done", heartbeat_s=0.5)
    outcome = sandbox.wait(silent).outcome
    assert (outcome.reason, outcome.signal, outcome.message) == (Reason.TIMEOUT, 15, "no heartbeat for 0.3 s")
    assert 0.3 <= outcome.wall_s < 5
    assert sandbox.wait(beats).outcome.reason is None


def test_a_job_that_falls_silent_gets_its_grace(sandbox: Sandbox) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo heartbeat >&3; while :; do sleep 0.02; done"
    result = sandbox.run(script=script, heartbeat_s=0.3, grace_s=30.0)
    assert (result.outcome.reason, result.outcome.exit_code, result.stdout) == (Reason.TIMEOUT, 3, "bye\n")
    assert result.outcome.message == "no heartbeat for 0.3 s"


@pytest.mark.parametrize("script", ["while :; do printf x >&3; sleep 0.02; done", "exec cat /dev/zero >&3"])
def test_bytes_that_are_no_lines_are_no_sign_of_life(sandbox: Sandbox, script: str) -> None:
    job = sandbox.start(script=script, heartbeat_s=0.4, grace_s=0.0)
    assert sandbox.wait(job).outcome.message == "no heartbeat for 0.4 s"
    assert notes(sandbox, job) == b""


def test_a_job_whose_lines_come_faster_than_they_are_read_is_not_silent(sandbox: Sandbox) -> None:
    outcome = sandbox.run(script="exec yes >&3", heartbeat_s=0.09, timeout_s=1.0, grace_s=0.0).outcome
    assert outcome.message == "ran longer than its timeout of 1 s"


def test_the_timeout_stands_beside_the_heartbeat(sandbox: Sandbox) -> None:
    script = "while :; do echo heartbeat >&3; sleep 0.02; done"
    outcome = sandbox.run(script=script, heartbeat_s=30.0, timeout_s=0.4, grace_s=0.0).outcome
    assert outcome.message == "ran longer than its timeout of 0.4 s"


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param("exec yes 'progress 50 flood' >&3", id="lines"),
        pytest.param("exec cat /dev/zero >&3", id="one endless line"),
        pytest.param("exec cat /dev/urandom >&3", id="binary"),
    ],
)
def test_a_flood_is_little_on_its_way_out_and_hinders_nobody(sandbox: Sandbox, flood: str) -> None:
    job = sandbox.start(script=flood, timeout_s=1.0, grace_s=0.0, heartbeat_s=60.0)
    begin = time.monotonic()
    neighbours = 0
    while time.monotonic() - begin < 0.8:
        assert sandbox.run("echo", "fine").stdout == "fine\n"
        neighbours += 1
    outcome = sandbox.wait(job).outcome
    assert outcome.reason is Reason.TIMEOUT
    assert neighbours >= 5
    assert len(notes(sandbox, job)) <= MAX_NOTES_BYTES_PER_S * outcome.wall_s
    # It waits in its write instead of keeping a core busy.
    assert outcome.cpu_user_s + outcome.cpu_system_s < 0.5 * outcome.wall_s


def test_of_a_flood_the_last_line_arrives(sandbox: Sandbox) -> None:
    job = sandbox.start(script='i=0; while [ $i -lt 20000 ]; do echo "progress 1 $i"; i=$((i+1)); done >&3')
    sandbox.wait(job)
    heard = notes(sandbox, job)
    assert heard.endswith(b"progress 1 19999\n")
    assert all(line.startswith(b"progress 1 ") for line in heard.splitlines())


def test_a_job_may_close_it(sandbox: Sandbox) -> None:
    result = sandbox.run(script="exec 3>&-; sleep 0.2; echo on; echo heartbeat >&3 || echo closed", timeout_s=30.0)
    assert (result.outcome.exit_code, result.stdout) == (0, "on\nclosed\n")


def test_a_job_that_closes_it_is_silent(sandbox: Sandbox) -> None:
    job = sandbox.start(script="exec 3>&-; while :; do sleep 0.05; done", heartbeat_s=0.3, grace_s=0.0)
    assert sandbox.wait(job).outcome.message == "no heartbeat for 0.3 s"


def test_children_that_hold_it_do_not_keep_the_job_and_can_speak_for_it(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    job = sandbox.start(script='sleep 1000 & setsid sleep 1000 & (echo "progress 30 child" >&3); echo done')
    result = sandbox.wait(job)
    assert (result.stdout, result.outcome.reason) == ("done\n", None)
    assert notes(sandbox, job) == b"progress 30 child\n"
    assert time.monotonic() - begin < 10


def test_a_job_that_reads_back_its_own_notes_or_enlarges_the_pipe_does_no_harm(sandbox: Sandbox) -> None:
    program = """
import fcntl, os
fcntl.fcntl(3, 1031, 1 << 20)                    # F_SETPIPE_SZ
fcntl.fcntl(3, fcntl.F_SETFL, os.O_NONBLOCK)
reader = os.open("/proc/self/fd/3", os.O_RDONLY | os.O_NONBLOCK)
try:
    while True:
        os.write(3, b"heartbeat\\n" * 400)
except BlockingIOError:
    pass
print("full", flush=True)
"""
    result = sandbox.python(program, timeout_s=30.0, limits=limits(pids=16))
    assert result.outcome.reason is None, result.stderr
    assert result.stdout == "full\n"
