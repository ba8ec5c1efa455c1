"""The users' key-value data and leases."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import AfterRevision, Base, Limit, ReadQuery, last_event_id
from jobs.errors import InvalidRequest, NotFound


class KvGetQuery(ReadQuery, frozen=True):
    key: str
    revision: AfterRevision = 0


class KvScanQuery(ReadQuery, frozen=True):
    prefix: Annotated[str, Meta(min_length=1)]
    limit: Limit = 100
    cursor: str | None = None
    revision: AfterRevision = 0
    keys_only: bool = False


class KvWatchQuery(ReadQuery, frozen=True):
    key: str
    prefix: bool = False
    after_revision: AfterRevision | None = None


class KvHandlers(Base):
    async def kv_get(self, call: Call) -> Answer:
        query: KvGetQuery = call.query
        found = await self._service.kv_get(call.caller, query.key, query.revision)
        if found is None:
            raise NotFound(f"there is no key {query.key!r}", field="key")
        return json_answer(found)

    async def kv_scan(self, call: Call) -> Answer:
        query: KvScanQuery = call.query
        return json_answer(
            await self._service.kv_scan(
                call.caller,
                query.prefix,
                limit=query.limit,
                cursor=query.cursor,
                revision=query.revision,
                keys_only=query.keys_only,
            )
        )

    async def kv_put(self, call: Call) -> Answer:
        return json_answer(await self._service.kv_put(call.caller, call.body))

    async def kv_delete(self, call: Call) -> Answer:
        return json_answer(await self._service.kv_delete(call.caller, call.body))

    async def kv_txn(self, call: Call) -> Answer:
        return json_answer(await self._service.kv_txn(call.caller, call.body))

    async def kv_watch(self, call: Call) -> Answer:
        query: KvWatchQuery = call.query
        after = last_event_id(call, query.after_revision)
        events = self._service.kv_watch(call.caller, query.key, prefix=query.prefix, after_revision=after)
        with self._place(call) as place:
            return await self._send_revisions(call, place, events)

    async def grant_lease(self, call: Call) -> Answer:
        return json_answer(await self._service.lease_grant(call.caller, call.body.ttl_s), 201)

    async def keep_lease(self, call: Call) -> Answer:
        return json_answer(await self._service.lease_keepalive(call.caller, _lease(call)))

    async def revoke_lease(self, call: Call) -> Answer:
        await self._service.lease_revoke(call.caller, _lease(call))
        return Answer(204)


def _lease(call: Call) -> int:
    if not (call.path.isascii() and call.path.isdigit() and len(call.path) <= 18):
        raise InvalidRequest(f"{call.path!r} is no lease", field="id", expected="a lease's number")
    return int(call.path)
