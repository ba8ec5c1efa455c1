"""What is wrong with a statement, in words that tell where: line, column, and the name that it is about. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_CHARS: Final = 1_000
_PREFIXES: Final = re.compile(
    r"^(?:DataFusion error: |Error during planning: |Schema error: |Execution error: |External error: "
    r"|Arrow error: |This feature is not implemented: |SQL error: |Internal error: )+"
)
_PARSER: Final = re.compile(r'(?:ParserError|TokenizerError)\("(?P<text>.*)"\)', re.DOTALL)
_RAISED: Final = re.compile(
    r"PyErr \{ type: <class '[^']+'>, value: \w+\((?P<quote>['\"])(?P<text>.*?)(?P=quote)\)", re.DOTALL
)
_AT: Final = re.compile(r"\s*at Line: (?P<line>\d+), Column: (?P<column>\d+)")
_FOUND: Final = re.compile(r"found: (?P<near>\S+)")
_MISSING_TABLE: Final = re.compile(r"table '(?:[^'.]+\.[^'.]+\.)?(?P<name>[^']+)' not found")
_MISSING_FIELD: Final = re.compile(r'No field named (?P<name>(?:"[^"]*"|[^\s".]+)(?:\.(?:"[^"]*"|[^\s".]+))*)')
_QUOTED: Final = re.compile(r"'([^'\n]{1,128})'|\"([^\"\n]{1,128})\"|`([^`\n]{1,128})`")
_COERCED: Final = re.compile(r"expression (?:\S.*?) (?P<operator>[-+*/%<>=!|&^~]{1,2}) ")
_HIDDEN: Final = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)


def complaint(text: str, sql: str) -> str:
    """Return what the engine says of a statement, with the place in it where that can be told."""
    plain = _PREFIXES.sub("", text.strip())
    parsed = _PARSER.search(plain)
    if parsed is not None:
        plain = parsed["text"].replace('\\"', '"').replace("\\n", " ").replace("\\'", "'")
    raised = _RAISED.search(plain)
    if raised is not None:
        plain = raised["text"]
    at = _AT.search(plain)
    if at is not None:
        found = _FOUND.search(plain)
        place = placed(int(at["line"]), int(at["column"]), None if found is None else found["near"])
        return _cut(f"{place}: {_AT.sub('', plain)}")
    plain = _MISSING_TABLE.sub(lambda missing: f"there is no table {missing['name']}", plain)
    for name in _names(text):
        where = position(sql, name)
        if where is not None:
            return _cut(f"{placed(*where, name)}: {plain}")
    return _cut(plain)


def placed(line: int, column: int, near: str | None) -> str:
    """Return a place in words."""
    return f"line {line}, column {column}" + (f", near {near}" if near else "")


def position(sql: str, name: str) -> tuple[int, int] | None:
    """Return line and column, from 1, at which a name or an operator first stands outside of strings and comments."""
    plain = _HIDDEN.sub(lambda hidden: re.sub(r"[^\n]", " ", hidden[0]), sql)
    edges = (r"(?<![\w$])", r"(?![\w$])") if re.match(r"\w", name) else ("", "")
    found = re.search(edges[0] + re.escape(name) + edges[1], plain, re.IGNORECASE)
    if found is None:
        return None
    before = sql[: found.start()]
    return before.count("\n") + 1, found.start() - (before.rfind("\n") + 1) + 1


def _names(text: str) -> Iterator[str]:
    """Yield what a complaint may be about, the likeliest first."""
    for pattern in (_MISSING_FIELD, _MISSING_TABLE):
        found = pattern.search(text)
        if found is not None:
            whole = found["name"].replace('"', "")
            yield whole
            yield whole.rpartition(".")[2]
    operator = _COERCED.search(text)
    if operator is not None:
        yield operator["operator"]
    for quoted in _QUOTED.finditer(text):
        yield next(name for name in quoted.groups() if name is not None)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
