"""Who makes things go wrong: one fault after the other, each for a while, of the kinds that the seed has chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from jobs.consensus import Consensus, MemberRecord
from jobs.consensus.leadership import TRANSFER_S
from jobs.consensus.membership import put_member, remove_member
from tests.support.simulation.host import Host

if TYPE_CHECKING:
    from tests.support.simulation.run import Simulation

MAX_HOSTS = 9
LOOK_S = 0.0005
"""How often a scenario looks whether it can go on."""


class Faults:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.rng("faults")
        self._kinds = sorted(sim.plan.faults)
        self._stopped = False
        self._added = 0
        self._cut_when_handed_over: str | None = None
        self._order_is_late = False
        self._scene = 0
        """Of scenarios that wait for something only the last one goes on."""

    def begin(self) -> None:
        if self._kinds:
            self._next()

    def _next(self) -> None:
        self._sim.after(self._rng.expovariate(1 / self._sim.plan.pace_s), self._strike)

    def _strike(self) -> None:
        if self._stopped:
            return
        kind = self._rng.choice(self._kinds)
        self._sim.checks.count(f"fault {kind}")
        getattr(self, f"_on_{kind}")()
        self._next()

    def stop(self) -> None:
        """No more faults, and an end to those that last: machines run, disks have room, the network is whole."""
        self._stopped = True
        sim = self._sim
        sim.note("", "all faults end")
        sim.clients_write = True
        sim.network.make_perfect()
        for host in sim.hosts.values():
            host.sync_s = 0.0002
            host.disk.set_full(False)
            host.store.full = False
            host.crash_after = None
            if host.loop is not None and host.loop.paused:
                host.loop.resume()
            if not host.is_up:
                sim.after(self._rng.uniform(0, 0.5), host.start)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _any(self) -> Host:
        return self._sim.hosts[self._rng.choice(sorted(self._sim.hosts))]

    def _leader_or_any(self) -> Host:
        leader = self._sim.leader()
        return leader if leader is not None and self._rng.random() < 0.5 else self._any()

    def _later(self, low_s: float, high_s: float) -> float:
        return low_s + (high_s - low_s) * self._rng.random() ** 2

    # --- the network ------------------------------------------------------------------------------------------------

    def _on_cut(self) -> None:
        sim, rng = self._sim, self._rng
        names = sorted(sim.hosts)
        rng.shuffle(names)
        leader = sim.leader()
        shape = rng.choice(("halves", "halves", "alone", "one way", "bridge"))
        if shape == "alone" and leader is not None:
            one = {leader.id}
        else:
            one = set(names[: rng.randint(1, max(1, len(names) // 2))])
        other = set(names) - one
        if shape == "bridge" and len(names) >= 3:
            # One host sees both sides.
            other.discard(next(iter(sorted(other))))
        pairs = {(left, right) for left in one for right in other}
        if shape != "one way":
            pairs |= {(right, left) for left, right in pairs}
        elif rng.random() < 0.5:
            pairs = {(right, left) for left, right in pairs}
        sim.note("", f"the network is cut ({shape}): {' '.join(sorted(one))} | {' '.join(sorted(other))}")
        sim.network.block(pairs)
        sim.after(self._later(0.2, 5), self._heal)

    def _heal(self) -> None:
        self._sim.clients_write = True
        self._sim.note("", "the network heals")
        self._sim.network.heal()

    def _on_storm(self) -> None:
        self._sim.note("", "a storm begins")
        self._sim.network.storm = True
        self._sim.after(self._later(0.2, 3), self._heal)

    # --- processes --------------------------------------------------------------------------------------------------

    def _restart(self, host: Host) -> None:
        self._sim.after(self._later(0.02, 4), host.start)

    def _on_kill(self) -> None:
        host = self._leader_or_any()
        host.end(power=False)
        self._restart(host)

    def _on_power(self) -> None:
        host = self._leader_or_any()
        host.end(power=True)
        self._restart(host)

    def _on_outage(self) -> None:
        for host in self._sim.hosts.values():
            host.end(power=True)
            self._restart(host)

    def _on_crash_point(self) -> None:
        self._leader_or_any().crash_after = self._rng.choice((1, 2, 3, 5, 8, 20))

    def _on_pause(self) -> None:
        host = self._leader_or_any()
        if host.loop is not None and not host.loop.paused:
            self._sim.note(host.id, "is stopped")
            host.loop.pause()
            self._sim.after(self._later(0.05, 4), self._resume, host, host.life)

    def _resume(self, host: Host, life: int) -> None:
        if host.loop is not None and host.life == life:
            self._sim.note(host.id, "goes on")
            host.loop.resume()

    def _on_transfer(self) -> None:
        async def work(host: Host, consensus: Consensus) -> object:
            return await consensus.transfer(None)

        self._ask("transfer", work)

    def _on_clocks(self) -> None:
        host = self._any()
        host.rate = 1 + self._rng.uniform(-1, 1) * self._sim.plan.drift
        if host.loop is not None:
            host.loop.set_rate(host.rate)

    # --- disks ------------------------------------------------------------------------------------------------------

    def _on_slow_disk(self) -> None:
        host = self._leader_or_any()
        host.sync_s = self._rng.choice((0.02, 0.1, 0.4))
        self._sim.after(self._later(0.3, 4), self._mend_disk, host)

    def _on_broken_sync(self) -> None:
        self._leader_or_any().disk.fail("sync", "eio", after=self._rng.randrange(3))

    def _on_full_log(self) -> None:
        host = self._leader_or_any()
        host.disk.set_full(True)
        host.disk.fail("allocate", "enospc")
        self._sim.after(self._later(0.3, 4), self._mend_disk, host)

    def _on_full_store(self) -> None:
        host = self._leader_or_any()
        host.store.full = True
        self._sim.after(self._later(0.3, 4), self._mend_disk, host)

    def _mend_disk(self, host: Host) -> None:
        host.sync_s = self._sim.plan.sync_s
        host.disk.set_full(False)
        host.store.full = False

    # --- scenarios --------------------------------------------------------------------------------------------------

    def _leader_and_followers(self) -> tuple[Host | None, list[Host]]:
        """Return who leads, and those voters that run besides; nobody leads when there are too few."""
        sim = self._sim
        leader = sim.leader()
        others = [sim.hosts[name] for name in sim.voters() if sim.hosts[name].is_up and sim.hosts[name] is not leader]
        return (leader, others) if len(others) >= 2 else (None, others)

    def _part(self, *groups: Collection[Host]) -> None:
        """Let each group be a network of its own; who is in none sees nobody."""
        group_of = {host.id: number for number, group in enumerate(groups) for host in group}
        names = sorted(self._sim.hosts)
        blocked = {
            (one, other)
            for one in names
            for other in names
            if one != other and (one not in group_of or group_of[one] != group_of.get(other))
        }
        self._sim.note("", "the network is " + " | ".join(" ".join(sorted(host.id for host in one)) for one in groups))
        self._sim.network.block(blocked)

    def _begin_scene(self) -> int:
        self._sim.clients_write = True
        self._scene += 1
        return self._scene

    def _when(self, scene: int, holds: Callable[[], bool], then: Callable[[], None], patience_s: float = 2.5) -> None:
        """Do something as soon as something holds; let the network heal when that takes too long."""
        if self._stopped or scene != self._scene:
            return
        if holds():
            then()
        elif patience_s <= 0:
            self._heal()
        else:
            self._sim.after(LOOK_S, self._when, scene, holds, then, patience_s - LOOK_S)

    def _heal_later(self, scene: int, low_s: float, high_s: float) -> None:
        self._sim.after(self._rng.uniform(low_s, high_s), self._when, scene, lambda: True, self._heal)

    def _elected(self) -> Host | None:
        """Return who was elected last, and may not have settled yet."""
        elected = [
            host
            for host in self._sim.hosts.values()
            if host.consensus is not None and host.consensus._member.raft.leads
        ]
        return max(elected, key=_term, default=None)

    def _another_leads(self, former: Host, term: int) -> Callable[[], bool]:
        def holds() -> bool:
            now = self._elected()
            return now is not None and now is not former and _term(now) > term

        return holds

    def _on_deaf(self) -> None:
        leader, others = self._leader_and_followers()
        if leader is None:
            return
        scene, term = self._begin_scene(), _term(leader)
        deaf = self._rng.choice(others)
        # Nothing is written, so that it lacks nothing: only loyalty keeps others from voting for it.
        self._sim.clients_write = False

        def begin() -> None:
            self._sim.note("", f"{deaf.id} does not hear {leader.id}")
            self._sim.network.block({(leader.id, deaf.id)})
            self._when(scene, self._another_leads(leader, term), lambda: self._deafen(scene, leader.id))

        self._sim.after(0.15, self._when, scene, lambda: True, begin)

    def _on_unanswered(self) -> None:
        leader, _ = self._leader_and_followers()
        if leader is not None:
            self._deafen(self._begin_scene(), leader.id, 1.5, 2.5)

    def _on_former(self) -> None:
        leader, others = self._leader_and_followers()
        if leader is None:
            return
        scene = self._begin_scene()
        self._part([leader], others)

        def come_back() -> None:
            now = self._elected()
            assert now is not None
            self._sim.note("", f"{leader.id} comes back to all but {now.id}")
            self._sim.network.block({(leader.id, now.id), (now.id, leader.id)})
            self._heal_later(scene, 0.2, 1.0)

        self._when(scene, self._another_leads(leader, _term(leader)), come_back)

    def _on_handed_over(self) -> None:
        leader, _ = self._leader_and_followers()
        if leader is not None:
            self._cut_when_handed_over = leader.id
            self._on_transfer()

    def _on_late_order(self) -> None:
        self._on_handed_over()
        self._order_is_late = self._cut_when_handed_over is not None

    def order_delay_s(self, source: str) -> float:
        """Return for how long a leader's word that another may lead is held back."""
        if source != self._cut_when_handed_over or not self._order_is_late or self._stopped:
            return 0.0
        self._order_is_late = False
        return self._rng.uniform(TRANSFER_S + 0.1, TRANSFER_S + 0.6)

    def on_handing_over(self, source: str) -> None:
        """A leader's word that another may lead has come there."""
        if source == self._cut_when_handed_over and not self._stopped:
            self._cut_when_handed_over = None
            self._deafen(self._begin_scene(), source)

    def _deafen(self, scene: int, name: str, low_s: float = 0.3, high_s: float = 1.2) -> None:
        self._sim.note("", f"{name} hears nobody")
        self._sim.clients_write = True
        self._sim.network.block({(other, name) for other in sorted(self._sim.hosts) if other != name})
        self._heal_later(scene, low_s, high_s)

    def _on_slow_clock(self) -> None:
        leader, others = self._leader_and_followers()
        if leader is None:
            return
        scene = self._begin_scene()
        drift = self._sim.plan.drift
        for host in self._sim.hosts.values():
            host.rate = 1 - drift if host is leader else 1 + drift
            if host.loop is not None:
                host.loop.set_rate(host.rate)
        # Nothing is written, so that any of the others may be elected at once.
        self._sim.clients_write = False
        term = _term(leader)

        def cut() -> None:
            self._part([leader], others)
            for host in others:
                host.stand_early()
            self._when(scene, self._another_leads(leader, term), write)

        def write() -> None:
            self._sim.clients_write = True
            self._heal_later(scene, 0.3, 1.0)

        self._sim.after(self._rng.uniform(0.3, 0.6), self._when, scene, lambda: True, cut)

    def _on_figure_8(self) -> None:
        """The first leader writes to one other only; a second one is elected, and parted before anybody has its entry;
        the first ones write their old entries to a majority, and end before a newer one follows; then the second one
        comes back."""
        leader, others = self._leader_and_followers()
        if leader is None or len(others) != 4:
            return
        scene, first_term = self._begin_scene(), _term(leader)
        friend, *rest = self._rng.sample(others, 4)
        self._part([leader, friend], rest)

        def part_the_second() -> None:
            second = self._elected()
            if second is None or second not in rest:
                self._heal()
                return
            self._part([host for host in (leader, *others) if host is not second])
            self._when(scene, self._another_leads(second, _term(second)), lambda: wait_for_a_majority(second))

        def wait_for_a_majority(second: Host) -> None:
            third = self._elected()
            if third is None or third not in (leader, friend):
                self._heal()
                return
            known = third.consensus.commit_index if third.consensus else 0
            self._when(scene, lambda: _old_entry_is_at_a_majority(third, known), lambda: end_the_third(second, third))

        def end_the_third(second: Host, third: Host) -> None:
            self._part([host for host in others if host not in (third, leader, friend)])
            third.end(power=False)
            self._restart(third)
            self._heal_later(scene, 1.0, 2.0)

        self._when(scene, self._another_leads(leader, first_term), part_the_second)

    def _on_no_room(self) -> None:
        """All disks are full, until the logs are, and then the leader goes."""
        scene = self._begin_scene()
        for host in self._sim.hosts.values():
            host.disk.set_full(True)

        def go() -> None:
            leader, others = self._leader_and_followers()
            if leader is not None:
                self._part([leader], others)

        self._sim.after(self._rng.uniform(0.5, 1.5), self._when, scene, lambda: True, go)
        self._sim.after(self._rng.uniform(2, 4), self._end_no_room, scene)

    def _end_no_room(self, scene: int) -> None:
        for host in self._sim.hosts.values():
            self._mend_disk(host)
        self._when(scene, lambda: True, self._heal)

    # --- members ----------------------------------------------------------------------------------------------------

    def _ask(self, what: str, work: object) -> None:
        """Ask the leader, or who was it."""
        leader = self._sim.leader() or self._any()
        self._sim.note(leader.id, f"is asked: {what}")

        def answer(outcome: object) -> None:
            self._sim.note(leader.id, f"answers: {what}: {outcome!r}")

        leader.request(work, answer)  # type: ignore[arg-type]

    def _on_members(self) -> None:
        voters = self._sim.voters()
        if self._rng.random() < 0.5 and len(self._sim.hosts) < MAX_HOSTS and len(voters) < 6:
            self.add()
        elif len(voters) > 2:
            self.remove(self._rng.choice(voters))

    def add(self) -> None:
        sim = self._sim
        self._added += 1
        name = f"m{self._added}"
        host = sim.hosts[name] = Host(sim, name)
        host.start()

        self.ask_to_put(MemberRecord(id=name, name=name))

    def ask_to_put(self, record: MemberRecord) -> None:
        async def work(_: Host, consensus: Consensus) -> object:
            return await consensus.change_members(put_member(consensus.members, record))

        self._ask(f"add {record.id}", work)

    def remove(self, name: str) -> None:
        async def work(_: Host, consensus: Consensus) -> object:
            return await consensus.change_members(remove_member(consensus.members, name))

        self._ask(f"remove {name}", work)


def _term(host: Host) -> int:
    return 0 if host.consensus is None else host.consensus.term


def _old_entry_is_at_a_majority(leader: Host, known: int) -> bool:
    """Tell whether enough members have an entry of a former term, after those known to be committed, which this leader
    may not commit yet."""
    if leader.consensus is None or leader.log is None:
        return False
    raft = leader.consensus._member.raft
    voters = leader.consensus.members.voters
    matches = sorted((raft.match_index(name) for name in voters if name != leader.id), reverse=True)
    reached = matches[len(voters) // 2 - 1]
    return reached > known and (leader.log.term_at(reached) or 0) < raft.term
