"""Raft: PySyncObj, and what it lacks. The only module that knows the library.

From PySyncObj come the roles, the election timer, the leader's commit rule, its check that a majority answers, and
who waits for which entry. Supplied here, by a subclass and never by a change of the library:

- Messages are typed and go to a list; clock and chance are arguments. Nothing pickles.
- A follower truncates only where terms conflict, and never what is committed; its answers carry their term: `follower`.
- Pre-vote and loyalty to a leader that is heard: who comes back deposes nobody: `elections`.
- Rounds of signs of life: when a majority has answered one, the leader knows that it led when it was sent: `rounds`.
- Batches in flight are bounded, entries are sent on before the former ones are answered, and a follower's refusal says
  where to go on: `flow`. Who is so far behind that the entries are gone needs a snapshot.
- Members without a vote (learners) are PySyncObj's read-only nodes.

The overridden methods carry the library's private, mangled names; its version is pinned for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, Final, NoReturn, TypeAlias

import pysyncobj.syncobj as pysyncobj
from msgspec import Struct
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from jobs._native import DiskFullError
from jobs.consensus.elections import Elections
from jobs.consensus.flow import Flow
from jobs.consensus.follower import RaftError, last_possible, take_entries
from jobs.consensus.journal import Journal
from jobs.consensus.messages import Append, Appended, Message, Pulse, Pulsed, TimeoutNow, Vote, Voted
from jobs.consensus.rounds import Rounds

REGULAR: Final = bytes((pysyncobj._COMMAND_TYPE.REGULAR,))
"""First byte of an entry that holds a command of the store."""
NO_OP: Final = bytes((pysyncobj._COMMAND_TYPE.NO_OP,))
MEMBERS: Final = b"\x10"
"""The same after 8 bytes: the command changes who the members are. The bytes are the last index that the leader had
applied, big-endian: what is committed for certain wherever this entry is, the former change of members included."""
INDEX_BYTES: Final = 8

APPEND_BYTES: Final = 1 << 20
"""A message takes no further entry once it is this large."""
APPEND_ENTRIES: Final = 1_024

_FOLLOWER: Final = pysyncobj._RAFT_STATE.FOLLOWER
_CANDIDATE: Final = pysyncobj._RAFT_STATE.CANDIDATE
_LEADER: Final = pysyncobj._RAFT_STATE.LEADER

OnApplied: TypeAlias = Callable[[bytes | None, int], None]
"""Results of a command and 0, or None and one of these: another entry took its place, or this member ceased to lead."""
DISCARDED: Final = 1
LOST: Final = 2
Apply: TypeAlias = Callable[[int, int], int]
"""Apply up to so many committed entries from an index on; return the index of the last one applied."""


class _Clock:
    """The time of the call under way: the library reads a clock by a name of its module, and is given this one."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


_clock: Final = _Clock()
pysyncobj.monotonicTime = _clock


