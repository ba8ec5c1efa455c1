"""The store of blobs on the event loop, alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs._native import CorruptError, NativeError, NotFoundError
from jobs.blobs import BlobStore, FetchFailed
from tests.support.blobpeer import content, pieces
from tests.support.loop import on_loop

NOWHERE = "0" * 64


@contextlib.asynccontextmanager
async def store_in(folder: Path) -> AsyncIterator[BlobStore]:
    store = await BlobStore.open(folder, min_free_bytes=0)
    try:
        yield store
    finally:
        await store.close()


async def read(store: BlobStore, blob: str, start: int = 0, end: int | None = None) -> bytes:
    async with store.reading(blob) as reading:
        return b"".join([piece async for piece in reading.pieces(start, end)])


@on_loop
async def test_a_blob_is_added_read_exported_listed_and_deleted(tmp_path: Path) -> None:
    data = content(1 << 20, 1) * 3 + b"end"
    (tmp_path / "source").write_bytes(data)
    async with store_in(tmp_path / "blobs") as store:
        seen: list[int] = []
        with (tmp_path / "source").open("rb") as source:
            added = await store.add_file(source.fileno(), seen.append)
        assert added.size_bytes == len(data) == seen[-1]
        assert not added.existed
        assert sorted(seen) == seen
        for start, end in ((0, None), (5, 6), (1_000_000, 2_500_000), (len(data), None)):
            assert await read(store, added.hash, start, end) == data[start:end]
        assert await store.export(added.hash, tmp_path / "target") == len(data)
        assert (tmp_path / "target").read_bytes() == data
        stat = await store.stat(added.hash)
        assert await store.page() == [stat]
        assert await store.page(added.hash) == []
        async with store.reading(added.hash):
            assert await store.delete(added.hash) == ("held", 0)
        assert await store.delete(added.hash, min_age_ms=60_000) == ("recent", 0)
        assert (await store.delete(added.hash))[0] == "deleted"
        assert await store.stat(added.hash) is None
        with pytest.raises(NotFoundError):
            await read(store, added.hash)


@on_loop
async def test_what_is_given_up_or_fails_leaves_nothing(tmp_path: Path) -> None:
    async with store_in(tmp_path / "blobs") as store:
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield bytes(1 << 20)
            begun.set()
            await asyncio.Event().wait()

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(1 << 20)
            raise ConnectionResetError("the client has gone")

        adding = asyncio.ensure_future(store.add(endless()))
        await begun.wait()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        with pytest.raises(ConnectionResetError):
            await store.add(broken())
        await store.add(pieces(10, 1))  # the threads have come to this, so to what was before
        while os.listdir(tmp_path / "blobs/incoming"):
            await asyncio.sleep(0)
        assert (await store.usage())["blobs"] == 1


@on_loop
async def test_a_damaged_blob_is_not_handed_out(tmp_path: Path) -> None:
    async with store_in(tmp_path / "blobs") as store:
        data = content(3_000_000, 2)
        blob = (await store.add(pieces(3_000_000, 2, 4 << 20))).hash
        file = tmp_path / "blobs/data" / blob[:2] / blob
        wrong = bytearray(data)
        wrong[2_000_000] ^= 1
        file.write_bytes(wrong)
        assert await read(store, blob, 0, 1 << 20) == data[: 1 << 20], "what is not damaged is still read"
        with pytest.raises(CorruptError, match="put aside"):
            await read(store, blob)
        with pytest.raises(NotFoundError):
            await read(store, blob)
        assert (await store.usage())["quarantined"] == 1
        await store.add(pieces(3_000_000, 2, 4 << 20))
        assert await store.verify(blob) == "sound"
        assert await read(store, blob) == data


@on_loop
async def test_a_node_alone_fetches_from_nobody(tmp_path: Path) -> None:
    async with store_in(tmp_path / "blobs") as store:
        with pytest.raises(FetchFailed) as failed:
            await store.fetch(NOWHERE, ["1" * 64])
        assert failed.value.kind == "unavailable"
        assert "not on a network" in failed.value.providers[0].reason
        with pytest.raises(FetchFailed, match="none was named"):
            await store.fetch(NOWHERE, [])
        for wrong in ("", "../../x", "A" * 64, "0" * 63):
            with pytest.raises(NativeError, match="64 digits"):
                await store.fetch(wrong, [])
            with pytest.raises(NativeError, match="64 digits"):
                await store.stat(wrong)


@on_loop
async def test_a_store_that_is_closed_says_so(tmp_path: Path) -> None:
    async with store_in(tmp_path / "blobs") as store:
        blob = (await store.add(pieces(100, 3))).hash
        with pytest.raises(NativeError, match="in use"):
            await BlobStore.open(tmp_path / "blobs")
    await store.close()
    with pytest.raises(NativeError, match="stops"):
        await store.stat(blob)
    with pytest.raises(FetchFailed, match="stops"):
        await store.fetch(blob, [])
    async with store_in(tmp_path / "blobs") as again:
        assert len(await read(again, blob)) == 100
