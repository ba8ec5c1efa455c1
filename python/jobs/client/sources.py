"""What is uploaded: bytes, a file by its path, or an open one; read piece by piece, and again where it has to be."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, cast

from jobs.client.failures import SourceFailed

PIECE_BYTES: Final = 1 << 20
Uploadable: TypeAlias = bytes | os.PathLike[str] | BinaryIO
OnBytes: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes that have passed and those of the whole, where that is known."""


class Opened:
    """A source that is being read, from its beginning to its end."""

    def __init__(self, file: BinaryIO, size_bytes: int | None, name: str, on_bytes: OnBytes | None) -> None:
        self.size_bytes = size_bytes
        self.read_bytes = 0
        self.was_read = False
        self._file = file
        self._name = name
        self._on_bytes = on_bytes

    def read(self) -> bytes:
        """Return the next piece, b"" at the end. Raises SourceFailed, also when it is no longer as long as it was."""
        self.was_read = True
        try:
            piece = self._file.read(PIECE_BYTES)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise failed(self._name, error) from error
        self.read_bytes += len(piece)
        if self.size_bytes is not None and (
            self.read_bytes > self.size_bytes or (not piece and self.read_bytes < self.size_bytes)
        ):
            raise SourceFailed(f"{self._name} changed while it was read", expected="a file that nobody writes")
        return piece

    def on_sent(self) -> None:
        """Take note that what was read has gone out."""
        if self._on_bytes is not None:
            self._on_bytes(self.read_bytes, self.size_bytes)


class Source:
    """Something to upload. Raises TypeError for text, which has no bytes of its own."""

    def __init__(self, given: Uploadable, on_bytes: OnBytes | None = None) -> None:
        if isinstance(given, str):
            raise TypeError("text is no content: give bytes, a Path, or a file opened for bytes")
        self._given = given
        self._on_bytes = on_bytes
        self._opened: Opened | None = None
        self._begins_at = None if isinstance(given, bytes | os.PathLike) else _place_in(given)

    @property
    def may_be_sent(self) -> bool:
        """Whether all of it can be read, once more if it was before."""
        is_whole = isinstance(self._given, bytes | os.PathLike) or self._begins_at is not None
        return is_whole or self._opened is None or not self._opened.was_read

    @contextmanager
    def open(self) -> Iterator[Opened]:
        """Begin to read. Raises SourceFailed."""
        given = self._given
        if isinstance(given, bytes):
            yield self._open(io.BytesIO(given), "the content")
        elif isinstance(given, os.PathLike):
            with closing(_open_file(given)) as file:
                yield self._open(file, str(given))
        else:
            if self._begins_at is not None:
                given.seek(self._begins_at)
            yield self._open(given, str(getattr(given, "name", "the file")))

    def _open(self, file: BinaryIO, name: str) -> Opened:
        self._opened = Opened(file, _left_bytes(file), name, self._on_bytes)
        return self._opened


def _open_file(path: os.PathLike[str]) -> BinaryIO:
    try:
        return cast("BinaryIO", Path(path).open("rb", buffering=0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise failed(str(path), error) from error


def failed(name: str, error: OSError | ValueError) -> SourceFailed:
    return SourceFailed(f"cannot read {name}: {getattr(error, 'strerror', None) or error}")


def _place_in(file: BinaryIO) -> int | None:
    """Return where an open file stands; None for one that has no places, such as a pipe."""
    try:
        return file.tell() if file.seekable() else None
    except (AttributeError, ValueError):
        return None


def _left_bytes(file: BinaryIO) -> int | None:
    """Return how much there is to read, where that is known before."""
    start = _place_in(file)
    if start is None:
        return None
    try:
        size_bytes = file.seek(0, os.SEEK_END) - start
    except OSError:
        return None  # as with the files of /proc
    file.seek(start)
    return size_bytes or None  # a file that says 0 may hold something all the same
