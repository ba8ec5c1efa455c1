"""The cluster and its members."""

from __future__ import annotations

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base


class ClusterHandlers(Base):
    async def get_cluster(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.view(call.caller))

    async def init_cluster(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.init(call.caller))

    async def join_cluster(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.join(call.caller, call.body))

    async def make_ticket(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.ticket(call.caller, call.body), 201)

    async def list_tickets(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.tickets(call.caller))

    async def revoke_ticket(self, call: Call) -> Answer:
        await self._backend.cluster.revoke_ticket(call.caller, call.path)
        return Answer(204)

    async def transfer_leadership(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.transfer(call.caller, call.body))

    async def remove_member(self, call: Call) -> Answer:
        return json_answer(await self._backend.cluster.remove(call.caller, call.path))
