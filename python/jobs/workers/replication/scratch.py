"""Directories of the worker's own, which go at the end of the operation that they were made for, or once somebody finds
that nobody has them any more."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from jobs.backups.shelf import said
from jobs.workers.replication.task import Task
from jobs.workers.transfers import in_thread

PREFIX: Final = "jobs-replication-"
_LOCK: Final = ".held"


@asynccontextmanager
async def scratch(task: Task) -> AsyncIterator[Path]:
    """Give an empty directory. Raises ShelfError."""
    directory, lock = await in_thread(_make, task.scratch_dir or Path(tempfile.gettempdir()))
    try:
        yield directory
    finally:
        await in_thread(_remove, directory)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    with said(f"cannot write below {parent}"):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(parent)
        made = parent / f"{PREFIX}{secrets.token_hex(8)}"
        draft = parent / f".{made.name}"
        # It has its name once it is locked: who clears takes it for nobody's otherwise.
        draft.mkdir(mode=0o700)
        lock = os.open(draft / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft.rename(made)
    return made, lock


def _clear(parent: Path) -> None:
    """Remove what workers have left that were killed."""
    for left in parent.glob(f"{PREFIX}*"):
        # What is another user's, or somebody else removes, is left to them.
        with suppress(OSError):
            lock = os.open(left / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(lock)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
