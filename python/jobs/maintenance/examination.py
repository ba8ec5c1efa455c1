"""What is measured of a node's machine and files for `health`: a thin reader; `health` judges it."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jobs._native import Store, __version__
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.maintenance import messages as m
from jobs.workers.pressure import read_pressure

SYNCS: Final = 8
SYNC_BYTES: Final = 4_096
PROBE: Final = "health.probe"


class Machine:
    """`directories`: what is kept where. `secrets`: files that nobody else may read. `quarantined` counts blobs that
    were put aside."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        *,
        directories: dict[str, Path],
        secrets: Callable[[], tuple[Path, ...]],
        max_store_bytes: int,
        quarantined: Callable[[], int],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._directories = directories
        self._secrets = secrets
        self._max_store_bytes = max_store_bytes
        self._quarantined = quarantined

    def examine(self) -> m.Examined:
        """Measure all of it; takes as long as some syncs of the disk do."""
        at_ms = wall_ms()  # before all that takes time
        file_bytes, free_bytes = self._store.file_bytes()
        return m.Examined(
            at_ms=at_ms,
            release=__version__,
            disks=self._disks(),
            fsync_s=sync_times(self._directories["log"]),
            pressure={str(name): percent for name, percent in read_pressure().items()},
            store_bytes=file_bytes - free_bytes,  # as of now, which `used_bytes` is not quite
            max_store_bytes=self._max_store_bytes,
            file_bytes=file_bytes,
            free_file_bytes=free_bytes,
            no_room=self._consensus.no_room or "",
            keys=tuple(m.KeyFile(str(path), problem_of_secret(path)) for path in self._secrets()),
            open_files=len(os.listdir("/proc/self/fd")),
            max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            quarantined=self._quarantined(),
        )

    def _disks(self) -> tuple[m.DiskSpace, ...]:
        """Return each file system once, with all that is kept there."""
        held: dict[int, list[str]] = {}
        for name, path in self._directories.items():
            held.setdefault(path.stat().st_dev, []).append(name)
        found = []
        for names in held.values():
            path = self._directories[names[0]]
            room = os.statvfs(path)
            found.append(
                m.DiskSpace(", ".join(names), str(path), room.f_frsize * room.f_blocks, room.f_frsize * room.f_bavail)
            )
        return tuple(found)


def sync_times(directory: Path) -> tuple[float, ...]:
    """Return how long each of some syncs of a small file in a directory takes, in seconds."""
    path = directory / PROBE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)
        took = []
        for number in range(SYNCS):
            os.pwrite(descriptor, os.urandom(SYNC_BYTES), number * SYNC_BYTES)
            began_s = time.monotonic()
            os.fdatasync(descriptor)
            took.append(time.monotonic() - began_s)
        return tuple(took)
    finally:
        os.close(descriptor)


def problem_of_secret(path: Path) -> str:
    """Return what is wrong with a file that only this user may read; "" for nothing."""
    try:
        found = path.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if found.st_uid != os.geteuid():
        return f"it is uid {found.st_uid}'s"
    if found.st_mode & 0o077:
        return f"others may read it: its mode is {stat.S_IMODE(found.st_mode):04o}"
    return "" if found.st_size else "it is empty"
