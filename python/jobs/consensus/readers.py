"""Reads that wait until a majority has confirmed that this member leads."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs.consensus import clock
from jobs.consensus.member import Member
from jobs.consensus.proposals import not_leader

_NEXT: Final = -1
"""Number of the round of those that wait for the next one."""


class Readers:
    """All reads that come while none is under way share one round of signs of life."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.round_wanted = False

    @property
    def are_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, confirmed: asyncio.Future[None]) -> None:
        """Resolve a future when a round that begins after now is confirmed."""
        self._waiting.append((_NEXT, confirmed))
        self.round_wanted = True

    def begin_round(self) -> None:
        self.round_wanted = False
        number = self._member.raft.begin_round(clock.now_s())
        self._waiting = [(number if wanted == _NEXT else wanted, reader) for wanted, reader in self._waiting]

    def settle(self) -> None:
        """Let those go on whose round is confirmed, and all of them once this member does not lead."""
        if not self._waiting:
            return
        leads, confirmed = self._member.leads, self._member.raft.confirmed_round
        waiting = []
        for wanted, reader in self._waiting:
            if reader.done():
                continue
            if not leads:
                reader.set_exception(not_leader(self._member.raft.leader))
            elif 0 <= wanted <= confirmed:
                reader.set_result(None)
            else:
                waiting.append((wanted, reader))
        self._waiting = waiting

    def fail(self, error: Exception) -> None:
        for _, reader in self._waiting:
            if not reader.done():
                reader.set_exception(error)
        self._waiting = []
