"""The pure parts that both clients share."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.client import AsyncClient, Client, common
from jobs.client.asynchronous import AsyncKeyValueClient
from jobs.client.common import ConnectionFailed, EventParser, SentEvent
from jobs.client.sync import KeyValueClient
from jobs.errors import InternalError, InvalidRequest, JobsError, QueueFull, Unavailable
from jobs.protocol.model import LogEvent, Problem


def public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(kind).items()
        if callable(member) and not name.startswith("_")
    }


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    inner = {"events"}  # the asynchronous client's streams, which its key-value part uses
    asynchronous = {name: given for name, given in public(AsyncClient).items() if name not in inner}
    assert asynchronous == public(Client)
    assert public(AsyncKeyValueClient) == public(KeyValueClient)


EVENTS = b': ping\n\nid: 1.5\ndata: {"a":1}\n\nid: 7\n\nevent: problem\nid: \ndata: x\n\n: ping\n\ndata: tail'


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=8))
def test_events_come_out_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    parser, found, before = EventParser(), [], 0
    for cut in [*sorted(cuts), len(EVENTS)]:
        found += list(parser.feed(EVENTS[before:cut]))
        before = cut
    assert found == [
        SentEvent("1.5", "", b'{"a":1}'),
        SentEvent("7", "", b""),
        SentEvent("", "problem", b"x"),
    ]


def test_an_event_that_never_ends_is_refused() -> None:
    parser = EventParser()
    assert list(parser.feed(b"x" * EventParser.MAX_BYTES)) == []
    with pytest.raises(InternalError, match="event of more than"):
        list(parser.feed(b"x"))


def test_problem_documents_become_the_errors_they_stand_for() -> None:
    problem = Problem(type="t", title="t", status=429, code="queue_full", detail="d", field="$.x", expected="less")
    error = common.error_of(429, msgspec.json.encode(problem), "5")
    assert isinstance(error, QueueFull)
    assert (error.detail, error.field, error.expected, error.retry_after_s) == ("d", "$.x", "less", 5.0)
    assert isinstance(common.error_of(502, b"<html>", None), InternalError)
    odd = msgspec.json.encode(Problem(type="t", title="t", status=418, code="teapot", detail="d"))
    assert type(common.error_of(418, odd, "soon")) is JobsError
    with pytest.raises(QueueFull):
        common.decode_event(LogEvent, SentEvent("", "problem", msgspec.json.encode(problem)))


@given(attempt=st.integers(1, 100), chance=st.floats(0, 0.999), after=st.none() | st.floats(0, 1e6))
def test_pauses_are_bounded_and_honour_what_the_node_asks(attempt: int, chance: float, after: float | None) -> None:
    pause = common.pause_s(attempt, Unavailable("x", retry_after_s=after), chance)
    assert 0 <= pause <= common.BACKOFF_CAP_S
    assert pause >= min(after or 0, common.BACKOFF_CAP_S)


def test_only_what_may_pass_is_tried_again() -> None:
    assert common.is_transient(ConnectionFailed("x"))
    assert common.is_transient(Unavailable("x"))
    assert common.is_transient(QueueFull("x"))
    assert not common.is_transient(InvalidRequest("x"))


def test_targets_are_quoted_and_say_only_what_is_given() -> None:
    query = {"a": None, "b": True, "c": ["x y", "&"], "d": 1.5}
    assert common.target("/v1/x", query) == "/v1/x?b=true&c=x+y&c=%26&d=1.5"
    assert common.target("/v1/x", {}) == "/v1/x"
    assert common.segment("a/../b") == "a%2F..%2Fb"


def test_submissions_carry_a_key_and_keep_one_that_is_given() -> None:
    job = common.shell_job(["true"])
    first, second = common.with_key(job), common.with_key(job)
    assert first.idempotency_key != second.idempotency_key
    assert common.with_key(first) is first
    lots = list(common.batches(job for _ in range(501)))
    assert [len(lot) for lot in lots] == [250, 250, 1]


def test_shell_jobs_take_arguments_or_a_script_text_or_bytes() -> None:
    job = common.shell_job("echo hi", stdin=b"\xff", files={"a": "text", "b": b"\x00\x01"}, timeout_s=1)
    assert (job.payload.script, job.payload.argv, job.timeout_s) == ("echo hi", None, 1)
    assert job.payload.stdin is not None
    assert job.payload.stdin.base64 == "/w=="
    assert job.payload.files["a"].text == "text"
    assert common.shell_job(("a", "b")).payload.argv == ["a", "b"]
