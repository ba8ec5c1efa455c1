"""Rules of Raft that are easily broken, on one member that is spoken to by hand."""

from __future__ import annotations

from random import Random

import pytest

from jobs._native import DiskFullError, Log, SimDisk
from jobs.consensus.flow import LACKED_ROUNDS
from jobs.consensus.journal import Journal
from jobs.consensus.messages import Append, Appended, Message, TimeoutNow, Vote, Voted
from jobs.consensus.raft import Raft, Timing
from jobs.consensus.rounds import ROUNDS

TIMING = Timing(heartbeat_s=0.1, election_min_s=0.5, election_max_s=1.0)


class Host:
    """Member `a` of three, over the real log on a simulated disk; what is committed counts as applied."""

    def __init__(self) -> None:
        self.disk = SimDisk(1)
        self.log = Log.on(self.disk, segment_bytes=64 << 10)
        self.raft = Raft("a", Journal(self.log, 1), TIMING, Random(1), lambda first, count: first + count - 1, 0.0, 1)
        self.raft.set_members(0.0, ["a", "b", "c"], [])

    def step(self, now_s: float) -> list[Message]:
        """Finish a step, and return what was sent to b."""
        self.log.sync()
        self.raft.tick(now_s)
        self.log.sync()
        sent = [*self.raft.answers, *self.raft.outbox]
        self.raft.answers.clear()
        self.raft.outbox.clear()
        return [message for peer, message in sent if peer == "b"]

    def elect(self, now_s: float) -> None:
        """Have b vote for this member, after a silence."""
        self.step(now_s)
        self.raft.receive(now_s, "b", Voted(self.raft.term + 1, granted=True, pre=True))
        self.step(now_s + 0.01)
        self.raft.receive(now_s + 0.02, "b", Voted(self.raft.term, granted=True))

    def fill(self, term: int, now_s: float) -> None:
        """As a follower of b, take entries in until the log has no room for another one."""
        self.disk.set_full(True)
        for size in (1_000, 1):
            while True:
                index, last_term = self.log.last_index, self.raft._journal.last_term
                entry = (term, b"\0" + bytes(size))
                try:
                    self.raft.receive(now_s, "b", Append(term, index, last_term, 1, 1, [entry]))
                except DiskFullError:
                    break
        self.step(now_s)


def test_a_leader_that_cannot_write_its_first_entry_knows_nothing_and_lets_another_lead() -> None:
    # given a member that has led and settled before
    host = Host()
    host.elect(5.0)
    first = host.log.last_index
    host.raft.receive(5.1, "b", Appended(host.raft.term, True, first, first - 1, 1))
    host.step(5.2)
    assert host.raft.has_settled
    # and then followed b, until its disk was full
    host.fill(host.raft.term + 1, 6.0)
    assert not host.raft.leads
    # when it is elected again
    with pytest.raises(DiskFullError):
        host.elect(10.0)
    # then it does not pass for one that knows what b has acknowledged
    assert not host.raft.has_settled
    assert not host.raft.leads


def test_rounds_are_confirmed_however_many_are_on_the_way() -> None:
    host = Host()
    host.elect(5.0)
    last = host.log.last_index
    rounds = [host.raft.begin_round(5.1 + 0.001 * number) for number in range(3 * ROUNDS)]
    host.step(5.9)
    for number in rounds:
        host.raft.receive(6.0, "b", Appended(host.raft.term, True, last, last, number))
        assert host.raft.confirmed_round == number


def test_a_vote_is_given_once_a_term_and_not_while_a_leader_is_heard() -> None:
    host = Host()
    host.raft.receive(5.0, "b", Append(3, 1, 0, 1, 1))
    host.step(5.0)
    # while b is heard, neither a vote nor a term comes of a request
    host.raft.receive(5.2, "c", Vote(9, 5, 5))
    assert host.raft.term == 3
    assert host.raft.answers == []
    # but when b itself asked for the election
    host.raft.receive(5.2, "c", Vote(4, 5, 5, transfer=True))
    assert host.raft.answers == [("c", Voted(4, granted=True))]
    # and a second candidate of the term gets none, also after a power cut
    host.raft.answers.clear()
    host.disk.cut_power()
    host.log = Log.on(host.disk, segment_bytes=64 << 10)
    host.raft = Raft("a", Journal(host.log, 1), TIMING, Random(1), lambda first, count: first + count - 1, 6.0, 1)
    host.raft.set_members(6.0, ["a", "b", "c"], [])
    host.raft.receive(8.0, "b", Vote(4, 5, 5))
    assert host.raft.answers == [("b", Voted(4, granted=False))]


def test_who_is_told_to_stand_does_so_though_the_leader_is_heard_once_more() -> None:
    host = Host()
    host.raft.receive(5.0, "b", Append(3, 1, 0, 1, 1))
    host.step(5.0)
    # When the order and a sign of life come in one step
    host.raft.receive(5.1, "b", TimeoutNow(3))
    host.raft.receive(5.1, "b", Append(3, 1, 0, 1, 2))
    # Then it stands at once, and voters that hear the leader are told why
    assert Vote(4, 1, 0, transfer=True) in host.step(5.1)
    assert host.raft.term == 4


