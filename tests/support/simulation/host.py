"""A member as a process on a machine: it starts, crashes, loses power, is stopped, and starts again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._native import Log, NativeError, SimDisk
from jobs.consensus import Consensus, ConsensusConfig, ConsensusError
from jobs.errors import JobsError, OutcomeUnknown
from tests.support.simulation.loop import VirtualLoop
from tests.support.simulation.network import HostNetwork
from tests.support.simulation.plan import ELECTION_MAX_S, ELECTION_MIN_S, HEARTBEAT_S
from tests.support.simulation.storage import Crash, SimStore, WatchedLog

if TYPE_CHECKING:
    from tests.support.simulation.run import Simulation

SEGMENT_BYTES = 64 << 10


class Refused(Exception):
    """A request was certainly not carried out."""


class Unknown(Exception):
    """Whether a request was carried out is not known."""


class Host:
    """One machine with its disk. `snapshot` is what its store begins with; `alone` lets it found a group."""

    def __init__(self, sim: Simulation, name: str, *, snapshot: bytes | None = None, alone: bool = False) -> None:
        self.sim = sim
        self.id = name
        self.rng = sim.rng(f"host {name}")
        self.disk = SimDisk(self.rng.getrandbits(60))
        self.store = SimStore(self, snapshot)
        self.alone = alone
        self.life = 0
        """How many times a process was started here."""
        self.gone = False
        """The machine is lost for good."""
        self.sync_s = sim.plan.sync_s
        self.rate = 1.0
        self.loop: VirtualLoop | None = None
        self.consensus: Consensus | None = None
        self.log: WatchedLog | None = None
        self.crash_after: int | None = None
        """Operations on log and store until the process ends in the middle; None: it does not."""
        self.crashing = False
        self.serves = False
        """Whether the process has come so far that it would serve."""

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self.loop is not None

    def start(self) -> None:
        if self.gone or self.is_up:
            return
        self.life += 1
        self.sim.note(self.id, f"starts, life {self.life}")
        self.crashing = False
        self.loop = VirtualLoop(self.sim, self.rng, self.rate, self._after_callback)
        self.loop.call_soon(self._begin)

    def _begin(self) -> None:
        assert self.loop is not None
        plan = self.sim.plan
        try:
            self.log = WatchedLog(self, Log.on(self.disk, segment_bytes=SEGMENT_BYTES))
            self.sim.checks.on_opened(self)
            self.consensus = Consensus(
                self.id,
                self.log,  # type: ignore[arg-type]
                self.store,  # type: ignore[arg-type]
                ConsensusConfig(
                    heartbeat_s=HEARTBEAT_S,
                    election_min_s=ELECTION_MIN_S,
                    election_max_s=ELECTION_MAX_S,
                    snapshot_log_bytes=plan.snapshot_bytes,
                ),
                network=HostNetwork(self.sim.network, self),
                alone=self.alone,
                rng=self.sim.rng(f"raft {self.id} {self.life}"),
            )
        except NativeError as error:
            self._on_failure(error)
            return
        except ConsensusError as error:
            raise self.sim.violated("a member starts after any crash", f"{self.id}: {error}") from error
        self.consensus.on_failure = self._on_failure
        self.loop.create_task(self._run(self.consensus))

    async def _run(self, consensus: Consensus) -> None:
        try:
            await consensus.start()
            self.serves = True
        except (NativeError, ConsensusError) as error:
            self._on_failure(error)

    def _on_failure(self, error: BaseException) -> None:
        """The process ends when its log or store fails, as the node does."""
        if not isinstance(error, NativeError | ConsensusError) and not self.sim.broken:
            raise self.sim.violated("nothing unexpected is raised", f"{self.id}: {error!r}") from error
        self.sim.note(self.id, f"fails: {error}")
        self.crashing = True

    def end(self, *, power: bool) -> None:
        """End the process here and now; with `power`, also what its machine had not synced."""
        if self.loop is None:
            return
        self.sim.note(self.id, "loses power" if power else "is killed")
        self.loop.end()
        if power:
            if self.log is not None and self.rng.random() < 0.5:
                # In the middle of a sync.
                self.disk.fail("sync", "power_cut")
                with contextlib.suppress(NativeError):
                    self.log._log.sync()
            self.disk.cut_power()
            self.store.cut_power()
        else:
            self.disk.kill()
        self.store.forget_received()
        self.loop = self.log = self.consensus = self.crash_after = None
        self.serves = False
        self.sim.checks.on_end(self)

    def lose(self) -> None:
        """The machine is lost with all it had."""
        self.end(power=True)
        self.gone = True

    def _after_callback(self) -> None:
        if self.crashing:
            self.crashing = False
            self.end(power=self.rng.random() < 0.5)
            self.sim.after(self.rng.uniform(0.05, 2.0), self.start)
        elif self.consensus is not None:
            self.sim.checks.after_step(self)

    # --- what its disk does -----------------------------------------------------------------------------------------

    def may_crash(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crashing = True
        if self.crashing:
            raise Crash

    def use_disk(self) -> None:
        assert self.loop is not None
        self.loop.stall(self.rng.expovariate(1 / self.sync_s))

    def stand_early(self) -> None:
        """Of all times at which chance may let this follower stand for election, let it be about the first."""
        if self.consensus is not None:
            raft = self.consensus._member.raft
            heard_s = raft._elections._heard_s
            raft._SyncObj__raftElectionDeadline = heard_s + ELECTION_MIN_S + self.rng.uniform(0.002, 0.02)

    # --- what comes from outside --------------------------------------------------------------------------------------

    def knows(self, peer: str) -> bool:
        """Whether messages of a peer are let in: its members', and anyone's before it has any."""
        if self.consensus is None:
            return False
        members = self.consensus.members
        return not members.records or members.get(peer) is not None

    def on_message(self, peer: str, data: bytes) -> None:
        if self.loop is not None and self.consensus is not None:
            self.loop.call_soon(self.consensus.on_message, peer, data)

    def on_file(self, source: Host, path: str, data: bytes, taken: asyncio.Future[None]) -> None:
        """A snapshot has come whole; its sender hears when it is taken in."""
        if self.loop is not None and self.consensus is not None:
            self.loop.call_soon(self._take_file, self.consensus, source, path, data, taken)

    def _take_file(
        self, consensus: Consensus, source: Host, path: str, data: bytes, taken: asyncio.Future[None]
    ) -> None:
        assert self.loop is not None
        self.store.files[path] = data
        self.loop.create_task(self._install(consensus, source, path, taken))

    async def _install(self, consensus: Consensus, source: Host, path: str, taken: asyncio.Future[None]) -> None:
        try:
            await consensus.install_snapshot(source.id, Path(path))
        except (JobsError, NativeError) as error:
            self.sim.note(self.id, f"does not take the snapshot: {error}")
            self.store.files.pop(path, None)
            return
        self.sim.after(0.002, _resolve, source, source.life, taken)

    def request(
        self,
        work: Callable[[Host, Consensus], Awaitable[object]],
        answer: Callable[[object], None],
    ) -> None:
        """Do something for somebody on this host's loop. The answer is a result, Refused or Unknown, or never comes."""
        if self.loop is None or self.consensus is None:
            answer(Refused("nobody listens"))
        else:
            self.loop.call_soon(self._serve, self.consensus, work, answer)

    def _serve(
        self,
        consensus: Consensus,
        work: Callable[[Host, Consensus], Awaitable[object]],
        answer: Callable[[object], None],
    ) -> None:
        assert self.loop is not None
        self.loop.create_task(self._do(consensus, work, answer))

    async def _do(
        self,
        consensus: Consensus,
        work: Callable[[Host, Consensus], Awaitable[object]],
        answer: Callable[[object], None],
    ) -> None:
        outcome: object
        try:
            outcome = await work(self, consensus)
        except (OutcomeUnknown, ConsensusError) as error:
            outcome = Unknown(str(error))
        except JobsError as error:
            outcome = Refused(str(error))
        except Exception as error:
            raise self.sim.violated("nothing unexpected is raised", f"{self.id}: {error!r}") from error
        answer(outcome)


def _resolve(source: Host, life: int, taken: asyncio.Future[None]) -> None:
    if source.life == life and source.is_up and not taken.done():
        taken.set_result(None)
