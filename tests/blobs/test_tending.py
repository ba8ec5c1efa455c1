"""What a node does with its own blobs while something else happens to them: a real store, and a catalogue that answers
when the test says so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from jobs.blobs import BlobStore
from jobs.blobs import messages as m
from jobs.blobs.catalogue import Catalogue, Entry
from jobs.blobs.replication import unheard
from jobs.blobs.store import Outcome
from jobs.blobs.tending import Tending
from tests.support.blobpeer import pieces
from tests.support.loop import on_loop

ME = "me"
SWEEP = m.Sweep("", 100, 0)


class Said:
    """A catalogue that wants nothing, and waits for the test before it says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.held_now: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.wants: set[str] = set()
        self.listed: tuple[Entry, ...] = ()

    async def wanted(self, member: str, blobs: tuple[str, ...]) -> tuple[bool, ...]:
        self.asked.set()
        answer = tuple(blob in self.wants for blob in blobs)
        await self.may_answer.wait()
        return answer

    async def held(self, member: str, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        self.held_now.append((here, gone))

    async def entries(self, after: str, limit: int, holder: str = "") -> tuple[Entry, ...]:
        return tuple(entry for entry in self.listed if entry.hash > after)[:limit]


class SlowStore(BlobStore):
    """A store whose deletions wait for the test."""

    may_delete: asyncio.Event
    deleting: asyncio.Event

    async def delete(self, blob: str, min_age_ms: int = 0) -> tuple[Outcome, int]:
        self.deleting.set()
        await self.may_delete.wait()
        return await super().delete(blob, min_age_ms)


@asynccontextmanager
async def node(folder: Path, grace_ms: int = 0) -> AsyncIterator[tuple[SlowStore, Said, Tending]]:
    store = await SlowStore.open(folder / "blobs", min_free_bytes=0)
    assert isinstance(store, SlowStore)
    store.may_delete, store.deleting = asyncio.Event(), asyncio.Event()
    said = Said()
    tending = Tending(store, cast("Catalogue", said), ME, max_blob_bytes=1 << 40, grace_ms=grace_ms)
    try:
        yield store, said, tending
    finally:
        await store.close()


async def add(store: BlobStore, seed: int) -> str:
    return (await store.add(pieces(30_000, seed))).hash


@on_loop
async def test_what_is_claimed_while_a_sweep_asks_about_it_stays(tmp_path: Path) -> None:
    async with node(tmp_path) as (store, said, tending):
        claimed, loose = await add(store, 1), await add(store, 2)
        store.may_delete.set()
        sweep = asyncio.ensure_future(tending.sweep(SWEEP))
        await said.asked.wait()
        # The leader has answered by what it knew before this
        fetched = await tending.fetch([m.Sought(claimed)], unheard)
        assert fetched.here == (claimed,)
        assert said.held_now == [((claimed,), ())]
        said.may_answer.set()
        swept = await sweep
        assert [one.hash for one in swept.removed] == [loose]
        assert swept.spared == {"held": 1}
        assert await store.stat(claimed) is not None
        assert await store.stat(loose) is None


@on_loop
async def test_who_wants_a_blob_that_is_being_deleted_waits_and_does_not_claim_it(tmp_path: Path) -> None:
    async with node(tmp_path) as (store, said, tending):
        blob = await add(store, 1)
        said.may_answer.set()
        sweep = asyncio.ensure_future(tending.sweep(SWEEP))
        await store.deleting.wait()
        fetch = asyncio.ensure_future(tending.fetch([m.Sought(blob)], unheard))
        await asyncio.sleep(0.05)
        assert not fetch.done()
        store.may_delete.set()
        assert [one.hash for one in (await sweep).removed] == [blob]
        fetched = await fetch
        assert fetched.here == ()
        assert fetched.failures[0].kind == "unavailable"
        assert all(here == () for here, _ in said.held_now)


@on_loop
async def test_two_sweeps_and_an_upload_that_is_refused_delete_a_blob_once(tmp_path: Path) -> None:
    async with node(tmp_path) as (store, said, tending):
        blob = await add(store, 1)
        said.may_answer.set()
        first = asyncio.ensure_future(tending.sweep(SWEEP))
        await store.deleting.wait()
        store.deleting.clear()
        others = [asyncio.ensure_future(tending.sweep(SWEEP)), asyncio.ensure_future(tending.discard(blob))]
        fetch = asyncio.ensure_future(tending.fetch([m.Sought(blob)], unheard))
        done, _ = await asyncio.wait([*others, fetch], timeout=0.05)
        assert not done
        store.may_delete.set()
        assert [one.hash for one in (await first).removed] == [blob]
        swept, _ = await asyncio.gather(*others)
        assert (swept.removed, swept.spared) == ((), {}), "it is told of once"
        assert (await fetch).here == ()
        assert not store.deleting.is_set(), "nobody else has it deleted"


@on_loop
async def test_what_is_young_or_wanted_stays_and_a_look_deletes_nothing(tmp_path: Path) -> None:
    async with node(tmp_path, grace_ms=3_600_000) as (store, said, tending):
        store.may_delete.set()
        said.may_answer.set()
        young = await add(store, 1)
        # An order cannot ask for less than the node's own grace period
        swept = await tending.sweep(SWEEP)
        assert (swept.examined, swept.removed, swept.spared) == (1, (), {"recent": 1})
        assert (await tending.sweep(m.Sweep("", 100, dry_run=True))).removed == ()
        assert [one.hash for one in (await tending.sweep(m.Sweep("", 100, 0, dry_run=True))).removed] == [young]
        assert await store.stat(young) is not None
    async with node(tmp_path) as (store, said, tending):
        store.may_delete.set()
        said.may_answer.set()
        kept = await add(store, 2)
        said.wants = {kept}
        looked = await tending.sweep(m.Sweep("", 100, 0, dry_run=True))
        assert [one.hash for one in looked.removed] == [young]
        assert await store.stat(young) is not None
        swept = await tending.sweep(SWEEP)
        assert [one.hash for one in swept.removed] == [young]
        assert await store.stat(kept) is not None


@on_loop
async def test_a_sweep_goes_page_by_page(tmp_path: Path) -> None:
    async with node(tmp_path) as (store, said, tending):
        store.may_delete.set()
        said.may_answer.set()
        blobs = sorted([await add(store, seed) for seed in range(7)])
        said.wants = set(random.Random(1).sample(blobs, 3))
        after: str | None = ""
        removed, pages = [], 0
        while after is not None:
            swept = await tending.sweep(m.Sweep(after, 3, 0))
            removed += [one.hash for one in swept.removed]
            pages, after = pages + 1, swept.after
        assert pages == 3
        assert removed == [blob for blob in blobs if blob not in said.wants]


@on_loop
async def test_what_is_not_there_is_told_and_nothing_else(tmp_path: Path) -> None:
    async with node(tmp_path) as (store, said, tending):
        here = await add(store, 1)
        checked = await tending.check([here, "0" * 64])
        assert checked.gone == ("0" * 64,)
        assert said.held_now == [((), ("0" * 64,))]
