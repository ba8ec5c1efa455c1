"""Batches of a sync at a real leader, while others write the same keys, answers are lost, and it starts again.

What happened is read from the target's own history: every transaction is either the sync's, which moves the cursor, or
somebody else's. So it is checked whatever order they came in.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from pathlib import Path

import pytest
from msgspec.structs import replace

from jobs import keys, records
from jobs._native import NativeError
from jobs.clock import wall_ms
from jobs.errors import JobsError, ReplicationConflict, RevisionConflict
from jobs.protocol.ids import RequestId
from jobs.protocol.model import ConflictPolicy, Content, KvDelete, KvPut
from jobs.records import ConflictRecord, CursorRecord
from jobs.replication.messages import ABSENT, PRESENT, UNKNOWN, Batch, Change, digest_of
from jobs.store import prefix_end
from tests.support.plane import ALICE, CLUSTER, Plane

SOURCE = "d" * 32
PREFIX = b"/data/copy/"
NAMES = [b"k%02d" % number for number in range(14)]
CURSOR = CursorRecord(source=SOURCE, prefix="/data/", target_prefix=PREFIX.decode(), is_tags=False, upstream=(SOURCE,))
END = b"~"
OLD_MS = 60_000


class Source:
    """What a source has had at each of its revisions."""

    def __init__(self) -> None:
        self.log: list[tuple[bytes, bytes | None, int]] = []
        """(key, value, time) by revision, from 1 on."""

    def write(self, name: bytes, value: bytes | None, at_ms: int) -> None:
        self.log.append((name, value, at_ms))

    def at(self, revision: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for name, value, _ in self.log[:revision]:
            if value is None:
                found.pop(name, None)
            else:
                found[name] = value
        return found

    def _time_of(self, name: bytes) -> int:
        return self.log[self.last_change(name) - 1][2]

    def last_change(self, name: bytes) -> int:
        return max((number for number, one in enumerate(self.log, 1) if one[0] == name), default=0)

    def changes(self, after: int, up_to: int) -> tuple[Change, ...]:
        """What changed, once a key, with what was there before."""
        before, now = self.at(after), {}
        for revision, (name, value, at_ms) in enumerate(self.log[after:up_to], after + 1):
            base = digest_of(before[name]) if name in before else ABSENT
            now[name] = Change(name, value, revision, at_ms, base)
        return tuple(now.values())

    def differences(self, there: dict[bytes, bytes], position: int) -> tuple[Change, ...]:
        """What a comparison finds, which knows of before only whether a key was there."""
        here, before, newest = self.at(len(self.log)), self.at(position), len(self.log)
        found = [
            Change(name, value, newest, self._time_of(name), PRESENT if name in before else UNKNOWN)
            for name, value in here.items()
            if there.get(name) != value
        ]
        return (*found, *(Change(name, None, 0) for name in there if name not in here))


class Sync:
    """An executor, as far as the target sees one: it reads the cursor, sends the next batch, and may not hear of it."""

    def __init__(self, plane: Plane, source: Source, chance: random.Random) -> None:
        self.plane = plane
        self.source = source
        self.chance = chance

    def cursor(self) -> tuple[CursorRecord, int]:
        row = self.plane.store.get(keys.sync_cursor(CLUSTER, "s"))
        return (CURSOR, 0) if row is None else (records.decode(CursorRecord, row[1]), row[4])

    def there(self) -> dict[bytes, bytes]:
        rows, _ = self.plane.store.range(PREFIX, prefix_end(PREFIX), limit=1_000)
        return {row[0][len(PREFIX) :]: row[1] for row in rows}

    def next(self, policy: ConflictPolicy) -> Batch:
        cursor, expected = self.cursor()
        newest = len(self.source.log)
        if cursor.comparing:
            wanted, changes = self._compare(cursor, newest)
        elif cursor.position == 0 or self.chance.random() < 0.1:
            wanted, changes = replace(cursor, comparing=newest, after=b""), ()
        else:
            up_to = min(newest, cursor.position + self.chance.randint(1, 8))
            wanted, changes = replace(cursor, position=up_to), self.source.changes(cursor.position, up_to)
        return Batch(CLUSTER, "s", expected, wanted, changes, policy)

    def _compare(self, cursor: CursorRecord, newest: int) -> tuple[CursorRecord, tuple[Change, ...]]:
        """Go on to another key, and follow what has changed before it."""
        up_to = self.chance.choice([name for name in NAMES if name > cursor.after] + [END])
        followed = [one for one in self.source.changes(cursor.comparing, newest) if one.key < cursor.after]
        found = self.source.differences(self.there(), cursor.position)
        changes = (*followed, *(one for one in found if cursor.after <= one.key < up_to))
        if up_to == END:
            return replace(cursor, comparing=0, after=b"", position=newest), changes
        return replace(cursor, comparing=newest, after=up_to), changes

    async def step(self, policy: ConflictPolicy) -> None:
        """Send a batch, and perhaps the same question again."""
        batch, request = self.next(policy), RequestId(self.chance.randbytes(16))
        apply = self.plane.control.replication.apply
        try:
            done = await apply(batch, request)
        except ReplicationConflict:
            assert policy == "fail"
            return
        except RevisionConflict:
            return  # somebody else has gone on with it
        if done.mod_revision and self.chance.random() < 0.3:
            assert (await apply(batch, request)).mod_revision == done.mod_revision
            with pytest.raises(RevisionConflict):
                await apply(batch, RequestId(self.chance.randbytes(16)))

    async def to_the_end(self) -> None:
        while self.cursor()[0].position < len(self.source.log) or self.cursor()[0].comparing:
            await self.step("source")


class Local:
    """Others, who write what the sync writes."""

    def __init__(self, plane: Plane, chance: random.Random) -> None:
        self.plane = plane
        self.chance = chance

    async def write(self) -> None:
        key = (PREFIX + self.chance.choice(NAMES)).decode()
        control = self.plane.control
        if self.chance.random() < 0.3:
            await control.kv_delete(ALICE, KvDelete(key=key))
        else:
            await control.kv_put(ALICE, KvPut(key=key, value=Content(text=f"local {self.chance.randrange(4)}")))


def reached(cursor: CursorRecord, name: bytes) -> int:
    """Return up to which revision of the source a key has been brought."""
    return cursor.comparing if cursor.comparing and name < cursor.after else cursor.position


class History:
    """What has happened at the target, transaction by transaction."""

    def __init__(self, plane: Plane, source: Source) -> None:
        self.source = source
        self.rows: dict[bytes, tuple[bytes | None, int, bool]] = {}
        """By key: the value, the revision of the last change, and whether that was the sync's."""
        self.cursor = CURSOR
        self.conflicts = 0
        self.cursors: dict[int, CursorRecord] = {}
        self.overruled: dict[bytes, int] = {}
        """By key: the newest revision of the source that a row of the target has prevailed over."""
        events, seen = plane.store.events(0, [b"/"], limit=1 << 30, max_bytes=1 << 30)
        assert seen == plane.store.revision
        by_revision: dict[int, dict[bytes, bytes | None]] = {}
        for revision, key, value, *_ in events:
            by_revision.setdefault(revision, {})[key] = value
        for revision, changed in sorted(by_revision.items()):
            self._pass(revision, changed)

    def _pass(self, revision: int, changed: dict[bytes, bytes | None]) -> None:
        told = self._told(changed)
        cursor = changed.get(keys.sync_cursor(CLUSTER, "s"))
        for key, value in changed.items():
            if key.startswith(PREFIX):
                if cursor is not None:
                    self._check_overwritten(key, told.get(key))
                self.rows[key] = value, revision, cursor is not None
        if cursor is not None:
            record = records.decode(CursorRecord, cursor)
            assert record.position >= self.cursor.position, "it has gone back"
            self.conflicts += len(told)
            assert record.conflicts == self.conflicts
            self.cursor = record
        self.cursors[revision] = self.cursor

    def _told(self, changed: dict[bytes, bytes | None]) -> dict[bytes, ConflictRecord]:
        """Return the conflicts of a transaction, of which each has to be one."""
        found: dict[bytes, ConflictRecord] = {}
        for key, value in changed.items():
            if not key.startswith(keys.sync_conflicts_prefix(CLUSTER, "s")) or value is None:
                continue
            conflict = records.decode(ConflictRecord, value)
            found[conflict.key] = conflict
            there, modified, was_sync = self.rows.get(conflict.key, (None, 0, True))
            assert not was_sync, f"{conflict.key!r} was the sync's own"
            assert conflict.target_revision == (0 if there is None else modified)
            assert (conflict.winner == "source") == (conflict.key in changed)
            if conflict.winner == "target":
                self.overruled[conflict.key] = conflict.source_revision
        return found

    def _check_overwritten(self, key: bytes, conflict: ConflictRecord | None) -> None:
        before, _, was_sync = self.rows.get(key, (None, 0, True))
        name = key[len(PREFIX) :]
        if not was_sync and before != self.source.at(reached(self.cursor, name)).get(name):
            assert conflict is not None, f"a change of others to {key!r} was overwritten and not recorded"

    def check_end(self) -> None:
        """Check that the target has what the source has, but for what others have done since."""
        for name in NAMES:
            wanted, last = self.source.at(self.cursor.position).get(name), self.source.last_change(name)
            value, revision, was_sync = self.rows.get(PREFIX + name, (None, 0, True))
            if value == wanted or self.overruled.get(PREFIX + name, -1) >= last:
                continue
            assert not was_sync, f"{name!r} is {value!r}, and the source has {wanted!r}"
            assert reached(self.cursors[revision], name) >= last, f"a change of {name!r} at {last} was passed over"


