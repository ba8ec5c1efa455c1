"""Files of the worker's machine that jobs may add, and places into which they may export; none unless configured.

Whoever can write below an allowed directory may change it at any time, to have a file read or written that is not
theirs. So a path is followed part by part, each relative to the directory before it, never through a symbolic link, and
what is found is looked at before it is opened: regular files that have one name, and directories, are taken.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from msgspec import Struct

from jobs.validate import MAX_NAME_BYTES
from jobs.workers.task import TaskError

MAX_FILES: Final = 10_000
"""Of one directory that is added."""
MAX_DEPTH: Final = 64
"""Of directories in it."""
_CREATED: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
"""What file systems and kernels say that know of no files without a name."""


class PlaceError(TaskError):
    """A file cannot be read or written, or may not be; the text says which and why."""


class File(Struct, frozen=True):
    """A file of a directory."""

    name: str
    """Relative to the directory, with slashes."""
    size_bytes: int


class OpenFile:
    """A file that is read or written; what cannot be done says of which."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes, b"" at the end. Raises PlaceError."""
        with _said(f"cannot read {self._path}"):
            return os.read(self._descriptor, size_bytes)

    def write(self, data: bytes) -> None:
        """Raises PlaceError."""
        left = memoryview(data)
        with _said(f"cannot write {self._path}"):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def sync(self) -> None:
        """Have it on the disk. Raises PlaceError."""
        with _said(f"cannot write {self._path}"):
            os.fsync(self._descriptor)

    def link(self, name: str, directory: int) -> None:
        """Give it a name. Raises OSError."""
        os.link(f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)

    def close(self) -> None:
        os.close(self._descriptor)


class Place:
    """A file or a directory that was found, by a descriptor that knows it whatever its name comes to mean."""

    def __init__(self, path: str, handle: int, status: os.stat_result) -> None:
        self.path = path
        self.is_directory = stat.S_ISDIR(status.st_mode)
        self.size_bytes = status.st_size
        self._handle = handle

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._handle)

    def open(self) -> OpenFile:
        """Return the file, to be read."""
        with _said(f"cannot read {self.path}"):
            # By /proc, as what was looked at is what is opened.
            return OpenFile(self.path, os.open(f"/proc/self/fd/{self._handle}", os.O_RDONLY | os.O_CLOEXEC))

    def files(self) -> list[File]:
        """Return the files of a directory and of all below it, in the order of their names."""
        found: list[File] = []
        with _said(f"cannot read {self.path}"):
            self._gather(PurePosixPath(), found)
        return sorted(found, key=lambda file: file.name)

    def _gather(self, below: PurePosixPath, found: list[File], top: str | None = None) -> None:
        top = top or self.path
        if len(below.parts) > MAX_DEPTH:
            raise PlaceError(f"cannot add {top}: it is more than {MAX_DEPTH} directories deep")
        for name in _names(self._handle):
            if len(found) >= MAX_FILES:
                raise PlaceError(f"cannot add {top}: it has more than {MAX_FILES} files")
            with _find(self._handle, name, f"{top.rstrip('/')}/{below / name}") as place:
                if place.is_directory:
                    place._gather(below / name, found, top)
                else:
                    found.append(File(_checked_name(top, str(below / name)), place.size_bytes))

    def open_file(self, name: str) -> OpenFile:
        """Return a file of the directory, as it is by now, to be read."""
        path = f"{self.path.rstrip('/')}/{name}"
        with (
            _said(f"cannot read {path}"),
            _reached(self._handle, PurePosixPath(name).parts) as (directory, last),
            _find(directory, last, path) as place,
        ):
            if place.is_directory:
                raise PlaceError(f"cannot read {path}: it is a directory by now")
            return place.open()


