"""Replicated commands on the event loop: what the rest of the node sees of consensus.

`Consensus.propose` takes a transaction and returns when it is committed, durable on a majority and applied here. Many
transactions ride in one Raft command and are covered by one fsync (group commit): whatever is proposed while the loop
is busy, while an fsync runs, or while the others answer, makes up the next command.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final, Protocol

from msgspec import Struct, structs

from jobs._native import DiskFullError, Log, Store, failpoint
from jobs.consensus import messages
from jobs.consensus.member import ConsensusError, Discarded, LeadershipLost, Member
from jobs.consensus.membership import MemberRecord, Members, Role, put_member
from jobs.consensus.messages import MessageError
from jobs.consensus.raft import Timing
from jobs.errors import (
    JobsError,
    MembershipConflict,
    NotLeader,
    OutcomeUnknown,
    PayloadTooLarge,
    StorageFull,
    Unavailable,
)
from jobs.store import Txn, TxnResult, decode_results, encode_command

logger = logging.getLogger(__name__)

BATCH_BYTES: Final = 4 << 20
"""A command takes no further transaction once it is this large."""
MAX_COMMAND_TXNS: Final = 2_000
MAX_PENDING_TXNS: Final = 20_000
"""Transactions that may wait for a command; one more is refused."""
MAX_COMMANDS_IN_FLIGHT: Final = 2
"""Commands that wait for the others' answers; meanwhile transactions gather for the next one."""
MAX_INBOX: Final = 4_096
"""Messages that may wait for a sync or a snapshot; further ones are dropped, as a network may do."""
INLINE_SYNC_S: Final = 0.002
"""A disk that syncs faster than this is synced on the event loop, which saves two thread switches (measured at
0.1 ms, as much as the fsync itself); a slower one on a thread, so that the loop goes on serving."""
_SYNC_COST_WEIGHT: Final = 0.1
SNAPSHOT_RETRY_S: Final = 1.0
TRANSFER_S: Final = 2.0
"""Time that a leader gives another to take over; meanwhile proposals wait."""
STEP_ASIDE_S: Final = 30.0
"""A leader whose disk is full hands over no more often than this."""
PROMOTE_PERIOD_S: Final = 0.5
PROMOTE_ENTRIES: Final = 256
"""A learner that lacks no more than so many entries has caught up."""
TRAIL_SHARE: Final = 0.5
"""Of `snapshot_log_bytes`: how much log is kept behind a snapshot for members that lack it."""


_SEND_POINTS: Final = {
    messages.Append: ("consensus.append.send.before", "consensus.append.send.after"),
    messages.Appended: ("consensus.appended.send.before", "consensus.appended.send.after"),
    messages.Vote: ("consensus.vote.send.before", "consensus.vote.send.after"),
    messages.Voted: ("consensus.voted.send.before", "consensus.voted.send.after"),
    messages.TimeoutNow: ("consensus.timeoutnow.send.before", "consensus.timeoutnow.send.after"),
}
"""Failpoints around the sending of each kind of message."""


