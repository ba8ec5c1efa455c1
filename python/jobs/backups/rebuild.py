"""A store made anew of a series of backups, in a directory of its own, as of one of its revisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs._native import CorruptError, Store
from jobs.backups import manifest as m
from jobs.backups.manifest import Manifest, State
from jobs.backups.messages import CHANGES, MessageError, decode_changes, decode_changes_head
from jobs.backups.replay import Replay, ReplayError
from jobs.backups.series import Part, frames, unchecked
from jobs.backups.shelf import PIECE_BYTES, Check, Shelf, said

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

MAX_STORE_BYTES: Final = 1 << 40
"""Of the address space; the disk bounds it."""
FIRST_KEY: Final = b"\x00"
END_KEY: Final = b"\xff"
"""All keys are between the two."""
ONE_PIECE: Final = 1 << 62
DIGEST_ROWS: Final = 100_000
"""A call looks at so many, and then asks whether to go on."""


def rebuild(
    parts: Sequence[Part],
    directory: Path,
    *,
    revision: int | None = None,
    identities: Sequence[Identity] = (),
    max_bytes: int = MAX_STORE_BYTES,
    check: Check = unchecked,
    on_part: Callable[[Store, Part], None] = lambda store, part: None,
) -> Store:
    """Return a new store in this directory with what these hold, a full one and those added to it, as of a revision, by
    default the last. All files have been verified. `on_part` sees the store after each of them.

    Raises BackupInvalid, ShelfError and NativeError; what is in the directory is of no use then.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(str(directory), max_bytes=max_bytes)
    try:
        for part in parts:
            plain = part.plain or _unpacked(part, directory, list(identities), check)
            try:
                _take_in(store, part, plain, revision, check)
                on_part(store, part)
            finally:
                plain.unlink(missing_ok=True)
        wanted = parts[-1].manifest.to_revision if revision is None else revision
        if store.revision != wanted:
            where = parts[-1].shelf.path
            raise m.damaged(where, f"it gives revision {store.revision}, and {wanted} is wanted")
    except BaseException:
        store.close()
        raise
    return store


def state_of(store: Store, revision: int = 0, check: Check = unchecked) -> State:
    """Return what all keys of a store come to at a revision, 0 for the newest. Raises CompactedError."""
    cursor, revision = b"", revision or store.revision
    while True:
        pieces, cursor = store.digests(
            FIRST_KEY, END_KEY, cursor=cursor, revision=revision, rows=ONE_PIECE, limit=2, max_rows=DIGEST_ROWS
        )
        check(0)
        if not cursor:
            break
    if not pieces:
        return State(digest="0" * 64, rows=0, size_bytes=0)
    (_, digest, rows, size_bytes) = pieces[0]
    return State(digest=digest.hex(), rows=rows, size_bytes=size_bytes)


def check_state(store: Store, one: Manifest, where: str, check: Check = unchecked) -> State:
    """Return what all keys come to. Raises BackupInvalid unless that is what the cluster had when it was backed up."""
    found = state_of(store, check=check)
    if one.state is not None and found != one.state:
        raise m.damaged(
            where,
            f"what it gives differs from what the cluster had: {found.rows} keys with digest {found.digest[:16]}, "
            f"and there were {one.state.rows} with {one.state.digest[:16]}",
        )
    return found


def _take_in(store: Store, part: Part, plain: Path, until: int | None, check: Check) -> None:
    one = part.manifest
    if one.kind == "full":
        install(store, plain, part.shelf.called(m.SNAPSHOT), one.to_revision)
    else:
        follow(store, _pieces(plain), one, part.shelf.called(m.CHANGES), until, check)


def install(store: Store, file: Path, where: str, revision: int) -> None:
    """Take in a snapshot, which is moved. Raises BackupInvalid unless it is a whole one of this revision."""
    try:
        store.install(str(file))
    except CorruptError as error:
        raise m.damaged(where, f"it is no whole snapshot: {error}") from error
    if store.revision != revision:
        raise m.damaged(where, f"it is of revision {store.revision}, and the manifest says {revision}")


def follow(
    store: Store, pieces: Iterator[bytes], one: Manifest, where: str, until: int | None = None, check: Check = unchecked
) -> int:
    """Apply the changes of an incremental backup to a store that has all before them; return how many those are."""
    replay = Replay(store)
    found = frames(CHANGES, pieces, where)
    try:
        head = decode_changes_head(next(found, b""))
        if (head.from_revision, head.to_revision) != (one.from_revision, one.to_revision):
            raise ReplayError(f"its changes are from {head.from_revision} to {head.to_revision}")
        goes_on = True
        for frame in found:
            goes_on = goes_on and replay.feed(decode_changes(frame), until)
            check(0)
        replay.finish()
        if goes_on:
            if store.revision != one.to_revision:
                raise ReplayError(f"it ends with revision {store.revision}, not {one.to_revision}")
            replay.set_leases(dict(head.leases))
    except (ReplayError, MessageError) as error:
        raise m.damaged(where, str(error)) from error
    return replay.changes


def _unpacked(part: Part, directory: Path, identities: list[Identity], check: Check) -> Path:
    """Return a file of ours with the content of a backup, decrypted if need be."""
    entry = part.manifest.file(m.SNAPSHOT if part.manifest.kind == "full" else m.CHANGES)
    assert entry is not None, "a manifest names it"
    plain = directory / ".plain"
    write_plain(part.shelf, entry.name, plain, identities, check)
    return plain


def write_plain(shelf: Shelf, name: str, plain: Path, identities: list[Identity], check: Check = unchecked) -> None:
    """Write what a file holds, decrypted if need be, to one of ours. Raises BackupInvalid and ShelfError."""
    with said(f"cannot write {plain}"):
        plain.unlink(missing_ok=True)
        file = plain.open("xb", buffering=0)

    def write(piece: bytes) -> None:
        left = memoryview(piece)
        with said(f"cannot write {plain}"):
            while left:
                left = left[file.write(left) :]

    with file:
        try:
            shelf.plain(name, identities, write, check)
        except BaseException as error:
            plain.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise m.damaged(shelf.called(name), "it is missing") from error
            raise


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
