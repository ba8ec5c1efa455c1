"""Server-sent events and feeds: whole however they are cut, resumed where they were."""

from __future__ import annotations

from itertools import chain

import msgspec
import pytest

from jobs.client import events
from jobs.client.events import EventParser, SentEvent
from jobs.client.requests import Feed
from jobs.errors import Compacted, InternalError
from jobs.protocol.model import Content, LogEvent, Problem, Stream

STREAM = (
    b": hello\n\nid: 1\ndata: {}\n\n"
    b"id: 2\r\nevent: problem\r\ndata:a\r\ndata: b\r\nretry: 5\r\n\r\n"
    b"id: 3\n\n"
    b"data: cut of"
)
EVENTS = [SentEvent("1", "", b"{}"), SentEvent("2", "problem", b"a\nb"), SentEvent("3", "", b"")]


def log_event(seq: int) -> LogEvent:
    return LogEvent(attempt=1, seq=seq, stream=Stream.STDOUT, data=Content(text=f"{seq}\n"))  # type: ignore[arg-type]


def sent(seq: int) -> bytes:
    return f"id: 1.{seq}\ndata: ".encode() + msgspec.json.encode(log_event(seq)) + b"\n\n"


def test_events_are_the_same_however_they_are_cut() -> None:
    for cut in range(len(STREAM) + 1):
        parser = EventParser()
        assert [*parser.feed(STREAM[:cut]), *parser.feed(STREAM[cut:])] == EVENTS, cut
    parser = EventParser()
    assert [event for byte in STREAM for event in parser.feed(bytes((byte,)))] == EVENTS


@pytest.mark.parametrize("endless", [b"data: xxxxxxx", b"data: x\n", b": comment without end "])
def test_an_event_without_end_is_given_up(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 1000)
    parser = EventParser()
    with pytest.raises(InternalError, match="more than 1000 bytes"):
        list(chain.from_iterable(parser.feed(endless) for _ in range(1000)))


def test_many_events_of_a_size_that_is_allowed_may_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 1000)
    parser = EventParser()
    assert len([event for _ in range(100) for event in parser.feed(b"data: " + b"x" * 500 + b"\n\n")]) == 100


def test_a_feed_goes_on_after_the_last_event_it_gave() -> None:
    feed = Feed("/logs", {"follow": True, "attempt": None}, LogEvent)
    first = feed.request()
    assert first.target == "/logs?follow=true"
    assert "Last-Event-ID" not in first.headers
    # When the connection is lost in the middle of the third event
    assert list(feed.feed(sent(0) + sent(1) + sent(2)[:-5])) == [log_event(0), log_event(1)]
    # Then the next request asks for what comes after the second, and half an event is forgotten
    assert feed.request().headers["Last-Event-ID"] == "1.1"
    assert list(feed.feed(sent(2))) == [log_event(2)]


def test_a_feed_takes_note_of_positions_without_an_event() -> None:
    feed = Feed("/watch", {}, LogEvent)
    assert list(feed.feed(b"id: 17\n\n")) == []
    assert feed.request().headers["Last-Event-ID"] == "17"


def test_a_feed_raises_what_the_node_ends_it_with_after_what_came_before() -> None:
    feed = Feed("/watch", {}, LogEvent)
    problem = Problem(type="about:blank", title="", status=410, code="compacted", detail="too old")
    given = feed.feed(sent(0) + sent(1) + b"event: problem\ndata: " + msgspec.json.encode(problem) + b"\n\n")
    assert [next(given), next(given)] == [log_event(0), log_event(1)]
    with pytest.raises(Compacted, match="too old"):
        next(given)
    # Whoever goes on from the position misses nothing: it is never beyond what was given.
    assert feed.position == "1.1"


def test_a_feed_refuses_what_it_cannot_read() -> None:
    with pytest.raises(InternalError, match="no LogEvent"):
        list(Feed("/logs", {}, LogEvent).feed(b'data: {"attempt": "one"}\n\n'))
