"""Keeps arrays going: splits tasks off while workers can take them, counts what becomes of them, ends the whole.

A task is made by the transaction that moves its array's record past its index, so it is made once, whatever is killed
when. Memory holds how many tasks of each array that has not ended stand where; `start` rebuilds that from the store.
Each change of a task is looked at once; nothing polls, and an array's records are not written when a task changes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

from msgspec.structs import replace

from jobs import arrays, indices, jobs, keys, records
from jobs.arrays import Count, Tally
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control import arraystore
from jobs.control.arraystore import StoredArray, read_array, read_existing_array
from jobs.control.audit import job_entry
from jobs.control.hub import Waiter
from jobs.control.queues import Queues
from jobs.control.tasks import Spawn
from jobs.control.transitions import Change, Transitions, check, scan_in_turns, view, write_ops
from jobs.errors import InternalError, InvalidRequest, StorageFull, Unavailable
from jobs.indices import Indices
from jobs.jobs import Refusal
from jobs.protocol.ids import JobId, Revision, array_id, task_id, task_index
from jobs.protocol.model import ArrayView, CancelCounts, CancelOutcome, Progress, Reason
from jobs.records import ArrayRecord, JobRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, Op, Put, Store, Txn, VersionIs, prefix_end

logger = logging.getLogger(__name__)

TRIES: Final = 16
CANCEL_ROWS: Final = 200
"""Tasks that are cancelled at a time."""
AT_A_TIME: Final = 32
"""Arrays that are written for at a time."""
END_S: Final = 5.0
"""Longest wait of a cancellation for the end of an array of which nothing runs."""
RETRY_S: Final = 1.0
"""After the store refused a write."""
LOOKED_AT: Final = 2_000
"""Failed tasks whose indices are shown at most."""
NAMED_RUNS: Final = 20
"""Of indices, in the audit trail."""
TAKEN_UP: Final = 256
"""Arrays that are taken up at the start before others have their turn."""
TELL_S: Final = 1.0
"""Between two words on the progress of one array."""
TASK_BYTES: Final = 512
"""About what a command takes that splits a task off, beside its record."""


class _Open:
    """An array that has not ended: what of it is looked at whenever a task changes, in little room."""

    __slots__ = (
        "busy",
        "cancelled",
        "closed",
        "followers",
        "may_split",
        "queue",
        "rest",
        "sweep",
        "swept",
        "tally",
        "tasks",
        "withdrawn",
    )

    def __init__(self, parent: JobRecord, withdrawn: int = 0) -> None:
        self.tasks = parent.tasks
        self.queue = sys.intern(parent.queue)
        self.withdrawn = withdrawn
        self.tally = Tally()
        self.busy = False
        self.sweep: asyncio.Task[None] | None = None
        """Cancels its tasks, once it is cancelled itself."""
        self.swept = (0, 0)
        """Tasks that the sweep has cancelled at once, and those whose workers were told."""
        self.followers: tuple[Waiter, ...] = ()
        self.closed = False
        self.update(parent)

    def update(self, parent: JobRecord) -> None:
        """Take note of how the array's own record is now."""
        self.may_split = jobs.may_split(parent)
        self.rest = jobs.rest_of(parent)
        self.cancelled = parent.cancel_requested

    @property
    def left(self) -> int:
        """Tasks that are still to be split off, or never will be."""
        return self.tasks - self.tally.split - self.withdrawn

    @property
    def is_over(self) -> bool:
        """Every task has ended, or never will begin."""
        return self.tally.active == 0 and (self.rest is not None or self.left == 0)

    def count(self) -> Count:
        return arrays.count(self.tasks, self.tally, self.withdrawn, self.rest)

    @contextmanager
    def follower(self) -> Iterator[Waiter]:
        """Ring the yielded waiter whenever something has changed."""
        waiter = Waiter()
        self.followers += (waiter,)
        try:
            yield waiter
        finally:
            self.followers = tuple(follower for follower in self.followers if follower is not waiter)

    def tell(self) -> None:
        """Wake those who follow how far it is."""
        for follower in self.followers:
            follower.ring()


