"""How far syncs are, for people: those whose job is here, and the conflicts of those whose target is."""

from __future__ import annotations

from typing import Final, Literal

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.queries import check_admin, decode_cursor, encode_cursor
from jobs.control.replication.bounds import ReplicationConfig
from jobs.control.replication.changing import Decided, change, unchanged
from jobs.control.transitions import check, read_job, scan
from jobs.errors import NotFound, OperationUnderWay, TooManyRequests
from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model import Conflict, ConflictPage, JobState, Reason, SyncList, SyncView
from jobs.records import ConflictRecord, SyncRecord
from jobs.service import Caller
from jobs.store import Delete, Put, Store, Txn, prefix_end

SYNC_BYTES: Final = 1_024
DELETED_A_STEP: Final = 5_000
"""Conflicts that one transaction deletes."""


class Syncs:
    def __init__(self, consensus: Consensus, store: Store, config: ReplicationConfig) -> None:
        self._consensus = consensus
        self._store = store
        self._config = config

    # --- what the API asks ------------------------------------------------------------------------------------------

    async def all(self, caller: Caller) -> SyncList:
        check_admin(caller, "see syncs")
        await self._consensus.barrier()
        now_ms = wall_ms()
        rows = scan(self._store, keys.SYNCS)
        return SyncList(
            syncs=[
                self._view(key[len(keys.SYNCS) :].decode(), records.decode(SyncRecord, value), now_ms)
                for key, value, *_ in rows
            ]
        )

    async def delete(self, caller: Caller, name: str) -> None:
        """Forget a sync of this cluster, or, as `ORIGIN/NAME`, what one of another cluster has left here."""
        check_admin(caller, "forget syncs")
        await self._consensus.barrier()
        origin, known = self._find(name)
        cursor, conflicts = keys.sync_cursor(origin, known), keys.sync_conflicts_prefix(origin, known)

        def decide() -> Decided:
            found = self._store.get(keys.sync(name))
            if found is not None:
                self._check_idle(name, records.decode(SyncRecord, found[1]).job)
            entry = audit_entry(caller, "sync.forget", name, wall_ms())
            gone = (Delete(cursor), Delete(keys.sync(name)), Delete(conflicts, prefix_end(conflicts)))
            return (unchanged(self._store, cursor), unchanged(self._store, keys.sync(name))), (*gone, entry)

        await self._drop_old_conflicts(conflicts)
        await change(self._consensus, self._store, caller, decide)

    async def conflicts(self, caller: Caller, name: str, *, limit: int, cursor: str | None) -> ConflictPage:
        """Those of this cluster's sync come first, then those of others of that name."""
        check_admin(caller, "see conflicts of syncs")
        await self._consensus.barrier()
        prefixes = [keys.sync_conflicts_prefix(origin, name) for origin in self._origins(name)]
        if not prefixes:
            self._check_kept_here(name)
        before = None if cursor is None else decode_cursor(cursor, keys.SYNC_CONFLICTS)
        found: list[Conflict] = []
        for prefix in prefixes:
            if before is not None and not before.startswith(prefix):
                continue  # on an earlier page
            end, before = before or prefix_end(prefix), None
            rows, more = self._store.range(prefix, end, limit=limit - len(found), reverse=True)
            found += [_conflict(records.decode(ConflictRecord, row[1])) for row in rows]
            if more or (len(found) == limit and prefix != prefixes[-1]):
                return ConflictPage(conflicts=found, next_cursor=encode_cursor(rows[-1][0] if rows else end))
        return ConflictPage(conflicts=found, next_cursor=None)

    # --- what nodes ask ---------------------------------------------------------------------------------------------

    async def set(self, name: str, record: SyncRecord) -> None:
        """Say how far a sync of this cluster is. Raises TooManyRequests for one more than may be."""
        key = keys.sync(name)
        if self._store.get(key) is None:
            count = self._store.count(keys.SYNCS, prefix_end(keys.SYNCS), limit=self._config.max_syncs)
            if count >= self._config.max_syncs:
                raise too_many_syncs(count)
        check(await self._consensus.propose(Txn(then=(Put(key, records.encode(record)),)), SYNC_BYTES))

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _drop_old_conflicts(self, prefix: bytes) -> None:
        """Leave no more conflicts than one transaction deletes."""
        while self._store.count(prefix, prefix_end(prefix), limit=2 * DELETED_A_STEP) == 2 * DELETED_A_STEP:
            rows, _ = self._store.range(prefix, prefix_end(prefix), limit=DELETED_A_STEP, keys_only=True)
            check(await self._consensus.propose(Txn(then=(Delete(prefix, rows[-1][0] + b"\x00"),))))

    def _find(self, name: str) -> tuple[str, str]:
        """Return the origin of a sync, and its name there. Raises NotFound."""
        own = self._config.cluster
        if self._store.get(keys.sync(name)) is not None or self._store.get(keys.sync_cursor(own, name)) is not None:
            return own, name
        origin, _, rest = name.partition("/")
        if rest and self._store.get(keys.sync_cursor(origin, rest)) is not None:
            return origin, rest
        raise NotFound(f"there is no sync {name!r:.200}")

    def _check_kept_here(self, name: str) -> None:
        """Raise NotFound for a sync whose conflicts are not here, as it is none, or has its target elsewhere."""
        row = self._store.get(keys.sync(name))
        if row is None:
            raise NotFound(f"there is no sync {name!r:.200}")
        if target := records.decode(SyncRecord, row[1]).target:
            raise NotFound(
                f"the conflicts of sync {name} are at its target, the cluster of link {target}",
                expected=f"in that cluster: jobctl replication conflicts {name}",
            )

    def _origins(self, name: str) -> list[str]:
        """Return the clusters whose syncs of this name have a target here: this one first."""
        found: list[str] = []
        for key, *_ in scan(self._store, keys.SYNC_CURSORS):
            origin, _, rest = key[len(keys.SYNC_CURSORS) :].decode().partition("/")
            if rest == name:
                found.append(origin)
        return sorted(found, key=lambda origin: (origin != self._config.cluster, origin))

    def _check_idle(self, name: str, job: JobId | None) -> None:
        stored = None if job is None else read_job(self._store, job)
        if stored is not None and not stored.record.state.is_final:
            raise OperationUnderWay(f"job {job} is at sync {name!r}", expected=f"first: jobctl cancel {job}")

    def _view(self, name: str, record: SyncRecord, now_ms: int) -> SyncView:
        since_ms = record.behind_since_ms
        return SyncView(
            name=name,
            source=record.source,
            target=record.target,
            prefix=record.prefix,
            target_prefix=record.target_prefix,
            tags=record.is_tags,
            job=record.job,
            phase=self._phase(record),
            position=Revision(record.position),
            source_revision=Revision(record.source_revision),
            lag_revisions=max(0, record.source_revision - record.position),
            lag_s=0.0 if since_ms is None else max(0, now_ms - since_ms) / 1_000,
            rows_per_s=record.rows_per_s,
            bytes_per_s=record.bytes_per_s,
            rows=record.rows,
            deleted=record.deleted,
            conflicts=record.conflicts,
            snapshots=record.snapshots,
            last_error=record.last_error,
            updated_ms=record.updated_ms,
        )

    def _phase(self, record: SyncRecord) -> Literal["comparing", "following", "stopped", "failed"]:
        """Return what a sync is at. A job that was killed has not said itself that it has ended."""
        if record.phase not in ("comparing", "following") or record.job is None:
            return record.phase
        stored = read_job(self._store, record.job)
        if stored is not None and not stored.record.state.is_final:
            return record.phase
        if stored is None or stored.record.state is JobState.COMPLETED or stored.record.reason is Reason.CANCELLED:
            return "stopped"
        return "failed"


def too_many_syncs(count: int) -> TooManyRequests:
    return TooManyRequests(
        f"there are {count} syncs already",
        expected="fewer (jobctl replication forget), or a larger replication.max_syncs",
    )


def _conflict(record: ConflictRecord) -> Conflict:
    return Conflict(
        key=record.key.decode(errors="replace"),
        at_ms=record.at_ms,
        source_revision=Revision(record.source_revision),
        target_revision=Revision(record.target_revision),
        winner=record.winner,
        deleted=record.deleted,
    )
