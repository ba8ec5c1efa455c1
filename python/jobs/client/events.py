"""Server-sent events (WHATWG HTML §9.2), pure: bytes in, events out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from jobs.errors import InternalError

MAX_EVENT_BYTES: Final = 64 << 20


class SentEvent(Struct, frozen=True):
    """One event; `data` is empty for one that only tells the position."""

    id: str
    kind: str
    data: bytes


class EventParser:
    """Cuts bytes into events. Lines end with LF or CRLF; comments and unknown fields are passed over."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._fields: dict[bytes, list[bytes]] = {}
        self._size_bytes = 0

    def feed(self, data: bytes) -> Iterator[SentEvent]:
        """Yield the events that are now complete. Raises InternalError for one without end."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._hold(end)
            line = b"".join(self._line).removesuffix(b"\r")
            self._line.clear()
            if line:
                self._on_field(line)
            elif self._fields:
                yield self._event()
            if not line:
                self._fields, self._size_bytes = {}, 0
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._size_bytes += len(piece)
        if self._size_bytes > MAX_EVENT_BYTES:
            raise InternalError(f"the node sent an event of more than {MAX_EVENT_BYTES} bytes")
        self._line.append(piece)

    def _on_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name in (b"id", b"event", b"data"):
            self._fields.setdefault(name, []).append(value.removeprefix(b" "))

    def _event(self) -> SentEvent:
        def last(name: bytes) -> str:
            return self._fields.get(name, [b""])[-1].decode(errors="replace")

        return SentEvent(last(b"id"), last(b"event"), b"\n".join(self._fields.get(b"data", [])))
