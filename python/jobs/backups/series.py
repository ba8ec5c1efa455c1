"""The backups of a directory: `000001-full`, `000002-incremental` and so on, and `blobs`, which they share.

A backup is written under a name that none has, its manifest last, and renamed when all of it is on the disk: one whose
making was broken off, in whatever way, is none. All of a backup that is to be used is verified before it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

from msgspec import Struct

from jobs.backups import manifest as m
from jobs.backups.crypt import mark_of
from jobs.backups.frames import FrameDecoder, FrameError
from jobs.backups.manifest import Manifest
from jobs.backups.messages import BLOBS, MessageError, decode_blobs
from jobs.backups.shelf import Check, Shelf, ShelfError
from jobs.errors import BackupInvalid

DRAFT: Final = ".draft-"
"""What the names of backups begin with that are not whole yet, and of blobs."""
_NAME: Final = re.compile(r"(?P<number>[0-9]{6})-(?P<kind>full|incremental)\Z")


def unchecked(size_bytes: int) -> None:
    """Check nothing on the way."""


class Part(Struct, frozen=True):
    """A backup of those that make up a state."""

    manifest: Manifest
    shelf: Shelf
    """Its directory."""
    plain: Path | None = None
    """The file with its content where that is at hand unencrypted; it is used up."""


class Series:
    """Reads a directory; whoever writes has it locked."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def names(self) -> list[str]:
        """Return the directories of backups, oldest first."""
        return [name for name in self.shelf.names() if _NAME.match(name)]

    def load(self, name: str) -> Manifest:
        """Return a backup's manifest. Raises BackupInvalid and ShelfError."""
        try:
            with self.shelf.below(name) as below:
                where = below.called(m.FILE)
                found = m.decode(below.read(m.FILE, m.MAX_BYTES), where)
        except FileNotFoundError:
            raise BackupInvalid(
                f"{self.shelf.called(name)}: it has no {m.FILE}, so it is incomplete",
                expected="another copy of it, or another backup",
            ) from None
        if found.directory != name:
            raise m.damaged(where, f"it is the one of {found.directory}")
        return found

    def all(self) -> list[Manifest]:
        """Return all manifests, oldest first. Raises BackupInvalid for one that is damaged, and for backups of several
        series."""
        found = self.found()
        for one in found.values():
            if isinstance(one, BackupInvalid | ShelfError):
                raise one
        return [one for one in found.values() if isinstance(one, Manifest)]

    def found(self) -> dict[str, Manifest | BackupInvalid | ShelfError]:
        """Return all manifests, oldest first, or what is wrong with them: some that is damaged must not stand in the
        way of what is not. Raises BackupInvalid for backups of several series."""
        found: dict[str, Manifest | BackupInvalid | ShelfError] = {}
        for name in self.names():
            try:
                found[name] = self.load(name)
            except (BackupInvalid, ShelfError) as error:
                found[name] = error
        sound = [one for one in found.values() if isinstance(one, Manifest)]
        for earlier, later in pairwise(sound):
            if earlier.cluster != later.cluster:
                raise BackupInvalid(
                    f"{self.shelf.path}: {later.directory} is of the cluster {later.cluster or '(none)'}, "
                    f"and {earlier.directory} of {earlier.cluster or '(none)'}",
                    expected="the backups of one cluster in a directory",
                )
            if earlier.number == later.number:
                raise BackupInvalid(
                    f"{self.shelf.path}: {earlier.directory} and {later.directory} have one number",
                    expected="the backups of one series",
                )
        return found

    # --- what makes up a state ----------------------------------------------------------------------------------------

    def chain(self, revision: int | None = None) -> list[Manifest]:
        """Return the full backup and the incremental ones from which the store is made as of a revision, by default as
        late as there is one. Raises BackupInvalid, also where one of those is damaged."""
        found = self.found()
        if not found:
            raise BackupInvalid(f"{self.shelf.path}: there is no backup in it", expected="the directory of a series")
        chain, broken = self._follow(found.values(), revision)
        if broken is not None and not _reaches(chain, revision):
            raise broken
        if not chain:
            oldest = next(one.to_revision for one in found.values() if isinstance(one, Manifest))
            raise BackupInvalid(
                f"{self.shelf.path}: revision {revision} is asked for, and the oldest full backup is of {oldest}",
                expected="a later revision",
            )
        if revision is not None and chain[-1].to_revision < revision:
            raise BackupInvalid(
                f"{self.shelf.path}: revision {revision} is asked for, and {chain[-1].directory} goes up to "
                f"{chain[-1].to_revision}",
                expected="an earlier revision",
            )
        return chain

    def _follow(
        self, found: Iterable[Manifest | BackupInvalid | ShelfError], revision: int | None
    ) -> tuple[list[Manifest], BackupInvalid | ShelfError | None]:
        """Return the last chain that does not begin after a revision, and what keeps it from going on, if anything."""
        chain: list[Manifest] = []
        broken: BackupInvalid | ShelfError | None = None
        for one in found:
            if isinstance(one, BackupInvalid | ShelfError):
                broken = broken or one
                continue
            if revision is not None and (
                one.to_revision > revision if one.kind == "full" else _reaches(chain, revision)
            ):
                break
            if one.kind == "full":
                chain, broken = [one], None
            elif broken is None and (broken := self._gap(one, chain[-1] if chain else None)) is None:
                chain.append(one)
        return chain, broken

    def chains(self) -> list[list[Manifest]]:
        """Return all full backups, each with those added to it. Raises BackupInvalid for anything that is damaged, or
        whose parent is missing."""
        found = self.all()
        if not found:
            raise BackupInvalid(f"{self.shelf.path}: there is no backup in it", expected="the directory of a series")
        chains: list[list[Manifest]] = []
        for one in found:
            if one.kind == "full":
                chains.append([one])
                continue
            if (gap := self._gap(one, chains[-1][-1] if chains else None)) is not None:
                raise gap
            chains[-1].append(one)
        return chains

    def _gap(self, one: Manifest, former: Manifest | None) -> BackupInvalid | None:
        """Return why a backup cannot be added to the one before it, if it cannot."""
        parent = one.parent
        assert parent is not None, "it is incremental"
        if former is None or parent.number != former.number:
            return BackupInvalid(
                f"{self.shelf.called(one.directory)}: it is added to backup {parent.number:06d}, which is missing",
                expected="the whole series",
            )
        if parent.checksum != former.checksum or one.from_revision != former.to_revision:
            return BackupInvalid(
                f"{self.shelf.called(one.directory)}: it is added to another {former.directory} than the one there",
                expected="the backups of one series",
            )
        return None

    def revision_at(self, at_ms: int) -> int:
        """Return the last revision that is known to have been there at a time. Raises BackupInvalid."""
        found = [one for one in self.found().values() if isinstance(one, Manifest)]
        known = [pair for one in found for pair in (*one.moments, (one.created_ms, one.to_revision))]
        before = [revision for when_ms, revision in known if when_ms <= at_ms]
        first = next((one.to_revision for one in found if one.kind == "full"), None)
        if first is None or not before or max(before) < first:
            raise BackupInvalid(f"{self.shelf.path}: no full backup is as old as that", expected="a later time")
        return max(before)

    def verify(self, chain: Sequence[Manifest], check: Check = unchecked) -> None:
        """Read all files of these. Raises BackupInvalid, which names the first that is not what was written."""
        for one in chain:
            with self._below(one) as below:
                for entry in one.files:
                    below.verify(entry.name, entry.size_bytes, entry.blake3, check)

    def _below(self, one: Manifest) -> Shelf:
        try:
            return self.shelf.below(one.directory)
        except FileNotFoundError as error:
            raise ShelfError(f"{self.shelf.called(one.directory)} is gone") from error

    @contextmanager
    def parts(self, chain: Sequence[Manifest]) -> Iterator[list[Part]]:
        """Give these with their directories open."""
        with ExitStack() as stack:
            yield [Part(one, stack.enter_context(self._below(one))) for one in chain]

    # --- blobs --------------------------------------------------------------------------------------------------------

    def listing(self, one: Manifest) -> dict[str, int]:
        """Return the blobs that belong to a backup: sizes by hash. Raises BackupInvalid."""
        if one.file(m.LISTING) is None:
            return {}
        found: dict[str, int] = {}
        with self._below(one) as below:
            where = below.called(m.LISTING)
            try:
                for frame in frames(BLOBS, below.pieces(m.LISTING, unchecked), where):
                    found.update(decode_blobs(frame))
            except MessageError as error:
                raise m.damaged(where, str(error)) from error
            except FileNotFoundError:
                raise m.damaged(where, "it is missing") from None
        if len(found) != one.blobs:
            raise m.damaged(where, f"it lists {len(found)} blobs, and the manifest says {one.blobs}")
        return found

    @contextmanager
    def blob(self, one: Manifest, blob: str) -> Iterator[tuple[Shelf, str]]:
        """Give where a blob of a backup is: a directory and the name of its file. Raises BackupInvalid."""
        named = dict.fromkeys((blob_file(blob, one.recipients), blob))
        """One that is not encrypted, of another backup, is as good."""
        for folders in ((m.BLOBS, blob[:2]), (one.directory, m.BLOBS, blob[:2])):
            with ExitStack() as stack:
                at = self.shelf
                try:
                    for folder in folders:
                        at = stack.enter_context(at.below(folder))
                except FileNotFoundError:
                    continue
                name = next((name for name in named if at.size_of(name) is not None), None)
                if name is not None:
                    yield at, name
                    return
        raise m.damaged(self.shelf.called(f"{m.BLOBS}/{blob[:2]}/{next(iter(named))}"), "it is missing")

    def has_blob(self, name: str) -> bool:
        """Tell whether a blob's file is there."""
        try:
            with self.shelf.below(m.BLOBS) as blobs, blobs.below(name[:2]) as part:
                return part.size_of(name) is not None
        except FileNotFoundError:
            return False

    # --- retention ----------------------------------------------------------------------------------------------------

    def clear_drafts(self) -> None:
        """Remove what was begun and never finished."""
        for name in self.shelf.names():
            if name.startswith(DRAFT):
                self.shelf.remove(name)

    def drop_before(self, keep_full: int) -> list[str]:
        """Remove the backups before the last so many full ones, the newest of them first: what is left is a series at
        any moment. Return their names."""
        names = self.names()
        full = [number for number, name in enumerate(names) if name.endswith("-full")]
        if len(full) <= keep_full:
            return []
        old = names[: full[-keep_full]]
        for name in reversed(old):
            # Under the name of none first: what is removed in part is no backup.
            gone = f"{DRAFT}{name}"
            self.shelf.remove(gone)
            self.shelf.rename(name, gone)
            self.shelf.remove(gone)
        return old

    def drop_blobs(self, kept: set[str]) -> int:
        """Remove the blobs' files that are none of these; return how many that was."""
        dropped = 0
        try:
            blobs = self.shelf.below(m.BLOBS)
        except FileNotFoundError:
            return 0
        with blobs:
            for part_name in blobs.names():
                with blobs.below(part_name) as part:
                    for name in part.names():
                        if name not in kept:
                            part.remove(name)
                            dropped += 1
        return dropped


def _reaches(chain: Sequence[Manifest], revision: int | None) -> bool:
    return revision is not None and bool(chain) and chain[-1].to_revision >= revision


def blob_file(blob: str, recipients: Sequence[str]) -> str:
    """Return the name of a blob's file: another one for each set of those for whom it is encrypted."""
    return f"{blob}.{mark_of(recipients)}{m.AGE}" if recipients else blob


def frames(kind: bytes, pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Yield the frames in what comes. Raises BackupInvalid, which names the file."""
    decoder = FrameDecoder(kind)
    try:
        for piece in pieces:
            yield from decoder.feed(piece)
        decoder.finish()
    except FrameError as error:
        raise m.damaged(where, str(error)) from error
