"""What blobs consist of: uploads, downloads and collections, by the node that is asked."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from jobs.api.answer import GONE_OUT, Answer, json_answer
from jobs.api.call import Call
from jobs.api.handlers.base import Base, Query
from jobs.api.handlers.blobs import blob_hash
from jobs.api.problem import answer_of
from jobs.api.ranges import is_unchanged, wanted_part
from jobs.api.streams import Place, StreamAnswer
from jobs.blobs.host import BlobHost, Found, Wanted
from jobs.errors import RangeNotSatisfiable
from jobs.protocol.model import BlobAdded, BlobFile, BlobFiles, BlobHash, Name
from jobs.protocol.model.blobs import Replicas

KIND: Final = "Jobs-Blob-Kind"
CONTENT_TYPE: Final = "application/octet-stream"
STATUSES: Final = ((206, "The part that Range names"), (304, "The client has it already, by If-None-Match"))
"""Of a success, besides 200."""


class UploadQuery(Query, frozen=True):
    tag: Name | None = None
    replicas: Replicas | None = None
    expected: BlobHash | None = None
    """The hash that the content is to have; 400 when it has another."""


class DownloadQuery(Query, frozen=True):
    path: Annotated[str, Meta(min_length=1, max_length=2_048)] | None = None
    """Of a collection, one of its files."""


class BlobContentCalls(Base):
    async def put_blob(self, call: Call) -> Answer:
        query: UploadQuery = call.query
        host, incoming = self._backend.blob_host, call.incoming
        assert incoming is not None
        if incoming.size_bytes is not None:
            # Before the client is told to send it.
            await host.check_size(incoming.size_bytes)
        wanted = Wanted(tag=query.tag, replicas=query.replicas, expected=query.expected)
        with self._transfer(call) as place:
            return _added(await place.result(host.add(call.caller, incoming.pieces(), wanted)))

    async def put_collection(self, call: Call) -> Answer:
        given, host = call.body, self._backend.blob_host
        return _added(await host.add_collection(call.caller, given.files, tag=given.tag, replicas=given.replicas))

    async def collection_files(self, call: Call) -> Answer:
        blob = blob_hash(call)
        found = await self._backend.blob_host.files(call.caller, blob)
        return json_answer(BlobFiles(hash=blob, files=[BlobFile(name=n, hash=h) for n, h in found.files.items()]))

    async def get_blob(self, call: Call) -> Answer:
        with self._transfer(call) as place:
            return await self._get(call, self._backend.blob_host, place)

    async def head_blob(self, call: Call) -> Answer:
        return await self.get_blob(call)

    async def _get(self, call: Call, host: BlobHost, place: Place) -> Answer:
        query: DownloadQuery = call.query
        opening = host.reading(call.caller, blob_hash(call), query.path)
        found = await place.result(opening.__aenter__())
        try:
            return await self._send(call, found, place)
        finally:
            await opening.__aexit__(None, None, None)

    async def _send(self, call: Call, found: Found, place: Place) -> Answer:
        etag, size = f'"{found.hash}"', found.size_bytes
        # Whether the caller may still read it has to be asked each time; what it is never changes.
        headers = {"ETag": etag, KIND: found.kind, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
        if is_unchanged(call.ask.headers, etag):
            return Answer(304, headers)
        status, start, end = 200, 0, size
        if call.ask.method == "HEAD":
            await call.outlet.begin({"Content-Type": CONTENT_TYPE, "Content-Length": str(size), **headers})
            await call.outlet.end()
            return GONE_OUT
        try:
            part = wanted_part(call.ask.headers, etag, size)
        except RangeNotSatisfiable as error:
            return answer_of(error).saying({"Content-Range": f"bytes */{size}"})
        if part is not None:
            status, start, end = 206, part.start, part.end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        answer = StreamAnswer(call.outlet, self._config, place, at_once=False, headers=headers, status=status)
        return await answer.send(found.pieces(start, end), CONTENT_TYPE)


def _added(added: BlobAdded) -> Answer:
    answer = json_answer(added, 201 if added.created else 200)
    return answer.saying({"Location": f"/v1/blobs/{added.hash}"})
