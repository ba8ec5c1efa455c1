"""W3C trace context (https://www.w3.org/TR/trace-context/), pure: what a caller says of the trace it is part of."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

PARENT_HEADER: Final = "traceparent"
STATE_HEADER: Final = "tracestate"
HEADERS: Final = (PARENT_HEADER, STATE_HEADER)
PARENT_VARIABLE: Final = "TRACEPARENT"
STATE_VARIABLE: Final = "TRACESTATE"
SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""The right-most 7 bytes of the trace's id are of chance; of later versions of the standard."""
MAX_STATE_CHARS: Final = 512
"""A longer trace state is dropped whole, which the standard allows above this."""
MAX_STATE_MEMBERS: Final = 32
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER: Final = re.compile(
    r"[ \t]*(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])?[ \t]*"
)


class TraceContext(Struct, frozen=True):
    """The trace that something is part of, and the span in it that it stands below."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    flags: int
    state: str = ""
    """What tracing systems have said for each other, as it came."""

    @property
    def is_sampled(self) -> bool:
        """Whether whoever began the trace records it."""
        return bool(self.flags & SAMPLED)

    @property
    def parent(self) -> str:
        """As the header `traceparent` has it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def headers(self) -> dict[str, str]:
        return {PARENT_HEADER: self.parent} | ({STATE_HEADER: self.state} if self.state else {})

    def variables(self) -> dict[str, str]:
        """Return the context as variables of a process."""
        return {PARENT_VARIABLE: self.parent} | ({STATE_VARIABLE: self.state} if self.state else {})


def parse(parent: str | None, state: str | None = None) -> TraceContext | None:
    """Return the context that two headers tell of; None for one that is none, which the standard has ignored."""
    match = None if parent is None else _PARENT.fullmatch(parent.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    # Flags that nobody has defined yet are not to be passed on; of a newer version only one is known to mean the same.
    known = int(flags, 16) & (SAMPLED | RANDOM if version == "00" else SAMPLED)
    return TraceContext(trace_id, span_id, known, state if state is not None and _is_state(state) else "")


def trace_id_of(parent: str) -> str:
    """Return the trace of a `traceparent` that is stored, so that it is right."""
    return parent[3:35]


def from_headers(headers: Mapping[str, str]) -> TraceContext | None:
    """Return the context of a request: of a `tracestate` in several lines all, and none of two `traceparent`s."""
    parents = _lines(headers, PARENT_HEADER)
    return parse(parents[0], ",".join(_lines(headers, STATE_HEADER))) if len(parents) == 1 else None


def _lines(headers: Mapping[str, str], name: str) -> list[str]:
    """Return each line of a header, where the mapping tells them apart."""
    every: Callable[[str, list[str]], list[str]] | None = getattr(headers, "getall", None)
    if every is not None:
        return every(name, [])
    return [headers[name]] if name in headers else []


def from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the headers that say what the process's environment says of its trace; none for what is no context."""
    if PARENT_VARIABLE not in environment:
        return {}
    context = parse(environment[PARENT_VARIABLE], environment.get(STATE_VARIABLE))
    return {} if context is None else context.headers()


def _is_state(text: str) -> bool:
    members = text.split(",")
    if len(text) > MAX_STATE_CHARS or len(members) > MAX_STATE_MEMBERS:
        return False
    return all(_MEMBER.fullmatch(member) for member in members)
