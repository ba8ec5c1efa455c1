"""What is wrong with a statement, in words that tell where: line, column, and the name that it is about. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

MAX_CHARS: Final = 1_000
LOOKED_AT_CHARS: Final = 4_096
"""Of a complaint, for what it is about: one can repeat a statement of a mebibyte."""
_PREFIXES: Final = re.compile(
    r"^(?:DataFusion error: |FFI error: |Error during planning: |Schema error: |Execution error: |External error: "
    r"|Arrow error: |This feature is not implemented: |SQL error: |Internal error: |Parser error: "
    r"|Optimizer rule '\w+' failed\s+caused by\s+|type_coercion\s+caused by\s+)+"
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
_PLANNING: Final = re.compile(
    r"Error during planning|Schema error|SQL error|not implemented|[Oo]ptimizer|type_coercion"
)
_NAMED: Final = (
    re.compile(r'column "(?P<name>[^"]+)" must appear'),
    re.compile(r"(?:unqualified field|qualified field name) (?P<name>[^\s,]+)"),
    re.compile(r"Unsupported SQL type (?P<name>\w+)"),
    re.compile(r"Cannot find column with position (?P<name>\d+) in SELECT"),
    re.compile(r"Order by column out of bounds, specified: (?P<name>\d+)"),
)
"""What is complained of by its name."""
_BEHIND: Final = {"Order by column": "ORDER BY", "Cannot find column with position": "GROUP BY"}
"""Where in a statement what some complaints are about stands behind."""
_WORDS: Final = re.compile(r"\b[A-Z]{2,}(?: [A-Z]{2,})*\b")
_NO_CLAUSES: Final = frozenset(
    {"SQL", "NULL", "INTEGER", "TIMESTAMP", "DATE", "INTERVAL", "BOOLEAN", "AND", "OR", "AS"}
)
"""Words in capitals that say of what kind something is, not where."""
_SYMPTOMS: Final = (
    (re.compile(r"[Dd]ivide by zero"), (r"/", r"%")),
    (re.compile(r"Cast error|[Cc]an(?:'t|not) cast"), (r"\b(?:TRY_)?CAST\b", r"::")),
    (re.compile(r"subquery should only return one column|Scalar subquery"), (r"\(\s*SELECT\b",)),
    (re.compile(r"values list"), (r"\bVALUES\b",)),
    (re.compile(r"Wildcard \{"), (r"\*",)),
    (re.compile(r"regex"), (r"!?~\*?", r"\bregexp_\w+", r"\bSIMILAR\b")),
    (re.compile(r"Unicode scalar"), (r"\bchr\b",)),
)
"""What stands where something went wrong; told only where it stands but once."""
_CALL: Final = re.compile(r"([a-z_]\w*)\s*\(", re.IGNORECASE)
_START: Final = re.compile(r"\S+")
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
    found_at = _place(text, sql)
    if found_at is not None:
        where, name = found_at
        return _cut(f"{placed(*where, name)}: {plain}")
    start = _START.search(_without_text(sql))
    if start is not None and _PLANNING.search(text) is not None:
        return _cut(f"in the statement that begins at {placed(*_line(sql, start.start()), None)}: {plain}")
    return _cut(plain)


_Found: TypeAlias = tuple[tuple[int, int], str]
"""A place, and what stands there."""


def _place(text: str, sql: str) -> _Found | None:
    """Return where what a complaint is about stands."""
    text = text[:LOOKED_AT_CHARS]
    for name, behind in _names(text):
        where = position(sql, name, behind)
        if where is not None:
            return where, name
    plain = _without_text(sql)
    return _literal(text, sql) or _cause(text, sql, plain) or _call(text, sql, plain) or _clause(text, sql)


def _literal(text: str, sql: str) -> _Found | None:
    """Find text in quotes that a complaint repeats."""
    for quoted in _QUOTED.finditer(text):
        literal = "'" + next(name for name in quoted.groups() if name is not None) + "'"
        at = sql.find(literal)
        if at >= 0:
            return _line(sql, at), literal
    return None


def _cause(text: str, sql: str, plain: str) -> _Found | None:
    """Find what can have led to a complaint, if only one thing can."""
    for symptom, causes in _SYMPTOMS:
        if symptom.search(text) is not None:
            found = [match for cause in causes for match in re.finditer(cause, plain, re.IGNORECASE)]
            if len(found) == 1:
                return _line(sql, found[0].start()), found[0][0]
    return None


def _call(text: str, sql: str, plain: str) -> _Found | None:
    """Find the call of a function that a complaint mentions."""
    said = set(re.findall(r"\w+", text.lower()))
    call = next((call for call in _CALL.finditer(plain) if call[1].lower() in said), None)
    return None if call is None else (_line(sql, call.start()), call[1])


def _clause(text: str, sql: str) -> _Found | None:
    """Find the part of a statement that a complaint mentions in capitals."""
    for words in _WORDS.findall(text):
        if words not in _NO_CLAUSES and (where := position(sql, words)) is not None:
            return where, words
    return None


def placed(line: int, column: int, near: str | None) -> str:
    """Return a place in words."""
    return f"line {line}, column {column}" + (f", near {near}" if near else "")


def position(sql: str, name: str, behind: str = "") -> tuple[int, int] | None:
    """Return line and column, from 1, at which a name or an operator first stands outside of strings and comments.

    `behind`: only behind the last of these words."""
    plain = _without_text(sql)
    edges = (r"(?<![\w$])", r"(?![\w$])") if re.match(r"\w", name) else ("", "")
    words = r"\s+".join(re.escape(word) for word in name.split(" "))
    start = max(0, plain.upper().rfind(behind)) if behind else 0
    found = re.compile(edges[0] + words + edges[1], re.IGNORECASE).search(plain, start)
    return None if found is None else _line(sql, found.start())


def _without_text(sql: str) -> str:
    """Return a statement with blanks where strings and comments are."""
    return _HIDDEN.sub(lambda hidden: re.sub(r"[^\n]", " ", hidden[0]), sql)


def _line(sql: str, at: int) -> tuple[int, int]:
    """Return the line and the column of a place."""
    before = sql[:at]
    return before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1


def _names(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a complaint may be about, the likeliest first, and the words that it stands behind."""
    for pattern in (_MISSING_FIELD, _MISSING_TABLE, *_NAMED):
        found = pattern.search(text)
        if found is not None:
            whole = found["name"].replace('"', "")
            behind = next((words for start, words in _BEHIND.items() if start in found[0]), "")
            yield whole, behind
            yield whole.rpartition(".")[2], behind
    operator = _COERCED.search(text)
    if operator is not None:
        yield operator["operator"], ""
    for quoted in _QUOTED.finditer(text):
        name = next(name for name in quoted.groups() if name is not None)
        yield name, ""
        if re.fullmatch(r"\w+\.\w+", name) is not None:
            yield name.rpartition(".")[2], ""


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
