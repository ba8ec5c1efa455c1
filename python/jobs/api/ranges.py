"""Which part of some content a request is for (RFC 9110, sections 13 and 14), pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from jobs.errors import RangeNotSatisfiable

_RANGE: Final = re.compile(r"bytes *= *(?P<first>[0-9]{0,18}) *- *(?P<last>[0-9]{0,18})", re.IGNORECASE)


class Part(Struct, frozen=True):
    """Bytes from `start` to before `end`."""

    start: int
    end: int


def wanted_part(headers: Mapping[str, str], etag: str, size_bytes: int) -> Part | None:
    """Return the part that a request is for; None for all of it. Raises RangeNotSatisfiable.

    What is no range, or several of them, is passed over, as the standard allows.
    """
    given = headers.get("Range")
    if given is None or headers.get("If-Range", etag).strip() != etag:
        return None
    found = _RANGE.fullmatch(given.strip())
    if found is None or not (found["first"] or found["last"]):
        return None
    last = int(found["last"]) if found["last"] else None
    if not found["first"]:
        assert last is not None
        part = Part(max(0, size_bytes - last), size_bytes)
    else:
        start = int(found["first"])
        if last is not None and last < start:
            return None
        part = Part(start, size_bytes if last is None else min(last + 1, size_bytes))
    if part.start >= part.end:
        raise RangeNotSatisfiable(f"{given:.100} is beyond the {size_bytes} bytes of the content", field="Range")
    return part


def is_unchanged(headers: Mapping[str, str], etag: str) -> bool:
    """Tell whether the client has the content already, as it says by If-None-Match."""
    given = headers.get("If-None-Match")
    if given is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or tags == ["*"]
