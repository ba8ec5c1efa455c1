"""A file, or a stream, of frames: `JOBSFRAM`, version, four letters that say of what; then length and CRC-32 of each
frame before it; then a length of 0, and how many frames and bytes of theirs there were. Little-endian. Pure.

What was cut off, in whatever place, has no such end; nothing is believed that does not fit.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

MAGIC: Final = b"JOBSFRAM"
VERSION: Final = 1
MAX_FRAME_BYTES: Final = 96 << 20
"""More than the changes of one revision come to, which are of one request."""
_HEAD: Final = struct.Struct("<8sI4s")
_FRAME: Final = struct.Struct("<II")
_END: Final = struct.Struct("<QQI")


class FrameError(Exception):
    """These are no frames, or not all of them; the text says where and why."""


class FrameEncoder:
    """Makes the bytes, part by part."""

    def __init__(self, kind: bytes) -> None:
        assert len(kind) == 4, "a kind has four letters"
        self._kind = kind
        self._frames = self._bytes = 0

    def head(self) -> bytes:
        return _HEAD.pack(MAGIC, VERSION, self._kind)

    def frame(self, data: bytes) -> bytes:
        """Return a frame, which has some content."""
        if not 0 < len(data) <= MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {len(data)} bytes; 1 to {MAX_FRAME_BYTES} are possible")
        self._frames += 1
        self._bytes += len(data)
        return _FRAME.pack(len(data), crc32(data)) + data

    def end(self) -> bytes:
        counts = struct.pack("<QQ", self._frames, self._bytes)
        return _FRAME.pack(0, 0) + _END.pack(self._frames, self._bytes, crc32(counts))


class FrameDecoder:
    """Takes the bytes as they come."""

    def __init__(self, kind: bytes) -> None:
        self._kind = kind
        self._data = bytearray()
        self._offset = 0
        """Of what `data` begins with."""
        self._has_begun = False
        self._frames = self._bytes = 0
        self.is_complete = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the frames that have come whole. Raises FrameError."""
        self._data += piece
        if not self._has_begun:
            if len(self._data) < _HEAD.size:
                return []
            self._begin(*_HEAD.unpack(self._take(_HEAD.size)))
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found

    def finish(self) -> None:
        """Say that nothing follows. Raises FrameError unless all has come."""
        if not self.is_complete:
            raise FrameError(f"it ends early, at byte {self._offset + len(self._data)}")

    def _begin(self, magic: bytes, version: int, kind: bytes) -> None:
        if magic != MAGIC:
            raise FrameError("it does not begin as a file of frames does")
        if version != VERSION:
            raise FrameError(f"it is of format version {version}; this build knows {VERSION}")
        if kind != self._kind:
            raise FrameError(f"it holds {kind!r}, and {self._kind!r} is wanted")
        self._has_begun = True

    def _next(self) -> bytes | None:
        if self.is_complete:
            if self._data:
                raise FrameError(f"there is something after the end, at byte {self._offset}")
            return None
        if len(self._data) < _FRAME.size:
            return None
        length, checksum = _FRAME.unpack_from(self._data)
        if length == 0:
            self._end(checksum)
            return None
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes at byte {self._offset}; {MAX_FRAME_BYTES} are possible")
        if len(self._data) < _FRAME.size + length:
            return None
        at = self._offset
        frame = self._take(_FRAME.size + length)[_FRAME.size :]
        if crc32(frame) != checksum:
            raise FrameError(f"the frame at byte {at} fails its checksum")
        self._frames += 1
        self._bytes += length
        return frame

    def _end(self, checksum: int) -> None:
        if checksum:
            raise FrameError(f"the end mark at byte {self._offset} is damaged")
        if len(self._data) < _FRAME.size + _END.size:
            return
        at = self._offset
        frames, size_bytes, checksum = _END.unpack(self._take(_FRAME.size + _END.size)[_FRAME.size :])
        if checksum != crc32(struct.pack("<QQ", frames, size_bytes)) or (frames, size_bytes) != (
            self._frames,
            self._bytes,
        ):
            raise FrameError(f"it has {self._frames} frames, and says otherwise at byte {at}")
        self.is_complete = True
        if self._data:
            raise FrameError(f"there is something after the end, at byte {self._offset}")

    def _take(self, length: int) -> bytes:
        taken = bytes(self._data[:length])
        del self._data[:length]
        self._offset += length
        return taken
