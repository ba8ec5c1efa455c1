"""Finding real processes and waiting for their end, without polling."""

from __future__ import annotations

import asyncio
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


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Ends:
    """The ends of processes that live now."""

    def __init__(self, pids: list[int]) -> None:
        assert pids, "there is nothing to wait for"
        self._fds = [os.pidfd_open(pid) for pid in pids]

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
