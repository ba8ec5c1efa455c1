"""Directories that a worker has for as long as it lives, and what tells those that a life has left from those in use.

Each is locked by the worker's process, which the kernel undoes at its end, however it comes.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from jobs.workers.executor import ExecutorError
from jobs.workers.removal import delete

NAME: Final = re.compile(r"jobs-(?:inputs|sql|work)-[0-9a-f]{10}-[a-z0-9_]{8}")
"""Of all that are made here."""


def place_of(configured: Path | None) -> Path:
    """Return the directory in which they are made."""
    return configured or Path(tempfile.gettempdir())


def scratch(kind: Literal["inputs", "sql", "work"], configured: Path | None, tag: str) -> Path:
    """Return a new directory, after those of earlier lives are deleted; it stays locked until the process ends.

    `tag`: as `former.tag` has it. Raises ExecutorError.
    """
    place = place_of(configured)
    prefix = f"jobs-{kind}-{tag.removeprefix('jobs:')}-"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f"{prefix}*"):
            if left.lstat().st_uid == os.geteuid():
                with suppress(OSError):
                    delete(left)
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        lock(os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise ExecutorError(f"there is no place for {kind} in {place}: {error.strerror}") from error
    return made


def lock(directory: int) -> bool:
    """Lock a directory for as long as its descriptor is open; tell whether nobody else has it."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
