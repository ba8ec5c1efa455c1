"""The command `jobs-node restore`: a new cluster of a backup, on a node that has nothing yet.

All is made in a directory of its own inside `node.data_dir`, with which a node does not start. What is left of a
restore that was broken off is removed by the next one.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from jobs._native import Blobs, Endpoint, NativeError
from jobs.backups import manifest as m
from jobs.backups import rebuild
from jobs.backups.crypt import IdentityError, read_identities
from jobs.backups.manifest import Manifest
from jobs.backups.renewal import RenewalError, renew
from jobs.backups.series import Series, unchecked
from jobs.backups.shelf import Shelf, ShelfError, said
from jobs.clock import wall_ms
from jobs.cluster.cluster import KEY_FILE
from jobs.cluster.file import Belonging, save
from jobs.cluster.recovery import ANYWHERE
from jobs.config import NodeConfig
from jobs.control.secretkeys import keys_in_use, read_key
from jobs.durable import sync_directory
from jobs.errors import BackupInvalid, JobsError
from jobs.secrets.keyring import FILE as SECRET_KEY_FILE

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNCONFIRMED: Final = 2
UNFINISHED: Final = ".restoring"
"""Directory inside `node.data_dir` in which all is made. A node that finds it does not start."""


class RestoreError(Exception):
    """A restore cannot be begun; the text says why and what to do."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What is to be restored."""

    directory: Path
    revision: int | None = None
    at_ms: int | None = None
    identity_file: Path | None = None


