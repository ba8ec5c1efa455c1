"""Queues, and the owners of jobs."""

from __future__ import annotations

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query, name
from jobs.errors import InvalidRequest

MAX_UID = (1 << 32) - 2
"""The last one stands for "no user"."""


class QueuesQuery(Query, frozen=True):
    limit: Limit = 100
    cursor: str | None = None


class QueueHandlers(Base):
    async def list_queues(self, call: Call) -> Answer:
        query: QueuesQuery = call.query
        return json_answer(await self._service.queues.page(call.caller, limit=query.limit, cursor=query.cursor))

    async def get_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.get(call.caller, name(call)))

    async def put_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.put(call.caller, name(call), call.body))

    async def change_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.change(call.caller, name(call), call.body))

    async def pause_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.pause(call.caller, name(call), paused=True))

    async def resume_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.pause(call.caller, name(call), paused=False))

    async def drain_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.drain(call.caller, name(call), draining=True))

    async def open_queue(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.drain(call.caller, name(call), draining=False))

    async def get_owner(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.get_owner(call.caller, _uid(call)))

    async def put_owner(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.put_owner(call.caller, _uid(call), call.body))

    async def change_owner(self, call: Call) -> Answer:
        return json_answer(await self._service.queues.change_owner(call.caller, _uid(call), call.body))


def _uid(call: Call) -> int:
    text = call.path
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_UID):
        raise InvalidRequest(f"{text!r:.200} is no uid", field="id", expected=f"a number from 0 to {MAX_UID}")
    return int(text)
