"""Spans as OTLP/HTTP carries them in JSON (https://opentelemetry.io/docs/specs/otlp/), and what is answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from jobs.tracing.context import TraceContext
from jobs.tracing.spans import NS_PER_MS, Span, Value

SCOPE: Final = "jobs"
ERROR: Final = 2
"""Code of a status."""
RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""Statuses after which the same is sent again; any other refusal is final."""
_encode = msgspec.json.Encoder().encode


def encode(spans: Sequence[Span], resource: Mapping[str, Value], version: str) -> bytes:
    """Return the body of a request that exports the spans."""
    scope = {"scope": {"name": SCOPE, "version": version}, "spans": [_span(span) for span in spans]}
    return _encode({"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]})


def rejected(body: bytes) -> tuple[int, str]:
    """Return how many spans of an accepted request were not taken, and why; none for an answer that is not JSON."""
    try:
        partial = msgspec.json.decode(body, type=_Answer, strict=False).partial if body else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0, ""
    return (0, "") if partial is None else (max(0, partial.spans), partial.message)


class _Partial(Struct):
    spans: int = field(default=0, name="rejectedSpans")
    message: str = field(default="", name="errorMessage")


class _Answer(Struct):
    partial: _Partial | None = field(default=None, name="partialSuccess")


def _span(span: Span) -> dict[str, Any]:
    own = span.context
    made: dict[str, Any] = {
        **_named(own),
        "name": span.name,
        "kind": int(span.kind),
        # As text: numbers of JSON have 53 bits with some.
        "startTimeUnixNano": str(span.start_ms * NS_PER_MS),
        "endTimeUnixNano": str(span.end_ms * NS_PER_MS),
        "attributes": _attributes(span.attributes),
    }
    if span.parent_id:
        made["parentSpanId"] = span.parent_id
    if span.links:
        made["links"] = [_named(link) for link in span.links]
    if span.error is not None:
        made["status"] = {"code": ERROR, "message": span.error}
    return made


def _named(context: TraceContext) -> dict[str, Any]:
    made: dict[str, Any] = {"traceId": context.trace_id, "spanId": context.span_id, "flags": context.flags}
    return made | {"traceState": context.state} if context.state else made


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}
