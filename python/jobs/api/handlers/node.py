"""Workers, and how the node is."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Query
from jobs.errors import Unavailable
from jobs.protocol.model import WorkerList
from jobs.service import OverviewLimits

Part = Annotated[int, Meta(ge=0, le=100)]


class OverviewQuery(Query, frozen=True):
    """How many of each are told at most."""

    queues: Part = 10
    workers: Part = 20
    jobs: Part = 20
    failed: Part = 10


class NodeHandlers(Base):
    async def overview(self, call: Call) -> Answer:
        query: OverviewQuery = call.query
        limits = OverviewLimits(queues=query.queues, workers=query.workers, jobs=query.jobs, failed=query.failed)
        return json_answer(await self._service.overview(call.caller, limits))

    async def list_workers(self, call: Call) -> Answer:
        return json_answer(WorkerList(workers=await self._service.workers(call.caller)))

    async def drain_worker(self, call: Call) -> Answer:
        return json_answer(await self._service.drain_worker(call.caller, call.path))

    async def resume_worker(self, call: Call) -> Answer:
        return json_answer(await self._service.resume_worker(call.caller, call.path))

    async def health(self, call: Call) -> Answer:
        return json_answer(self._backend.health())

    async def ready(self, call: Call) -> Answer:
        health = self._backend.health()
        if health.status != "ok":
            raise Unavailable(f"the node is {health.status}", retry_after_s=1)
        return json_answer(health)
