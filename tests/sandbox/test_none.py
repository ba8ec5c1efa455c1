"""Level `none`: no wall at all, and yet limits, ends, and nothing that runs on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Reason
from jobs.workers.former import clear, tag
from jobs.workers.removal import delete
from jobs.workers.sandbox import Configure, End, Exited, Launcher
from tests.support.users import let_others_in

from .conftest import USER_ID, Result, Sandbox, children_of, descendants_of, is_alive, limits, wait_gone
from .test_ordinary_programs import needs

PYTHON = "/usr/bin/python3"
TAG = tag(Path(f"/nowhere/{os.getpid()}"))
STUBBORN_TREE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):                      # each in a session of its own
    if os.fork():
        break
    os.setsid()
    if {orphans} and os.fork():         # and without its parent
        os._exit(0)
print("up", os.getpid(), flush=True)
time.sleep(1000)
"""
FORKS_WITHOUT_END = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
while True:
    try:
        if os.fork():
            os._exit(0) if os.getpid() % 2 else None
    except OSError:
        pass
"""


@pytest.fixture
def place(identity: str, tmp_path: Path) -> Iterator[Path]:
    """Where jobs have their directories, and the worker its inputs, to which nobody else can get."""
    for name in ("work", "inputs"):
        (tmp_path / name).mkdir()
    (tmp_path / "inputs" / "tree" / "below").mkdir(parents=True)
    for name, content in (("program", "#!/bin/sh\necho ran\n"), ("tree/below/leaf", "leaf\n")):
        (tmp_path / "inputs" / name).write_text(content)
    for path in (tmp_path / "inputs").rglob("*"):
        path.chmod(0o555)
    if identity == "user" and os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
    let_others_in(tmp_path.parent)
    tmp_path.chmod(0o711)
    (tmp_path / "work").chmod(0o711)
    (tmp_path / "inputs").chmod(0o711)
    yield tmp_path
    for path in (tmp_path / "work").iterdir():
        delete(path)


class Bare:
    """A launcher of level `none`, each of whose jobs gets a directory."""

    def __init__(self, sandbox: Sandbox, place: Path) -> None:
        self.sandbox = sandbox
        self.place = place
        self.count = 0

    def start(self, *argv: str, **spawn: object) -> JobId:
        self.count += 1
        return self.sandbox.start(*argv, directory=str(self.count), **spawn)

    def run(self, *argv: str, **spawn: object) -> Result:
        return self.sandbox.wait(self.start(*argv, **spawn))

    def directory(self) -> Path:
        """Of the job that was started last."""
        return self.place / "work" / str(self.count)


@pytest.fixture
def bare(fresh: Callable[..., Sandbox], place: Path) -> Bare:
    sandbox = fresh(level="none", directories=str(place / "work"), inputs=str(place / "inputs"), tag=TAG)
    return Bare(sandbox, place)


def test_a_job_is_an_ordinary_process_and_its_result_says_so(bare: Bare, identity: str) -> None:
    assert bare.sandbox.launcher.ready.level == "none"
    result = bare.run("sh", "-c", 'pwd; echo "$HOME $TMPDIR"; id -u; cat /proc/1/comm; readlink /proc/self/ns/pid')
    work, places, uid, first, namespace = result.stdout.splitlines()
    directory = bare.directory()
    assert (work, places) == (f"{directory}/work", f"{directory}/work {directory}/tmp")
    assert first == Path("/proc/1/comm").read_text().strip()
    assert namespace == os.readlink("/proc/self/ns/pid")
    assert result.outcome.sandbox == "none"
    if identity == "root":
        assert int(uid) > 0x7000_0000
        assert {uid, bare.run("id", "-u").stdout.strip()} == {uid}  # the same slot
    else:
        assert int(uid) == (USER_ID if os.geteuid() == 0 else os.geteuid())


def test_two_jobs_of_a_worker_of_roots_have_two_uids_and_cannot_reach_each_other(bare: Bare, identity: str) -> None:
    if identity != "root":
        pytest.skip("jobs of a worker of an ordinary user's share its uid")
    first = bare.start("sh", "-c", "umask 0; echo secret > private; echo up; sleep 1000")
    bare.sandbox.wait_output(first, b"up")
    pid = bare.sandbox.wait_started(first)
    main = next(iter(children_of(pid)))
    private = bare.directory() / "work" / "private"
    script = f"cat {private}; kill {main}; kill -9 {pid}; cat /proc/{main}/environ; echo still here"
    result = bare.run(script=script)
    assert result.stdout == "still here\n"
    assert result.stderr.count("ermission denied") + result.stderr.count("not permitted") == 4, result.stderr
    bare.sandbox.launcher.send([End(job=first, attempt=Attempt(1), now=True)])
    assert bare.sandbox.wait(first).outcome.reason is Reason.CANCELLED


def test_files_script_and_inputs_are_in_its_directory(bare: Bare) -> None:
    result = bare.run(
        script="cat a/b; ./run; cat tree/below/leaf; echo x > run || echo read-only; echo y > new; ls",
        files={"a/b": b"content\n"},
        inputs={"run": "program", "tree": "tree"},
    )
    assert result.stdout == "content\nran\nleaf\nread-only\na\nnew\nrun\ntree\n", result.stderr
    assert (bare.place / "inputs" / "program").read_text().endswith("echo ran\n")
    failed = bare.run("true", inputs={"x": "missing"}).outcome
    assert failed.reason is Reason.SANDBOX_UNAVAILABLE
    assert "inputs" in (failed.message or "")


def test_what_a_job_leaves_is_given_to_the_worker_and_is_nobody_elses(bare: Bare) -> None:
    jobs = [bare.start("sh", "-c", f"umask 077; echo {number} > out", keep=True) for number in range(2)]
    for number, job in enumerate(jobs):
        bare.sandbox.wait(job)
        exited = bare.sandbox.of(job)[-1]
        assert isinstance(exited, Exited)
        assert exited.kept is not None
        root = bare.sandbox.launcher.take(exited.kept)
        assert root is not None
        with open(os.open("work/out", os.O_RDONLY, dir_fd=root)) as out:
            assert out.read() == f"{number}\n"
        assert os.fstat(root).st_uid == os.stat(bare.place / "work").st_uid
        os.close(root)


def test_privileges_cannot_be_gained(bare: Bare) -> None:
    script = "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status; ls /proc/self/fd; umask; ps -o sid= -p $$"
    result = bare.run(script=script)
    lines = result.stdout.split()
    assert lines[1:8:2] == ["0" * 16] * 4, result.stdout
    assert "NoNewPrivs: 1" in result.stdout.replace("\t", " ")
    assert "0\n1\n2\n3\n" in result.stdout
    if Path("/usr/bin/su").exists():
        assert bare.run("su", "-c", "id -u").outcome.exit_code != 0


def test_limits_of_each_process_hold(bare: Bare, identity: str) -> None:
    program = (
        "import resource as r; print(*[r.getrlimit(n)[0] for n in (r.RLIMIT_NOFILE, r.RLIMIT_CPU, r.RLIMIT_CORE)])"
    )
    assert bare.run(PYTHON, "-c", program, limits=limits(open_files=99, cpu_s=7)).stdout == "99 7 1\n"
    spin = bare.run("sh", "-c", "while :; do :; done", limits=limits(cpu_s=1)).outcome
    assert (spin.reason, spin.signal) == (Reason.CPU_LIMIT, 24)
    if identity == "root":
        count = "import os, time\nn = 0\ntry:\n while os.fork(): n += 1\n time.sleep(99)\n"
        forks = f"{count}except OSError: print(n, flush=True)"
        assert bare.run(PYTHON, "-c", forks, limits=limits(pids=30)).stdout == "29\n"


@pytest.mark.parametrize("orphans", [False, True])
def test_a_timeout_kills_what_ignores_sigterm_and_what_has_left_its_session(bare: Bare, orphans: bool) -> None:
    job = bare.start(PYTHON, "-I", "-c", STUBBORN_TREE.format(orphans=orphans), timeout_s=1.5, grace_s=0.2)
    bare.sandbox.pump(lambda: bare.sandbox.output(job).count(b"up") == 4)
    pid = bare.sandbox.wait_started(job)
    processes = {pid for pid in (pid, *descendants_of(pid)) if is_alive(pid)}
    assert len(processes) == 5
    assert len(children_of(pid) & processes) == (4 if orphans else 1)
    outcome = bare.sandbox.wait(job).outcome
    # The first process tells of the end when it is alone, and goes then.
    assert not {one for one in processes - {pid} if is_alive(one)}
    assert (outcome.reason, outcome.signal) == (Reason.TIMEOUT, 9)


def test_daemons_do_not_outlive_the_end_of_the_main_process(bare: Bare) -> None:
    program = "setsid sleep 1000 & (setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' &) ; sleep 0.2; echo $$"
    job = bare.start("sh", "-c", program)
    pid = bare.sandbox.wait_started(job)
    seen = descendants_of(pid)
    result = bare.sandbox.wait(job)
    assert (result.outcome.reason, result.outcome.exit_code) == (None, 0)
    assert not {pid for pid in seen if is_alive(pid)}
    assert not [
        entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, bare.directory())
    ]


def _works_in(process: Path, directory: Path) -> bool:
    try:
        return Path(os.readlink(process / "cwd")).is_relative_to(directory)
    except OSError:
        return False


def test_one_that_forks_without_end_is_ended(bare: Bare) -> None:
    job = bare.start(PYTHON, "-I", "-c", FORKS_WITHOUT_END, limits=limits(pids=50), timeout_s=1.0, grace_s=0.0)
    assert bare.sandbox.wait(job).outcome.reason in (Reason.TIMEOUT, None)
    assert not [
        entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, bare.directory())
    ]
    assert bare.run("echo", "fine").stdout == "fine\n"


def test_a_polite_end_reaches_main_and_background(bare: Bare) -> None:
    child = 'trap "echo child; exit" TERM; echo up; while :; do sleep 0.05; done'
    job = bare.start(script=f"sh -c '{child}' & trap 'wait; exit 1' TERM; wait; wait", grace_s=30.0)
    bare.sandbox.wait_output(job, b"up")
    bare.sandbox.launcher.send([End(job=job, attempt=Attempt(1))])
    result = bare.sandbox.wait(job)
    assert (result.stdout, result.outcome.exit_code) == ("up\nchild\n", 1)


def test_what_loses_its_first_process_is_ended_by_the_launcher(bare: Bare) -> None:
    other = bare.start("sh", "-c", "echo up; sleep 1; echo other is spared")
    job = bare.start("sh", "-c", "setsid sleep 1000 & (setsid sleep 1000 &); echo up; sleep 1000")
    for one in (other, job):
        bare.sandbox.wait_output(one, b"up")
    pid = bare.sandbox.wait_started(job)
    processes = descendants_of(pid)
    assert len(processes) >= 4
    os.kill(pid, signal.SIGKILL)
    outcome = bare.sandbox.wait(job).outcome
    assert not {pid for pid in processes if is_alive(pid)}
    assert (outcome.reason, outcome.signal) == (Reason.SIGNAL, 9)
    assert bare.sandbox.wait(other).stdout == "up\nother is spared\n"


def test_nothing_survives_the_sudden_death_of_the_launcher(bare: Bare) -> None:
    job = bare.start(PYTHON, "-I", "-c", STUBBORN_TREE.format(orphans=False))
    bare.sandbox.pump(lambda: bare.sandbox.output(job).count(b"up") == 4)
    pid = bare.sandbox.wait_started(job)
    processes = {pid, *descendants_of(pid)}
    os.kill(bare.sandbox.launcher.pid, signal.SIGKILL)
    wait_gone(processes)


def test_a_next_life_waits_until_the_former_ones_jobs_have_ended_themselves(bare: Bare) -> None:
    job = bare.start(PYTHON, "-I", "-c", STUBBORN_TREE.format(orphans=False))
    bare.sandbox.pump(lambda: bare.sandbox.output(job).count(b"up") == 4)
    pid = bare.sandbox.wait_started(job)
    processes = {pid, *descendants_of(pid)}
    assert Path(f"/proc/{pid}/comm").read_text() == f"J{TAG[1:]}\n"
    uid = os.stat(f"/proc/{bare.sandbox.launcher.pid}").st_uid
    mine = {bare.sandbox.launcher.pid, *processes}
    clear(TAG, lambda owner: owner == uid)
    assert not {pid for pid in mine if is_alive(pid)}


def test_the_host_s_network_is_there_whatever_is_asked_for(bare: Bare) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port})); print('reached')"
        for network in ("none", "host"):
            assert bare.run(PYTHON, "-I", "-c", program, network=network).stdout == "reached\n"


@needs("gcc", "make", "git")
def test_ordinary_programs_work(bare: Bare) -> None:
    source = b'#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n'
    script = """
    make hello && ./hello
    git init -q repo && cd repo && echo a > a && git add a
    git -c user.name=n -c user.email=e@example.org commit -qm first && git log --format=%s
    mkfifo f; (echo through > f) & cat f; head -c 16 /dev/urandom | wc -c
    """
    result = bare.run(script=script, files={"hello.c": source})
    assert result.stdout.splitlines()[-4:] == ["compiled", "first", "through", "16"], result.stderr


def test_a_program_that_is_not_there_is_named(bare: Bare) -> None:
    outcome = bare.run("/does/not/exist").outcome
    assert (outcome.reason, outcome.message) == (Reason.SPAWN_FAILED, "no such file or directory: /does/not/exist")
    outcome = bare.run("true", cwd="missing").outcome
    assert outcome.reason is Reason.SPAWN_FAILED


def test_a_root_without_rights_to_other_uids_is_as_an_ordinary_user(place: Path, identity: str) -> None:
    """Given a root whose capabilities a container has taken away."""
    if identity != "root" or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv")
    wrapper = ["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"]
    launcher = Launcher.start(Configure(slots=1, level="none", directories=str(place / "work")), wrapper=wrapper)
    try:
        assert "worker's uid" in launcher.ready.features["uids"]
    finally:
        assert launcher.close() == 0


def test_deep_and_closed_directories_are_deleted(tmp_path: Path) -> None:
    """Given what a job has left to make it hard to delete: as deep as no path is long, and without rights."""
    script = "mkdir top; cd top; i=0; while [ $i -lt 3000 ]; do mkdir d; cd d; i=$((i+1)); done; touch leaf"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "top" / "closed" / "below").mkdir(parents=True)
    (tmp_path / "top" / "closed" / "below" / "file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "top" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    for path in ("top/closed/below", "top/closed"):
        (tmp_path / path).chmod(0)
    delete(tmp_path / "top")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
