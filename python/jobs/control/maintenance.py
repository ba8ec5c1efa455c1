"""What of maintenance only the leader can do: say whose an operation is, and delete what is no longer kept."""

from __future__ import annotations

from typing import Final

import msgspec

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.arrayremoval import Orphans
from jobs.control.dispatch import Dispatcher
from jobs.control.fleet import Fleet
from jobs.control.leases import Leases
from jobs.control.retention import Retention
from jobs.control.surveys import Survey
from jobs.control.transitions import check, read_job
from jobs.errors import InternalError, OperationUnderWay
from jobs.maintenance import messages as m
from jobs.protocol.ids import JobId
from jobs.records import MaintenanceRecord
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Put, Store, Txn
from jobs.store import Compact as CompactOp

TRIES: Final = 32
FORGET_COMMANDS: Final = 8
"""Commands of one step: each lets the stores give back some of their history, more than any other does."""


class Maintenance:
    """Of one leadership. An operation is one job's at a time in the cluster, whatever its node: the record says whose,
    and how far it is. Its revision is the token by which that job goes on."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        retention: Retention,
        leases: Leases,
        fleet: Fleet,
        dispatcher: Dispatcher,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._retention = retention
        self._leases = leases
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._orphans = Orphans(consensus, store)

    # --- whose it is ------------------------------------------------------------------------------------------------

    async def claim(self, operation: str, job: JobId) -> m.Claimed:
        """Make an operation this job's, from where the last one left it that did not come to its end.

        What an earlier attempt of the job still does is void from now on. Raises OperationUnderWay while another job
        that runs has it.
        """
        key = keys.maintenance(operation)
        for _ in range(TRIES):
            found = self._store.get(key)
            former = None if found is None else records.decode(MaintenanceRecord, found[1])
            if former is not None and former.job != job and self._runs(former.job):
                raise OperationUnderWay(
                    f"job {former.job} is at {operation} already", expected="its end", retry_after_s=5
                )
            record = MaintenanceRecord(job=job, began_ms=wall_ms())
            if former is not None:
                record = MaintenanceRecord(job=job, began_ms=wall_ms(), cursor=former.cursor, done=former.done)
            guard = ModRevisionIs(key, EQ, 0 if found is None else found[4])
            done = await self._consensus.propose(Txn((guard,), (Put(key, records.encode(record)),)))
            check(done)
            if done.succeeded:
                return m.Claimed(done.revision, record.began_ms, record.cursor, record.done)
        raise InternalError(f"the claim of {operation} changed {TRIES} times while one was tried")

    async def keep(self, token: m.Token, cursor: bytes, done: dict[str, int]) -> int:
        """Remember how far an operation is; return the revision of its new token. Raises OperationUnderWay."""
        key = keys.maintenance(token.operation)
        found = self._store.get(key)
        if found is None:
            raise _taken(token)
        former = records.decode(MaintenanceRecord, found[1])
        if found[4] != token.revision:
            if (former.cursor, former.done) == (cursor, done) and found[4] > token.revision:
                return found[4]  # the same question again, whose answer was lost
            raise _taken(token)
        record = MaintenanceRecord(job=former.job, began_ms=former.began_ms, cursor=cursor, done=done)
        put = Put(key, records.encode(record))
        written = await self._consensus.propose(Txn((_guard(token),), (put,)), 512 + len(cursor))
        check(written)
        if not written.succeeded:
            raise _taken(token)
        return written.revision

    async def check(self, token: m.Token) -> None:
        """Raise OperationUnderWay unless the operation is still that job's."""
        await self._consensus.barrier()
        self._check(token)

    async def release(self, token: m.Token) -> None:
        """It has come to its end. Nothing happens where it is another's by now."""
        check(await self._consensus.propose(Txn((_guard(token),), (Delete(keys.maintenance(token.operation)),))))

    def _check(self, token: m.Token) -> None:
        found = self._store.get(keys.maintenance(token.operation))
        if found is None or found[4] != token.revision:
            raise _taken(token)

    def _runs(self, job: JobId) -> bool:
        stored = read_job(self._store, job)
        return stored is not None and stored.record.state is jobs.RUNNING

    # --- steps --------------------------------------------------------------------------------------------------------

    async def reached(self) -> int:
        """Return a revision that holds all that was answered before."""
        await self._consensus.barrier()
        return self._store.revision

    async def clean(self, token: m.Token, part: str, *, dry_run: bool, cursor: bytes) -> m.Cleaned:
        """Delete some of what is no longer kept, or count it."""
        self._check(token)
        match part:
            case "jobs" if dry_run:
                return await self._survey_jobs(cursor)
            case "jobs":
                counts, size_bytes, more = await self._retention.clean_jobs()
                return m.Cleaned(counts, size_bytes, b"" if more else None)
            case "audit" if dry_run:
                return m.Cleaned(await self._retention.survey_lists(), 0, None)
            case "audit":
                counts, more = await self._retention.clean_lists()
                return m.Cleaned(counts, 0, b"" if more else None)
            case "leases":
                return m.Cleaned({"leases": await self._leases.clean(dry_run=dry_run)}, 0, None)
            case "arrays":
                return await self._orphans.clean(cursor, dry_run=dry_run)
        raise InternalError(f"the leader has nothing to clean of {part}")

    async def _survey_jobs(self, cursor: bytes) -> m.Cleaned:
        survey = msgspec.msgpack.decode(cursor, type=Survey) if cursor else None
        found = await self._retention.survey_jobs(survey)
        counts = {"jobs": found.jobs, "outputs": found.outputs}
        return m.Cleaned(counts, found.size_bytes, None if found.rest is None else msgspec.msgpack.encode(found.rest))

    async def compact(self, token: m.Token, revision: int) -> m.History:
        """Make the history up to a revision unreadable; `forget` gives it back. Its events are those before."""
        self._check(token)
        events = self._store.history_events
        check(await self._consensus.propose(Txn((_guard(token),), (CompactOp(revision),))))
        return m.History(self._store.compact_revision, events, more=True)

    async def forget(self, token: m.Token) -> m.History:
        """Let the stores give back some of what is unreadable: each command does that with a little of it."""
        self._check(token)
        before = self._store.history_events
        for _ in range(FORGET_COMMANDS):
            check(await self._consensus.propose(Txn(then=(CompactOp(self._store.compact_revision),))))
        events = self._store.history_events
        return m.History(self._store.compact_revision, events, more=events < before)

    async def describe(self) -> m.Situation:
        await self._consensus.barrier()
        workers: dict[str, int] = {}
        for worker in self._fleet.views():
            workers[worker.type] = workers.get(worker.type, 0) + 1
        return m.Situation(
            leader=self._consensus.me,
            at_ms=wall_ms(),
            members=tuple(self._standing(record.id) for record in self._consensus.members.records),
            pending=self._dispatcher.pending,
            workers=workers,
            behind_ms=self._retention.behind_ms,
        )

    def _standing(self, member: str) -> m.Standing:
        is_voter = member in self._consensus.members.voters
        if member == self._consensus.me:
            return m.Standing(member, 0, 0.0, is_voter)
        seen = self._consensus.progress(member)
        lag = max(0, self._consensus.commit_index - seen.match_index)
        return m.Standing(member, lag, seen.answered_ago_s, is_voter)


def _guard(token: m.Token) -> Compare:
    return ModRevisionIs(keys.maintenance(token.operation), EQ, token.revision)


def _taken(token: m.Token) -> OperationUnderWay:
    return OperationUnderWay(f"{token.operation} is another attempt's or another job's by now")
