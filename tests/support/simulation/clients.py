"""Those who write and read, one request after the other, and remember what they were promised."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, TypeAlias

from msgspec import structs

from jobs.consensus import Consensus
from jobs.store import EQ, ModRevisionIs, Put, Txn, TxnResult, VersionIs
from tests.support.simulation.host import Host, Refused, Unknown

if TYPE_CHECKING:
    from tests.support.simulation.run import Simulation

PATIENCE_S = (0.03, 0.15, 0.4, 1.5)
"""How long a client waits for an answer before it tries another host; one of these."""
COUNTER = b"/counter"
TRIES = 6
"""How often a client sends a request at most."""
REQUEST_ID_BYTES = 16
JOBS = 6
"""How many jobs are under way at a time."""

Work: TypeAlias = Callable[[Host, Consensus], Awaitable[object]]
Row: TypeAlias = tuple[bytes, bytes, int, int, int, int]
Script: TypeAlias = Generator[Work | float, object, None]
"""Yields work to be done by a host, and is sent its outcome, or seconds to wait."""


class Promises:
    """What clients were told, all of them together: the order of real time is the same for all."""

    def __init__(self) -> None:
        self.revision = 0
        """The newest revision that an answer has shown to anybody."""
        self.acknowledged: dict[bytes, int] = {}
        """Keys that are written once and for all, and the revision of it."""
        self.refused: set[bytes] = set()
        self.next_job = 0
        self.jobs: list[bytes] = []


class Client:
    """One client. It stays with the host that answers, and goes on to another one otherwise."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self._sim = sim
        self.name = name
        self._rng = sim.rng(f"client {name}")
        self._target: str | None = None
        self._sends_again = self._rng.random() < 0.7
        """Whether it sends again what it does not know the outcome of."""
        self._number = 0
        self._waiting = 0
        """Number of the request that an answer is awaited for."""
        self._script: Script | None = None
        self.done = False
        self.requests = 0

    # --- the driver -----------------------------------------------------------------------------------------------

    def run(self, script: Script) -> None:
        self._script = script
        self.done = False
        self._waiting += 1
        self._sim.after(self._rng.uniform(0, 0.1), self._go_on, self._waiting, None)

    def stop(self) -> None:
        self._script = None
        self._waiting += 1

    def _go_on(self, number: int, outcome: object) -> None:
        if number != self._waiting or self._script is None:
            return  # too late
        self._waiting += 1
        try:
            step = self._script.send(outcome)
        except StopIteration:
            self.done = True
            return
        if isinstance(step, float):
            self._sim.after(step, self._go_on, self._waiting, None)
        else:
            self._request(step)

    def _request(self, work: Work) -> None:
        number = self._waiting
        target = self._target or self._choose()
        self._target = target
        self.requests += 1

        def answer(outcome: object) -> None:
            if isinstance(outcome, Refused | Unknown):
                self._target = None
            self._sim.after(0.0005 + self._rng.expovariate(1000), self._go_on, number, outcome)

        host = self._sim.hosts[target]
        self._sim.after(0.0005 + self._rng.expovariate(1000), host.request, work, answer)
        self._sim.after(self._rng.choice(PATIENCE_S), self._give_up, number)

    def _choose(self) -> str:
        """One whom nobody knows to lead, too; who is keen asks those who believe to."""
        names = sorted(host.id for host in self._sim.leaders()) if self._sim.plan.keen else []
        return self._rng.choice(names or sorted(self._sim.hosts))

    def _give_up(self, number: int) -> None:
        if number == self._waiting:
            self._target = None
            self._go_on(number, Unknown("no answer"))

    # --- what it does -----------------------------------------------------------------------------------------------

    def chaos(self) -> Script:
        """Write and read for ever."""
        plan = self._sim.plan
        kinds = (self._write, self._count, self._job, self._job, self._read)
        while True:
            yield self._rng.expovariate(1 / plan.think_s)
            if self._rng.random() < (0.5 if plan.keen else 0.1):
                self._target = None  # others may lead by now
            yield from self._rng.choice(kinds if self._sim.clients_write else (self._read,))()

    def reading(self) -> Script:
        """Read all the time."""
        while True:
            yield self._rng.expovariate(100 if self._sim.plan.keen else 30)
            if self._sim.plan.keen:
                self._target = None
            yield from self._read()

    def last(self) -> Script:
        """Do each thing once, as often as it takes."""
        for _ in range(100):
            if (yield from self._write()):
                break
            yield 0.05
        for _ in range(100):
            if (yield from self._read()):
                return
            yield 0.05

    def _attempt(self) -> bytes:
        self._number += 1
        return b"%s-%d" % (self.name.encode(), self._number)

    def _padding(self) -> bytes:
        rng = self._rng
        return b"x" * (rng.choice((10, 2_000, 12_000)) if self._sim.plan.large else rng.choice((0, 10, 100)))

    def _commit(self, attempt: bytes, key: bytes, txn: Txn) -> Generator[Work | float, object, TxnResult | None]:
        """Have a transaction done that writes `attempt` under `key`; return its result, None if there is none.

        While it is not known what came of it, it is sent again, under its request id: it takes effect once."""
        request = attempt.rjust(REQUEST_ID_BYTES, b".")
        asked = structs.replace(txn, request_id=request) if self._sends_again else txn

        async def work(host: Host, consensus: Consensus) -> object:
            return await consensus.propose(asked)

        promises = self._sim.promises
        tries = 0
        while True:
            outcome = yield work
            tries += 1
            if isinstance(outcome, TxnResult):
                break
            if isinstance(outcome, Refused) and tries == 1:
                promises.refused.add(attempt)
                self._sim.checks.count("refused")
                return None
            self._sim.checks.count("unknown")
            if not self._sends_again or tries == TRIES:
                return None
            yield 0.02
        if outcome.remembered:
            self._sim.checks.count("done before")
        if outcome.error:
            raise self._sim.violated("a transaction is done as it says", f"{self.name}: {outcome.error}")
        self._sim.note(self.name, f"{attempt.decode()} {outcome.succeeded} r{outcome.revision}")
        if outcome.succeeded:
            self._sim.checks.on_acknowledged_write(self.name, attempt, key, outcome.revision)
        else:
            promises.refused.add(attempt)
        promises.revision = max(promises.revision, outcome.revision)
        return outcome

    def _write(self) -> Generator[Work, object, bool]:
        """A key of its own, whose value nobody changes."""
        attempt = self._attempt()
        key = b"/w/" + attempt
        result = yield from self._commit(attempt, key, Txn(then=(Put(key, attempt + b" " + self._padding()),)))
        if result is not None:
            self._sim.promises.acknowledged[key] = result.revision
        return result is not None

    def _get(self, key: bytes) -> Generator[Work, object, tuple[Row | None] | None]:
        """A linearizable read; None when there was no answer."""
        floor = self._sim.promises.revision

        async def work(host: Host, consensus: Consensus) -> object:
            await consensus.barrier()
            return host.store.get(key), host.store.revision

        outcome = yield work
        if not isinstance(outcome, tuple):
            return None
        row, revision = outcome
        if revision < floor:
            raise self._sim.violated(
                "a read sees all that was acknowledged before it",
                f"{self.name} reads revision {revision}; somebody had seen {floor} before it asked",
            )
        self._sim.note(self.name, f"reads r{revision}")
        self._sim.checks.count("linearizable read")
        self._sim.promises.revision = max(self._sim.promises.revision, revision)
        return (row,)

    def _read(self) -> Generator[Work, object, bool]:
        acknowledged = self._sim.promises.acknowledged
        key = self._rng.choice(list(acknowledged)) if acknowledged else COUNTER
        found = yield from self._get(key)
        if found is not None and found[0] is None and key in acknowledged:
            raise self._sim.violated("what is acknowledged is never lost", f"{self.name} does not find {key!r}")
        return found is not None

    def _count(self) -> Generator[Work, object, None]:
        """Read the counter and set it to one more, if nobody else did."""
        found = yield from self._get(COUNTER)
        if found is None:
            return
        attempt, row = self._attempt(), found[0]
        count = 0 if row is None else int(row[1].split(b" ")[1])
        compare = VersionIs(COUNTER, EQ, 0) if row is None else ModRevisionIs(COUNTER, EQ, row[4])
        value = b"%s %d" % (attempt, count + 1)
        result = yield from self._commit(attempt, COUNTER, Txn((compare,), (Put(COUNTER, value),)))
        if result is not None and result.succeeded:
            self._sim.checks.on_count(attempt.decode(), count + 1)

    def _forget_job(self, key: bytes) -> None:
        if key in self._sim.promises.jobs:
            self._sim.promises.jobs.remove(key)

    def _job(self) -> Generator[Work | float, object, None]:
        """Take a job one step on, as the control plane and its workers do."""
        promises = self._sim.promises
        attempt = self._attempt()
        if len(promises.jobs) < JOBS:
            promises.next_job += 1
            key = b"/job/%d" % promises.next_job
            promises.jobs.append(key)
            yield from self._commit(attempt, key, Txn((VersionIs(key, EQ, 0),), (Put(key, attempt + b" pending 0"),)))
            return
        key = self._rng.choice(promises.jobs)
        found = yield from self._get(key)
        if found is None:
            return
        if found[0] is None:  # its creation failed
            self._forget_job(key)
            return
        _, state, number = found[0][1].split(b" ")[:3]
        same = ModRevisionIs(key, EQ, found[0][4])
        if state in (b"completed", b"failed"):
            self._forget_job(key)
            return
        if state == b"running":
            if self._rng.random() < 0.4:  # its worker counts as lost, and the job goes back
                yield from self._commit(attempt, key, Txn((same,), (Put(key, b"%s pending %s" % (attempt, number)),)))
            return
        number = b"%d" % (int(number) + 1)
        claim = Put(key, b"%s running %s" % (attempt, number))
        claimed = yield from self._commit(attempt, key, Txn((same,), (claim,)))
        if claimed is not None and claimed.succeeded and not claimed.remembered:
            yield from self._work(key, attempt, number, claimed.revision)

    def _work(self, key: bytes, claim: bytes, number: bytes, revision: int) -> Generator[Work | float, object, None]:
        """Run an attempt and report its end, like a worker that may long count as lost: then it must be refused."""
        yield self._rng.choice((0.01, 0.1, 0.6))
        mine = ModRevisionIs(key, EQ, revision)
        end = self._rng.choice((b"completed", b"failed"))
        # Reported again, as a worker does that had no answer; only one of the reports may count.
        for _ in range(3):
            attempt = self._attempt()
            report = Put(key, b"%s %s %s" % (attempt, end, number))
            result = Put(b"/result" + key[4:], b"of-%s %s" % (claim, end))
            told = yield from self._commit(attempt, key, Txn((mine,), (report, result)))
            if told is not None:
                self._sim.checks.on_report(self.name, key, claim, accepted=told.succeeded)
                return
