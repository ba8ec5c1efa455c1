"""Schedules: `client.schedules`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.client.requests import Call, Request, change, get, post, segment, target, write
from jobs.protocol.model import (
    Schedule,
    ScheduleDetail,
    SchedulePage,
    ScheduleTime,
    ScheduleTimes,
    ScheduleView,
    Submitted,
    TimetablePreview,
)

if TYPE_CHECKING:
    from jobs.client.asynchronous import AsyncClient
    from jobs.client.sync import Client

PAGE_SIZE = 1_000


# --- requests --------------------------------------------------------------------------------------------------------


def list_schedules(cursor: str | None) -> Call[SchedulePage]:
    return get("/v1/schedules", SchedulePage, {"limit": PAGE_SIZE, "cursor": cursor})


def get_schedule(name: str) -> Call[ScheduleDetail]:
    return get(_schedule(name), ScheduleDetail)


def set_schedule(name: str, schedule: Schedule, revision: int | None) -> Call[ScheduleView]:
    path = target(_schedule(name), {"revision": revision})
    return write("PUT", path, ScheduleView, schedule)


def delete_schedule(name: str, revision: int | None) -> Request:
    return change("DELETE", target(_schedule(name), {"revision": revision}))


def tell_schedule(name: str, what: str) -> Call[ScheduleView]:
    """`what`: pause or resume."""
    return post(f"{_schedule(name)}/{what}", ScheduleView)


def trigger_schedule(name: str) -> Call[Submitted]:
    return post(f"{_schedule(name)}/trigger", Submitted)


def next_times(name: str, count: int) -> Call[ScheduleTimes]:
    return get(f"{_schedule(name)}/next", ScheduleTimes, {"count": count})


def preview_schedule(wanted: TimetablePreview) -> Call[ScheduleTimes]:
    return post("/v1/schedules:preview", ScheduleTimes, wanted)


def _schedule(name: str) -> str:
    return f"/v1/schedules/{segment(name)}"


# --- clients ---------------------------------------------------------------------------------------------------------


class SchedulesClient:
    """Schedules: `client.schedules`. An owner has their own, administrators change all."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> Iterator[ScheduleView]:
        """Yield the schedules that the caller may see, by name."""
        for page in self._client.pages(list_schedules):
            yield from page.schedules

    def get(self, name: str) -> ScheduleDetail:
        """Return a schedule and the job that it makes; raises NotFound."""
        return self._client.call(get_schedule(name))

    def set(self, name: str, schedule: Schedule, *, revision: int | None = None) -> ScheduleView:
        """Make a schedule, or replace what it says. One whose timetable stays goes on where it is.

        Raises RevisionConflict unless it was last set at `revision`, if that is given; 0: for one that is not there.
        """
        return self._client.call(set_schedule(name, schedule, revision))

    def delete(self, name: str, *, revision: int | None = None) -> None:
        """Delete a schedule; its jobs go on. Raises NotFound, and RevisionConflict as `set` does."""
        self._client.send(delete_schedule(name, revision))

    def pause(self, name: str) -> ScheduleView:
        """Make no jobs until it is resumed."""
        return self._client.call(tell_schedule(name, "pause"))

    def resume(self, name: str) -> ScheduleView:
        """Go on from now; what came while it was paused is passed over."""
        return self._client.call(tell_schedule(name, "resume"))

    def trigger(self, name: str) -> Submitted:
        """Make a job of it now, whatever the timetable says; that stays as it is."""
        return self._client.call(trigger_schedule(name))

    def next(self, name: str, count: int = 10) -> Sequence[ScheduleTime]:
        """Return the times to come."""
        return self._client.call(next_times(name, count)).times

    def preview(self, wanted: TimetablePreview) -> Sequence[ScheduleTime]:
        """Return the times of a timetable that no schedule has."""
        return self._client.call(preview_schedule(wanted)).times


class AsyncSchedulesClient:
    """Schedules: `client.schedules`; see `SchedulesClient`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self) -> AsyncIterator[ScheduleView]:
        """Yield the schedules that the caller may see, by name."""
        async for page in self._client.pages(list_schedules):
            for schedule in page.schedules:
                yield schedule

    async def get(self, name: str) -> ScheduleDetail:
        """Return a schedule and the job that it makes; raises NotFound."""
        return await self._client.call(get_schedule(name))

    async def set(self, name: str, schedule: Schedule, *, revision: int | None = None) -> ScheduleView:
        """Make a schedule, or replace what it says; see `SchedulesClient.set`."""
        return await self._client.call(set_schedule(name, schedule, revision))

    async def delete(self, name: str, *, revision: int | None = None) -> None:
        """Delete a schedule; its jobs go on."""
        await self._client.send(delete_schedule(name, revision))

    async def pause(self, name: str) -> ScheduleView:
        """Make no jobs until it is resumed."""
        return await self._client.call(tell_schedule(name, "pause"))

    async def resume(self, name: str) -> ScheduleView:
        """Go on from now; what came while it was paused is passed over."""
        return await self._client.call(tell_schedule(name, "resume"))

    async def trigger(self, name: str) -> Submitted:
        """Make a job of it now, whatever the timetable says; that stays as it is."""
        return await self._client.call(trigger_schedule(name))

    async def next(self, name: str, count: int = 10) -> Sequence[ScheduleTime]:
        """Return the times to come."""
        return (await self._client.call(next_times(name, count))).times

    async def preview(self, wanted: TimetablePreview) -> Sequence[ScheduleTime]:
        """Return the times of a timetable that no schedule has."""
        return (await self._client.call(preview_schedule(wanted))).times