class Timing(Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    heartbeat_s: float
    election_min_s: float
    election_max_s: float


class _Wire(Transport):  # type: ignore[misc]
    """What the library itself sends: only requests for votes."""

    ready = True

    def __init__(self, send_vote: Callable[[Node, dict[str, Any]], None]) -> None:
        super().__init__(None, None, [])
        self._send_vote = send_vote

    def tryGetReady(self) -> None:
        pass

    def send(self, node: Node, message: dict[str, Any]) -> None:
        if message["type"] != "request_vote":
            raise AssertionError(f"the library sends {message['type']}")
        self._send_vote(node, message)

    def destroy(self) -> None:
        pass


class _NullPoller:
    """PySyncObj polls its sockets at the end of each tick; ours belong to the event loop."""

    def poll(self, timeout: float) -> None:
        pass


class _Peer(Node):  # type: ignore[misc]
    """Another member. Equal to itself only, so that looking it up costs no call of the library's."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.flow = Flow()


class Raft(pysyncobj.SyncObj):  # type: ignore[misc]
    """One member's Raft. Every entry point takes the time of a steady clock in seconds.

    `outbox` holds what may leave at once; `answers` what may leave only when the log is durable.
    """

    def __init__(
        self, me: str, journal: Journal, timing: Timing, rng: Random, apply: Apply, now_s: float, applied_index: int
    ) -> None:
        self.me = me
        self.outbox: list[tuple[str, Message]] = []
        self.answers: list[tuple[str, Message]] = []
        self.pulses: list[tuple[str, Message]] = []
        """What may leave at once, before everything that waits in the network."""
        self.needs_snapshot: set[str] = set()
        """Members that lack entries which are no longer in the log."""
        self._journal = journal
        self._timing = timing
        self._rng = rng
        self._apply = apply
        self.forgetful: set[str] = set()
        """Members that lack entries which they had said to have: their disk is not the one that it was."""
        self._nodes: dict[str, _Peer] = {}
        self._peers: list[_Peer] = []
        """The others who vote, then those who learn."""
        self._has_news = False
        """Something was heard since the last tick, so that more may be committed."""
        self._elections = Elections(self, journal, timing.election_min_s, now_s)
        self._handed_over = False
        """This leader has asked another to take over, so its lease no longer holds."""
        self._rounds = Rounds()
        _clock.now_s = now_s
        conf = pysyncobj.SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=timing.heartbeat_s,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            leaderFallbackTimeout=timing.election_max_s,
            commandsWaitLeader=False,
            connectionTimeout=max(3.5, timing.election_max_s),
            onStateChanged=self._on_role_changed,
        )
        # The library imports its journal's factory by name and offers no other way in.
        stock = pysyncobj.createJournal
        pysyncobj.createJournal = lambda _file: journal
        try:
            super().__init__(Node(me), [], conf=conf, transport=_Wire(self._send_vote))
        finally:
            pysyncobj.createJournal = stock
        self._poller = _NullPoller()
        self._SyncObj__raftLastApplied = max(applied_index, 1)
        self._SyncObj__selfNode = None  # no vote before `set_members` says so

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The time of the call under way."""
        return _clock.now_s

    @property
    def leads(self) -> bool:
        return bool(self._SyncObj__raftState == _LEADER)

    @property
    def is_follower(self) -> bool:
        return bool(self._SyncObj__raftState == _FOLLOWER)

    @property
    def is_candidate(self) -> bool:
        return bool(self._SyncObj__raftState == _CANDIDATE)

    @property
    def leader(self) -> str | None:
        """Who is believed to lead."""
        known = self._SyncObj__raftLeader
        return None if known is None else str(known.id)

    @property
    def voted_for(self) -> str | None:
        given: str | None = self._SyncObj__votedForNodeId
        return given

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def has_settled(self) -> bool:
        """Whether a leader has applied everything of former terms, and so knows all that was ever acknowledged."""
        first_own = self._SyncObj__noopIDx
        return self.leads and first_own is not None and self.applied_index >= first_own

    @property
    def round(self) -> int:
        """The last round of signs of life that was sent."""
        return self._rounds.number

    @property
    def confirmed_round(self) -> int:
        """The last round that a majority has answered: this member led when it was sent."""
        return self.round if self.leads and not self._voters() else self._rounds.confirmed

    def confirmed_s(self, now_s: float) -> float:
        """Return the last time at which this leader is known to have led; minus infinity without one."""
        if not self.leads or self._handed_over:
            return float("-inf")
        return self._rounds.confirmed_s if self._voters() else now_s

    def match_index(self, member: str) -> int:
        """Return up to which entry a leader knows a member's log to be as its own, durably."""
        return int(self._SyncObj__raftMatchIndex.get(self._nodes.get(member), 0))

    def answered_s(self, member: str) -> float | None:
        """Return when a leader last had an answer of a member."""
        return self._SyncObj__lastResponseTime.get(self._nodes.get(member))  # type: ignore[no-any-return]

    def _voters(self) -> set[_Peer]:
        """The others who vote."""
        return self._SyncObj__otherNodes

    def other_voters(self) -> set[str]:
        return {voter.name for voter in self._voters()}

    # --- members ----------------------------------------------------------------------------------------------------

    def set_members(self, now_s: float, voters: Collection[str], learners: Collection[str]) -> None:
        """Take the members as the store has them. A leader that is no longer a voter tells the others, and ceases."""
        _clock.now_s = now_s
        wanted = (set(voters) | set(learners)) - {self.me}
        for member in sorted(wanted - self._nodes.keys()):
            node = self._nodes[member] = _Peer(member)
            self._SyncObj__raftNextIndex[node] = self._journal.last_index + 1
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = now_s
        if self.leads and self.me not in voters:
            # The last that the others hear of this leader is that it is gone.
            self._SyncObj__sendAppendEntries()
            self.step_down(self.term)
        for member in sorted(self._nodes.keys() - wanted):
            node = self._nodes.pop(member)
            self.needs_snapshot.discard(member)
            self.forgetful.discard(member)
            for known in (self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex, self._SyncObj__lastResponseTime):
                known.pop(node, None)
        self._SyncObj__otherNodes = {self._nodes[member] for member in voters if member != self.me}
        self._SyncObj__readonlyNodes = {self._nodes[member] for member in wanted - set(voters)}
        self._SyncObj__selfNode = Node(self.me) if self.me in voters else None
        self._peers = [self._nodes[member] for member in sorted(wanted, key=lambda name: (name not in voters, name))]
        self._has_news = True
        # What a majority of the former members has confirmed is no promise of the present ones.
        self._forget_rounds()
        if self.leads:
            # At once: who does not know that this is committed counts by the former members.
            self._SyncObj__sendAppendEntries()

    # --- the driver's calls -----------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Elect, commit, apply and give signs of life as the time has come. The log must be durable."""
        _clock.now_s = now_s
        if self._is_due():
            self._has_news = False
            self.doTick(0)
        else:
            self._SyncObj__applyLogEntries()

    def _is_due(self) -> bool:
        """Tell whether the library's tick would do more than apply. It costs ten times what this question does, and
        there are two steps and more for each commit."""
        if self.leads:
            return self._has_news or not self._voters() or _clock.now_s > self._SyncObj__newAppendEntriesTime
        return bool(_clock.now_s > self._SyncObj__raftElectionDeadline)

    def append(self, now_s: float, payload: bytes, on_done: OnApplied) -> bool:
        """Put an entry at the end of a leader's log; False when this member does not lead."""
        _clock.now_s = now_s
        if not self.leads:
            return False
        # As the library's queue of commands would, which may be filled by any thread and costs a lock and more.
        index = self._journal.last_index + 1
        self._journal.add(payload, index, self.term)
        self._SyncObj__commandsWaitingCommit[index].append((self.term, on_done))
        return True

    def replicate(self, now_s: float) -> None:
        """Send what members lack and what is not on its way to them."""
        if self.leads:
            _clock.now_s = now_s
            for peer in self._peers:
                self._send_entries(peer)

    def begin_round(self, now_s: float) -> int:
        """Send signs of life now, and return the round's number."""
        _clock.now_s = now_s
        self._SyncObj__sendAppendEntries()
        return self.round

    def pulse(self, now_s: float) -> None:
        """Give signs of life if it is time, without a look at the log, on which another thread may be at work."""
        if self.leads and now_s > self._SyncObj__newAppendEntriesTime:
            self._begin_round(now_s)
            self.pulses.extend((peer.name, Pulse(self.term, self.round)) for peer in self._peers)

    def receive_pulse(self, now_s: float, peer: str, message: Pulse | Pulsed) -> bool:
        """Take in a pulse or its answer if that needs no look at the log either; else return False."""
        if message.term != self.term or (isinstance(message, Pulse) and (self.leads or peer != self.leader)):
            return False
        self.receive(now_s, peer, message)
        return True

    def transfer(self, member: str) -> None:
        """Ask a member whose log is complete to begin an election. From then on this leader's lease is void."""
        self._handed_over = True
        self.outbox.append((member, TimeoutNow(self.term)))

    def take_back(self, now_s: float) -> None:
        """Make good a transfer that nobody has followed, so that there is a lease again: stand for the next term.

        The order may still be on its way, or have been taken in and not been followed yet: no bound covers that, and as
        long as this term lasts whoever has it may be elected by voters that have just promised this leader their
        loyalty. But it is an order to stand in the next term and in no later one. Once this member is elected there, a
        majority has given away its votes of that term, so the order comes to nothing, whenever it is followed; and a
        later term takes voters that hear nobody.
        """
        if self.leads and self._handed_over:
            _clock.now_s = now_s
            self._elections.stand_in_place()

    def take_waiters(self, index: int) -> Sequence[tuple[int, OnApplied]]:
        """Return and forget (term, callback) of the commands proposed here for the entry at `index`."""
        return self._SyncObj__commandsWaitingCommit.pop(index, ())  # type: ignore[no-any-return]

    def take_all_waiters(self) -> list[OnApplied]:
        """Return and forget the callbacks of all commands proposed here that are not applied."""
        waiting = self._SyncObj__commandsWaitingCommit
        callbacks = [callback for index in sorted(waiting) for _, callback in waiting[index]]
        waiting.clear()
        return callbacks

    def on_snapshot(self, now_s: float, index: int, term: int) -> None:
        """Go on after a snapshot that the store has taken in."""
        _clock.now_s = now_s
        self._journal.restart_at(index, term, NO_OP)
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._SyncObj__raftLastApplied = max(self.applied_index, index)

    def receive(self, now_s: float, peer: str, message: Message) -> None:
        """Take in a message of a member. Raises RaftError for one that no right member can send."""
        _clock.now_s = now_s
        self._has_news = True
        match message:
            case Append():
                self._on_append(peer, message)
            case Appended():
                self._on_appended(peer, message)
            case Vote():
                self._elections.on_vote(now_s, peer, message)
            case Voted():
                self._elections.on_voted(peer, message)
            case Pulse():
                self._on_pulse(peer, message)
            case Pulsed():
                self._on_pulsed(peer, message)
            case TimeoutNow():
                self._elections.on_timeout_now(peer, message)

    # --- elections --------------------------------------------------------------------------------------------------

    def elect_now(self) -> None:
        """Let the next tick start an election instead of waiting for a leader that cannot exist."""
        self._SyncObj__raftElectionDeadline = float("-inf")

    def postpone_election(self, now_s: float) -> None:
        self._SyncObj__raftElectionDeadline = now_s + self._SyncObj__generateRaftTimeout()

    def forget_leader(self) -> None:
        self._SyncObj__raftLeader = None

    def vote_for(self, candidate: str) -> None:
        self._SyncObj__setCurrentTerm(self.term, candidate)

    def become_leader(self) -> None:
        self._SyncObj__onBecomeLeader()

    def step_down(self, term: int, leader: str | None = None) -> None:
        """Follow, in this term or a later one."""
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
        if self.leads:
            self.postpone_election(_clock.now_s)
        self._SyncObj__setState(_FOLLOWER)
        known: Node | None = None if leader is None else self._nodes.get(leader) or Node(leader)
        self._SyncObj__raftLeader = known

    def _SyncObj__generateRaftTimeout(self) -> float:
        low, high = self._timing.election_min_s, self._timing.election_max_s
        return low + (high - low) * self._rng.random()

    def _SyncObj__connectedToAnyone(self) -> bool:
        """Whether to stand for election; the library asks when the time has come."""
        if self.applied_index < self.commit_index:
            return False  # a change of members may be among what is not applied
        return self._elections.may_stand(_clock.now_s)

    def _send_vote(self, node: Node, message: dict[str, Any]) -> None:
        self._elections.ask_for_vote(node.id, message["term"], message["last_log_index"], message["last_log_term"])

    def _on_role_changed(self, former: int, role: int) -> None:
        self._elections.on_role_changed()
        self._handed_over = False
        if role == _LEADER:
            self._SyncObj__noopIDx = None  # that of a former leadership says nothing of this one
            self._forget_rounds()
            self.needs_snapshot.clear()
            for peer in self._peers:
                peer.flow.reset()

    def _SyncObj__setCurrentTerm(self, term: int, voted_for: str | None) -> None:
        # On disk before anything acts on it, also when the disk is full: the library does it the other way round.
        self._journal.setCurrentTerm(term, voted_for)
        self._SyncObj__raftCurrentTerm = term
        self._SyncObj__votedForNodeId = voted_for
        self._elections.on_term()

    def _SyncObj__onBecomeLeader(self) -> None:
        try:
            super()._SyncObj__onBecomeLeader()
        except DiskFullError:
            # Without an entry of its own term a leader never knows what is committed: let another be elected.
            self.step_down(self.term)
            raise

    # --- a follower -------------------------------------------------------------------------------------------------

    def _on_append(self, peer: str, sent: Append) -> None:
        if sent.term < self.term:
            self.answers.append((peer, Appended(self.term, False, 0, sent.prev_index, sent.round)))
            return
        self._follow(peer, sent.term)
        index = take_entries(self._journal, self.commit_index, sent)
        if index is None:
            possible = last_possible(self._journal, self.commit_index, sent)
            self.answers.append((peer, Appended(self.term, False, possible, sent.prev_index, sent.round)))
            return
        self._SyncObj__raftCommitIndex = max(self.commit_index, min(sent.commit, index))
        self.answers.append((peer, Appended(self.term, True, index, sent.prev_index, sent.round)))

    def _follow(self, peer: str, term: int) -> None:
        """A leader is heard, of this term or a later one."""
        if self.leads and term == self.term:
            raise RaftError(f"{peer} leads in term {term}, in which this member was elected")
        self.step_down(term, peer)
        self._elections.heard(_clock.now_s)
        if not self._elections.is_told_to_stand:
            # What a leader still says after it has told this member to stand takes nothing back.
            self.postpone_election(_clock.now_s)

    def _on_pulse(self, peer: str, sent: Pulse) -> None:
        if sent.term >= self.term:
            self._follow(peer, sent.term)
        # It says nothing that has to be durable first, beyond the term, which is.
        self.pulses.append((peer, Pulsed(self.term, sent.round)))

    # --- a leader ---------------------------------------------------------------------------------------------------

    def _SyncObj__sendAppendEntries(self) -> None:
        """Begin a round of signs of life. The library calls it when it is time, and when this member becomes leader."""
        if not self.leads:
            return
        self._begin_round(_clock.now_s)
        for peer in self._peers:
            flow = peer.flow
            if flow.may_be_lost:
                self._SyncObj__raftNextIndex[peer] = flow.prev_index + 1
                flow.reset()
            self._send_entries(peer)
            index = self._SyncObj__raftNextIndex[peer] - 1
            term = self._journal.term_at(index)
            if term is None:  # gone: the follower's refusal does no harm, and is a sign of life too
                index, term = self._journal.last_index, self._journal.last_term
            self.outbox.append((peer.name, Append(self.term, index, term, self.commit_index, self.round)))
            if flow.is_large:
                self.pulses.append((peer.name, Pulse(self.term, self.round)))

    def _begin_round(self, now_s: float) -> None:
        self._SyncObj__newAppendEntriesTime = now_s + self._timing.heartbeat_s
        self._rounds.begin(now_s)

    def _send_entries(self, peer: _Peer) -> None:
        """Send a member entries that are not on their way yet, as many as the bounds allow."""
        flow, last_index = peer.flow, self._journal.last_index
        while self._SyncObj__raftNextIndex[peer] <= last_index and not flow.is_full:
            index = self._SyncObj__raftNextIndex[peer] - 1
            term = self._journal.term_at(index)
            if term is None:
                self.needs_snapshot.add(peer.name)
                return
            found = self._journal.entries(index + 1, APPEND_ENTRIES, APPEND_BYTES)
            entries = [(entry_term, payload) for payload, _, entry_term in found]
            self.outbox.append((peer.name, Append(self.term, index, term, self.commit_index, self.round, entries)))
            last = index + len(entries)
            flow.sent(index, last, sum(len(payload) for _, payload in entries))
            self._SyncObj__raftNextIndex[peer] = last + 1

    def is_no_news(self, peer: str, answer: Appended) -> bool:
        """Tell whether nothing follows from an answer at once: it confirms what is committed, and the member has been
        sent all there is."""
        node = self._nodes.get(peer)
        return (
            answer.ok
            and self.leads
            and answer.term == self.term
            and answer.index <= self.commit_index
            and node is not None
            and bool(self._SyncObj__raftNextIndex[node] > self._journal.last_index)
        )

    def _on_appended(self, peer: str, answer: Appended) -> None:
        if answer.term > self.term:
            self.step_down(answer.term)
        node = self._nodes.get(peer)
        if not self.leads or answer.term != self.term or node is None:
            return
        flow = node.flow
        self._on_answered(node, answer.round)
        matched = self._SyncObj__raftMatchIndex[node]
        if answer.ok:
            if answer.index > self._journal.last_index:
                raise RaftError(
                    f"{peer} says that it has entry {answer.index} of this leader, whose last is "
                    f"{self._journal.last_index}"
                )
            if answer.index >= matched:
                self._SyncObj__raftMatchIndex[node] = answer.index
                self._SyncObj__raftNextIndex[node] = max(self._SyncObj__raftNextIndex[node], answer.index + 1)
                flow.arrived(answer.index)
                self.needs_snapshot.discard(peer)
        else:
            self._on_refused(node, answer, matched)
        self._send_entries(node)

    def _on_pulsed(self, peer: str, answer: Pulsed) -> None:
        if answer.term > self.term:
            self.step_down(answer.term)
        node = self._nodes.get(peer)
        if self.leads and answer.term == self.term and node is not None:
            self._on_answered(node, answer.round)

    def _on_answered(self, node: _Peer, answered: int) -> None:
        """A member has just followed this leader, in answer to a round."""
        self._SyncObj__lastResponseTime[node] = _clock.now_s
        if answered > node.flow.answered_round:
            node.flow.answered_round = answered
            self._rounds.confirm(voter.flow.answered_round for voter in self._voters())

    def _on_refused(self, node: _Peer, answer: Appended, matched: int) -> None:
        flow = node.flow
        if answer.index < matched:
            # What this member has lost may have been committed by its word.
            if flow.is_forgotten(answer.round):
                self.forgetful.add(node.name)
        elif not flow.is_old(answer, matched):
            flow.reset()
            self._SyncObj__raftNextIndex[node] = max(matched, min(answer.index, self._journal.last_index)) + 1

    def _forget_rounds(self) -> None:
        self._rounds.forget()
        for peer in self._peers:
            peer.flow.answered_round = 0

    def _SyncObj__getEntries(self, index: int, count: int | None = None, max_bytes: int | None = None) -> list[Any]:
        """For the library's commit rule: it does not see an entry before it is durable, so it does not count it."""
        assert count == 1, "the rest of the library that reads entries is not used"
        return self._journal.entries(index, 1, 1) if index <= self._journal.durable_index else []

    # --- what the library must not do -------------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:
        while self._SyncObj__raftLastApplied < self._SyncObj__raftCommitIndex:
            first = self._SyncObj__raftLastApplied + 1
            last = self._apply(first, self._SyncObj__raftCommitIndex - first + 1)
            if last < first:  # not now; the next tick tries again
                break
            self._SyncObj__raftLastApplied = last
        return False

    def _SyncObj__tryLogCompaction(self) -> None:
        """Nothing: snapshots are taken by the driver."""

    def _SyncObj__onMessageReceived(self, node: Node, message: object) -> NoReturn:
        raise AssertionError("messages come by `receive`")

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> NoReturn:
        raise AssertionError("PySyncObj's dump files are never used")

    def _SyncObj__doApplyCommand(self, command: bytes) -> NoReturn:
        raise AssertionError("entries are applied in batches")
