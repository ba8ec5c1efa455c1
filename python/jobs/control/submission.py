"""Takes jobs in: checks, bounds, idempotency keys, one transaction for all of a request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.dispatch import Dispatcher
from jobs.control.newjobs import JobMaker, NewJob
from jobs.control.transitions import Change, Transitions, check, view
from jobs.errors import IdempotencyConflict, InternalError, QueueFull
from jobs.protocol.ids import Revision
from jobs.protocol.model import JobSubmit, Submitted
from jobs.records import IdempotencyRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, Op, Put, Store, Txn, VersionIs

TRIES: Final = 16


class _New(Struct, frozen=True):
    """A job of a request, and what its idempotency key stands for."""

    index: int
    job: NewJob
    idempotency_key: bytes | None
    body_sha256: bytes

    def ops(self) -> tuple[Op, ...]:
        if self.idempotency_key is None:
            return self.job.ops()
        known = IdempotencyRecord(job=self.job.id, body_sha256=self.body_sha256)
        return (*self.job.ops(), Put(self.idempotency_key, records.encode(known)))


class Submission:
    """The way in."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        dispatcher: Dispatcher,
        maker: JobMaker,
        *,
        max_pending: int,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._dispatcher = dispatcher
        self._max_pending = max_pending
        self._maker = maker
        self.submitted_total = 0

    async def submit(self, caller: Caller, submitted: Sequence[JobSubmit]) -> list[Submitted]:
        """Store all jobs or none; those whose idempotency key is known already are answered with what it made."""
        self._check_room(len(submitted))
        now_ms = wall_ms()
        one = len(submitted) == 1
        news = [
            self._prepare(index, job, caller.uid, now_ms, "$" if one else f"$.jobs[{index}]")
            for index, job in enumerate(submitted)
        ]
        for _ in range(TRIES):
            answers: dict[int, Submitted] = {}
            fresh: dict[bytes, _New] = {}
            for new in news:
                known = self._known(new, fresh)
                if known is not None:
                    answers[new.index] = known
                else:
                    fresh.setdefault(new.idempotency_key or new.job.id.encode(), new)
            if fresh and not await self._store_all(list(fresh.values()), answers):
                continue
            for new in news:
                if new.index not in answers:
                    assert new.idempotency_key is not None
                    twin = answers[fresh[new.idempotency_key].index]
                    answers[new.index] = Submitted(job=twin.job, created=False)
            return [answers[index] for index in range(len(submitted))]
        raise InternalError(f"idempotency keys changed {TRIES} times while the jobs were stored")

    def _prepare(self, index: int, job: JobSubmit, owner: int, now_ms: int, where: str) -> _New:
        new = self._maker.make(job, owner, now_ms, where)
        return _New(
            index=index,
            job=new,
            idempotency_key=None if job.idempotency_key is None else keys.idempotency(owner, job.idempotency_key),
            body_sha256=hashlib.sha256(new.spec).digest() if job.idempotency_key is not None else b"",
        )

    def _known(self, new: _New, fresh: dict[bytes, _New]) -> Submitted | None:
        """Return the job that the idempotency key made before. Raises IdempotencyConflict for another body."""
        if new.idempotency_key is None:
            return None
        twin = fresh.get(new.idempotency_key)
        if twin is not None:
            self._check_same(twin.body_sha256, new, "earlier in this request")
            return None
        found = self._store.get(new.idempotency_key)
        if found is None:
            return None
        known = records.decode(IdempotencyRecord, found[1])
        self._check_same(known.body_sha256, new, f"for job {known.job}")
        stored = self._transitions.read_existing(known.job)
        return Submitted(job=view(known.job, stored.record, stored.revision), created=False)

    def _check_same(self, body_sha256: bytes, new: _New, used: str) -> None:
        if body_sha256 != new.body_sha256:
            raise IdempotencyConflict(
                f"the idempotency key was used {used} with another body",
                field="$.idempotency_key",
                expected="a key of its own for each job",
            )

    async def _store_all(self, news: list[_New], answers: dict[int, Submitted]) -> bool:
        """Write the jobs in one transaction; False when one of the idempotency keys came to be known meanwhile."""
        compares: list[Compare] = []
        ops: list[Op] = []
        for new in news:
            compares.append(new.job.compare())
            if new.idempotency_key is not None:
                compares.append(VersionIs(new.idempotency_key, EQ, 0))
            ops += new.ops()
        size_bytes = sum(new.job.size_bytes() for new in news)
        done = await self._consensus.propose(Txn(tuple(compares), tuple(ops)), size_bytes)
        check(done)
        if not done.succeeded:
            return False
        self.submitted_total += len(news)
        for new in news:
            job = new.job
            self._dispatcher.on_change(Change(job.id, None, job.record, Revision(done.revision)))
            answers[new.index] = Submitted(job=view(job.id, job.record, done.revision), created=True)
        return True

    def _check_room(self, count: int) -> None:
        if self._dispatcher.pending + count > self._max_pending:
            raise QueueFull(
                f"{self._dispatcher.pending} jobs wait; the limit is {self._max_pending}",
                expected="fewer jobs, or a later time",
                retry_after_s=5,
            )
