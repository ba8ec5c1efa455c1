"""Reading backups: into the running cluster below a prefix, and aside to prove them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs._native import Blake3, Store
from jobs.backups import manifest as m
from jobs.backups import rebuild
from jobs.backups.manifest import Manifest
from jobs.backups.series import Part, Series
from jobs.errors import BackupInvalid, BlobUnavailable
from jobs.protocol.ids import Revision
from jobs.protocol.model import ReplicationProve, ReplicationRestore, ReplicationResult, Throttle
from jobs.store import prefix_end
from jobs.workers.replication.archive import identities_of, line, series_in, told
from jobs.workers.replication.gauge import Gauge
from jobs.workers.replication.putting import put_rows
from jobs.workers.replication.scratch import scratch
from jobs.workers.replication.tagged import Tagged
from jobs.workers.replication.task import Task
from jobs.workers.transfers import in_thread

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

STORE: Final = "store"
PAGE: Final = 1_000


class _Open:
    """A series, wherever it is."""

    def __init__(self, series: Series, tagged: Tagged | None) -> None:
        self.series = series
        self.tagged = tagged

    async def bring(self, chain: list[Manifest]) -> None:
        """Have the files of these at hand."""
        if self.tagged is not None:
            await self.tagged.bring(chain)


@asynccontextmanager
async def _opened(task: Task, directory: str | None, tag: str | None, aside: Path) -> AsyncIterator[_Open]:
    if tag is not None:
        with await Tagged.open(task, tag, aside) as tagged:
            yield _Open(tagged.series, tagged)
        return
    assert directory is not None, "one of the two is given"
    async with series_in(task, directory) as series:
        yield _Open(series, None)


async def restore(task: Task, wanted: ReplicationRestore) -> ReplicationResult:
    """Raises BackupInvalid before anything is written, ReplicationConflict, and errors of `jobs.errors`."""
    gauge = Gauge(task.report, wanted.throttle)
    with told():
        async with (
            scratch(task) as aside,
            _opened(task, wanted.directory, wanted.tag, aside) as there,
        ):
            series, revision = there.series, wanted.revision
            if wanted.at_ms is not None:
                revision = await gauge.run(series.revision_at, wanted.at_ms)
            chain = await gauge.run(series.chain, revision)
            await there.bring(chain)
            identities = await in_thread(identities_of, task)
            gauge.say("verify")
            await gauge.run(series.verify, chain, gauge.look)
            gauge.say("unpack")
            store = await gauge.run(_rebuild, series, chain, aside / STORE, revision, identities, gauge)
            try:
                gauge.say("write")
                came = await put_rows(
                    task.node,
                    wanted.target_prefix,
                    lambda: _rows(store, wanted.prefix.encode()),
                    wanted.existing,
                    gauge,
                    dry_run=wanted.dry_run,
                )
                await task.report.write(came.line(dry_run=wanted.dry_run))
                return ReplicationResult(
                    operation="restore",
                    rows=came.rows,
                    bytes=gauge.done_bytes,
                    conflicts=came.kept,
                    source_revision=Revision(store.revision),
                    place=series.shelf.called(chain[-1].directory) if there.tagged is None else wanted.tag or "",
                    kind=chain[-1].kind,
                )
            finally:
                await in_thread(store.close)


def _rebuild(
    series: Series,
    chain: list[Manifest],
    directory: Path,
    revision: int | None,
    identities: list[Identity],
    gauge: Gauge,
) -> Store:
    with series.parts(chain) as parts:
        return rebuild.rebuild(parts, directory, revision=revision, identities=identities, check=gauge.look)


def _rows(store: Store, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    start, more = prefix, True
    while more:
        rows, more = store.range(start, prefix_end(prefix), limit=PAGE)
        for key, value, *_ in rows:
            yield key[len(prefix) :], value
        if rows:
            start = rows[-1][0] + b"\x00"


# --- proof -----------------------------------------------------------------------------------------------------------


async def prove(task: Task, wanted: ReplicationProve) -> ReplicationResult:
    """Restore all of a series. Raises BackupInvalid for the first that is not as it was, or does not give what the
    cluster had."""
    gauge = Gauge(task.report, Throttle())
    with told():
        async with (
            scratch(task) as aside,
            _opened(task, wanted.directory, wanted.tag, aside) as there,
        ):
            series = there.series
            chains = await gauge.run(series.chains)
            identities = await in_thread(identities_of, task)
            rows = 0
            for chain in chains:
                await there.bring(chain)
                gauge.say(f"{chain[0].directory} to {chain[-1].directory}")
                proving = _Proving(series, aside / STORE, identities, gauge)
                await task.report.write(await gauge.run(proving.prove, chain))
                rows = proving.rows
            blobs = await _prove_blobs(there, chains, identities, gauge)
            last = chains[-1][-1]
            return ReplicationResult(
                operation="prove",
                rows=rows,
                bytes=gauge.done_bytes,
                blobs=blobs,
                source_revision=Revision(last.to_revision),
                place=wanted.tag or series.shelf.called(last.directory),
                kind=last.kind,
            )


class _Proving:
    """Restores one chain after the other, each in a directory that is removed."""

    def __init__(self, series: Series, directory: Path, identities: list[Identity], gauge: Gauge) -> None:
        self._series = series
        self._directory = directory
        self._identities = identities
        self._gauge = gauge
        self._lines: list[bytes] = []
        self.rows = 0

    def prove(self, chain: list[Manifest]) -> bytes:
        """Return what is to be told."""
        self._series.verify(chain, self._gauge.step)
        try:
            with self._series.parts(chain) as parts:
                store = rebuild.rebuild(
                    parts,
                    self._directory,
                    identities=self._identities,
                    check=self._gauge.look,
                    on_part=self._compare,
                )
                store.close()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
        return b"".join(self._lines)

    def _compare(self, store: Store, part: Part) -> None:
        one = part.manifest
        found = rebuild.check_state(store, one, part.shelf.path, self._gauge.look)
        self.rows = found.rows
        how = "as the cluster had it" if one.state is not None else "not compared: the cluster had forgotten it"
        self._lines.append(line(backup=one.directory, revision=one.to_revision, keys=found.rows, state=how))


async def _prove_blobs(there: _Open, chains: list[list[Manifest]], identities: list[Identity], gauge: Gauge) -> int:
    """Read the blobs of all backups; return how many those are."""
    seen: set[str] = set()
    for chain in chains:
        for one in chain:
            if there.tagged is not None:
                if missing := await there.tagged.missing(one):
                    raise BlobUnavailable(f"{one.directory} lacks {len(missing)} blobs: {missing[0]}, …")
                seen.update(await gauge.run(there.series.listing, one))
            else:
                await gauge.run(_read_blobs, there.series, one, identities, seen, gauge)
    return len(seen)


def _read_blobs(series: Series, one: Manifest, identities: list[Identity], seen: set[str], gauge: Gauge) -> None:
    for blob in series.listing(one):
        if blob in seen:
            continue
        check_blob(series, one, blob, identities, gauge)
        seen.add(blob)


def check_blob(series: Series, one: Manifest, blob: str, identities: list[Identity], gauge: Gauge) -> None:
    """Raise BackupInvalid unless a blob of a backup is what its name says."""
    hashing = Blake3()
    with series.blob(one, blob) as (shelf, name):
        if name.endswith(m.AGE) and not identities:
            raise BackupInvalid(
                f"{shelf.called(name)}: it is encrypted, and this worker has no secret key",
                expected="workers.replication.identity_file",
            )
        shelf.plain(name, identities, hashing.update, gauge.step)
        if hashing.digest().hex() != blob:
            raise m.damaged(shelf.called(name), "its content is not what its name says")