def restore(config: NodeConfig, wanted: Wanted, *, confirmed: bool) -> int:
    """Say what a backup holds and, once that is confirmed, make a node of it; return the exit code."""
    try:
        with Shelf.open(wanted.directory.absolute()) as shelf:
            restoring = _Restoring(config, Series(shelf), wanted)
            print(restoring.plan(), file=sys.stderr)
            if not confirmed:
                print("Nothing was changed. To do it: the same command with --yes", file=sys.stderr)
                return EXIT_UNCONFIRMED
            print(restoring.carry_out())
    except (NativeError, RestoreError, ShelfError, IdentityError, RenewalError, JobsError, OSError) as error:
        print(f"jobs-node restore: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def unfinished(data_dir: Path) -> str | None:
    """Return why a node must not start with this directory, if a restore into it was broken off."""
    if not (data_dir / UNFINISHED).exists():
        return None
    return (
        f"{data_dir}: a restore of a backup did not come to its end here: do it again (jobs-node restore), "
        "or empty the directory"
    )


class _Restoring:
    def __init__(self, config: NodeConfig, series: Series, wanted: Wanted) -> None:
        self._config = config
        self._series = series
        self._data_dir = config.node.data_dir
        self._check_empty()
        self._identities: list[Identity] = [] if wanted.identity_file is None else read_identities(wanted.identity_file)
        self._revision = wanted.revision
        if wanted.at_ms is not None:
            self._revision = series.revision_at(wanted.at_ms)
        self._chain = series.chain(self._revision)
        self._blobs = self._wanted_blobs()
        self._check_readable()

    def plan(self) -> str:
        """Return what is going to be done."""
        last, first = self._chain[-1], self._chain[0]
        revision = last.to_revision if self._revision is None else self._revision
        parts = first.directory if last is first else f"{first.directory} to {last.directory}"
        when = datetime.fromtimestamp(last.created_ms / 1_000, UTC).isoformat(timespec="seconds")
        lost = sorted({blob for one in self._chain for blob in one.lost})
        return f"""\
{self._data_dir} becomes the first node of a new cluster, with revision {revision} of the cluster
{last.cluster or "(a node that was alone)"}: {parts} of {self._series.shelf.path}, the last of {when},
and {len(self._blobs)} blobs{f"; {len(lost)} more were lost before the backup" if lost else ""}.
LOST is what was acknowledged after that revision. Jobs that ran then are run again as their retries allow, as
after the loss of a worker. The nodes of the old cluster must not run on: they would do the same work."""

    def carry_out(self) -> str:
        """Do it, and return what to say. Whatever is raised, there is nothing then, as before."""
        self._series.verify(self._chain)
        making = self._data_dir / UNFINISHED
        with self._alone():
            self._begin(making)
            try:
                told = self._make(making)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
            self._finish(making)
        return told

    def _make(self, making: Path) -> str:
        with self._series.parts(self._chain) as parts:
            store = rebuild.rebuild(
                parts,
                making / "store",
                revision=self._revision,
                identities=self._identities,
                max_bytes=2 * self._config.store.max_bytes,
            )
        try:
            if store.revision == self._chain[-1].to_revision:
                rebuild.check_state(store, self._chain[-1], self._series.shelf.path)
            revision = store.revision
            here = self._put_blobs(making / "blobs")
            name = f"{self._chain[-1].directory} at revision {revision}"
            missing = renew(store, self._member(), here.__contains__, now_ms=wall_ms(), came_from=name)
            # The log begins behind it: without it the store would be one that has lost its log.
            store.snapshot()
            key = keys_in_use(read_key(store))
        finally:
            store.close()
        told = f"; {missing} blobs that the catalogue names were not in the backup" if missing else ""
        if key:
            told += (
                f"; its secrets are encrypted with key {', '.join(key)}, which no backup has: put a copy of the old "
                f"node's {SECRET_KEY_FILE} into {self._data_dir} first"
            )
        return (
            f"restored {name}{told}; start the node (systemctl start jobs-node), then let others join: "
            "jobctl cluster ticket"
        )

    # --- before anything is written ---------------------------------------------------------------------------------

    def _check_empty(self) -> None:
        if not self._data_dir.exists():
            return
        if (owner := self._data_dir.stat().st_uid) != os.geteuid():
            raise RestoreError(
                f"{self._data_dir} is uid {owner}'s, and so is the node that is to read what is restored: restore "
                f"as that user (sudo -u '#{owner}' jobs-node restore …)"
            )
        if (self._data_dir / UNFINISHED).exists():
            return  # all of it is of a restore that was broken off
        if found := [one.name for one in self._data_dir.iterdir() if not is_vacant(one)]:
            raise RestoreError(
                f"{self._data_dir} is not empty ({', '.join(sorted(found)[:5])}): a backup is restored into an empty "
                "node.data_dir, so that nothing of a node is overwritten"
            )

    def _wanted_blobs(self) -> dict[str, Manifest]:
        """Return the blobs that belong to the state, each with a backup whose it is."""
        wanted: dict[str, Manifest] = {}
        # Up to two lists: what is referred to between two backups is in one of them.
        for one in self._chain[-2:]:
            wanted.update(dict.fromkeys(self._series.listing(one), one))
        return wanted

    def _check_readable(self) -> None:
        """Find what is missing, and keys that do not fit, before there is anything to be thrown away."""
        for blob, one in self._blobs.items():
            with self._series.blob(one, blob):
                pass
        sealed = next((one for one in self._chain if one.recipients), None)
        if sealed is not None and not self._identities:
            with self._series.parts([sealed]) as (part,):
                where = part.shelf.path
            raise BackupInvalid(
                f"{where}: it is encrypted for {', '.join(sealed.recipients)}", expected="--identity FILE"
            )
        with self._series.parts(self._chain) as parts:
            for part in parts:
                for entry in part.manifest.files:
                    part.shelf.check_key(entry.name, self._identities)

    # --- the work -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only restore into the directory, which is there by then. Raises RestoreError."""
        with said(f"cannot write {self._data_dir}"):
            self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RestoreError(f"{self._data_dir}: another restore into it is under way") from None
            self._check_empty()  # another one may have come to its end meanwhile
            yield
        finally:
            os.close(descriptor)

    def _begin(self, making: Path) -> None:
        with said(f"cannot write {self._data_dir}"):
            making.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._data_dir)  # before anything else can be there
            for left in (*making.iterdir(), *self._data_dir.iterdir()):
                if left == making or left.name == "lost+found":
                    continue
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    def _put_blobs(self, directory: Path) -> set[str]:
        """Put the blobs of the backup into a store of blobs. Raises BackupInvalid for one that is damaged."""
        store = Blobs(str(directory))
        try:
            for blob, one in self._blobs.items():
                writer = store.add()
                try:
                    with self._series.blob(one, blob) as (shelf, name):
                        where = shelf.called(name)
                        shelf.plain(name, self._identities, writer.write, unchecked)
                    found, _, _ = writer.finish()
                finally:
                    writer.abandon()
                if found != blob:
                    raise m.damaged(where, "its content is not what its name says")
        finally:
            store.close()
        return set(self._blobs)

    def _member(self) -> str:
        """Return the id that the node is going to have."""
        if not self._config.cluster.listen:
            return self._config.node.id
        key = self._data_dir / UNFINISHED / KEY_FILE
        endpoint = Endpoint(str(key), bind=ANYWHERE, cluster=secrets.token_hex(16), node=self._config.node.id)
        try:
            return endpoint.id
        finally:
            endpoint.close()

    def _finish(self, making: Path) -> None:
        """Everything is whole and on the disk: give it its place, and let the node start with it."""
        # Another cluster, so that the nodes of the old one, should they come back, are strangers and this one to them.
        save(making, Belonging(cluster=secrets.token_hex(16), founder=True))
        sync_directory(making)
        for one in sorted(making.iterdir()):
            one.rename(self._data_dir / one.name)
        sync_directory(self._data_dir)
        making.rmdir()
        sync_directory(self._data_dir)


def is_vacant(path: Path) -> bool:
    """Tell whether something in a node's directory is nothing of the node's: made ahead of it, or come with a disk."""
    return path.name == "lost+found" or (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def moment_of(text: str) -> int:
    """Return a time in ms of Unix time. Raises ArgumentTypeError for one that is none, or has no zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment; for example 2026-01-31T14:00:00Z") from None
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone: add Z, or an offset such as +02:00")
    return int(found.timestamp() * 1_000)
