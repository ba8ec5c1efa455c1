"""One seed from its beginning to its end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from msgspec import Struct

from jobs._native import MemoryStore
from jobs.consensus import MemberRecord, Members, Role, clock, driver, flow, member, raft
from jobs.consensus.membership import put_member, read_members
from jobs.store import encode_command
from tests.support.simulation.checks import Checks
from tests.support.simulation.clients import Client, Promises
from tests.support.simulation.faults import Faults
from tests.support.simulation.host import Host
from tests.support.simulation.network import Network
from tests.support.simulation.plan import Plan
from tests.support.simulation.world import World

SETTLE_S = 30.0
"""Time after the last fault within which everybody must have been answered and all hosts be alike."""
LARGE_BYTES = 200
"""So much on the way to a member is a lot here, as entries are small."""


class Report(Struct, frozen=True):
    """What a seed that broke nothing came to."""

    seed: int
    digest: str
    steps: int
    virtual_s: float
    settled_s: float
    """How long it took after the last fault."""
    counts: dict[str, int]
    trace: list[str]


class Simulation(World):
    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        super().__init__(plan, keep_trace=keep_trace)
        names = [f"n{number}" for number in range(1, plan.members + 1)]
        base = None if plan.bootstrap else _group_of(names)
        self.hosts: dict[str, Host] = {}
        self.checks = Checks(self, base)
        self.network = Network(self)
        self.promises = Promises()
        self.clients_write = True
        """Whether they do not only read."""
        self.faults = Faults(self)
        self.clients = [Client(self, f"c{number}") for number in range(1, plan.clients + 1)]
        self.readers = [Client(self, f"r{number}") for number in range(1, plan.readers + 1)]
        if plan.bootstrap:
            self.hosts["n1"] = Host(self, "n1", alone=True)
        else:
            self.hosts |= {name: Host(self, name, snapshot=base) for name in names}
        for host in self.hosts.values():
            host.start()

    def leader(self) -> Host | None:
        """The host that leads in the highest term."""
        return max(self.leaders(), key=lambda host: host.consensus.term if host.consensus else 0, default=None)

    def leaders(self) -> list[Host]:
        """Those who believe to lead."""
        return [host for host in self.hosts.values() if host.consensus is not None and host.consensus.is_leader]

    def members(self) -> Members:
        """The members as of what is committed."""
        return read_members(self.checks.observer)

    def voters(self) -> list[str]:
        return sorted(self.members().voters)

    # --- the run ------------------------------------------------------------------------------------------------------

    def go(self) -> Report:
        plan = self.plan
        if plan.bootstrap:
            self._bootstrap()
        for client in self.clients:
            client.run(client.chaos())
        for reader in self.readers:
            reader.run(reader.reading())
        self.faults.begin()
        self.run(self.now_s + plan.chaos_s)
        for client in (*self.clients, *self.readers):
            client.stop()
        self.faults.stop()
        healed_s = self.now_s
        self.run(self.now_s + 0.01)
        for client in self.clients:
            client.run(client.last())
        if not self.run(self.now_s + SETTLE_S, self._is_settled):
            raise self.violated("a healed group goes on", self._unsettled())
        for host in self.hosts.values():
            if host.consensus is not None:
                self.checks.compare_state(host)
        self.checks.at_the_end(self.promises.refused, self.promises.acknowledged)
        counts = self.checks.counts | Counter(sent=self.network.sent, lost=self.network.lost)
        return Report(
            plan.seed, self.trace.digest, self.steps, self.now_s, self.now_s - healed_s, dict(counts), self.trace.all()
        )

    def end(self) -> None:
        """End every process."""
        for host in self.hosts.values():
            if host.loop is not None:
                host.loop.end()

    def _bootstrap(self) -> None:
        """Found a group with one member, and let the others join."""
        if not self.run(self.now_s + 5, lambda: self.leader() is not None):
            raise self.violated("a member alone leads", "n1 does not")
        wanted = ["n1", *(f"n{number}" for number in range(2, self.plan.members + 1))]
        for name in wanted:
            self._join(name)
            if not self.run(self.now_s + 10, lambda name=name: name in self.voters()):  # type: ignore[misc]
                raise self.violated("who joins gets a vote", f"{name} has none")

    def _join(self, name: str) -> None:
        role = Role.VOTER if name == "n1" else Role.LEARNER
        if name not in self.hosts:
            self.hosts[name] = Host(self, name)
            self.hosts[name].start()
        self.faults.ask_to_put(MemberRecord(id=name, name=name, role=role))

    def _is_settled(self) -> bool:
        if not all(client.done for client in self.clients):
            return False
        members = self.members()
        alive = [self.hosts[record.id] for record in members.records if not self.hosts[record.id].gone]
        return all(host.serves and host.store.applied_index == self.checks.observer.applied_index for host in alive)

    def _unsettled(self) -> str:
        states = []
        for host in self.hosts.values():
            consensus = host.consensus
            if consensus is None:
                states.append(f"{host.id} is down")
            else:
                raft, members = consensus._member.raft, " ".join(record.id for record in consensus.members.records)
                role = "leads" if raft.leads else f"follows {raft.leader}"
                role += "" if host.serves else " and does not serve"
                states.append(
                    f"{host.id} {role} t{raft.term} log {host.log and host.log.last_index} commit {raft.commit_index} "
                    f"applied {raft.applied_index} members {members}"
                )
        waiting = [client.name for client in self.clients if not client.done]
        return f"after {SETTLE_S} s without faults clients wait: {waiting}; " + "; ".join(states)


def _group_of(names: list[str]) -> bytes:
    """The state of a group that was founded, as a snapshot."""
    store = MemoryStore()
    for name in names:
        txn = put_member(read_members(store), MemberRecord(id=name, name=name, role=Role.VOTER))
        store.apply([(store.applied_index + 2 - bool(store.applied_index), 1, encode_command([txn]))])
    return store.export()


class _Clocks:
    """In place of the `time` module where the driver measures how long a sync takes."""

    @staticmethod
    def monotonic() -> float:
        return driver.asyncio.get_running_loop().time()


@contextmanager
def _set_up(plan: Plan) -> Iterator[None]:
    """Virtual time for the consensus, limits that come into play, and silence."""
    changes: list[tuple[object, str, object]] = [
        (clock, "now_s", _Clocks.monotonic),
        (driver, "time", _Clocks),
        (raft, "APPEND_ENTRIES", plan.append_entries),
        (flow, "LARGE_BYTES", LARGE_BYTES),
        (member, "APPLY_ENTRIES", plan.append_entries),
    ]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with ExitStack() as stack:
            for target, name, value in changes:
                stack.enter_context(patch.object(target, name, value))
            yield
    finally:
        logging.disable(disabled)


def simulate(plan: Plan, *, keep_trace: bool = False) -> Report:
    """Run one plan. Raises Violation."""
    with _set_up(plan):
        simulation = Simulation(plan, keep_trace=keep_trace)
        try:
            return simulation.go()
        finally:
            simulation.end()
