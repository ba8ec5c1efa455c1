"""What a node tells of an operation that it carries out for a worker, whatever the type of the job: lines, how far it
is, and in the end what it came to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from jobs.protocol.model import OperationAdvance, OperationLine, OperationNews

D = TypeVar("D")
MAX_LINES: Final = 256
"""Lines that wait to be taken; the operation waits for room."""


class News:
    """What is to be told: lines, all of them, and how far it is, the latest only."""

    def __init__(self) -> None:
        self.bell = asyncio.Event()
        """There is something to take, or it is over."""
        self._lines: deque[OperationLine] = deque()
        self._advance: OperationAdvance | None = None
        self._message = ""
        self._room = asyncio.Event()

    def advance(self, done: int, total: int, message: str = "") -> None:
        """So much of `total` is done, which is 0 while nothing is known of it; without a message the last one stays."""
        self._message = message or self._message
        self._advance = OperationAdvance(done=done, total=total, message=self._message)
        self.bell.set()

    async def line(self, **fields: object) -> None:
        """Tell a line, once there is room for it."""
        while len(self._lines) >= MAX_LINES:
            self._room.clear()
            await self._room.wait()
        self._lines.append(OperationLine(text=msgspec.json.encode(fields).decode()))
        self.bell.set()

    def take(self) -> list[OperationNews]:
        """Return what is to be told now."""
        self.bell.clear()
        found: list[OperationNews] = list(self._lines)
        self._lines.clear()
        self._room.set()
        if self._advance is not None:
            found.append(self._advance)
            self._advance = None
        return found


async def told(
    carry_out: Callable[[News], Coroutine[Any, Any, D]],
) -> AsyncGenerator[OperationNews | D]:
    """Yield what is to be told of an operation while it is carried out, and at last what that returns.

    Raises what it raises. It is given up when this is closed, and has ended when that is over.
    """
    news = News()
    work = asyncio.ensure_future(carry_out(news))
    work.add_done_callback(lambda _: news.bell.set())
    try:
        while not work.done():
            await news.bell.wait()
            for event in news.take():
                yield event
        for event in news.take():
            yield event
        yield work.result()
    finally:
        work.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # told above, unless nobody wants to know any more
