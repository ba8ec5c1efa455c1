"""What streams of a node, and files of a backup, have in their frames."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from jobs.backups.replay import Change

CHANGES: Final = b"CHNG"
ROWS: Final = b"ROWS"
BLOBS: Final = b"BLOB"
ENTRY_BYTES: Final = 1 << 20
"""About how much there is in a frame."""

T = TypeVar("T")
Row = tuple[bytes, bytes, int, int, int, int]
"""As `Store.range` has them."""
ListedBlob = tuple[str, int]
"""Hash and size in bytes."""


class ChangesHead(Struct, frozen=True, kw_only=True, array_like=True):
    """The first frame of changes: from which revision on they are, and the leases when the last of them had been made.
    Each frame behind it has changes of whole revisions."""

    cluster: str
    from_revision: int
    to_revision: int
    leases: list[tuple[int, int]]


class RowsHead(Struct, frozen=True, kw_only=True, array_like=True):
    """The first frame of rows; each frame behind it has some, in the order of their keys."""

    cluster: str
    revision: int


_encode = msgspec.msgpack.Encoder().encode
_changes = msgspec.msgpack.Decoder(list[Change])
_rows = msgspec.msgpack.Decoder(list[Row])
_blobs = msgspec.msgpack.Decoder(list[ListedBlob])


class MessageError(Exception):
    """A frame does not hold what it should."""


def encode(item: object) -> bytes:
    return _encode(item)


def decode_changes_head(frame: bytes) -> ChangesHead:
    return _decode(msgspec.msgpack.Decoder(ChangesHead), frame)


def decode_rows_head(frame: bytes) -> RowsHead:
    return _decode(msgspec.msgpack.Decoder(RowsHead), frame)


def decode_changes(frame: bytes) -> list[Change]:
    return _decode(_changes, frame)


def decode_rows(frame: bytes) -> list[Row]:
    return _decode(_rows, frame)


def decode_blobs(frame: bytes) -> list[ListedBlob]:
    return _decode(_blobs, frame)


def _decode(decoder: msgspec.msgpack.Decoder[T], frame: bytes) -> T:
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageError(str(error)) from error
