"""Whatever is read as a plain request, aiohttp's parser reads as the same request, to the same byte."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from jobs.api.answer import Answer
from jobs.api.connection import MAX_HEAD_FIELDS, MAX_HEAD_LINE_BYTES
from jobs.api.plain import MAX_HEAD_BYTES, PlainRequest, read, write
from jobs.client.http1 import ResponseReader

PUT = b"POST /v1/kv:put HTTP/1.1\r\nHost: jobs\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"get", b"CONNECT"])
targets = st.sampled_from(
    [b"/", b"/v1/jobs", b"/v1/kv?key=/data/a", b"/v1/jobs/%2e%ff/x", b"//v1", b"/a/../b", b"/a?b?c=%20&d", b"/a?"]
) | st.binary(max_size=6).map(lambda some: b"/" + some)
NAMES = (
    "Host host HOST Accept User-Agent Content-Type Connection Last-Event-ID Jobs-Request-Id Transfer-Encoding Expect "
    "Upgrade Content-Encoding X-Any Content-Length"
)
names = st.sampled_from(NAMES.split()).map(str.encode)
values = st.sampled_from(
    [b"a", b" a ", b"", b"keep-alive", b"close", b"chunked", b"0", b"3", b"03", b"+3", b"1_0", b"0x1", b"3, 3", b"a\tb"]
) | st.binary(max_size=4)
fields = st.tuples(names, st.sampled_from([b": ", b":", b" :", b":  ", b""]), values).map(b"".join)
ends = st.sampled_from([b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly a request, or one."""
    body = draw(st.binary(max_size=8))
    lines = [
        b" ".join([draw(methods), draw(targets), draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/11"]))])
    ]
    lines += [b"Host: jobs"] * draw(st.integers(0, 1)) + draw(st.lists(fields, max_size=4))
    if draw(st.booleans()):
        lines.append(b"Content-Length: %d" % len(body))
    return b"".join(line + draw(ends) for line in lines) + draw(ends) + body


class Transport(asyncio.Transport):
    """Takes what a parser says to its transport."""

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def read_by_aiohttp(data: bytes) -> list[tuple[RawRequestMessage, StreamReader]]:
    """Return what aiohttp reads, by the settings of the server."""
    loop = asyncio.new_event_loop()
    try:
        protocol = BaseProtocol(loop)
        parser = HttpRequestParser(
            protocol,
            loop,
            1 << 16,
            max_line_size=MAX_HEAD_LINE_BYTES,
            max_field_size=MAX_HEAD_LINE_BYTES,
            max_headers=MAX_HEAD_FIELDS,
            auto_decompress=False,
        )
        protocol._parser = parser
        protocol.connection_made(Transport())
        messages, upgraded, tail = parser.feed_data(data)
        assert (upgraded, tail) == (False, b"")
        return list(messages)
    finally:
        loop.close()


def check_same(data: bytes, found: PlainRequest) -> None:
    assert 0 < found.body <= found.end
    if found.end > len(data):
        event("the body is not whole")
        data += b"x" * (found.end - len(data))
    ((message, payload),) = read_by_aiohttp(data[: found.end])
    url = message.url
    assert (found.method, found.path, found.query) == (message.method, url.raw_path, url.raw_query_string)
    assert len(message.headers) == len(found.headers)
    assert {name.lower(): value for name, value in message.headers.items()} == {
        name.lower(): value for name, value in found.headers.items()
    }
    assert [message.should_close, message.upgrade, message.chunked, message.compression] == [False, False, False, None]
    assert payload.is_eof()
    body: Any = payload.read_nowait() if found.end > found.body else b""
    assert body == data[found.body : found.end]


@settings(max_examples=1_500)
@given(requests())
@example(PUT)
@example(PUT.replace(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 3"))
@example(PUT.replace(b"Host: jobs", b"Transfer-Encoding: chunked"))
@example(PUT.replace(b"Host: jobs", b"Host: jobs\r\n folded: x"))
@example(PUT.replace(b"Host: jobs", b"content-length : 5"))
@example(PUT.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"))
def test_what_is_plain_is_the_same_to_aiohttp(data: bytes) -> None:
    found = read(data)
    event("plain" if found else "not plain")
    if found is not None:
        check_same(data, found)


@settings(max_examples=1_500)
@given(st.integers(0, len(PUT)), st.integers(0, 3), st.binary(max_size=3))
def test_a_plain_request_with_some_bytes_changed_is_the_same_to_aiohttp_or_not_plain(
    at: int, removed: int, added: bytes
) -> None:
    data = PUT[:at] + added + PUT[at + removed :]
    found = read(data)
    event("plain" if found else "not plain")
    if found is not None:
        check_same(data, found)


def test_a_head_is_read_only_when_it_is_whole_and_of_bounded_size() -> None:
    head = PUT.index(b"{}")
    assert [read(PUT[:size]) is not None for size in range(len(PUT) + 1)] == [
        size >= head for size in range(len(PUT) + 1)
    ]
    for size, plain in ((MAX_HEAD_BYTES, True), (MAX_HEAD_BYTES + 1, False)):
        data = PUT.replace(b"jobs", b"j" * (size - head + 4))
        assert (read(data) is not None) is plain


def test_a_request_is_read_where_it_begins() -> None:
    first = read(PUT * 2)
    assert first is not None
    assert first.end == len(PUT)
    second = read(PUT * 2, first.end)
    assert second is not None
    assert (second.end, second.headers) == (2 * len(PUT), first.headers)


@given(
    st.sampled_from([200, 201, 204, 404, 503]),
    st.dictionaries(st.sampled_from(["Content-Type", "Location", "Retry-After"]), st.text("ab/", max_size=5)),
    st.binary(max_size=20),
    st.booleans(),
)
def test_an_answer_is_what_a_client_reads(status: int, headers: dict[str, str], body: bytes, closes: bool) -> None:
    sent = b"" if status == 204 else body
    reader = ResponseReader()
    assert reader.feed(write(Answer(status, headers, sent), 0, closes=closes)) == sent
    assert (reader.status, reader.is_complete, reader.is_reusable) == (status, True, not closes)
    assert reader.headers.items() >= {name.lower(): value for name, value in headers.items()}.items()
    assert reader.headers["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_no_header_of_an_answer_can_begin_another_line() -> None:
    for value in ("a\r\nX: y", "a\nb", "a\rb"):
        try:
            write(Answer(200, {"Location": value}), 0)
        except ValueError:
            continue
        raise AssertionError(value)
