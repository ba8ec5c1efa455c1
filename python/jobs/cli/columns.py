"""How many columns of a terminal text takes, and cutting it to fit. Pure."""

from __future__ import annotations

from typing import Final
from unicodedata import category, east_asian_width

from jobs.cli.output import clean

_INVISIBLE: Final = frozenset({"Mn", "Me", "Cf"})
MAX_CHARS: Final = 400
"""Of one text: more fits no line, and need not be looked at."""


def width(text: str) -> int:
    """Return how many columns a text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cell(value: object) -> str:
    """Return a value as text for one line, which can neither steer the terminal nor break the line."""
    return clean(value)[:MAX_CHARS].replace("\t", " ")


def cut(text: str, columns: int) -> str:
    """Return the text if it fits, or its beginning and an ellipsis."""
    if width(text) <= columns:
        return text
    left = columns - 1
    for index, char in enumerate(text):
        left -= _columns(char)
        if left < 0:
            return text[:index] + "…" if columns > 0 else ""
    return text


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """Return the text cut or filled up with spaces to so many columns."""
    text = cut(text, max(0, columns))
    spaces = " " * (columns - width(text))
    return spaces + text if right else text + spaces


def _columns(char: str) -> int:
    if category(char) in _INVISIBLE:
        return 0
    return 2 if east_asian_width(char) in "WF" else 1
