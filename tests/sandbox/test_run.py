"""A command runs and everything about it comes back: output, code, signal, times, and why it failed."""

from __future__ import annotations

import signal
import time

import pytest

from jobs.protocol.model import Reason
from jobs.workers.sandbox import Exited, Started

from .conftest import Sandbox, limits


def test_echo_hello_gives_its_output_and_all_metadata(sandbox: Sandbox) -> None:
    before_ms = time.time_ns() // 1_000_000
    result = sandbox.run("echo", "hello")
    outcome = result.outcome
    assert (result.stdout, result.stderr) == ("hello\n", "")
    assert (outcome.reason, outcome.message, outcome.exit_code, outcome.signal) == (None, None, 0, None)
    assert outcome.sandbox == "strict"
    assert (outcome.stdout.bytes, outcome.stdout.stored_bytes, outcome.stdout.truncated) == (6, 6, False)
    assert outcome.stderr.bytes == 0
    assert before_ms <= outcome.started_ms <= outcome.finished_ms <= time.time_ns() // 1_000_000
    assert 0 < outcome.wall_s < 10
    assert outcome.cpu_user_s + outcome.cpu_system_s > 0
    assert outcome.peak_memory_bytes > 0


def test_a_short_job_costs_one_event(sandbox: Sandbox) -> None:
    result = sandbox.run("echo", "hello")
    assert [type(event) for event in result.events] == [Exited]


def test_exit_code_and_stderr_are_kept(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "echo out; echo broken >&2; exit 3")
    assert (result.outcome.reason, result.outcome.exit_code) == (Reason.EXIT_CODE, 3)
    assert (result.stdout, result.stderr) == ("out\n", "broken\n")


def test_the_order_of_both_streams_is_kept_as_read(sandbox: Sandbox) -> None:
    # given a job that pauses between writes, so that each is read before the next
    result = sandbox.run("sh", "-c", "echo a; sleep 0.05; echo b >&2; sleep 0.05; echo c")
    assert result.segments == [(1, b"a\n"), (2, b"b\n"), (1, b"c\n")]


def test_a_missing_program_is_named_with_the_errno_in_words(sandbox: Sandbox) -> None:
    for program in ("no-such-program", "/no/such/program", "./no-such-program"):
        outcome = sandbox.run(program).outcome
        assert outcome.reason is Reason.SPAWN_FAILED
        assert outcome.message == f"no such file or directory: {program}"
        assert outcome.exit_code is None
        assert outcome.signal is None


def test_what_cannot_be_executed_says_why(sandbox: Sandbox) -> None:
    assert sandbox.run("/etc/passwd").outcome.message == "permission denied: /etc/passwd"
    outcome = sandbox.run("./text", files={"text": b"\x7fnot a program"}).outcome
    assert (outcome.reason, outcome.message) == (Reason.SPAWN_FAILED, "exec format error: ./text")


def test_own_exit_137_and_a_signal_differ(sandbox: Sandbox) -> None:
    own = sandbox.run("sh", "-c", "exit 137").outcome
    assert (own.reason, own.exit_code, own.signal) == (Reason.EXIT_CODE, 137, None)
    killed = sandbox.run("sh", "-c", "kill -KILL $$").outcome
    assert (killed.reason, killed.exit_code, killed.signal) == (Reason.SIGNAL, None, 9)
    terminated = sandbox.run("sh", "-c", "kill -TERM $$").outcome
    assert (terminated.reason, terminated.signal) == (Reason.SIGNAL, 15)


def test_a_script_runs_in_sh_with_its_error_line(sandbox: Sandbox) -> None:
    result = sandbox.run(script="set -eu\nx=41\necho $((x + 1))\nls\n")
    assert result.stdout == "42\n"  # and the job's directory is empty: the script is not in it
    assert sandbox.run(script="exit 7").outcome.exit_code == 7


