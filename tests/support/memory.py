"""A consensus of one member over the state machine in memory: what control needs of the real one, without a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jobs._native import MemoryStore
from jobs.errors import Unavailable
from jobs.store import Txn, TxnResult, decode_results, encode_command


class MemoryConsensus:
    """Applies what is proposed in one turn of the event loop as one command, in the next turn.

    Like the real one, it goes on with what was proposed when nobody waits for it any more.
    """

    is_leader = False
    leader: str | None = None
    me = "test"
    election_max_s = 1.0
    no_room = None
    fsyncs = commands = transactions = 0

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._queue: list[tuple[Txn, asyncio.Future[TxnResult]]] = []
        self.on_applied: Callable[[], None] = lambda: None
        self.on_leadership: Callable[[bool], None] = lambda leads: None
        self.on_leader: Callable[[], None] = lambda: None

    def lead(self, leads: bool) -> None:
        """Begin or cease to lead."""
        self.is_leader = leads
        self.leader = self.me if leads else None
        self.on_leadership(leads)
        self.on_leader()

    def propose(self, txn: Txn, size_bytes: int = 256) -> asyncio.Future[TxnResult]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[TxnResult] = loop.create_future()
        if not self.is_leader:
            done.set_exception(Unavailable("it does not lead"))
            return done
        if not self._queue:
            loop.call_soon(self._apply)
        self._queue.append((txn, done))
        return done

    def _apply(self) -> None:
        proposed, self._queue = self._queue, []
        entry = (self._store.applied_index + 1, 1, encode_command([txn for txn, _ in proposed]))
        (results,) = self._store.apply([entry])
        for (_, done), result in zip(proposed, decode_results(results), strict=True):
            if not done.done():
                done.set_result(result)
        self.on_applied()

    async def barrier(self) -> None:
        """Whatever was acknowledged has been applied."""
        if not self.is_leader:
            raise Unavailable("it does not lead")
