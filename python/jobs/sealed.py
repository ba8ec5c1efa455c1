"""Manifests in JSON that are believed only when all of them is as it was written: with a version and a checksum."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs._native import Blake3
from jobs.errors import BackupInvalid

VERSION: Final = 1


class Sealed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What manifests of any kind begin with; each names its own `format`."""

    format: str
    version: int = VERSION
    checksum: str = ""
    """BLAKE3 of all the rest."""


S = TypeVar("S", bound=Sealed)


def seal(manifest: S) -> S:
    """Return the manifest with its checksum."""
    return replace(manifest, checksum=_checksum(manifest))


def encode(manifest: Sealed) -> bytes:
    """Return the file, with its checksum."""
    return msgspec.json.format(msgspec.json.encode(seal(manifest)), indent=1) + b"\n"


def decode(data: bytes, where: str, kind: type[S], format_name: str, noun: str) -> S:
    """Return what a file says, which is a manifest of a backup or an export, by the noun. Raises BackupInvalid, which
    names the file."""
    try:
        head = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(where, f"it is cut short or damaged: {error}", noun) from error
    if not isinstance(head, dict) or head.get("format") != format_name:
        raise damaged(where, f"it is no {noun}'s manifest", noun)
    if head.get("version") != VERSION:
        raise BackupInvalid(
            f"{where}: it is of format version {head.get('version')!r:.40}; this build knows {VERSION}",
            expected="a release of Jobs that knows it",
        )
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise damaged(where, f"it is damaged: {error}", noun) from error
    if found.checksum != _checksum(found):
        raise damaged(where, "it fails its checksum", noun)
    return found


def damaged(where: str, problem: str, noun: str) -> BackupInvalid:
    """Return what is to be raised for a file that is not as it was written."""
    return BackupInvalid(f"{where}: {problem}", expected=f"another copy of the {noun}, or another {noun}")


def _checksum(manifest: Sealed) -> str:
    hashing = Blake3()
    hashing.update(msgspec.json.encode(replace(manifest, checksum="")))
    return hashing.digest().hex()
