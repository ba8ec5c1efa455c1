"""`jobctl` as a person uses it: real commands against a real node."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from jobs.client import Client
from jobs.protocol.model import JobState, Reason
from jobs.testing import EmbeddedNode
from tests.support.jobctl import COMMAND as JOBCTL
from tests.support.jobctl import jobctl as run_jobctl

Jobctl = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def jobctl(shared_node: EmbeddedNode) -> Jobctl:
    return partial(run_jobctl, shared_node)


def test_run_passes_output_error_and_code_through_unchanged(jobctl: Jobctl) -> None:
    hello = jobctl("run", "--", "echo", "hello")
    assert (hello.stdout, hello.stderr, hello.returncode) == (b"hello\n", b"", 0)
    both = jobctl("run", "--", "sh", "-c", r"printf '\377\000out'; printf 'err\n' >&2; exit 3")
    assert both.stdout == b"\xff\x00out"
    assert both.stderr.startswith(b"err\n")
    assert both.returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--", "sh", "-c", "exit 137"], 137),
        (["--", "sh", "-c", "kill -TERM $$"], 143),
        (["--timeout", "200ms", "--", "sleep", "60"], 124),
        (["--", "no-such-command"], 127),
        (["--", "/etc/passwd"], 126),
        (["--cwd", "/no/such/directory", "--", "true"], 125),
    ],
)
def test_run_ends_with_the_documented_code(jobctl: Jobctl, arguments: list[str], code: int) -> None:
    assert jobctl("run", *arguments).returncode == code


def test_script_stdin_files_environment_and_directory(jobctl: Jobctl, tmp_path: Path) -> None:
    assert jobctl("run", "--script", "-", stdin=b"echo from $0 with $#").stdout.endswith(b"with 0\n")
    assert jobctl("run", "--stdin", "-", "--", "sort", stdin=b"b\na\n").stdout == b"a\nb\n"
    (tmp_path / "data").write_bytes(b"one two\x00three")
    copied = jobctl("run", "--file", f"sub/in={tmp_path / 'data'}", "--cwd", "sub", "--", "cat", "in")
    assert copied.stdout == b"one two\x00three"
    assert jobctl("run", "--env", "A=x=y", "--", "printenv", "A").stdout == b"x=y\n"


def test_submit_status_wait_result_logs_list(jobctl: Jobctl) -> None:
    submitted = json.loads(jobctl("submit", "--json", "--label", "suite=cli", "--", "echo", "kept").stdout)
    job = submitted["id"]
    assert submitted["created"] is True
    waited = jobctl("wait", "--timeout", "20", job)
    assert (waited.stdout, waited.returncode) == (f"{job} completed\n".encode(), 0)
    assert b"completed" in jobctl("status", job).stdout
    assert json.loads(jobctl("status", "--json", job).stdout)["state"] == "completed"
    result = json.loads(jobctl("result", "--json", job).stdout)
    assert result["stdout"]["text"] == "kept\n"
    assert b"--- stdout\nkept\n" in jobctl("result", job).stdout
    assert jobctl("logs", job).stdout == b"kept\n"
    assert jobctl("logs", "-f", "--stream", "stderr", job).stdout == b""
    rows = [json.loads(line) for line in jobctl("list", "--json", "--label", "suite=cli").stdout.splitlines()]
    assert [row["id"] for row in rows] == [job]
    assert b"STATE" in jobctl("list", "--limit", "1").stdout


def test_a_result_says_when_it_shows_only_the_beginning(jobctl: Jobctl) -> None:
    job = (
        jobctl("submit", "--", "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo whole >&2")
        .stdout.decode()
        .strip()
    )
    shown = jobctl("result", "--wait", "30s", job).stdout.decode()
    assert f"--- stdout, the first 65536 bytes; all of it: jobctl logs {job}\n" in shown
    assert shown.endswith("--- stderr\nwhole\n")


def test_wait_tells_failure_and_timeout_apart(jobctl: Jobctl) -> None:
    failing = jobctl("submit", "--", "false").stdout.decode().strip()
    assert jobctl("wait", failing).returncode == 1
    sleeping = jobctl("submit", "--", "sleep", "60").stdout.decode().strip()
    assert jobctl("wait", "--timeout", "100ms", sleeping).returncode == 124
    assert jobctl("cancel", sleeping).stdout.endswith((b" requested\n", b" cancelled\n"))
    assert jobctl("wait", sleeping).stdout == f"{sleeping} failed cancelled\n".encode()
    assert jobctl("cancel", sleeping).stdout.endswith(b" already_final\n")


def test_an_idempotency_key_makes_a_job_once(jobctl: Jobctl) -> None:
    first = jobctl("submit", "--idempotency-key", "cli-once", "--", "true")
    again = jobctl("submit", "--idempotency-key", "cli-once", "--", "true")
    other = jobctl("submit", "--idempotency-key", "cli-once", "--", "false")
    assert first.stdout == again.stdout
    assert other.returncode == 1
    assert b"used for" not in first.stderr
    assert b"another body" in other.stderr


def test_retries_keep_every_attempt(jobctl: Jobctl) -> None:
    job = jobctl("submit", "--retries", "2", "--retry-delay", "10ms", "--", "sh", "-c", "echo try; exit 9")
    name = job.stdout.decode().strip()
    jobctl("wait", name)
    status = json.loads(jobctl("status", "--json", name).stdout)
    assert (status["attempt"], status["exit_code"], status["reason"]) == (3, 9, "exit_code")
    for attempt in ("1", "2", "3"):
        assert jobctl("logs", "--attempt", attempt, name).stdout == b"try\n"


def test_key_values(jobctl: Jobctl) -> None:
    assert jobctl("kv", "put", "/data/cli/a", "1").returncode == 0
    assert jobctl("kv", "put", "/data/cli/b", "-", stdin=b"\x00\xff").returncode == 0
    assert jobctl("kv", "get", "/data/cli/a").stdout == b"1"
    assert jobctl("kv", "get", "/data/cli/b").stdout == b"\x00\xff"
    rows = [json.loads(line)["key"] for line in jobctl("kv", "scan", "--json", "/data/cli/").stdout.splitlines()]
    assert rows == ["/data/cli/a", "/data/cli/b"]
    txn = {"compare": [{"key": "/data/cli/a", "target": "version", "number": 7}], "then": []}
    assert jobctl("kv", "txn", stdin=json.dumps(txn).encode()).returncode == 1
    unknown = jobctl("kv", "txn", stdin=b'{"ops": []}')
    assert (unknown.returncode, b"expected one of compare, otherwise, then" in unknown.stderr) == (65, True)
    assert jobctl("kv", "delete", "--prefix", "/data/cli/").stdout == b"2\n"
    assert jobctl("kv", "get", "/data/cli/a").returncode == 1
    lease = jobctl("kv", "lease", "grant", "60").stdout.decode().strip()
    assert jobctl("kv", "put", "--lease", lease, "/data/cli/l", "x").returncode == 0
    assert jobctl("kv", "lease", "keepalive", lease).stdout.endswith(b" s\n")
    assert jobctl("kv", "lease", "revoke", lease).returncode == 0
    assert jobctl("kv", "get", "/data/cli/l").returncode == 1
    assert jobctl("kv", "put", "/jobs/state/x", "1").returncode == 77


def test_workers_health_doctor_completion_version(jobctl: Jobctl) -> None:
    (worker,) = [json.loads(line) for line in jobctl("workers", "--json").stdout.splitlines()]
    assert (worker["type"], worker["state"]) == ("shell", "ready")
    assert jobctl("health").returncode == 0
    assert b"node" in jobctl("doctor").stdout
    for shell in ("bash", "zsh"):
        script = jobctl("completion", shell)
        assert script.returncode == 0
        assert b"jobctl" in script.stdout
    assert jobctl("--version").stdout.startswith(b"jobctl ")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, b"usage: jobctl"),
        (["frobnicate"], 2, b"invalid choice"),
        (["submit"], 2, b"--script"),
        (["submit", "--script", "/no/such/file"], 2, b"cannot read /no/such/file"),
        (["submit", "--timeout", "soon", "--", "true"], 2, b"no duration"),
        (["submit", "--file", "../x=/etc/hostname", "--", "true"], 65, b"relative path"),
        (["submit", "--priority", "101", "--", "true"], 65, b"$.priority"),
        (["submit", "--file", "big=/dev/zero", "--", "true"], 2, b"all that a job can carry"),
        (["submit", "--", "printf", "x" * 120_000, *["y" * 120_000] * 9], 65, b"the job takes"),
        (["run", "--timeout", "-5", "--", "true"], 2, b"jobctl run: argument --timeout: '-5' is no duration"),
        (["status", "not-an-id"], 65, b"UUIDv7"),
        (["status", "01900000-0000-7000-8000-000000000000"], 1, b"there is no job"),
        (["logs", "01900000-0000-7000-8000-000000000000"], 1, b"there is no job"),
        (["kv", "txn", "/etc/hostname"], 65, b"JSON"),
        (["drain", "nobody"], 1, b"there is no worker"),
    ],
)
def test_what_is_wrong_is_said_in_words(jobctl: Jobctl, arguments: list[str], code: int, text: bytes) -> None:
    done = jobctl(*arguments)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert b"Traceback" not in done.stderr


def test_a_missing_or_dead_socket_says_what_to_do(tmp_path: Path) -> None:
    missing = subprocess.run(
        [*JOBCTL, "list", "--socket", str(tmp_path / "none.sock")], capture_output=True, timeout=60
    )
    assert missing.returncode == 69
    assert b"JOBS_SOCKET" in missing.stderr
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    refused = subprocess.run([*JOBCTL, "list", "--socket", str(dead)], capture_output=True, timeout=60)
    assert refused.returncode == 69
    assert b"start jobs-node" in refused.stderr


@pytest.mark.parametrize("wish", ["cancel", "detach"])
def test_ctrl_c_of_run_cancels_or_detaches(shared_node: EmbeddedNode, client: Client, wish: str) -> None:
    # Given a run in a terminal of its own, whose job has begun to write
    parent, child = pty.openpty()
    running = subprocess.Popen(
        [*JOBCTL, "run", "--on-interrupt", wish, "--label", f"interrupt={wish}", "--", "sh", "-c", "echo up; sleep 60"],
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "JOBS_SOCKET": str(shared_node.socket)},
    )
    os.close(child)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    # When Ctrl-C arrives
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    os.close(parent)
    # Then the job has ended, or goes on
    (job,) = client.list(labels={"interrupt": wish})
    if wish == "cancel":
        assert client.wait(job.id, 10).state is JobState.FAILED
    else:
        assert client.get(job.id).job.state is JobState.RUNNING
        client.cancel(job.id)


def test_a_run_that_cannot_begin_says_on_a_terminal_why(shared_node: EmbeddedNode) -> None:
    command = [*JOBCTL, "run", "--socket", str(shared_node.socket), "--root", "no-such-image", "--", "true"]
    parent, child = pty.openpty()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    try:
        told = b""
        while b"\n" not in told:
            assert select.select([parent], [], [], 60)[0], told
            told += os.read(parent, 4096)
        assert re.search(rb"jobctl: job [0-9a-f-]+ waits: .*label root:no-such-image=yes wanted", told)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
    finally:
        running.kill()
        running.communicate()
        os.close(parent)


def test_a_run_whose_terminal_is_closed_ends_its_job(shared_node: EmbeddedNode, client: Client) -> None:
    # Given a run in a terminal of its own, whose job has begun to write
    parent, child = pty.openpty()
    running = subprocess.Popen(
        [
            "env",
            "--default-signal=HUP",
            "setsid",
            "--ctty",
            *JOBCTL,
            "run",
            "--label",
            "terminal=closed",
            "--",
            "sh",
            "-c",
            "echo up; sleep 60",
        ],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "JOBS_SOCKET": str(shared_node.socket)},
    )
    os.close(child)
    assert os.read(parent, 100) == b"up\r\n"
    # When it is closed
    os.close(parent)
    # Then the job is ended, and run with it
    assert running.wait(30) == 130
    (job,) = client.list(labels={"terminal": "closed"})
    assert client.wait(job.id, 10).reason is Reason.CANCELLED


def test_a_run_that_is_to_ignore_hangups_does(shared_node: EmbeddedNode, client: Client) -> None:
    running = subprocess.Popen(
        ["nohup", *JOBCTL, "run", "--label", "hangup=ignored", "--", "sh", "-c", "echo up; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "JOBS_SOCKET": str(shared_node.socket)},
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    running.send_signal(signal.SIGHUP)
    (job,) = client.list(labels={"hangup": "ignored"})
    assert not client.get(job.id).job.cancel_requested
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 130
    assert client.wait(job.id, 10).reason is Reason.CANCELLED


@pytest.mark.parametrize("load", ["source <(cat)", 'eval "$(cat)"'])
def test_the_completion_script_registers_itself_in_zsh(jobctl: Jobctl, load: str) -> None:
    zsh = shutil.which("zsh")
    script = jobctl("completion", "zsh").stdout
    if zsh is None:  # then at least the line that decides it
        assert b"if [[ $zsh_eval_context[-1] == (eval|file) ]]; then" in script
        return
    program = f"autoload -U compinit; compinit -D -u; {load}; print -- $_comps[jobctl]"
    done = subprocess.run([zsh, "-f", "-c", program], input=script, capture_output=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([b"_shtab_jobctl"], b"")


def test_ctrl_c_leaves_a_run_whose_node_never_answers(tmp_path: Path) -> None:
    # Given a node that takes a submission and says nothing
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        running = subprocess.Popen([*JOBCTL, "run", "--socket", str(path), "--", "true"], stderr=subprocess.PIPE)
        taken, _ = listener.accept()
        with taken:
            assert taken.recv(1 << 16).startswith(b"POST /v1/jobs ")
            assert running.stderr is not None
            # When Ctrl-C comes, the job cannot be ended yet; when it comes again, run ends
            running.send_signal(signal.SIGINT)
            assert b"once more" in running.stderr.readline()
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == 130
    # Then it says what is not known
    assert running.stderr.read() == b"jobctl: detached; whether the job was submitted is not known\n"


def test_a_reader_that_stops_ends_run_quietly(shared_node: EmbeddedNode) -> None:
    piped = subprocess.run(
        [
            "bash",
            "-c",
            f"'{sys.executable}' -m jobs.cli.main run --label reader=stops -- yes | head -n 1; echo ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        timeout=60,
        env={**os.environ, "JOBS_SOCKET": str(shared_node.socket)},
    )
    assert piped.stdout == b"y\n141\n"
    assert b"Traceback" not in piped.stderr
    # And the job, which nobody reads any more, is ended as by Ctrl-C
    with shared_node.client() as client:
        (job,) = client.list(labels={"reader": "stops"})
        assert client.wait(job.id, 30).reason is Reason.CANCELLED
