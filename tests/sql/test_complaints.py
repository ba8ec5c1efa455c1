"""Places of what is wrong with a statement: what the engine says of it, with line, column and the near name."""

from __future__ import annotations

import re
import time

import pyarrow as pa
import pytest
from datafusion import SessionContext

from jobs.workers.sql.complaints import MAX_CHARS, complaint

PLACES = [
    # planning
    ("SELECT version,\n  count(*) FROM kv", "line 1, column 8, near version: "),
    ("SELECT upper(key) AS k,\n key FROM kv, jobs", "line 1, column 14, near key: Ambiguous"),
    ("SELECT 1\nUNION SELECT 1, 2", "line 2, column 1, near UNION: "),
    ("SELECT key FROM kv WHERE version", "line 1, column 26, near version: "),
    ("SELECT key FROM kv WHERE sum(version) > 1", "line 1, column 20, near WHERE: "),
    ("SELECT key FROM kv HAVING version > 1", "line 1, column 20, near HAVING: "),
    ("SELECT 5, key FROM kv ORDER BY 5", "line 1, column 32, near 5: "),
    ("SELECT 7, key FROM kv GROUP BY 7", "line 1, column 32, near 7: "),
    ("SELECT * FROM kv\n LIMIT 'x'", "line 2, column 2, near LIMIT: "),
    ("SELECT CAST(key AS NONSENSE) FROM kv", "line 1, column 20, near NONSENSE: "),
    ("SELECT (SELECT key, value FROM kv)", r"line 1, column 8, near \(SELECT: "),
    ("SELECT 'upper', upper(key, 1) FROM kv", "line 1, column 17, near upper: "),
    ("SELECT array_element(key, 1) FROM kv", "line 1, column 8, near array_element: "),
    ("SELECT key FROM kv WHERE value LIKE 1", "line 1, column 32, near LIKE: "),
    ("SELECT * FROM (VALUES (1), (1, 2)) v", "line 1, column 16, near VALUES: "),
    ("SELECT max(*) FROM kv", r"line 1, column 12, near \*: "),
    ("SELECT key FROM kv FETCH FIRST 'a' ROWS ONLY", "line 1, column 20, near FETCH: "),
    # A name that does not stand in it: at least which statement.
    ("-- a comment\n SELECT [1, 2][key] FROM kv", "in the statement that begins at line 2, column 2: "),
    # execution
    ("SELECT key,\n 7 / (version - 1) FROM kv", "line 2, column 4, near /: Divide by zero"),
    ("SELECT key::int FROM kv", "line 1, column 11, near ::: Cast error: "),
    ("SELECT CAST(concat(key, '/') AS INT) FROM kv", "line 1, column 8, near CAST: Cast error: "),
    ("SELECT to_timestamp('nonsense')", "line 1, column 21, near 'nonsense': "),
    ("SELECT DATE '2026-01-01', DATE 'tomorrow'", "line 1, column 32, near 'tomorrow': Cast error"),
    ("SELECT key FROM kv WHERE key ~ '('", "line 1, column 30, near ~: "),
    ("SELECT regexp_replace(key, '(', '') FROM kv", "line 1, column 8, near regexp_replace: "),
    ("SELECT repeat(key, 10000000000) FROM kv", "line 1, column 8, near repeat: "),
    ("SELECT (SELECT key FROM kv)", r"line 1, column 8, near \(SELECT: "),
    ("SELECT chr(-1)", "line 1, column 8, near chr: "),
    # Where it could be one of two, none is told.
    ("SELECT 1 / (version - 1), 2 / (version - 2) FROM kv", "Divide by zero"),
]  # fmt: skip


@pytest.fixture(scope="module")
def context() -> SessionContext:
    made = SessionContext()
    rows = pa.table({"key": ["a", "b"], "value": [b"1", b"2"], "version": [1, 2]})
    made.register_record_batches("kv", [rows.to_batches()])
    made.register_record_batches("jobs", [pa.table({"id": ["a"], "key": ["k"]}).to_batches()])
    return made


@pytest.mark.parametrize(("statement", "said"), PLACES)
def test_a_complaint_tells_its_place(context: SessionContext, statement: str, said: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the engine raises
        context.sql(statement).collect()
    told = complaint(str(caught.value), statement)
    assert re.match(said, told) is not None, told


def test_a_place_in_a_mebibyte_is_found_soon() -> None:
    statement = "SELECT " + ", ".join(f"f{number}(1)" for number in range(100_000)) + "\nFROM nowhere"
    began_s = time.monotonic()
    told = complaint("Error during planning: Invalid function 'f99999'" + "x" * 3_000_000, statement)
    assert told.startswith("line 1, column ")
    assert len(told) <= MAX_CHARS
    assert complaint(f"Error during planning: {statement}", statement).startswith("line 1")
    assert time.monotonic() - began_s < 20
