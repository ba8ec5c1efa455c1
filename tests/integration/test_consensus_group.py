"""Several members in one process over real logs and stores, joined by a network whose links can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jobs._native import DiskFullError, Log, Store
from jobs.cluster.changes import Changes
from jobs.consensus import Consensus, ConsensusConfig, MemberRecord, Role, driver
from jobs.consensus.clock import now_s
from jobs.consensus.membership import put_member, remove_member
from jobs.consensus.messages import MAX_COMMAND_BYTES, TimeoutNow, decode
from jobs.errors import MembershipConflict, NotLeader, OutcomeUnknown, PayloadTooLarge, Unavailable
from jobs.protocol.ids import RequestId
from jobs.service import Caller
from jobs.store import EQ, Put, Txn, ValueIs, VersionIs
from tests.support.disks import small_disk

QUICK = ConsensusConfig(heartbeat_s=0.05, election_min_s=0.2, election_max_s=0.5)
STEADY = ConsensusConfig(heartbeat_s=0.2, election_min_s=1.0, election_max_s=2.0)
"""For where no election may come, however busy the machine is."""
TIMEOUT_S = 20.0


class Wires:
    """Delivers between the members of a group, in order, unless a link is cut."""

    def __init__(self) -> None:
        self.members: dict[str, Consensus] = {}
        self.cut: set[tuple[str, str]] = set()
        self.bytes_per_s = 0.0
        """How much a link carries; 0: any amount at once."""

    def isolate(self, name: str) -> None:
        for other in self.members:
            self.cut |= {(name, other), (other, name)}

    def heal(self) -> None:
        self.cut.clear()


class Wire:
    """One member's end: a `Network`."""

    def __init__(self, wires: Wires, me: str) -> None:
        self._wires = wires
        self._me = me
        self._busy_until_s: dict[str, float] = {}

    def send(self, peer: str, message: bytes) -> bool:
        target = self._wires.members.get(peer)
        if target is None or (self._me, peer) in self._wires.cut:
            return False
        loop = asyncio.get_running_loop()
        if self._wires.bytes_per_s:
            begin_s = max(loop.time(), self._busy_until_s.get(peer, 0.0))
            self._busy_until_s[peer] = begin_s + len(message) / self._wires.bytes_per_s
            loop.call_at(self._busy_until_s[peer], target.on_message, self._me, message)
        else:
            loop.call_soon(target.on_message, self._me, message)
        return True

    def send_urgent(self, peer: str, message: bytes) -> bool:
        target = self._wires.members.get(peer)
        if target is None or (self._me, peer) in self._wires.cut:
            return False
        asyncio.get_running_loop().call_soon(target.on_message, self._me, message)
        return True

    async def send_file(self, peer: str, name: str, path: Path) -> None:
        target = self._wires.members.get(peer)
        if target is None or (self._me, peer) in self._wires.cut:
            raise Unavailable(f"{peer} is not reached")
        copy = path.with_name(f"for-{peer}")
        copy.write_bytes(path.read_bytes())
        await target.install_snapshot(self._me, copy)


