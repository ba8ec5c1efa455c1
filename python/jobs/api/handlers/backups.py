"""What workers read of the store for backups and exports."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, Final

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import AfterRevision, Base, Query
from jobs.api.streams import NOT_STORED, StreamAnswer
from jobs.protocol.ids import CLUSTER_HEADER

OCTETS: Final = "application/octet-stream"
FRAMES: Final = "application/x-jobs-frames"
"""Of jobs.backups.frames."""


class ChangesQuery(Query, frozen=True):
    after: AfterRevision


class RowsQuery(Query, frozen=True):
    prefix: Annotated[str, Meta(pattern="^/", max_length=1024)]
    revision: AfterRevision = 0
    keys_only: bool = False


class StateQuery(Query, frozen=True):
    revision: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


class BackupCalls(Base):
    async def read_snapshot(self, call: Call) -> Answer:
        with self._transfer(call) as place:
            file = await place.result(self._backend.backup_source.snapshot(call.caller))
            try:
                headers = {
                    **NOT_STORED,
                    "Content-Length": str(file.size_bytes),
                    CLUSTER_HEADER: file.cluster,
                }
                answer = StreamAnswer(call.outlet, self._config, place, at_once=False, headers=headers)
                return await answer.send(file.pieces(), OCTETS)
            finally:
                os.close(file.descriptor)

    async def read_changes(self, call: Call) -> Answer:
        query: ChangesQuery = call.query
        return await self._frames(call, self._backend.backup_source.changes(call.caller, query.after))

    async def read_rows(self, call: Call) -> Answer:
        query: RowsQuery = call.query
        rows = self._backend.backup_source.rows(
            call.caller, query.prefix.encode(), query.revision, keys_only=query.keys_only
        )
        return await self._frames(call, rows)

    async def read_state(self, call: Call) -> Answer:
        query: StateQuery = call.query
        with self._transfer(call) as place:
            return json_answer(await place.result(self._backend.backup_source.state(call.caller, query.revision)))

    async def _frames(self, call: Call, frames: AsyncIterator[bytes]) -> Answer:
        with self._transfer(call) as place:
            return await StreamAnswer(call.outlet, self._config, place, at_once=False).send(frames, FRAMES)
