"""What workers of this machine have left: directories of lives that are over, and cgroups of jobs that have ended.

Others may be able to write where these are, so nothing is followed that could be a link; what is to go is known by a
name that only workers make, by its age, and by nobody having it in use.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from jobs.config import Workers
from jobs.workers import scratch
from jobs.workers.removal import delete

GRACE_S: Final = 3_600.0
"""What is younger stays: it may be about to be used."""
Kind: TypeAlias = Literal["directory", "cgroup"]
_CGROUP: Final = re.compile(r"job-(?P<launcher>[0-9]+)-[0-9]+")
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Leftover(Struct, frozen=True, kw_only=True):
    """What was found of something that seems to be left."""

    kind: Kind
    path: str
    bytes: int = 0
    """That go, or would go."""
    stays: str = ""
    """Why it is not touched; "" when it goes."""


class Place(Struct, frozen=True):
    """Where to look."""

    kind: Kind
    directory: Path


def places(config: Workers) -> list[Place]:
    """Return where workers with this configuration leave something."""
    directories = [config.shell.inputs_dir, config.sql.inputs_dir, config.sql.spill_dir]
    if config.shell.sandbox == "none":
        directories.append(config.shell.work_dir)
    found = [Place("directory", place) for place in dict.fromkeys(map(scratch.place_of, directories))]
    # Without one each worker has its own, which goes with its unit.
    return found if config.shell.cgroup is None else [*found, Place("cgroup", config.shell.cgroup)]


def candidates(place: Place) -> list[str]:
    """Return the names at a place that workers make. Raises OSError."""
    pattern = _CGROUP if place.kind == "cgroup" else scratch.NAME
    try:
        with os.scandir(place.directory) as entries:
            return sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def remove(place: Place, name: str, now_s: float, *, dry_run: bool) -> Leftover | None:
    """Delete one if it is left, or only tell; None for one that is in use, or was gone already."""
    path = str(place.directory / name)
    try:
        with _opened(place.directory, None) as parent:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if now_s - max(status.st_mtime, status.st_ctime) < GRACE_S:
                return None
            if os.geteuid() not in (0, status.st_uid):
                return Leftover(kind=place.kind, path=path, stays=f"it belongs to uid {status.st_uid}")
            with _opened(name, parent) as found:
                if place.kind == "cgroup":
                    return _cgroup(parent, name, found, path, dry_run=dry_run)
                return _directory(parent, name, found, path, dry_run=dry_run)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Leftover(kind=place.kind, path=path, stays=_why(error))


def _directory(parent: int, name: str, found: int, path: str, *, dry_run: bool) -> Leftover | None:
    if os.fstat(found).st_dev != os.fstat(parent).st_dev:
        return Leftover(kind="directory", path=path, stays="another file system is mounted there")
    if not scratch.lock(found):
        return None
    size_bytes = _size_of(found)
    if not dry_run:
        delete(name, parent)
    return Leftover(kind="directory", path=path, bytes=size_bytes)


def _cgroup(parent: int, name: str, found: int, path: str, *, dry_run: bool) -> Leftover | None:
    if "populated 1" in _read(found, "cgroup.events").splitlines():
        matched = _CGROUP.fullmatch(name)
        assert matched is not None, f"{name} is no name of a job's cgroup"
        launcher = matched["launcher"]
        if Path("/proc", launcher).exists():
            return None
        return Leftover(kind="cgroup", path=path, stays=f"processes run in it, and process {launcher} is gone")
    if not dry_run:
        os.rmdir(name, dir_fd=parent)
    return Leftover(kind="cgroup", path=path)


def _size_of(directory: int) -> int:
    """Return what the files below take on the disk."""
    total = 0
    for _, _, names, at in os.fwalk(dir_fd=directory):
        for name in names:
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
            total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
    return total


def _read(directory: int, name: str) -> str:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        return os.read(file, 4_096).decode(errors="replace")
    finally:
        os.close(file)


@contextmanager
def _opened(path: Path | str, parent: int | None) -> Iterator[int]:
    """Give a directory that is open; below another one it is not followed to elsewhere."""
    descriptor = os.open(path, _OPEN | (0 if parent is None else os.O_NOFOLLOW), dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it is no directory"
    return error.strerror or str(error)
