"""What commands print: aligned tables for people, one JSON object a line for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

_encode = msgspec.json.Encoder().encode
_STEERING: Final = (*range(9), *range(10, 32), *range(127, 160))
_REORDERING: Final = (0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Of bidirectional text, and ends of lines: they make what is shown another text than what is there."""
_UNITS: Final = (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40))
_UNSAFE: Final = dict.fromkeys((*_STEERING, *_REORDERING), "�")


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


def size(amount: float) -> str:
    """Return a number of bytes in a unit that keeps it short."""
    if amount < 1_000:
        return f"{amount:.0f} B"
    unit, unit_bytes = next((unit for unit in _UNITS if amount < 1_000 * unit[1]), _UNITS[-1])
    return f"{amount / unit_bytes:.1f} {unit}"


def ago(unix_ms: int | None) -> str:
    """Return how long ago a moment was, in words as short as possible."""
    if unix_ms is None:
        return "-"
    return span(time.time() - unix_ms / 1000)


def span(seconds: float) -> str:
    """Return a time in one unit."""
    seconds = max(0.0, seconds)
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