def test_a_script_larger_than_one_argument_may_be(sandbox: Sandbox) -> None:
    script = "echo begin\n" + ": " + "x" * 1_000_000 + "\necho end\n"
    assert sandbox.run(script=script).stdout == "begin\nend\n"


def test_the_environment_is_clean_and_the_job_s_own_is_added(sandbox: Sandbox) -> None:
    result = sandbox.run("env", env={"A": "1", "LANG": "C", "ÄÖ": "ü=x"})
    variables = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert variables.pop("PATH").startswith("/usr/local/sbin:")
    assert variables == {
        "A": "1",
        "HOME": "/work",
        "JOBS_ATTEMPT": "1",
        "JOBS_FD": "3",
        "JOBS_ID": result.events[-1].job,  # type: ignore[union-attr]
        "LANG": "C",
        "LOGNAME": "job",
        "PWD": "/work",
        "TMPDIR": "/tmp",
        "USER": "job",
        "ÄÖ": "ü=x",
    }


def test_stdin_is_the_content_given_or_empty(sandbox: Sandbox) -> None:
    content = bytes(range(256)) * 5000
    result = sandbox.run("sh", "-c", "cksum; readlink /proc/self/fd/0", stdin=content)
    assert result.stdout.split()[1] == str(len(content))
    assert sandbox.run("wc", "-c", stdin=b"").stdout == "0\n"
    assert sandbox.run("wc", "-c").stdout == "0\n"
    assert sandbox.run("cat", "/dev/stdin", stdin=b"by name").stdout == "by name"


def test_stdin_cannot_be_changed_by_the_job(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "echo x >> /dev/stdin; cat", stdin=b"as given")
    assert result.stdout == "as given"
    assert "error" in result.stderr


