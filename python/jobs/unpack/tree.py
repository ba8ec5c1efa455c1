"""The tree that is written: what it may have, and what of an image is left out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from jobs.unpack.errors import ImageError, shown

MAX_PATH_BYTES: Final = 4_095
MAX_NAME_BYTES: Final = 255
MOUNT_POINTS: Final = (b"proc", b"dev", b"tmp", b"work", b".job", b"run/secrets")
"""Where every job's own is mounted; in every tree they are directories, and no links."""
ENTRY_BYTES: Final = 4_096
"""What each file, directory and link counts besides its content."""
_CREATED: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_EVERYBODY_WRITES: Final = 0o666
"""Its owner is another than the jobs', which see it read-only or below a layer of their own: what one may, all may."""


class Tree:
    """Below the directory `root`, which is this process's root: the kernel lets no link lead out of it."""

    def __init__(self, root: int, *, max_bytes: int, max_entries: int, max_depth: int) -> None:
        self._root = root
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._max_depth = max_depth
        self.bytes = 0
        self.entries = 0
        self.skipped = 0
        self._layer: set[bytes] = set()
        """What the present layer has made, which its own whiteouts do not touch."""

    def finish(self) -> None:
        """Make what every tree has."""
        for path in MOUNT_POINTS:
            self.directory(path)

    def next_layer(self) -> None:
        self._layer.clear()

    def skip(self, path: bytes) -> None:
        """Leave something out."""
        self.parts(path)
        self.skipped += 1

    def directory(self, path: bytes) -> None:
        """Make a directory; one that is there stays as it is."""
        parts = self.parts(path)
        if not parts:
            return
        self._reach(parts[:-1])
        name = b"/".join(parts)
        self._layer.add(name)
        kind = self._kind(name)
        if kind == stat.S_IFDIR:
            return
        if kind is not None:
            os.unlink(name, dir_fd=self._root)
        self._make(name)

    def file(self, path: bytes, mode: int, pieces: Iterable[bytes]) -> None:
        """Make a file in place of whatever was there."""
        name = self._place(path)
        handle = os.open(name, _CREATED, 0o600, dir_fd=self._root)
        try:
            for piece in pieces:
                self._take(len(piece))
                left = memoryview(piece)
                while left:
                    left = left[os.write(handle, left) :]
            # No right to another uid is kept.
            os.fchmod(handle, _EVERYBODY_WRITES | (0o111 if mode & 0o111 else 0))
        finally:
            os.close(handle)

    def symbolic_link(self, path: bytes, target: bytes) -> None:
        """Make a link in place of whatever was there. Jobs follow it, for which the tree is the root."""
        if not 0 < len(target) <= MAX_PATH_BYTES or b"\0" in target:
            raise ImageError(f"{shown(path)}: a link to nowhere")
        os.symlink(target, self._place(path), dir_fd=self._root)

    def hard_link(self, path: bytes, target: bytes) -> None:
        """Give a file one more name."""
        existing = b"/".join(self.parts(target))
        if existing == b"/".join(self.parts(path)):
            return
        if self._kind(existing) != stat.S_IFREG:
            raise ImageError(f"{shown(path)}: a hard link to what is no file")
        name = self._place(path)
        os.link(existing, name, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)

    def whiteout(self, path: bytes) -> None:
        """Take away what lower layers have at a path."""
        parts = self.parts(path)
        if not parts:
            raise ImageError("a whiteout of the root")
        self._remove_lower(b"/".join(parts))

    def opaque(self, path: bytes) -> None:
        """Take away all that lower layers have in a directory."""
        name = b"/".join(self.parts(path))
        if not name or self._kind(name) == stat.S_IFDIR:
            self._remove_lower_in(name)

    def parts(self, path: bytes) -> list[bytes]:
        """Return the parts of a path. Raises ImageError for one that no honest image has."""
        if len(path) > MAX_PATH_BYTES:
            raise ImageError(f"{shown(path)}: the path is too long")
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ImageError(f"{shown(path)}: the path leads out of the image")
        if b"\0" in path or any(len(part) > MAX_NAME_BYTES for part in parts):
            raise ImageError(f"{shown(path)}: it has a part that is no name")
        if len(parts) > self._max_depth:
            raise ImageError(f"it has more than {self._max_depth} directories in each other")
        return parts

    def _place(self, path: bytes) -> bytes:
        """Count one more, and return the name to make it by, which is free afterwards."""
        parts = self.parts(path)
        if not parts:
            raise ImageError("its root is no directory")
        self._reach(parts[:-1])
        self._count()
        name = b"/".join(parts)
        self._remove(name)
        self._layer.add(name)
        return name

    def _reach(self, parts: list[bytes]) -> None:
        """Make what is missing on the way."""
        for count in range(1, len(parts) + 1):
            name = b"/".join(parts[:count])
            try:
                # Links on the way are followed, as the image's own programs would.
                status = os.stat(name, dir_fd=self._root)
            except FileNotFoundError:
                if self._kind(name) is not None:
                    raise ImageError(f"{shown(name)}: a link to nowhere is on the way to a file") from None
                self._make(name)
            else:
                if not stat.S_ISDIR(status.st_mode):
                    raise ImageError(f"{shown(name)}: what is on the way to a file is no directory")

    def _make(self, name: bytes) -> None:
        self._count()
        os.mkdir(name, _EVERYBODY_WRITES | 0o111, dir_fd=self._root)

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self.max_entries:
            raise ImageError(f"it has more than {self.max_entries} files")
        self._take(ENTRY_BYTES)

    def _take(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        if self.bytes > self.max_bytes:
            raise ImageError(f"it has more than the {self.max_bytes} bytes for which there is room")

    def _kind(self, name: bytes) -> int | None:
        try:
            return stat.S_IFMT(os.stat(name, dir_fd=self._root, follow_symlinks=False).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _remove(self, name: bytes) -> None:
        """Remove what has a name, if there is something, with all that is in it: no deeper than the tree may be."""
        kind = self._kind(name)
        if kind == stat.S_IFDIR:
            for below in self._names(name):
                self._remove(name + b"/" + below)
            os.rmdir(name, dir_fd=self._root)
        elif kind is not None:
            os.unlink(name, dir_fd=self._root)

    def _remove_lower(self, name: bytes) -> None:
        if name not in self._layer:
            with suppress(FileNotFoundError):
                self._remove(name)
        elif self._kind(name) == stat.S_IFDIR:
            self._remove_lower_in(name)

    def _remove_lower_in(self, name: bytes) -> None:
        for below in self._names(name or b"."):
            self._remove_lower(name + b"/" + below if name else below)

    def _names(self, name: bytes) -> list[bytes]:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            return [os.fsencode(below) for below in os.listdir(handle)]
        finally:
            os.close(handle)
