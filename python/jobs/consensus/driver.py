"""Replicated commands on the event loop: what the rest of the node sees of consensus.

`Consensus.propose` takes a transaction and returns when it is committed, durable on a majority and applied here. Many
transactions ride in one Raft command and are covered by one fsync (group commit): whatever is proposed while the loop
is busy, while an fsync runs, or while the others answer, makes up the next command.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final

from msgspec import Struct

from jobs._native import DiskFullError, Log, Store, failpoint
from jobs.consensus import clock, messages
from jobs.consensus.compaction import Compactions, OnCopied
from jobs.consensus.leadership import Leadership, MemberProgress
from jobs.consensus.member import ConsensusError, Discarded, LeadershipLost, Member
from jobs.consensus.membership import Members
from jobs.consensus.messages import MessageError
from jobs.consensus.network import Network, NoNetwork
from jobs.consensus.proposals import MAX_PENDING_TXNS, Proposal, Proposals, fail_all, not_leader, storage_full
from jobs.consensus.raft import Timing
from jobs.consensus.readers import Readers
from jobs.consensus.snapshots import Snapshots
from jobs.errors import JobsError, MembershipConflict, OutcomeUnknown, PayloadTooLarge, Unavailable
from jobs.logs import Seldom
from jobs.store import Txn, TxnResult, decode_results, encode_command

logger = logging.getLogger(__name__)

MAX_INBOX: Final = 4_096
"""Messages that may wait for a sync or a snapshot; further ones are dropped, as a network may do."""
INLINE_SYNC_S: Final = 0.002
"""A disk that syncs faster than this is synced on the event loop, which saves two thread switches (measured at
0.1 ms, as much as the fsync itself); a slower one on a thread, so that the loop goes on serving."""
INLINE_SYNC_BYTES: Final = 1 << 20
"""More than that is synced on a thread, however fast the disk has been."""
STUCK_SYNC_S: Final = 10.0
"""A disk that takes longer for a sync may never be done: another leader, with another disk, is better then."""
COMPACTING_LOG_FACTOR: Final = 4
_SYNC_COST_WEIGHT: Final = 0.1
_COMMIT_WEIGHT: Final = 0.2

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


class Consensus:
    """One member of the Raft group: proposes, commits, applies, takes snapshots. Lives on one event loop.

    `node` is the member's id. With `alone` it is a group of its own for as long as its store knows of no members;
    without, it waits for a leader to add it. With `sole` it is one whatever members its store knows.
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
        sole: bool = False,
        rng: Random | None = None,
    ) -> None:
        self._config = config or ConsensusConfig()
        self._log = log
        self._network: Network = network or NoNetwork()
        timing = Timing(
            heartbeat_s=self._config.heartbeat_s,
            election_min_s=self._config.election_min_s,
            election_max_s=self._config.election_max_s,
        )
        self._member = Member(node, log, store, timing, rng or SystemRandom(), clock.now_s(), alone=alone, sole=sole)
        self._member.on_applied = self._on_applied
        self._member.on_members = self._on_members
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="consensus")
        self._proposals = Proposals()
        self._readers = Readers(self._member)
        self._leadership = Leadership(self, self._member, log, self._config.election_max_s)
        self._snapshots = Snapshots(
            self._member, log, store, self._network, self._threads, answers=self._leadership.answers, fail=self._fail
        )
        self._compactions = Compactions(log, store, self._threads, installing=lambda: self._installing)
        self._inbox: list[tuple[str, messages.Message]] = []
        self._scheduled = False
        self._syncing: asyncio.Future[int] | None = None
        self._sync_cost_s = 0.0
        self._commit_s: float | None = None
        self._synced_bytes = log.size_bytes
        self._installing = False
        self._timer: asyncio.TimerHandle | None = None
        self._step_waiters: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
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
        self.dropped_messages = 0
        self._bad_told = Seldom()

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
        self._leadership.stopping = True
        await self._leadership.hand_over()

    async def stop(self) -> None:
        """Refuse what waits, finish what is being written, and let go of log and store (which stay open)."""
        if self._timer is not None:
            self._timer.cancel()
        refused = Unavailable("the node is stopping", retry_after_s=1)
        unknown = OutcomeUnknown("the node stopped while the others had not confirmed the write", retry_after_s=1)
        self._fail_waiting(refused, unknown)
        await self._synced()
        await self._compactions.end()
        await self._snapshots.finish_taking()
        self._failure = self._failure or ConsensusError("stopped")
        # What came while the last write was finished.
        self._fail_waiting(refused, unknown)
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
    def election_max_s(self) -> float:
        """After so long without a leader at most, a member stands for election."""
        return self._config.election_max_s

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

    @property
    def snapshots_sent(self) -> int:
        return self._snapshots.sent

    @property
    def snapshots_installed(self) -> int:
        return self._snapshots.taken_in

    @property
    def commit_s(self) -> float | None:
        """About how long a command of this member took lately from its proposal to its result, if there was one; at a
        follower, how long the disk takes for a sync."""
        return self._commit_s if self.is_leader else self._sync_cost_s or None

    def progress(self, member: str) -> MemberProgress:
        """Return how this leader sees another member."""
        return self._leadership.progress(member)

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
            raise not_leader(self.leader)
        if self._member.may_read(clock.now_s()):
            return
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._readers.add(confirmed)
        self.schedule()
        try:
            async with asyncio.timeout(self._config.election_max_s):
                await confirmed
        except TimeoutError:
            raise Unavailable("no majority of the cluster answers", retry_after_s=1) from None

    async def snapshot(self) -> int:
        """Write a snapshot of the store, cut the log behind it, and return the snapshot's index."""
        return await self._snapshots.take()

    async def compact_file(self, on_copied: OnCopied = lambda copied, total: None) -> tuple[int, int]:
        """Give back the room in the store's data file that nothing needs any more, and return its size in bytes before
        and after. Everything goes on meanwhile; a copy of what the store holds needs room beside it. `on_copied` is
        told how many bytes are copied, of about how many. Who is cancelled leaves the file as it is.

        Raises StorageFull without room for the copy, Unavailable when it has to be tried again later, NativeError for
        a store that is damaged.
        """
        if self._failure is not None:
            raise Unavailable(f"the node cannot write: {self._failure}")
        return await self._compactions.run(on_copied)

    async def change_members(self, txn: Txn) -> None:
        """Carry out a change that `membership` has made of the present `members`. Only a leader can.

        Raises MembershipConflict when another change came in between, and as `propose`.
        """
        result = await self._propose(txn, 1024, changes_members=True)
        if result.error or not result.succeeded:
            raise MembershipConflict(
                "another change of the members came in between", expected="the same again", retry_after_s=1
            )

    async def hears(self, member: str) -> bool:
        """Tell whether a member answers this leader; one that has just been elected waits a moment for that."""
        return await self._leadership.hears(member)

    async def check_successor(self, to: str | None) -> None:
        """Raise MembershipConflict for a member that leadership cannot be handed over to; None is any."""
        await self._leadership.successor(to)

    async def transfer(self, to: str | None) -> str:
        """Hand leadership over to a voter, or to the one with the longest log, and return who it was.

        Raises NotLeader, MembershipConflict for one that cannot lead, Unavailable when it did not take over in time.
        """
        return await self._leadership.transfer(to)

    # --- what the network tells -------------------------------------------------------------------------------------

    def on_message(self, peer: str, data: bytes) -> None:
        """Take in a message of a peer. One that is none is counted and told, and changes nothing."""
        try:
            message = messages.decode(data)
        except MessageError as error:
            self.bad_messages += 1
            if (left_out := self._bad_told.left_out(peer)) is not None:
                name = self.members.name_of(peer)
                logger.warning("a message of %s is not taken: %s", name, error, extra={"left_out": left_out})
            return
        in_step = self._syncing is not None or self._installing
        if in_step and self._failure is None and self._member.receive_pulse(clock.now_s(), peer, message):
            self._flush_pulses()
            self._readers.settle()
            return
        if len(self._inbox) >= MAX_INBOX:
            self.dropped_messages += 1
            return
        self._inbox.append((peer, message))
        if self._readers.are_waiting or self._step_waiters or not self._member.can_wait(peer, message):
            self.schedule()

    async def install_snapshot(self, peer: str, path: Path) -> None:
        """Take in a snapshot file of the leader, which the store then owns.

        Raises Unavailable when `peer` does not lead (any more), NativeError for a file that is damaged.
        """
        if peer != self.leader or self._member.raft.leads:
            raise Unavailable(f"{self.members.name_of(peer)} is not known to lead")
        if self._installing:
            raise Unavailable("another snapshot is being taken in")
        self._installing = True
        try:
            await self._synced()
            await self._snapshots.take_in(peer, path)
        finally:
            self._installing = False
            self.schedule()

    # --- steps --------------------------------------------------------------------------------------------------

    def _propose(self, txn: Txn, size_bytes: int, *, changes_members: bool) -> asyncio.Future[TxnResult]:
        done: asyncio.Future[TxnResult] = self._loop.create_future()
        if self._failure is not None:
            done.set_exception(Unavailable(f"the node cannot write: {self._failure}"))
        elif not self.is_leader:
            done.set_exception(not_leader(self.leader))
        elif self.no_room is not None:
            done.set_exception(storage_full(self.no_room))
        elif self._proposals.is_full:
            done.set_exception(Unavailable(f"{MAX_PENDING_TXNS} writes wait already", retry_after_s=1))
        else:
            self._proposals.add(Proposal(txn, size_bytes, done, changes_members))
            self.schedule()
        return done

    def schedule(self) -> None:
        """Let a step come once those who run now have had their turn."""
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
            now_s = clock.now_s()
            if self._inbox:
                inbox, self._inbox = self._inbox, []
                failpoint("consensus.receive.before")
                for peer, message in inbox:
                    member.receive(now_s, peer, message)
            if self.no_room is None and self._may_append:
                self._append_command()
            if self._readers.round_wanted:
                self._readers.begin_round()
            member.prepare(now_s)
            self.flush()
            if not member.unsynced:
                self._finish()
            elif self._sync_cost_s > INLINE_SYNC_S or self._log.size_bytes - self._synced_bytes > INLINE_SYNC_BYTES:
                self._syncing = self._loop.run_in_executor(self._threads, self._sync)
                self._syncing_since, self._syncing_since_s = time.monotonic(), now_s
                self._syncing.add_done_callback(self._on_synced)
            else:
                started = time.monotonic()
                self._sync()
                self._after_sync(time.monotonic() - started)
        except Exception as error:
            self._fail(error)

    @property
    def _may_append(self) -> bool:
        return self._proposals.may_append and not self._leadership.holding

    def _append_command(self) -> None:
        if not self._member.leads:
            return
        batch = self._proposals.take()
        command = encode_command([proposal.txn for proposal in batch])
        if len(command) > messages.MAX_COMMAND_BYTES:  # of one transaction, as several never come to so much
            limit = f"at most {messages.MAX_COMMAND_BYTES} at a time"
            fail_all(batch, PayloadTooLarge(f"the change takes {len(command)} bytes of the log", expected=limit))
            self.schedule()
            return
        self._proposals.sent(batch)
        failpoint("consensus.propose.before")
        try:
            self._member.propose(
                clock.now_s(),
                command,
                partial(self._on_done, batch, time.monotonic()),
                changes_members=batch[0].changes_members,
            )
        except DiskFullError as error:
            # The log found no room before it changed anything: only this command is refused.
            self._proposals.settled(batch)
            logger.error("a command is refused: the disk of the log is full: %s", error)
            fail_all(batch, storage_full(f"the disk of the log is full: {error}"))
            self._step_aside()
            self.schedule()
            return
        self.commands += 1
        self.transactions += len(batch)

    def flush(self) -> None:
        """Send what may leave."""
        self._flush_pulses()
        for peer, message in self._member.take_outbox():
            before, after = _SEND_POINTS[type(message)]
            failpoint(before)
            self._network.send(peer, messages.encode(message))
            failpoint(after)

    def _flush_pulses(self) -> None:
        for peer, message in self._member.take_pulses():
            self._network.send_urgent(peer, messages.encode(message))

    def _sync(self) -> int:
        failpoint("consensus.sync.before")
        synced = self._log.sync()
        failpoint("consensus.sync.after")
        return synced

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

    async def _synced(self) -> None:
        """Return when no sync runs on a thread."""
        if self._syncing is not None:
            await asyncio.wait([self._syncing])

    def _after_sync(self, cost_s: float) -> None:
        self.fsyncs += 1
        self._synced_bytes = self._log.size_bytes
        self._sync_cost_s += _SYNC_COST_WEIGHT * (cost_s - self._sync_cost_s)
        self._finish()
        if self._log.size_bytes > self._snapshot_log_bytes and not self._snapshots.is_taking:
            self._spawn(self._snapshots.take_in_background())

    @property
    def _snapshot_log_bytes(self) -> int:
        """How large the log may grow: larger while a compaction needs it, which a snapshot would also slow down."""
        return self._config.snapshot_log_bytes * (COMPACTING_LOG_FACTOR if self._compactions.is_running else 1)

    def _finish(self) -> None:
        """The log is durable: answer, commit, apply; then tell what has changed."""
        self._member.answer()
        self.flush()
        self._member.finish(clock.now_s())
        self.flush()
        self._readers.settle()
        if self.no_room is not None:
            self._proposals.refuse_waiting(storage_full(self.no_room))
            self._step_aside()
        self._tell_who_leads()
        if self._step_waiters:
            for waiter in self._step_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._step_waiters.clear()
        raft = self._member.raft
        if raft.forgetful:
            self._leadership.tell_of_the_forgetful()
        if raft.needs_snapshot:
            for peer in self._snapshots.take_needy():
                self._spawn(self._snapshots.send(peer))
        if self._may_append or self._inbox or self._readers.round_wanted or self._member.unsynced:
            self.schedule()

    def _tell_who_leads(self) -> None:
        leads = self.is_leader
        if leads != self._was_leader:
            self._was_leader = leads
            if not leads:
                self._proposals.refuse_waiting(not_leader(self.leader))
            self.on_leadership(leads)
        leader = self.leader
        if leader != self._known_leader:
            self._known_leader = leader
            self.on_leader()
        if self._ready is not None and not self._ready.done():
            # A founder whose store begins anew after a power cut takes itself for the only voter, until its log has
            # told it of the others: it need not lead then.
            alone = self._member.members.voters == (self._member.me,)
            if not alone or (leads and self.applied_index == self.commit_index):
                self._ready.set_result(None)

    async def stepped(self) -> None:
        """Return after the next step, which a message or the timer brings about."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._step_waiters.append(waiter)
        await waiter

    def _on_applied(self) -> None:
        self.on_applied()

    def _on_members(self) -> None:
        self.on_members()

    # --- results --------------------------------------------------------------------------------------------------

    def _on_done(self, batch: list[Proposal], began_s: float, results: bytes | None, error: Exception | None) -> None:
        self._proposals.settled(batch)
        if results is not None:
            took_s = time.monotonic() - began_s
            former_s = took_s if self._commit_s is None else self._commit_s
            self._commit_s = former_s + _COMMIT_WEIGHT * (took_s - former_s)
        if results is None:
            if isinstance(error, Discarded):
                fail_all(batch, not_leader(self.leader))
            else:
                assert isinstance(error, LeadershipLost)
                fail_all(
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

    def _fail_waiting(self, error: JobsError | ConsensusError, of_written: JobsError | ConsensusError) -> None:
        """Fail what waits, and with `of_written` what is in the log, of which nobody knows here what comes of it."""
        self._proposals.fail(error, of_written)
        self._readers.fail(error)
        for waiter in self._step_waiters:
            if not waiter.done():
                waiter.set_exception(error)

    # --- time -----------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        """Raft keeps its own deadlines; this makes it look at them."""
        self.schedule()
        now_s = clock.now_s()
        if self._syncing is not None and self._failure is None and now_s < self._syncing_since_s + STUCK_SYNC_S:
            # A sync that takes long is no silence.
            self._member.pulse(now_s)
            self._flush_pulses()
        self._promote()
        alone = len(self._member.members.records) == 1 and self._member.raft.leads
        self._timer = self._loop.call_later(self._config.heartbeat_s * (5 if alone else 0.5), self._on_timer)

    def _promote(self) -> None:
        """Give learners that have caught up their vote, one at a time."""
        learner = self._leadership.learner_to_promote()
        if learner is not None:
            self._spawn(self._leadership.give_vote(learner))

    def _step_aside(self) -> None:
        """A leader without room lets another try, now and then: the others may have some."""
        if self._leadership.steps_aside():
            self._spawn(self._leadership.hand_over())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
