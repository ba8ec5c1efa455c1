"""One member, stepped by hand: what its disk must know before it goes on."""

from __future__ import annotations

from random import Random
from typing import Any

from jobs._native import Log, MemoryStore, SimDisk
from jobs.consensus.member import Member
from jobs.consensus.membership import MemberRecord, Role, put_member
from jobs.consensus.messages import Append, Appended
from jobs.consensus.raft import NO_OP, Timing
from jobs.store import encode_command

TIMING = Timing(heartbeat_s=0.1, election_min_s=0.5, election_max_s=1.0)


class Disk:
    """A log that survives a power cut, and a store without a snapshot, which does not."""

    def __init__(self) -> None:
        self.disk = SimDisk(7)
        self.start()

    def start(self) -> None:
        self.log = Log.on(self.disk)
        self.store = StoreWithoutSnapshot()
        self.member = Member("a", self.log, self.store, TIMING, Random(1), 0.0, alone=True)
        self.now_s = 0.0
        self.step()

    def step(self) -> None:
        for _ in range(4):
            self.now_s += 0.1
            self.log.sync()
            self.member.answer()
            self.member.finish(self.now_s)
        self.log.sync()

    def change(self, record: MemberRecord) -> None:
        command = encode_command([put_member(self.member.members, record)])
        self.member.propose(self.now_s, command, lambda results, error: None, changes_members=True)
        self.step()


class StoreWithoutSnapshot:
    """The state machine in memory, as a member needs it."""

    snapshot_index = 0

    def __init__(self) -> None:
        self._memory = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)


def test_a_founder_that_lost_power_remembers_that_it_is_not_alone() -> None:
    # given a group of one that others have joined
    host = Disk()
    host.change(MemberRecord(id="a", name="a", role=Role.VOTER))
    host.change(MemberRecord(id="b", name="b", role=Role.VOTER))
    assert host.member.members.voters == ("a", "b")
    host.change(MemberRecord(id="c", name="c", role=Role.VOTER))

    # when its store is lost in a power cut, and nobody answers
    host.disk.cut_power()
    host.start()
    for _ in range(50):
        host.step()

    # then it knows at least the change before the last one, and does not lead by itself
    assert host.member.members.voters == ("a", "b")
    assert not host.member.raft.leads


def test_a_follower_answers_before_it_applies() -> None:
    # given a follower of b
    host = Disk()
    host.change(MemberRecord(id="a", name="a", role=Role.VOTER))
    host.change(MemberRecord(id="b", name="b", role=Role.VOTER))
    last, term = host.log.last_index, host.member.raft.term + 1
    host.member.receive(host.now_s, "b", Append(term, last, host.log.hard_state()[0], last, 1, [(term, NO_OP)]))
    host.log.sync()
    host.member.answer()
    host.member.take_outbox()
    host.member.finish(host.now_s)
    # when the leader sends an entry with the news that the former one is committed
    host.member.receive(host.now_s, "b", Append(term, last + 1, term, last + 1, 2, [(term, NO_OP)]))
    host.log.sync()
    host.member.answer()
    # then the leader, which waits for it, has the answer first
    assert host.member.take_outbox() == [("b", Appended(term, True, last + 2, last + 1, 2))]
    assert host.store.applied_index == last
    host.member.finish(host.now_s)
    assert host.store.applied_index == last + 1
