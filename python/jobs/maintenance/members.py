"""Orders between members for maintenance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from jobs.cluster import Opened, Peers
from jobs.consensus import Consensus
from jobs.forward.orders import Declined, Kind, MemberOrders, as_end
from jobs.maintenance import messages as m
from jobs.maintenance.attending import Attending

VERSION: Final = 1
OnAdvance: TypeAlias = Callable[[m.Advance], None]
_Said: TypeAlias = m.Advance | m.End | Declined
KIND: Final[Kind[m.Order, m.Advance, m.End]] = Kind(
    "maintenance",
    Opened.MAINTENANCE,
    VERSION,
    order=m.Order,
    said=_Said,
    beginning=m.Advance(),
    failure="its log or its store cannot be used",
)


class Members(MemberOrders[m.Order, m.Advance, m.End]):
    """Each order raises Unreached and errors of `jobs.errors`."""

    def __init__(self, peers: Peers | None, consensus: Consensus, attending: Attending) -> None:
        super().__init__(KIND, peers, consensus, attending.carry_out)

    async def free(self, member: str, order: m.CutLog | m.CompactFile, on_advance: OnAdvance) -> m.Freed:
        return as_end(m.Freed, await self._order(member, order, on_advance))

    async def examine(self, member: str) -> m.Examined:
        return as_end(m.Examined, await self._order(member, m.Examine()))

    async def check(
        self, member: str, order: m.CheckLog | m.CheckStore | m.CheckSnapshot, on_advance: OnAdvance
    ) -> m.Checked:
        return as_end(m.Checked, await self._order(member, order, on_advance))

    async def digest(self, member: str, order: m.Digest) -> m.Digested:
        return as_end(m.Digested, await self._order(member, order))

    async def show(self, member: str, key: bytes, revision: int) -> m.Shown:
        return as_end(m.Shown, await self._order(member, m.Show(key, revision)))

    async def needed(self, member: str) -> int | None:
        """Return the revision after which readers there need the history; None where nobody reads."""
        return as_end(m.Needs, await self._order(member, m.Needed())).revision

    def chosen(self, names: list[str]) -> list[str]:
        """Return the ids of members by their names, of all without any. Raises NotFound."""
        return sorted(self.ids if not names else {self.named(name) for name in names}, key=self.name)
