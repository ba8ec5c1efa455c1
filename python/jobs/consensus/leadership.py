"""What a leader does about who leads and who votes: it hands over, gives a learner its vote, and tells of a member
whose disk was put back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final, Protocol

from msgspec import Struct, structs

from jobs._native import Log
from jobs.consensus import clock
from jobs.consensus.member import ConsensusError, Member
from jobs.consensus.membership import MemberRecord, Role, put_member
from jobs.consensus.proposals import not_leader
from jobs.errors import JobsError, MembershipConflict, Unavailable
from jobs.store import Txn

logger = logging.getLogger(__name__)

TRANSFER_S: Final = 2.0
"""Time that a leader gives another to take over; meanwhile proposals wait."""
STEP_ASIDE_S: Final = 30.0
"""A leader whose disk is full hands over no more often than this."""
PROMOTE_PERIOD_S: Final = 0.5
PROMOTE_ENTRIES: Final = 256
"""A learner that lacks no more than so many entries has caught up."""


class MemberProgress(Struct, frozen=True, kw_only=True):
    """How a leader sees a member."""

    match_index: int
    answered_ago_s: float | None


class Driver(Protocol):
    """Who steps the member."""

    @property
    def is_leader(self) -> bool: ...
    def schedule(self) -> None:
        """Let a step come."""

    def flush(self) -> None:
        """Send what may leave."""

    async def stepped(self) -> None:
        """Return after the next step."""

    async def change_members(self, txn: Txn) -> None: ...


class Leadership:
    """Of one member, whether it leads or not."""

    def __init__(self, driver: Driver, member: Member, log: Log, answers_within_s: float) -> None:
        self._driver = driver
        self._member = member
        self._log = log
        self._answers_within_s = answers_within_s
        self._promoted_s = 0.0
        self._stepped_aside_s = float("-inf")
        self._told: set[str] = set()
        """Members that were reported for what they have lost."""
        self.holding = False
        """Nothing is appended, so that another member can catch up and take over."""
        self.stopping = False
        """This member is about to go: it does not stand for election to keep what it could not hand over."""

    def progress(self, member: str) -> MemberProgress:
        raft = self._member.raft
        answered_s = raft.answered_s(member)
        return MemberProgress(
            match_index=raft.match_index(member),
            answered_ago_s=None if answered_s is None else clock.now_s() - answered_s,
        )

    def answers(self, member: str) -> bool:
        """Tell whether a member has answered this leader of late."""
        ago_s = self.progress(member).answered_ago_s
        return ago_s is not None and ago_s < self._answers_within_s and self._member.raft.match_index(member) > 0

    async def hears(self, member: str) -> bool:
        """Tell whether a member answers this leader; one that has just been elected waits a moment for that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._answers_within_s):
                while self._driver.is_leader and not self.answers(member):
                    await self._driver.stepped()
        return self.answers(member)

    # --- handing over -----------------------------------------------------------------------------------------------

    async def transfer(self, to: str | None) -> str:
        if not self._driver.is_leader:
            raise not_leader(self._member.raft.leader)
        raft = self._member.raft
        chosen = await self.successor(to)
        name = self._member.members.name_of(chosen)
        asked = False
        self.holding = True
        try:
            async with asyncio.timeout(TRANSFER_S):
                while raft.leads:
                    if not asked and raft.match_index(chosen) == self._log.last_index and not self._member.unsynced:
                        raft.transfer(chosen)
                        asked = True
                        self._driver.flush()
                    await self._driver.stepped()
        except TimeoutError:
            if not self.stopping:
                raft.take_back(clock.now_s())
            raise Unavailable(f"{name} did not take over within {TRANSFER_S:g} s", retry_after_s=1) from None
        finally:
            self.holding = False
            self._driver.schedule()
        return chosen

    async def successor(self, to: str | None) -> str:
        """Return who is to lead: the one that is wanted, or the voter with the longest log. Raises MembershipConflict
        for one that cannot."""
        members = self._member.members
        others = [member for member in members.voters if member != self._member.me]
        if to is not None and to not in others:
            names = ", ".join(sorted(members.name_of(member) for member in others))
            raise MembershipConflict(f"{members.name_of(to)} cannot lead", expected=f"another voter: {names or 'none'}")
        if not others:
            raise MembershipConflict("there is no other voter", expected="a cluster with several")
        match_index = self._member.raft.match_index
        chosen = to or max(others, key=lambda member: (self.answers(member), match_index(member), member))
        if not await self.hears(chosen):
            raise MembershipConflict(f"{members.name_of(chosen)} does not answer", expected="a voter that does")
        return chosen

    async def hand_over(self) -> None:
        """Let another lead, if this member does and somebody can take over."""
        if self._driver.is_leader and len(self._member.members.voters) > 1:
            try:
                await self.transfer(None)
            except (JobsError, ConsensusError) as error:
                logger.warning("nobody took over the leadership: %s", error)

    def steps_aside(self) -> bool:
        """Tell whether a leader without room is to let another try, which it does now and then."""
        now_s = clock.now_s()
        if now_s - self._stepped_aside_s < STEP_ASIDE_S:
            return False
        self._stepped_aside_s = now_s
        return True

    # --- the members ------------------------------------------------------------------------------------------------

    def learner_to_promote(self) -> MemberRecord | None:
        """Return a learner that has caught up and is to get its vote now, one at a time."""
        raft = self._member.raft
        if not self._driver.is_leader or clock.now_s() - self._promoted_s < PROMOTE_PERIOD_S:
            return None
        for record in self._member.members.records:
            lacks = raft.commit_index - raft.match_index(record.id)
            if record.role is Role.LEARNER and lacks <= PROMOTE_ENTRIES and self.answers(record.id):
                self._promoted_s = clock.now_s()
                logger.info("%s has caught up and gets a vote", record.name)
                return record
        return None

    async def give_vote(self, record: MemberRecord) -> None:
        members = self._member.members
        present = members.get(record.id)
        if present is None or present.role is Role.VOTER:
            return  # it was removed, or has got it, since
        voter = structs.replace(present, role=Role.VOTER)
        try:
            await self._driver.change_members(put_member(members, voter))
        except JobsError as error:
            logger.info("%s does not get its vote yet: %s", record.name, error)

    def tell_of_the_forgetful(self) -> None:
        for peer in sorted(self._member.raft.forgetful - self._told):
            self._told.add(peer)
            logger.critical(
                "%s has lost entries that it had acknowledged: its disk is not the one that it was; "
                "remove it from the cluster, and let it join anew with an empty node.data_dir",
                self._member.members.name_of(peer),
            )
