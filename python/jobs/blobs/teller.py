"""Tells the leader what this node has and has no more, many things together, in the order in which they came about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from jobs.blobs.messages import MAX_TOLD
from jobs.errors import JobsError

Tell: TypeAlias = Callable[[tuple[str, ...], tuple[str, ...]], Awaitable[None]]
"""Has the leader take note of what is here and what is gone."""


class Teller:
    """What comes while the leader is told of something is told next, together: so what is said last of a blob is what
    the leader hears last."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._next: dict[str, bool] = {}
        self._told: asyncio.Future[None] | None = None
        """Of what is told next."""
        self._telling: asyncio.Task[None] | None = None

    async def tell(self, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        """Return when the leader knows. Raises what asking it does; then it may know, or not."""
        news = dict.fromkeys(gone, False) | dict.fromkeys(here, True)
        if not news:
            return
        self._next |= news
        loop = asyncio.get_running_loop()
        if self._told is None:
            self._told = loop.create_future()
        told = self._told
        if self._telling is None:
            self._telling = loop.create_task(self._tell_all())
        await asyncio.shield(told)

    def stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    async def _tell_all(self) -> None:
        try:
            while self._told is not None:
                news, told = self._next, self._told
                self._next, self._told = {}, None
                try:
                    blobs = list(news)
                    for start in range(0, len(blobs), MAX_TOLD):
                        some = blobs[start : start + MAX_TOLD]
                        here = tuple(blob for blob in some if news[blob])
                        await self._tell(here, tuple(blob for blob in some if not news[blob]))
                except JobsError as error:
                    told.set_exception(error)
                    told.exception()  # whoever waited may have given up
                except BaseException:
                    told.cancel()
                    raise
                else:
                    told.set_result(None)
        finally:
            self._telling = None
