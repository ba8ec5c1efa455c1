"""What a job says of itself, line by line, through the descriptor that JOBS_FD names; pure.

`progress PERCENT [MESSAGE]` and `heartbeat` mean something; every other line is counted and passed over. The bytes are
the job's, so anything may be in them.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from jobs.protocol.wire import MAX_PROGRESS_MESSAGE

MAX_NUMBER_CHARS: Final = 32


class Progress(Struct, frozen=True):
    """How far a job says that it is, in percent."""

    percent: float
    message: str | None


class Reading(Struct, frozen=True, kw_only=True):
    """What some lines say: the newest progress if there is any, and how many lines say nothing known."""

    progress: Progress | None
    ignored: int


def read_lines(lines: bytes) -> Reading:
    """Return what the lines say, whatever they are."""
    progress, ignored = None, 0
    for line in lines.splitlines():
        word, _, rest = line.strip().partition(b" ")
        if word == b"progress" and (said := read_progress(rest)) is not None:
            progress = said
        elif word != b"heartbeat":
            ignored += 1
    return Reading(progress=progress, ignored=ignored)


def read_progress(text: bytes) -> Progress | None:
    """Return what stands behind the word `progress`; None without a percentage from 0 to 100."""
    number, _, message = text.strip().partition(b" ")
    try:
        percent = float(number.removesuffix(b"%")) if len(number) <= MAX_NUMBER_CHARS else math.nan
    except ValueError:
        return None
    return Progress(percent, clean(message)) if 0.0 <= percent <= 100.0 else None


def clean(text: bytes) -> str | None:
    """Return the text as it can be shown on one line of a terminal; None if nothing is left of it."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text.decode(errors="replace"))
    return " ".join(printable.split())[:MAX_PROGRESS_MESSAGE].rstrip() or None
