"""Any writes at both sides, any kill, any compaction: what a sync comes to in the end, and what it has recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import OperationUnderWay, ReplicationConflict
from jobs.protocol.model import ConflictPolicy
from jobs.replication import batches, comparing, judge, keysync
from jobs.store import Compact, Delete, Op, Put, Txn
from tests.support.sides import FakeClock, Fragile, Killed, MemoryCluster, sync, work

SOURCE_PREFIX = "/data/from/"
TARGET_PREFIX = "/data/to/"
MEDDLED_CALLS = 200


@contextmanager
def small(rng: Random) -> Iterator[None]:
    """Have batches, pieces and pages so small that there are many of them."""
    with pytest.MonkeyPatch.context() as patch:
        if rng.random() < 0.7:
            patch.setattr(batches, "BATCH_CHANGES", rng.choice([1, 3, 20]))
            patch.setattr(keysync, "PAGE_ROWS", rng.choice([1, 2, 50]))
            patch.setattr(keysync, "PAGE_EVENTS", rng.choice([1, 5, 50]))
            patch.setattr(comparing, "LEVELS", rng.choice([(32, 4, 1), (16, 1), (64, 16, 4, 1)]))
            patch.setattr(comparing, "PAGE_PIECES", rng.choice([1, 3]))
            patch.setattr(comparing, "GROUP_ROWS", rng.choice([1, 10, 100]))
            patch.setattr(judge, "MAX_CONFLICTS", rng.choice([1, 2, 90]))
        yield


class Play:
    """One sync, and everything that happens around it, drawn from a seed."""

    def __init__(self, seed: int, policy: ConflictPolicy, *, keys_there: int, target_compacts: bool) -> None:
        self.rng = Random(seed)
        self.policy = policy
        self.names = [f"{number:03d}" for number in range(keys_there)]
        self.source, self.target = MemoryCluster("one"), MemoryCluster("two")
        self.source.put("/data/else", b"first")
        self.target_compacts = target_compacts
        self.foreign: set[int] = set()
        """Revisions of the target at which others changed it."""
        self.kill_at = 0
        self.calls = 0
        self.meddling = True

    # --- what happens -------------------------------------------------------------------------------------------------

    def write(self, cluster: MemoryCluster, prefix: str, most: int) -> None:
        names = self.rng.sample(self.names, self.rng.randint(1, min(most, len(self.names))))
        ops: list[Op] = [
            Delete((prefix + name).encode())
            if self.rng.random() < 0.3
            else Put((prefix + name).encode(), b"%s %d" % (cluster.cluster.encode(), self.rng.randint(0, 1 << 40)))
            for name in names
        ]
        before = cluster.store.revision
        done = cluster.propose(Txn(then=tuple(ops)))
        if cluster is self.target and done.revision > before:
            self.foreign.add(done.revision)

    def happen(self) -> None:
        what = self.rng.random()
        if what < 0.5:
            self.write(self.source, SOURCE_PREFIX, 8)
        elif what < 0.7:
            self.write(self.target, TARGET_PREFIX, 3)
        elif what < 0.75:
            self.source.put("/data/else", b"%d" % self.rng.randint(0, 1 << 40))
        elif what < 0.8:
            self.source.compact(self.rng.randint(1, self.source.store.revision))
        elif what < 0.85 and self.target_compacts:
            self.target.write(Compact(self.rng.randint(0, self.target.store.revision)))

    def hook(self, name: str, when: str) -> None:
        """Called before and after each question to a side."""
        self.calls += 1
        # Not for ever: a sync that is slower than what is written never gets there.
        if self.meddling and self.calls < MEDDLED_CALLS and self.rng.random() < 0.3:
            self.happen()
        if self.calls == self.kill_at:
            raise Killed(name, when)

    def run(self, *holders: str, restart: bool = False) -> None:
        """Run it once, or twice at the same time, of which one at most goes on."""
        with small(self.rng):
            asyncio.run(self._run(holders, restart))

    async def _run(self, holders: tuple[str, ...], restart: bool) -> None:
        runs = []
        for holder in holders:
            clock = FakeClock(step_s=self.rng.choice([0.01, 1.0, 30.0]))
            source, target = Fragile(self.source.side, self.hook), Fragile(self.target.side, self.hook)
            wanted = work(
                prefix=SOURCE_PREFIX, target_prefix=TARGET_PREFIX, policy=self.policy, holder=holder, restart=restart
            )
            runs.append(sync(source, target, wanted, clock).run())
        ended = await asyncio.gather(*runs, return_exceptions=True)
        failed = [one for one in ended if isinstance(one, BaseException) and not isinstance(one, OperationUnderWay)]
        if failed:
            raise failed[0]
        assert any(not isinstance(one, BaseException) for one in ended), "one of them goes on"

    def all(self) -> None:
        for _ in range(self.rng.randint(0, 12)):
            self.happen()
        self.target.before_propose = lambda: self.happen() if self.meddling and self.rng.random() < 0.1 else None
        for number in range(self.rng.randint(1, 5)):
            self.calls, self.kill_at = 0, self.rng.randint(1, 40)
            with suppress(Killed, ReplicationConflict):
                holders = [f"job{number}/{which}" for which in range(1 if self.rng.random() < 0.7 else 2)]
                self.run(*holders)
            for _ in range(self.rng.randint(0, 10)):
                self.happen()
        self.meddling, self.kill_at = False, 0

    # --- what has to hold ---------------------------------------------------------------------------------------------

    def check_equal(self) -> None:
        assert self.target.data(TARGET_PREFIX) == self.source.data(SOURCE_PREFIX)

    def check_conflicts(self, *, exactly: bool) -> None:
        """Whatever of others the sync has overwritten or deleted is recorded; `exactly`: nothing else is."""
        recorded = {
            (one.key, one.target_revision) for one in self.target.conflicts("origin", "s") if one.target_revision
        }
        events, _ = self.target.store.events(0, [b"/data/to/"], limit=1_000_000)
        last: dict[bytes, tuple[int, bool]] = {}
        overwritten: set[tuple[bytes, int]] = set()
        for revision, key, value, *_ in sorted(events):
            if revision not in self.foreign and key in last and last[key][0] in self.foreign and last[key][1]:
                overwritten.add((key, last[key][0]))
            last[key] = revision, value is not None
        assert overwritten <= recorded
        if exactly:
            assert overwritten == recorded


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 60), keys_there=st.sampled_from([3, 40, 300]))
def test_after_any_kills_both_sides_are_equal_and_every_conflict_is_recorded(seed: int, keys_there: int) -> None:
    play = Play(seed, "source", keys_there=keys_there, target_compacts=False)
    play.all()
    play.run("last/1", restart=True)
    play.check_equal()
    play.check_conflicts(exactly=True)
    revision = play.target.store.revision
    play.run("idle/1")
    assert play.target.store.revision == revision + 1, "only the cursor has another holder"


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 60))
def test_a_target_that_forgets_its_history_loses_no_conflict_and_no_key(seed: int) -> None:
    play = Play(seed, "source", keys_there=40, target_compacts=True)
    play.all()
    play.run("last/1", restart=True)
    play.check_equal()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 60))
def test_without_writes_of_others_nothing_is_a_conflict_whatever_is_forgotten(seed: int) -> None:
    play = Play(seed, "fail", keys_there=60, target_compacts=True)
    write = play.write
    play.write = lambda cluster, prefix, most: write(play.source, SOURCE_PREFIX, most)  # type: ignore[method-assign]
    play.all()
    play.run("last/1")
    play.check_equal()
    assert play.target.conflicts("origin", "s") == []


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 60))
def test_with_the_policy_fail_nothing_of_others_is_ever_overwritten(seed: int) -> None:
    play = Play(seed, "fail", keys_there=40, target_compacts=False)
    play.all()
    try:
        play.run("last/1")
    except ReplicationConflict:
        assert play.target.conflicts("origin", "s")
    events, _ = play.target.store.events(0, [b"/data/to/"], limit=1_000_000)
    last: dict[bytes, int] = {}
    for revision, key, value, *_ in sorted(events):
        if key in last and last[key] in play.foreign and revision not in play.foreign:
            pytest.fail(f"{key!r} of revision {last[key]} was changed at {revision}")
        if value is not None:
            last[key] = revision
        else:
            last.pop(key, None)
