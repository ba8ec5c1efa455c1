"""Takes jobs in: checks, bounds, idempotency and unique keys, one transaction for all of a request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import job_entry, submission_entry
from jobs.control.dependencies import Dependencies, Linked, Wanted
from jobs.control.newjobs import JobMaker, NewJob, in_trace
from jobs.control.once import idempotency_key
from jobs.control.transitions import Transitions, check, view
from jobs.errors import IdempotencyConflict, InternalError, InvalidRequest
from jobs.protocol.ids import JobId, RequestId, Revision, is_job_id
from jobs.protocol.model import JobSubmit, Submitted
from jobs.records import IdempotencyRecord, UniqueRecord
from jobs.service import Caller
from jobs.store import EQ, MAX_TXN_OPS, Compare, Op, Put, Store, Txn, VersionIs
from jobs.validate import check_allowed, check_deadline

TRIES: Final = 16
OP_BYTES: Final = 256
"""About what an edge between two jobs takes in a command."""
SHA256_BYTES: Final = 32


class _New(Struct, frozen=True):
    """A job of a request, and what its idempotency key stands for."""

    index: int
    where: str
    submitted: JobSubmit
    job: NewJob
    idempotency_key: bytes | None
    body_sha256: bytes

    def compares(self) -> tuple[Compare, ...]:
        return () if self.idempotency_key is None else (VersionIs(self.idempotency_key, EQ, 0),)

    def ops(self) -> tuple[Op, ...]:
        if self.idempotency_key is None:
            return ()
        known = IdempotencyRecord(job=self.job.id, body_sha256=self.body_sha256)
        return (Put(self.idempotency_key, records.encode(known)),)


class _Request(Struct):
    """What is found of a request's jobs: those that are there already, those to store, and twins of the latter."""

    known: dict[int, Submitted]
    fresh: list[_New]
    twins: dict[int, int]
    """Index of a job that an earlier one of the same request is the answer to, and the index of that."""

    def job_at(self, index: int, news: Sequence[_New]) -> JobId:
        """Return the job that the one at an index of the request is or comes to be."""
        index = self.twins.get(index, index)
        return self.known[index].job.id if index in self.known else news[index].job.id


