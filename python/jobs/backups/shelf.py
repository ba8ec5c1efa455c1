"""Files of a directory that others may change at any time, by descriptors: nothing is followed, and only regular files
are read. What is written has its name once it is whole and on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from jobs._native import Blake3
from jobs.backups.crypt import Encryption, decrypt
from jobs.backups.manifest import AGE
from jobs.errors import BackupInvalid, OperationUnderWay, StorageFull
from jobs.sealed import damaged

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

PIECE_BYTES: Final = 1 << 20
LOCK: Final = ".lock"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATED: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Not waiting for whoever writes to what turns out to be a pipe."""


class ShelfError(Exception):
    """A file or a directory cannot be read or written; the text says which and why."""


Check = Callable[[int], None]
"""Called with how many bytes were read or written since; raises where the work is given up."""


def _damaged(path: str, problem: str) -> BackupInvalid:
    """Return what is to be raised for a file that is not as it was written, of a backup or of an export."""
    return damaged(path, problem, "file")


class Written(Struct, frozen=True):
    """What a file has become, on the disk."""

    size_bytes: int
    blake3: str


class Shelf:
    """An open directory; `path` is what it is called."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Shelf:
        """Open a directory that whoever calls has named: links on the way are theirs. Raises ShelfError."""
        with said(f"cannot read {path}"):
            return cls(str(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def called(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    # --- reads --------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return what is in it, in order."""
        with said(f"cannot read {self.path}"):
            return sorted(os.listdir(self._descriptor))

    def below(self, name: str) -> Shelf:
        """Return a directory in it. Raises ShelfError and FileNotFoundError."""
        path = self.called(name)
        with said(f"cannot read {path}", missing=True):
            return Shelf(path, os.open(name, _DIRECTORY, dir_fd=self._descriptor))

    def size_of(self, name: str) -> int | None:
        """Return the size of a regular file; None when there is none of this name."""
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ShelfError(f"cannot read {self.called(name)}: {error.strerror}") from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @contextmanager
    def reading(self, name: str) -> Iterator[int]:
        """Give a descriptor of a regular file. Raises ShelfError and FileNotFoundError."""
        path = self.called(name)
        with said(f"cannot read {path}", missing=True):
            descriptor = os.open(name, _READ, dir_fd=self._descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ShelfError(f"cannot read {path}: it is no regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def path_of(self, name: str) -> Iterator[str]:
        """Give a path by which others of this process find a regular file. Raises as `reading`."""
        with self.reading(name) as descriptor:
            yield f"/proc/self/fd/{descriptor}"

    def read(self, name: str, most: int) -> bytes:
        """Return a small file. Raises as `reading`, and BackupInvalid for a larger one."""
        with self.reading(name) as descriptor, said(f"cannot read {self.called(name)}"):
            parts, size = [], 0
            while piece := os.read(descriptor, PIECE_BYTES):
                parts.append(piece)
                size += len(piece)
                if size > most:
                    raise _damaged(self.called(name), f"it has more than {most} bytes")
            return b"".join(parts)

    def pieces(self, name: str, check: Check) -> Iterator[bytes]:
        """Yield a file, piece by piece."""
        with self.reading(name) as descriptor:
            while True:
                with said(f"cannot read {self.called(name)}"):
                    piece = os.read(descriptor, PIECE_BYTES)
                if not piece:
                    return
                yield piece
                check(len(piece))

    def verify(self, name: str, size_bytes: int, blake3: str, check: Check) -> None:
        """Raise BackupInvalid unless a file is what it was."""
        path, hashing, size = self.called(name), Blake3(), 0
        found = self.size_of(name)
        if found is None:
            raise _damaged(path, "it is missing")
        if found != size_bytes:
            raise _damaged(path, f"it has {found} bytes, and {size_bytes} were written")
        for piece in self.pieces(name, check):
            hashing.update(piece)
            size += len(piece)
        if size != size_bytes or hashing.digest().hex() != blake3:
            raise _damaged(path, "its content is not what was written")

    def plain(self, name: str, identities: list[Identity], write: Callable[[bytes], None], check: Check) -> None:
        """Hand a file over, decrypted if it is encrypted. Raises BackupInvalid and what `write` raises."""
        if not name.endswith(AGE):
            for piece in self.pieces(name, check):
                write(piece)
            return

        def take(piece: bytes) -> None:
            write(piece)
            check(len(piece))

        with self.reading(name) as descriptor, open(os.dup(descriptor), "rb", buffering=PIECE_BYTES) as source:
            decrypt(source, take, identities, self.called(name))

    def check_key(self, name: str, identities: list[Identity]) -> None:
        """Raise BackupInvalid unless a file is there and, if it is encrypted, one of these is for it."""

        def begun(_: bytes) -> None:
            raise _Begun

        if self.size_of(name) is None:
            raise _damaged(self.called(name), "it is missing")
        if name.endswith(AGE):
            with suppress(_Begun):
                self.plain(name, identities, begun, lambda _: None)

    # --- writes -------------------------------------------------------------------------------------------------------

    def make(self, name: str) -> Shelf:
        """Return a directory in it, made when it is absent."""
        with said(f"cannot write {self.called(name)}"), suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
            self.sync()
        return self.below(name)

    def create(self, name: str, recipients: list[str] | None = None) -> Draft:
        """Begin a file, encrypted if there are recipients. Raises ShelfError where there is one."""
        with said(f"cannot write {self.called(name)}"):
            descriptor = os.open(name, _CREATED, 0o600, dir_fd=self._descriptor)
        return Draft(self.called(name), descriptor, recipients or [])

    def put(self, name: str, data: bytes) -> None:
        """Write a small file whole. Raises as `create` and `Draft.write`."""
        draft = self.create(name)
        try:
            draft.write(data)
            draft.finish()
        finally:
            draft.abandon()

    def rename(self, old: str, new: str) -> None:
        """Give something its name, durably. Raises ShelfError where a directory has it."""
        with said(f"cannot write {self.called(new)}"):
            os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            self.sync()

    def sync(self) -> None:
        """Have its names on the disk."""
        with said(f"cannot write {self.path}"):
            os.fsync(self._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all in it; nothing when there is none."""
        with said(f"cannot remove {self.called(name)}"), suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=self._descriptor)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=self._descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who writes. Raises OperationUnderWay."""
        with said(f"cannot write {self.called(LOCK)}"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(LOCK, flags, 0o600, dir_fd=self._descriptor)
        try:
            with said(f"cannot lock {self.called(LOCK)}"):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OperationUnderWay(
                        f"another job writes to {self.path}", expected="the same once that has ended"
                    ) from None
            yield
        finally:
            os.close(descriptor)


class _Begun(Exception):
    """The beginning of a file could be read."""


class Draft:
    """A file that is being written. `finish` or `abandon` has to be called."""

    def __init__(self, path: str, descriptor: int, recipients: list[str]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._hashing = Blake3()
        self._size_bytes = 0
        self._encryption = Encryption(recipients, self._put) if recipients else None

    def write(self, data: bytes) -> None:
        """Raises ShelfError, and StorageFull where the disk is full."""
        if self._encryption is None:
            self._put(data)
        else:
            self._encryption.write(data)

    def finish(self) -> Written:
        """It is whole: return what it is, on the disk."""
        try:
            if self._encryption is not None:
                self._encryption.finish()
            with said(f"cannot write {self._path}"):
                os.fsync(self._descriptor)  # its content before the name of its directory
        finally:
            self._close()
        return Written(self._size_bytes, self._hashing.digest().hex())

    def abandon(self) -> None:
        """It is of no use; again, or after `finish`: nothing."""
        if self._encryption is not None:
            self._encryption.abandon()
        self._close()

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        with said(f"cannot write {self._path}"):
            while left:
                left = left[os.write(self._descriptor, left) :]
        self._hashing.update(data)
        self._size_bytes += len(data)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def said(what: str, *, missing: bool = False) -> Iterator[None]:
    """Say what could not be done; with `missing` let FileNotFoundError through."""
    try:
        yield
    except (BackupInvalid, ShelfError):
        raise
    except FileNotFoundError as error:
        if missing:
            raise
        raise ShelfError(f"{what}: {error.strerror}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{what}: {error.strerror}", expected="room at the target") from error
        reason = "it leads through a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise ShelfError(f"{what}: {reason}") from error
