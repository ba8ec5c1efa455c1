"""Orders between members about their blobs."""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from jobs.blobs import messages as m
from jobs.blobs.tending import OnAdvance, Tending
from jobs.cluster import Opened, Peers
from jobs.consensus import Consensus
from jobs.forward.orders import MAX_SENT, Declined, Kind, MemberOrders, as_end

VERSION: Final = 1
_Said: TypeAlias = m.Advance | m.End | Declined
KIND: Final[Kind[m.Order, m.Advance, m.End]] = Kind(
    "blobs",
    Opened.BLOBS,
    VERSION,
    order=m.Order,
    said=_Said,
    beginning=m.Advance(),
    failure="its blobs cannot be used",
)


class Members(MemberOrders[m.Order, m.Advance, m.End]):
    def __init__(self, peers: Peers | None, consensus: Consensus, tending: Tending) -> None:
        super().__init__(KIND, peers, consensus, tending.carry_out)
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def fetch(self, member: str, order: m.Fetch, on_advance: OnAdvance) -> m.Fetched:
        """Raises Unreached and errors of `jobs.errors`, as those below."""
        async with self._turn(member):
            return as_end(m.Fetched, await self._order(member, order, on_advance))

    async def survey(self, member: str) -> m.Room:
        return as_end(m.Room, await self._order(member, m.Survey()))

    async def verify(self, member: str, order: m.Verify, on_advance: OnAdvance) -> m.Verified:
        async with self._turn(member):
            return as_end(m.Verified, await self._order(member, order, on_advance))

    async def sweep(self, member: str, order: m.Sweep) -> m.Swept:
        async with self._turn(member):
            return as_end(m.Swept, await self._order(member, order))

    async def check(self, member: str, blobs: tuple[str, ...]) -> m.Checked:
        return as_end(m.Checked, await self._order(member, m.Check(blobs)))

    def _turn(self, member: str) -> asyncio.Semaphore:
        """What takes its time waits for its turn; a question about room does not."""
        self._turns = {known: turns for known, turns in self._turns.items() if known in self.ids}
        return self._turns.setdefault(member, asyncio.Semaphore(MAX_SENT))
