"""Links to other clusters, and how far what goes over them is."""

from __future__ import annotations

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query, name


class ConflictsQuery(Query, frozen=True):
    limit: Limit = 100
    cursor: str | None = None


class ReplicationHandlers(Base):
    async def get_invitation(self, call: Call) -> Answer:
        return json_answer(await self._service.replication.invitation(call.caller))

    async def list_links(self, call: Call) -> Answer:
        return json_answer(await self._service.replication.links(call.caller))

    async def set_link(self, call: Call) -> Answer:
        return json_answer(await self._service.replication.set_link(call.caller, name(call), call.body))

    async def delete_link(self, call: Call) -> Answer:
        await self._service.replication.delete_link(call.caller, name(call))
        return Answer(204)

    async def list_syncs(self, call: Call) -> Answer:
        return json_answer(await self._service.replication.syncs(call.caller))

    async def delete_sync(self, call: Call) -> Answer:
        await self._service.replication.delete_sync(call.caller, name(call))
        return Answer(204)

    async def list_conflicts(self, call: Call) -> Answer:
        query: ConflictsQuery = call.query
        page = await self._service.replication.conflicts(
            call.caller, name(call), limit=query.limit, cursor=query.cursor
        )
        return json_answer(page)
