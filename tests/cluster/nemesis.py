"""What goes wrong, and when: a schedule drawn from a seed, and the hands that carry it out."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec import Struct, structs

from jobs.errors import JobsError
from jobs.testing import NodeFailed
from tests.cluster.members import Members

ALONE: Final = (
    ("kill", "restart", "freeze", "stutter", "jump clock"),
    ("fill disk", "tear log", "slow disk", "cut power"),
)
"""What can be done to a single node: to its processes, and to its disk."""
TOGETHER: Final = (
    (*ALONE[0], "kill all"),
    (*ALONE[1], "cut power of all", "damage log", "damage store", "damage snapshot"),
    ("cut off", "cut sending", "cut receiving", "bridge", "kill and cut"),
    ("transfer", "swap", "lose disk"),
)
"""What can be done to several; besides, to the network, and to who the members are."""
MEANWHILE: Final = ("", "kill", "restart", "freeze", "cut power", "cut off", "cut sending", "cut receiving", "bridge")
"""What else may happen while the members change."""
STUTTERS: Final = 20
MEANWHILE_S: Final = 3.0
"""How long after the begin of a change something else happens at the latest."""


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that goes wrong: to whom, for how long, and how long there is peace afterwards."""

    kind: str
    leader: bool
    """Whether it happens to whoever leads then, or to the member of place `victim`."""
    victim: int
    length_s: float
    peace_s: float
    seed: int
    meanwhile: str = ""
    """What happens besides, to another one."""

    def __str__(self) -> str:
        whom = "the leader" if self.leader else f"member {self.victim + 1}"
        besides = f", meanwhile {self.meanwhile}" if self.meanwhile else ""
        return f"{self.kind} ({whom}){besides} for {self.length_s:.1f} s, then {self.peace_s:.1f} s of peace"


def skipped(no_power_cuts: str = "") -> dict[str, str]:
    """Return the kinds that this machine cannot do, each with the reason."""
    reasons = {}
    if no_power_cuts:
        reasons |= dict.fromkeys(("cut power", "cut power of all"), no_power_cuts)
    if shutil.which("cc") is None:
        needs = "needs a C compiler, for the library that gives a process its own wall clock and disk"
        reasons |= dict.fromkeys(("jump clock", "slow disk"), needs)
    if shutil.which("tc") is None:
        reasons |= dict.fromkeys(("cut off", "cut sending", "cut receiving", "bridge"), "needs tc (iproute2)")
    return reasons


def plan(seed: int, size: int, count: int, without: frozenset[str] = frozenset()) -> list[Fault]:
    """Return a schedule: of each group of kinds one before any has another, every kind of a group once before any comes
    again, on members by chance, the leader as often as not."""
    chance = random.Random(seed)
    groups = [[kind for kind in group if kind not in without] for group in (ALONE if size == 1 else TOGETHER)]
    kinds = by_turns([group for group in groups if group], chance)
    meanwhile = [kind for kind in MEANWHILE if kind not in without]
    return [
        Fault(
            kind=(kind := next(kinds)),
            leader=size > 1 and chance.random() < 0.5,
            victim=chance.randrange(size),
            length_s=chance.uniform(0.2, 4.0),
            peace_s=chance.uniform(0.5, 3.0),
            seed=chance.randrange(1 << 32),
            meanwhile=chance.choice(meanwhile) if size > 1 and kind in TOGETHER[3] else "",
        )
        for _ in range(count)
    ]


def by_turns(groups: Sequence[Sequence[str]], chance: random.Random) -> Iterator[str]:
    """Yield kinds without end: of each group one before any has another, all of a group before any comes again."""
    left: list[list[str]] = [[] for _ in groups]
    while True:
        for number in chance.sample(range(len(groups)), len(groups)):
            left[number] = left[number] or chance.sample(groups[number], len(groups[number]))
            yield left[number].pop()


