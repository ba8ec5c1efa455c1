"""Reading HTTP answers: whole however they are cut, refused when they lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.client.http1 import (
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    ProtocolError,
    ResponseReader,
    body_headers,
    encode_chunk,
    encode_head,
    encode_request,
)

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Name:  value \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;note=x\r\nhello\r\n00A\r\n, you\r\n\r\nx\r\n0\r\nTrailer: t\r\n\r\n"
)
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nto the end"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
AFTER_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED


def read(*pieces: bytes) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    return reader, b"".join(reader.feed(piece) for piece in pieces)


@pytest.mark.parametrize(
    ("answer", "body", "reusable"),
    [
        (SIZED, b"hello", True),
        (CHUNKED, b"hello, you\r\n\r\nx", True),
        (EMPTY, b"", True),
        (AFTER_CONTINUE, b"hello", True),
        (SIZED.replace(b"X-Name", b"Connection: close\r\nX-Name"), b"hello", False),
        (SIZED.replace(b"1.1", b"1.0"), b"hello", False),
        (SIZED.replace(b"5", b"0")[:-5], b"", True),
        (SIZED + b"more", b"hello", False),
    ],
)
def test_an_answer_is_the_same_however_it_is_cut(answer: bytes, body: bytes, reusable: bool) -> None:
    for cut in range(len(answer) + 1):
        reader, got = read(answer[:cut], answer[cut:])
        assert (got, reader.is_complete, reader.is_reusable) == (body, True, reusable), cut
    reader, got = read(*(bytes((byte,)) for byte in answer))
    assert (got, reader.is_complete, reader.is_reusable) == (body, True, reusable)


def test_headers_are_found_by_their_name_in_lower_case() -> None:
    reader, _ = read(SIZED)
    assert reader.status == 200
    assert reader.headers["x-name"] == "value"


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reader, body = read(UNTIL_END[:-3], UNTIL_END[-3:])
    assert (body, reader.is_complete) == (b"to the end", False)
    reader.end()
    assert reader.is_complete
    assert not reader.is_reusable


@pytest.mark.parametrize("answer", [SIZED, CHUNKED, EMPTY])
def test_a_connection_that_ends_early_is_noticed(answer: bytes) -> None:
    for cut in range(len(answer)):
        reader, _ = read(answer[:cut])
        with pytest.raises(ProtocolError, match="it ended"):
            reader.end()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not begin with"),
        (b"HTTP/2 200 OK\r\n\r\n", "does not begin with"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "does not begin with"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "not known"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n", "longer than its size"),
        (b"x" * (MAX_HEAD_BYTES + 1), "longer than"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", "longer than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * MAX_CHUNK_LINE_BYTES, "between chunks"),
    ],
)
def test_what_is_not_http_is_refused(answer: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        read(answer)


@given(junk=st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: CHUNKED[:60] + tail))
def test_any_bytes_are_read_or_refused(junk: bytes) -> None:
    reader = ResponseReader()
    try:
        reader.feed(junk)
        reader.end()
    except ProtocolError:
        return
    assert reader.is_complete


def test_a_request_carries_its_length_and_nothing_that_was_not_asked_for() -> None:
    assert (
        encode_request("GET", "/a?b=c", {"Accept": "x"}, None)
        == b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\nAccept: x\r\n\r\n"
    )
    assert encode_request("POST", "/a", {}, b"hi").endswith(b"\r\nContent-Length: 2\r\n\r\nhi")
    assert encode_request("POST", "/a", {}, b"").endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_a_body_is_sent_once_the_node_says_so() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert not reader.may_send
    reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert (reader.may_send, reader.status) == (True, 0)
    assert reader.feed(SIZED) == b"hello"
    assert encode_head("POST", "/", body_headers(5)).endswith(b"\r\nContent-Length: 5\r\n\r\n")
    assert b"Transfer-Encoding: chunked\r\n" in encode_head("POST", "/", body_headers(None))
    assert encode_chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert encode_chunk(b"") == b"0\r\n\r\n"