def test_standard_streams_can_be_opened_by_name(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; echo fd > /dev/fd/1")
    assert (result.stdout, result.stderr) == ("out\nfd\n", "err\n")


def test_files_are_in_the_directory_where_the_job_starts(sandbox: Sandbox) -> None:
    files = {"words.txt": b"one two three\n", "a/b/run.sh": b"#!/bin/sh\nwc -w < words.txt\n", "empty": b""}
    result = sandbox.run("./a/b/run.sh", files=files)
    assert result.stdout.strip() == "3"
    found = sandbox.run("find", ".", "-type", "f", files=files).stdout.split()
    assert sorted(found) == ["./a/b/run.sh", "./empty", "./words.txt"]


def test_the_working_directory_is_the_job_s_or_the_one_asked_for(sandbox: Sandbox) -> None:
    assert sandbox.run("pwd").stdout == "/work\n"
    assert sandbox.run("pwd", cwd="/usr/bin").stdout == "/usr/bin\n"
    assert sandbox.run("pwd", cwd="a/b", files={"a/b/c": b""}).stdout == "/work/a/b\n"
    outcome = sandbox.run("pwd", cwd="nowhere").outcome
    assert outcome.reason is Reason.SPAWN_FAILED
    assert outcome.message == "working directory: no such file or directory: /work/nowhere"


def test_the_program_is_looked_up_in_the_path_of_the_job(sandbox: Sandbox) -> None:
    files = {"bin/greet": b"#!/bin/sh\necho greetings\n"}
    assert sandbox.run("greet", files=files, env={"PATH": "/nowhere:/work/bin"}).stdout == "greetings\n"
    assert sandbox.run("greet", files=files).outcome.reason is Reason.SPAWN_FAILED


@pytest.mark.parametrize(
    "spawn",
    [
        {"argv": []},
        {"argv": ["true"], "script": "true"},
        {"argv": [""]},
        {"argv": ["echo", "a\0b"]},
        {"argv": ["true"], "env": {"A=B": "c"}},
        {"argv": ["true"], "env": {"": "c"}},
        {"argv": ["true"], "cwd": "a\0"},
        {"argv": ["echo", "x" * (128 << 10)]},
    ],
    ids=["nothing", "both", "empty", "nul", "env-name", "env-empty", "cwd-nul", "long-argument"],
)
def test_what_makes_no_sense_is_refused(sandbox: Sandbox, spawn: dict[str, object]) -> None:
    argv = spawn.pop("argv")
    assert isinstance(argv, list)
    outcome = sandbox.run(*argv, **spawn).outcome
    assert outcome.reason is Reason.INVALID_PAYLOAD
    assert outcome.message
    spawn["argv"] = argv


def test_jobs_run_side_by_side_up_to_the_slots(sandbox: Sandbox) -> None:
    # given four jobs that wait
    waiting = [sandbox.start("sleep", "0.2") for _ in range(4)]
    # when a fifth is asked for
    refused = sandbox.run("true")
    # then it is refused, and afterwards there is room again
    assert refused.outcome.reason is Reason.SPAWN_FAILED
    assert refused.outcome.message == "all 4 slots are taken"
    for job in waiting:
        assert sandbox.wait(job).outcome.reason is None
    assert sandbox.run("true").outcome.reason is None


def test_a_longer_job_is_announced_with_its_pid(sandbox: Sandbox) -> None:
    job = sandbox.start("sleep", "0.3")
    pid = sandbox.wait_started(job)
    events = sandbox.wait(job).events
    assert pid > 1
    assert [type(event) for event in events] == [Started, Exited]


def test_cpu_time_and_peak_memory_of_the_whole_tree_are_counted(sandbox: Sandbox) -> None:
    busy = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'"
    outcome = sandbox.run("sh", "-c", f"{busy} & {busy} & wait").outcome
    assert outcome.cpu_user_s > 0.1
    big = sandbox.python("x = bytearray(200 << 20)").outcome
    assert 200 << 20 < big.peak_memory_bytes < 400 << 20


def test_limits_of_each_process_hold(sandbox: Sandbox) -> None:
    result = sandbox.run("sh", "-c", "ulimit -n; ulimit -c", limits=limits(open_files=77))
    assert result.stdout == "77\n0\n"


def test_a_limit_of_files_ends_with_its_own_reason(sandbox: Sandbox) -> None:
    bounds = limits(file_bytes=50_000)
    outcome = sandbox.run("head", "-c", "100000", "/dev/zero", limits=bounds).outcome  # a pipe is no file
    assert outcome.reason is None
    script = "exec head -c 100000 /dev/zero > f"
    outcome = sandbox.run("sh", "-c", script, limits=bounds).outcome
    assert (outcome.reason, outcome.signal) == (Reason.DISK_LIMIT, signal.SIGXFSZ)
    assert outcome.message == "wrote a file larger than its limit of 50000 bytes"
    outcome = sandbox.run("sh", "-c", "head -c 100000 /dev/zero > f; exit $?", limits=bounds).outcome
    assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, 128 + signal.SIGXFSZ)
    assert "larger than its limit" in (outcome.message or "")
    assert sandbox.run("sh", "-c", script, limits=limits(file_bytes=100_000)).outcome.reason is None


def test_a_limit_of_processor_time_ends_with_its_own_reason(sandbox: Sandbox) -> None:
    spin = sandbox.run("sh", "-c", "while :; do :; done", limits=limits(cpu_s=1)).outcome
    assert (spin.reason, spin.signal) == (Reason.CPU_LIMIT, signal.SIGXCPU)
    assert spin.message == "used more CPU time than its limit of 1 s"
    script = "sh -c 'while :; do :; done'; exit $?"
    shell = sandbox.run("sh", "-c", script, limits=limits(cpu_s=1)).outcome
    assert (shell.reason, shell.exit_code) == (Reason.CPU_LIMIT, 128 + signal.SIGXCPU)
    own = sandbox.run("sh", "-c", "kill -XCPU $$").outcome
    assert (own.reason, own.signal) == (Reason.SIGNAL, signal.SIGXCPU)


