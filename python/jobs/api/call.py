"""One request as the handlers see it, and its body and query as typed values."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import BadHttpMessage
from msgspec import Struct

from jobs.api.config import ApiConfig
from jobs.api.outlet import Outlet
from jobs.errors import InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from jobs.invalid import decode_json, invalid_query
from jobs.service import Caller

T = TypeVar("T")
PIECE_BYTES: Final = 256 << 10
"""Of a body that is taken as it comes: so much at once, unless it ends before."""
_JSON_TYPES: Final = ("", "application/json", "application/octet-stream")


class Ask(Struct, frozen=True):
    """A request, whether it came on the socket or by way of another node."""

    method: str
    path: str
    """As it was sent."""
    query: str
    """As it was sent, without the question mark."""
    headers: Mapping[str, str]
    """Whatever the case of their names is."""
    caller: Caller


class Call(Struct):
    """A request that has been routed."""

    ask: Ask
    outlet: Outlet
    caller: Caller
    path: str
    """What stands in the path's placeholder, "" without one."""
    query: Any
    body: Any
    incoming: Incoming | None = None
    """The body of a route that takes it as it comes."""


class Incoming:
    """The body of a request on the node's own socket. A client that waits for it is told to send it when it is read."""

    def __init__(self, request: web.BaseRequest, config: ApiConfig) -> None:
        self.size_bytes = request.content_length
        """As far as the client says it."""
        self._request = request
        self._config = config

    async def whole(self) -> bytes:
        """Return the body; raise PayloadTooLarge as soon as it is known to be, RequestTimeout when it does not come."""
        limit = self._config.max_body_bytes
        if self.size_bytes is not None and self.size_bytes > limit:
            raise _too_large(self.size_bytes, limit)
        await self._begin()
        content = self._request.content
        if content.is_eof():
            # It came with the head, as most do: there is nothing to wait for.
            data = content.read_nowait()
            if len(data) > limit:
                raise _too_large(len(data), limit)
            return data
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while chunk := await content.readany():
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(size, limit)
                    chunks.append(chunk)
        except TimeoutError as error:
            raise RequestTimeout(
                f"the body did not arrive within {self._config.body_timeout_s:g} s",
                expected="a body at least this quick",
            ) from error
        return b"".join(chunks)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield a body of any size as it comes; raise RequestTimeout when nothing comes for too long, ConnectionError
        when the client goes away, InvalidRequest for what breaks off or is not chunked as it should be."""
        await self._begin()
        content, stall_s = self._request.content, self._config.body_timeout_s
        chunks: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(stall_s):
                    chunk = await content.readany()
            except TimeoutError as error:
                raise RequestTimeout(
                    f"nothing of the body came for {stall_s:g} s", expected="a body that keeps coming"
                ) from error
            except (ClientPayloadError, BadHttpMessage) as error:
                raise InvalidRequest(f"the body is not whole: {error}", expected="all of it") from error
            size += len(chunk)
            chunks.append(chunk)
            if size >= PIECE_BYTES or (size and not chunk):
                yield b"".join(chunks)
                chunks, size = [], 0
            if not chunk:
                return

    async def _begin(self) -> None:
        request = self._request
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedMediaType("the body is compressed", expected="Content-Encoding: identity")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0


def _too_large(size: int, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body has {size} bytes or more", field="$", expected=f"at most {limit} bytes")


def decode_body(decoder: msgspec.json.Decoder[T], content_type: str, data: bytes) -> T:
    """Return the typed body, as `decode_json` does; raise UnsupportedMediaType for one that is no JSON by its type."""
    if content_type not in _JSON_TYPES:
        raise UnsupportedMediaType(f"the body is {content_type}", expected="application/json")
    return decode_json("the body", data, decoder)


def list_fields(kind: type[Struct]) -> frozenset[str]:
    """Return the query parameters that may be given several times."""
    hints = typing.get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if typing.get_origin(hint) in (list, tuple))


def decode_query(kind: type[T], lists: frozenset[str], query: str) -> T:
    """Return the typed query; raise InvalidRequest naming the parameter."""
    if not query:
        return cast("T", _without_parameters(cast("Any", kind)))
    given: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in lists:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise InvalidRequest(f"{name} is given twice", field=name, expected="each parameter once")
        else:
            given[name] = value
    return _query_of(given, kind)


@cache
def _without_parameters(kind: type[Any]) -> Any:
    """Return the query of most requests, which is frozen."""
    return _query_of({}, kind)


def _query_of(given: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid_query(error, kind) from error
