"""Clusters of one store in memory as sides of a sync, which can be made to fail at any call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from msgspec import structs

from jobs import keys, records
from jobs._native import MemoryStore
from jobs.control.hub import Hub, Waiter
from jobs.errors import Unavailable
from jobs.protocol.model import Throttle
from jobs.records import ConflictRecord
from jobs.replication import messages as m
from jobs.replication.applying import plan
from jobs.replication.keysync import KeySync
from jobs.replication.localkeys import LocalKeys
from jobs.replication.run import Clock, Progress, Work
from jobs.replication.throttle import Limiter
from jobs.replication.times import KnownTimes
from jobs.store import Compact, Delete, Op, Put, Store, Txn, TxnResult, decode_results, encode_command, prefix_end


class MemoryCluster:
    """A cluster that is one store; also the way to its leader, and the store as it is kept up to date."""

    def __init__(self, cluster: str, store: Store | None = None, max_conflicts: int = 100_000) -> None:
        self.cluster = cluster
        self.store: Store = MemoryStore() if store is None else store
        self.hub = Hub(self.store)
        self.max_conflicts = max_conflicts
        self.now_ms = 1_000_000
        self.side = LocalKeys(self.store, self, self, cluster, cluster)
        self._times = KnownTimes(self.store)
        self.before_propose: Callable[[], None] = lambda: None
        """Called between plan and transaction."""

    # --- writes -------------------------------------------------------------------------------------------------------

    def propose(self, txn: Txn) -> TxnResult:
        (results,) = self.store.apply([(self.store.applied_index + 1, 1, encode_command([txn]))])
        (done,) = decode_results(results)
        assert not done.error, done.error
        self.hub.on_applied()
        return done

    def write(self, *ops: Op) -> int:
        return self.propose(Txn(then=ops)).revision

    def put(self, key: str, value: bytes) -> int:
        return self.write(Put(key.encode(), value))

    def delete(self, key: str) -> int:
        return self.write(Delete(key.encode()))

    def compact(self, revision: int = 0) -> None:
        self.write(Compact(revision or self.store.revision))

    def data(self, prefix: str) -> dict[bytes, bytes]:
        start = prefix.encode()
        rows, more = self.store.range(start, prefix_end(start), limit=1_000_000, max_bytes=1 << 30)
        assert not more
        return {row[0][len(start) :]: row[1] for row in rows}

    def conflicts(self, origin: str, name: str) -> list[ConflictRecord]:
        start = keys.sync_conflicts_prefix(origin, name)
        rows, _ = self.store.range(start, prefix_end(start), limit=1_000_000)
        return [records.decode(ConflictRecord, row[1]) for row in rows]

    # --- what a side of it asks ---------------------------------------------------------------------------------------

    async def reached(self) -> int:
        await asyncio.sleep(0)
        return self.store.revision

    async def reach(self, revision: int) -> None:
        assert self.store.revision >= revision

    def waiter(self, *prefixes: bytes) -> AbstractContextManager[Waiter]:
        return self.hub.waiter(*prefixes)

    def on_read(self, revision: int) -> None:
        self.hub.on_read(revision)

    async def apply(self, batch: m.Batch) -> m.Applied:
        await asyncio.sleep(0)
        while True:
            planned = plan(self.store, batch, self.now_ms, self._time_of, self.max_conflicts)
            if planned.txn is not None:
                self.before_propose()
                done = self.propose(planned.txn)
                if not done.succeeded:
                    continue
            if planned.conflict is not None:
                raise planned.conflict
            if planned.txn is None:
                return planned.applied
            return structs.replace(planned.applied, mod_revision=done.revision)

    def _time_of(self, revision: int) -> int:
        return self._times.of(revision, self.now_ms)

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied:
        raise NotImplementedError


class Killed(Exception):
    """The process ended here."""


class Fragile:
    """A side behind a wire: each call may be told to `hook`, before and after it has had its effect."""

    def __init__(self, side: Any, hook: Callable[[str, str], None]) -> None:
        self._side = side
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._side, name)
        if not callable(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._hook(name, "before")
            answer = await found(*args, **kwargs)
            self._hook(name, "after")
            return answer

        return call


class FakeClock:
    """Goes on by itself at each look, and at each pause."""

    def __init__(self, step_s: float = 0.01) -> None:
        self.at_s = 1_000.0
        self.step_s = step_s
        self.paused_s = 0.0

    def now_s(self) -> float:
        self.at_s += self.step_s
        return self.at_s

    async def pause(self, delay_s: float) -> None:
        self.paused_s += delay_s
        self.at_s += delay_s
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(now_s=self.now_s, now_ms=lambda: int(self.at_s * 1_000), pause=self.pause)


def work(name: str = "s", prefix: str = "/data/a/", target_prefix: str | None = None, **fields: Any) -> Work:
    return Work(
        origin="origin",
        name=name,
        holder=fields.pop("holder", "job/1"),
        prefix=prefix,
        target_prefix=prefix if target_prefix is None else target_prefix,
        **fields,
    )


def sync(
    source: Any,
    target: Any,
    wanted: Work,
    clock: FakeClock | None = None,
    throttle: Throttle | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> KeySync:
    clock = clock or FakeClock()
    return KeySync(source, target, wanted, Limiter(throttle or Throttle(), clock.now_s()), clock.clock, tell)


__all__ = ["FakeClock", "Fragile", "Killed", "MemoryCluster", "Unavailable", "sync", "work"]
