"""One plan: which waiting job goes to which worker now. Pure but for the backlog, whose jobs it takes.

The order is by queue, owner, priority and age: the queue with least running for its weight, in it the owner with least
running for its weight, of its jobs the one with the highest priority, of these the oldest. A job whose turn comes is
given the best room there is for it. One that fits nowhere is parked, and stops nobody behind it.

A plan costs O(w) for w workers, and for each assignment O(w + log n) with n lanes. What it finds unable to run it
parks, at O(log n) once for each event that had put it back; parked jobs are not looked at. Room that grows on a worker
costs one look at each different shape parked that could ever run there, and at each queue and owner that wait with a
shape that now fits. So it does not grow with the queue, nor with the lanes that wait for something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from jobs import keys
from jobs.protocol.ids import Incarnation, JobId, WorkerId
from jobs.scheduler.backlog import Backlog, Lane
from jobs.scheduler.parking import RESERVE_AFTER_MS, Group, ShapeState
from jobs.scheduler.rooms import Candidate, Room, best_room, fits

LOOKS_PER_ASSIGNMENT: Final = 16
"""A plan looks at no more jobs than this for each that it may assign, so that it never takes long."""


class Assignment(Struct, frozen=True):
    queue_key: bytes
    job: JobId
    worker: WorkerId
    incarnation: Incarnation
    queue: str
    owner: int
    arrival_us: int | None
    """Where the queue's rate has got with this start, if it has one: to be stored with the assignment."""


class Plan(Struct, frozen=True):
    assignments: list[Assignment]
    wake_ms: int | None
    """When to plan again if nothing happens until then; not later than now if there is more to do already."""


def plan(backlog: Backlog, workers: Iterable[Candidate], now_ms: int, limit: int) -> Plan:
    """Take at most `limit` jobs out of the backlog for the workers, and count them as running.

    One that is not started after all is to be given back by `backlog.end`, and by `backlog.add` if it still waits.
    """
    return _Planning(backlog, workers, now_ms, limit).run()


class _Planning:
    def __init__(self, backlog: Backlog, workers: Iterable[Candidate], now_ms: int, limit: int) -> None:
        self._backlog = backlog
        self._parking = backlog.parking
        self._workers = sorted(workers, key=lambda worker: worker.worker)
        self._rooms = {worker.worker: Room(worker) for worker in self._workers if worker.open}
        self._now_ms = now_ms
        self._limit = limit
        self._assignments: list[Assignment] = []
        self._more = False

    def run(self) -> Plan:
        backlog, parking = self._backlog, self._parking
        parking.observe(self._workers)
        backlog.pass_time(self._now_ms)
        parking.reserve(self._rooms, self._since_ms, self._now_ms)
        for group in parking.wake(self._rooms):
            backlog.offer_group(group)
        self._held = {
            name: room
            for name, state in parking.reserved.items()
            if fits(state.shape.requires, room := self._rooms[name])
        }
        self._open = {
            name: room for name, room in self._rooms.items() if name not in parking.reserved and room.slots > 0
        }
        self._assign()
        parking.remember(self._workers, self._rooms)
        wake_ms = self._now_ms if self._more else backlog.next_moment_ms()
        return Plan(self._assignments, wake_ms)

    def _assign(self) -> None:
        looks = self._limit * LOOKS_PER_ASSIGNMENT
        while self._open or self._held:
            if len(self._assignments) == self._limit or looks == 0:
                self._more = True
                return
            looks -= 1
            group = self._backlog.first_group(self._now_ms)
            if group is None:
                return
            lane = self._backlog.first_lane(group)
            if lane is None:
                continue
            room = self._room_for(group)
            if room is None:
                self._park(group)
            else:
                self._give(lane, room)

    def _room_for(self, group: Group) -> Room | None:
        """Return the best room for a job of the group; its own reserved one comes before all others."""
        own = [room for name, room in self._held.items() if self._parking.reserved.get(name) is group.shape]
        shape = group.shape.shape
        return best_room(shape, own) or best_room(shape, self._open.values())

    def _give(self, lane: Lane, room: Room) -> None:
        group, worker = lane.group, room.worker
        requires = group.shape.shape.requires
        taken = self._backlog.take(lane, self._now_ms)
        if taken is None:
            return
        key, arrival_us = taken
        queue, owner, _ = group.key
        self._assignments.append(
            Assignment(key, keys.job_of(key), worker.worker, worker.incarnation, queue, owner, arrival_us)
        )
        room.take(requires)
        if worker.worker in self._held:
            # What is left of it is given out by the next plan, in which the next reservation comes first.
            del self._held[worker.worker]
            self._parking.free(worker.worker)
            self._more = True
        elif room.slots == 0:
            del self._open[worker.worker]

    def _park(self, group: Group) -> None:
        since = None if group.shape.parked else self._since_ms(group.shape)
        self._backlog.park(group, (self._now_ms if since is None else since) + RESERVE_AFTER_MS)

    def _since_ms(self, state: ShapeState) -> int | None:
        """Return since when a job of the shape waits while none is started; None when limits hold all of them."""
        heads = [
            head
            for group in state.groups.values()
            if (head := self._backlog.head_ms(group)) is not None and self._backlog.may_start(group, self._now_ms)
        ]
        return max(min(heads), state.served_ms) if heads else None
