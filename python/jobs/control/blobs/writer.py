"""The one writer of the catalogue: decisions that come at the same time are written by one transaction.

Whoever adds 10,000 blobs changes one record of usage 10,000 times. Were each change a transaction of its own, decided
on what it read, all but one of those that come together would have to be decided anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

from msgspec import Struct

from jobs import keys
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.blobs.numbers import Numbers, numbers_of
from jobs.control.blobs.stage import Stage
from jobs.control.once import MAX_TRIES, try_id
from jobs.control.tasks import Spawn
from jobs.control.transitions import check
from jobs.errors import InternalError, OutcomeUnknown, TooManyRequests, Unavailable
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.store import Store, Txn

MAX_WAITING: Final = 8_192
"""Decisions that may wait; one more is refused."""

T = TypeVar("T")
Decide: TypeAlias = Callable[[Stage, int], T]
"""Says by what is staged, and the time in ms, what is to be written and answered. It may be asked again."""


class _Wanted(Struct):
    """A decision that waits to be made and written."""

    decide: Decide[Any]
    request: RequestId
    answer: asyncio.Future[Any]
    tries: int = 0


class Writer:
    """Makes decisions in the order in which they came, and writes as many at once as a transaction takes."""

    def __init__(self, consensus: Consensus, store: Store, spawn: Spawn, replicas: int) -> None:
        self._consensus = consensus
        self._store = store
        self._spawn = spawn
        self._replicas = replicas
        self._waiting: deque[_Wanted] = deque()
        self._running = False
        self.stopped = False
        """Nothing is decided any more."""
        self._used: Numbers | None = None
        self.changes = 0
        """How often the numbers of members were others than at the decision before."""

    @property
    def numbers(self) -> Numbers:
        """How many nodes there are for a blob now."""
        return numbers_of(self._consensus.members, self._replicas)

    async def change(self, decide: Decide[T], request: RequestId = NO_REQUEST) -> T:
        """Decide, and return the answer once what was decided is durable. One with a request is written by itself and
        once. Raises what `decide` raises; nothing of it is written then."""
        await self._consensus.barrier()
        if self.stopped:
            raise _not_leading()
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} changes of blobs wait to be written", retry_after_s=1)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(decide, request, answer))
        if not self._running:
            self._running = True
            self._spawn(self._run())
        return await answer

    def stop(self) -> None:
        """Decide nothing more; what is being written is still answered."""
        self.stopped = True
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        for wanted in self._waiting:
            _fail(wanted, _not_leading())
        self._waiting.clear()

    async def _run(self) -> None:
        try:
            while self._waiting:
                stage, taken = self._decide()
                if taken:
                    await self._write(stage, taken)
        finally:
            self._running = False
            self._fail_waiting()

    def _decide(self) -> tuple[Stage, list[tuple[_Wanted, object]]]:
        """Make as many decisions as one transaction takes; return them with their answers."""
        numbers, now_ms = self.numbers, wall_ms()
        stage, taken = Stage(self._store, numbers), list[tuple[_Wanted, object]]()
        while self._waiting:
            wanted = self._waiting[0]
            if wanted.answer.done():
                self._waiting.popleft()  # nobody waits for it any more
                continue
            if taken and wanted.request:
                break
            part = Stage(self._store, numbers, stage)
            try:
                answer = wanted.decide(part, now_ms)
            except Exception as error:
                self._waiting.popleft()
                _fail(wanted, error)
                continue
            if taken and not stage.has_room_for(part):
                break
            self._waiting.popleft()
            stage.absorb(part)
            taken.append((wanted, answer))
            if wanted.request:
                break
        self._settle_numbers(stage)
        return stage, taken

    def _settle_numbers(self, stage: Stage) -> None:
        """Have nobody believe that by other numbers than these it is known which blobs lack nodes."""
        if self._used is not None and self._used != stage.numbers:
            self.changes += 1
        self._used = stage.numbers
        counted = stage.counted() if stage.ops else None
        if counted is not None and counted != stage.numbers:
            stage.delete(keys.BLOBS_COUNTED)

    async def _write(self, stage: Stage, taken: list[tuple[_Wanted, object]]) -> None:
        first = taken[0][0]
        txn = Txn(stage.compares, stage.ops, request_id=try_id(first.request, first.tries))
        try:
            succeeded = True
            if stage.ops:
                done = await self._consensus.propose(txn, stage.size_bytes)
                check(done)
                succeeded = done.succeeded
        except BaseException as error:
            for wanted, _ in taken:
                _fail(wanted, error if isinstance(error, Exception) else _interrupted())
            if not isinstance(error, Exception):
                raise
            return
        for wanted, answer in taken if succeeded else ():
            if not wanted.answer.done():
                wanted.answer.set_result(answer)
        if not succeeded:
            self._again([wanted for wanted, _ in taken])

    def _again(self, taken: list[_Wanted]) -> None:
        """Have decisions made anew, as something is not any more as it was read."""
        for wanted in reversed(taken):
            wanted.tries += 1
            if self.stopped:
                _fail(wanted, _not_leading())
            elif wanted.tries < MAX_TRIES:
                self._waiting.appendleft(wanted)
            else:
                _fail(wanted, InternalError(f"blobs changed {MAX_TRIES} times while one change was tried"))


def _fail(wanted: _Wanted, error: Exception) -> None:
    if wanted.answer.done():
        return
    wanted.answer.set_exception(error)


def _not_leading() -> Unavailable:
    return Unavailable("this node does not lead any more", retry_after_s=1)


def _interrupted() -> OutcomeUnknown:
    return OutcomeUnknown("this node ceased to lead while the others had not confirmed the write", retry_after_s=1)