class SlowLog:
    """A log on a disk whose syncs can be made to take long."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.sync_s = 0.0

    def sync(self) -> int:
        time.sleep(self.sync_s)
        return self._log.sync()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Group:
    """Members that can be stopped, cut off and started again."""

    def __init__(self, directory: Path, config: ConsensusConfig = QUICK) -> None:
        self.directory = directory
        self.config = config
        self.wires = Wires()
        self.disks: dict[str, tuple[Log, Store]] = {}
        self.logs: dict[str, SlowLog] = {}

    async def start(self, name: str, *, first: bool = False) -> Consensus:
        place = self.directory / name
        log, store = Log(str(place / "log"), segment_bytes=1 << 20), Store(str(place / "store"))
        self.disks[name] = log, store
        slow = self.logs[name] = SlowLog(log)
        wire = Wire(self.wires, name)
        member = Consensus(name, slow, store, self.config, network=wire, alone=first)  # type: ignore[arg-type]
        self.wires.members[name] = member
        await member.start()
        return member

    async def stop(self, name: str) -> None:
        await self.wires.members[name].hand_over()
        await self.wires.members[name].stop()
        self.kill(name)

    def kill(self, name: str) -> None:
        """Let go of it without a word, as a SIGKILL would."""
        member = self.wires.members.pop(name)
        member._fail(RuntimeError("killed"))
        if member._timer is not None:
            member._timer.cancel()
        for part in reversed(self.disks.pop(name)):
            with contextlib.suppress(DiskFullError):  # it cannot be marked as closed
                part.close()

    async def of(self, *names: str) -> Group:
        """Start a group of these, the first one leading."""
        first = await self.start(names[0], first=True)
        await add(first, MemberRecord(id=names[0], name=names[0], role=Role.VOTER))
        for name in names[1:]:
            await self.start(name)
            await add(first, MemberRecord(id=name, name=name))
            await until(lambda name=name: name in first.members.voters)  # type: ignore[misc]
        await until(lambda: all(len(one.members.voters) == len(names) for one in self.members))
        return self

    @property
    def members(self) -> list[Consensus]:
        return list(self.wires.members.values())

    def __getitem__(self, name: str) -> Consensus:
        return self.wires.members[name]

    async def leader(self) -> Consensus:
        """Wait for the one that leads with the consent of a majority of those that are not cut off."""
        while True:
            for member in self.members:
                try:
                    await member.barrier()
                except Unavailable:
                    continue
                return member
            await asyncio.sleep(0.01)

    async def __aenter__(self) -> Group:
        return self

    async def __aexit__(self, *error: object) -> None:
        for name in list(self.wires.members):
            self.kill(name)


async def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


async def add(leader: Consensus, record: MemberRecord) -> None:
    await leader.change_members(put_member(leader.members, record))


async def remove(leader: Consensus, member: str) -> None:
    await leader.change_members(remove_member(leader.members, member))


async def put(member: Consensus, key: str, value: str = "v") -> int:
    return (await member.propose(Txn(then=(Put(key.encode(), value.encode()),)))).revision


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


def test_what_one_accepts_all_have_and_followers_refuse(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            assert leader.me == "a"
            await asyncio.gather(*(put(leader, f"k{number}") for number in range(300)))
            await until(lambda: all(one.applied_index == leader.applied_index for one in group.members))
            hashes = {group.disks[name][1].state_hash() for name in group.disks}
            assert len(hashes) == 1
            with pytest.raises(NotLeader, match="another one does"):
                await put(group["b"], "k")
            with pytest.raises(NotLeader):
                await group["b"].barrier()

    run(scenario)


def test_the_largest_change_reaches_all_and_a_larger_one_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    def change(size_mb: int) -> Txn:
        return Txn(then=tuple(Put(b"k%d" % number, bytes(1_000_000)) for number in range(size_mb)))

    # All three take it in on one event loop, and say nothing meanwhile
    patient = ConsensusConfig(heartbeat_s=0.1, election_min_s=15.0, election_max_s=30.0)

    async def scenario() -> None:
        async with await Group(tmp_path, patient).of("a", "b", "c") as group:
            leader = await group.leader()
            with pytest.raises(PayloadTooLarge, match="at most"):
                await leader.propose(change(MAX_COMMAND_BYTES // 1_000_000 + 1))
            await leader.propose(change(MAX_COMMAND_BYTES // 1_000_000))
            await until(lambda: len({one.applied_index for one in group.members}) == 1)
            assert len({store.state_hash() for _, store in group.disks.values()}) == 1
            await put(await group.leader(), "after")

    run(scenario)


def test_who_is_long_in_sending_a_change_goes_on_leading_and_its_reads_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path, STEADY).of("a", "b", "c") as group:
            leader = await group.leader()
            term = leader.term
            # given links that need longer for a change than members wait for a sign of life
            group.wires.bytes_per_s = 1_000_000
            change = leader.propose(Txn(then=tuple(Put(b"k%d" % number, bytes(1_000_000)) for number in range(4))))
            reads = 0
            while not change.done():
                await leader.barrier()
                reads += 1
                await asyncio.sleep(0.02)
            # then it was not replaced, nor doubted
            assert (await change).succeeded
            assert (leader.is_leader, leader.term) == (True, term)
            assert reads > 20
            await until(lambda: len({one.applied_index for one in group.members}) == 1)
            assert leader.term == term

    run(scenario)


@pytest.mark.parametrize("slow", ["a", "b"])
def test_a_sync_that_takes_long_is_no_silence(tmp_path: Path, slow: str) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path, STEADY).of("a", "b", "c") as group:
            leader = await group.leader()
            assert leader.me == "a"
            term = leader.term
            # given a disk that needs longer for a large change than members wait for each other; the leader
            # counts on that member
            group.logs[slow].sync_s = 4.0
            if slow == "b":
                group.wires.isolate("c")
            change = leader.propose(Txn(then=tuple(Put(b"k%d" % number, bytes(1_000_000)) for number in range(2))))
            while not change.done():
                await leader.barrier()
                await asyncio.sleep(0.02)
            assert (await change).succeeded
            assert (leader.is_leader, leader.term) == (True, term)

    run(scenario)


def test_a_leader_whose_disk_is_never_done_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "STUCK_SYNC_S", 1.0)

    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            # Given a disk that does not come back with what it was given
            group.logs[leader.me].sync_s = 8.0
            stuck = leader.propose(Txn(then=tuple(Put(b"k%d" % number, bytes(1_000_000)) for number in range(2))))
            # Then another leads before it does
            others = [member for member in group.members if member is not leader]
            await until(lambda: any(member.is_leader for member in others), 6.0)
            assert not stuck.done()
            successor = next(member for member in others if member.is_leader)
            await put(successor, "k")
            # And when it comes back after all, it follows
            group.logs[leader.me].sync_s = 0.0
            await until(lambda: leader.leader == successor.me and leader.applied_index == successor.applied_index)
            with pytest.raises(OutcomeUnknown):
                await stuck

    run(scenario)


def test_a_killed_leader_is_followed_by_another_that_has_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            for number in range(5):
                leader = await group.leader()
                await put(leader, f"k{number}")
                name = leader.me
                group.kill(name)
                successor = await group.leader()
                assert successor.me != name
                store = group.disks[successor.me][1]
                assert all(store.get(f"k{past}".encode()) for past in range(number + 1))
                await group.start(name)

    run(scenario)


def test_a_founder_that_loses_power_takes_part_again_though_another_leads(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            # Given a founder whose store has no snapshot, so that after a power cut it knows of no members
            group.kill("a")
            (tmp_path / "a" / "store" / "OPEN").write_text("1 another-boot open\n")
            await put(await group.leader(), "k")
            # When it starts beside the leader of the others
            await asyncio.wait_for(group.start("a", first=True), TIMEOUT_S)
            # Then it follows, and has what was written meanwhile
            await until(lambda: group.disks["a"][1].get(b"k") is not None)
            assert len(group["a"].members.voters) == 3
            assert not group["a"].is_leader

    run(scenario)


def test_a_leader_that_is_cut_off_refuses_soon_and_what_it_had_not_confirmed_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            old = await group.leader()
            group.wires.isolate(old.me)
            hanging = asyncio.ensure_future(put(old, "lost"))
            with pytest.raises((OutcomeUnknown, NotLeader)):
                await hanging
            with pytest.raises(NotLeader, match="no leader is known"):
                await put(old, "k")
            with pytest.raises(Unavailable):
                await old.barrier()
            new = await group.leader()
            assert new.me != old.me
            await put(new, "k", "new")
            group.wires.heal()
            store = group.disks[old.me][1]
            await until(lambda: (store.get(b"k") or (b"", b""))[1] == b"new")
            assert store.get(b"lost") is None
            # Whoever came back has deposed nobody
            assert (await group.leader()).me == new.me

    run(scenario)


def test_a_follower_that_was_away_does_not_raise_the_term(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            away = next(one for one in group.members if one is not leader)
            group.wires.isolate(away.me)
            term = leader.term
            # Given several election timeouts of silence
            await asyncio.sleep(4 * QUICK.election_max_s)
            await put(leader, "k")
            group.wires.heal()
            await until(lambda: group.disks[away.me][1].get(b"k") is not None)
            assert {one.term for one in group.members} == {term}
            assert leader.is_leader

    run(scenario)


def test_a_follower_that_hears_but_is_not_heard_and_one_that_is_heard_but_does_not_hear(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            others = [one.me for one in group.members if one is not leader]
            for cut in [{(leader.me, others[0])}, {(others[0], leader.me)}]:
                group.wires.cut = cut
                term = leader.term
                await asyncio.sleep(4 * QUICK.election_max_s)
                await put(leader, "k")
                group.wires.heal()
                assert leader.is_leader
                assert leader.term == term

    run(scenario)


def test_leadership_is_handed_over_without_a_write_that_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            told: list[bool] = []
            leader = await group.leader()
            leader.on_leadership = told.append
            assert await leader.transfer("b") == "b"
            assert (await group.leader()).me == "b"
            assert told == [False]
            with pytest.raises(MembershipConflict, match=r"x cannot lead.*a, c"):
                await group["b"].transfer("x")
            group.kill("c")
            await until(lambda: (group["b"].progress("c").answered_ago_s or 0) > QUICK.election_max_s)
            with pytest.raises(MembershipConflict, match="c does not answer"):
                await group["b"].transfer("c")
            with pytest.raises(NotLeader):
                await group["a"].transfer("c")

    run(scenario)


def test_a_node_that_fails_while_it_hands_over_stops_as_others_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            group.wires.isolate(leader.me)
            handing = asyncio.ensure_future(leader.hand_over())
            await until(lambda: bool(leader._step_waiters))
            leader._fail(RuntimeError("the disk has failed"))
            await handing
            await leader.stop()

    run(scenario)


def test_what_cannot_be_read_is_counted_each_time_and_told_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b") as group:
            leader = await group.leader()
            for _ in range(100):
                leader.on_message("b", b"\xffnoise")
            assert leader.bad_messages == 100
            await put(leader, "k")

    run(scenario)
    assert len([one for one in caplog.records if "a message of b is not taken" in one.message]) == 1


def test_a_transfer_that_nobody_follows_leaves_a_leader_with_a_lease(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            term = leader.term
            # Given an order to take over that is on its way for long
            late: list[tuple[str, bytes]] = []
            deliver = group["b"].on_message

            def hold_orders_back(peer: str, data: bytes) -> None:
                if isinstance(decode(data), TimeoutNow):
                    late.append((peer, data))
                else:
                    deliver(peer, data)

            group["b"].on_message = hold_orders_back  # type: ignore[method-assign]
            with pytest.raises(Unavailable, match="b did not take over"):
                await leader.transfer("b")
            # Then the same one leads in a new term, and reads without asking the others again
            await until(lambda: leader.is_leader and leader.term > term)
            await put(leader, "k")
            await until(lambda: leader._member.may_read(now_s()))
            # And when the order comes after all, nobody follows it
            term = leader.term
            deliver(*late[0])
            await asyncio.sleep(4 * QUICK.election_max_s)
            assert (leader.is_leader, leader.term) == (True, term)

    run(scenario)


def test_a_transfer_that_nobody_followed_is_tried_again_when_its_request_comes_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            changes = Changes(leader, group.disks[leader.me][1])
            caller = Caller(uid=0, gid=0, admin=True, request_id=RequestId(b"r" * 16))
            term = leader.term
            # Given an order to take over that is lost, so that the leader takes its leadership back in the next term
            deliver = group["b"].on_message
            group["b"].on_message = lambda peer, data: (  # type: ignore[method-assign]
                None if isinstance(decode(data), TimeoutNow) else deliver(peer, data)
            )
            with pytest.raises(Unavailable, match="b did not take over"):
                await changes.transfer(caller, "b")
            await until(lambda: leader.is_leader and leader.term > term)
            # When the same request comes again, then it is not taken for done
            group["b"].on_message = deliver  # type: ignore[method-assign]
            assert await changes.transfer(caller, "b") == "b"
            await until(lambda: group["b"].is_leader)
            # And once it was done, it moves nothing any more, though it comes to who led then
            assert await group["b"].transfer("a") == "a"
            await until(lambda: leader.is_leader)
            assert await changes.transfer(caller, "b") == "a"
            assert leader.is_leader

    run(scenario)


def test_members_are_removed_one_at_a_time_the_leader_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            both = await asyncio.gather(
                *(remove(leader, one.me) for one in group.members if one is not leader), return_exceptions=True
            )
            assert sorted(type(one) for one in both if one is not None) == [MembershipConflict]
            await until(lambda: len(leader.members.voters) == 2)
            rest = next(member for member in leader.members.voters if member != leader.me)
            await remove(leader, leader.me)
            successor = await group.leader()
            assert successor.me == rest
            assert successor.members.voters == (rest,)
            assert not leader.is_leader
            await put(successor, "k")
            with pytest.raises(MembershipConflict, match="only voter"):
                await remove(successor, rest)

    run(scenario)


def test_who_is_far_behind_gets_a_snapshot_and_then_a_vote(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b") as group:
            leader = await group.leader()
            for number in range(40):
                await leader.propose(Txn(then=(Put(b"k%d" % (number % 4), b"x" * 400_000),)), 400_000)
            await leader.snapshot()
            assert group.disks[leader.me][0].first_index > 1
            late = await group.start("c")
            await add(leader, MemberRecord(id="c", name="c"))
            await until(lambda: "c" in leader.members.voters)
            assert late.snapshots_installed == 1
            await until(lambda: late.applied_index == leader.applied_index)
            assert group.disks["c"][1].state_hash() == group.disks[leader.me][1].state_hash()
            # and it is one that can lead
            await leader.transfer("c")
            await put(await group.leader(), "after")
            # also after a restart
            await group.stop("c")
            await group.start("c")
            store = group.disks["c"][1]
            await until(lambda: store.get(b"after") is not None)

    run(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("full", ["log", "store"])
def test_a_leader_whose_disk_is_full_lets_another_lead_that_has_room(tmp_path: Path, full: str) -> None:
    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            leader = await group.leader()
            assert leader.me == "a"
            large = Txn(then=(Put(b"k", b"x" * 400_000),))
            while leader.is_leader:
                await asyncio.wait([leader.propose(large, 400_000)], timeout=0.5)
            successor = await group.leader()
            assert successor.me != "a"
            # What the first accepted is there, and more is accepted
            await put(successor, "after")

    (tmp_path / "a").mkdir()
    with small_disk(tmp_path / "a" / full):
        run(scenario)


def test_a_compare_and_set_is_won_once_whoever_leads(tmp_path: Path) -> None:
    """Counters are raised by compare-and-set while leaders are killed and cut off: each success counts once."""

    async def raise_counter(group: Group, done: list[int], stop: asyncio.Event) -> None:
        while not stop.is_set():
            leader = await group.leader()
            store = group.disks[leader.me][1]
            found = store.get(b"n")
            now = int(found[1]) if found else 0
            compare = ValueIs(b"n", EQ, b"%d" % now) if found else VersionIs(b"n", EQ, 0)
            try:
                result = await leader.propose(Txn((compare,), (Put(b"n", b"%d" % (now + 1)),)))
            except OutcomeUnknown:
                done.append(-1)
            except Exception:
                continue
            else:
                if result.succeeded:
                    done.append(now + 1)

    async def scenario() -> None:
        async with await Group(tmp_path).of("a", "b", "c") as group:
            done: list[int] = []
            stop = asyncio.Event()
            tasks = [asyncio.create_task(raise_counter(group, done, stop)) for _ in range(4)]
            for number in range(6):
                leader = await group.leader()
                before = len(done)
                await until(lambda before=before: len(done) > before + 50)  # type: ignore[misc]
                if number % 2:
                    name = leader.me
                    group.kill(name)
                    await group.leader()
                    await group.start(name)
                else:
                    group.wires.isolate(leader.me)
                    await until(lambda leader=leader: not leader.is_leader)  # type: ignore[misc]
                    await group.leader()
                    group.wires.heal()
            stop.set()
            await asyncio.gather(*tasks)
            leader = await group.leader()
            found = group.disks[leader.me][1].get(b"n")
            assert found is not None
            known, unknown = [one for one in done if one > 0], done.count(-1)
            assert len(known) == len(set(known)), "a value was won twice"
            assert len(known) <= int(found[1]) <= len(known) + unknown

    run(scenario)
