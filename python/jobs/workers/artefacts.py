"""Makes blobs of the files that a job has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from jobs.protocol.model import Artefact, OutputSkipped
from jobs.workers import outputs
from jobs.workers.blob.api import NodeApi
from jobs.workers.outputs import OutputFile
from jobs.workers.transfers import upload

T = TypeVar("T")
THREADS: Final = 2
AT_A_TIME: Final = 4
"""Jobs whose files are looked for and sent at once; others wait for their turn."""
PIECE_BYTES: Final = 1 << 20


class ArtefactStore:
    """Takes files of any number of jobs to the node."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="artefacts")

    async def store(
        self, node: NodeApi, root: int, patterns: Sequence[str], spared: frozenset[str]
    ) -> tuple[list[Artefact], list[OutputSkipped]]:
        """Return the files below the directory that the patterns name, as blobs by now, and those that are not taken.

        Raises OutputError and JobsError: then some of them may be blobs to which nothing refers.
        """
        async with self._turns:
            found = await self._run(outputs.find, root, patterns, spared, self._max_bytes)
            stored = [await self._store(node, root, file) for file in found.files]
        return stored, list(found.skipped)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _store(self, node: NodeApi, root: int, file: OutputFile) -> Artefact:
        added = await upload(node, lambda: self._pieces(root, file))
        return Artefact(path=file.path, hash=added.hash, size_bytes=added.size_bytes)

    async def _pieces(self, root: int, file: OutputFile) -> AsyncGenerator[bytes]:
        with outputs.opened(root, file) as handle:
            done = 0
            while done < file.size_bytes:
                piece = await self._run(outputs.read, handle, file, done, PIECE_BYTES)
                done += len(piece)
                yield piece
            # Before the node is told that this is all: else it drops what has come.
            outputs.check_unchanged(handle, file)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what the work returns; whoever gives up meanwhile waits for its end, as it uses what is theirs."""
        running = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
