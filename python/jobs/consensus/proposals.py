"""What is proposed: transactions that wait for a command, and commands that wait for the others' answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from jobs.errors import JobsError, NotLeader, StorageFull
from jobs.store import Txn, TxnResult

BATCH_BYTES: Final = 4 << 20
"""A command takes no further transaction once it is this large."""
MAX_COMMAND_TXNS: Final = 2_000
MAX_PENDING_TXNS: Final = 20_000
"""Transactions that may wait for a command; one more is refused."""
MAX_COMMANDS_IN_FLIGHT: Final = 2
"""Commands that wait for the others' answers; meanwhile transactions gather for the next one."""


class Proposal(Struct):
    txn: Txn
    size_bytes: int
    done: asyncio.Future[TxnResult]
    changes_members: bool = False


class Proposals:
    """The transactions of one member that are not done, in order: first those in a command, then those that wait."""

    def __init__(self) -> None:
        self._waiting: list[Proposal] = []
        self._in_flight: list[list[Proposal]] = []

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_PENDING_TXNS

    @property
    def may_append(self) -> bool:
        """Whether there is something to append, and the others are not busy with enough."""
        return bool(self._waiting) and len(self._in_flight) < MAX_COMMANDS_IN_FLIGHT

    def add(self, proposal: Proposal) -> None:
        self._waiting.append(proposal)

    def take(self) -> list[Proposal]:
        """Remove and return what makes up the next command. A change of members has one of its own."""
        count = size = 0
        for proposal in self._waiting:
            if count and (
                size + proposal.size_bytes > BATCH_BYTES
                or count >= MAX_COMMAND_TXNS
                or proposal.changes_members
                or self._waiting[0].changes_members
            ):
                break
            count += 1
            size += proposal.size_bytes
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def sent(self, batch: list[Proposal]) -> None:
        """The command of this batch is being appended."""
        self._in_flight.append(batch)

    def settled(self, batch: list[Proposal]) -> None:
        """It is known what came of the batch's command."""
        if batch in self._in_flight:
            self._in_flight.remove(batch)

    def refuse_waiting(self, error: JobsError) -> None:
        """What is not in the log was certainly not accepted."""
        refused, self._waiting = self._waiting, []
        fail_all(refused, error)

    def fail(self, of_waiting: Exception, of_written: Exception) -> None:
        """Fail everything; of what is in the log nobody knows here what comes of it."""
        waiting, self._waiting = self._waiting, []
        in_flight, self._in_flight = self._in_flight, []
        fail_all(waiting, of_waiting)
        for batch in in_flight:
            fail_all(batch, of_written)


def fail_all(proposals: Sequence[Proposal], error: BaseException) -> None:
    for proposal in proposals:
        if not proposal.done.done():
            proposal.done.set_exception(error)
            # Who waited may have been cancelled by the same stop: that nobody asks then is no fault.
            proposal.done.exception()


def storage_full(why: str) -> StorageFull:
    return StorageFull(why, expected="more room", retry_after_s=5)


def not_leader(leader: str | None) -> NotLeader:
    if leader is None:
        return NotLeader(
            "no leader is known: too few members reach each other, or an election is under way", retry_after_s=1
        )
    return NotLeader("this node does not lead the cluster: another one does", retry_after_s=1)
