"""No two running jobs have the same uid outside, whoever their workers are, where there are any to give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.protocol.model import Reason
from jobs.workers.sandbox import Configure, Exited, Launcher

from .conftest import USER_ID, Sandbox, descendants_of, start_launcher

BASE = 0x7100_0000
COUNT = 1024


def ids_of(sandbox: Sandbox, *, slots: int) -> list[tuple[int, int, str]]:
    """uid and gid outside, and the groups, of jobs in all slots at once."""
    jobs = [sandbox.start("sh", "-c", "echo up; exec sleep 1000") for _ in range(slots)]
    found = []
    for job in jobs:
        sandbox.wait_output(job, b"up")
        main = max(descendants_of(sandbox.wait_started(job)))
        lines = Path(f"/proc/{main}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        found.append((int(fields["Uid"].split()[0]), int(fields["Gid"].split()[0]), fields["Groups"].strip()))
    return found


@contextmanager
def launched(identity: str, **config: object) -> Iterator[Sandbox]:
    settings = {"slots": 2, "uid_base": BASE, "uid_count": COUNT, **config}
    sandbox = Sandbox(start_launcher(identity, Configure(**settings)))  # type: ignore[arg-type]
    try:
        yield sandbox
    finally:
        sandbox.launcher.close()


@pytest.mark.parametrize("identity", ["root", "capable"])
def test_each_job_has_a_uid_of_its_own_that_nobody_else_has(identity: str) -> None:
    with launched(identity) as one, launched("root") as other:
        ids = ids_of(one, slots=2) + ids_of(other, slots=2)
        assert len({uid for uid, _, _ in ids}) == 4
        for uid, gid, groups in ids:
            assert BASE < uid == gid < BASE + COUNT
            assert groups == ""
        assert "each job has its own" in one.launcher.ready.features["uids"]


def test_groups_of_the_worker_are_not_the_job_s() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv")
    config = Configure(slots=1, uid_base=BASE, uid_count=COUNT)
    sandbox = Sandbox(Launcher.start(config, wrapper=["setpriv", "--groups=4,27,54399"]))
    try:
        assert sandbox.run("grep", "Groups", "/proc/self/status").stdout.split() == ["Groups:"]
        ((_, _, groups),) = ids_of(sandbox, slots=1)
        assert groups == ""
    finally:
        sandbox.launcher.close()


def test_without_any_to_give_all_have_the_worker_s_and_that_is_said() -> None:
    with launched("user") as sandbox:
        uid = USER_ID if os.geteuid() == 0 else os.geteuid()
        assert {found[0] for found in ids_of(sandbox, slots=2)} == {uid}
        assert sandbox.launcher.ready.features["uids"].startswith("all jobs have the worker's: ")


def test_a_range_that_others_have_taken_is_not_shared() -> None:
    with (
        launched("root", uid_count=4),
        pytest.raises(Exception, match="other workers of this machine have those from"),
        launched("root", uid_count=4),
    ):
        pass
    with launched("root", uid_count=4) as sandbox:
        assert sandbox.run("true").outcome.reason is None


@pytest.fixture(params=["root", "capable", "user"])
def keeper(request: pytest.FixtureRequest) -> Iterator[Callable[[str], int]]:
    """Runs a script, and returns what it has left as its worker is given it."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    with launched(request.param) as sandbox:

        def run(script: str) -> int:
            job = sandbox.start(script=script, keep=True)
            assert sandbox.wait(job).outcome.reason is None
            exited = sandbox.of(job)[-1]
            assert isinstance(exited, Exited)
            assert exited.kept is not None
            kept = sandbox.launcher.take(exited.kept)
            assert kept is not None
            return kept

        os.seteuid(0 if request.param == "root" else USER_ID)
        try:
            yield run
        finally:
            os.seteuid(0)


def test_a_worker_reads_what_a_job_has_left_however_that_was_protected(keeper: Callable[[str], int]) -> None:
    kept = keeper(
        "umask 077; mkdir -p a/b c; echo one > a/b/f; echo two > c/g; ln -s /etc/shadow link; mkfifo fifo;"
        "chmod 0 a/b/f a/b a c/g; chmod 700 /work; chmod 0 c; echo three > top; chmod 0 top"
    )
    try:
        for path, text in (("a/b/f", b"one\n"), ("c/g", b"two\n"), ("top", b"three\n")):
            file = os.open(f"work/{path}", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=kept)
            assert os.read(file, 100) == text
            os.close(file)
        assert sorted(os.listdir(os.open("work", os.O_RDONLY, dir_fd=kept))) == ["a", "c", "fifo", "link", "top"]
    finally:
        os.close(kept)


@pytest.mark.parametrize("identity", ["capable"])
def test_a_capable_launcher_gives_its_jobs_no_right(identity: str) -> None:
    with launched(identity) as sandbox:
        assert sandbox.run("id", "-u").stdout == "1000\n"
        assert "CapEff:\t0000000000000000" in sandbox.run("grep", "CapEff", "/proc/self/status").stdout
        assert sandbox.run("sh", "-c", "kill -9 1; cat /proc/1/environ").outcome.reason is Reason.EXIT_CODE
