"""Dead letters: look at them, repeat them, put them away."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query, job_id, submitted_answer
from jobs.protocol.model import DeadLetterSelection, Name, Reason


class DeadLettersQuery(Query, frozen=True):
    queue: Name | None = None
    reason: Reason | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    limit: Limit = 100
    cursor: str | None = None


class DeadLetterHandlers(Base):
    async def list_dead_letters(self, call: Call) -> Answer:
        query: DeadLettersQuery = call.query
        where = DeadLetterSelection(queue=query.queue, reason=query.reason, owner=query.owner)
        return json_answer(
            await self._service.dead_letters.page(call.caller, where, limit=query.limit, cursor=query.cursor)
        )

    async def redrive(self, call: Call) -> Answer:
        return submitted_answer(await self._service.dead_letters.redrive(call.caller, job_id(call)))

    async def redrive_dead_letters(self, call: Call) -> Answer:
        return json_answer(await self._service.dead_letters.redrive_many(call.caller, call.body))

    async def purge(self, call: Call) -> Answer:
        return json_answer(await self._service.dead_letters.purge(call.caller, job_id(call)))

    async def purge_dead_letters(self, call: Call) -> Answer:
        return json_answer(await self._service.dead_letters.purge_many(call.caller, call.body))
