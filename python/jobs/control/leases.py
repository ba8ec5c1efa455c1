"""Time to live of leases: kept by the leader in memory, ended by a log entry.

A lease's id and time to live are in the store, the moment it runs out is not: a new leader gives every lease its full
time again. Keeping a lease alive therefore writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final

from jobs.consensus import Consensus
from jobs.control.tasks import Spawn
from jobs.control.transitions import check
from jobs.errors import LeaseNotFound
from jobs.protocol.ids import NO_REQUEST, LeaseId, RequestId
from jobs.protocol.wire import LeaseEnds
from jobs.store import LeaseRevoke, Store, Txn

logger = logging.getLogger(__name__)

LOAD_LEASES: Final = 1_024
"""Leases that are taken up before others have their turn."""
MAX_TOLD: Final = 10_000
"""Of more leases queries are not told when they run out."""
STALL_S: Final = 0.5
"""A timer this late was held up."""


class Leases:
    """The leases of the store and when each runs out, in seconds of the loop's clock."""

    def __init__(self, consensus: Consensus, store: Store, spawn: Spawn) -> None:
        self._consensus = consensus
        self._store = store
        self._spawn = spawn
        self._ttl_s: dict[LeaseId, float] = {}
        self._timers: dict[LeaseId, asyncio.TimerHandle] = {}
        self._deadline: dict[LeaseId, float] = {}
        self._began_s = math.inf
        """Before this nobody could keep a lease."""
        self._stopped = False
        self.on_expired: Callable[[LeaseId], Coroutine[Any, Any, None] | None] = lambda lease: None
        """Asked when a lease runs out; what it returns is done instead of the plain revocation."""

    async def load(self) -> None:
        """Take up every lease in the store."""
        self._loop = asyncio.get_running_loop()
        for number, (lease, ttl_ms) in enumerate(self._store.leases()):
            self.keep(LeaseId(lease), ttl_ms / 1000)
            if number % LOAD_LEASES == LOAD_LEASES - 1:
                await asyncio.sleep(0)

    def start(self) -> None:
        """Give every lease its full time from now on."""
        self._began_s = self._loop.time()

    def stop(self) -> None:
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def keep(self, lease: LeaseId, ttl_s: float | None = None) -> None:
        """Start the lease's time anew. Raises LeaseNotFound for one that is not there and no `ttl_s` given."""
        if ttl_s is not None:
            self._ttl_s[lease] = ttl_s
        self.check(lease)
        self._deadline[lease] = self._loop.time() + self._ttl_s[lease]
        if lease not in self._timers and not self._stopped:
            self._timers[lease] = self._loop.call_at(self._deadline[lease], self._check, lease)

    def check(self, lease: LeaseId) -> None:
        """Raise LeaseNotFound unless the lease is there."""
        if lease not in self._ttl_s:
            raise no_lease(lease)

    def remaining_s(self, lease: LeaseId) -> float:
        return min(self._ttl_s[lease], max(0.0, self._due_s(lease) - self._loop.time()))

    def ends(self, now_ms: int) -> LeaseEnds | None:
        """Return when each lease runs out by the wall clock unless it is kept; None for more than MAX_TOLD."""
        if len(self._ttl_s) > MAX_TOLD:
            return None
        ends_ms: dict[int, int] = {lease: now_ms + round(self.remaining_s(lease) * 1_000) for lease in self._ttl_s}
        return LeaseEnds(at_ms=now_ms, ends_ms=ends_ms)

    def ttl_s(self, lease: LeaseId) -> float:
        return self._ttl_s[lease]

    def forget(self, lease: LeaseId) -> None:
        """The lease is revoked: stop its time."""
        self._ttl_s.pop(lease, None)
        self._deadline.pop(lease, None)
        timer = self._timers.pop(lease, None)
        if timer is not None:
            timer.cancel()

    async def revoke(self, lease: LeaseId, request: RequestId = NO_REQUEST) -> bool:
        """End the lease and delete its keys; tell whether it was there."""
        self.forget(lease)
        done = await self._consensus.propose(Txn(then=(LeaseRevoke(lease),), request_id=request))
        check(done)
        return done.results[0] is not None

    async def clean(self, *, dry_run: bool) -> int:
        """End the leases that are in the store and whose time nobody keeps: ending them failed when they ran out.

        Returns how many those are.
        """
        strays = self._strays()
        if strays:
            # Who has just been given one is told of it before this returns, and then its time is kept.
            check(await self._consensus.propose(Txn()))
            strays &= self._strays()
        if not dry_run:
            for lease in sorted(strays):
                await (self.on_expired(lease) or self._expire(lease))
        return len(strays)

    def _strays(self) -> set[LeaseId]:
        return {LeaseId(lease) for lease, _ in self._store.leases() if lease not in self._ttl_s}

    def _due_s(self, lease: LeaseId) -> float:
        return max(self._deadline[lease], self._began_s + self._ttl_s[lease])

    def _check(self, lease: LeaseId) -> None:
        """A timer rang; the lease may have been kept since it was set.

        A timer that rings late means that this process stood still, and signs of life wait to be read: the lease gets
        its time anew, so that a stopped or swapped-out node does not lose all its workers when it goes on.
        """
        now_s = self._loop.time()
        late_s = now_s - self._due_s(lease)
        if late_s > STALL_S:
            self._deadline[lease] = now_s + self._ttl_s[lease]
        if late_s < 0 or late_s > STALL_S:
            due_s = min(self._due_s(lease), now_s + self._ttl_s[lease])
            self._timers[lease] = self._loop.call_at(due_s, self._check, lease)
            return
        logger.info("lease ran out", extra={"lease": lease})
        self.forget(lease)
        self._spawn(self.on_expired(lease) or self._expire(lease))

    async def _expire(self, lease: LeaseId) -> None:
        await self.revoke(lease)


def no_lease(lease: LeaseId) -> LeaseNotFound:
    """Return what is to be raised for a lease that is not there."""
    return LeaseNotFound(f"there is no lease {lease}: it was revoked or ran out")