class Arrays:
    """The arrays that have not ended, and what is done for them."""

    def __init__(
        self, consensus: Consensus, store: Store, transitions: Transitions, queues: Queues, spawn: Spawn
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._queues = queues
        self._spawn = spawn
        self._open: dict[JobId, _Open] = {}
        self._splitting: set[JobId] = set()
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._timers: dict[JobId, asyncio.TimerHandle] = {}
        self._stopped = False

    # --- life -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the arrays that have not ended, and count their tasks."""
        async for page in scan_in_turns(self._store, keys.ARRAYS_OPEN):
            for key, *_ in page:
                array = keys.job_of(key)
                found = read_array(self._store, array)
                assert found is not None, f"array {array} is open and has no record"
                opened = self._open[array] = _Open(found.parent, found.record.withdrawn)
                opened.tally = await arraystore.tally(self._store, array, found.record)
                await asyncio.sleep(0)

    def start(self) -> None:
        """Go on with the arrays that have not ended."""
        self._spawn(self._take_up(list(self._open.items())))

    async def _take_up(self, found: list[tuple[JobId, _Open]]) -> None:
        for number, (array, opened) in enumerate(found):
            if self._open.get(array) is opened:
                self._on_array(array, opened)
            if number % TAKEN_UP == TAKEN_UP - 1:
                await asyncio.sleep(0)

    def stop(self) -> None:
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()

    @property
    def open(self) -> int:
        """Arrays that have not ended."""
        return len(self._open)

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        new = change.new
        if new.is_task:
            opened = self._open.get(array := array_id(change.job))
            if opened is not None:
                opened.tally.move(change.old, new)
                opened.tell()
                self._look(array, opened)
        elif new.tasks:
            array = change.job
            if new.state.is_final:
                self._close(array)
                return
            opened = self._open.get(array)
            if opened is None:
                opened = self._open[array] = _Open(new)
            opened.update(new)
            opened.tell()
            self._on_array(array, opened)

    def on_queue_changed(self, name: str) -> None:
        """A queue may have been resumed."""
        for array, opened in list(self._open.items()):
            if opened.queue == name:
                self._look(array, opened)

    def _close(self, array: JobId) -> None:
        self._splitting.discard(array)
        opened = self._open.pop(array, None)
        if opened is not None:
            opened.closed = True
            opened.tell()

    def _on_array(self, array: JobId, opened: _Open) -> None:
        if opened.cancelled and opened.sweep is None:
            opened.sweep = self._spawn(self._sweep(array, opened))
        if opened.may_split and opened.left:
            self._splitting.add(array)
        else:
            self._splitting.discard(array)
        self._look(array, opened)

    # --- what to do next ------------------------------------------------------------------------------------------

    def _look(self, array: JobId, opened: _Open) -> None:
        """See whether there is something to do for an array, and have it done."""
        if not opened.busy and (opened.is_over or self._wanted(array, opened)):
            opened.busy = True
            self._spawn(self._drive(array, opened))

    def _wanted(self, array: JobId, opened: _Open) -> int:
        """Return how many tasks to split off now."""
        if array not in self._splitting or self._queues.queue(opened.queue).paused:
            return 0
        return min(opened.left, arrays.wanted(opened.tally, arrays.window(len(self._splitting))))

    async def _drive(self, array: JobId, opened: _Open) -> None:
        """Do what is to be done until there is nothing; when the store refuses, go on a little later."""
        try:
            async with self._slots:
                while self._open.get(array) is opened:
                    if opened.is_over:
                        await self._end(array, opened)
                    elif wanted := self._wanted(array, opened):
                        await self._split(array, opened, wanted)
                    else:
                        return
        except (Unavailable, StorageFull) as error:
            logger.warning("array waits: %s", error, extra={"job": array})
            self._later(array)
        finally:
            opened.busy = False

    def _later(self, array: JobId) -> None:
        if array not in self._timers and not self._stopped:
            self._timers[array] = asyncio.get_running_loop().call_later(RETRY_S, self._again, array)

    def _again(self, array: JobId) -> None:
        self._timers.pop(array, None)
        opened = self._open.get(array)
        if opened is not None:
            self._on_array(array, opened)

    # --- splitting off --------------------------------------------------------------------------------------------

    async def _split(self, array: JobId, opened: _Open, limit: int) -> None:
        """Make the next tasks of an array jobs of their own, and move its record past them, in one transaction."""
        for _ in range(TRIES):
            found = self._read(array)
            parent = jobs.on_split(found.parent, wall_ms())
            unsplit = arraystore.unsplit(self._store, array, found.record)
            chosen, after = arrays.following(found.record, unsplit, limit)
            if isinstance(parent, Refusal) or not chosen:
                # The change that speaks against it is stored, and about to be told.
                self._splitting.discard(array)
                return
            record = replace(
                found.record,
                next=after,
                split=found.record.split + len(chosen),
                stored_bytes=opened.tally.stored_bytes,
                log_bytes=opened.tally.log_bytes,
            )
            task = arrays.task_record(array, parent, record)
            tasks = [task_id(array, index) for index in chosen]
            compares: list[Compare] = [*found.guards]
            compares += [VersionIs(keys.state(job), EQ, 0) for job in tasks]
            ops: list[Op] = [Put(keys.array(array), records.encode(record))]
            if parent is not found.parent:
                ops += write_ops(array, found.parent, parent)
            for job in tasks:
                ops += write_ops(job, None, task)
            size_bytes = len(tasks) * (TASK_BYTES + len(records.encode(task)))
            done = await self._consensus.propose(Txn(tuple(compares), tuple(ops)), size_bytes)
            check(done)
            if done.succeeded:
                self._on_split(array, opened, found.parent, parent, tasks, task, Revision(done.revision))
                return
        raise InternalError(f"array {array} changed {TRIES} times while tasks were split off")

    def _on_split(
        self,
        array: JobId,
        opened: _Open,
        old: JobRecord,
        parent: JobRecord,
        tasks: list[JobId],
        task: JobRecord,
        revision: Revision,
    ) -> None:
        if parent is not old:
            self._transitions.on_change(Change(array, old, parent, revision))
        for job in tasks:
            self._transitions.on_change(Change(job, None, task, revision))
        if not opened.left:
            self._splitting.discard(array)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _end(self, array: JobId, opened: _Open) -> None:
        """Every task has ended: say what became of them, and end the array."""
        for _ in range(TRIES):
            found = self._read(array)
            if found.parent.state.is_final:
                self._close(array)
                return
            if arraystore.count_tasks(self._store, keys.TASKS_ACTIVE, array):
                raise InternalError(f"array {array} was taken to be over, and has tasks that are not")
            record = replace(
                found.record,
                failed=arraystore.count_tasks(self._store, keys.TASKS_FAILED, array),
                cancelled=arraystore.count_tasks(self._store, keys.TASKS_CANCELLED, array),
                rest=jobs.rest_of(found.parent),
            )
            count = arrays.count(opened.tasks, arrays.final_tally(record), record.withdrawn, record.rest)
            reason, message = arrays.outcome(found.parent, count, self._first_failed(array, found.parent, record))
            stored, logs = opened.tally.stored_bytes, opened.tally.log_bytes
            parent = jobs.on_tasks_ended(found.parent, reason, message, stored, logs, wall_ms())
            assert isinstance(parent, JobRecord), parent
            ops = (Put(keys.array(array), records.encode(record)), *write_ops(array, found.parent, parent))
            done = await self._consensus.propose(Txn(found.guards, ops))
            check(done)
            if done.succeeded:
                logger.info("array ended", extra={"job": array, "state": parent.state, "reason": parent.reason})
                self._transitions.on_change(Change(array, found.parent, parent, Revision(done.revision)))
                return
        raise InternalError(f"array {array} changed {TRIES} times while it was ended")

    def _first_failed(self, array: JobId, parent: JobRecord, record: ArrayRecord) -> tuple[int, Reason] | None:
        """Return the lowest index of a task that failed, and its reason."""
        index = next(arraystore.failed(self._store, array, parent, record), None)
        if index is None:
            return None
        task = self._transitions.read(task_id(array, index))
        reason = record.rest if task is None else task.record.reason
        assert reason is not None
        return index, reason

    # --- cancelling -----------------------------------------------------------------------------------------------

    async def cancel(self, caller: Caller, array: JobId) -> CancelOutcome:
        """End an array: what has not begun never will, what runs is ended by its worker."""
        now_ms = wall_ms()
        done = await self._transitions.apply(
            array,
            lambda record: jobs.on_cancel(record, now_ms),
            lambda record: job_entry(caller, "job.cancel", array, record.owner, now_ms),
        )
        found = self._read(array)
        if isinstance(done, Refusal):
            tasks = CancelCounts(cancelled=0, requested=0, already_final=found.parent.tasks)
            return CancelOutcome(outcome="already_final", job=view(array, found.parent, found.revision), tasks=tasks)
        assert done.old is not None
        fresh = not done.old.cancel_requested
        never = jobs.rest_of(done.old) is None
        opened = self._open.get(array)
        at_once = found.parent.tasks - found.record.split - found.record.withdrawn if never else 0
        requested = 0
        if opened is not None and fresh and opened.sweep is not None:
            await asyncio.shield(opened.sweep)
            at_once, requested = at_once + opened.swept[0], opened.swept[1]
        elif opened is not None:
            requested = opened.tally.running
        if opened is not None and not requested:
            # Nothing runs, so its end is on its way to the store.
            await self._closed(opened)
        found = self._read(array)
        return CancelOutcome(
            outcome="cancelled" if found.parent.state.is_final else "requested",
            job=view(array, found.parent, found.revision),
            tasks=_cancelled(found.parent.tasks, at_once, requested),
        )

    async def _closed(self, opened: _Open) -> None:
        """Return when the array has ended, or when that takes too long."""
        deadline_s = asyncio.get_running_loop().time() + END_S
        with opened.follower() as waiter:
            while not opened.closed and await waiter.wait(max(0.0, deadline_s - asyncio.get_running_loop().time())):
                pass

    async def _sweep(self, array: JobId, opened: _Open) -> None:
        try:
            opened.swept = await self._cancel_active(array, None)
        except (Unavailable, StorageFull) as error:
            logger.warning("cancellation of an array waits: %s", error, extra={"job": array})
            opened.sweep = None
            self._later(array)

    async def _cancel_active(self, array: JobId, wanted: Indices | None) -> tuple[int, int]:
        """Cancel the tasks (None: all) that have been split off and have not ended, in bounded steps.

        Returns how many ended at once, and of how many a worker was asked it.
        """
        now_ms = wall_ms()
        at_once = requested = 0
        start, end = keys.of_array(keys.TASKS_ACTIVE, array), prefix_end(keys.of_array(keys.TASKS_ACTIVE, array))
        more = True
        while more:
            rows, more = self._store.range(start, end, limit=CANCEL_ROWS, keys_only=True)
            found = [keys.number_of(row[0]) for row in rows]
            tasks = [task_id(array, index) for index in found if wanted is None or wanted >> index & 1]
            done = await asyncio.gather(
                *(self._transitions.apply(task, lambda record: jobs.on_cancel(record, now_ms)) for task in tasks)
            )
            for change in done:
                if not isinstance(change, Refusal):
                    at_once += change.new.state.is_final
                    requested += not change.new.state.is_final
            start = rows[-1][0] + b"\x00" if rows else end
        return at_once, requested

    async def cancel_tasks(self, caller: Caller, array: JobId, wanted: Indices) -> CancelOutcome:
        """End some tasks of an array. Raises InvalidRequest for indices that are none of its tasks."""
        withdrawn = await self._withdraw(caller, array, wanted)
        at_once, requested = await self._cancel_active(array, wanted)
        at_once += withdrawn
        found = self._read(array)
        return CancelOutcome(
            outcome="requested" if requested else "cancelled" if at_once else "already_final",
            job=view(array, found.parent, found.revision),
            tasks=_cancelled(wanted.bit_count(), at_once, requested),
        )

    async def cancel_unsplit(self, caller: Caller, task: JobId) -> CancelOutcome:
        """End one task that is no job of its own yet."""
        done = await self.cancel_tasks(caller, array_id(task), 1 << task_index(task))
        stored = arraystore.find(self._store, task)
        assert stored is not None
        return replace(done, job=view(task, stored.record, stored.revision), tasks=None)

    async def _withdraw(self, caller: Caller, array: JobId, wanted: Indices) -> int:
        """Cancel those of the tasks that are not split off yet, in one transaction; return how many."""
        for _ in range(TRIES):
            found = self._read(array)
            record = found.record
            strange = wanted & ~arraystore.members(self._store, array, record)
            if strange:
                raise InvalidRequest(
                    f"the array has no task {next(indices.each(strange))}",
                    field="$.indices",
                    expected=f"indices of its tasks, which are below {record.size}",
                )
            if found.parent.state.is_final or jobs.rest_of(found.parent) is not None:
                return 0
            fresh = wanted & arraystore.unsplit(self._store, array, record)
            active = arraystore.indices_of(self._store, keys.TASKS_ACTIVE, array)
            if not fresh and not any(wanted >> index & 1 for index in active):
                return 0
            named = f"tasks {indices.text(indices.spans(wanted), NAMED_RUNS)}"
            ops: list[Op] = [*job_entry(caller, "job.cancel", array, found.parent.owner, wall_ms(), named)]
            if fresh:
                ops += self._withdraw_ops(array, record, fresh)
            done = await self._consensus.propose(Txn(found.guards, tuple(ops)))
            check(done)
            if done.succeeded:
                self._on_withdrawn(array, fresh.bit_count())
                return fresh.bit_count()
        raise InternalError(f"array {array} changed {TRIES} times while tasks were cancelled")

    def _withdraw_ops(self, array: JobId, record: ArrayRecord, fresh: Indices) -> list[Op]:
        before = arraystore.read_indices(self._store, keys.ARRAY_WITHDRAWN, array) if record.withdrawn else 0
        changed = indices.chunks(fresh)
        record = replace(record, withdrawn=record.withdrawn + fresh.bit_count())
        return [
            Put(keys.array(array), records.encode(record)),
            *(
                Put(keys.numbered(keys.ARRAY_WITHDRAWN, array, number), data)
                for number, data in indices.chunks(before | fresh).items()
                if number in changed
            ),
        ]

    def _on_withdrawn(self, array: JobId, count: int) -> None:
        opened = self._open.get(array)
        if opened is not None and count:
            opened.withdrawn += count
            opened.tell()
            self._on_array(array, opened)

    # --- views ----------------------------------------------------------------------------------------------------

    def view(self, array: JobId) -> ArrayView:
        """Return how far an array is. Raises NotFound for what is none."""
        found = self._read(array)
        failed = list(islice(arraystore.failed(self._store, array, found.parent, found.record), LOOKED_AT + 1))
        shown = indices.text(indices.runs(failed[:LOOKED_AT]), arrays.SHOWN_RUNS)
        if len(failed) > LOOKED_AT and not shown.endswith(indices.MORE):
            shown += indices.MORE
        return arrays.view(array, found.parent, found.record, self._count(array, found), shown)

    def progress(self, array: JobId) -> Progress:
        """Return the same as the progress that any job may have."""
        found = self._read(array)
        return arrays.progress(found.parent, self._count(array, found), wall_ms())

    def count(self, array: JobId) -> Count:
        """Return how the tasks of an array stand. Raises NotFound for what is none."""
        return self._count(array, self._read(array))

    async def follow(self, array: JobId) -> AsyncIterator[ArrayView]:
        """Yield how far an array is whenever that has changed, at most once a second, until it has ended."""
        while not (seen := self.view(array)).state.is_final:
            opened = self._open.get(array)
            if opened is None:
                await asyncio.sleep(0)  # it is stored, and about to be told
                continue
            with opened.follower() as waiter:
                yield seen
                await asyncio.sleep(TELL_S)
                await waiter.wait(None)
        yield seen

    def _count(self, array: JobId, found: StoredArray) -> Count:
        opened = self._open.get(array)
        if opened is not None:
            return opened.count()
        tally, rest = arrays.final_tally(found.record), arrays.rest(found.parent, found.record)
        return arrays.count(found.parent.tasks, tally, found.record.withdrawn, rest)

    def _read(self, array: JobId) -> StoredArray:
        return read_existing_array(self._store, array)


def _cancelled(tasks: int, at_once: int, requested: int) -> CancelCounts:
    return CancelCounts(cancelled=at_once, requested=requested, already_final=tasks - at_once - requested)
