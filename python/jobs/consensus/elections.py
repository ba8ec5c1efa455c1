"""Who leads: pre-vote (Ongaro's thesis, §9.6), loyalty to a leader that is heard (§4.2.3), votes, and orders to stand.

So that who comes back deposes nobody: a term begins only once a majority that hears no leader would vote.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from jobs.consensus.journal import Journal
from jobs.consensus.messages import Message, TimeoutNow, Vote, Voted


class Seat(Protocol):
    """What an election is about: one member's term and role. Messages go to `answers`."""

    me: str
    answers: list[tuple[str, Message]]

    @property
    def term(self) -> int: ...
    @property
    def leads(self) -> bool: ...
    @property
    def is_follower(self) -> bool: ...
    @property
    def is_candidate(self) -> bool: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def voted_for(self) -> str | None:
        """Who has this member's vote of this term."""

    def other_voters(self) -> Collection[str]: ...
    def vote_for(self, candidate: str) -> None:
        """Give the vote of this term, durably."""

    def become_leader(self) -> None: ...
    def forget_leader(self) -> None: ...
    def step_down(self, term: int, leader: str | None = None) -> None:
        """Follow, in this term or a later one."""

    def elect_now(self) -> None: ...
    def postpone_election(self, now_s: float) -> None: ...


class Elections:
    """`election_min_s`: how long a member is loyal to a leader that it has heard."""

    def __init__(self, seat: Seat, journal: Journal, election_min_s: float, now_s: float) -> None:
        self._seat = seat
        self._journal = journal
        self._election_min_s = election_min_s
        self._heard_s = now_s
        """When a leader was last heard. The start counts: the former life may have promised loyalty just before."""
        self._pre_votes: set[str] | None = None
        """Who would vote for this member; None while it does not ask."""
        self._votes: set[str] = set()
        self._transfer_term: int | None = None
        """Term whose leader asked this member to follow it at once."""

    # --- this member ------------------------------------------------------------------------------------------------

    @property
    def is_told_to_stand(self) -> bool:
        """Whether the leader of this term has told this member to follow it at once."""
        return self._transfer_term == self._seat.term

    def heard(self, now_s: float) -> None:
        """A leader's message has come."""
        self._pre_votes = None
        self._heard_s = now_s

    def on_role_changed(self) -> None:
        self._pre_votes = None

    def on_term(self) -> None:
        """This member votes for itself until `vote_for` says otherwise."""
        self._votes = {self._seat.me}

    def may_stand(self, now_s: float) -> bool:
        """Tell whether to begin a term now that the time for it has come. First the others are asked whether they would
        vote at all."""
        seat = self._seat
        if self.is_told_to_stand or not seat.other_voters():
            return True
        if self._pre_votes is not None and self._is_majority(self._pre_votes):
            return True
        self._pre_votes = {seat.me}
        # Nothing was heard of it for long enough; its next message makes it known again.
        seat.forget_leader()
        seat.postpone_election(now_s)
        vote = Vote(seat.term + 1, self._journal.last_index, self._journal.last_term, pre=True)
        seat.answers.extend((voter, vote) for voter in sorted(seat.other_voters()))
        return False

    def ask_for_vote(self, voter: str, term: int, last_index: int, last_term: int) -> None:
        wanted = self._transfer_term == term - 1
        self._seat.answers.append((voter, Vote(term, last_index, last_term, transfer=wanted)))

    def _is_majority(self, voters: set[str]) -> bool:
        return len(voters) > (len(self._seat.other_voters()) + 1) / 2

    def stand_in_place(self) -> None:
        """Stand in the next term whoever is loyal to the leader of this one, as that is this member itself."""
        self._transfer_term = self._seat.term
        self._seat.step_down(self._seat.term)
        self._seat.elect_now()

    # --- what comes -------------------------------------------------------------------------------------------------

    def _hears_leader(self, now_s: float) -> bool:
        return self._seat.leads or now_s - self._heard_s < self._election_min_s

    def on_vote(self, now_s: float, peer: str, asked: Vote) -> None:
        """Whoever asks is a member, so also one without a vote answers: it may have one and not know it yet."""
        seat = self._seat
        if self._hears_leader(now_s) and not asked.transfer:
            # Loyal: no term begins while a leader is heard. A candidate behind in terms is told.
            if asked.term <= seat.term:
                seat.answers.append((peer, Voted(seat.term, granted=False, pre=asked.pre)))
            return
        complete = (asked.last_term, asked.last_index) >= (self._journal.last_term, self._journal.last_index)
        if asked.pre:
            granted = complete and asked.term > seat.term
            seat.answers.append((peer, Voted(asked.term if granted else seat.term, granted=granted, pre=True)))
            return
        if asked.term > seat.term:
            seat.step_down(asked.term)
        granted = asked.term == seat.term and complete and self._give_vote(now_s, peer)
        seat.answers.append((peer, Voted(seat.term, granted=granted)))

    def _give_vote(self, now_s: float, candidate: str) -> bool:
        given = self._seat.voted_for
        if given is None and self._seat.is_follower:
            self._seat.vote_for(candidate)
            self._seat.postpone_election(now_s)
            return True
        return given == candidate

    def on_voted(self, peer: str, answer: Voted) -> None:
        seat = self._seat
        if not answer.granted:
            if answer.term > seat.term:
                seat.step_down(answer.term)
            return
        if peer not in seat.other_voters():
            return
        if answer.pre:
            if self._pre_votes is not None and answer.term == seat.term + 1 and not seat.leads:
                self._pre_votes.add(peer)
                if self._is_majority(self._pre_votes):
                    seat.elect_now()
        elif seat.is_candidate and answer.term == seat.term:
            self._votes.add(peer)
            if self._is_majority(self._votes):
                seat.become_leader()

    def on_timeout_now(self, peer: str, order: TimeoutNow) -> None:
        if order.term == self._seat.term and peer == self._seat.leader and not self._seat.leads:
            self._transfer_term = order.term
            self._seat.elect_now()