class Places:
    """The directories that are allowed."""

    def __init__(self, allowed: Sequence[Path], setting: str = "workers.blob.allow_files") -> None:
        """`setting` is where they are configured."""
        self._setting = setting
        by_depth = sorted(allowed, key=lambda path: len(path.parts), reverse=True)
        self._allowed = [PurePosixPath(path) for path in by_depth]

    def source(self, path: str) -> Place:
        """Return the file or directory at a path, until it is closed. Raises PlaceError."""
        root, parts = self._below(path)
        with _said(f"cannot read {path}"), _root(root) as top:
            if not parts:
                return Place(path, os.dup(top), os.fstat(top))
            with _reached(top, parts) as at:
                return _find(*at, path)

    def directory(self, path: str, *, make: bool = False) -> int:
        """Return a descriptor of the directory at a path, which is made if that is wanted. Raises PlaceError."""
        root, parts = self._below(path)
        with (
            _said(f"cannot {'write' if make else 'read'} {path}"),
            _root(root) as top,
            _reached(top, parts or (".",)) as (directory, last),
        ):
            if make and parts:
                with suppress(FileExistsError):
                    os.mkdir(last, 0o700, dir_fd=directory)
                    _sync(directory)
            return os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def target(self, path: str, draft: str) -> Target:
        """Return a place to write a file or a directory to, which has its name only once it is whole and on the disk;
        until then it is a draft of this name beside it, which goes when it is closed. Raises PlaceError."""
        root, parts = self._below(path)
        if not parts:
            raise PlaceError(f"cannot write {path}: it is the directory below which files may be written")
        with _said(f"cannot write {path}"), _root(root) as top, _reached(top, parts) as (directory, name):
            return Target(path, os.dup(directory), name, draft)

    def _below(self, path: str) -> tuple[PurePosixPath, tuple[str, ...]]:
        """Return the allowed directory in which a path is, and the way from there."""
        wanted = PurePosixPath(path)
        root = next((root for root in self._allowed if wanted.is_relative_to(root)), None)
        if root is None or ".." in wanted.parts:
            raise PlaceError(f"{path} is in no directory that jobs may use ({self._setting})")
        return root, wanted.relative_to(root).parts


class Target:
    """What is being written."""

    def __init__(self, path: str, directory: int, name: str, draft: str) -> None:
        self._path = path
        self._directory = directory
        self._name = name
        self._draft = draft
        self._is_named = False
        """The draft has a name that has to go."""
        self._top: int | None = None
        """Of a directory."""
        self._below: set[PurePosixPath] = {PurePosixPath()}
        """Directories in it."""
        self._making = threading.Lock()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what has not got its name."""
        if self._top is not None:
            os.close(self._top)
        if self._is_named:
            with suppress(OSError):
                self._remove_draft()
        os.close(self._directory)

    # --- a file -------------------------------------------------------------------------------------------------------

    def begin_file(self) -> OpenFile:
        """Return the file, to be written."""
        with _said(f"cannot write {self._path}"):
            with suppress(FileNotFoundError):
                status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):  # told now, and not when all has been fetched
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            try:
                # Without a name, so that nothing is left of it even when this process is killed.
                flags = os.O_WRONLY | os.O_CLOEXEC | os.O_TMPFILE
                return OpenFile(self._path, os.open(f"/proc/self/fd/{self._directory}", flags, 0o666))
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
            self._remove_draft()
            self._is_named = True
            return OpenFile(self._path, os.open(self._draft, _CREATED, 0o666, dir_fd=self._directory))

    def finish_file(self, file: OpenFile) -> None:
        """The file is whole: give it its name, in place of a file that had it."""
        file.sync()
        with _said(f"cannot write {self._path}"):
            if not self._is_named:
                self._remove_draft()
                self._is_named = True
                file.link(self._draft, self._directory)
            self._rename()

    # --- a directory --------------------------------------------------------------------------------------------------

    def begin_directory(self) -> None:
        """Begin with a directory. Raises PlaceError where there is something already."""
        with _said(f"cannot write {self._path}"):
            # Told before anything is fetched; the rename at the end takes the place of an empty directory at most.
            with suppress(FileNotFoundError):
                os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._remove_draft()
            self._is_named = True
            os.mkdir(self._draft, 0o777, dir_fd=self._directory)
            self._top = os.open(self._draft, _DIRECTORY, dir_fd=self._directory)

    def begin_member(self, name: str) -> OpenFile:
        """Return a file of the directory, to be written. Several threads may ask for theirs."""
        assert self._top is not None
        path = PurePosixPath(_checked_name(self._path, name))
        with _said(f"cannot write {name} in {self._path}"):
            with self._making:
                for parent in reversed(path.parents):
                    if parent not in self._below:
                        with _reached(self._top, parent.parts) as (directory, last):
                            os.mkdir(last, 0o777, dir_fd=directory)
                        self._below.add(parent)
            with _reached(self._top, path.parts) as (directory, last):
                return OpenFile(f"{self._path}/{name}", os.open(last, _CREATED, 0o666, dir_fd=directory))

    def finish_directory(self) -> None:
        """All files are whole: give the directory its name."""
        assert self._top is not None
        with _said(f"cannot write {self._path}"):
            for below in self._below:
                with _reached(self._top, (*below.parts, ".")) as (directory, _):
                    _sync(directory)
            self._rename()

    def _rename(self) -> None:
        os.rename(self._draft, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._is_named = False
        _sync(self._directory)

    def _remove_draft(self) -> None:
        """Remove the draft, or what a worker that was killed has left of one."""
        with suppress(FileNotFoundError):
            try:
                os.unlink(self._draft, dir_fd=self._directory)
            except IsADirectoryError:
                shutil.rmtree(self._draft, dir_fd=self._directory)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say what could not be done."""
    try:
        yield
    except OSError as error:
        reason = "it leads through a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise PlaceError(f"{what}: {reason}") from error


