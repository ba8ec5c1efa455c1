"""Makes files and names durable: what a rename, a new file or a removal has done to a directory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jobs._native import failpoint


class Points(NamedTuple):
    """Names of failpoints on the way of a file to its place."""

    write: str
    sync: str
    rename: str
    renamed: str
    durable: str


def replace_private(path: Path, data: bytes, points: Points | None = None) -> None:
    """Have a file with this content, which only its user may read, or the one that was there before; durable when this
    returns. Raises OSError."""

    def at(point: str | None) -> None:
        if point is not None:
            failpoint(point)

    draft = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        draft.unlink()
    at(points and points.write)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        at(points and points.sync)
        os.fsync(descriptor)  # its content before its name
    at(points and points.rename)
    draft.rename(path)
    at(points and points.renamed)
    sync_directory(path.parent)
    at(points and points.durable)


def sync_directory(directory: Path) -> None:
    """Return once the directory's names are on the disk; their content is for whoever wrote it. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # without it a rename may be undone by a power cut
    finally:
        os.close(descriptor)
