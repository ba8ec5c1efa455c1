"""Directories that are uploaded, and those that collections are written to: nothing of these is written elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final, NamedTuple

from jobs.client.failures import SourceFailed, TargetFailed

MAX_FILES: Final = 10_000
"""Of a collection."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FoundFile(NamedTuple):
    """A regular file below a directory."""

    name: str
    """Its path there, with / between its parts."""
    path: str
    size_bytes: int


def scan(directory: os.PathLike[str] | str, *, skip_others: bool = False) -> list[FoundFile]:
    """Return every file below a directory, by name. Symbolic links are not followed.

    Raises SourceFailed, also for what is neither a file nor a directory, unless that is to be skipped: a collection
    cannot hold it.
    """
    root = os.fspath(directory)
    found: list[FoundFile] = []
    todo = [""]
    while todo:
        below = todo.pop()
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(name + "/")
                    elif entry.is_file(follow_symlinks=False):
                        found.append(FoundFile(_text(name), entry.path, entry.stat(follow_symlinks=False).st_size))
                    elif not skip_others:
                        raise SourceFailed(
                            f"{entry.path} is neither a file nor a directory", expected="to skip such: --skip-others"
                        )
                    if len(found) > MAX_FILES:
                        raise SourceFailed(f"{root} has more than {MAX_FILES} files", expected="an archive of them")
        except OSError as error:
            raise SourceFailed(f"cannot read {error.filename or root}: {error.strerror}") from error
    return sorted(found)


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceFailed(f"the name {name!r:.200} is no UTF-8", expected="a name that is") from error
    return name


class Landing:
    """A directory that files are written to by names that somebody else chose. Its parts are opened one by one, and
    none of them may be a symbolic link, so that nothing is written elsewhere."""

    def __init__(self, directory: os.PathLike[str] | str) -> None:
        """Raises TargetFailed; the directory is made where it is absent."""
        self._path = os.fspath(directory)
        try:
            os.makedirs(self._path, exist_ok=True)
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise target_failed(self._path, error) from error

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._root)

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """Yield a file to write to, which has its name once all of it is there; else nothing is left of it.

        Raises TargetFailed, also for a name that would be elsewhere.
        """
        *above, last = name.split("/")
        if any(part in ("", ".", "..") for part in (*above, last)) or "\0" in name:
            raise TargetFailed(f"{name!r:.200} is no name of a file below {self._path}")
        directory = self._open_below(name, above)
        try:
            with draft(directory, last, f"{self._path}/{name}") as file:
                yield file
        finally:
            os.close(directory)

    def _open_below(self, name: str, parts: list[str]) -> int:
        directory = os.dup(self._root)
        try:
            for part in parts:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=directory)
                below = os.open(part, _DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = below
        except OSError as error:
            os.close(directory)
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise TargetFailed(f"{self._path}/{name}: {part!r:.200} is there, and no directory") from error
            raise target_failed(f"{self._path}/{name}", error) from error
        return directory


@contextmanager
def target_file(path: os.PathLike[str] | str) -> Iterator[BinaryIO]:
    """Yield a file to write to that has its name once all of it is there; what is no file, such as a pipe or a
    device, is written to as it is. Raises TargetFailed."""
    shown = os.fspath(path)
    real = os.path.realpath(shown)
    try:
        if os.path.exists(real) and not stat.S_ISREG(os.stat(real).st_mode):
            with open(real, "wb", buffering=0) as file:
                yield file
            return
        directory = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise target_failed(shown, error) from error
    try:
        with draft(directory, os.path.basename(real), shown) as file:
            yield file
    finally:
        os.close(directory)


@contextmanager
def draft(directory: int, name: str, shown: str) -> Iterator[BinaryIO]:
    """Yield a file that takes its name in an open directory at its end. Raises TargetFailed for what fails here."""
    passing = f".{os.urandom(8).hex()}.part"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(passing, flags, 0o666, dir_fd=directory)
    except OSError as error:
        raise target_failed(shown, error) from error
    try:
        with open(descriptor, "wb", buffering=0) as file:
            yield file
        os.rename(passing, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(passing, dir_fd=directory)
        if isinstance(error, OSError):
            raise target_failed(shown, error) from error
        raise


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write to a file without a buffer, which may take less at a time. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def target_failed(shown: str, error: OSError | ValueError) -> TargetFailed:
    return TargetFailed(f"cannot write {shown}: {getattr(error, 'strerror', None) or error}")