def test_a_leader_that_nobody_has_followed_stands_again_in_the_next_term() -> None:
    host = Host()
    host.elect(5.0)
    first, term = host.log.last_index, host.raft.term
    host.raft.receive(5.1, "b", Appended(term, True, first, first - 1, 1))
    host.step(5.2)
    assert host.raft.confirmed_s(5.2) > 0
    host.raft.transfer("b")
    assert host.raft.confirmed_s(5.2) == float("-inf")
    # When it takes that back, then it has no lease before it is elected anew
    host.raft.take_back(7.2)
    assert not host.raft.leads
    (vote,) = [message for message in host.step(7.2) if isinstance(message, Vote)]
    assert (vote.term, vote.pre, vote.transfer) == (term + 1, False, True)
    host.raft.receive(7.3, "b", Voted(term + 1, granted=True))
    assert host.raft.leads
    assert host.raft.confirmed_s(7.3) == float("-inf")
    host.raft.receive(7.4, "b", Appended(term + 1, True, first, first, host.raft.round))
    assert host.raft.confirmed_s(7.4) > 7.2
    # And one that was not handed over stays where it is
    host.raft.take_back(7.5)
    assert host.raft.leads


def test_a_candidate_whose_log_lacks_something_gets_no_vote() -> None:
    host = Host()
    host.raft.receive(5.0, "b", Append(3, 1, 0, 1, 1, [(2, b"\0x"), (3, b"\0y")]))
    host.step(5.0)
    for last_index, last_term, granted in ((2, 3, False), (9, 2, False), (3, 3, True)):
        host.raft.receive(8.0, "c", Vote(host.raft.term + 1, last_index, last_term))
        assert host.raft.answers.pop() == ("c", Voted(host.raft.term, granted=granted))


def test_entries_of_former_terms_are_not_committed_by_counting() -> None:
    # given an entry of b's term 3 that is not known to be committed, and this member leading in a later one
    host = Host()
    host.raft.receive(5.0, "b", Append(3, 1, 0, 1, 1, [(3, b"\0x")]))
    host.step(5.0)
    host.elect(8.0)
    # when a majority has the entry, but not this leader's first one
    host.raft.receive(8.1, "b", Appended(host.raft.term, True, 2, 1, 1))
    host.step(8.2)
    assert host.raft.commit_index == 1
    # then only that one commits both
    host.raft.receive(8.3, "b", Appended(host.raft.term, True, 3, 2, 1))
    host.step(8.4)
    assert host.raft.commit_index == 3


def test_a_leader_does_not_count_a_learner() -> None:
    host = Host()
    host.raft.set_members(0.0, ["a", "b"], ["c"])
    host.elect(5.0)
    last = host.log.last_index
    host.raft.receive(5.1, "c", Appended(host.raft.term, True, last, last - 1, host.raft.round))
    host.step(5.2)
    assert host.raft.commit_index < last
    assert host.raft.confirmed_s(5.2) == float("-inf")
    host.raft.receive(5.3, "b", Appended(host.raft.term, True, last, last - 1, host.raft.round))
    host.step(5.4)
    assert host.raft.commit_index == last


def test_a_member_that_has_lost_what_it_acknowledged_is_known() -> None:
    host = Host()
    host.elect(5.0)
    last = host.log.last_index
    host.raft.receive(5.1, "b", Appended(host.raft.term, True, last, last - 1, host.raft.round))
    host.step(5.2)
    # a refusal that is overtaken says nothing
    for number in range(LACKED_ROUNDS - 1):
        host.raft.receive(5.3, "b", Appended(host.raft.term, False, 1, last, number))
    host.raft.receive(5.3, "b", Appended(host.raft.term, True, last, last, host.raft.round))
    host.raft.receive(5.3, "b", Appended(host.raft.term, False, 1, last, LACKED_ROUNDS))
    assert host.raft.forgetful == set()
    # one that is repeated round by round does
    for number in range(LACKED_ROUNDS + 1):
        host.raft.receive(5.4, "b", Appended(host.raft.term, False, 1, last, 100 + number))
    assert host.raft.forgetful == {"b"}
    host.raft.set_members(5.5, ["a", "c"], [])
    assert host.raft.forgetful == set()


def test_an_answer_that_confirms_what_is_committed_needs_no_step_unless_entries_wait_for_it() -> None:
    host = Host()
    host.elect(5.0)
    last, term = host.log.last_index, host.raft.term
    answer = Appended(term, True, last, last - 1, host.raft.round)
    # what may commit something is news
    assert not host.raft.is_no_news("c", answer)
    host.raft.receive(5.1, "b", answer)
    host.step(5.2)
    assert host.raft.commit_index == last
    # the same of the other is not, unless it refuses, or is nobody's, or of another term
    assert host.raft.is_no_news("c", answer)
    assert not host.raft.is_no_news("c", Appended(term, False, last, last, host.raft.round))
    assert not host.raft.is_no_news("c", Appended(term + 1, True, last, last - 1, host.raft.round))
    assert not host.raft.is_no_news("d", answer)
    # and where entries wait for it, it is
    host.raft.append(5.3, b"\0x", lambda results, error: None)
    assert not host.raft.is_no_news("c", answer)
