"""A member with a store of blobs in a process of its own, driven line by line; and the parent's end of it.

python -m tests.support.blobpeer DIR NAME BIND LIMITS
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from jobs._native import NativeError, arm_failpoints
from jobs.blobs import BlobStore, FetchFailed, Progress
from tests.support.netpeer import NetProcess, Peer, net_process, peak_bytes, tell

MODULE = "tests.support.blobpeer"


def content(size_bytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def made(size_bytes: int, seed: int, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
    """Return content of any size in little memory; equal to `content` up to one piece."""
    source = random.Random(seed)
    while size_bytes > 0:
        yield source.randbytes(min(piece_bytes, size_bytes))
        size_bytes -= piece_bytes


async def pieces(size_bytes: int, seed: int, piece_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
    for piece in made(size_bytes, seed, piece_bytes):
        yield piece


class BlobPeer(Peer):
    """Adds, fetches and examines as it is told."""

    def __init__(self, folder: Path, name: str, bind: str, limits: dict[str, int], blobs: BlobStore) -> None:
        super().__init__(folder, name, bind, limits)
        self._blobs = blobs
        blobs.join(self._net.endpoint)

    async def _carry_out(self, order: dict[str, Any]) -> None:
        if "add" in order:
            self._keep(self._add(order["add"], order["seed"], order.get("count", 1)))
        elif "add_file" in order:
            with Path(order["add_file"]).open("rb") as source:
                tell(added=(await self._blobs.add_file(source.fileno())).hash)
        elif "fetch" in order:
            options = {name: order[name] for name in ("children", "stall_s") if name in order}
            self._keep(self._fetch(order["fetch"], order["providers"], options))
        elif "verify" in order:
            tell(verdict=await self._blobs.verify(order["verify"]))
        elif "usage" in order:
            tell(usage=await self._blobs.usage(), peak_bytes=peak_bytes())
        else:
            await super()._carry_out(order)

    async def _add(self, size_bytes: int, seed: int, count: int) -> None:
        for number in range(count):
            try:
                added = await self._blobs.add(pieces(size_bytes, seed + number))
                tell(added=added.hash, seed=seed + number)
            except NativeError as error:
                tell(failed=type(error).__name__, detail=str(error))
        tell(all_added=count)

    async def _fetch(self, blob: str, providers: list[str], options: dict[str, Any]) -> None:
        def on_progress(now: Progress) -> None:
            tell(progress=now.done_bytes, of=now.total_bytes)

        try:
            fetched = await self._blobs.fetch(blob, providers, on_progress=on_progress, **options)
        except FetchFailed as failed:
            tell(failed=failed.kind, detail=failed.detail)
        else:
            tried = [(tried.size_bytes, tried.reason) for tried in fetched.providers]
            tell(fetched=blob, size=fetched.size_bytes, blobs=fetched.blobs, tried=tried, peak_bytes=peak_bytes())


@contextlib.asynccontextmanager
async def blob_process(folder: Path, name: str, **options: Any) -> AsyncIterator[NetProcess]:
    async with net_process(folder, name, module=MODULE, **options) as process:
        yield process


async def main() -> None:
    folder, name, bind, limits = sys.argv[1:]
    arm_failpoints()
    blobs = await BlobStore.open(Path(folder) / "blobs", min_free_bytes=0)
    await BlobPeer(Path(folder), name, bind, json.loads(limits), blobs).serve()
    await blobs.close()


if __name__ == "__main__":
    asyncio.run(main())
