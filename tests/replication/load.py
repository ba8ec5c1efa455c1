"""What clients do to both ends of a sync, and what of it was acknowledged: whatever comes of the clusters between, the
target has to be what these ledgers say."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from jobs.client import Client
from jobs.content import content_of
from jobs.errors import JobsError
from jobs.protocol.model import Conflict, KvCompare, KvDelete, KvOp, KvPut
from tests.cluster.load import Repeater, Sockets

PACE_S: Final = 0.01
MEDDLER_PACE_S: Final = 0.02
WATCHER_PACE_S: Final = 0.1
KEYS: Final = 400
"""Of each writer."""
SIZES: Final = (1, 1, 1, 2, 5, 20, 100)
"""Keys of a transaction."""
BULK: Final = 6_000
"""Further keys of each writer, that it writes when it is in a hurry."""
HURRY: Final = 500
WATCHED: Final = "w/"
FOREIGN: Final = b"foreign"

Rows: TypeAlias = dict[str, bytes]
"""Values by key, which is relative to the prefix."""


class Writer(Repeater):
    """Puts, overwrites and deletes keys of its own at the source, one or many at a time. What it does not know the end
    of is noted with all that may have come of it, and never written again."""

    def __init__(self, number: int, sockets: Sockets, chance: random.Random, prefix: str) -> None:
        super().__init__(f"writer-{number}", sockets, chance, PACE_S)
        self.number = number
        self._prefix = prefix
        self._names = [name_of(number, slot) for slot in range(KEYS)]
        self._bulk = [f"bulk/{number}/{slot:04}" for slot in range(BULK)]
        self._count = 0
        self.acknowledged: dict[str, bytes | None] = {}
        """What was last written of each key; None: it was deleted."""
        self.doubtful: dict[str, set[bytes | None]] = {}
        self.events = 0
        """Changes of keys that were acknowledged."""
        self.hurry = threading.Event()
        """Set: as many keys as it can, so that history is soon forgotten, and there is much to compare."""

    def once(self, client: Client) -> None:
        if self.hurry.is_set():
            self.write(client, self.chance.sample(self._bulk, HURRY), deletes=0.05)
        else:
            self.write(client, self.chance.sample(self._names, self.chance.choice(SIZES)), deletes=0.2)

    def write(self, client: Client, names: Sequence[str], *, deletes: float = 0.0) -> int:
        """Put or delete keys in one transaction; return its revision."""
        self._count += 1
        wanted: dict[str, bytes | None] = {}
        for name in names:
            padding = b"." * self.chance.randrange(200)
            wanted[name] = None if self.chance.random() < deletes else b"%d %s" % (self._count, padding)
        try:
            done = client.kv.txn(then=[_op(self._prefix + name, value) for name, value in wanted.items()])
        except JobsError:
            self._doubt(wanted)
            raise
        self.acknowledged.update(wanted)
        self.events += sum(value is not None for value in wanted.values())
        return done.revision

    def owns(self, name: str) -> bool:
        return name.startswith(name_of(self.number, 0)[:-3])

    def resolve(self, client: Client, names: Sequence[str]) -> None:
        """Put keys when nobody writes any more, those that were in doubt too."""
        for name in names:
            self.doubtful.pop(name, None)
        self.write(client, names)

    def _doubt(self, wanted: Mapping[str, bytes | None]) -> None:
        for name, value in wanted.items():
            self.doubtful[name] = {self.acknowledged.pop(name, None), value}
            for names in (self._names, self._bulk):
                if name in names:
                    names[names.index(name)] = name + "'"


def name_of(writer: int, slot: int) -> str:
    return f"{WATCHED}{writer}/{slot:03}"


def _op(key: str, value: bytes | None) -> KvOp:
    return KvOp(delete=KvDelete(key=key)) if value is None else KvOp(put=KvPut(key=key, value=content_of(value)))


class Foreign(NamedTuple):
    """A change of a key at the target that was not the sync's, as it was acknowledged."""

    key: str
    revision: int
    over: int
    """Revision of the row that it replaced, 0 for none."""
    is_deletion: bool


