"""Makes blobs of the files that a job has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from jobs.protocol.model import Artefact, OutputSkipped
from jobs.workers import outputs
from jobs.workers.nodeapi import NodeApi
from jobs.workers.outputs import OutputFile
from jobs.workers.transfers import in_thread, upload

AT_A_TIME: Final = 4
"""Jobs whose files are looked for and sent at once; others wait for their turn."""
PIECE_BYTES: Final = 1 << 20


class ArtefactStore:
    """Takes files of any number of jobs to the node."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def store(
        self, node: NodeApi, root: int, patterns: Sequence[str], spared: frozenset[str]
    ) -> tuple[list[Artefact], list[OutputSkipped]]:
        """Return the files below the directory that the patterns name, as blobs by now, and those that are not taken.

        Raises OutputError and JobsError: then some of them may be blobs to which nothing refers.
        """
        async with self._turns:
            found = await in_thread(outputs.find, root, patterns, spared, self._max_bytes)
            stored = [await self._store(node, root, file) for file in found.files]
        return stored, list(found.skipped)

    async def _store(self, node: NodeApi, root: int, file: OutputFile) -> Artefact:
        added = await upload(node, lambda: self._pieces(root, file))
        return Artefact(path=file.path, hash=added.hash, size_bytes=added.size_bytes)

    async def _pieces(self, root: int, file: OutputFile) -> AsyncGenerator[bytes]:
        with outputs.opened(root, file) as handle:
            done = 0
            while done < file.size_bytes:
                piece = await in_thread(outputs.read, handle, file, done, PIECE_BYTES)
                done += len(piece)
                yield piece
            # Before the node is told that this is all: else it drops what has come.
            outputs.check_unchanged(handle, file)
