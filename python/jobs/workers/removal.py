"""Deletes what others have made: however deep it is, whatever its modes are, and wherever its links lead."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def delete(name: str | os.PathLike[str], directory: int | None = None) -> None:
    """Delete what has a name in a directory, if there is something. Nobody may be at work in it any more.

    Takes two descriptors and no stack, whatever the depth: directories in directories are moved up before they are
    gone through. Raises OSError.
    """
    with _entered(name, directory) as top:
        _empty(top)
    os.rmdir(name, dir_fd=directory)


def _empty(top: int) -> None:
    moved, token = 0, secrets.token_hex(8)
    while names := os.listdir(top):
        for name in names:
            if _unlinked(name, top):
                continue
            with _entered(name, top) as below:
                for inner in os.listdir(below):
                    if _unlinked(inner, below):
                        continue
                    with _entered(inner, below):
                        pass  # its owner may write it from now on, as a move needs
                    os.rename(inner, f".{token}.{moved}", src_dir_fd=below, dst_dir_fd=top)
                    moved += 1
            os.rmdir(name, dir_fd=top)


def _unlinked(name: str, directory: int) -> bool:
    """Delete what is no directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


@contextmanager
def _entered(name: str | os.PathLike[str], directory: int | None) -> Iterator[int]:
    """Give a directory that its owner may do all to, whatever was allowed before."""
    found = os.open(name, _PATH, dir_fd=directory)
    try:
        path = f"/proc/self/fd/{found}"
        os.chmod(path, 0o700)
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        yield opened
    finally:
        os.close(opened)
