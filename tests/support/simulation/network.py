"""Messages between hosts, as a network delivers them or does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.consensus.messages import Append, Appended, Message, Pulse, Pulsed, TimeoutNow, Vote, Voted, decode

if TYPE_CHECKING:
    from tests.support.simulation.host import Host
    from tests.support.simulation.run import Simulation

STRANGER_HEARD = 0.2
"""How often a message of one who is not a member gets through: an allowlist may lag behind."""
SNAPSHOT_S = 3.0
"""How long a snapshot may take."""


class Network:
    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._rng = sim.rng("network")
        self._blocked: set[tuple[str, str]] = set()
        plan = sim.plan
        self.lose, self.double, self.late = plan.lose, plan.double, plan.late
        self.storm = False
        self.sent = self.lost = 0

    # --- how it is ------------------------------------------------------------------------------------------------

    def block(self, pairs: set[tuple[str, str]]) -> None:
        """Let nothing through from the first to the second of each pair, and everything else."""
        self._blocked = pairs

    def heal(self) -> None:
        self._blocked = set()
        self.storm = False

    def make_perfect(self) -> None:
        self.heal()
        self.lose = self.double = self.late = 0.0

    def passes(self, source: str, target: str) -> bool:
        return (source, target) not in self._blocked

    # --- messages -------------------------------------------------------------------------------------------------

    def send(self, source: Host, target: str, data: bytes) -> None:
        """Send a message; what it says is checked also if it never arrives."""
        message = decode(data)
        self._sim.checks.on_send(source, target, message)
        self.sent += 1
        rng, storm = self._rng, self.storm
        if not self.passes(source.id, target) or rng.random() < (0.3 if storm else self.lose):
            self.lost += 1
            return
        for _ in range(2 if rng.random() < (0.2 if storm else self.double) else 1):
            delay_s = 0.001 + rng.expovariate(500)
            if rng.random() < (0.4 if storm else self.late):
                delay_s += rng.choice((0.05, 0.3, 1.0, 4.0)) * rng.random()
            if isinstance(message, TimeoutNow):
                delay_s += self._sim.faults.order_delay_s(source.id)
            self._sim.after(delay_s, self._deliver, source.id, target, data, message)

    def _deliver(self, source: str, target: str, data: bytes, message: Message) -> None:
        host = self._sim.hosts.get(target)
        if host is None or not host.is_up:
            return
        if not self.passes(source, target) and self._rng.random() < 0.7:
            self.lost += 1
            return
        if not host.knows(source) and self._rng.random() > STRANGER_HEARD:
            return
        if not is_idle(message):
            self._sim.note(target, f"<- {source} {describe(message)}")
        host.on_message(source, data)
        if isinstance(message, TimeoutNow):
            self._sim.faults.on_handing_over(source)

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def send_file(self, source: Host, target: str, name: str, path: Path) -> None:
        """Bring a snapshot over, which takes its time and breaks off as the network does."""
        data = source.store.files[str(path)]
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sim.after(self._rng.uniform(0.01, 0.6), self._arrive, source, source.life, target, name, data, taken)
        async with asyncio.timeout(SNAPSHOT_S):
            await taken

    def _arrive(
        self, source: Host, life: int, target: str, name: str, data: bytes, taken: asyncio.Future[None]
    ) -> None:
        host = self._sim.hosts.get(target)
        if (
            source.life == life
            and host is not None
            and host.is_up
            and self.passes(source.id, target)
            and self.passes(target, source.id)
            and self._rng.random() >= self.lose
        ):
            self._sim.note(target, f"<- {source.id} {name}")
            host.on_file(source, f"/sim/{target}/received-{source.id}-{self._sim.steps}", data, taken)


class HostNetwork:
    """What one host's consensus sees of it."""

    def __init__(self, network: Network, host: Host) -> None:
        self._network = network
        self._host = host

    def send(self, peer: str, message: bytes) -> bool:
        self._network.send(self._host, peer, message)
        return True

    def send_urgent(self, peer: str, message: bytes) -> bool:
        # Messages overtake each other here anyway.
        return self.send(peer, message)

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        await self._network.send_file(self._host, peer, name, path)


def is_idle(message: Message) -> bool:
    """Tell a sign of life and its answer, of which there are too many to tell them all."""
    match message:
        case Append():
            return not message.entries
        case Appended():
            return message.ok
    return isinstance(message, Pulse | Pulsed)


def describe(message: Message) -> str:
    match message:
        case Append():
            return (
                f"append t{message.term} {message.prev_index}/{message.prev_term}+{len(message.entries)} "
                f"commit {message.commit} round {message.round}"
            )
        case Appended():
            said = "has" if message.ok else "lacks, perhaps after"
            return f"appended t{message.term} {said} {message.index} round {message.round}"
        case Vote():
            kind = "pre-vote" if message.pre else "transfer vote" if message.transfer else "vote"
            return f"{kind} t{message.term} {message.last_index}/{message.last_term}"
        case Voted():
            return f"{'pre-' if message.pre else ''}voted t{message.term} {'yes' if message.granted else 'no'}"
        case Pulse():
            return f"pulse t{message.term} round {message.round}"
        case Pulsed():
            return f"pulsed t{message.term} round {message.round}"
        case TimeoutNow():
            return f"timeout now t{message.term}"
