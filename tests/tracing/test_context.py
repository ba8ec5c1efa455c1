"""W3C trace context: what counts as one, and what is made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from jobs.client.requests import get, in_trace, post
from jobs.protocol.model import Health, Submitted
from jobs.tracing.context import TraceContext, from_environment, from_headers, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
HEX = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (PARENT, 1),
        (f"  {PARENT}\t", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"01-{TRACE}-{SPAN}-ff", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
    ],
)
def test_a_context_is_taken(text: str, flags: int) -> None:
    assert parse(text) == TraceContext(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-",
        PARENT + "0",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.future",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00_{TRACE}_{SPAN}_01",
        PARENT + "\nX: y",
        PARENT + "\n",
    ],
)
def test_what_is_no_context_is_ignored(text: str | None) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    "state", ["congo=t61rcWkgMzE", "rojo=00f067,congo=t61", "a=b, c=d", "a=b,,c=d", "t@v=1", "a=" + "x" * 256]
)
def test_the_state_is_carried_as_it_came(state: str) -> None:
    context = parse(PARENT, state)
    assert context is not None
    assert (context.state, context.headers()) == (state, {"traceparent": PARENT, "tracestate": state})
    assert context.variables() == {"TRACEPARENT": PARENT, "TRACESTATE": state}


@pytest.mark.parametrize(
    "state", ["no member", "A=b", "a=b\r\nX: y", "a=" + "x" * 257, "a=b=c", ",".join("a=b" for _ in range(33)), "é=1"]
)
def test_a_state_that_is_none_is_dropped_and_the_context_stays(state: str) -> None:
    assert parse(PARENT, state) == TraceContext(TRACE, SPAN, 1)


@given(st.text(HEX, min_size=32, max_size=32), st.text(HEX, min_size=16, max_size=16), st.integers(0, 3))
def test_what_is_written_is_read_again(trace: str, span: str, flags: int) -> None:
    context = TraceContext(trace, span, flags)
    assert parse(context.parent) == (context if int(trace, 16) and int(span, 16) else None)


@given(st.text(), st.text())
def test_no_text_makes_headers_of_more_than_a_line(parent: str, state: str) -> None:
    for context in (parse(parent, state), parse(PARENT, state)):
        assert context is None or all(value.isprintable() and value.isascii() for value in context.headers().values())


def test_headers_in_several_lines_are_taken_as_the_standard_has_it() -> None:
    def taken(*lines: tuple[str, str]) -> TraceContext | None:
        return from_headers(CIMultiDictProxy(CIMultiDict(lines)))

    states = [("tracestate", "a=1,b=2"), ("Tracestate", "c=3")]
    assert taken(("traceparent", PARENT), *states) == TraceContext(TRACE, SPAN, 1, "a=1,b=2,c=3")
    assert taken(("traceparent", PARENT)) == from_headers({"traceparent": PARENT}) == TraceContext(TRACE, SPAN, 1)
    # Which of two would it be?
    assert taken(("traceparent", PARENT), ("Traceparent", PARENT.replace("-01", "-00")), *states) is None
    assert taken(*states) is from_headers({}) is None


def test_the_environment_is_taken_where_it_tells_of_a_trace() -> None:
    assert from_environment({}) == {}
    assert from_environment({"TRACEPARENT": "what", "TRACESTATE": "a=b"}) == {}
    assert from_environment({"TRACEPARENT": PARENT, "TRACESTATE": "a=b"}) == {
        "traceparent": PARENT,
        "tracestate": "a=b",
    }


def test_only_what_changes_something_is_sent_in_a_trace() -> None:
    def carrier() -> dict[str, str]:
        return {"Traceparent": PARENT, "baggage": "user=7"}

    changed = in_trace(post("/v1/jobs", Submitted).request, carrier)
    assert changed.headers["traceparent"] == PARENT
    assert "baggage" not in changed.headers
    assert "traceparent" not in in_trace(get("/v1/health", Health).request, carrier).headers
