"""Work on many things, some of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def each(items: Iterable[T], at_once: int, work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Return what the work on each comes to, in their order. When one raises, or this is cancelled, the others are
    cancelled, and have ended when this returns."""
    left = list(enumerate(items))[::-1]
    done: dict[int, R] = {}

    async def some() -> None:
        while left:
            place, item = left.pop()
            done[place] = await work(item)

    tasks = [asyncio.ensure_future(some()) for _ in range(min(at_once, len(left)))]
    if not tasks:
        return []
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return [done[place] for place in sorted(done)]
