"""What every operation has while it is carried out."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from jobs.errors import JobsError, OperationUnderWay
from jobs.forward.orders import Unreached
from jobs.maintenance import messages as m
from jobs.maintenance.claim import Claim
from jobs.maintenance.link import LeaderLink
from jobs.maintenance.members import Members
from jobs.maintenance.pacing import Pacing
from jobs.operations import News
from jobs.protocol.model import Finding, FindingStatus


class Run(Struct, frozen=True, kw_only=True):
    claim: Claim
    news: News
    link: LeaderLink
    members: Members
    pacing: Pacing

    def find(self, member: str, check: str, status: FindingStatus, value: str, advice: str = "") -> None:
        """Take down what was found out about a member."""
        name = self.members.name(member)
        text = self.members.named_in(value)
        self.claim.find(Finding(node=name, check=check, status=status, value=text, advice=advice))

    async def tell(self, member: str, check: str, status: FindingStatus, value: str, advice: str) -> None:
        """The same, and say it on a line: of findings there is room for some only."""
        self.find(member, check, status, value, advice)
        name, text = self.members.name(member), self.members.named_in(value)
        await self.news.line(node=name, check=check, status=status, found=text)

    def give_up(self, member: str, check: str, error: Unreached | JobsError) -> None:
        """A member has not done what it was asked for, which does not keep others from it.

        Raises the error where it says that the operation is another's.
        """
        if isinstance(error, OperationUnderWay):
            raise error
        text = self.members.named_in(str(error))
        self.claim.node(self.members.name(member), outcome=f"{check}: {text}")
        self.find(member, check, "warning", text, "see that the node runs and is reached, and do it again")

    def advanced(self, message: str) -> Callable[[m.Advance], None]:
        """Return what tells how far an order is."""
        return lambda now: self.news.advance(now.done, now.total, message)
