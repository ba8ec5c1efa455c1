"""What operators have said of queues and owners, and how much of each is pending.

The records stand in the store; memory mirrors them, as nothing but this leader writes them. What is stored on their
account (a submission, an assignment) is guarded by their revisions: once a change of them is acknowledged, nothing is
accepted or started that was decided by the former settings.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import asdict

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import audit_entry
from jobs.control.once import MAX_TRIES, try_id, was_done
from jobs.control.transitions import check, count_in_turns, scan_in_turns
from jobs.errors import InternalError, InvalidRequest, QueueClosed, QueueFull
from jobs.protocol.ids import RequestId
from jobs.records import JobRecord, OwnerRecord, QueueRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn, prefix_end

RETRY_AFTER_S: Final = 5
MAX_RECORDS: Final = 100_000
"""Queues and owners that settings may be kept for: they are all held in memory."""

K = TypeVar("K")
R = TypeVar("R", bound=Struct)
Share: TypeAlias = tuple[str, int]
"""A queue and an owner."""


class Pending:
    """How many jobs are pending, by queue and owner; `waiting` of them are not ready."""

    def __init__(self) -> None:
        self.total = 0
        self.total_waiting = 0
        self._shares: Counter[Share] = Counter()
        self._queues: Counter[str] = Counter()
        self._owners: Counter[int] = Counter()
        self._waiting: Counter[str] = Counter()

    def add(self, queue: str, owner: int, count: int, *, waiting: bool) -> None:
        """Count so many more, or fewer."""
        self.total += count
        _add(self._shares, (queue, owner), count)
        _add(self._queues, queue, count)
        _add(self._owners, owner, count)
        if waiting:
            self.total_waiting += count
            _add(self._waiting, queue, count)

    def of_queue(self, queue: str) -> int:
        return self._queues[queue]

    def of_owner(self, owner: int) -> int:
        return self._owners[owner]

    def of_share(self, queue: str, owner: int) -> int:
        return self._shares[queue, owner]

    def waiting(self, queue: str) -> int:
        return self._waiting[queue]

    def queues(self) -> Iterable[str]:
        return self._queues


class Queues:
    """Settings and counts of queues and owners."""

    def __init__(self, consensus: Consensus, store: Store) -> None:
        self._consensus = consensus
        self._store = store
        self.records: dict[str, QueueRecord] = {}
        self.owner_records: dict[int, OwnerRecord] = {}
        self._revisions: dict[bytes, int] = {}
        self._pending = Pending()
        self.on_queue_changed: Callable[[str], None] = lambda name: None
        self.on_owner_changed: Callable[[int], None] = lambda owner: None

    @property
    def pending(self) -> int:
        """Jobs that wait, for a worker, a time or other jobs."""
        return self._pending.total

    @property
    def counts(self) -> Pending:
        """How many jobs are pending, by queue and owner."""
        return self._pending

    async def load(self) -> None:
        """Read the settings, and count what is pending without reading it."""
        async for page in scan_in_turns(self._store, keys.QUEUES):
            for key, value, _, _, revision, _ in page:
                self.records[key[len(keys.QUEUES) :].decode()] = records.decode(QueueRecord, value)
                self._revisions[key] = revision
        async for page in scan_in_turns(self._store, keys.OWNERS):
            for key, value, _, _, revision, _ in page:
                self.owner_records[int(key[len(keys.OWNERS) :])] = records.decode(OwnerRecord, value)
                self._revisions[key] = revision
        for kind in (keys.QUEUE, keys.WAITING):
            await self._count(kind)

    async def _count(self, kind: bytes) -> None:
        """Count the jobs of each queue and owner, skipping from one to the next."""
        start, end = kind, prefix_end(kind)
        while True:
            first, _ = self._store.range(start, end, limit=1, keys_only=True)
            if not first:
                return
            queue, owner = keys.share_of(first[0][0])
            share = keys.share_prefix(kind, queue, owner)
            count = await count_in_turns(self._store, share)
            self._pending.add(queue, owner, count, waiting=kind == keys.WAITING)
            start = prefix_end(share)
            await asyncio.sleep(0)

    def on_change(self, old: JobRecord | None, new: JobRecord) -> None:
        """Take note of a committed change of a job."""
        for record, count in ((old, -1), (new, 1)):
            if record is not None and record.state is jobs.PENDING:
                self._pending.add(record.queue, record.owner, count, waiting=not jobs.is_ready(record))

    # --- submissions and assignments ------------------------------------------------------------------------------

    @contextmanager
    def room(self, counts: Mapping[Share, int]) -> Iterator[None]:
        """Hold room for so many more jobs of each queue and owner while they are stored.

        What was stored is told to `on_change` before the end. Raises QueueClosed or QueueFull.
        """
        self._check_room(counts)
        for (queue, owner), count in counts.items():
            self._pending.add(queue, owner, count, waiting=False)
        try:
            yield
        finally:
            for (queue, owner), count in counts.items():
                self._pending.add(queue, owner, -count, waiting=False)

    def _check_room(self, counts: Mapping[Share, int]) -> None:
        pending = self._pending
        queues, owners = Counter[str](), Counter[int]()
        for (queue, owner), count in counts.items():
            queues[queue] += count
            owners[owner] += count
        for queue, count in queues.items():
            if self.queue(queue).draining:
                raise QueueClosed(f"queue {queue!r} takes no jobs: it is being drained", expected="an open queue")
            _check_limit(f"in queue {queue!r}", pending.of_queue(queue), count, self.queue(queue).max_pending)
        for (queue, owner), count in counts.items():
            limit = self.queue(queue).max_pending_per_owner
            _check_limit(f"of uid {owner} in queue {queue!r}", pending.of_share(queue, owner), count, limit)
        for owner, count in owners.items():
            _check_limit(f"of uid {owner}", pending.of_owner(owner), count, self.owner(owner).max_pending)

    def guards(self, queue: str, owner: int) -> tuple[Compare, ...]:
        """Return the compares that hold while the settings of both are as they are now."""
        found = (keys.queue_settings(queue), keys.owner_settings(owner))
        return tuple(ModRevisionIs(key, EQ, self._revisions.get(key, 0)) for key in found)

    # --- settings -------------------------------------------------------------------------------------------------

    def queue(self, name: str) -> QueueRecord:
        return self.records.get(name, QueueRecord())

    def owner(self, owner: int) -> OwnerRecord:
        return self.owner_records.get(owner, OwnerRecord())

    async def change_queue(
        self, caller: Caller, action: str, name: str, change: Callable[[QueueRecord], QueueRecord]
    ) -> None:
        """Change what is said of a queue, with an entry in the audit trail; what changes nothing writes nothing."""
        entry = partial(audit_entry, caller, action, name)
        key = keys.queue_settings(name)
        if await self._change(caller.request_id, key, self.records, name, QueueRecord(), change, entry):
            self.on_queue_changed(name)

    async def change_owner(self, caller: Caller, owner: int, change: Callable[[OwnerRecord], OwnerRecord]) -> None:
        """Change what is said of an owner of jobs, with an entry in the audit trail."""
        entry = partial(audit_entry, caller, "owner.set", str(owner))
        key = keys.owner_settings(owner)
        if await self._change(caller.request_id, key, self.owner_records, owner, OwnerRecord(), change, entry):
            self.on_owner_changed(owner)

    async def _change(
        self,
        request: RequestId,
        key: bytes,
        kept: dict[K, R],
        name: K,
        default: R,
        change: Callable[[R], R],
        entry: Callable[[int, str], Put],
    ) -> bool:
        """Write what `change` makes of a record; one that says nothing any more is deleted. Sent again, it is not made
        again: somebody else may have changed it back meanwhile."""
        for number in range(MAX_TRIES):
            if was_done(self._store, request):
                return False
            old = kept.get(name, default)
            new = change(old)
            if new == old:
                return False
            if old == default and len(self._revisions) >= MAX_RECORDS:
                raise InvalidRequest(f"settings are kept for {MAX_RECORDS} queues and owners already", expected="fewer")
            guard = ModRevisionIs(key, EQ, self._revisions.get(key, 0))
            write: Op = Delete(key) if new == default else Put(key, records.encode(new))
            ops = (write, entry(wall_ms(), said(old, new)))
            done = await self._consensus.propose(Txn((guard,), ops, request_id=try_id(request, number)))
            check(done)
            if not done.succeeded:
                continue
            if new == default:
                kept.pop(name, None)
                self._revisions.pop(key, None)
            else:
                kept[name] = new
                self._revisions[key] = done.revision
            return True
        raise InternalError(f"{key.decode()} changed {MAX_TRIES} times while one change was tried")


def said(old: Struct, new: Struct) -> str:
    """Return what is other than before, in words."""
    before, after = asdict(old), asdict(new)
    changed = {name: value for name, value in after.items() if value != before[name]}
    return ", ".join(f"{name}={'none' if value is None else value}" for name, value in changed.items())


def _check_limit(what: str, now: int, more: int, limit: int | None) -> None:
    if limit is not None and now + more > limit:
        raise QueueFull(
            f"{now} jobs {what} are pending; the limit is {limit}",
            expected="fewer jobs, or a later time",
            retry_after_s=RETRY_AFTER_S,
        )


def _add(counter: Counter, item: object, count: int) -> None:  # type: ignore[type-arg]
    counter[item] += count
    if not counter[item]:
        del counter[item]
