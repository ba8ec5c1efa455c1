"""Collections as iroh-blobs has them, pure: names of files and the hashes of their contents.

A collection is a sequence of hashes, 32 bytes each, whose first blob is the list of names (postcard of `CollectionV0.`
and the names) and whose others are the files, in the order of their names. What is read may come from anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

HEADER: Final = b"CollectionV0."
HASH_BYTES: Final = 32
MAX_FILES: Final = 10_000
MAX_NAMES_BYTES: Final = 8 << 20
MAX_NAME_BYTES: Final = 2_048
"""Quoted, it has to fit into the head of a request."""
MAX_PART_BYTES: Final = 255
"""Of a name between two slashes, as file systems have it."""
_MAX_VARINT_BYTES: Final = 10


class CollectionError(Exception):
    """What is given is no collection, or none that could be a directory; the text says why."""


class Collection(Struct, frozen=True):
    """Files by name, in the order of the collection, and the blob that holds the names."""

    names_blob: str
    files: dict[str, str]
    """Name → hash. Names are relative paths that stay below the directory they are put in."""

    @property
    def children(self) -> tuple[str, ...]:
        """Every blob of it, each once."""
        return tuple(dict.fromkeys((self.names_blob, *self.files.values())))


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_names(names: Iterable[str]) -> bytes:
    """Return the blob that holds the names. Raises CollectionError for names that no directory can have."""
    found = list(names)
    check_names(found)
    encoded = [name.encode() for name in found]
    body = b"".join(_varint(len(name)) + name for name in encoded)
    data = HEADER + _varint(len(encoded)) + body
    if len(data) > MAX_NAMES_BYTES:
        raise CollectionError(f"the names come to {len(data)} bytes, at most {MAX_NAMES_BYTES}")
    return data


def encode_sequence(names_blob: str, files: Mapping[str, str]) -> bytes:
    """Return the collection itself."""
    return b"".join(bytes.fromhex(blob) for blob in (names_blob, *files.values()))


# --- reading ---------------------------------------------------------------------------------------------------------


def decode_sequence(data: bytes) -> tuple[str, ...]:
    """Return the hashes of a sequence, that of the names first. Raises CollectionError."""
    if not data or len(data) % HASH_BYTES:
        raise CollectionError(f"{len(data)} bytes are no sequence of hashes")
    if len(data) > (MAX_FILES + 1) * HASH_BYTES:
        raise CollectionError(f"it has {len(data) // HASH_BYTES - 1} files, at most {MAX_FILES}")
    return tuple(data[start : start + HASH_BYTES].hex() for start in range(0, len(data), HASH_BYTES))


def decode(sequence: bytes, names: bytes) -> Collection:
    """Return the collection of a sequence and of its first blob. Raises CollectionError."""
    names_blob, *files = decode_sequence(sequence)
    found = decode_names(names)
    if len(found) != len(files):
        raise CollectionError(f"it has {len(found)} names for {len(files)} files")
    return Collection(names_blob, dict(zip(found, files, strict=True)))


def decode_names(data: bytes) -> list[str]:
    """Return the names that a blob holds. Raises CollectionError."""
    if len(data) > MAX_NAMES_BYTES:
        raise CollectionError(f"the names come to {len(data)} bytes, at most {MAX_NAMES_BYTES}")
    if not data.startswith(HEADER):
        raise CollectionError("its first blob holds no names")
    count, at = _read_varint(data, len(HEADER))
    if count > MAX_FILES:
        raise CollectionError(f"it has {count} names, at most {MAX_FILES}")
    names = []
    for _ in range(count):
        size, at = _read_varint(data, at)
        if size > len(data) - at:
            raise CollectionError("its names end too soon")
        try:
            names.append(data[at : at + size].decode())
        except UnicodeDecodeError as error:
            raise CollectionError(f"a name is no UTF-8: {data[at : at + size]!r:.100}") from error
        at += size
    if at != len(data):
        raise CollectionError("something follows its names")
    check_names(names)
    return names


# --- names -----------------------------------------------------------------------------------------------------------


def check_names(names: list[str]) -> None:
    """Raise CollectionError unless a directory could have all of these files at once, and none of them leaves it."""
    if len(names) > MAX_FILES:
        raise CollectionError(f"{len(names)} files, at most {MAX_FILES}")
    for name in names:
        check_name(name)
    files = set(names)
    if len(files) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CollectionError(f"{twice!r:.200} is there twice")
    for name in names:
        parts = name.split("/")
        for length in range(1, len(parts)):
            if (above := "/".join(parts[:length])) in files:
                raise CollectionError(f"{above!r:.200} is a file, and {name!r:.200} is below it")


def check_name(name: str) -> None:
    """Raise CollectionError for what is no path of a file below a directory, whatever that has."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError as error:
        raise CollectionError(f"{name!r:.200} is no UTF-8") from error
    if any(part in (b"", b".", b"..") for part in parts):
        raise CollectionError(f"{name!r:.200} is no path below a directory")
    if b"\0" in name.encode():
        raise CollectionError(f"{name!r:.200} has a zero byte")
    if sum(map(len, parts)) + len(parts) - 1 > MAX_NAME_BYTES or any(len(part) > MAX_PART_BYTES for part in parts):
        raise CollectionError(f"{name!r:.200} is longer than a file system takes")


# --- postcard --------------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = 0
    for length in range(_MAX_VARINT_BYTES):
        if at + length >= len(data):
            raise CollectionError("its names end too soon")
        byte = data[at + length]
        number |= (byte & 0x7F) << (7 * length)
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, at + length + 1
    raise CollectionError("a number of its names is too long")
