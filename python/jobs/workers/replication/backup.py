"""Making a backup: the store of the cluster, full or what has changed since the last one, and the blobs it refers to.

The state is taken first, all of it of one revision; then it is restored aside and compared with what the cluster says
of that revision; then the blobs come, and the manifest, and last of all the backup has its name.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, records
from jobs._native import CorruptError, Store, __version__
from jobs.backups import manifest as m
from jobs.backups import messages, rebuild
from jobs.backups.crypt import check_recipients
from jobs.backups.manifest import FileEntry, Manifest, Parent, State
from jobs.backups.series import DRAFT, Part, Series, blob_file
from jobs.backups.shelf import Draft, Shelf, ShelfError
from jobs.clock import wall_ms
from jobs.errors import BackupInvalid, BlobUnavailable, Compacted, InternalError, InvalidRequest
from jobs.protocol.ids import CLUSTER_HEADER, Revision
from jobs.protocol.model import ReplicationBackup, ReplicationResult, StoreState
from jobs.records import MomentRecord
from jobs.sealed import seal
from jobs.workers.replication.archive import FrameStream, identities_of, line, reading, series_in, told
from jobs.workers.replication.blobs import Copied, Copying, find_blobs, write_listing
from jobs.workers.replication.gauge import Gauge
from jobs.workers.replication.scratch import scratch
from jobs.workers.replication.task import Task
from jobs.workers.transfers import again, in_thread

STORE: Final = "store"
PLAIN: Final = "plain"
_TOLD_LOST: Final = 5
AddBlobs: TypeAlias = Callable[[Manifest, Shelf], Awaitable[tuple[Manifest, Copied]]]


async def backup(task: Task, wanted: ReplicationBackup) -> ReplicationResult:
    """Raises errors of `jobs.errors` and TaskError. The series is as it was then, unless the text says otherwise."""
    recipients = check_recipients(wanted.recipients)
    with told():
        async with scratch(task) as aside:
            if wanted.tag is not None:
                from jobs.workers.replication import tagged  # which stands on this module

                return await tagged.backup(task, wanted, wanted.tag, recipients, aside)
            assert wanted.directory is not None, "one of the two is given"
            async with series_in(task, wanted.directory, make=True) as series:
                with series.shelf.locked():
                    making = Making(task, wanted, series, aside, recipients)
                    made, copied = await making.make(making.add_blobs)
                    await making.drop_old()
            return making.result(made, copied, series.shelf.called(made.directory))


class Content(Struct, frozen=True, kw_only=True):
    """The state that was taken."""

    cluster: str
    kind: str
    from_revision: int
    to_revision: int
    taken_ms: int
    file: FileEntry
    rows: int = 0
    """Changes that it holds."""
    moments: list[tuple[int, int]] = []
    leases: list[tuple[int, int]] = []


class Making:
    """One backup; the series is locked."""

    def __init__(
        self,
        task: Task,
        wanted: ReplicationBackup,
        series: Series,
        aside: Path,
        recipients: Sequence[str],
        bring: Callable[[Sequence[Manifest]], Awaitable[None]] | None = None,
    ) -> None:
        """`bring` has the files of former backups at hand where they are elsewhere."""
        self._task = task
        self._wanted = wanted
        self._series = series
        self._aside = aside
        self._bring = bring
        self.recipients = list(recipients)
        self.gauge = Gauge(task.report, wanted.throttle)
        self._former: list[Manifest] = []
        """What this one can be added to: a full one, and those added to it."""
        self._rows = 0

    async def make(self, add_blobs: AddBlobs) -> tuple[Manifest, Copied]:
        """Return what was made, under its name by now."""
        shelf = self._series.shelf
        await self.gauge.run(self._series.clear_drafts)
        await self._look_back()
        await self.gauge.run(self._check_sealed)
        names = self._series.names()
        number = int(names[-1][:6]) + 1 if names else 1
        name = f"{DRAFT}{number:06d}"
        async with AsyncExitStack() as stack:
            stack.push_async_callback(in_thread, shelf.remove, name)
            draft = stack.enter_context(await in_thread(shelf.make, name))
            one = await self._take_state(draft, number)
            copied = Copied()
            if self._wanted.blobs:
                one, copied = await add_blobs(one, draft)
            one = seal(one)
            await self.gauge.run(self._seal, one, draft)
        return one, copied

    def _seal(self, one: Manifest, draft: Shelf) -> None:
        draft.put(m.FILE, m.encode(one))
        draft.sync()  # all names in it, before it has its own
        self._series.shelf.rename(f"{DRAFT}{one.number:06d}", one.directory)

    def result(self, made: Manifest, copied: Copied, place: str) -> ReplicationResult:
        """Return what it came to. Raises BlobUnavailable when it lacks blobs that something refers to."""
        if made.lost:
            some = ", ".join(made.lost[:_TOLD_LOST]) + (", …" if len(made.lost) > _TOLD_LOST else "")
            raise BlobUnavailable(
                f"{place} is made, and whole but for {len(made.lost)} blobs that no node gave: {some}",
                expected="the nodes that have them to run",
            )
        return ReplicationResult(
            operation="backup",
            rows=made.state.rows if made.kind == "full" and made.state is not None else self._rows,
            bytes=self.gauge.done_bytes,
            blobs=copied.blobs,
            source_revision=Revision(made.to_revision),
            place=place,
            kind=made.kind,
        )

    async def say(self, note: str) -> None:
        await self._task.report.write(line(note=note))

    # --- what there is already --------------------------------------------------------------------------------------

    async def _look_back(self) -> None:
        """Read what the series has that this one can be added to. Raises BackupInvalid for another cluster's."""
        try:
            self._former = await self.gauge.run(self._series.chain) if self._series.names() else []
        except (BackupInvalid, ShelfError) as error:
            if self._wanted.kind == "incremental":
                raise
            # One that is damaged must not stand in the way of sound ones.
            await self.say(f"a full one, as the series cannot be added to: {error}")
            self._former = []

    def _check_sealed(self) -> None:
        """Raise InvalidRequest where what was encrypted so far would go on for everybody to read."""
        if self.recipients:
            return
        for name in reversed(self._series.names()):
            with suppress(BackupInvalid, ShelfError):
                if not self._series.load(name).recipients:
                    return
                raise InvalidRequest(
                    f"{self._series.shelf.called(name)} is encrypted, and what is to be added to it is not",
                    field="$.recipients",
                    expected="a public key of age, or another series",
                )

    def _check_cluster(self, cluster: str) -> None:
        for name in self._series.names():
            with suppress(BackupInvalid, ShelfError):
                other = self._series.load(name)
                if other.cluster != cluster:
                    raise InvalidRequest(
                        f"{self._series.shelf.path} has backups of the cluster {other.cluster or '(none)'}, and this "
                        f"is {cluster or 'a node that is alone'}",
                        field="$.directory",
                        expected="another directory",
                    )

    # --- the state --------------------------------------------------------------------------------------------------

    async def _take_state(self, draft: Shelf, number: int) -> Manifest:
        """Return the manifest of what was taken, and proven if that is wanted."""
        one = await self._manifest(await self._take(draft), number)
        if not self._wanted.prove:
            return one
        try:
            await self._prove(one, draft)
        except (BackupInvalid, ShelfError) as error:
            if one.kind == "full" or self._wanted.kind == "incremental":
                raise
            await self.say(f"a full one, as what it would be added to does not restore: {error}")
            self._former = []
            for entry in one.files:
                await in_thread(draft.remove, entry.name)
            return await self._take_state(draft, number)
        return one

    async def _take(self, draft: Shelf) -> Content:
        wanted = self._wanted
        if (
            wanted.kind == "full"
            or not self._former
            or (wanted.kind == "auto" and len(self._former) >= wanted.full_every)
        ):
            if wanted.kind == "incremental":
                raise InvalidRequest(
                    f"{self._series.shelf.path} has no backup to which one could be added",
                    field="$.kind",
                    expected="full or auto",
                )
            return await again(lambda: self._take_snapshot(draft))
        try:
            await self._check_continues(self._former[-1])
            return await again(lambda: self._take_changes(draft, self._former[-1]))
        except (Compacted, InvalidRequest) as error:
            if wanted.kind == "incremental":
                raise
            await self.say(f"a full one, as {error.detail}")
            self._former = []
            return await again(lambda: self._take_snapshot(draft))

    async def _check_continues(self, former: Manifest) -> None:
        """Raise InvalidRequest unless the last backup is of this node. The proof finds that out, and ids of clusters
        tell it: this is for nodes in none, of which no proof is wanted."""
        if self._wanted.prove or former.cluster or former.state is None:
            return
        if await self._state(former.to_revision) != former.state:
            raise InvalidRequest(
                f"{self._series.shelf.called(former.directory)} is not of this node",
                field="$.directory",
                expected="another directory",
            )

    async def _take_snapshot(self, draft: Shelf) -> Content:
        async with reading(self._task.node, "/v1/replication/snapshot", {}) as (answer, pieces):
            cluster = answer.headers.get(CLUSTER_HEADER.lower(), "")
            await self.gauge.run(self._check_cluster, cluster)
            self.gauge.say("snapshot", int(answer.headers.get("content-length", "0")))
            async with self._writing(draft, m.SNAPSHOT) as files:
                async for piece in pieces:
                    await self.gauge.run(files.write, piece)
                    await self.gauge.advance(len(piece))
                entry = await self.gauge.run(files.finish)
        taken_ms = wall_ms()
        revision = await self.gauge.run(self._revision_of, draft, entry.name)
        return Content(
            cluster=cluster, kind="full", from_revision=0, to_revision=revision, taken_ms=taken_ms, file=entry
        )

    def _revision_of(self, draft: Shelf, name: str) -> int:
        """Return the revision of the snapshot that was written. Raises BackupInvalid unless that is whole."""
        try:
            if self.recipients:
                return Store.snapshot_revision(str(self._aside / PLAIN))
            with draft.path_of(name) as path:
                return Store.snapshot_revision(path)
        except CorruptError as error:
            raise m.damaged(draft.called(name), f"what the node gave is no whole snapshot: {error}") from error

    async def _take_changes(self, draft: Shelf, former: Manifest) -> Content:
        query = {"after": former.to_revision}
        async with reading(self._task.node, "/v1/replication/changes", query) as (_, pieces):
            self.gauge.say("changes")
            stream, tally = FrameStream(messages.CHANGES), _Tally(former.to_revision)
            async with self._writing(draft, m.CHANGES) as files:
                async for piece in pieces:
                    for frame in stream.feed(piece):
                        tally.take(frame)
                        if tally.head is not None and tally.head.cluster != former.cluster:
                            await self.gauge.run(self._check_cluster, tally.head.cluster)
                    await self.gauge.run(files.write, piece)
                    await self.gauge.advance(len(piece))
                stream.finish()
                entry = await self.gauge.run(files.finish)
        head = tally.finish()
        self._rows = tally.changes
        return Content(
            cluster=head.cluster,
            kind="incremental",
            from_revision=head.from_revision,
            to_revision=head.to_revision,
            taken_ms=wall_ms(),
            file=entry,
            rows=tally.changes,
            moments=tally.moments[-m.MAX_MOMENTS :],
            leases=head.leases,
        )

    @asynccontextmanager
    async def _writing(self, draft: Shelf, name: str) -> AsyncIterator[_Files]:
        files = await self.gauge.run(_Files, draft, name, self.recipients, self._aside)
        try:
            yield files
        finally:
            await in_thread(files.abandon)

    async def _manifest(self, content: Content, number: int) -> Manifest:
        former = self._former[-1] if content.kind == "incremental" else None
        return Manifest(
            cluster=content.cluster,
            number=number,
            kind="full" if former is None else "incremental",
            parent=None if former is None else Parent(number=former.number, checksum=former.checksum),
            from_revision=content.from_revision,
            to_revision=content.to_revision,
            created_ms=content.taken_ms,
            release=__version__,
            moments=content.moments,
            leases=content.leases,
            files=[content.file],
            state=await self._state(content.to_revision),
            has_blobs=self._wanted.blobs,
            recipients=self.recipients,
        )

    async def _state(self, revision: int) -> State | None:
        """Return what the cluster says that its keys come to at the revision."""
        if revision == 0:
            return None
        try:
            found = await again(
                lambda: self._task.node.get("/v1/replication/state", StoreState, {"revision": revision})
            )
        except Compacted as error:
            await self.say(f"not compared with the cluster: {error.detail}")
            return None
        return State(digest=found.digest, rows=found.rows, size_bytes=found.bytes)

    # --- the proof --------------------------------------------------------------------------------------------------

    async def _prove(self, one: Manifest, draft: Shelf) -> None:
        self.gauge.say("proof")
        chain = self._former if one.kind == "incremental" else []
        identities = []
        if any(former.recipients for former in chain):
            if self._task.identity_file is None:
                await self.say("not proven: what it is added to is encrypted, and this worker has no secret key")
                return
            identities = await in_thread(identities_of, self._task)
        if self._bring is not None:
            await self._bring(chain)

        def restore() -> None:
            for entry in one.files:
                draft.verify(entry.name, entry.size_bytes, entry.blake3, self.gauge.look)
            self._series.verify(chain, self.gauge.look)
            plain = self._aside / PLAIN if self.recipients else None
            directory = self._aside / STORE
            try:
                with self._series.parts(chain) as parts:
                    parts.append(Part(one, draft, plain))
                    store = rebuild.rebuild(parts, directory, identities=identities, check=self.gauge.look)
                try:
                    rebuild.check_state(store, one, self._series.shelf.called(one.directory), self.gauge.look)
                finally:
                    store.close()
            finally:
                shutil.rmtree(directory, ignore_errors=True)

        await self.gauge.run(restore)

    # --- blobs ------------------------------------------------------------------------------------------------------

    async def add_blobs(self, one: Manifest, draft: Shelf) -> tuple[Manifest, Copied]:
        """Have all blobs in the series that something refers to, and a list of them in the backup."""
        copying = Copying(self._task, self.gauge, self._series, self.recipients)
        found = await find_blobs(self._task.node, one.to_revision)
        copied = await copying.copy(found)
        return await self.listed(one, draft, copied), copied

    async def listed(self, one: Manifest, draft: Shelf, copied: Copied) -> Manifest:
        """Return the manifest with the list of the blobs, which is written."""
        entry = await self.gauge.run(write_listing, draft, copied.sizes)
        return replace(one, files=[*one.files, entry], blobs=len(copied.sizes), lost=sorted(copied.lost)[: m.MAX_LOST])

    # --- retention --------------------------------------------------------------------------------------------------

    async def drop_old(self) -> None:
        """Remove what is not to be kept any longer."""
        if self._wanted.keep_full is None:
            return
        dropped = await self.gauge.run(self._series.drop_before, self._wanted.keep_full)
        if dropped:
            await self.say(f"removed: {', '.join(dropped)}")
            await self.gauge.run(self._drop_blobs)

    def _drop_blobs(self) -> None:
        kept: set[str] = set()
        for one in self._series.all():
            kept.update(blob_file(blob, one.recipients) for blob in self._series.listing(one))
        self._series.drop_blobs(kept)


