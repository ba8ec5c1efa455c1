"""What goes wrong with two clusters between which a sync goes on: a schedule drawn from a seed, and the hands that
carry it out."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Final, Protocol

from msgspec import Struct

from jobs.testing import EmbeddedNode, NodeFailed
from tests.cluster.nemesis import by_turns
from tests.support.apart import ApartCluster
from tests.support.processes import children_of
from tests.support.waiting import until

KINDS: Final = (
    ("kill", "kill all", "restart", "freeze"),
    ("kill worker",),
    ("outrun",),
    ("part", "part one way", "slow"),
    ("cut off", "cut off and kill"),
)
"""To nodes, to the worker, to the source's history, between the clusters, within the one of several nodes."""
WHILE_COMPARING: Final = ("", "kill", "kill", "kill worker", "kill worker", "slow")
"""What else goes wrong after history was outrun."""
PATIENCE_S: Final = 90.0


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that goes wrong: on which side, to whom there, for how long, and how long there is peace afterwards."""

    kind: str
    at_source: bool
    leader: bool
    """Whether it happens to whoever leads then, or to the node of place `victim`."""
    victim: int
    length_s: float
    peace_s: float
    mbit_per_s: int
    then: str = ""
    """What else goes wrong, to the same, while all is compared again; or about then."""
    then_s: float = 0.0

    def __str__(self) -> str:
        side = "source" if self.at_source else "target"
        whom = "its leader" if self.leader else f"node {self.victim}"
        then = f", {self.then} after {self.then_s:.1f} s" if self.then else ""
        return f"{self.kind} ({side}, {whom}) for {self.length_s:.1f} s{then}, then {self.peace_s:.1f} s of peace"


def plan(seed: str, count: int) -> list[Fault]:
    """Return a schedule: of each group of kinds one before any has another."""
    chance = random.Random(seed)
    kinds = by_turns(KINDS, chance)
    return [
        Fault(
            kind=(kind := next(kinds)),
            at_source=chance.random() < 0.5,
            leader=chance.random() < 0.5,
            victim=chance.randrange(1 << 8),
            length_s=chance.uniform(0.2, 3.0),
            peace_s=chance.uniform(0.5, 2.0),
            mbit_per_s=chance.choice((1, 4, 16)),
            then=chance.choice(WHILE_COMPARING) if kind == "outrun" else "",
            then_s=chance.uniform(0.0, 2.0),
        )
        for _ in range(count)
    ]


class Scene(Protocol):
    """Where it happens."""

    source: ApartCluster
    target: ApartCluster
    home: ApartCluster
    """Whose job the sync is."""

    def worker(self) -> EmbeddedNode | None:
        """Return the node whose worker has the job."""

    def outrun(self) -> None:
        """Return when more has been written to the source than its history keeps."""

    def snapshots(self) -> int:
        """Return how often everything was compared."""


class Nemesis:
    """Carries out a schedule, fault by fault, and puts right what it did."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._net = scene.source.net
        self._several = max(scene.source, scene.target, key=lambda one: len(one.nodes))
        self._done = threading.Event()
        """Never set: the passing of time is what is waited for."""
        self.counts: Counter[str] = Counter()
        """Faults by kind."""

    def run(self, schedule: Sequence[Fault]) -> None:
        for number, fault in enumerate(schedule, 1):
            print(f"{number:3}. {fault}", flush=True)
            self.counts[fault.kind] += 1
            _KINDS[fault.kind](self, fault)
            self._done.wait(fault.peace_s)

    def _victim(self, fault: Fault, cluster: ApartCluster | None = None) -> EmbeddedNode:
        cluster = cluster or (self._scene.source if fault.at_source else self._scene.target)
        if fault.leader:
            try:
                return cluster.leader()
            except NodeFailed:
                pass
        nodes = list(cluster.nodes.values())
        return nodes[fault.victim % len(nodes)]

    # --- nodes and the worker ---------------------------------------------------------------------------------------

    def _kill(self, fault: Fault) -> None:
        victim = self._victim(fault)
        victim.kill()
        self._done.wait(fault.length_s)
        victim.start(wait=False)

    def _kill_all(self, fault: Fault) -> None:
        nodes = [node for cluster in (self._scene.source, self._scene.target) for node in cluster.nodes.values()]
        for node in nodes:
            node.kill()
        self._done.wait(fault.length_s)
        for node in nodes:
            node.start(wait=False)

    def _restart(self, fault: Fault) -> None:
        victim = self._victim(fault)
        victim.stop()
        victim.start(wait=False)

    def _freeze(self, fault: Fault) -> None:
        victim = self._victim(fault)
        os.kill(victim.pid, signal.SIGSTOP)
        self._done.wait(fault.length_s)
        os.kill(victim.pid, signal.SIGCONT)

    def _kill_worker(self, fault: Fault) -> None:
        found: list[EmbeddedNode] = []

        def has_one() -> bool:
            node = self._scene.worker()
            if node is not None and node.is_alive and children_of(node.pid):
                found.append(node)
            return bool(found)

        until(has_one, PATIENCE_S, "nobody has the job")
        for child in children_of(found[0].pid):
            os.kill(child, signal.SIGKILL)

    # --- the network ------------------------------------------------------------------------------------------------

    def _part(self, fault: Fault) -> None:
        self._scene.source.part(self._scene.target)
        self._done.wait(fault.length_s)
        self._net.heal()

    def _part_one_way(self, fault: Fault) -> None:
        for one, other in self._between(fault):
            self._net.lose(one, other)
        self._done.wait(fault.length_s)
        self._net.heal()

    def _slow(self, fault: Fault) -> None:
        for one, other in self._between(fault):
            self._net.slow(one, other, fault.mbit_per_s)
            self._net.slow(other, one, fault.mbit_per_s)
        self._done.wait(fault.length_s)
        self._net.heal()

    def _between(self, fault: Fault) -> list[tuple[int, int]]:
        ends = [self._scene.source.numbers.values(), self._scene.target.numbers.values()]
        return list(product(*(ends if fault.at_source else reversed(ends))))

    def _outrun(self, fault: Fault) -> None:
        """Part them for longer than the source keeps its history: everything is compared again, by itself."""
        before: list[int] = []

        def is_told() -> bool:
            before.append(self._scene.snapshots())
            return True

        until(is_told, PATIENCE_S)
        self._scene.source.part(self._scene.target)
        self._scene.outrun()
        self._net.heal()
        if fault.then:
            self._done.wait(fault.then_s)
            _KINDS[fault.then](self, fault)
        until(lambda: self._scene.snapshots() > before[0], PATIENCE_S, "a gap in history was not noticed")

    def _cut_off(self, fault: Fault) -> None:
        self._isolate(self._victim(fault, self._several))
        self._done.wait(fault.length_s)
        self._net.heal()

    def _cut_off_and_kill(self, fault: Fault) -> None:
        """Cut it off, kill it there, and let it come back to a whole network."""
        victim = self._victim(fault, self._several)
        self._isolate(victim)
        self._done.wait(fault.length_s)
        victim.kill()
        self._net.heal()
        victim.start(wait=False)

    def _isolate(self, victim: EmbeddedNode) -> None:
        """From the other members; the other cluster still reaches it."""
        numbers = self._several.numbers
        number = numbers[victim.directory.name]
        for other in numbers.values():
            if other != number:
                self._net.lose(number, other)
                self._net.lose(other, number)


_KINDS: Final[dict[str, Callable[[Nemesis, Fault], None]]] = {
    "kill": Nemesis._kill,
    "kill all": Nemesis._kill_all,
    "restart": Nemesis._restart,
    "freeze": Nemesis._freeze,
    "kill worker": Nemesis._kill_worker,
    "outrun": Nemesis._outrun,
    "part": Nemesis._part,
    "part one way": Nemesis._part_one_way,
    "slow": Nemesis._slow,
    "cut off": Nemesis._cut_off,
    "cut off and kill": Nemesis._cut_off_and_kill,
}
