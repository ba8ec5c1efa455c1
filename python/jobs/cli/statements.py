"""Where statements of SQL end in what somebody types. Pure."""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(
    r"""
    (?P<end>;)
    | '(?:[^']|'')*(?P<text>'|\Z)
    | "(?:[^"]|"")*(?P<name>"|\Z)
    | --[^\n]*
    | /\*(?:.*?)(?P<comment>\*/|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT: Final = re.compile(r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/", re.DOTALL)


class Scanner:
    """Cuts text into statements at the semicolons that stand in no string, no name and no comment."""

    def __init__(self, text: str) -> None:
        self._text = text

    def split(self) -> tuple[list[str], str]:
        """Return the statements that are complete, without their semicolons, and what stands behind the last one."""
        found: list[str] = []
        start = 0
        for token in _TOKEN.finditer(self._text):
            if token["end"]:
                statement = self._text[start : token.start()].strip()
                if not is_empty(statement):
                    found.append(statement)
                start = token.end()
        return found, self._text[start:]


def is_empty(statement: str) -> bool:
    """Tell whether there is nothing but comments."""
    position = 0
    while match := _COMMENT.match(statement, position):
        position = match.end()
    return position == len(statement)