@contextmanager
def _root(path: PurePosixPath) -> Iterator[int]:
    # The operator named it: links on the way to it are theirs.
    handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _reached(top: int, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Give the directory in which the last of these parts is, followed part by part, and that part."""
    *parents, last = parts
    handle = os.dup(top)
    try:
        for part in parents:
            below = os.open(part, _DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = below
        yield handle, last
    finally:
        os.close(handle)


def _find(directory: int, name: str, path: str) -> Place:
    """Return what has a name in a directory, unless it is of a kind that is not taken."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(handle)
        if stat.S_ISLNK(status.st_mode):
            raise PlaceError(f"{path} is a symbolic link, and none is followed")
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise PlaceError(f"{path} is neither a regular file nor a directory")
        if stat.S_ISREG(status.st_mode) and status.st_nlink != 1:
            raise PlaceError(f"{path} has {status.st_nlink} hard links: it may be a file from elsewhere")
    except BaseException:
        os.close(handle)
        raise
    return Place(path, handle, status)


def _checked_name(where: str, name: str) -> str:
    """Return the name of a file in a directory. Raises PlaceError for one that could lead out of it, or is no text."""
    parts = name.split("/")
    try:
        is_long = any(len(part.encode()) > MAX_NAME_BYTES for part in parts)
    except UnicodeEncodeError:
        raise PlaceError(f"{name!r:.200} in {where} is no name in UTF-8") from None
    if is_long or len(parts) > MAX_DEPTH or "\x00" in name or any(part in ("", ".", "..") for part in parts):
        raise PlaceError(f"{name!r:.200} in {where} is no name of a file")
    return name


@contextmanager
def _readable(directory: int) -> Iterator[int]:
    """Give a descriptor of a directory with which more can be done than to reach what is in it."""
    handle = os.open(f"/proc/self/fd/{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _names(directory: int) -> list[str]:
    with _readable(directory) as handle:
        return os.listdir(handle)


def _sync(directory: int) -> None:
    # Then its names outlast a power cut.
    with _readable(directory) as handle:
        os.fsync(handle)
