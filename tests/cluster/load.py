"""What real clients do to a cluster while it is hurt, and what they saw: a history with the times of one clock."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec

from jobs.client import Client, shell_job
from jobs.errors import JobsError
from jobs.protocol.model import Content, JobState, KvCompare, KvDelete, KvOp, KvPut, KvTxnResult, Retry
from tests.support.linearizability import Kind, Operation

PATIENCE_S: Final = 3.0
"""A client gives a node up after this long, and goes on with the next one as another client."""
PACE_S: Final = 0.003
FAILED_PACE_S: Final = 0.05
JOB_PACE_S: Final = 0.2
ONCE_PACE_S: Final = 0.02
ONCE_BYTES: Final = 2_000
PREFIX: Final = "/data/faults/"
ONCE: Final = "/data/once/"

Sockets: TypeAlias = Callable[[], Sequence[Path]]
"""Those of the nodes that are members just now."""


class Repeater(threading.Thread):
    """Repeats one thing until told to end, with the nodes by turns; an unexpected exception is kept for the test."""

    def __init__(self, name: str, sockets: Sockets, chance: random.Random, pace_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._sockets = sockets
        self._turn = chance.randrange(1 << 16)
        self.chance = chance
        self._pace_s = pace_s
        self._enough = threading.Event()
        self.failure: BaseException | None = None
        self.answered = 0
        self.unanswered = 0

    def run(self) -> None:
        try:
            while not self._enough.is_set():
                present = self._sockets()
                self._turn += 1
                with Client(str(present[self._turn % len(present)]), patience_s=PATIENCE_S) as client:
                    self._use(client)
                self._enough.wait(FAILED_PACE_S)
        except BaseException as error:
            self.failure = error

    def _use(self, client: Client) -> None:
        """Go on with one node until it fails."""
        while not self._enough.wait(self._pace_s):
            try:
                self.once(client)
                self.answered += 1
            except JobsError:
                self.unanswered += 1
                return

    def once(self, client: Client) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self._enough.set()


class KeyClient(Repeater):
    """Reads and writes a few keys, and keeps what it was answered."""

    def __init__(self, number: int, sockets: Sockets, chance: random.Random, keys: int, ids: Iterator[int]) -> None:
        super().__init__(f"keys-{number}", sockets, chance, PACE_S)
        self._keys = [f"{PREFIX}{number}" for number in range(keys)]
        self._ids = ids
        self._id = next(ids)
        self._count = 0
        self._seen: dict[str, tuple[str, int]] = {}
        self.history: list[Operation] = []

    def once(self, client: Client) -> None:
        asked = self._draw()
        try:
            self._ask(client, asked)
        except JobsError:
            if asked.kind != "get":
                self.history.append(asked)
            # Whoever does not know what came of a call is a new client afterwards.
            self._id = next(self._ids)
            raise

    def read_all(self, client: Client) -> None:
        """Read every key once."""
        for key in self._keys:
            self._ask(client, self._operation(key, "get"))

    def _draw(self) -> Operation:
        self._count += 1
        key = self.chance.choice(self._keys)
        kind: Kind = self.chance.choice(("get", "get", "get", "put", "put", "cas", "delete"))
        if kind in ("get", "delete"):
            return self._operation(key, kind)
        seen = self._seen.get(key)
        # A cas expects what was seen last: by turns the value, and the revision.
        expected = 0 if seen is None or kind == "put" else seen[self._count % 2]
        return self._operation(key, kind, f"{self._id}.{self._count}", expected)

    def _operation(self, key: str, kind: Kind, value: str | None = None, expected: str | int = 0) -> Operation:
        return Operation(
            client=self._id, key=key, kind=kind, called_ns=time.monotonic_ns(), value=value, expected=expected
        )

    def _ask(self, client: Client, asked: Operation) -> None:
        answer = _CALLS[asked.kind](client, asked)
        answered = msgspec.structs.replace(answer, answered_ns=time.monotonic_ns())
        self.history.append(answered)
        if answered.value is None:
            self._seen.pop(answered.key, None)
        elif answered.revision is not None:
            self._seen[answered.key] = (answered.value, answered.revision)


def _get(client: Client, asked: Operation) -> Operation:
    found = client.kv.get(asked.key)
    if found is None:
        return asked
    return msgspec.structs.replace(asked, value=found.value.text, revision=found.mod_revision)


def _put(client: Client, asked: Operation) -> Operation:
    assert asked.value is not None
    return msgspec.structs.replace(asked, revision=client.kv.put(asked.key, asked.value).revision)


def _cas(client: Client, asked: Operation) -> Operation:
    if isinstance(asked.expected, str):
        compare = KvCompare(key=asked.key, target="value", value=Content(text=asked.expected))
    else:
        compare = KvCompare(key=asked.key, target="mod_revision", number=asked.expected)
    put = KvPut(key=asked.key, value=Content(text=asked.value))
    done = client.kv.txn(compare=[compare], then=[KvOp(put=put)])
    return _changed(asked, done, done.succeeded)


def _delete(client: Client, asked: Operation) -> Operation:
    done = client.kv.txn(then=[KvOp(delete=KvDelete(key=asked.key))])
    return _changed(asked, done, done.results[0].deleted == 1)


def _changed(asked: Operation, done: KvTxnResult, succeeded: bool) -> Operation:
    revision = done.revision if succeeded else None
    return msgspec.structs.replace(asked, succeeded=succeeded, revision=revision)


_CALLS: Final[dict[Kind, Callable[[Client, Operation], Operation]]] = {
    "get": _get,
    "put": _put,
    "cas": _cas,
    "delete": _delete,
}


class OnceClient(Repeater):
    """Writes keys once each; keeps what was acknowledged. The client library sends a write again, under its request id,
    when no answer came, so a key with a second version was written twice."""

    def __init__(self, number: int, sockets: Sockets, chance: random.Random) -> None:
        super().__init__(f"once-{number}", sockets, chance, ONCE_PACE_S)
        self._number = number
        self._count = 0
        self.acknowledged: dict[str, int] = {}
        """Revisions by key."""

    def once(self, client: Client) -> None:
        self._count += 1
        key = f"{ONCE}{self._number}/{self._count}"
        self.acknowledged[key] = client.kv.put(key, once_value(key)).revision


class JobClient(Repeater):
    """Submits jobs that each print a token of their own; keeps which were accepted, and how it saw them end."""

    def __init__(self, number: int, sockets: Sockets, chance: random.Random, marker: str) -> None:
        super().__init__(f"jobs-{number}", sockets, chance, JOB_PACE_S)
        self._number = number
        self._count = 0
        self._marker = marker
        self.accepted: dict[str, str] = {}
        """Tokens by job."""
        self.ends: list[End] = []

    def once(self, client: Client) -> None:
        self._count += 1
        token = f"{self._number}.{self._count}"
        # Now and then one that is likely to be there when something happens.
        length_s = self.chance.choice((0, 0.05, 0.1, 0.2, 2))
        script = f"echo {token}; sleep {length_s}"
        done = client.submit(
            shell_job(["sh", "-c", script, self._marker], retry=Retry(max_attempts=self.chance.randrange(1, 4)))
        )
        self.accepted[done.job.id] = token
        seen = client.get(self.chance.choice(list(self.accepted))).job
        if seen.state.is_final:
            self.ends.append(End(seen.id, seen.state, seen.attempt, seen.finished_ms))


def once_value(key: str) -> str:
    """Return what a key that is written once holds: so much that logs grow, are cut, and snapshots are needed."""
    return key + "." * ONCE_BYTES


class End(NamedTuple):
    """How a job has ended: each job ends once, so all who look see the same."""

    job: str
    state: JobState
    attempt: int
    finished_ms: int | None


class Load:
    """Clients of all nodes, for as long as the context lasts."""

    def __init__(self, sockets: Sockets, chance: random.Random, *, marker: str, clients: int, keys: int) -> None:
        ids = itertools.count(1)
        made = [random.Random(chance.randrange(1 << 32)) for _ in range(clients + 4)]
        self.keys = [KeyClient(number, sockets, made[number], keys, ids) for number in range(clients)]
        self.jobs = [JobClient(number, sockets, made[clients + number], marker) for number in range(2)]
        self.once = [OnceClient(number, sockets, made[clients + 2 + number]) for number in range(2)]

    @property
    def all(self) -> Sequence[Repeater]:
        return [*self.keys, *self.jobs, *self.once]

    @property
    def history(self) -> list[Operation]:
        return [operation for client in self.keys for operation in client.history]

    @property
    def accepted(self) -> dict[str, str]:
        return {job: token for client in self.jobs for job, token in client.accepted.items()}

    @property
    def ends(self) -> set[End]:
        return {end for client in self.jobs for end in client.ends}

    @property
    def acknowledged(self) -> dict[str, int]:
        """Revisions by key, of the keys that are written once."""
        return {key: revision for client in self.once for key, revision in client.acknowledged.items()}

    def __enter__(self) -> Load:
        for client in self.all:
            client.start()
        return self

    def __exit__(self, *args: object) -> None:
        for client in self.all:
            client.end()
        for client in self.all:
            client.join()

    def check(self) -> None:
        """Raise what no client should have met."""
        for client in self.all:
            if client.failure is not None:
                raise client.failure
