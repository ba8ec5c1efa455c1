"""What the worker was started with, and what the kernel counts for its user: a job profits from neither."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt
from jobs.workers.sandbox import Configure, End, Launcher

from .conftest import USER_ID, Sandbox, limits
from .test_hostile import hostile, told

__all__ = ["hostile"]

requires_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


@pytest.fixture
def started() -> Iterator[Callable[..., Sandbox]]:
    """Starts a launcher from a Python program that has done something to itself before."""
    launchers: list[Launcher] = []

    def start(before: str) -> Sandbox:
        program = f"import os, signal, sys\n{before}\nos.execv(sys.argv[1], sys.argv[1:])"
        launchers.append(Launcher.start(Configure(slots=1), wrapper=[sys.executable, "-I", "-S", "-c", program]))
        return Sandbox(launchers[-1])

    yield start
    for launcher in launchers:
        launcher.close()


def status_of(sandbox: Sandbox) -> dict[str, str]:
    lines = sandbox.run("cat", "/proc/self/status").stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_masks_of_signals_and_of_files_are_not_handed_down(started: Callable[..., Sandbox]) -> None:
    status = status_of(started("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); os.umask(0)"))
    assert (status["SigBlk"], status["Umask"]) == ("0000000000000000", "0022")


def test_descriptors_that_are_left_open_are_not_handed_down(started: Callable[..., Sandbox]) -> None:
    before = """
for number in (7, 40, 300):
    os.dup2(os.open("/", os.O_RDONLY | os.O_DIRECTORY), number, inheritable=True)
"""
    program = "import os; print([name for name in os.listdir('/proc/self/fd') if int(name) > 4])"
    assert started(before).python(program).stdout == "[]\n"


def test_precedence_of_the_worker_is_not_handed_down(started: Callable[..., Sandbox]) -> None:
    try:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, before - 1)
    except PermissionError:
        pytest.skip("not allowed to be nicer to itself")
    os.setpriority(os.PRIO_PROCESS, 0, before)
    assert started("os.setpriority(os.PRIO_PROCESS, 0, -5)").run("nice").stdout == "0\n"


def test_real_time_of_the_worker_is_not_handed_down(started: Callable[..., Sandbox]) -> None:
    try:
        policy = os.sched_getscheduler(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("not allowed to run in real time")
    os.sched_setscheduler(0, policy, os.sched_param(0))
    sandbox = started("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))")
    assert sandbox.python("import os; print(os.sched_getscheduler(0))").stdout == f"{os.SCHED_OTHER}\n"


def test_a_worker_that_is_killed_late_has_jobs_that_are_not(started: Callable[..., Sandbox]) -> None:
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    try:
        score.write_text("-500")
    except PermissionError:
        pytest.skip("not allowed to be killed later")
    score.write_text(before)
    sandbox = started("open('/proc/self/oom_score_adj', 'w').write('-500')")
    assert sandbox.run("cat", "/proc/self/oom_score_adj").stdout == "0\n"


def test_limits_that_would_let_it_go_before_others_are_none(started: Callable[..., Sandbox]) -> None:
    """Given a worker that may be as nice to itself as it likes, run in real time and lock much memory, where a host
    lets the test give it that."""
    before = """
import contextlib, resource
for limit, most in ((resource.RLIMIT_NICE, 40), (resource.RLIMIT_RTPRIO, 99), (resource.RLIMIT_MEMLOCK, 1 << 40)):
    with contextlib.suppress(ValueError):
        resource.setrlimit(limit, (most, most))
