"""What an export says of itself: the last file of it that is written, so an export without it is none."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from jobs import sealed
from jobs.errors import BackupInvalid
from jobs.protocol.model.replication import DataPrefix
from jobs.sealed import Sealed

FILE: Final = "manifest.json"
MAX_BYTES: Final = 16 << 20
MAX_FILES: Final = 9_000
FORMAT: Final = "jobs-export"
NOUN: Final = "export"

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Content: TypeAlias = Literal["parquet", "arrow", "native"]


class RowsFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rows, in the order of their keys; those of the next file come after them."""

    name: Annotated[str, Meta(pattern=r"^rows-[0-9]{6}\.[a-z]{4,8}\Z")]
    rows: Count
    size_bytes: Count
    blake3: Hash


class Manifest(Sealed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An export."""

    format: str = FORMAT
    content: Content
    cluster: str
    """Id of the cluster; "" for a node that is in none."""
    prefix: DataPrefix
    revision: Count
    created_ms: Count
    release: str
    rows: Count
    files: Annotated[list[RowsFile], Meta(max_length=MAX_FILES)]


def encode(manifest: Manifest) -> bytes:
    """Return the file, with its checksum."""
    return sealed.encode(manifest)


def decode(data: bytes, where: str) -> Manifest:
    """Return what a file says. Raises BackupInvalid, which names the file."""
    found = sealed.decode(data, where, Manifest, FORMAT, NOUN)
    names = [file.name for file in found.files]
    if names != sorted(set(names)) or sum(file.rows for file in found.files) != found.rows:
        raise damaged(where, "its files contradict it")
    return found


def damaged(where: str, problem: str) -> BackupInvalid:
    """Return what is to be raised for a file that is not as it was written."""
    return sealed.damaged(where, problem, NOUN)
