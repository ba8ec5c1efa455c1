"""HTTP/1.1 as nearly all clients speak it, pure: bytes to requests that say nothing unusual, and answers to bytes.

What is read here is a part of what aiohttp's parser takes, and means the same to it: no byte that HTTP leaves to
interpretation, no header that is not known here, none twice, a length or no body. Whatever else comes is aiohttp's.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from msgspec import Struct

from jobs.api.answer import Answer
from jobs.protocol.ids import REQUEST_ID_HEADER
from jobs.tracing import context as tracing

SERVER: Final = "jobs"
"""The header of this name: nothing of what the server is made of."""
MAX_HEAD_BYTES: Final = 4 << 10
"""Of a request that is read here: far less than what is refused."""
_HOST: Final = "Host"
_LENGTH: Final = "Content-Length"
_CONNECTION: Final = "Connection"
_NAMES: Final = (
    _HOST,
    "User-Agent",
    "Accept",
    "Accept-Encoding",
    "Content-Type",
    _LENGTH,
    _CONNECTION,
    "Last-Event-ID",
    REQUEST_ID_HEADER,
    *tracing.HEADERS,
)
_KNOWN: Final = {name: name for name in _NAMES} | {name.lower(): name for name in _NAMES}
_HEAD: Final = re.compile(
    rb"(?P<method>GET|POST|PUT|PATCH|DELETE) "
    rb"(?P<path>/(?!/)[-\w.~!$&'()*+,;=:@/%]*)(?:\?(?P<query>[-\w.~!$&'()*+,;=:@/?%]*))? "
    rb"HTTP/1\.1\r\n(?P<fields>(?:[A-Za-z-]+:[ -~]*\r\n)*)\r\n"
)
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,9}")


class PlainRequest(Struct, frozen=True):
    """A request, and where it lies in what was received: its body may reach beyond that."""

    method: str
    path: str
    """As it was sent."""
    query: str
    headers: dict[str, str]
    """Under the names of the standards."""
    body: int
    """Where the body begins."""
    end: int


def read(data: bytes, start: int = 0) -> PlainRequest | None:
    """Return the request whose head begins at `start`; None when the head is not whole, or not plain."""
    head = _HEAD.match(data, start, start + MAX_HEAD_BYTES)
    if head is None:
        return None
    method, path, query, fields = head.groups()
    headers: dict[str, str] = {}
    for line in fields.decode("ascii").split("\r\n")[:-1]:
        given, _, value = line.partition(":")
        name = _KNOWN.get(given) or _KNOWN.get(given.lower())
        if name is None or name in headers:
            return None
        headers[name] = value.strip(" ")
    if _HOST not in headers or headers.get(_CONNECTION, "keep-alive").lower() != "keep-alive":
        return None
    length = headers.get(_LENGTH, "0")
    if _NUMBER.fullmatch(length) is None:
        return None
    body = head.end()
    return PlainRequest(
        method.decode("ascii"),
        path.decode("ascii"),
        "" if query is None else query.decode("ascii"),
        headers,
        body,
        body + int(length),
    )


def write(answer: Answer, now_s: int, *, closes: bool = False) -> bytes:
    """Return an answer as bytes; the connection carries no other one after it if it `closes`."""
    said = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
    if not said.count("\r") == said.count("\n") == len(answer.headers):
        raise ValueError(f"a header of an answer is no line: {said!r:.500}")
    length = "" if answer.status == HTTPStatus.NO_CONTENT else f"{_LENGTH}: {len(answer.body)}\r\n"
    close = f"{_CONNECTION}: close\r\n" if closes else ""
    return f"{_status(answer.status)}{said}{length}{_own(now_s)}{close}\r\n".encode() + answer.body


@lru_cache(maxsize=64)
def _status(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


@lru_cache(maxsize=2)
def _own(now_s: int) -> str:
    """Return the headers that each answer of this second has."""
    return f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: {SERVER}\r\n"
