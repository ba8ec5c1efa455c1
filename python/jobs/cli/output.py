"""What commands print: aligned tables for people, one JSON object a line for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

_encode = msgspec.json.Encoder().encode
_UNSAFE: Final = {code: "�" for code in (*range(32), 127, *range(128, 160)) if code not in (9,)}


def print_json(item: Any) -> None:
    """Print one object on one line."""
    sys.stdout.buffer.write(_encode(item) + b"\n")
    sys.stdout.buffer.flush()


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head, each column as wide as its widest cell."""
    cells = [tuple(head), *(tuple(clean(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print name and value, a line each; those without a value are left out."""
    shown = [(name, clean(value)) for name, value in fields if value is not None and value != ""]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def clean(value: object) -> str:
    """Return text that cannot steer a terminal: names and messages may come from anybody."""
    return ("-" if value is None else str(value)).translate(_UNSAFE)


def ago(unix_ms: int | None) -> str:
    """Return how long ago a moment was, in words as short as possible."""
    if unix_ms is None:
        return "-"
    seconds = max(0.0, time.time() - unix_ms / 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def moment(unix_ms: int | None) -> str | None:
    """Return a moment in local time."""
    if unix_ms is None:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_ms / 1000)) + f".{unix_ms % 1000:03d}"


def note(text: str) -> None:
    """Tell the person something without touching standard output; one whose terminal is gone is told nothing."""
    with suppress(OSError):
        print(f"jobctl: {clean(text)}", file=sys.stderr, flush=True)
