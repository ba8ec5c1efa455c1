"""The pure parts that both clients share."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.client import AsyncClient, Client, ConnectionFailed, shell_job
from jobs.client.asynchronous import AsyncKeyValueClient
from jobs.client.events import MAX_EVENT_BYTES, EventParser, SentEvent
from jobs.client.failures import error_of
from jobs.client.http1 import ProtocolError, ResponseReader, encode_request
from jobs.client.patience import MAX_BACKOFF_S, Patience, may_help
from jobs.client.requests import segment, target
from jobs.client.submission import batches, with_key
from jobs.client.sync import KeyValueClient
from jobs.errors import InternalError, InvalidRequest, QueueFull, Unavailable
from jobs.protocol.model import Problem


def public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(kind).items()
        if callable(member) and not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    inner = {"events": ["self", "feed"]}  # what the asynchronous key-value part uses of its client
    assert public(AsyncClient) == public(Client) | inner
    assert public(AsyncKeyValueClient) == public(KeyValueClient)


EVENTS = b': ping\n\nid: 1.5\r\ndata: {"a":1}\r\n\r\nid: 7\n\nevent: problem\ndata: x\n\n: ping\n\ndata: tail'


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_events_come_out_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    parser, found, before = EventParser(), [], 0
    for cut in [*sorted(cuts), len(EVENTS)]:
        found += list(parser.feed(EVENTS[before:cut]))
        before = cut
    assert found == [SentEvent("1.5", "", b'{"a":1}'), SentEvent("7", "", b""), SentEvent("", "problem", b"x")]


def test_an_event_that_never_ends_is_refused() -> None:
    parser = EventParser()
    assert list(parser.feed(b"x" * MAX_EVENT_BYTES)) == []
    with pytest.raises(InternalError, match="event of more than"):
        list(parser.feed(b"x"))


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
]


@given(answer=st.sampled_from(ANSWERS), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_answers_are_read_the_same_however_they_are_cut(answer: bytes, cuts: list[int]) -> None:
    reader, body, before = ResponseReader(), b"", 0
    for cut in [*sorted(min(cut, len(answer)) for cut in cuts), len(answer)]:
        body += reader.feed(answer[before:cut])
        before = cut
    assert (reader.status, body, reader.is_complete, reader.is_reusable) == (200, b"hello", True, True)


@given(answer=st.sampled_from(ANSWERS), data=st.data())
def test_an_answer_that_ends_early_or_is_damaged_is_never_taken_for_a_whole_one(
    answer: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(answer) - 1))
    reader = ResponseReader()
    reader.feed(answer[:cut])
    with pytest.raises(ProtocolError):
        reader.end()


@given(junk=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(junk: bytes) -> None:
    reader = ResponseReader()
    try:
        reader.feed(junk)
        reader.end()
    except ProtocolError:
        return
    assert junk.startswith(b"HTTP/1.")


def test_requests_go_over_the_wire_with_the_length_of_their_body() -> None:
    sent = encode_request("POST", "/v1/x?a=b", {"Content-Type": "application/json"}, b"{}")
    assert sent == (
        b"POST /v1/x?a=b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


def test_problem_documents_become_the_errors_they_stand_for() -> None:
    problem = Problem(type="t", title="t", status=429, code="queue_full", detail="d", field="$.x", expected="less")
    error = error_of(429, msgspec.json.encode(problem), "5")
    assert isinstance(error, QueueFull)
    assert (error.detail, error.field, error.expected, error.retry_after_s) == ("d", "$.x", "less", 5.0)
    assert isinstance(error_of(502, b"<html>", None), InternalError)
    odd = msgspec.json.encode(Problem(type="t", title="t", status=418, code="teapot", detail="d"))
    assert error_of(418, odd, "soon").retry_after_s is None


@given(chances=st.lists(st.floats(0, 1), max_size=30), within_s=st.floats(0, 60))
def test_patience_grows_its_pauses_and_ends_in_time(chances: list[float], within_s: float) -> None:
    patience, now_s = Patience(), 100.0
    for chance in chances:
        pause_s = patience.pause_s(Unavailable("x"), safe=True, within_s=within_s, now_s=now_s, chance=chance)
        if pause_s is None:
            break
        assert 0 <= pause_s <= MAX_BACKOFF_S
        now_s += pause_s
    assert now_s <= 100.0 + within_s


def test_only_what_can_help_and_does_no_harm_is_tried_again() -> None:
    assert may_help(ConnectionFailed("x", sent=True), safe=True)
    assert not may_help(ConnectionFailed("x", sent=True), safe=False)
    assert may_help(ConnectionFailed("x", sent=False), safe=False)
    assert may_help(QueueFull("x"), safe=False)
    assert not may_help(Unavailable("x"), safe=False)
    assert not may_help(InvalidRequest("x"), safe=True)


def test_targets_are_quoted_and_say_only_what_is_given() -> None:
    assert target("/v1/x", {"a": None, "b": True, "c": ["x y", "&"]}) == "/v1/x?b=true&c=x+y&c=%26"
    assert segment("a/../b") == "a%2F..%2Fb"


def test_submissions_carry_a_key_and_keep_one_that_is_given() -> None:
    job = shell_job(["true"])
    first, second = with_key(job), with_key(job)
    assert first.idempotency_key != second.idempotency_key
    assert with_key(first) is first
    assert [len(lot) for lot in batches(job for _ in range(501))] == [250, 250, 1]


def test_shell_jobs_take_arguments_or_a_script_text_or_bytes() -> None:
    job = shell_job("echo hi", stdin=b"\xff", files={"a": "text", "b": b"\x00\x01"}, timeout_s=1)
    assert (job.payload.script, job.payload.argv, job.timeout_s) == ("echo hi", None, 1)
    assert job.payload.stdin is not None
    assert job.payload.stdin.base64 == "/w=="
    assert job.payload.files["a"].text == "text"
    assert shell_job(("a", "b")).payload.argv == ["a", "b"]
