"""Finding real processes and waiting for their end, without polling."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_STARTED: Final = 19


def with_argument(marker: str) -> list[int]:
    """Return the processes that have `marker` as one of their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in arguments:
                found.append(int(entry.name))
    return found


def name_of(pid: int) -> str:
    """Return the process's own name (`comm`), "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def session_of(pid: int) -> int:
    """Return the session that a process is in, 0 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def is_alive(pid: int) -> bool:
    """Tell whether a process is there, and not over and waiting to be reaped."""
    try:
        return _fields(pid)[0] not in "ZX"
    except OSError:
        return False


class Process(NamedTuple):
    """A process, and no later one that has the same number."""

    pid: int
    started: str
    """In ticks after the boot."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises OSError when there is none."""
        return cls(pid, _fields(pid)[_STARTED])

    @property
    def is_alive(self) -> bool:
        """Tell whether it is there, and not over and waiting to be reaped."""
        try:
            fields = _fields(self.pid)
        except OSError:
            return False
        return fields[_STARTED] == self.started and fields[0] not in "ZX"


def present(pids: Iterable[int]) -> list[Process]:
    """Return those that there still are."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found.append(Process.of(pid))
    return found


def _fields(pid: int) -> list[str]:
    """Return what the kernel says of a process after its name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """Return every process below one; those that end meanwhile are left out."""
    found = []
    for child in children_of(pid):
        try:
            found += [child, *descendants(child)]
        except OSError:
            continue
    return found


def ended_within(pidfd: int, timeout_s: float) -> bool:
    """Wait for the end of the process behind a pidfd, which is closed then; False when it has not ended in time."""
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)


class Ends:
    """The ends of processes that live now."""

    def __init__(self, pids: list[int]) -> None:
        assert pids, "there is nothing to wait for"
        self._fds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self._fds.append(os.pidfd_open(pid))

    async def wait(self, timeout_s: float) -> None:
        """Return when all have ended; raises TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            for fd in self._fds:
                ended = asyncio.Event()
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
                    os.close(fd)