class Nemesis:
    """Carries out a schedule, fault by fault, and puts right what it did."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._done = threading.Event()
        """Never set: the passing of time is what is waited for."""
        self.counts: Counter[str] = Counter()
        """Faults by kind."""
        self.notes: Counter[str] = Counter()
        """What came of some of them."""

    def run(self, schedule: Sequence[Fault]) -> None:
        for number, fault in enumerate(schedule, 1):
            print(f"{number:3}. {fault}", flush=True)
            self._strike(fault.kind, self._victim(fault), fault)
            self._pass(fault.peace_s)
            self._members.retire()
            for ended, how in self._members.ended().items():
                raise AssertionError(f"n{ended} has ended: {how}\n{self._members.node(ended).log_tail()}")

    def _strike(self, kind: str, victim: int, fault: Fault) -> None:
        self.counts[kind] += 1
        _KINDS[kind](self, victim, fault)

    def _victim(self, fault: Fault) -> int:
        """Return the number of whom it befalls, who is not about to begin anew."""
        steady = [number for number in self._members.numbers() if number not in self._members.beginning]
        if fault.leader:
            try:
                leader = self._members.leader_number()
            except NodeFailed:
                leader = 0
            if leader in steady:
                return leader
        return steady[fault.victim % len(steady)]

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

    def _slow_disk(self, victim: int, fault: Fault) -> None:
        self._members.set_machine(victim, sync_s=random.Random(fault.seed).choice((0.005, 0.05, 0.4)))
        self._pass(fault.length_s)
        self._members.set_machine(victim)

    def _cut_power(self, victim: int, fault: Fault) -> None:
        self._members.cut_power(victim)
        self._pass(fault.length_s / 4)
        self._members.restart(victim)

    def _cut_power_of_all(self, victim: int, fault: Fault) -> None:
        self._members.cut_power(*self._members.numbers())
        self._pass(fault.length_s / 4)
        for number in self._members.numbers():
            self._members.restart(number)

    def _damage_log(self, victim: int, fault: Fault) -> None:
        """What was synced is not there any more: the node must not serve, and is replaced."""
        self._members.kill(victim)
        if not self._members.damage_log(victim, random.Random(fault.seed)):
            self.notes["no log to damage"] += 1
            self._members.restart(victim)
            return
        refusal = self._refusal(victim)
        assert "corrupt at byte" in refusal, refusal or f"n{victim} serves what is left of a damaged log"
        self.notes["a damaged log refused"] += 1
        self._members.lose_disk(victim)

    def _damage_snapshot(self, victim: int, fault: Fault) -> None:
        """The snapshot that the store has to begin from is damaged: the log tells all, or the node is replaced."""
        self._members.kill(victim)
        damaged = self._members.damage_snapshot(victim, random.Random(fault.seed))
        if refusal := self._refusal(victim):
            assert damaged, refusal
            assert "entries between are missing" in refusal, refusal
            self._members.lose_disk(victim)
        what = "refused" if refusal else "made good from the log" if damaged else "not there to be damaged"
        self.notes[f"a snapshot {what}"] += 1

    def _damage_store(self, victim: int, fault: Fault) -> None:
        """The store is not what it was: it begins from its snapshot, and the log tells the rest."""
        self._members.kill(victim)
        self._members.damage_store(victim, random.Random(fault.seed))
        refusal = self._refusal(victim)
        if refusal:
            # LMDB follows pointers into nowhere; the next process knows.
            assert "ended with -" in refusal, refusal
            self._members.restart(victim)
        self.notes[f"a store mended{' at the second start' if refusal else ''}"] += 1

    def _refusal(self, victim: int) -> str:
        """Start a node; return what it says when it ends instead of serving, "" when it serves."""
        try:
            self._members.restart(victim)
        except NodeFailed as refusal:
            return str(refusal)
        return ""

    def _jump_clock(self, victim: int, fault: Fault) -> None:
        ahead_s = random.Random(fault.seed).choice((-86_400, -3_600, -61, 61, 3_600, 86_400))
        self._members.set_machine(victim, ahead_s=ahead_s)
        self._pass(fault.length_s)
        self._members.set_machine(victim)

    def _transfer(self, victim: int, fault: Fault) -> None:
        def change() -> None:
            try:
                self._members.transfer(None if fault.leader else victim)
            except (JobsError, NodeFailed):
                self.notes["nobody took over"] += 1

        self._change(change, fault)

    def _swap(self, victim: int, fault: Fault) -> None:
        """A fresh node joins, and the victim is removed; it runs on for a while."""
        self._change(lambda: self._members.swap(victim), fault)

    def _lose_disk(self, victim: int, fault: Fault) -> None:
        self._change(lambda: self._members.lose_disk(victim), fault)

    def _change(self, change: Callable[[], None], fault: Fault) -> None:
        """Let the members change, and meanwhile what else there is to happen."""
        with ThreadPoolExecutor(1) as beside:
            changed = beside.submit(change)
            if fault.meanwhile:
                chance = random.Random(fault.seed)
                self._pass(chance.uniform(0, MEANWHILE_S))
                self._strike(fault.meanwhile, self._victim(_another(fault, chance)), fault)
            changed.result()

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


def _another(fault: Fault, chance: random.Random) -> Fault:
    return structs.replace(fault, leader=chance.random() < 0.5, victim=chance.randrange(1 << 16))


_KINDS: Final[dict[str, Callable[[Nemesis, int, Fault], None]]] = {
    "kill": Nemesis._kill,
    "kill all": Nemesis._kill_all,
    "restart": Nemesis._restart,
    "freeze": Nemesis._freeze,
    "stutter": Nemesis._stutter,
    "fill disk": Nemesis._fill_disk,
    "tear log": Nemesis._tear_log,
    "slow disk": Nemesis._slow_disk,
    "cut power": Nemesis._cut_power,
    "cut power of all": Nemesis._cut_power_of_all,
    "damage log": Nemesis._damage_log,
    "damage store": Nemesis._damage_store,
    "damage snapshot": Nemesis._damage_snapshot,
    "jump clock": Nemesis._jump_clock,
    "cut off": Nemesis._cut_off,
    "cut sending": Nemesis._cut_sending,
    "cut receiving": Nemesis._cut_receiving,
    "bridge": Nemesis._bridge,
    "kill and cut": Nemesis._kill_and_cut,
    "transfer": Nemesis._transfer,
    "swap": Nemesis._swap,
    "lose disk": Nemesis._lose_disk,
}
