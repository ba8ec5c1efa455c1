"""Who makes things go wrong: one fault after the other, each for a while, of the kinds that the seed has chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.consensus import Consensus, MemberRecord
from jobs.consensus.membership import put_member, remove_member
from tests.support.simulation.host import Host

if TYPE_CHECKING:
    from tests.support.simulation.run import Simulation

MAX_HOSTS = 9


class Faults:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.rng("faults")
        self._kinds = sorted(sim.plan.faults)
        self._stopped = False
        self._added = 0

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
