"""The jobs that wait for a worker, arranged so that the next is found without a look at those that cannot run. Pure.

Jobs of one queue and owner that ask the same stand in one lane; lanes that ask the same of a worker, apart from their
concurrency keys, form a group; groups belong to a share (queue, owner), shares to a queue. Each level ranks only what
may run below it. What cannot is taken out of its level and parked with the one thing that it waits for: a lane by its
concurrency key, a group by its shape (see `parking`), a share or a queue by its limit. The event that changes that
thing puts it back. To put back too much is harmless: it costs one look.

A lane holds the head of its jobs, in the order of the store's keys, and knows whether the store has more behind it:
what a job costs to hold and to schedule does not grow with the queue.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from jobs import keys
from jobs.protocol.ids import JobId
from jobs.records import Demand, OwnerRecord, QueueRecord
from jobs.scheduler import rate
from jobs.scheduler.parking import Group, Parking
from jobs.scheduler.ranking import FairShare, Ranking
from jobs.scheduler.usage import Run, Usage

WINDOW: Final = 4_096
"""Jobs of one lane that are held in memory at most."""
LOW_WATER: Final = 512
"""Below this many a lane is filled up again from the store."""

_NO_QUEUE_RECORD: Final = QueueRecord()
_NO_OWNER_RECORD: Final = OwnerRecord()


class Lane:
    """The first jobs of a lane: sorted keys, and whether the store holds more after the last of them."""

    __slots__ = ("complete", "concurrency_key", "concurrency_limit", "group", "horizon", "keys")

    def __init__(self, group: Group, demand: Demand) -> None:
        self.group = group
        self.concurrency_key = demand.concurrency_key
        self.concurrency_limit = demand.concurrency_limit
        self.keys: list[bytes] = []
        self.complete = True
        self.horizon = b""
        """When not complete: keys up to and with this one are all in `keys`; later ones are in the store only."""

    def add(self, key: bytes) -> None:
        if not self.keys or key > self.keys[-1]:
            self.keys.append(key)
        else:
            at = bisect_left(self.keys, key)
            if self.keys[at] != key:
                self.keys.insert(at, key)
        if len(self.keys) > WINDOW:
            del self.keys[WINDOW // 2 :]
            self.complete = False
            self.horizon = self.keys[-1]

    def discard(self, key: bytes) -> None:
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            del self.keys[at]


class _Share:
    """What one owner has waiting in one queue."""

    __slots__ = ("groups", "ranking")

    def __init__(self) -> None:
        self.groups: dict[bytes, Group] = {}
        self.ranking: Ranking[bytes] = Ranking()
        """Shapes of groups that may run, by the order of their first job."""


class _Queue:
    __slots__ = ("owners", "shares")

    def __init__(self) -> None:
        self.shares: dict[int, _Share] = {}
        self.owners: FairShare[int] = FairShare()


class Backlog:
    """What waits, what runs, and the limits between the two; bounded in memory.

    Every event costs O(log n) of what it concerns: a job added or removed, of its lane; a job ended, of the lanes that
    wait for its concurrency key and of the shares that wait for its owner's limit.
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self.parking = Parking()
        self._queue_records: Mapping[str, QueueRecord] = {}
        self._owner_records: Mapping[int, OwnerRecord] = {}
        self._arrivals_us: dict[str, int] = {}
        self._lanes: dict[bytes, Lane] = {}
        self._low: set[bytes] = set()
        self._queues: dict[str, _Queue] = {}
        self._ranking: FairShare[str] = FairShare()
        self._waiting_for_key: dict[str, set[bytes]] = {}
        self._waiting_for_owner: dict[int, set[str]] = {}
        self._waiting_for_rate: Ranking[str] = Ranking()

    def __len__(self) -> int:
        return sum(len(lane.keys) for lane in self._lanes.values())

    @property
    def lanes(self) -> Mapping[bytes, Lane]:
        return self._lanes

    # --- jobs that wait -------------------------------------------------------------------------------------------

    def add(self, key: bytes, demand: Demand) -> None:
        """Take in a job that has just begun to wait."""
        prefix = keys.lane_of(key)
        lane = self._lanes.get(prefix)
        if lane is None:
            lane = self._make_lane(prefix, demand)
        if lane.complete or key <= lane.horizon:
            head = lane.keys[0] if lane.keys else None
            lane.add(key)
            if lane.keys[0] != head:
                self._offer(prefix, lane)

    def remove(self, key: bytes) -> None:
        """Forget a job that waits no longer; one that is not held is ignored."""
        prefix = keys.lane_of(key)
        lane = self._lanes.get(prefix)
        if lane is not None and lane.keys:
            head = lane.keys[0]
            lane.discard(key)
            if key == head:
                self._after_head(prefix, lane)

    def wants_more(self) -> list[tuple[bytes, bytes]]:
        """Return (lane, key after which to read) of the lanes that have run low while the store has more."""
        return [(prefix, self._lanes[prefix].horizon) for prefix in sorted(self._low)]

    def fill(self, prefix: bytes, rows: Sequence[tuple[bytes, Demand]], more: bool) -> None:
        """Take in the next jobs of a lane in key order, as read from the store; `more` if there are still others."""
        self._low.discard(prefix)
        lane = self._lanes.get(prefix)
        if lane is None:
            if not rows:
                return
            lane = self._make_lane(prefix, rows[0][1])
        lane.keys += [key for key, _ in rows if not lane.keys or key > lane.keys[-1]]
        lane.complete = not more
        lane.horizon = (rows[-1][0] if rows else lane.horizon) if more else b""
        self._after_head(prefix, lane)

    def _make_lane(self, prefix: bytes, demand: Demand) -> Lane:
        queue_name, owner = keys.share_of(prefix)
        share = self._queues.setdefault(queue_name, _Queue()).shares.setdefault(owner, _Share())
        group = self.parking.join(queue_name, owner, demand)
        share.groups[group.key.shape] = group
        group.size += 1
        lane = self._lanes[prefix] = Lane(group, demand)
        return lane

    def _after_head(self, prefix: bytes, lane: Lane) -> None:
        """The lane has another head than before, or none."""
        if not lane.complete and len(lane.keys) < LOW_WATER:
            self._low.add(prefix)
        if lane.keys:
            self._offer(prefix, lane)
            return
        lane.group.lanes.discard(prefix)
        if lane.complete:
            self._drop(prefix, lane)
        self._rerank(lane.group)

    def _drop(self, prefix: bytes, lane: Lane) -> None:
        """Forget an empty lane, and what is empty without it."""
        del self._lanes[prefix]
        self._low.discard(prefix)
        if lane.concurrency_key is not None:
            self._waiting_for_key.get(lane.concurrency_key, set()).discard(prefix)
        group = lane.group
        group.size -= 1
        if group.size:
            return
        name, owner, shape = group.key
        queue = self._queues[name]
        share = queue.shares[owner]
        self.parking.leave(group)
        del share.groups[shape]
        share.ranking.discard(shape)
        if not share.groups:
            del queue.shares[owner]
            queue.owners.remove(owner)
        if not queue.shares:
            del self._queues[name]
            self._ranking.remove(name)

    # --- what may run ---------------------------------------------------------------------------------------------

    def _offer(self, prefix: bytes, lane: Lane) -> None:
        """The lane may run, as far as is known; rank it by its head."""
        lane.group.lanes.set(prefix, keys.queue_order(lane.keys[0]))
        self.offer_group(lane.group)

    def offer_group(self, group: Group) -> None:
        """The group may run, as far as is known, unless its shape fits nowhere."""
        if self.parking.keep(group):
            return
        self._rerank(group)
        self._offer_share(group.key.queue, group.key.owner)

    def _rerank(self, group: Group) -> None:
        queue = self._queues.get(group.key.queue)
        share = None if queue is None else queue.shares.get(group.key.owner)
        if share is None:
            return
        prefix = group.lanes.first()
        if prefix is None or group.parked:
            share.ranking.discard(group.key.shape)
        else:
            share.ranking.set(group.key.shape, keys.queue_order(self._lanes[prefix].keys[0]))

    def _offer_share(self, name: str, owner: int) -> None:
        queue = self._queues.get(name)
        if queue is not None and owner in queue.shares:
            queue.owners.admit(owner, self.usage.of_share(name, owner), self.owner(owner).weight)
            self._offer_queue(name)

    def _offer_queue(self, name: str) -> None:
        if name in self._queues:
            self._ranking.admit(name, self.usage.of_queue(name), self.queue(name).weight)

    def first_group(self, now_ms: int) -> Group | None:
        """Return the group whose turn it is; parks the queues and owners on the way that may not start anything."""
        while (name := self._ranking.first()) is not None:
            owners = self._queues[name].owners
            owner = owners.first()
            if owner is None or not self._queue_may_start(name, now_ms):
                self._ranking.remove(name)
                continue
            shape = self._queues[name].shares[owner].ranking.first()
            if shape is None or not self._owner_may_start(name, owner):
                owners.remove(owner)
                continue
            return self._queues[name].shares[owner].groups[shape]
        return None

    def may_start(self, group: Group, now_ms: int) -> bool:
        """Tell whether no limit of its queue and owner is against a start from the group."""
        name, owner, _ = group.key
        return self._queue_may_start(name, now_ms) and self._owner_may_start(name, owner)

    def _queue_may_start(self, name: str, now_ms: int) -> bool:
        record = self.queue(name)
        if record.paused or not _below(record.max_running, self.usage.of_queue(name)):
            return False
        due_ms = rate.allowed_from_ms(self._arrivals_us.get(name, 0), record, now_ms)
        if due_ms is not None:
            self._waiting_for_rate.set(name, due_ms)
        return due_ms is None

    def _owner_may_start(self, name: str, owner: int) -> bool:
        if not _below(self.owner(owner).max_running, self.usage.of_owner(owner)):
            self._waiting_for_owner.setdefault(owner, set()).add(name)
            return False
        return _below(self.queue(name).max_running_per_owner, self.usage.of_share(name, owner))

    def first_lane(self, group: Group) -> Lane | None:
        """Return the lane of the group whose turn it is; parks those on the way whose concurrency key is taken."""
        while (prefix := group.lanes.first()) is not None:
            lane = self._lanes[prefix]
            key = lane.concurrency_key
            if key is None or len(self.usage.holders(key)) < lane.concurrency_limit:
                return lane
            self._waiting_for_key.setdefault(key, set()).add(prefix)
            group.lanes.discard(prefix)
        self._rerank(group)
        return None

    def park(self, group: Group, due_ms: int) -> None:
        """The group fits nowhere as things are; at `due_ms` it has waited long enough for a reservation."""
        self.parking.park(group, due_ms)
        self._rerank(group)

    def take(self, lane: Lane, now_ms: int) -> tuple[bytes, int | None] | None:
        """Take the head of a lane out and count it as running.

        Returns its key, and the queue's theoretical arrival time if it has a rate; None for a job that runs already.
        """
        key = lane.keys.pop(0)
        job, prefix = keys.job_of(key), keys.lane_of(key)
        name, owner, _ = lane.group.key
        arrival_us: int | None = None
        known = job in self.usage
        if not known:
            lane.group.shape.served_ms = now_ms
            self.usage.start(job, Run(name, owner, lane.concurrency_key))
            record = self.queue(name)
            if record.rate_count is not None:
                arrival_us = rate.after_start(self._arrivals_us.get(name, 0), record, now_ms)
                self._arrivals_us[name] = arrival_us
            self._queues[name].owners.serve(owner, self.owner(owner).weight)
            self._ranking.serve(name, record.weight)
            self._recount(name, owner)
        self._after_head(prefix, lane)
        return None if known else (key, arrival_us)

    def head_ms(self, group: Group) -> int | None:
        """Return since when the group's first job is ready; None when a concurrency key holds all of them."""
        lane = self.first_lane(group)
        return None if lane is None else keys.ready_ms_of(lane.keys[0])

    # --- events that let something run ----------------------------------------------------------------------------

    def start(self, job: JobId, run: Run) -> None:
        """A job runs that was not taken from here: it was running before."""
        self.usage.start(job, run)
        self._recount(run.queue, run.owner)

    def end(self, job: JobId) -> None:
        """A job runs no longer, or was not started after all; one that is not counted is ignored."""
        run = self.usage.end(job)
        if run is None:
            return
        self._recount(run.queue, run.owner)
        if run.concurrency_key is not None:
            for prefix in sorted(self._waiting_for_key.pop(run.concurrency_key, ())):
                self._offer(prefix, self._lanes[prefix])
        for name in sorted(self._waiting_for_owner.pop(run.owner, ())):
            self._offer_share(name, run.owner)
        self._offer_share(run.queue, run.owner)
        self._offer_queue(run.queue)

    def set_limits(self, queues: Mapping[str, QueueRecord], owners: Mapping[int, OwnerRecord]) -> None:
        """Look at these records from now on; `changed` tells what has changed in them."""
        self._queue_records, self._owner_records = queues, owners

    def queue(self, name: str) -> QueueRecord:
        return self._queue_records.get(name, _NO_QUEUE_RECORD)

    def owner(self, owner: int) -> OwnerRecord:
        return self._owner_records.get(owner, _NO_OWNER_RECORD)

    def queue_changed(self, name: str) -> None:
        """The settings of a queue are other than before."""
        queue = self._queues.get(name)
        if queue is not None:
            for owner in sorted(queue.shares):
                self._offer_share(name, owner)

    def owner_changed(self, owner: int) -> None:
        """The settings of an owner are other than before."""
        self._waiting_for_owner.pop(owner, None)
        for name in sorted(name for name, queue in self._queues.items() if owner in queue.shares):
            self._offer_share(name, owner)

    def set_arrival(self, name: str, arrival_us: int) -> None:
        """Go on with a queue's rate from where it was."""
        self._arrivals_us[name] = arrival_us

    def arrival_us(self, name: str) -> int:
        return self._arrivals_us.get(name, 0)

    def pass_time(self, now_ms: int) -> None:
        """Let the queues go on whose rate allows it by now."""
        waiting = self._waiting_for_rate
        while (name := waiting.first()) is not None and waiting.rank(name) <= now_ms:
            waiting.discard(name)
            self._offer_queue(name)

    def next_moment_ms(self) -> int | None:
        """Return when time by itself next changes what may run."""
        name, due_ms = self._waiting_for_rate.first(), self.parking.next_due_ms()
        moments = [] if name is None else [self._waiting_for_rate.rank(name)]
        return min(moments if due_ms is None else [*moments, due_ms], default=None)

    def _recount(self, name: str, owner: int) -> None:
        queue = self._queues.get(name)
        if queue is not None:
            queue.owners.update(owner, self.usage.of_share(name, owner), self.owner(owner).weight)
            self._ranking.update(name, self.usage.of_queue(name), self.queue(name).weight)


def _below(limit: int | None, count: int) -> bool:
    return limit is None or count < limit
