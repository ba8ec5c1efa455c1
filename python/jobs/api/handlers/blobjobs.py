"""What workers have the node do for jobs of type blob."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from jobs.api.answer import Answer
from jobs.api.call import Call
from jobs.api.handlers.content import BlobContentCalls
from jobs.api.problem import as_jobs_error
from jobs.api.streams import NDJSON, StreamAnswer, failed_line, line
from jobs.errors import Forbidden
from jobs.protocol.ids import ACT_FOR_HEADER


class BlobJobCalls(BlobContentCalls):
    async def perform_blob_operation(self, call: Call) -> Answer:
        if ACT_FOR_HEADER not in call.ask.headers:
            raise Forbidden("only workers have operations carried out", expected="a job of type blob")
        with self._blob_place(call) as place:
            # At once, as it may take long until there is something to tell; what fails is told on a line.
            return await StreamAnswer(call.outlet, self._config, place, at_once=True).send(self._told(call), NDJSON)

    async def _told(self, call: Call) -> AsyncIterator[bytes]:
        try:
            async with aclosing(self._backend.blob_operations.perform(call.caller, call.body)) as events:
                async for event in events:
                    yield line(event)
        except Exception as error:
            yield failed_line(as_jobs_error(error))
