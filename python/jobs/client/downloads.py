"""Content that comes piece by piece, pure: what to ask for next, however often the connection was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from jobs.client.requests import Request, segment, target
from jobs.client.sources import OnBytes
from jobs.errors import InternalError

OnHead: TypeAlias = Callable[[int, Mapping[str, str]], None]
"""Called with the status and the headers of a success."""
BRING_TIMEOUT_S: Final = 3_600.0
"""For a sign of life: a node that has not the content brings it first."""


class Download:
    """A blob, or a file of a collection, or a part of either."""

    def __init__(
        self,
        blob: str,
        *,
        path: str | None = None,
        start: int = 0,
        end: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        self.position = start
        """Of the byte that is next."""
        self.is_complete = end is not None and end <= start
        self.kind = ""
        """`raw` or `collection`, once it has begun."""
        self._target = target(f"/v1/blobs/{segment(blob)}", {"path": path})
        self._start = start
        self._end = end
        self._on_bytes = on_bytes

    def request(self) -> Request:
        """Return the request for what has not come yet."""
        headers = {}
        if self.position or self._end is not None:
            headers["Range"] = f"bytes={self.position}-{'' if self._end is None else self._end - 1}"
        return Request(method="GET", target=self._target, headers=headers, timeout_s=BRING_TIMEOUT_S)

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        length = headers.get("Content-Length") or headers.get("content-length") or ""
        if not (length.isascii() and length.isdigit()):
            raise InternalError("the node does not say how long the content is")
        if self.position and status != 206:
            raise InternalError("the node sends all of the content where a part was asked for")
        self.kind = headers.get("Jobs-Blob-Kind") or headers.get("jobs-blob-kind") or ""
        self._end = self.position + int(length)
        self.is_complete = self.position == self._end

    def on_data(self, data: bytes) -> None:
        assert self._end is not None
        self.position += len(data)
        self.is_complete = self.position == self._end
        if self._on_bytes is not None:
            self._on_bytes(self.position - self._start, self._end - self._start)
