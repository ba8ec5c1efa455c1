"""Jobs that wait for others: edges stored with the jobs they join, and children told when a parent has ended.

An edge is a key below the parent, which says whether the child has been told of the parent's end, and a place in the
record of the child's parents. Edges are written only while what they were decided on still holds: a parent cannot end
between the moment at which it was seen to go on and the one at which its child is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import graphs, jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import job_entry
from jobs.control.newjobs import NewJob
from jobs.control.tasks import Spawn
from jobs.control.tracing import Tracing
from jobs.control.transitions import Change, Stored, Transitions, check, guard, scan_in_turns, view, write_ops
from jobs.errors import AlreadyStarted, InternalError, InvalidRequest, StorageFull, Unavailable
from jobs.jobs import Refusal, Step
from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model import MAX_PARENTS, JobState, JobView
from jobs.records import ChildRecord, JobRecord, ParentsRecord
from jobs.service import Caller
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn, prefix_end

logger = logging.getLogger(__name__)

TRIES: Final = 16
STEP: Final = 256
"""Children that are told at a time."""
MAX_SEARCHED: Final = 10_000
"""Jobs that are looked at for a circle; a dependency that would take more is refused."""
TURN: Final = 256
"""Jobs that are looked at before others have their turn."""
RETRY_S: Final = 1.0
WAITS: Final = records.encode(ChildRecord(told=False))
TOLD: Final = records.encode(ChildRecord(told=True))


class Wanted(Struct, frozen=True):
    """A parent that a request names, and the field in which it does."""

    parent: JobId
    field: str


class Linked(Struct, frozen=True):
    """New jobs with what they wait for in their records, and what has to be compared and stored besides."""

    news: Sequence[NewJob]
    compares: Sequence[Compare] = ()
    ops: Sequence[Op] = ()
    parents: Mapping[JobId, tuple[JobRecord, JobRecord]] = {}
    """Jobs that are there already and come to have children: the records before and after."""

    def changes(self, revision: Revision) -> list[Change]:
        """Return what is to be told of once all this is stored."""
        made = [Change(new.id, None, new.record, revision) for new in self.news]
        return made + [Change(job, old, new, revision) for job, (old, new) in self.parents.items()]


class _Joined(Struct, frozen=True):
    """A job that has been given parents: its record, its edges, and the parents that have to tell it of their end."""

    record: JobRecord
    ops: list[Op]
    waits_for: list[JobId]


class _Ended(Struct, frozen=True):
    """A job that has ended, and the key from which on its children have not been told."""

    parent: JobId
    state: JobState
    start: bytes


class Dependencies:
    """What waits for what."""

    def __init__(
        self, consensus: Consensus, store: Store, transitions: Transitions, tracing: Tracing, spawn: Spawn
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._tracing = tracing
        self._spawn = spawn
        self._ended: deque[_Ended] = deque()
        self._all_told: list[JobId] = []
        """Ended jobs that have nobody left to tell."""
        self._telling = False
        self._started = False

    def parents_of(self, job: JobId) -> list[JobId]:
        """Return the jobs that a job depends on."""
        return parents_of(self._store, job)

    # --- new jobs -------------------------------------------------------------------------------------------------

    def link(self, owner: int, news: Sequence[NewJob], wanted: Mapping[JobId, Sequence[Wanted]], now_ms: int) -> Linked:
        """Return what stores new jobs with what each of them waits for: others of them, and the owner's jobs.

        Raises InvalidRequest, with the field, for a parent that is not the owner's, and for a circle.
        """
        if not wanted:
            return Linked(news)
        fresh = {new.id: new.record for new in news}
        _check_circle(wanted, fresh)
        found = self._find(owner, (item for items in wanted.values() for item in items if item.parent not in fresh))
        states = {job: stored.record.state for job, stored in found.items()}
        ops: list[Op] = []
        waited_for: set[JobId] = set()
        for job, items in wanted.items():
            parents = {item.parent: states.get(item.parent, jobs.PENDING) for item in items}
            joined = _join(job, fresh[job], parents, now_ms)
            assert isinstance(joined, _Joined)
            fresh[job] = joined.record
            ops += (*joined.ops, Put(keys.parents(job), records.encode(ParentsRecord(list(parents)))))
            waited_for.update(joined.waits_for)
        for job in waited_for & fresh.keys():
            fresh[job] = replace(fresh[job], has_children=True)
        self._tracing.inherit(fresh, {job: [item.parent for item in items] for job, items in wanted.items()})
        linked = [replace(new, record=fresh[new.id]) for new in news]
        return _with_parents(Linked(linked, (), ops), [(job, found[job]) for job in waited_for - fresh.keys()])

    def _find(self, owner: int, wanted: Iterable[Wanted]) -> dict[JobId, Stored]:
        """Read jobs that are there already. Raises InvalidRequest for one that the owner does not have."""
        found: dict[JobId, Stored] = {}
        for item in wanted:
            if item.parent in found:
                continue
            stored = self._transitions.read(item.parent)
            if stored is None or stored.record.owner != owner or self._transitions.is_leaving(item.parent):
                raise InvalidRequest(
                    f"uid {owner} has no job {item.parent}",
                    field=item.field,
                    expected="the id of a job of the same owner, or the ref of one in the same request",
                )
            found[item.parent] = stored
        return found

    # --- jobs that are there already ------------------------------------------------------------------------------

    async def add(self, caller: Caller, job: JobId, depends_on: Sequence[JobId]) -> JobView:
        """Let a job wait for others of its owner as well; those that it depends on already change nothing.

        Raises AlreadyStarted, and InvalidRequest for a parent that is not the owner's, for too many, and for a circle.
        """
        wanted = [Wanted(parent, f"$.depends_on[{index}]") for index, parent in enumerate(depends_on)]
        for _ in range(TRIES):
            found = self._store.get(keys.DEPENDENCIES_ADDED)
            searched = ModRevisionIs(keys.DEPENDENCIES_ADDED, EQ, 0 if found is None else found[4])
            stored = self._transitions.read_existing(job)
            before = self.parents_of(job)
            fresh = [item for item in wanted if item.parent not in before]
            if not fresh:
                return view(job, stored.record, stored.revision)
            if stored.record.is_task:
                raise AlreadyStarted(
                    f"job {job} is a task of an array, which has been started", expected="a job of its own, or an array"
                )
            if stored.record.state is not jobs.PENDING or stored.record.attempt > 0:
                raise AlreadyStarted(
                    f"job {job} is {stored.record.state}, at attempt {stored.record.attempt}",
                    expected="a job that waits for its first start",
                )
            parents = [*before, *dict.fromkeys(item.parent for item in fresh)]
            if len(parents) > MAX_PARENTS:
                raise InvalidRequest(
                    f"job {job} would depend on {len(parents)} jobs",
                    field="$.depends_on",
                    expected=f"at most {MAX_PARENTS} in all",
                )
            await self._check_no_way(job, fresh)
            added = await self._add(caller, job, stored, fresh, parents, searched)
            if added is not None:
                return added
        raise InternalError(f"job {job} or its parents changed {TRIES} times while it was made to depend on them")

    async def _add(
        self,
        caller: Caller,
        job: JobId,
        stored: Stored,
        wanted: Sequence[Wanted],
        parents: list[JobId],
        searched: Compare,
    ) -> JobView | None:
        """Store the edges unless something that they were decided on has changed (None)."""
        now_ms = wall_ms()
        found = self._find(stored.record.owner, wanted)
        joined = _join(job, stored.record, {parent: one.record.state for parent, one in found.items()}, now_ms)
        if isinstance(joined, Refusal):
            return None
        ops = [
            *write_ops(job, stored.record, joined.record),
            *joined.ops,
            Put(keys.parents(job), records.encode(ParentsRecord(parents))),
            Put(keys.DEPENDENCIES_ADDED, records.VERSION_ONLY),
            *job_entry(caller, "job.depend", job, stored.record.owner, now_ms, ", ".join(found)),
        ]
        linked = Linked((), (searched, guard(job, stored)), ops, {job: (stored.record, joined.record)})
        linked = _with_parents(linked, [(parent, found[parent]) for parent in joined.waits_for])
        done = await self._consensus.propose(Txn(tuple(linked.compares), tuple(linked.ops)), 512 * (1 + len(parents)))
        check(done)
        if not done.succeeded:
            return None
        for change in linked.changes(Revision(done.revision)):
            self._transitions.on_change(change)
        return view(job, joined.record, done.revision)

    async def _check_no_way(self, job: JobId, wanted: Sequence[Wanted]) -> None:
        """Raise InvalidRequest when one of the parents waits for the job itself, directly or not.

        What has begun to run waits for nothing any more, so the search is over there.
        """
        came_from = {item.parent: job for item in wanted if item.parent != job}
        if len(came_from) < len({item.parent for item in wanted}):
            raise _circle([job, job], next(item.field for item in wanted if item.parent == job))
        left = deque(came_from)
        searched = 0
        while left:
            node = left.popleft()
            searched += 1
            if searched > MAX_SEARCHED:
                raise InvalidRequest(
                    f"more than {MAX_SEARCHED} jobs come before these", field="$.depends_on", expected="fewer"
                )
            if searched % TURN == 0:
                await asyncio.sleep(0)
            stored = self._transitions.read(node)
            if stored is None or stored.record.attempt > 0:
                continue
            for parent in self.parents_of(node):
                if parent == job:
                    path = graphs.path_back(came_from, node)[::-1]
                    raise _circle([*path, job], next(item.field for item in wanted if item.parent == path[1]))
                if parent not in came_from:
                    came_from[parent] = node
                    left.append(parent)

    # --- telling children -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read which ended jobs have somebody left to tell."""
        async for page in scan_in_turns(self._store, keys.PARENT_ENDED):
            for key, *_ in page:
                parent = keys.job_of(key)
                self._add_ended(parent, self._transitions.read_existing(parent).record)

    def start(self) -> None:
        """Go on telling where it was left off."""
        self._started = True
        self._tell()

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job."""
        ended = change.new.state.is_final and (change.old is None or not change.old.state.is_final)
        if ended and change.new.has_children:
            self._add_ended(change.job, change.new)

    def _add_ended(self, parent: JobId, record: JobRecord) -> None:
        self._ended.append(_Ended(parent, record.state, keys.children_prefix(parent)))
        self._tell()

    def _tell(self) -> None:
        if self._ended and self._started and not self._telling:
            self._telling = True
            self._spawn(self._tell_all())

    async def _tell_all(self) -> None:
        try:
            while self._ended or self._all_told:
                try:
                    await self._tell_some()
                except (Unavailable, StorageFull) as error:
                    logger.warning("the end of jobs cannot be told to those that wait for it yet: %s", error)
                    await asyncio.sleep(error.retry_after_s or RETRY_S)
                except InternalError:
                    logger.exception("the end of some jobs is told to those that wait for it only by the next start")
        finally:
            self._telling = False

    async def _tell_some(self) -> None:
        """Tell a bounded number of children; forget the parents that were through before.

        A parent whose children are not all told keeps its key, so that the next start goes on with it.
        """
        taken, forgotten = self._take(), self._all_told
        self._all_told = []
        writes = [self._tell_child(ended, child) for ended, _, children in taken for child in children]
        done = await asyncio.gather(*writes, *map(self._forget, forgotten), return_exceptions=True)
        failed = [error for error in done if isinstance(error, BaseException)]
        worst = next((error for error in failed if not isinstance(error, Unavailable | StorageFull)), None)
        if worst is not None:
            raise worst
        if failed:
            # Telling again is harmless: a child that was told says so.
            self._ended.extendleft(ended for ended, *_ in taken)
            self._all_told += forgotten
            raise failed[0]
        for ended, start, _ in taken:
            if start is None:
                self._all_told.append(ended.parent)
            else:
                self._ended.append(replace(ended, start=start))

    def _take(self) -> list[tuple[_Ended, bytes | None, list[JobId]]]:
        """Take ended jobs from the head, with the children that each has to tell now, and where it goes on from."""
        taken: list[tuple[_Ended, bytes | None, list[JobId]]] = []
        room = STEP
        while self._ended and room > 0:
            ended = self._ended.popleft()
            rows, more = self._store.range(ended.start, prefix_end(keys.children_prefix(ended.parent)), limit=room)
            children = [keys.job_of(row[0]) for row in rows if row[1] != TOLD]
            taken.append((ended, rows[-1][0] + b"\x00" if more else None, children))
            room -= max(1, len(rows))
        return taken

    async def _tell_child(self, ended: _Ended, child: JobId) -> None:
        """Change the child, and with it the edge: whoever finds the edge untold has not changed the child."""
        key, now_ms = keys.child(ended.parent, child), wall_ms()

        def decide(record: JobRecord) -> Step:
            edge = self._store.get(key)
            if edge is None or edge[1] == TOLD:
                return Refusal("the job has been told")
            return jobs.on_parent_ended(record, ended.parent, ended.state, now_ms)

        if self._transitions.read(child) is not None:
            await self._transitions.apply(child, decide, lambda record: (Put(key, TOLD),))

    async def _forget(self, parent: JobId) -> None:
        check(await self._consensus.propose(Txn(then=(Delete(keys.parent_ended(parent)),))))


def parents_of(store: Store, job: JobId) -> list[JobId]:
    """Return the jobs that a job depends on, also those that are no longer kept."""
    found = store.get(keys.parents(job))
    return [] if found is None else records.decode(ParentsRecord, found[1]).jobs


def children_of(store: Store, job: JobId, limit: int) -> tuple[list[JobId], bool]:
    """Return jobs that depend on a job, and whether there are more."""
    prefix = keys.children_prefix(job)
    rows, more = store.range(prefix, prefix_end(prefix), limit=limit, keys_only=True)
    return [keys.job_of(row[0]) for row in rows], more


def keys_of(store: Store, job: JobId, limit: int) -> tuple[list[bytes], bool]:
    """Return what is stored of the dependencies of a job that is about to be deleted, and whether there is more.

    A job on which another depends that has not ended must not be deleted. It may have any number of children: their
    edges go in steps, the job itself with the last of them. They keep it among their parents, where it is seen as one
    that is no longer kept.
    """
    parents = parents_of(store, job)
    own = [keys.parents(job), *(keys.child(parent, job) for parent in parents)] if parents else []
    prefix = keys.children_prefix(job)
    rows, more = store.range(prefix, prefix_end(prefix), limit=limit, keys_only=True)
    return [*own, *(row[0] for row in rows)], more


def _join(job: JobId, record: JobRecord, parents: Mapping[JobId, JobState], now_ms: int) -> _Joined | Refusal:
    """Let a job depend on others, of which some may have ended."""
    unended = [parent for parent, state in parents.items() if not state.is_final]
    failed = [parent for parent, state in parents.items() if state is jobs.FAILED and record.on_failure == "fail"][:1]
    step: Step = jobs.on_depends(record, len(unended) + len(failed)) if unended or failed else record
    if failed and not isinstance(step, Refusal):
        step = jobs.on_parent_ended(step, failed[0], jobs.FAILED, now_ms)
    if isinstance(step, Refusal):
        return step
    waits_for = [] if step.state.is_final else unended
    ops: list[Op] = [Put(keys.child(parent, job), WAITS if parent in waits_for else TOLD) for parent in parents]
    return _Joined(step, ops, waits_for)


def _with_parents(linked: Linked, parents: Sequence[tuple[JobId, Stored]]) -> Linked:
    """Add what makes sure that parents which are there already tell their new children."""
    changed: dict[JobId, tuple[JobRecord, JobRecord]] = {}
    ops = list(linked.ops)
    for parent, stored in parents:
        new = jobs.on_child(stored.record)
        assert isinstance(new, JobRecord), f"job {parent} has ended and is waited for"
        if new is not stored.record:
            changed[parent] = (stored.record, new)
            ops += write_ops(parent, stored.record, new)
    guards = [guard(parent, stored) for parent, stored in parents]
    return Linked(linked.news, (*linked.compares, *guards), ops, {**linked.parents, **changed})


def _check_circle(wanted: Mapping[JobId, Sequence[Wanted]], fresh: Mapping[JobId, JobRecord]) -> None:
    circle = graphs.find_circle({job: [item.parent for item in items] for job, items in wanted.items()})
    if circle is not None:
        field = next(item.field for item in wanted[circle[0]] if item.parent == circle[1])
        raise _circle([fresh[job].ref or job for job in circle], field)


def _circle(names: Sequence[str], field: str) -> InvalidRequest:
    shown = [*names[:20], "…", names[-1]] if len(names) > 22 else names
    return InvalidRequest(
        f"jobs would wait for each other: {' → '.join(shown)}", field=field, expected="no circle of dependencies"
    )
