"""What goes wrong, and when: a schedule drawn from a seed, and the hands that carry it out."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from jobs.testing import NodeFailed
from tests.cluster.members import Members

ALONE: Final = ("kill", "restart", "freeze", "stutter", "fill disk", "tear log", "jump clock")
"""What can be done to a single node."""
TOGETHER: Final = (*ALONE, "kill all", "cut off", "cut sending", "cut receiving", "bridge", "kill and cut")
"""What can be done to several."""
STUTTERS: Final = 20


class Fault(Struct, frozen=True):
    """One thing that goes wrong: to whom, for how long, and how long there is peace afterwards."""

    kind: str
    leader: bool
    """Whether it happens to whoever leads then, or to node `victim`."""
    victim: int
    length_s: float
    peace_s: float
    seed: int

    def __str__(self) -> str:
        whom = "the leader" if self.leader else f"n{self.victim}"
        return f"{self.kind} ({whom}) for {self.length_s:.1f} s, then {self.peace_s:.1f} s of peace"


def skipped() -> dict[str, str]:
    """Return the kinds that this machine cannot do, each with the reason."""
    reasons = {"slow disk": "needs a device mapper with a delay target, which few machines have: never run"}
    if shutil.which("cc") is None:
        reasons["jump clock"] = "needs a C compiler, for the library that gives a process its own wall clock"
    if shutil.which("tc") is None:
        reasons |= dict.fromkeys(("cut off", "cut sending", "cut receiving", "bridge"), "needs tc (iproute2)")
    return reasons


def plan(seed: int, size: int, count: int) -> list[Fault]:
    """Return a schedule: every kind once before any comes again, on members by chance, the leader as often as not."""
    chance = random.Random(seed)
    kinds = [kind for kind in (ALONE if size == 1 else TOGETHER) if kind not in skipped()]
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += chance.sample(kinds, len(kinds))
    return [
        Fault(
            kind=kind,
            leader=size > 1 and chance.random() < 0.5,
            victim=chance.randint(1, size),
            length_s=chance.uniform(0.2, 4.0),
            peace_s=chance.uniform(0.5, 3.0),
            seed=chance.randrange(1 << 32),
        )
        for kind in drawn[:count]
    ]


class Nemesis:
    """Carries out a schedule, fault by fault, and puts right what it did."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._done = threading.Event()
        """Never set: the passing of time is what is waited for."""
        self.counts: dict[str, int] = {}

    def run(self, schedule: Sequence[Fault]) -> None:
        for number, fault in enumerate(schedule, 1):
            print(f"{number:3}. {fault}", flush=True)
            victim = self._leader() if fault.leader else fault.victim
            _KINDS[fault.kind](self, victim, fault)
            self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
            self._pass(fault.peace_s)
            for ended, how in self._members.ended().items():
                raise AssertionError(f"n{ended} has ended: {how}\n{self._members.node(ended).log_tail()}")

    def _leader(self) -> int:
        try:
            return self._members.leader_number()
        except NodeFailed:
            return 1

    def _pass(self, seconds: float) -> None:
        self._done.wait(seconds)

    # --- faults -----------------------------------------------------------------------------------------------------

    def _kill(self, victim: int, fault: Fault) -> None:
        self._members.kill(victim)
        self._pass(fault.length_s)
        self._members.restart(victim)

    def _kill_all(self, victim: int, fault: Fault) -> None:
        for number in self._members.numbers():
            self._members.kill(number)
        self._pass(fault.length_s)
        for number in self._members.numbers():
            self._members.restart(number)

    def _restart(self, victim: int, fault: Fault) -> None:
        """Stop it as the service manager does, and start it again at once."""
        self._members.node(victim).stop()
        self._members.restart(victim)

    def _freeze(self, victim: int, fault: Fault) -> None:
        self._members.freeze(victim)
        self._pass(fault.length_s)
        self._members.thaw(victim)

    def _stutter(self, victim: int, fault: Fault) -> None:
        """Run in fits, as on a host that has too much to do."""
        chance = random.Random(fault.seed)
        for _ in range(STUTTERS):
            self._members.freeze(victim)
            self._pass(fault.length_s / STUTTERS * chance.random())
            self._members.thaw(victim)
            self._pass(fault.length_s / STUTTERS * chance.random())

    def _fill_disk(self, victim: int, fault: Fault) -> None:
        self._members.fill_disk(victim)
        self._pass(fault.length_s)
        self._members.free_disk(victim)
        # A node that could not go on has ended; whoever runs it starts it again.
        self._members.revive(victim)

    def _tear_log(self, victim: int, fault: Fault) -> None:
        self._members.kill(victim)
        chance = random.Random(fault.seed)
        self._members.tear_log(victim, chance.randbytes(chance.randint(1, 300)))
        self._pass(fault.length_s / 4)
        self._members.restart(victim)

    def _jump_clock(self, victim: int, fault: Fault) -> None:
        ahead_s = random.Random(fault.seed).choice((-86_400, -3_600, -61, 61, 3_600, 86_400))
        self._members.set_clock(victim, ahead_s)
        self._pass(fault.length_s)
        self._members.set_clock(victim, 0)

    def _cut_off(self, victim: int, fault: Fault) -> None:
        self._lose(fault, [(victim, other) for other in self._others(victim)], both=True)

    def _cut_sending(self, victim: int, fault: Fault) -> None:
        self._lose(fault, [(victim, other) for other in self._others(victim)])

    def _cut_receiving(self, victim: int, fault: Fault) -> None:
        self._lose(fault, [(other, victim) for other in self._others(victim)])

    def _bridge(self, victim: int, fault: Fault) -> None:
        """The victim sees all others, and they see nobody but it."""
        others = self._others(victim)
        self._lose(fault, [(one, other) for one in others for other in others if one != other])

    def _kill_and_cut(self, victim: int, fault: Fault) -> None:
        """Cut it off, kill it there, and let it come back to a whole network."""
        self._lose(
            fault, [(victim, other) for other in self._others(victim)], both=True, then=self._members.kill, to=victim
        )
        self._members.restart(victim)

    def _lose(
        self,
        fault: Fault,
        links: Sequence[tuple[int, int]],
        *,
        both: bool = False,
        then: Callable[[int], None] = lambda number: None,
        to: int = 0,
    ) -> None:
        for sender, receiver in links:
            self._members.net.lose(sender, receiver)
            if both:
                self._members.net.lose(receiver, sender)
        self._pass(fault.length_s)
        then(to)
        self._members.net.heal()

    def _others(self, victim: int) -> list[int]:
        return [number for number in self._members.numbers() if number != victim]


_KINDS: Final[dict[str, Callable[[Nemesis, int, Fault], None]]] = {
    "kill": Nemesis._kill,
    "kill all": Nemesis._kill_all,
    "restart": Nemesis._restart,
    "freeze": Nemesis._freeze,
    "stutter": Nemesis._stutter,
    "fill disk": Nemesis._fill_disk,
    "tear log": Nemesis._tear_log,
    "jump clock": Nemesis._jump_clock,
    "cut off": Nemesis._cut_off,
    "cut sending": Nemesis._cut_sending,
    "cut receiving": Nemesis._cut_receiving,
    "bridge": Nemesis._bridge,
    "kill and cut": Nemesis._kill_and_cut,
}
