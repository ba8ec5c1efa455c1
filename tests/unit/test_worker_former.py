"""One life of a worker at a time: the lock, and what an earlier life has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.workers.former import FormerLife, clear, lock_path, tag, take_lock

NAMED = """
import signal, sys
with open("/proc/self/comm", "w") as comm:
    comm.write(sys.argv[1])
print("named", flush=True)
signal.pause()
"""
HOLDER = """
import sys
from pathlib import Path
from jobs.workers.former import take_lock
take_lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that has said something."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline()
        try:
            yield started
        finally:
            started.kill()


def own(uid: int) -> bool:
    return uid == os.getuid()


def test_a_lock_is_one_life_s_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "made" / "worker-w.lock"
    handler = signal.getsignal(signal.SIGALRM)
    with process(HOLDER, str(lock)) as holder:
        with pytest.raises(FormerLife, match=f"process {holder.pid} is this worker already"):
            take_lock(lock, 0.1)
        holder.kill()
        os.close(take_lock(lock, 10))
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_lock_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FormerLife, match="RuntimeDirectory"):
        take_lock(tmp_path / "file" / "worker-w.lock")
    (tmp_path / "link.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormerLife, match="lock"):
        take_lock(tmp_path / "link.lock")
    assert not (tmp_path / "elsewhere").exists()


def test_the_lock_is_where_the_service_manager_lets_a_worker_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert lock_path("w", tmp_path) == tmp_path / "worker-w.lock"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/jobs-worker:/run/other")
    assert lock_path("w", tmp_path) == Path("/run/jobs-worker/worker-w.lock")
    assert len(tag(tmp_path / "worker-w.lock")) == 15
    assert tag(tmp_path / "worker-w.lock") != tag(tmp_path / "worker-v.lock")


def test_what_bears_the_name_is_ended_and_nothing_else(tmp_path: Path) -> None:
    mine, other = tag(tmp_path / "mine"), tag(tmp_path / "other")
    with process(NAMED, mine) as first, process(NAMED, mine) as second, process(NAMED, other) as third:
        clear(mine, lambda uid: False)
        assert first.poll() is None, "a process of somebody else's uid is left alone"
        clear(mine, own)
        # Over, though nobody has reaped them: that is no reason to wait for ever.
        clear(mine, own)
        assert (first.wait(10), second.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert third.poll() is None


def test_a_stopped_process_is_ended_too(tmp_path: Path) -> None:
    name = tag(tmp_path / "mine")
    with process(NAMED, name) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        clear(name, own)
        assert stopped.wait(10) == -signal.SIGKILL
