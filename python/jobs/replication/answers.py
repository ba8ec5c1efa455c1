"""Whether other clusters answer: asked of them when somebody wants to know, as another node may be the one that works
with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from jobs.errors import JobsError

PATIENCE_S: Final = 5.0


class Answers:
    """`ask` asks a cluster by the name of its link; it is there once this node has a way to others."""

    def __init__(self) -> None:
        self.ask: Callable[[str], Awaitable[object]] | None = None

    async def problem(self, link: str) -> str:
        """Return why a cluster does not answer; empty: it does."""
        if self.ask is None:
            return "this node is about to begin"
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.ask(link)
        except TimeoutError:
            return f"it has said nothing for {PATIENCE_S:g} s"
        except JobsError as error:
            return str(error)
        return ""