class _Files:
    """The file of a backup that is being written, and beside it the same unencrypted if it is to be encrypted."""

    def __init__(self, draft: Shelf, name: str, recipients: list[str], aside: Path) -> None:
        self._name = name + m.AGE if recipients else name
        # A former try may have left some of it.
        draft.remove(self._name)
        self._main = draft.create(self._name, recipients)
        self._plain: Draft | None = None
        if recipients:
            with Shelf.open(aside) as shelf:
                shelf.remove(PLAIN)
                self._plain = shelf.create(PLAIN)

    def write(self, piece: bytes) -> None:
        self._main.write(piece)
        if self._plain is not None:
            self._plain.write(piece)

    def finish(self) -> FileEntry:
        if self._plain is not None:
            self._plain.finish()
        written = self._main.finish()
        return FileEntry(name=self._name, size_bytes=written.size_bytes, blake3=written.blake3)

    def abandon(self) -> None:
        self._main.abandon()
        if self._plain is not None:
            self._plain.abandon()


class _Tally:
    """What of changes is to be told, and whether they are all there."""

    def __init__(self, after: int) -> None:
        self._revision = after
        self.head: messages.ChangesHead | None = None
        self.moments: list[tuple[int, int]] = []
        self.changes = 0

    def take(self, frame: bytes) -> None:
        """Raises InternalError for what no node says."""
        try:
            if self.head is None:
                self.head = messages.decode_changes_head(frame)
                return
            for revision, key, value, *_ in messages.decode_changes(frame):
                if revision not in (self._revision, self._revision + 1):
                    raise InternalError(f"the node left out the changes between {self._revision} and {revision}")
                self._revision = revision
                self.changes += 1
                if value is not None and key.startswith(keys.MOMENTS):
                    moment = records.decode(MomentRecord, value)
                    self.moments.append((keys.time_of(keys.MOMENTS, key), moment.revision))
        except messages.MessageError as error:
            raise InternalError(f"what the node said cannot be read: {error}") from error

    def finish(self) -> messages.ChangesHead:
        if self.head is None or self._revision != self.head.to_revision:
            raise InternalError(f"the node's changes end with revision {self._revision}")
        return self.head
