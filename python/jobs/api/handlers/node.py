"""Workers, and how the node is."""

from __future__ import annotations

from aiohttp import web

from jobs.api.call import Call
from jobs.api.handlers.base import Base, json_response
from jobs.errors import Unavailable
from jobs.protocol.model import WorkerList


class NodeHandlers(Base):
    async def list_workers(self, call: Call) -> web.StreamResponse:
        return json_response(WorkerList(workers=await self._service.workers(call.caller)))

    async def drain_worker(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.drain_worker(call.caller, call.path))

    async def resume_worker(self, call: Call) -> web.StreamResponse:
        return json_response(await self._service.resume_worker(call.caller, call.path))

    async def health(self, call: Call) -> web.StreamResponse:
        return json_response(self._service.health())

    async def ready(self, call: Call) -> web.StreamResponse:
        health = self._service.health()
        if health.status != "ok":
            raise Unavailable(f"the node is {health.status}", retry_after_s=1)
        return json_response(health)