def test_a_process_that_heeds_its_limit_of_processor_time_has_a_second_more(sandbox: Sandbox) -> None:
    program = "import signal; signal.signal(signal.SIGXCPU, {}); print('up', flush=True)\nwhile True: pass"
    heeds = sandbox.python(program.format("lambda *_: exit(3)"), limits=limits(cpu_s=1)).outcome
    assert (heeds.reason, heeds.exit_code) == (Reason.EXIT_CODE, 3)
    ignores = sandbox.python(program.format("signal.SIG_IGN"), limits=limits(cpu_s=1)).outcome
    assert (ignores.reason, ignores.signal) == (Reason.CPU_LIMIT, signal.SIGKILL)


@pytest.mark.parametrize(
    "fill",
    [
        "head -c 4M /dev/zero > f",
        "i=0; while : > /tmp/$i; do i=$((i+1)); done; exit 1",
        "rm -f f; head -c 4M /dev/zero > /dev/shm/f",
    ],
)
def test_a_full_file_system_ends_with_its_own_reason(sandbox: Sandbox, fill: str) -> None:
    outcome = sandbox.run("bash", "-c", fill, limits=limits(tmp_bytes=1 << 20)).outcome
    assert (outcome.reason, outcome.exit_code) == (Reason.DISK_LIMIT, 1)
    assert outcome.message == "its file system was full: /work, /tmp and /dev/shm have 1048576 bytes together"


def test_a_job_that_copes_with_a_full_file_system_completes(sandbox: Sandbox) -> None:
    bounds = limits(tmp_bytes=1 << 20)
    assert sandbox.run("sh", "-c", "head -c 4M /dev/zero > f; true", limits=bounds).outcome.reason is None
    outcome = sandbox.run("sh", "-c", "head -c 4M /dev/zero > f || { rm f; exit 4; }", limits=bounds).outcome
    assert (outcome.reason, outcome.exit_code) == (Reason.EXIT_CODE, 4)


def test_a_maximum_of_the_processor_is_kept_or_the_job_refused(sandbox: Sandbox) -> None:
    outcome = sandbox.run("true", limits=limits(cpu_milli=100)).outcome
    if sandbox.launcher.ready.features["cgroup"].startswith("missing"):
        assert outcome.reason is Reason.SANDBOX_UNAVAILABLE
        assert "limits.cpu_milli" in (outcome.message or "")
    else:
        assert outcome.reason is None
    assert sandbox.run("true", limits=limits(cpu_weight=1, io_weight=10_000)).outcome.reason is None


def test_a_memory_limit_stops_one_process_that_wants_more(sandbox: Sandbox) -> None:
    program = "x = bytearray(512 << 20)"
    outcome = sandbox.python(program, limits=limits(memory_bytes=256 << 20)).outcome
    assert outcome.reason in (Reason.EXIT_CODE, Reason.OOM)
    assert sandbox.python(program, limits=limits(memory_bytes=1 << 30)).outcome.reason is None


def test_every_job_of_a_busy_launcher_gets_its_own_end(sandbox: Sandbox) -> None:
    # given slots that are always taken again at once, by jobs that differ in output and exit code
    total, ends = 300, 0
    expected: dict[str, int] = {}
    while ends < total:
        while len(expected) < min(4, total - ends):
            number = sandbox.count
            expected[sandbox.start("sh", "-c", f"echo {number}; exit {number % 7}")] = number
        sandbox.pump(lambda: any(isinstance(event, Exited) for event in sandbox.events))
        # then each end is that of the job it names
        for event in [event for event in sandbox.events if isinstance(event, Exited)]:
            number = expected.pop(event.job)
            assert (sandbox.output(event.job), event.outcome.exit_code) == (b"%d\n" % number, number % 7)
            ends += 1
        sandbox.events[:] = [event for event in sandbox.events if getattr(event, "job", None) in expected]
