"""What a backup says of itself: the last file of it that is written, so a backup without it is none."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from jobs import sealed
from jobs.errors import BackupInvalid
from jobs.sealed import Sealed

FILE: Final = "manifest.json"
SNAPSHOT: Final = "snapshot"
CHANGES: Final = "changes"
LISTING: Final = "listing"
"""The list of the blobs that belong to a backup, never encrypted: the names of their files tell the same."""
BLOBS: Final = "blobs"
"""Of a series, the folder that has their content; of a backup that was a collection of blobs as well."""
AGE: Final = ".age"
"""What the names of encrypted files end with."""
MAX_BYTES: Final = 16 << 20
MAX_MOMENTS: Final = 10_000
MAX_LOST: Final = 10_000
FORMAT: Final = "jobs-backup"
NOUN: Final = "backup"

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file, as it is on the disk."""

    name: Annotated[str, Meta(pattern=r"^[a-z]{1,32}(\.age)?\Z")]
    size_bytes: Count
    blake3: Hash


class Parent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backup to which an incremental one is added."""

    number: Annotated[int, Meta(ge=1)]
    checksum: Hash


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All keys of the store at the backup's revision."""

    digest: Hash
    rows: Count
    size_bytes: Count


class Manifest(Sealed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backup."""

    format: str = FORMAT
    cluster: str
    """Id of the cluster; "" for a node that is in none."""
    number: Annotated[int, Meta(ge=1, le=999_999)]
    kind: Literal["full", "incremental"]
    parent: Parent | None
    from_revision: Count
    """What it holds begins after this revision; 0 for a full one."""
    to_revision: Count
    created_ms: Count
    release: str
    moments: Annotated[list[tuple[Count, Count]], Meta(max_length=MAX_MOMENTS)] = field(default_factory=list)
    """Which revision the store had at a time in ms, oldest first."""
    leases: list[tuple[Count, Count]] = field(default_factory=list)
    """Id and time to live in ms of each lease at the end of an incremental one."""
    files: Annotated[list[FileEntry], Meta(min_length=1, max_length=8)]
    state: State | None
    """None where the cluster no longer had the revision when it was asked for the digest."""
    blobs: Count = 0
    """How many belong to it, by its list."""
    has_blobs: bool = False
    """Whether blobs were asked for."""
    lost: Annotated[list[Hash], Meta(max_length=MAX_LOST)] = field(default_factory=list)
    """Blobs that something refers to and no node could give."""
    recipients: list[str] = field(default_factory=list)
    """For whom it is encrypted; for nobody where there are none."""

    @property
    def directory(self) -> str:
        """Name of the directory that it is in."""
        return f"{self.number:06d}-{self.kind}"

    def file(self, name: str) -> FileEntry | None:
        """Return a file by its name, encrypted or not."""
        return next((entry for entry in self.files if entry.name in (name, name + AGE)), None)


def encode(manifest: Manifest) -> bytes:
    """Return the file, with its checksum."""
    return sealed.encode(manifest)


def decode(data: bytes, where: str) -> Manifest:
    """Return what a file says. Raises BackupInvalid, which names the file."""
    found = sealed.decode(data, where, Manifest, FORMAT, NOUN)
    if (problem := _contradiction(found)) is not None:
        raise damaged(where, problem)
    return found


def damaged(where: str, problem: str) -> BackupInvalid:
    """Return what is to be raised for a file that is not as it was written."""
    return sealed.damaged(where, problem, NOUN)


def _contradiction(found: Manifest) -> str | None:
    """Return what of it cannot be."""
    names = [entry.name.removesuffix(AGE) for entry in found.files]
    if len(set(names)) < len(names):
        return "it names a file twice"
    if (SNAPSHOT if found.kind == "full" else CHANGES) not in names:
        return "it names no file with the store's content"
    content = [entry for entry in found.files if entry.name != LISTING]
    if any(entry.name.endswith(AGE) != bool(found.recipients) for entry in content):
        return "it is encrypted in part"
    if (found.parent is None) != (found.kind == "full"):
        return "it is incremental to nothing, or full and incremental"
    if found.parent is not None and not (
        found.parent.number < found.number and 0 < found.from_revision <= found.to_revision
    ):
        return "it comes before what it is added to"
    if found.kind == "full" and found.from_revision:
        return "it is full, and begins in the middle"
    return None
