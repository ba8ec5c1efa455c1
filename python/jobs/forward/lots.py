"""Requests that come in one turn of the event loop travel to the leader together: an exchange between nodes costs as
much as carrying out a small request, and one can carry many.

Reads travel apart from changes, so that no read waits for a disk.
"""

from __future__ import annotations

import asyncio
from typing import Final

from jobs.cluster import Asked
from jobs.errors import InternalError
from jobs.forward.envelope import MAX_LOT, Envelope, EnvelopeError, Lot, NotLeading, Replies, Request, decode, encode
from jobs.forward.reach import Reach
from jobs.forward.whereabouts import Unanswered, while_it_leads
from jobs.net import RequestFailed
from jobs.service import Whereabouts

LOT_BYTES: Final = 256 << 10
"""A lot takes no further request once it is this large."""
ANSWER_S: Final = 60.0
"""For an answer that does not wait for anything."""


class Lots:
    """Asks other nodes."""

    def __init__(self, reach: Reach, site: Whereabouts) -> None:
        self._reach = reach
        self._site = site
        self._open: dict[tuple[str, bool], _Filling] = {}
        self._exchanges: set[asyncio.Task[None]] = set()

    async def ask(self, leader: str, request: Request) -> Envelope:
        """Return the reply to a request. Raises RequestFailed, Unanswered, and InternalError for what is none.

        Given up by all who wait for a lot, it is given up at the leader too.
        """
        data = encode(request)
        key = leader, request.method == "GET"
        lot = self._open.get(key)
        if lot is None or lot.size + len(data) > LOT_BYTES or len(lot.requests) >= MAX_LOT:
            lot = self._open[key] = _Filling()
            asyncio.get_running_loop().call_soon(self._send, key, lot)
        reply = lot.add(data)
        try:
            return await reply
        finally:
            lot.leave()

    def _send(self, key: tuple[str, bool], lot: _Filling) -> None:
        if self._open.get(key) is lot:
            del self._open[key]
        if lot.waiting:
            lot.exchange = task = asyncio.get_running_loop().create_task(self._exchange(key[0], lot))
            self._exchanges.add(task)
            task.add_done_callback(self._exchanges.discard)

    async def _exchange(self, leader: str, lot: _Filling) -> None:
        alone = len(lot.requests) == 1
        data = lot.requests[0] if alone else encode(Lot(lot.requests))
        try:
            asking = self._reach.request(leader, Asked.FORWARD, data, ANSWER_S)
            answer = decode(await while_it_leads(self._site, leader, asking))
            if alone or isinstance(answer, NotLeading):
                replies = [answer] * len(lot.requests)
            elif isinstance(answer, Replies) and len(answer.parts) == len(lot.requests):
                replies = [decode(part) for part in answer.parts]
            else:
                raise EnvelopeError(f"{type(answer).__name__} is no answer to a lot")
        except (RequestFailed, Unanswered) as failed:
            lot.fail(failed)
        except EnvelopeError as error:
            lot.fail(InternalError(f"the leader's answer cannot be read: {error}"))
        except Exception as error:
            # Whoever waits is told, whatever it was; the loop logs it.
            lot.fail(InternalError(f"requests could not be sent to the leader: {error}"))
            raise
        else:
            lot.settle(replies)


class _Filling:
    """A lot: its requests, and who waits for the replies."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.size = 0
        self.waiting = 0
        self.exchange: asyncio.Task[None] | None = None
        self._replies: list[asyncio.Future[Envelope]] = []

    def add(self, data: bytes) -> asyncio.Future[Envelope]:
        reply: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self.requests.append(data)
        self._replies.append(reply)
        self.size += len(data)
        self.waiting += 1
        return reply

    def leave(self) -> None:
        """One less waits."""
        self.waiting -= 1
        if not self.waiting and self.exchange is not None:
            self.exchange.cancel()

    def settle(self, replies: list[Envelope]) -> None:
        for waiting, reply in zip(self._replies, replies, strict=True):
            if not waiting.done():
                waiting.set_result(reply)

    def fail(self, error: Exception) -> None:
        for waiting in self._replies:
            if not waiting.done():
                waiting.set_exception(error)
