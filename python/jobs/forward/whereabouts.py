"""Where a request is to be answered, and how long it may look for that."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from jobs.errors import Unavailable
from jobs.service import Service, Whereabouts

T = TypeVar("T")

PAUSE_S: Final = 0.05
"""Between two tries with the same node, unless it is known by then that another one leads."""
GRACE_S: Final = 0.5
"""A leader that is known to lead no more may still answer within this."""
MAX_HINTS: Final = 3


class NotCarriedOut(Exception):
    """A request that was passed on was certainly not carried out, or does no harm when it is carried out again.

    `hint`: who leads, as far as the asked node knows.
    """

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.hint = hint


class Unanswered(Exception):
    """Who was asked leads no more, and has not answered."""


async def while_it_leads(node: Whereabouts, leader: str, work: Coroutine[Any, Any, T]) -> T:
    """Return what comes of asking the leader; when it has ceased to be that, it has little time left to answer.

    Raises Unanswered when no answer has come then.
    """
    asking = asyncio.ensure_future(work)
    try:
        while not asking.done() and node.leader == leader:
            await asyncio.wait((asking, node.changed()), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            await asyncio.wait([asking], timeout=GRACE_S)
        if not asking.done():
            raise Unanswered("it is not the leader any more, and has not answered")
        return asking.result()
    finally:
        asking.cancel()


class Search:
    """One request's search for a node that answers it."""

    def __init__(self, node: Whereabouts) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._refusal: tuple[str, NotCarriedOut] | None = None
        self._hints = MAX_HINTS

    @property
    def _ends_s(self) -> float:
        return self._began_s + self._node.patience_s

    def refused(self, member: str, refusal: NotCarriedOut) -> None:
        """The member that was asked has not carried the request out."""
        self._refusal = member, refusal

    async def next(self) -> Service | str:
        """Return the control plane if it is here, else the id of the member to ask. Raises Unavailable."""
        node = self._node
        asked = None
        if self._refusal is not None:
            asked, refusal = self._refusal
            if self._loop.time() >= self._ends_s:
                raise Unavailable(
                    f"the leader could not be asked: {refusal}",
                    expected="the same request a little later",
                    retry_after_s=1,
                ) from refusal
            hint, refusal.hint = refusal.hint, None
            if self._hints > 0 and hint is not None and hint not in (asked, node.member):
                self._hints -= 1
                return hint
            if node.leader == asked:
                await self._wait(PAUSE_S)
        while node.control is None:
            if node.leader is not None and not node.leads:
                return node.leader
            if self._loop.time() >= self._ends_s or node.leaderless_s > node.patience_s:
                raise node.no_leader()
            await self._wait(node.patience_s)
        return node.control

    async def _wait(self, most_s: float) -> None:
        await asyncio.wait([self._node.changed()], timeout=max(0.0, min(most_s, self._ends_s - self._loop.time())))