"""
    text = started(before).run("cat", "/proc/self/limits").stdout
    values = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]}
    assert values["Max nice priority"] == ["0", "0"]
    assert values["Max realtime priority"] == ["0", "0"]
    assert int(values["Max locked memory"][1]) <= 8 << 20


def test_what_the_operator_made_slower_or_narrower_stays_so(started: Callable[..., Sandbox]) -> None:
    one = min(os.sched_getaffinity(0))
    sandbox = started(f"os.nice(7); os.sched_setaffinity(0, [{one}])")
    program = "import os; print(os.nice(0), os.sched_getaffinity(0))"
    assert sandbox.python(program).stdout == f"{7 + os.nice(0)} {{{one}}}\n"


def test_the_program_of_the_launcher_cannot_be_written_by_anybody(sandbox: Sandbox) -> None:
    path = f"/proc/{sandbox.launcher.pid}/exe"
    try:
        assert "memfd:jobs-launcher" in os.readlink(path)
    except PermissionError:
        pytest.skip("not allowed to look at the launcher")
    with open(path, "rb") as program:
        # Once nobody runs it any more, too.
        assert fcntl.fcntl(program, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    with pytest.raises(OSError, match=r"busy|not permitted"):
        Path(path).write_bytes(b"x")
    assert sandbox.run("echo", "x").stdout == "x\n"


def test_nothing_of_the_worker_s_environment_is_handed_down(sandbox: Sandbox) -> None:
    for pid in (sandbox.launcher.pid, *sandbox.helpers):
        try:
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        except PermissionError:
            pytest.skip("not allowed to look at the launcher")


def run_as(ids: dict[str, object], argv: list[str], program: int) -> str:
    run = functools.partial(subprocess.run, argv, capture_output=True, text=True, check=True, pass_fds=[program])
    return run(**ids).stdout  # type: ignore[call-overload, no-any-return]


@requires_gcc
def test_a_job_that_hoards_what_is_counted_by_user_takes_it_from_nobody(
    sandbox: Sandbox, identity: str, hostile: bytes, tmp_path: Path
) -> None:
    """Given a job that has all that it can get of inotify, queues, timers and locked memory."""
    built = tmp_path / "hostile"
    built.write_bytes(hostile)
    built.chmod(0o755)
    ids = {"user": USER_ID, "group": USER_ID, "extra_groups": []} if identity == "user" and os.geteuid() == 0 else {}
    hoarder = sandbox.start("./hostile", "hoard", files={"hostile": hostile}, limits=limits(open_files=65_536))
    try:
        sandbox.wait_output(hoarder, b"hoarded\n")
        # when another program of the host's user wants a little, and a neighbour does
        with built.open("rb") as program:  # not by its path, which the user may not enter
            host = run_as(ids, [f"/proc/self/fd/{program.fileno()}", "modest"], program.fileno())
        neighbour = told(sandbox.run("./hostile", "modest", files={"hostile": hostile}).stdout)
    finally:
        sandbox.launcher.send([End(job=hoarder, attempt=Attempt(1), now=True)])
        sandbox.wait(hoarder)
    # then they get it: Landlock alone keeps queues from jobs altogether
    nothing_refused = dict.fromkeys(("inotify", "queue", "timer", "locked memory"), 0)
    assert told(host) == nothing_refused
    if identity == "root":
        assert neighbour in (nothing_refused, {**nothing_refused, "queue": errno.EACCES})


def test_keys_of_the_worker_are_not_to_be_read_or_used_up(sandbox: Sandbox) -> None:
    """Given a key in the session of whoever starts jobs."""
    libc = ctypes.CDLL(None, use_errno=True)
    add_key, session = {"x86_64": 248, "aarch64": 217}[os.uname().machine], -3
    key = libc.syscall(add_key, b"user", b"jobs-test", b"secret", 6, session)
    if key < 0:
        pytest.skip(f"no key can be added here: {os.strerror(ctypes.get_errno())}")
    users = Path("/proc/key-users").read_text()
    program = f"""
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
add, request, keyctl = {{"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}}[platform.machine()]
READ, SEARCH, DESCRIBE, JOIN = 11, 10, 6, 1
buffer = ctypes.create_string_buffer(64)
tries = [
    libc.syscall(add, b"user", b"mine", b"x", 1, -3),
    libc.syscall(request, b"user", b"jobs-test", None, -3),
    libc.syscall(keyctl, READ, {key}, buffer, 64),
    libc.syscall(keyctl, SEARCH, -3, b"user", b"jobs-test", 0),
    libc.syscall(keyctl, DESCRIBE, {key}, buffer, 64),
    libc.syscall(keyctl, JOIN, None),
]
print(tries, ctypes.get_errno() == errno.EPERM, repr(open("/proc/keys").read()))
"""
    assert sandbox.python(program).stdout == "[-1, -1, -1, -1, -1, -1] True ''\n"
    assert Path("/proc/key-users").read_text() == users
    unlink, keyctl = 9, {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    libc.syscall(keyctl, unlink, key, session)
