"""Arrays: how far they are, some of their tasks cancelled, what failed repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, job_id, submitted_answer
from jobs.api.streams import EVENT_STREAM, StreamAnswer, event
from jobs.protocol.model import ArrayView


class ArrayHandlers(Base):
    async def get_array(self, call: Call) -> Answer:
        return json_answer(await self._service.arrays.view(call.caller, job_id(call)))

    async def watch_array(self, call: Call) -> Answer:
        views = self._service.arrays.follow(call.caller, job_id(call))
        with self._place(call) as place:
            return await StreamAnswer(call.outlet, self._config, place, at_once=False).send(
                _numbered(views), EVENT_STREAM
            )

    async def cancel_tasks(self, call: Call) -> Answer:
        return json_answer(await self._service.arrays.cancel(call.caller, job_id(call), call.body.indices))

    async def retry_array(self, call: Call) -> Answer:
        return submitted_answer(await self._service.arrays.retry(call.caller, job_id(call), call.body))


async def _numbered(views: AsyncIterator[ArrayView]) -> AsyncIterator[bytes]:
    """Number the events, so that a client can tell that it has got on; nothing is missed by starting anew."""
    number = 0
    async for view in views:
        number += 1
        yield event(view, str(number))
