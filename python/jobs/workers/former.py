"""One life of a worker at a time: a new one starts only when nothing of the former one runs any more.

A worker that is killed takes its launcher and every job with it, but not in the same moment, and whoever looks after it
may start the next life at once. Two things make sure that the two never run jobs side by side:

- A lock on a file, held by the worker's process for as long as it lives.
- A name (`comm`) that the launcher gives itself and that the first process of every job inherits. Whatever still has
  it is killed and waited for. A first process is there until the kernel has ended everything in its pid namespace.
  At level `none` there is no such namespace, and that process has the name with a capital: it ends the job itself once
  the launcher is gone, and is waited for.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

from jobs.workers.executor import ExecutorError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S: Final = 30.0
"""A former life that was killed with others needs a moment; one that is still there after this is meant to be."""
CLEAR_TIMEOUT_S: Final = 30.0
COMM_BYTES: Final = 15
"""What the kernel keeps of a process's name."""


class FormerLife(ExecutorError):
    """An earlier life of this worker is still here; the text says which, and what to do."""


def lock_path(name: str, run_dir: Path) -> Path:
    """Return the file that is locked for a worker: where its service manager lets it write, else in `run_dir`."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or run_dir) / f"worker-{name}.lock"


def tag(lock: Path) -> str:
    """Return the name of the processes of the worker that has this lock."""
    digest = hashlib.blake2b(os.fsencode(lock.resolve()), digest_size=5).hexdigest()
    return f"jobs:{digest}"


def take_lock(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> int:
    """Return a descriptor that holds the lock for as long as this process has it.

    To be called in the main thread. Raises FormerLife when another process has it, or it cannot be had at all.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FormerLife(
            f"the lock {path} cannot be made ({error.strerror}); give the worker a directory that it may write: "
            "RuntimeDirectory= of its unit, or node.run_dir"
        ) from error
    try:
        _lock_within(lock, timeout_s)
    except TimeoutError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise FormerLife(f"process {holder or '?'} is this worker already, and does not end (lock {path})") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _lock_within(lock: int, timeout_s: float) -> None:
    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def clear(name: str, owns: Callable[[int], bool], timeout_s: float = CLEAR_TIMEOUT_S) -> None:
    """Kill every process that has this name and one of our uids, and return when all are gone.

    To be called with the lock held: then nobody makes new ones. Raises FormerLife for one that does not end.
    """
    until_s = time.monotonic() + timeout_s
    _end_all(name, owns, signal.SIGKILL, until_s)
    # Killed, it would leave what it is there to end; so that comes last.
    bare = name[:1].upper() + name[1:]
    try:
        _end_all(bare, owns, signal.SIGHUP, time.monotonic() + timeout_s / 2)
    except FormerLife:
        _end_all(bare, owns, signal.SIGKILL, until_s)


def _end_all(name: str, owns: Callable[[int], bool], how: signal.Signals, until_s: float) -> None:
    # Again until there is none: a launcher may have started one more while the others were looked for.
    while found := list(_named(name, owns)):
        logger.warning("processes of an earlier life are ended", extra={"pids": [pid for pid, _ in found]})
        try:
            for pid, pidfd in found:
                _end(pid, pidfd, how, until_s)
        finally:
            for _, pidfd in found:
                os.close(pidfd)


def _named(name: str, owns: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    """Yield pid and pidfd of the processes with a name."""
    wanted = name.encode()[:COMM_BYTES] + b"\n"
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or not _is(entry.path, wanted, owns):
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except ProcessLookupError:
            continue
        # Looked at once more, since the pid may have changed hands before the pidfd held it.
        if _is(entry.path, wanted, owns):
            yield int(entry.name), pidfd
        else:
            os.close(pidfd)


def _is(path: str, comm: bytes, owns: Callable[[int], bool]) -> bool:
    """Tell whether a process has the name and one of our uids, and is more than a zombie, which is over."""
    try:
        with open(f"{path}/comm", "rb") as file:
            if file.read() != comm:
                return False
        with open(f"{path}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if line.startswith((b"State:", b"Uid:")))
        return fields[b"State"].strip()[:1] not in b"ZX" and owns(int(fields[b"Uid"].split()[0]))
    except (OSError, KeyError):  # it ended meanwhile
        return False


def _end(pid: int, pidfd: int, how: signal.Signals, until_s: float) -> None:
    # A first process that we may not kill dies with its launcher.
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, how)
    left_s = max(0.0, until_s - time.monotonic())
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(left_s * 1000):
        raise FormerLife(f"process {pid}, of a job of an earlier life, cannot be ended")