class Submission:
    """The way in."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        maker: JobMaker,
        dependencies: Dependencies,
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._maker = maker
        self._dependencies = dependencies

    async def submit(self, caller: Caller, submitted: Sequence[JobSubmit]) -> list[Submitted]:
        """Store all jobs or none; those whose keys are known already are answered with the jobs that have them."""
        now_ms = wall_ms()
        one = len(submitted) == 1
        submitted = [_with_key(job, caller.request_id, index) for index, job in enumerate(submitted)]
        news = [
            self._prepare(index, job, caller, now_ms, "$" if one else f"$.jobs[{index}]")
            for index, job in enumerate(submitted)
        ]
        _check_size(sum(len(job.depends_on) for job in submitted))
        references = _references(news)
        for _ in range(TRIES):
            request = self._look_up(news)
            for new in request.fresh:
                check_deadline(new.submitted, now_ms, new.where)
            answers = request.known
            if request.fresh:
                wanted = _wanted(request, news, references)
                linked = self._dependencies.link(caller.uid, [new.job for new in request.fresh], wanted, now_ms)
                entry = submission_entry(caller, [job.id for job in linked.news])
                if not await self._store_all(request.fresh, linked, (entry,), answers):
                    continue
            for index, twin in request.twins.items():
                answers[index] = Submitted(job=answers[twin].job, created=False)
            return [answers[index] for index in range(len(submitted))]
        raise InternalError(f"keys or queues changed {TRIES} times while the jobs were stored")

    async def repeat(self, caller: Caller, old: JobId, new: NewJob) -> Submitted:
        """Store a job that repeats another; one whose idempotency key is known already is answered with what has it."""
        submitted, owner = records.decode_spec(new.spec), new.record.owner
        given = submitted.idempotency_key
        key = None if given is None else keys.idempotency(owner, given)
        body = new.body_sha256()
        new = in_trace(new, caller.trace)
        # The same body for another job is another request.
        body = body[:SHA256_BYTES] + hashlib.sha256(body[SHA256_BYTES:] + old.encode()).digest()
        wanted = _New(index=0, where="$", submitted=submitted, job=new, idempotency_key=key, body_sha256=body)
        detail = f"as job {new.id}"
        entry = job_entry(caller, "job.retry", old, owner, wall_ms(), detail, made=new.id)
        for _ in range(TRIES):
            request = self._look_up([wanted])
            if not request.fresh or await self._store_all(request.fresh, Linked([new]), entry, request.known):
                return request.known[0]
        raise InternalError(f"keys or queues changed {TRIES} times while the job was stored")

    def _prepare(self, index: int, job: JobSubmit, caller: Caller, now_ms: int, where: str) -> _New:
        check_allowed(job, where, admin=caller.admin)
        owner = caller.uid
        new = in_trace(self._maker.make(job, owner, now_ms, where), caller.trace)
        return _New(
            index=index,
            where=where,
            submitted=job,
            job=new,
            idempotency_key=None if job.idempotency_key is None else keys.idempotency(owner, job.idempotency_key),
            body_sha256=new.body_sha256() if job.idempotency_key is not None else b"",
        )

    def _look_up(self, news: Sequence[_New]) -> _Request:
        """Find the jobs that have the keys of these already. Raises IdempotencyConflict for another body."""
        request = _Request(known={}, fresh=[], twins={})
        first_by_key: dict[bytes, _New] = {}
        for new in news:
            twin = self._twin(new, first_by_key)
            known = self._known(new) if twin is None else None
            if twin is not None:
                request.twins[new.index] = request.twins.get(twin.index, twin.index)
            elif known is not None:
                request.known[new.index] = known
            else:
                request.fresh.append(new)
            for key in (new.idempotency_key, new.job.record.unique_key):
                if key is not None:
                    first_by_key.setdefault(key, new)
        return request

    def _twin(self, new: _New, first_by_key: dict[bytes, _New]) -> _New | None:
        """Return the earlier job of the request that is the answer to this one as well."""
        if new.idempotency_key is not None and (twin := first_by_key.get(new.idempotency_key)) is not None:
            _check_same(new, twin.body_sha256, twin.job.spec, "earlier in this request")
            return twin
        unique_key = new.job.record.unique_key
        return None if unique_key is None else first_by_key.get(unique_key)

    def _known(self, new: _New) -> Submitted | None:
        """Return the job that the idempotency key made before, or that holds the unique key."""
        if new.idempotency_key is not None and (found := self._store.get(new.idempotency_key)) is not None:
            known = records.decode(IdempotencyRecord, found[1])
            spec = self._store.get(keys.spec(known.job))
            _check_same(new, known.body_sha256, None if spec is None else spec[1], f"for job {known.job}")
            return self._answer(known.job)
        unique_key = new.job.record.unique_key
        if unique_key is not None and (found := self._store.get(unique_key)) is not None:
            return self._answer(records.decode(UniqueRecord, found[1]).job)
        return None

    def _answer(self, job: JobId) -> Submitted:
        stored = self._transitions.read_existing(job)
        return Submitted(job=view(job, stored.record, stored.revision), created=False)

    async def _store_all(
        self, news: Sequence[_New], linked: Linked, entry: Sequence[Op], answers: dict[int, Submitted]
    ) -> bool:
        """Write the jobs in one transaction, with an entry for the audit trail; False when what it was decided on has
        changed meanwhile."""
        with self._maker.admit(linked.news) as admitted:
            compares = (*admitted.compares, *linked.compares, *(compare for new in news for compare in new.compares()))
            ops = (
                *admitted.ops,
                *linked.ops,
                *(op for new in news for op in new.ops()),
                *entry,
            )
            _check_size(max(len(compares), len(ops)))
            size_bytes = sum(job.size_bytes() for job in linked.news) + OP_BYTES * len(linked.ops)
            done = await self._consensus.propose(Txn(compares, ops), size_bytes)
            check(done)
            if not done.succeeded:
                return False
            for change in linked.changes(Revision(done.revision)):
                self._transitions.on_change(change)
        for new, job in zip(news, linked.news, strict=True):
            answers[new.index] = Submitted(job=view(job.id, job.record, done.revision), created=True)
        return True


def _with_key(job: JobSubmit, request: RequestId, index: int) -> JobSubmit:
    """Return the job with an idempotency key of its request where it has none, so that it is made once."""
    if job.idempotency_key is not None or not request:
        return job
    return replace(job, idempotency_key=idempotency_key(request, index))


def _references(news: Sequence[_New]) -> dict[str, int]:
    """Return which job of the request has which ref.

    Raises InvalidRequest for a ref that two have, and for a dependency on something that is neither id nor ref.
    """
    found: dict[str, int] = {}
    for new in news:
        ref = new.submitted.ref
        if ref is not None and found.setdefault(ref, new.index) != new.index:
            raise InvalidRequest(
                f"{ref!r} is the ref of {news[found[ref]].where} too",
                field=f"{new.where}.ref",
                expected="a ref of its own for each job",
            )
    for new in news:
        for index, parent in enumerate(new.submitted.depends_on):
            if parent not in found and not is_job_id(parent):
                raise InvalidRequest(
                    f"{parent!r} is neither a job's id nor a ref of this request",
                    field=f"{new.where}.depends_on[{index}]",
                    expected="a UUIDv7 in lower case, or the ref of another job of the request",
                )
    return found


def _wanted(request: _Request, news: Sequence[_New], references: dict[str, int]) -> dict[JobId, list[Wanted]]:
    """Return the jobs that those to store depend on."""
    return {
        new.job.id: [
            Wanted(
                request.job_at(references[parent], news) if parent in references else JobId(parent),
                f"{new.where}.depends_on[{index}]",
            )
            for index, parent in enumerate(new.submitted.depends_on)
        ]
        for new in request.fresh
        if new.submitted.depends_on
    }


def _check_same(new: _New, body_sha256: bytes, spec: bytes | None, used: str) -> None:
    """Raise IdempotencyConflict unless this is the body that came before with the key.

    A client may spell out a default that another leaves out, so bodies that differ as bytes are compared as values.
    """
    if body_sha256 == new.body_sha256:
        return
    same_list = body_sha256[SHA256_BYTES:] == new.body_sha256[SHA256_BYTES:]
    if spec is None or not same_list or records.decode_spec(spec) != records.decode_spec(new.job.spec):
        raise IdempotencyConflict(
            f"the idempotency key was used {used} with another body",
            field=f"{new.where}.idempotency_key",
            expected="a key of its own for each job",
        )


def _check_size(operations: int) -> None:
    if operations > MAX_TXN_OPS:
        raise InvalidRequest(
            f"the jobs together take {operations} operations of one transaction, which has at most {MAX_TXN_OPS}",
            field="$.jobs",
            expected="fewer jobs in a request; times, keys and dependencies take operations of their own",
        )