@pytest.mark.parametrize("seed", range(10))
def test_no_change_of_others_is_lost_unless_it_is_recorded_and_none_of_the_source_is(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    policies: list[ConflictPolicy] = ["source", "newer", "fail"]

    async def run() -> None:
        source = Source()
        plane = await Plane(tmp_path).start()
        sync, local = Sync(plane, source, chance), Local(plane, chance)
        for _ in range(80):
            for _ in range(chance.randint(0, 3)):
                value = None if chance.random() < 0.3 else b"source %d" % chance.randrange(50)
                source.write(chance.choice(NAMES), value, wall_ms() - chance.choice([0, OLD_MS]))
            if not source.log:
                continue
            policy = chance.choice(policies)
            work: list[Awaitable[None]] = [local.write() for _ in range(chance.randint(0, 3))]
            work += [sync.step(policy) for _ in range(chance.choice([0, 1, 1, 2]))]
            chance.shuffle(work)
            if chance.random() < 0.12:
                plane = await restarted(plane, work)
                sync.plane = local.plane = plane
            else:
                await asyncio.gather(*work)
        await sync.to_the_end()
        history = History(plane, source)
        history.check_end()
        assert history.conflicts > 5
        await plane.stop()

    asyncio.run(run())


async def restarted(plane: Plane, work: list[Awaitable[None]]) -> Plane:
    """Stop in the middle of work, of which nobody hears what came, and start again."""
    under_way = asyncio.gather(*work, return_exceptions=True)
    await asyncio.sleep(0)
    await plane.stop()
    for came in await under_way:
        assert came is None or isinstance(came, JobsError | NativeError), came
    return await Plane(plane.directory).start()
