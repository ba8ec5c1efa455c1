"""Finding real processes and waiting for their end, without polling."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path


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
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