class Meddler(Repeater):
    """Changes at the target what a sync brings there, always knowing what it replaces."""

    def __init__(self, sockets: Sockets, chance: random.Random, prefix: str, writers: int) -> None:
        super().__init__("meddler", sockets, chance, MEDDLER_PACE_S)
        self._prefix = prefix
        self._writers = writers
        self._count = 0
        self.done: list[Foreign] = []
        self.touched: set[str] = set()
        """Keys that it may have changed."""
        self.unclear: set[tuple[str, int]] = set()
        """Keys with the revisions of rows that it may have replaced."""

    def once(self, client: Client) -> None:
        name = name_of(self.chance.randrange(self._writers), self.chance.randrange(KEYS))
        key = self._prefix + name
        row = client.kv.get(key)
        over = 0 if row is None else row.mod_revision
        is_deletion = self.chance.random() < 0.25
        if is_deletion and row is None:
            return
        self._count += 1
        self.touched.add(name)
        try:
            done = client.kv.txn(
                compare=[KvCompare(key=key, target="mod_revision", number=over)],
                then=[_op(key, None if is_deletion else b"%s %d" % (FOREIGN, self._count))],
            )
        except JobsError:
            self.unclear.add((name, over))
            raise
        if done.succeeded:
            self.done.append(Foreign(name, done.revision, over, is_deletion))


class Watcher(Repeater):
    """Looks at the target all the while: nothing that was there may come back once it was replaced or deleted."""

    def __init__(self, sockets: Sockets, chance: random.Random, prefix: str, meddler: Meddler | None) -> None:
        super().__init__("watcher", sockets, chance, WATCHER_PACE_S)
        self._prefix = prefix
        self._meddler = meddler
        self._seen: dict[str, int] = {}
        self._gone: set[str] = set()
        self.came_back: list[str] = []

    def once(self, client: Client) -> None:
        found = {WATCHED + name: number_of(value) for name, value in rows(client, self._prefix + WATCHED).items()}
        for name in self._seen:
            if name not in found:
                self._gone.add(name)
        for name, number in found.items():
            former = self._seen.get(name, 0)
            if number < former or (name in self._gone and number == former):
                self.came_back.append(f"{name}: {number} after {former}")
            self._gone.discard(name)
            self._seen[name] = number

    def resurrected(self) -> list[str]:
        """Return what came back though nobody else had changed it."""
        touched = set() if self._meddler is None else self._meddler.touched
        return [one for one in self.came_back if one.partition(":")[0] not in touched]


def number_of(value: bytes) -> int:
    """Return which of its writer's transactions a value is of; -1: somebody else's."""
    return -1 if value.startswith(FOREIGN) else int(value.partition(b" ")[0])


def rows(client: Client, prefix: str) -> Rows:
    return {pair.key.removeprefix(prefix): bytes(pair.value) for pair in client.kv.scan(prefix)}


# --- what the target has to be ----------------------------------------------------------------------------------------


def lost(found: Rows, writers: Iterable[Writer]) -> list[str]:
    """Return the keys whose acknowledged value is not there."""
    return [
        name
        for writer in writers
        for name, value in writer.acknowledged.items()
        if value is not None and found.get(name) != value
    ]


def resurrected(found: Rows, writers: Iterable[Writer]) -> list[str]:
    """Return the keys that are there though they were deleted."""
    return [
        name
        for writer in writers
        for name, value in writer.acknowledged.items()
        if value is None and found.get(name) is not None
    ]


def strange(found: Rows, writers: Sequence[Writer]) -> list[str]:
    """Return the keys that are as nobody can have written them."""
    doubtful = {name: values for writer in writers for name, values in writer.doubtful.items()}
    known = {name for writer in writers for name in writer.acknowledged}
    wrong = [name for name, values in doubtful.items() if found.get(name) not in values]
    return wrong + [name for name in found if name not in known and name not in doubtful]


def unrecorded(conflicts: Iterable[Conflict], meddler: Meddler, prefix: str) -> list[Foreign]:
    """Return the changes of others that the sync has replaced without a word."""
    recorded = {(one.key.removeprefix(prefix), one.target_revision) for one in conflicts}
    replaced = {(one.key, one.over) for one in meddler.done} | meddler.unclear
    return [
        one
        for one in meddler.done
        if not one.is_deletion and (one.key, one.revision) not in recorded and (one.key, one.revision) not in replaced
    ]
