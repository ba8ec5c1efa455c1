"""Jobs that wait for others: one more dependency, and the graph around a job."""

from __future__ import annotations

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, ReadQuery, job_id


class GraphQuery(ReadQuery, frozen=True):
    limit: Limit = 500
    """Jobs; those nearest to the job are shown."""


class DependencyHandlers(Base):
    async def depend(self, call: Call) -> Answer:
        return json_answer(await self._service.depend(call.caller, job_id(call), call.body.depends_on))

    async def graph(self, call: Call) -> Answer:
        query: GraphQuery = call.query
        return json_answer(await self._service.graph(call.caller, job_id(call), limit=query.limit))