class ConsensusConfig(Struct, frozen=True, kw_only=True):
    """Raft timings in seconds, and how large the log may grow before a snapshot lets it be cut."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0
    snapshot_log_bytes: int = 256 << 20


class Network(Protocol):
    """How members reach each other."""

    def send(self, peer: str, message: bytes) -> bool:
        """Send a message after those before it, or drop it and return False."""

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        """Return when the peer has the file. Raises an exception of its own when that fails."""


class _NoNetwork:
    """Of a node that is alone."""

    def send(self, peer: str, message: bytes) -> bool:
        return False

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        raise Unavailable(f"this node has no network to reach {peer}")


class _Proposal(Struct):
    txn: Txn
    size_bytes: int
    done: asyncio.Future[TxnResult]
    changes_members: bool = False


class MemberProgress(Struct, frozen=True, kw_only=True):
    """How a leader sees a member."""

    match_index: int
    answered_ago_s: float | None


class Consensus:
    """One member of the Raft group: proposes, commits, applies, takes snapshots. Lives on one event loop.

    `node` is the member's id. With `alone` it is a group of its own for as long as its store knows of no members;
    without, it waits for a leader to add it.
    """

    def __init__(
        self,
        node: str,
        log: Log,
        store: Store,
        config: ConsensusConfig | None = None,
        *,
        network: Network | None = None,
        alone: bool = True,
        rng: Random | None = None,
    ) -> None:
        self._config = config or ConsensusConfig()
        self._log = log
        self._store = store
        self._network: Network = network or _NoNetwork()
        timing = Timing(
            heartbeat_s=self._config.heartbeat_s,
            election_min_s=self._config.election_min_s,
            election_max_s=self._config.election_max_s,
        )
        self._member = Member(node, log, store, timing, rng or SystemRandom(), now_s(), alone=alone)
        self._member.on_applied = self._on_applied
        self._member.on_members = self._on_members
        self._queue: list[_Proposal] = []
        self._in_flight: list[list[_Proposal]] = []
        self._inbox: list[tuple[str, messages.Message]] = []
        self._scheduled = False
        self._round_wanted = False
        self._readers: list[tuple[int, asyncio.Future[None]]] = []
        """Reads that wait for a round of signs of life; round -1 is the next one."""
        self._syncing: asyncio.Future[int] | None = None
        self._sync_cost_s = 0.0
        self._snapshotting: asyncio.Future[int] | None = None
        self._installing = False
        self._sending: set[str] = set()
        """Members that a snapshot is on its way to, or that one could not be sent to just now."""
        self._told: set[str] = set()
        """Members that were reported for what they have lost."""
        self._holding = False
        """Nothing is appended, so that another member can catch up and take over."""
        self._timer: asyncio.TimerHandle | None = None
        self._promoted_s = 0.0
        self._stepped_aside_s = float("-inf")
        self._step_waiters: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="consensus")
        self._failure: BaseException | None = None
        self._ready: asyncio.Future[None] | None = None
        self._was_leader = False
        self._known_leader: str | None = None
        self.on_applied: Callable[[], None] = lambda: None
        """Called after each batch of entries was applied; must not raise."""
        self.on_leadership: Callable[[bool], None] = lambda leads: None
        """Called when `is_leader` has changed; must not raise."""
        self.on_leader: Callable[[], None] = lambda: None
        """Called when `leader` has changed; must not raise."""
        self.on_members: Callable[[], None] = lambda: None
        """Called when `members` has changed; must not raise."""
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called once when the log or the store fails: the process has to end."""
        self.fsyncs = 0
        self.commands = 0
        self.transactions = 0
        self.bad_messages = 0
        self.snapshots_sent = 0
        self.snapshots_installed = 0

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take part. A member that is the only voter returns when it leads and has applied everything committed.

        Raises ConsensusError when its log or its store fails.
        """
        self._loop = asyncio.get_running_loop()
        if self._member.members.voters == (self._member.me,):
            self._ready = self._loop.create_future()
        self._log.sync()
        self._pump()
        self._on_timer()
        if self._ready is not None:
            await self._ready

    async def hand_over(self) -> None:
        """Let another lead, if this member does and somebody can take over: before it stops."""
        if self.is_leader and len(self.members.voters) > 1:
            try:
                await self.transfer(None)
            except JobsError as error:
                logger.warning("nobody took over the leadership: %s", error)

    def _step_aside(self) -> None:
        """A leader without room lets another try, now and then: the others may have some."""
        if now_s() - self._stepped_aside_s >= STEP_ASIDE_S:
            self._stepped_aside_s = now_s()
            self._spawn(self.hand_over())

    async def stop(self) -> None:
        """Refuse what waits, finish what is being written, and let go of log and store (which stay open)."""
        if self._timer is not None:
            self._timer.cancel()
        self._fail_waiting(
            Unavailable("the node is stopping", retry_after_s=1),
            OutcomeUnknown("the node stopped while the others had not confirmed the write", retry_after_s=1),
        )
        for task in (self._syncing, self._snapshotting):
            if task is not None:
                await asyncio.wait([task])
        self._failure = self._failure or ConsensusError("stopped")
        for running in list(self._tasks):
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    # --- what others use ----------------------------------------------------------------------------------------

    @property
    def no_room(self) -> str | None:
        """Why committed entries wait to be applied: the store's disk is full. Nothing more is accepted meanwhile."""
        return self._member.no_room

    @property
    def is_leader(self) -> bool:
        """Whether this member leads and knows everything that was ever acknowledged."""
        return self._failure is None and self._member.leads

    @property
    def leader(self) -> str | None:
        """Id of the member that is believed to lead."""
        return self._member.raft.leader

    @property
    def me(self) -> str:
        return self._member.me

    @property
    def term(self) -> int:
        return self._log.hard_state()[0]

    @property
    def applied_index(self) -> int:
        return self._member.raft.applied_index

    @property
    def commit_index(self) -> int:
        return self._member.raft.commit_index

    @property
    def members(self) -> Members:
        return self._member.members

    def progress(self, member: str) -> MemberProgress:
        """Return how this leader sees another member."""
        raft = self._member.raft
        answered_s = raft.answered_s(member)
        return MemberProgress(
            match_index=raft.match_index(member), answered_ago_s=None if answered_s is None else now_s() - answered_s
        )

    def propose(self, txn: Txn, size_bytes: int = 256) -> asyncio.Future[TxnResult]:
        """Return a future of the transaction's result: it resolves once committed, durable on a majority and applied.

        `size_bytes` is about what the transaction weighs, for bounding a command. The future fails with Unavailable
        (NotLeader, StorageFull) when the transaction was certainly not accepted, and with OutcomeUnknown or
        ConsensusError when that is not known.
        """
        return self._propose(txn, size_bytes, changes_members=False)

    async def barrier(self) -> None:
        """Return when a read of the local store is linearizable: a majority has promised its loyalty until later than
        now, or has just confirmed that this member leads.

        Raises NotLeader, and Unavailable when no majority answers.
        """
        if not self.is_leader:
            raise _not_leader(self._member.raft.leader)
        if self._member.may_read(now_s()):
            return
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._readers.append((-1, confirmed))
        self._round_wanted = True
        self._schedule()
        try:
            async with asyncio.timeout(self._config.election_max_s):
                await confirmed
        except TimeoutError:
            raise Unavailable("no majority of the cluster answers", retry_after_s=1) from None

    async def snapshot(self) -> int:
        """Write a snapshot of the store, cut the log behind it, and return the snapshot's index."""
        if self._snapshotting is None:
            self._snapshotting = self._loop.run_in_executor(self._threads, self._store.snapshot)
            self._snapshotting.add_done_callback(self._on_snapshot)
        return await asyncio.shield(self._snapshotting)

    # --- members --------------------------------------------------------------------------------------------------

    async def change_members(self, txn: Txn) -> None:
        """Carry out a change that `membership` has made of the present `members`. Only a leader can.

        Raises MembershipConflict when another change came in between, and as `propose`.
        """
        result = await self._propose(txn, 1024, changes_members=True)
        if result.error or not result.succeeded:
            raise MembershipConflict(
                "another change of the members came in between", expected="the same again", retry_after_s=1
            )

    async def transfer(self, to: str | None) -> str:
        """Hand leadership over to a voter, or to the one with the longest log, and return who it was.

        Raises NotLeader, MembershipConflict for one that cannot lead, Unavailable when it did not take over in time.
        """
        if not self.is_leader:
            raise _not_leader(self.leader)
        raft, me = self._member.raft, self._member.me
        others = [member for member in self._member.members.voters if member != me]
        if to is not None and to not in others:
            names = ", ".join(sorted(self.members.name_of(member) for member in others))
            raise MembershipConflict(
                f"{self.members.name_of(to)} cannot lead", expected=f"another voter: {names or 'none'}"
            )
        if not others:
            raise MembershipConflict("there is no other voter", expected="a cluster with several")
        chosen = to or max(others, key=lambda member: (self.answers(member), raft.match_index(member), member))
        name = self.members.name_of(chosen)
        if not self.answers(chosen):
            raise MembershipConflict(f"{name} does not answer", expected="a voter that does")
        asked = False
        self._holding = True
        try:
            async with asyncio.timeout(TRANSFER_S):
                while raft.leads:
                    if not asked and raft.match_index(chosen) == self._log.last_index and not self._member.unsynced:
                        raft.transfer(chosen)
                        asked = True
                        self._flush()
                    await self._stepped()
        except TimeoutError:
            raise Unavailable(f"{name} did not take over within {TRANSFER_S:g} s", retry_after_s=1) from None
        finally:
            self._holding = False
            self._schedule()
        return chosen

    def _promote(self) -> None:
        """Give learners that have caught up their vote, one at a time."""
        raft = self._member.raft
        if not self.is_leader or now_s() - self._promoted_s < PROMOTE_PERIOD_S:
            return
        for record in self._member.members.records:
            lacks = raft.commit_index - raft.match_index(record.id)
            if record.role is Role.LEARNER and lacks <= PROMOTE_ENTRIES and self.answers(record.id):
                self._promoted_s = now_s()
                logger.info("%s has caught up and gets a vote", record.name)
                self._spawn(self._give_vote(record))
                return

    async def _give_vote(self, record: MemberRecord) -> None:
        voter = structs.replace(record, role=Role.VOTER)
        try:
            await self.change_members(put_member(self.members, voter))
        except JobsError as error:
            logger.info("%s does not get its vote yet: %s", record.name, error)

    def answers(self, member: str) -> bool:
        """Tell whether a member has answered this leader of late."""
        ago_s = self.progress(member).answered_ago_s
        return ago_s is not None and ago_s < self._config.election_max_s and self._member.raft.match_index(member) > 0

    def _on_applied(self) -> None:
        self.on_applied()

    def _on_members(self) -> None:
        self.on_members()

    # --- what the network tells -------------------------------------------------------------------------------------

    def on_message(self, peer: str, data: bytes) -> None:
        """Take in a message of a peer. One that is none is counted and told, and changes nothing."""
        try:
            message = messages.decode(data)
        except MessageError as error:
            self.bad_messages += 1
            logger.warning("a message of %s is not taken: %s", peer, error)
            return
        if len(self._inbox) < MAX_INBOX:
            self._inbox.append((peer, message))
            self._schedule()

    async def install_snapshot(self, peer: str, path: Path) -> None:
        """Take in a snapshot file of the leader, which the store then owns.

        Raises Unavailable when `peer` does not lead (any more), NativeError for a file that is damaged.
        """
        if peer != self.leader or self._member.raft.leads:
            raise Unavailable(f"{peer} is not known to lead")
        if self._installing:
            raise Unavailable("another snapshot is being taken in")
        self._installing = True
        try:
            for task in (self._syncing, self._snapshotting):
                if task is not None:
                    await asyncio.wait([task])
            failpoint("consensus.install.before")
            await self._loop.run_in_executor(self._threads, self._store.install, str(path))
            failpoint("consensus.install.after")
            try:
                self._member.on_snapshot_installed(now_s())
            except Exception as error:
                # The store is ahead of the log now: a restart mends that.
                self._fail(error)
                raise
            self.snapshots_installed += 1
            logger.info("snapshot taken in", extra={"index": self._store.applied_index, "peer": peer})
        finally:
            self._installing = False
            self._schedule()

    # --- the driver ---------------------------------------------------------------------------------------------

    def _propose(self, txn: Txn, size_bytes: int, *, changes_members: bool) -> asyncio.Future[TxnResult]:
        done: asyncio.Future[TxnResult] = self._loop.create_future()
        if self._failure is not None:
            done.set_exception(Unavailable(f"the node cannot write: {self._failure}"))
        elif not self.is_leader:
            done.set_exception(_not_leader(self.leader))
        elif self.no_room is not None:
            done.set_exception(_storage_full(self.no_room))
        elif len(self._queue) >= MAX_PENDING_TXNS:
            done.set_exception(Unavailable(f"{MAX_PENDING_TXNS} writes wait already", retry_after_s=1))
        else:
            self._queue.append(_Proposal(txn, size_bytes, done, changes_members))
            self._schedule()
        return done

    def _schedule(self) -> None:
        if not self._scheduled and self._syncing is None and not self._installing:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """One step: take in what has come, append one command of what waits, send, sync, answer, commit, apply."""
        self._scheduled = False
        if self._syncing is not None or self._installing or self._failure is not None:
            return
        member = self._member
        try:
            inbox, self._inbox = self._inbox, []
            if inbox:
                failpoint("consensus.receive.before")
            for peer, message in inbox:
                member.receive(now_s(), peer, message)
            if self.no_room is None and not self._holding and len(self._in_flight) < MAX_COMMANDS_IN_FLIGHT:
                self._append_command()
            if self._round_wanted:
                self._begin_round()
            member.prepare(now_s())
            self._flush()
            if not member.unsynced:
                self._finish()
            elif self._sync_cost_s > INLINE_SYNC_S:
                self._syncing = self._loop.run_in_executor(self._threads, self._sync)
                self._syncing_since = time.monotonic()
                self._syncing.add_done_callback(self._on_synced)
            else:
                started = time.monotonic()
                self._sync()
                self._after_sync(time.monotonic() - started)
        except Exception as error:
            self._fail(error)

    def _sync(self) -> int:
        failpoint("consensus.sync.before")
        synced = self._log.sync()
        failpoint("consensus.sync.after")
        return synced

    def _append_command(self) -> None:
        if not self._queue or not self._member.leads:
            return
        count = size = 0
        for proposal in self._queue:
            if count and (
                size + proposal.size_bytes > BATCH_BYTES
                or count >= MAX_COMMAND_TXNS
                or proposal.changes_members
                or self._queue[0].changes_members
            ):
                break
            count += 1
            size += proposal.size_bytes
        batch, self._queue = self._queue[:count], self._queue[count:]
        command = encode_command([proposal.txn for proposal in batch])
        if len(command) > messages.MAX_COMMAND_BYTES:  # of one transaction, as several never come to so much
            limit = f"at most {messages.MAX_COMMAND_BYTES} at a time"
            _fail_all(batch, PayloadTooLarge(f"the change takes {len(command)} bytes of the log", expected=limit))
            self._schedule()
            return
        self._in_flight.append(batch)
        failpoint("consensus.propose.before")
        try:
            self._member.propose(
                now_s(), command, partial(self._on_done, batch), changes_members=batch[0].changes_members
            )
        except DiskFullError as error:
            # The log found no room before it changed anything: only this command is refused.
            self._in_flight.remove(batch)
            logger.error("a command is refused: the disk of the log is full: %s", error)
            _fail_all(batch, _storage_full(f"the disk of the log is full: {error}"))
            self._step_aside()
            self._schedule()
            return
        self.commands += 1
        self.transactions += count

    def _on_synced(self, future: asyncio.Future[int]) -> None:
        self._syncing = None
        error = future.exception()
        if error is not None:
            self._fail(error)
            return
        try:
            self._after_sync(time.monotonic() - self._syncing_since)
        except Exception as failure:
            self._fail(failure)

    def _after_sync(self, cost_s: float) -> None:
        self.fsyncs += 1
        self._sync_cost_s += _SYNC_COST_WEIGHT * (cost_s - self._sync_cost_s)
        self._finish()
        if self._log.size_bytes > self._config.snapshot_log_bytes and self._snapshotting is None:
            self._spawn(self._snapshot_in_background())

    def _finish(self) -> None:
        """The log is durable: answer, commit, apply; then tell what has changed."""
        self._member.finish(now_s())
        self._flush()
        self._settle_readers()
        if self.no_room is not None:
            self._refuse_queue(_storage_full(self.no_room))
            self._step_aside()
        leads = self.is_leader
        if leads != self._was_leader:
            self._was_leader = leads
            if not leads:
                self._refuse_queue(_not_leader(self.leader))
            self.on_leadership(leads)
        if self.leader != self._known_leader:
            self._known_leader = self.leader
            self.on_leader()
        applied_all = self.applied_index == self.commit_index
        if leads and applied_all and self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        for waiter in self._step_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._step_waiters.clear()
        self._tell_of_the_forgetful()
        for peer in sorted(self._member.raft.needs_snapshot - self._sending):
            self._sending.add(peer)
            self._spawn(self._send_snapshot(peer))
        can_append = self._queue and not self._holding and len(self._in_flight) < MAX_COMMANDS_IN_FLIGHT
        if can_append or self._inbox or self._round_wanted or self._member.unsynced:
            self._schedule()

    def _tell_of_the_forgetful(self) -> None:
        for peer in sorted(self._member.raft.forgetful - self._told):
            self._told.add(peer)
            logger.critical(
                "%s has lost entries that it had acknowledged: its disk is not the one that it was; "
                "remove it from the cluster, and let it join anew with an empty node.data_dir",
                self.members.name_of(peer),
            )

    def _flush(self) -> None:
        for peer, message in self._member.take_outbox():
            before, after = _SEND_POINTS[type(message)]
            failpoint(before)
            self._network.send(peer, messages.encode(message))
            failpoint(after)

    async def _stepped(self) -> None:
        """Return after the next step, which a message or the timer brings about."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._step_waiters.append(waiter)
        await waiter

    # --- reads ----------------------------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        """One round of signs of life for all reads that wait for the next one."""
        self._round_wanted = False
        number = self._member.raft.begin_round(now_s())
        self._readers = [(number if wanted == -1 else wanted, reader) for wanted, reader in self._readers]

    def _settle_readers(self) -> None:
        if not self._readers:
            return
        leads, confirmed = self._member.leads, self._member.raft.confirmed_round
        waiting = []
        for wanted, reader in self._readers:
            if reader.done():
                continue
            if not leads:
                reader.set_exception(_not_leader(self.leader))
            elif 0 <= wanted <= confirmed:
                reader.set_result(None)
            else:
                waiting.append((wanted, reader))
        self._readers = waiting

    # --- results --------------------------------------------------------------------------------------------------

    def _on_done(self, batch: list[_Proposal], results: bytes | None, error: Exception | None) -> None:
        if batch in self._in_flight:
            self._in_flight.remove(batch)
        if results is None:
            if isinstance(error, Discarded):
                _fail_all(batch, _not_leader(self.leader))
            else:
                assert isinstance(error, LeadershipLost)
                _fail_all(
                    batch,
                    OutcomeUnknown(
                        "this node ceased to lead while the others had not confirmed the write", retry_after_s=1
                    ),
                )
            return
        failpoint("consensus.results.before")
        for proposal, result in zip(batch, decode_results(results), strict=True):
            if not proposal.done.done():
                proposal.done.set_result(result)

    def _refuse_queue(self, error: JobsError) -> None:
        """What is not in the log was certainly not accepted."""
        refused, self._queue = self._queue, []
        _fail_all(refused, error)

    def _fail(self, error: BaseException) -> None:
        """A failed write or apply leaves no way to know what is on disk: stop, and let a restart find out."""
        if self._failure is not None:
            return
        self._failure = error
        logger.critical("consensus failed", exc_info=error)
        failed = ConsensusError(f"the node failed while it wrote: {error}")
        self._fail_waiting(failed, failed)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConsensusError(str(error)))
        if self._was_leader:
            self._was_leader = False
            self.on_leadership(False)
        self.on_failure(error)

    def _fail_waiting(self, error: Exception, of_written: Exception) -> None:
        """Fail what waits, and with `of_written` what is in the log, of which nobody knows here what comes of it."""
        waiting, self._queue = self._queue, []
        in_flight, self._in_flight = self._in_flight, []
        _fail_all(waiting, error)
        for batch in in_flight:
            _fail_all(batch, of_written)
        for _, reader in self._readers:
            if not reader.done():
                reader.set_exception(error)
        self._readers = []
        for waiter in self._step_waiters:
            waiter.cancel()

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def _snapshot_in_background(self) -> None:
        try:
            await self.snapshot()
        except Exception:
            logger.exception("snapshot failed; the log keeps growing until one succeeds")

    def _on_snapshot(self, future: asyncio.Future[int]) -> None:
        self._snapshotting = None
        if future.cancelled() or future.exception() is not None:
            return
        try:
            failpoint("consensus.cut.before")
            self._member.cut_log(self._cut_index(future.result()))
            failpoint("consensus.cut.after")
            logger.info("snapshot taken", extra={"index": future.result(), "log_bytes": self._log.size_bytes})
        except Exception as error:
            self._fail(error)

    def _cut_index(self, snapshot: int) -> int:
        """Return the oldest entry to keep: the snapshot's own, or what members that are there still lack, as long as
        that is not too much."""
        raft = self._member.raft
        lacking = [raft.match_index(record.id) for record in self.members.records if self.answers(record.id)]
        keep = min([snapshot, *lacking]) if raft.leads else snapshot
        entries = self._log.last_index - self._log.first_index + 1
        most = int(entries * TRAIL_SHARE)
        return min(snapshot, max(keep, self._log.last_index - most))

    async def _send_snapshot(self, peer: str) -> None:
        """Send a member the newest snapshot from which the log goes on."""
        try:
            if self._store.snapshot_index < max(self._log.first_index, 1):
                await self.snapshot()
            index, path = self._store.snapshot_index, self._store.snapshot_path()
            if path is None:
                raise Unavailable("there is no snapshot")
            logger.info("%s lacks entries that are gone: it is sent a snapshot", peer, extra={"index": index})
            failpoint("consensus.snapshot.send.before")
            await self._network.send_file(peer, f"snapshot-{index}", Path(path))
            failpoint("consensus.snapshot.send.after")
            self._member.raft.needs_snapshot.discard(peer)
            self.snapshots_sent += 1
        except Exception as error:
            logger.warning("a snapshot could not be sent to %s: %s", peer, error)
            await asyncio.sleep(SNAPSHOT_RETRY_S)
        finally:
            self._sending.discard(peer)

    # --- time -----------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        """Raft keeps its own deadlines; this makes it look at them."""
        self._schedule()
        self._promote()
        alone = len(self._member.members.records) == 1 and self._member.raft.leads
        self._timer = self._loop.call_later(self._config.heartbeat_s * (5 if alone else 0.5), self._on_timer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def now_s() -> float:
    """Return the time of a clock that is never set and that also counts while the machine is suspended, so that a lease
    cannot outlive its time in a sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _fail_all(proposals: Sequence[_Proposal], error: BaseException) -> None:
    for proposal in proposals:
        if not proposal.done.done():
            proposal.done.set_exception(error)
            # Who waited may have been cancelled by the same stop: that nobody asks then is no fault.
            proposal.done.exception()


def _storage_full(why: str) -> StorageFull:
    return StorageFull(why, expected="more room", retry_after_s=5)


def _not_leader(leader: str | None) -> NotLeader:
    if leader is None:
        return NotLeader(
            "no leader is known: too few members reach each other, or an election is under way", retry_after_s=1
        )
    return NotLeader(f"this node does not lead the cluster; {leader} does", retry_after_s=1)
