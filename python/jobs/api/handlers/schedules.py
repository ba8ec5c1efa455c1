"""Schedules: set, read, list, delete, pause, trigger, look ahead."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import AfterRevision, Base, Limit, Query, name, submitted_answer
from jobs.protocol.model import PREVIEW_TIMES


class SchedulesQuery(Query, frozen=True):
    limit: Limit = 100
    cursor: str | None = None


class SetScheduleQuery(Query, frozen=True):
    revision: AfterRevision | None = None
    """Only if it was last set at this revision; 0: only if it is not there."""


class TimesQuery(Query, frozen=True):
    count: Annotated[int, Meta(ge=1, le=PREVIEW_TIMES)] = 10


class ScheduleHandlers(Base):
    async def list_schedules(self, call: Call) -> Answer:
        query: SchedulesQuery = call.query
        return json_answer(await self._service.schedules.page(call.caller, limit=query.limit, cursor=query.cursor))

    async def get_schedule(self, call: Call) -> Answer:
        return json_answer(await self._service.schedules.get(call.caller, name(call)))

    async def put_schedule(self, call: Call) -> Answer:
        query: SetScheduleQuery = call.query
        view, created = await self._service.schedules.put(call.caller, name(call), call.body, query.revision)
        return json_answer(view, 201 if created else 200)

    async def delete_schedule(self, call: Call) -> Answer:
        query: SetScheduleQuery = call.query
        await self._service.schedules.delete(call.caller, name(call), query.revision)
        return Answer(204)

    async def pause_schedule(self, call: Call) -> Answer:
        return json_answer(await self._service.schedules.pause(call.caller, name(call), paused=True))

    async def resume_schedule(self, call: Call) -> Answer:
        return json_answer(await self._service.schedules.pause(call.caller, name(call), paused=False))

    async def trigger_schedule(self, call: Call) -> Answer:
        return submitted_answer(await self._service.schedules.trigger(call.caller, name(call)))

    async def next_times(self, call: Call) -> Answer:
        query: TimesQuery = call.query
        return json_answer(await self._service.schedules.next_times(call.caller, name(call), query.count))

    async def preview_schedule(self, call: Call) -> Answer:
        return json_answer(await self._service.schedules.preview(call.caller, call.body))
