"""Faults planted in the consensus, which the simulation must find. Each is a mistake that somebody could make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from msgspec import Struct, structs
from pysyncobj import SyncObj

from jobs._native import DiskFullError
from jobs.consensus import driver, member, raft, snapshots
from jobs.consensus.elections import Elections
from jobs.consensus.journal import Journal
from jobs.consensus.member import Member
from jobs.consensus.messages import Append, Appended, TimeoutNow, Vote
from jobs.consensus.raft import Raft
from jobs.store import EQ, Txn, VersionIs, encode_command
from tests.support.simulation import clients
from tests.support.simulation.plan import Plan
from tests.support.simulation.storage import WatchedLog

Patch = tuple[object, str, object]


class Bug(Struct, frozen=True):
    """A planted fault: what it puts in place of what is right, and which faults of the world bring it out."""

    name: str
    about: str
    patches: Callable[[], list[Patch]]
    plan: dict[str, Any] = {}
    """What every plan has, so that few seeds are enough."""
    seed: int = 0
    """The first seed to try: one that has found it. Another one does after a change of the simulation."""

    def plan_of(self, seed: int) -> Plan:
        plan = Plan.of(seed, options=f" --bug {self.name}")
        return structs.replace(plan, **self.plan)

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, replacement in self.patches():
                stack.enter_context(patch.object(target, name, replacement))
            yield


def _acknowledge_before_sync() -> list[Patch]:
    """Say that all is durable, and sync nothing."""
    return [
        (WatchedLog, "sync", lambda self: self.last_index),
        (WatchedLog, "durable_index", property(lambda self: self.last_index)),
    ]


def _answer_before_sync() -> list[Patch]:
    def prepare(self: Member, now_s: float) -> None:
        self.raft.replicate(now_s)
        self._release_answers()

    return [(Member, "prepare", prepare)]


def _forget_votes() -> list[Patch]:
    return [(Journal, "setCurrentTerm", lambda self, term, vote: None)]


def _vote_twice() -> list[Patch]:
    def give_vote(self: Any, now_s: float, candidate: str) -> bool:
        self._seat._SyncObj__votedForNodeId = candidate
        return True

    return [(Elections, "_give_vote", give_vote)]


def _vote_for_short_logs() -> list[Patch]:
    on_vote = Elections.on_vote

    def deaf(self: Elections, now_s: float, peer: str, asked: Vote) -> None:
        on_vote(self, now_s, peer, structs.replace(asked, last_term=1 << 40))

    return [(Elections, "on_vote", deaf)]


def _commit(self: Any, counted: list[Any], *, own_term: bool) -> None:
    """Commit by counting, before the library does it right."""
    voters = self._voters()
    last = self._journal.durable_index
    for index in range(self.commit_index + 1, last + 1):
        count = 1 + sum(self._SyncObj__raftMatchIndex[node] >= index for node in counted)
        if count > (len(voters) + 1) / 2 and (not own_term or self._journal.term_at(index) == self.term):
            self._SyncObj__raftCommitIndex = index


def _count_learners() -> list[Patch]:
    tick = Raft.tick

    def eager(self: Any, now_s: float) -> None:
        if self.leads:
            _commit(self, list(self._peers), own_term=True)
        tick(self, now_s)

    # They stay learners, so that it matters.
    return [(Raft, "tick", eager), (driver.Consensus, "_promote", lambda self: None)]


def _truncate_always() -> list[Patch]:
    take = raft.take_entries

    def eager(journal: Journal, commit_index: int, sent: Append) -> int | None:
        if commit_index <= sent.prev_index < journal.last_index and journal.first_index <= sent.prev_index:
            journal.truncate_from(sent.prev_index + 1)
        return take(journal, commit_index, sent)

    return [(raft, "take_entries", eager)]


def _commit_what_does_not_match() -> list[Patch]:
    on_append = Raft._on_append

    def eager(self: Any, peer: str, sent: Append) -> None:
        on_append(self, peer, sent)
        if sent.term == self.term:
            self._SyncObj__raftCommitIndex = max(self.commit_index, min(sent.commit, self._journal.last_index))

    return [(Raft, "_on_append", eager)]


def _cut_beyond_snapshot() -> list[Patch]:
    return [(snapshots.Snapshots, "_cut_index", lambda self, snapshot: max(snapshot, self._log.last_index - 1))]


def _keep_log_on_install() -> list[Patch]:
    on_snapshot = Raft.on_snapshot

    def careless(self: Raft, now_s: float, index: int, term: int) -> None:
        with patch.object(Journal, "restart_at", lambda *_: None):
            on_snapshot(self, now_s, index, term)

    return [(Raft, "on_snapshot", careless)]


def _obey_former_leaders() -> list[Patch]:
    """Take what the leader of an old term sends, and answer as if it still were its term."""
    on_append = Raft._on_append

    def obedient(self: Any, peer: str, sent: Append) -> None:
        if sent.term >= self.term or self.leads:
            on_append(self, peer, sent)
            return
        index = raft.take_entries(self._journal, self.commit_index, sent)
        possible = raft.last_possible(self._journal, self.commit_index, sent)
        answered = possible if index is None else index
        self.answers.append((peer, Appended(sent.term, index is not None, answered, sent.prev_index, sent.round)))

    return [(Raft, "_on_append", obedient)]


def _commit_former_terms() -> list[Patch]:
    tick = Raft.tick

    def eager(self: Any, now_s: float) -> None:
        if self.leads:
            _commit(self, list(self._voters()), own_term=False)
        tick(self, now_s)

    return [(Raft, "tick", eager)]


def _keep_lease_on_transfer() -> list[Patch]:
    def transfer(self: Raft, member: str) -> None:
        self.outbox.append((member, TimeoutNow(self.term)))

    return [(Raft, "transfer", transfer)]


def _take_lease_back(self: Raft, now_s: float) -> None:
    self._handed_over = False


def _lead_without_entry() -> list[Patch]:
    def become_leader(self: Any) -> None:
        with suppress(DiskFullError):
            SyncObj._SyncObj__onBecomeLeader(self)

    return [(Raft, "_SyncObj__onBecomeLeader", become_leader)]


def _forget_requests() -> list[Patch]:
    def encode(txns: list[Txn]) -> bytes:
        return encode_command([structs.replace(txn, request_id=b"") for txn in txns])

    return [(driver, "encode_command", encode)]


def _blind_results() -> list[Patch]:
    """Not the consensus: a control plane that records results without a look at the job."""
    return [(clients, "Txn", lambda compare=(), then=(): Txn(() if len(then) == 2 else compare, then))]


def _late_results() -> list[Patch]:
    """A control plane that records the first result, whoever it is of."""

    def txn(compare: Any = (), then: Any = ()) -> Txn:
        return Txn((VersionIs(then[1].key, EQ, 0),) if len(then) == 2 else compare, then)

    return [(clients, "Txn", txn)]


def _world(*faults: str, **plan: Any) -> dict[str, Any]:
    """Settings of a plan with these faults of the world only."""
    return {"faults": frozenset(faults), **plan}


_BUSY: dict[str, Any] = {"readers": 3, "clients": 4, "think_s": 0.01, "pace_s": 0.3, "bootstrap": False}
"""Much is read and written, so that what is stale is seen."""

_KEEN: dict[str, Any] = {
    **_BUSY, "keen": True, "pace_s": 1.5, "chaos_s": 12.0, "lose": 0.0, "late": 0.0, "sync_s": 0.001
}  # fmt: skip
"""Faults one after the other, and clients that are where mistakes would be seen."""

BUGS = {
    bug.name: bug
    for bug in (
        Bug("acknowledge-before-sync", "nothing is synced", _acknowledge_before_sync, _world("power")),
        Bug("answer-before-sync", "answers leave before the sync", _answer_before_sync),
        Bug("forget-votes", "term and vote are not persisted", _forget_votes, _world("kill", "cut", pace_s=0.15)),
        Bug(
            "vote-twice",
            "a second candidate of a term gets a vote, too",
            _vote_twice,
            _world("cut", "kill", pace_s=0.15),
            seed=22,
        ),
        Bug(
            "vote-for-short-logs",
            "votes do not ask for a complete log",
            _vote_for_short_logs,
            _world("cut", "kill", pace_s=0.3),
            seed=2,
        ),
        Bug(
            "count-learners",
            "acknowledgements of learners count",
            _count_learners,
            _world("members", "cut", members=5, pace_s=0.3, think_s=0.02, bootstrap=False),
            seed=11,
        ),
        Bug("truncate-always", "what follows an append is cut off", _truncate_always, _world("storm"), seed=0),
        Bug(
            "commit-what-does-not-match",
            "a follower commits up to the leader's index",
            _commit_what_does_not_match,
            _world("cut", "kill", pace_s=0.3),
        ),
        Bug(
            "lease-without-bound",
            "a leader reads without a majority's promise",
            lambda: [(Member, "may_read", lambda self, now_s: self.leads)],
            _world("cut", "pause", **_BUSY),
            seed=14,
        ),
        Bug(
            "read-before-settled",
            "a new leader reads before it has applied what former ones committed",
            lambda: [(Raft, "has_settled", property(lambda self: self.leads))],
            _world("kill", "transfer"),
            seed=8,
        ),
        Bug(
            "cut-beyond-snapshot",
            "the log is cut beyond the snapshot",
            _cut_beyond_snapshot,
            _world("power", "kill", "cut", pace_s=0.3, snapshot_bytes=2_000),
            seed=28,
        ),
        Bug(
            "keep-log-on-install",
            "the log does not begin anew when a snapshot is taken in",
            _keep_log_on_install,
            _world("cut", "power", pace_s=0.3, snapshot_bytes=2_000),
            seed=5,
        ),
        Bug(
            "forget-commit",
            "after a power cut the members are those of an old snapshot",
            lambda: [(member, "_index_in", lambda payload: 0)],
            _world("power", "outage", bootstrap=True),
            seed=30,
        ),
        Bug(
            "unknown-is-refused",
            "what may have happened is said to be refused",
            lambda: [(member, "LeadershipLost", member.Discarded)],
            _world("unanswered", **_KEEN),
            seed=1,
        ),
        Bug(
            "disloyal-votes",
            "whoever hears a leader votes for another",
            lambda: [(Elections, "_hears_leader", lambda self, now_s: self._seat.leads)],
            _world("deaf", **_KEEN),
        ),
        Bug(
            "commit-former-terms",
            "entries of former terms are committed by counting",
            _commit_former_terms,
            _world("figure_8", **_KEEN, members=5, append_entries=1),
        ),
        Bug(
            "obey-former-leaders", "a leader of an old term is obeyed", _obey_former_leaders, _world("former", **_KEEN)
        ),
        Bug(
            "keep-lease-on-transfer",
            "who has handed over goes on to read by its lease",
            _keep_lease_on_transfer,
            _world("handed_over", **_KEEN),
        ),
        Bug(
            "take-lease-back",
            "who has handed over in vain reads by its lease again, in the same term",
            lambda: [(Raft, "take_back", _take_lease_back)],
            _world("late_order", **_KEEN),
            seed=1,
        ),
        Bug(
            "long-lease",
            "a lease is as long as the loyalty, without a share for the clocks",
            lambda: [(member, "LEASE_SHARE", 1.0)],
            _world("slow_clock", **_KEEN, drift=0.1),
            seed=8,
        ),
        Bug(
            "lead-without-entry",
            "a leader whose first entry finds no room goes on to lead",
            _lead_without_entry,
            _world("no_room", **_KEEN, large=True),
            seed=0,
        ),
        Bug(
            "forget-requests",
            "a request that is sent again is done again",
            _forget_requests,
            _world("cut", "kill"),
            seed=5,
        ),
        Bug(
            "late-results",
            "an attempt that was given up may still end its job",
            _late_results,
            _world("cut"),
            seed=2,
        ),
        Bug(
            "blind-results",
            "results are recorded without compare-and-set",
            _blind_results,
            _world("cut"),
            seed=2,
        ),
    )
}


def seeds_to_try(bug: Bug, count: int) -> list[int]:
    """The seed that is known to find it first, then any."""
    return [bug.seed, *(seed for seed in range(count) if seed != bug.seed)]
