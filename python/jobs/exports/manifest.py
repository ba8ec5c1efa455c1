"""What an export says of itself: the last file of it that is written, so an export without it is none."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from jobs._native import Blake3
from jobs.errors import BackupInvalid
from jobs.protocol.model.replication import DataPrefix

FILE: Final = "manifest.json"
VERSION: Final = 1
MAX_BYTES: Final = 16 << 20
MAX_FILES: Final = 9_000
_KIND: Final = "jobs-export"

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Content: TypeAlias = Literal["parquet", "arrow", "native"]


class RowsFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rows, in the order of their keys; those of the next file come after them."""

    name: Annotated[str, Meta(pattern=r"^rows-[0-9]{6}\.[a-z]{4,8}\Z")]
    rows: Count
    size_bytes: Count
    blake3: Hash


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An export."""

    format: Literal["jobs-export"] = _KIND
    version: int = VERSION
    content: Content
    cluster: str
    """Id of the cluster; "" for a node that is in none."""
    prefix: DataPrefix
    revision: Count
    created_ms: Count
    release: str
    rows: Count
    files: Annotated[list[RowsFile], Meta(max_length=MAX_FILES)]
    checksum: str = ""
    """BLAKE3 of all of the above."""


def encode(manifest: Manifest) -> bytes:
    """Return the file, with its checksum."""
    sealed = replace(manifest, checksum=_checksum(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Return what a file says. Raises BackupInvalid, which names the file."""
    try:
        head = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(where, f"it is cut short or damaged: {error}") from error
    if not isinstance(head, dict) or head.get("format") != _KIND:
        raise damaged(where, "it is not the manifest of an export")
    if head.get("version") != VERSION:
        raise BackupInvalid(
            f"{where}: it is of format version {head.get('version')!r:.40}; this build knows {VERSION}",
            expected="a release of Jobs that knows it",
        )
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise damaged(where, f"it is damaged: {error}") from error
    if found.checksum != _checksum(found):
        raise damaged(where, "it fails its checksum")
    names = [file.name for file in found.files]
    if names != sorted(set(names)) or sum(file.rows for file in found.files) != found.rows:
        raise damaged(where, "its files contradict it")
    return found


def damaged(where: str, problem: str) -> BackupInvalid:
    """Return what is to be raised for a file that is not as it was written."""
    return BackupInvalid(f"{where}: {problem}", expected="another copy of the export, or another export")


def _checksum(manifest: Manifest) -> str:
    hashing = Blake3()
    hashing.update(msgspec.json.encode(replace(manifest, checksum="")))
    return hashing.digest().hex()
