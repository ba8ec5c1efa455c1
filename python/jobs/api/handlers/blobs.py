"""The catalogue of blobs: list, show, give up, share, tags, garbage. Content goes by `content`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from jobs.api.answer import Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Limit, Query, name
from jobs.api.handlers.queues import MAX_UID
from jobs.errors import InvalidRequest
from jobs.protocol.model import BlobHash


class BlobsQuery(Query, frozen=True):
    limit: Limit = 100
    cursor: str | None = None
    owner: Annotated[int, Meta(ge=0, le=MAX_UID)] | None = None
    """Of admins; without it they see all, others their own."""


class TagsQuery(Query, frozen=True):
    limit: Limit = 100
    cursor: str | None = None
    prefix: Annotated[str, Meta(max_length=128)] = ""


class BlobCatalogueCalls(Base):
    async def list_blobs(self, call: Call) -> Answer:
        query: BlobsQuery = call.query
        page = await self._service.blobs.page(call.caller, owner=query.owner, limit=query.limit, cursor=query.cursor)
        return json_answer(page)

    async def stat_blob(self, call: Call) -> Answer:
        return json_answer(await self._service.blobs.view(call.caller, blob_hash(call)))

    async def forget_blob(self, call: Call) -> Answer:
        await self._service.blobs.forget(call.caller, blob_hash(call))
        return Answer(204)

    async def share_blob(self, call: Call) -> Answer:
        return json_answer(await self._service.blobs.share(call.caller, blob_hash(call), call.body), 201)

    async def collect_blobs(self, call: Call) -> Answer:
        return json_answer(await self._service.blobs.collect(call.caller, call.body))

    async def list_blob_tags(self, call: Call) -> Answer:
        query: TagsQuery = call.query
        page = await self._service.blobs.tags(call.caller, prefix=query.prefix, limit=query.limit, cursor=query.cursor)
        return json_answer(page)

    async def get_blob_tag(self, call: Call) -> Answer:
        return json_answer(await self._service.blobs.tag(call.caller, name(call)))

    async def set_blob_tag(self, call: Call) -> Answer:
        return json_answer(await self._service.blobs.set_tag(call.caller, name(call), call.body))

    async def delete_blob_tag(self, call: Call) -> Answer:
        await self._service.blobs.delete_tag(call.caller, name(call))
        return Answer(204)


def blob_hash(call: Call) -> str:
    """Return the hash in the path; raise InvalidRequest for what is none."""
    try:
        return msgspec.convert(call.path, BlobHash)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"{call.path!r:.200} is no hash of a blob", field="id", expected="64 hexadecimal digits in lower case"
        ) from error
