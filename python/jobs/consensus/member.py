"""One member of the group as a machine that is stepped: messages, proposals and time in; messages and results out.

No event loop, no thread, no socket: the asyncio driver steps it, and so does the simulation. One step is

    receive(…)*, propose(…)*, prepare(now) → send `outbox`, sync the log, answer() → send, finish(now) → send.

Nothing that is not on disk is counted: what a leader has appended may leave before its own sync (`prepare`), but no
vote, no acknowledgement (`answer`) and no commit does (`finish`). Committed entries are applied in batches, one store
transaction a batch, with the applied index in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import Final, Protocol, TypeAlias

from msgspec import structs

from jobs._native import DiskFullError, failpoint
from jobs.consensus.journal import Journal, RaftLog
from jobs.consensus.membership import MemberRecord, Members, Role, read_members
from jobs.consensus.messages import Appended, Message, Pulse, Pulsed
from jobs.consensus.raft import DISCARDED, INDEX_BYTES, LOST, MEMBERS, NO_OP, REGULAR, Raft, Timing
from jobs.logs import Seldom
from jobs.store import Store

logger = logging.getLogger(__name__)

APPLY_ENTRIES: Final = 1_024
APPLY_BYTES: Final = 8 << 20
LEASE_SHARE: Final = 0.8
"""Of the shortest election timeout, how long a leader relies on a majority's loyalty. Reads are right as long as no
two members' steady clocks differ in rate by more than a fifth."""

OnDone: TypeAlias = Callable[[bytes | None, Exception | None], None]
"""Results of a command, or why there are none."""


class ConsensusError(Exception):
    """The node can no longer take part: its log or its store failed. Only a restart, which re-reads them, helps."""


class Discarded(Exception):
    """A command was certainly not carried out: another entry took its place, or it was never taken in."""


class LeadershipLost(Exception):
    """A command was in the log when this member ceased to lead; whether it is carried out is not known here."""


class MemberStore(Store, Protocol):
    """What a member needs of a store."""

    @property
    def applied_term(self) -> int: ...
    @property
    def snapshot_index(self) -> int:
        """Entry that the newest durable snapshot ends with; 0 without one."""


