"""Requests and what comes back for them, typed and pure; a client only carries them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jobs.client.decoding import decode_json
from jobs.client.events import EventParser
from jobs.client.failures import error_of
from jobs.errors import InternalError, InvalidRequest
from jobs.protocol.ids import REQUEST_ID_HEADER, uuid7
from jobs.tracing.context import HEADERS

T = TypeVar("T")

TIMEOUT_S: Final = 60.0
"""For a sign of life, on top of what a request asks the node to wait."""
TraceHeaders: TypeAlias = Callable[[], Mapping[str, str]]
"""Returns headers, as OpenTelemetry's propagators put into a carrier; of them only those of a trace context count."""
EVENT_STREAM: Final = "text/event-stream"
_encode = msgspec.json.Encoder().encode


class Request(Struct, frozen=True, kw_only=True):
    """One request. It may be sent again after its answer was lost: what changes something carries an id."""

    method: str
    target: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    waits_for_room: bool = True
    """Whether it is sent again when the node refused it as too much."""
    timeout_s: float = TIMEOUT_S


class Page(Protocol):
    """An answer that may go on."""

    @property
    def next_cursor(self) -> str | None: ...


class Call(Struct, Generic[T], frozen=True):
    """A request and the type of its answer."""

    request: Request
    answer: type[T]


class Feed(Generic[T]):
    """A stream of typed events that goes on after a lost connection where it was."""

    def __init__(self, path: str, query: Mapping[str, Any], kind: type[T]) -> None:
        self.position: str | None = None
        self._target = target(path, query)
        self._kind = kind
        self._parser = EventParser()

    def request(self) -> Request:
        """Return the request for what has not been seen yet, and begin with its answer."""
        self._parser = EventParser()
        headers = {"Accept": EVENT_STREAM}
        if self.position is not None:
            headers["Last-Event-ID"] = self.position
        return Request(method="GET", target=self._target, headers=headers)

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield what is now complete, and then raise the error with which the node ended the stream, if it did.

        One by one, so that the position is never beyond what the caller was given.
        """
        for event in self._parser.feed(data):
            if event.kind == "problem":
                raise error_of(0, event.data, None)
            if event.data:
                yield decode(self._kind, event.data)
            self.position = event.id or self.position


def get(path: str, answer: type[T], query: Mapping[str, Any] | None = None, *, wait_s: float = 0.0) -> Call[T]:
    """Return a read that the node may take `wait_s` to answer."""
    request = Request(method="GET", target=target(path, query or {}), timeout_s=TIMEOUT_S + wait_s)
    return Call(request, answer)


def post(path: str, answer: type[T], body: Any = None) -> Call[T]:
    """Return a write. Raises InvalidRequest for text that JSON cannot carry."""
    return write("POST", path, answer, body)


def write(method: str, path: str, answer: type[T], body: Any = None) -> Call[T]:
    """Return a write by any method. Raises InvalidRequest for text that JSON cannot carry."""
    return Call(change(method, path, body), answer)


def change(method: str, path: str, body: Any = None) -> Request:
    """Return a request that changes something, with an id: however often it is sent, it is carried out once."""
    headers = {REQUEST_ID_HEADER: uuid7(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10)))}
    if body is None:
        return Request(method=method, target=path, headers=headers, body=b"")
    return Request(
        method=method, target=path, headers=headers | {"Content-Type": "application/json"}, body=encode(body)
    )


def in_trace(request: Request, trace_context: TraceHeaders) -> Request:
    """Return the request with what says which trace it is part of, where it changes something."""
    context = trace_context() if REQUEST_ID_HEADER in request.headers else {}
    given = {name.lower(): value for name, value in context.items()}
    headers = {name: given[name] for name in HEADERS if name in given}
    return replace(request, headers={**request.headers, **headers}) if headers else request


def encode(body: Any) -> bytes:
    """Return JSON. Raises InvalidRequest for text that it cannot carry."""
    try:
        return _encode(body)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"text that is not Unicode: {error.object!r:.80}", expected="UTF-8") from error


def target(path: str, query: Mapping[str, Any]) -> str:
    """Return path and query; values that are None are left out, lists are repeated. Raises InvalidRequest."""
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        pairs += [(name, str(item).lower() if isinstance(item, bool) else str(item)) for item in values]
    try:
        return path + ("?" + urlencode(pairs) if pairs else "")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"text that is not Unicode: {error.object!r:.80}", expected="UTF-8") from error


def segment(text: str) -> str:
    """Return a part of a path, quoted."""
    return quote(text, safe="", errors="replace")


def decode(kind: type[T], data: bytes) -> T:
    """Return a typed answer. Raises InternalError for one that is not of the type."""
    try:
        return decode_json(kind, data)
    except msgspec.MsgspecError as error:
        raise InternalError(f"the node's answer is no {kind.__name__}: {error}") from error
