"""What workers have the node carry out for their jobs, told step by step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from jobs.api.answer import Answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base
from jobs.api.problem import as_jobs_error
from jobs.api.streams import NDJSON, StreamAnswer, failed_line, line
from jobs.errors import Forbidden
from jobs.protocol.ids import ACT_FOR_HEADER


class OperationCalls(Base):
    async def perform_blob_operation(self, call: Call) -> Answer:
        check_worker(call, "blob")
        return await self._tell(call, self._backend.blob_operations.perform(call.caller, call.body))

    async def perform_maintenance_operation(self, call: Call) -> Answer:
        check_worker(call, "maintenance")
        return await self._tell(call, self._backend.maintenance_operations.perform(call.caller, call.body))

    async def perform_replication_operation(self, call: Call) -> Answer:
        check_worker(call, "replication")
        return await self._tell(call, self._backend.replication_operations.perform(call.caller, call.body))

    async def _tell(self, call: Call, events: AsyncGenerator[Any]) -> Answer:
        """Send the events of an operation, which is given up when there is nobody to tell of it any more."""
        with self._transfer(call) as place:
            # At once, as it may take long until there is something to tell; what fails is told on a line.
            return await StreamAnswer(call.outlet, self._config, place, at_once=True).send(_lines(events), NDJSON)


def check_worker(call: Call, job_type: str) -> None:
    """Raise Forbidden for whoever asks that is no worker, which asks for the owner of a job."""
    if ACT_FOR_HEADER not in call.ask.headers:
        raise Forbidden("only workers have operations carried out", expected=f"a job of type {job_type}")


async def _lines(events: AsyncGenerator[Any]) -> AsyncIterator[bytes]:
    try:
        async with aclosing(events):
            async for event in events:
                yield line(event)
    except Exception as error:
        yield failed_line(as_jobs_error(error))
