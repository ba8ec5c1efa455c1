"""How far a sync of tags says that it is, between two sides of which one is asked and nothing changes."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import structs

from jobs.protocol.model import Throttle
from jobs.records import CursorRecord
from jobs.replication import messages as m
from jobs.replication.run import POLL_S, Progress
from jobs.replication.tagsync import TagSync
from jobs.replication.throttle import Limiter
from tests.support.loop import on_loop
from tests.support.sides import FakeClock, work


class Quiet:
    """A side whose tags do not change, though its revision is well beyond their last change."""

    def __init__(self, cluster: str, revision: int, cursor: CursorRecord | None = None) -> None:
        self._about = m.About(cluster, cluster, revision, 1, 1_000_000)
        self._cursor = cursor
        self._moved = 1

    async def about(self) -> m.About:
        return self._about

    async def upstream(self, place: str) -> frozenset[str]:
        return frozenset()

    async def cursor(self, origin: str, name: str) -> m.Positioned | None:
        return None if self._cursor is None else m.Positioned(self._cursor, self._moved)

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied:
        self._cursor, self._moved = batch.cursor, self._moved + 1
        return m.Applied(self._moved)

    async def tags_changed(self, prefix: str, after_revision: int, *, wait_s: float) -> int:
        await asyncio.sleep(wait_s)
        return after_revision


@on_loop
async def test_one_that_goes_on_lags_behind_in_nothing_that_is_no_tag() -> None:
    cursor = CursorRecord(source="one", prefix="a/", target_prefix="a/", is_tags=True, position=40)
    source: Any = Quiet("one", 100)
    target: Any = Quiet("two", 7, cursor)
    clock, in_step = FakeClock(), asyncio.get_running_loop().create_future()

    def tell(progress: Progress) -> None:
        if progress.behind_since_ms is None and not in_step.done():
            in_step.set_result(structs.replace(progress))

    # 60 revisions of the source came after the cursor's position, none of which has to do with tags
    wanted = work(prefix="a/", is_tags=True, continuous=True, holder="job/2")
    going = asyncio.ensure_future(
        TagSync(source, target, wanted, Limiter(Throttle(), clock.now_s()), clock.clock, tell).run()
    )
    async with asyncio.timeout(POLL_S / 3):
        progress = await in_step
    assert (progress.position, progress.source_revision) == (100, 100)
    going.cancel()
