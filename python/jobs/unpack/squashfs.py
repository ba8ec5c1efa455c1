"""Squashfs files, version 4.0, compressed by gzip or xz, as `mksquashfs` writes them.

What is where: https://dr-emann.github.io/squashfs/. Numbers of the file are believed within bounds only.
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from jobs.unpack.errors import ImageError, shown
from jobs.unpack.tree import Tree

MAGIC: Final = b"hsqs"
METADATA_BYTES: Final = 8_192
MAX_BLOCK_BYTES: Final = 1 << 20
CACHED_METADATA: Final = 1_024
CACHED_FRAGMENTS: Final = 16
_SUPERBLOCK: Final = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
_COMPRESSORS: Final = {2: "lzma", 3: "lzo", 5: "lz4", 6: "zstd"}
_INODE: Final = struct.Struct("<HHHHII")
_FILE: Final = struct.Struct("<IIII")
_LARGE_FILE: Final = struct.Struct("<QQQIIII")
_DIRECTORY: Final = struct.Struct("<IIHHI")
_LARGE_DIRECTORY: Final = struct.Struct("<IIIIHHI")
_LISTING: Final = struct.Struct("<III")
_ENTRY: Final = struct.Struct("<HhHH")
_FRAGMENT: Final = struct.Struct("<QII")
_NO_FRAGMENT: Final = 0xFFFF_FFFF
_PLAIN_METADATA: Final = 1 << 15
_PLAIN_BLOCK: Final = 1 << 24
_DIRECTORIES: Final = frozenset({1, 8})
_FILES: Final = frozenset({2, 9})
_LINKS: Final = frozenset({3, 10})
_SPECIAL: Final = frozenset({4, 5, 6, 7, 11, 12, 13, 14})


class _Inode(NamedTuple):
    kind: int
    mode: int
    number: int
    at: tuple[int, int]
    """Where its own part begins: block, and offset in it."""


def unpack(archive: int, tree: Tree) -> None:
    """Unpack the file."""
    try:
        _Image(archive).unpack(tree)
    except (struct.error, zlib.error, lzma.LZMAError) as error:
        raise ImageError(f"squashfs: {error}") from None


class _Image:
    def __init__(self, archive: int) -> None:
        self._archive = archive
        fields = _SUPERBLOCK.unpack(self._bytes(0, _SUPERBLOCK.size))
        magic, _, _, self._block_bytes, self._fragments, compressor, _, _, _, major, minor = fields[:11]
        self._root = fields[11]
        self._inodes, self._directories, self._fragment_table = fields[15], fields[16], fields[17]
        if magic != MAGIC or (major, minor) != (4, 0):
            raise ImageError(f"it is a squashfs file of version {major}.{minor}, not 4.0")
        if not 4_096 <= self._block_bytes <= MAX_BLOCK_BYTES or self._block_bytes & (self._block_bytes - 1):
            raise ImageError(f"squashfs: blocks of {self._block_bytes} bytes")
        self._decompress = _decompressor(compressor)
        self._metadata: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._ends: OrderedDict[int, bytes] = OrderedDict()
        self._names: dict[int, bytes] = {}
        """Of files that have more than one, by the number of the inode."""

    def unpack(self, tree: Tree) -> None:
        root = self._inode(self._root)
        if root.kind not in _DIRECTORIES:
            raise ImageError("squashfs: its root is no directory")
        waiting = [(b"", root)]
        while waiting:
            path, directory = waiting.pop()
            for name, reference in self._listing(directory):
                if b"/" in name or name in (b".", b".."):
                    raise ImageError(f"squashfs: {shown(name)} is no name")
                below = path + b"/" + name
                inode = self._inode(reference)
                if inode.kind in _DIRECTORIES:
                    tree.directory(below)
                    waiting.append((below, inode))
                else:
                    self._unpack_one(below, inode, tree)

    def _unpack_one(self, path: bytes, inode: _Inode, tree: Tree) -> None:
        if inode.kind in _FILES:
            if (known := self._names.get(inode.number)) is not None:
                tree.hard_link(path, known)
                return
            start, size, fragment, offset, links, sizes = self._file(inode)
            if size > tree.max_bytes:
                raise ImageError(f"it has more than the {tree.max_bytes} bytes for which there is room")
            tree.file(path, inode.mode, self._content(start, size, fragment, offset, sizes))
            if links > 1:
                self._names[inode.number] = path
        elif inode.kind in _LINKS:
            _, length = struct.unpack("<II", self._read(self._inodes, inode.at, 8)[0])
            target, _ = self._read(self._inodes, self._read(self._inodes, inode.at, 8)[1], _bounded(length, 65_536))
            tree.symbolic_link(path, target)
        elif inode.kind in _SPECIAL:
            tree.skip(path)
        else:
            raise ImageError(f"squashfs: {shown(path)} is of kind {inode.kind}")

    # --- inodes and directories -------------------------------------------------------------------------------------

    def _inode(self, reference: int) -> _Inode:
        head, at = self._read(self._inodes, (reference >> 16, reference & 0xFFFF), _INODE.size)
        kind, mode, _, _, _, number = _INODE.unpack(head)
        return _Inode(kind, mode, number, at)

    def _file(self, inode: _Inode) -> tuple[int, int, int, int, int, tuple[int, int]]:
        """Return where its blocks are, its size, its fragment and the place in that, its links, and where sizes are."""
        if inode.kind == 2:
            data, at = self._read(self._inodes, inode.at, _FILE.size)
            start, fragment, offset, size = _FILE.unpack(data)
            return start, size, fragment, offset, 1, at
        data, at = self._read(self._inodes, inode.at, _LARGE_FILE.size)
        start, size, _, links, fragment, offset, _ = _LARGE_FILE.unpack(data)
        return start, size, fragment, offset, links, at

    def _listing(self, inode: _Inode) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a directory, with the references of their inodes."""
        if inode.kind == 1:
            data, _ = self._read(self._inodes, inode.at, _DIRECTORY.size)
            block, _, size, offset, _ = _DIRECTORY.unpack(data)
        else:
            data, _ = self._read(self._inodes, inode.at, _LARGE_DIRECTORY.size)
            _, size, block, _, _, offset, _ = _LARGE_DIRECTORY.unpack(data)
        at, left = (block, offset), size - 3  # it counts `.` and `..`, which are not there
        while left > 0:
            data, at = self._read(self._directories, at, _LISTING.size)
            count, start, _ = _LISTING.unpack(data)
            left -= _LISTING.size
            for _ in range(_bounded(count + 1, 256)):
                data, at = self._read(self._directories, at, _ENTRY.size)
                place, _, _, length = _ENTRY.unpack(data)
                name, at = self._read(self._directories, at, _bounded(length + 1, 256))
                left -= _ENTRY.size + len(name)
                yield name, start << 16 | place

    # --- content ----------------------------------------------------------------------------------------------------

    def _content(self, start: int, size: int, fragment: int, offset: int, sizes: tuple[int, int]) -> Iterator[bytes]:
        has_end = fragment != _NO_FRAGMENT
        count = size // self._block_bytes if has_end else -(-size // self._block_bytes)
        left = size
        for _ in range(count):
            data, sizes = self._read(self._inodes, sizes, 4)
            (stored,) = struct.unpack("<I", data)
            wanted = min(left, self._block_bytes)
            piece = self._block(start, stored) if stored & ~_PLAIN_BLOCK else bytes(wanted)
            if len(piece) != wanted:
                raise ImageError("squashfs: a block has another size than it should")
            start += stored & ~_PLAIN_BLOCK
            left -= wanted
            yield piece
        if has_end and left:
            end = self._end(fragment)[offset : offset + left]
            if len(end) != left:
                raise ImageError("squashfs: the end of a file is missing")
            yield end

    def _block(self, start: int, stored: int) -> bytes:
        size = _bounded(stored & ~_PLAIN_BLOCK, self._block_bytes)
        data = self._bytes(start, size)
        return data if stored & _PLAIN_BLOCK else self._decompress(data, self._block_bytes)

    def _end(self, number: int) -> bytes:
        """Return a fragment: the ends of several files."""
        if number in self._ends:
            self._ends.move_to_end(number)
            return self._ends[number]
        if number >= self._fragments:
            raise ImageError("squashfs: a fragment is missing")
        (table,) = struct.unpack("<Q", self._bytes(self._fragment_table + number // 512 * 8, 8))
        entry, _ = self._read(table, (0, number % 512 * _FRAGMENT.size), _FRAGMENT.size)
        start, stored, _ = _FRAGMENT.unpack(entry)
        found = self._ends[number] = self._block(start, stored)
        if len(self._ends) > CACHED_FRAGMENTS:
            self._ends.popitem(last=False)
        return found

    # --- metadata ---------------------------------------------------------------------------------------------------

    def _read(self, table: int, at: tuple[int, int], size: int) -> tuple[bytes, tuple[int, int]]:
        """Return bytes of a table from a block and an offset in it on, and where they end."""
        block, offset = at
        data = b""
        while len(data) < size:
            content, following = self._metadata_block(table + block)
            piece = content[offset : offset + size - len(data)]
            if not piece and offset < len(content):
                raise ImageError("squashfs: a table ends early")
            data += piece
            offset += len(piece)
            if len(data) < size or offset == len(content):
                if offset > len(content) or not content:
                    raise ImageError("squashfs: a place beyond the end of its block")
                block, offset = following - table, 0
        return data, (block, offset)

    def _metadata_block(self, start: int) -> tuple[bytes, int]:
        if start in self._metadata:
            self._metadata.move_to_end(start)
            return self._metadata[start]
        (head,) = struct.unpack("<H", self._bytes(start, 2))
        size = _bounded(head & ~_PLAIN_METADATA, METADATA_BYTES)
        data = self._bytes(start + 2, size)
        content = data if head & _PLAIN_METADATA else self._decompress(data, METADATA_BYTES)
        found = self._metadata[start] = content, start + 2 + size
        if len(self._metadata) > CACHED_METADATA:
            self._metadata.popitem(last=False)
        return found

    def _bytes(self, start: int, size: int) -> bytes:
        try:
            data = os.pread(self._archive, size, start)
        except (OSError, OverflowError):
            data = b""
        if len(data) != size:
            raise ImageError("squashfs: it ends early")
        return data


def _decompressor(compressor: int) -> Callable[[bytes, int], bytes]:
    if compressor not in (1, 4):
        raise ImageError(f"squashfs: it is compressed by {_COMPRESSORS.get(compressor, compressor)}; use gzip or xz")

    def decompress(data: bytes, most: int) -> bytes:
        inner: Any = zlib.decompressobj() if compressor == 1 else lzma.LZMADecompressor()
        # One more than there may be, to see that it does not come.
        content = bytes(inner.decompress(data, most + 1))
        if len(content) > most or not inner.eof:
            raise ImageError("squashfs: a block has another size than it should")
        return content

    return decompress


def _bounded(value: int, most: int) -> int:
    if value > most:
        raise ImageError(f"squashfs: {value} where at most {most} can be")
    return value