class Member:
    """Raft, journal and store of one member. `me` is its id; `alone` makes it a group of its own if the store knows
    of no members, `sole` whatever the store knows. Every entry point takes the time of a steady clock in seconds.

    Raises ConsensusError when log and store do not fit each other.
    """

    def __init__(
        self,
        me: str,
        log: RaftLog,
        store: MemberStore,
        timing: Timing,
        rng: Random,
        now_s: float,
        *,
        alone: bool,
        sole: bool = False,
    ) -> None:
        self.me = me
        self._log = log
        self._store = store
        self._timing = timing
        self._alone = alone
        self._sole = sole
        self._no_room: str | None = None
        self._full_told = Seldom()
        self._led = False
        self._journal = Journal(log, self._committed_index())
        self._mend_interrupted_install()
        self._check_history()
        self.members = Members()
        self.on_applied: Callable[[], None] = lambda: None
        """After each batch of entries; must not raise."""
        self.on_members: Callable[[], None] = lambda: None
        """After `members` has changed; must not raise."""
        self.raft = Raft(me, self._journal, timing, rng, self._apply, now_s, store.applied_index)
        self._read_members(now_s)
        if self.members.voters == (me,) or (alone and not self.members.records):
            self.raft.elect_now()

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def no_room(self) -> str | None:
        """Why committed entries wait to be applied: the store's disk is full."""
        return self._no_room

    @property
    def leads(self) -> bool:
        """Whether this member leads and knows everything that was ever acknowledged."""
        return self.raft.has_settled

    def may_read(self, now_s: float) -> bool:
        """Tell whether a read of the store is linearizable right now: no other can have been elected yet."""
        return self.leads and now_s < self.raft.confirmed_s(now_s) + LEASE_SHARE * self._timing.election_min_s

    @property
    def unsynced(self) -> bool:
        return self._log.durable_index != self._log.last_index

    def take_outbox(self) -> list[tuple[str, Message]]:
        if not self.raft.outbox:
            return []
        outbox, self.raft.outbox = self.raft.outbox, []
        # The library asks for votes in the order of a set, which differs from process to process.
        outbox.sort(key=_peer_of)
        return outbox

    def take_pulses(self) -> list[tuple[str, Message]]:
        if not self.raft.pulses:
            return []
        pulses, self.raft.pulses = self.raft.pulses, []
        return pulses

    # --- steps --------------------------------------------------------------------------------------------------------

    def receive(self, now_s: float, peer: str, message: Message) -> None:
        """Take in a message. A full disk makes this member silent about it, as a lost message would."""
        try:
            self.raft.receive(now_s, peer, message)
        except DiskFullError as error:
            if (left_out := self._full_told.left_out(peer)) is not None:
                logger.error(
                    "a message of %s is not taken in: the disk of the log is full: %s",
                    self.members.name_of(peer),
                    error,
                    extra={"left_out": left_out},
                )

    def pulse(self, now_s: float) -> None:
        """Give signs of life in the middle of a step, while the log is synced."""
        self.raft.pulse(now_s)

    def receive_pulse(self, now_s: float, peer: str, message: Message) -> bool:
        """Take in a sign of life in the middle of a step. False: it is none, or has to wait for the next step."""
        return isinstance(message, Pulse | Pulsed) and self.raft.receive_pulse(now_s, peer, message)

    def can_wait(self, peer: str, message: Message) -> bool:
        """Tell whether it is enough to take in a message with the next step, whenever that comes."""
        return type(message) is Appended and self.raft.is_no_news(peer, message)

    def propose(self, now_s: float, command: bytes, on_done: OnDone, *, changes_members: bool = False) -> None:
        """Append a command. `on_done` is called at once with Discarded when this member does not lead. Raises
        DiskFullError, having changed nothing, when the log has no room."""

        def done(results: bytes | None, error: int) -> None:
            if results is not None:
                on_done(results, None)
            elif error == LOST:
                on_done(None, LeadershipLost("this member ceased to lead"))
            else:
                on_done(None, Discarded("another entry took its place"))

        applied = self.raft.applied_index.to_bytes(INDEX_BYTES, "big")
        if not self.raft.append(now_s, MEMBERS + applied + command if changes_members else REGULAR + command, done):
            on_done(None, Discarded("this member does not lead"))

    def prepare(self, now_s: float) -> None:
        """Send on what was appended, before it is durable here: the others' syncs run beside this one's."""
        self.raft.replicate(now_s)

    def answer(self) -> None:
        """Let answers leave. The log must be durable. The leader waits for them, so they do not wait for `finish`."""
        assert not self.unsynced, "answers say what is durable"
        self._release_answers()

    def finish(self, now_s: float) -> None:
        """Commit, apply, and act as the time has come. The log must be durable."""
        try:
            self.raft.tick(now_s)
        except DiskFullError as error:
            # Of the log, and nothing was changed: no election now, or no entry that would let this leader settle.
            logger.error("the disk of the log is full: %s", error)
        if not self.unsynced:
            self._release_answers()
        if self._led and not self.raft.leads:
            for on_done in self.raft.take_all_waiters():
                on_done(None, LOST)
        self._led = self.raft.leads

    def _release_answers(self) -> None:
        if self.raft.answers:
            self.raft.outbox.extend(self.raft.answers)
            self.raft.answers.clear()

    def on_snapshot_installed(self, now_s: float) -> None:
        """Go on after the store has taken in a snapshot."""
        self.raft.on_snapshot(now_s, self._store.applied_index, self._store.applied_term)
        self._read_members(now_s)
        self.on_applied()

    def cut_log(self, index: int) -> None:
        """Forget entries before `index`, which is no later than the newest snapshot's."""
        self._journal.drop_before(index)

    # --- at the start -------------------------------------------------------------------------------------------------

    def _mend_interrupted_install(self) -> None:
        """A crash between a snapshot's way into the store and the log's new beginning: give the log that now."""
        index, term = self._store.applied_index, self._store.applied_term
        if index > 0 and self._store.snapshot_index == index and self._log.term_at(index) != term:
            logger.warning("the log begins anew at entry %d, with which the snapshot in the store ends", index)
            self._journal.restart_at(index, term, NO_OP)

    def _committed_index(self) -> int:
        """Return up to where the log is known to be committed. A store that has lost what it had applied, in a power
        cut, has also lost changes of members: none of them may be missing when this member stands for election."""
        committed = self._store.applied_index
        index = max(committed + 1, self._log.first_index)
        while entries := self._log.entries(index, APPLY_ENTRIES, APPLY_BYTES):
            known = [_index_in(payload) for payload, _, _ in entries if payload[:1] == MEMBERS]
            committed = max(committed, *known) if known else committed
            index = entries[-1][1] + 1
        return committed

    def _check_history(self) -> None:
        applied, first, last = self._store.applied_index, self._log.first_index, self._log.last_index
        if applied > last:
            raise ConsensusError(
                f"the store has applied entry {applied}, but the log ends at {last}: the log is not the one that "
                "belongs to this store; the node has to join its cluster anew, with an empty node.data_dir"
            )
        if last >= first > applied + 1:
            raise ConsensusError(
                f"the store has applied entry {applied}, but the log begins at {first}: entries between are missing; "
                "the node has to join its cluster anew, with an empty node.data_dir"
            )

    # --- members ------------------------------------------------------------------------------------------------------

    def _read_members(self, now_s: float) -> None:
        try:
            found = read_members(self._store)
        except ValueError as error:
            raise ConsensusError(str(error)) from error
        if self._sole or (self._alone and not found.records):
            found = structs.replace(found, records=(MemberRecord(id=self.me, name=self.me, role=Role.VOTER),))
        if found != self.members:
            self.members = found
            self.raft.set_members(now_s, found.voters, found.learners)
            self.on_members()

    # --- applying -----------------------------------------------------------------------------------------------------

    def _apply(self, first: int, count: int) -> int:
        """Apply up to `count` committed entries from `first` on; return the index of the last one applied, `first - 1`
        while the store's disk is full."""
        entries = self._log.entries(first, min(count, APPLY_ENTRIES), APPLY_BYTES)
        if not entries:
            raise ConsensusError(f"committed entry {first} is not in the log")
        failpoint("consensus.apply.before")
        commands = [(index, term, command_of(payload, index)) for payload, index, term in entries]
        try:
            results = self._store.apply(commands)
        except DiskFullError as error:
            if self._no_room is None:
                logger.error("what was accepted waits, and nothing more is accepted: the store's disk is full")
            self._no_room = f"the disk of the store is full: {error}"
            return first - 1
        if self._no_room is not None:
            self._no_room = None
            logger.warning("the store's disk has room again")
        failpoint("consensus.apply.after")
        if any(payload[:1] == MEMBERS for payload, _, _ in entries):
            self._read_members(self.raft.now_s)
        for (_, index, term), result in zip(entries, results, strict=True):
            for proposed_term, done in self.raft.take_waiters(index):
                done(*((result, 0) if proposed_term == term else (None, DISCARDED)))
        self.on_applied()
        return entries[-1][1]


def _index_in(payload: bytes) -> int:
    """Return what an entry that changes members says is committed."""
    return int.from_bytes(payload[1 : 1 + INDEX_BYTES], "big")


def _peer_of(message: tuple[str, Message]) -> str:
    return message[0]


def command_of(payload: bytes, index: int) -> bytes:
    """Return the store's command in a log entry; b"" for Raft's own entries.

    Raises ConsensusError for the kinds that PySyncObj would unpickle: nothing here ever writes them.
    """
    kind = payload[:1]
    if kind == REGULAR:
        return payload[1:]
    if kind == MEMBERS:
        return payload[1 + INDEX_BYTES :]
    if kind == NO_OP:
        return b""
    raise ConsensusError(f"log entry {index} is of kind {kind.hex() or 'none'}, which this build never writes")
