"""What the parser tells of statements, and that no text brings it down."""

from __future__ import annotations

import pytest

from jobs._native import SqlError, sql_parse


def one(text: str) -> dict[str, object]:
    (statement,) = sql_parse(text)
    return statement


def test_statements_are_told_apart() -> None:
    kinds = [
        ("SELECT 1", "query"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "query"),
        ("VALUES (1)", "query"),
        ("(SELECT 1) UNION ALL SELECT 2", "query"),
        ("EXPLAIN SELECT 1", "explain"),
        ("EXPLAIN ANALYZE SELECT 1", "explain"),
        ("SHOW TABLES", "show"),
        ("DESCRIBE kv", "show"),
        ("INSERT INTO t SELECT 1", "insert"),
        ("CREATE TABLE t AS SELECT 1", "create_table_as"),
        ("CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION '/data/t/'", "create_external_table"),
        ("DROP TABLE t", "drop_table"),
        ("CREATE TABLE t (a INT)", "other"),
        ("COPY t TO '/tmp/x.csv'", "other"),
        ("SET datafusion.execution.batch_size = 1", "other"),
        ("CREATE VIEW v AS SELECT 1", "other"),
        ("DELETE FROM kv", "other"),
        ("UPDATE kv SET key = ''", "other"),
        ("DROP VIEW v", "other"),
        ("CREATE FUNCTION f() RETURNS INT RETURN 1", "other"),
    ]
    assert [one(text)["kind"] for text, _ in kinds] == [kind for _, kind in kinds]
    assert [statement["kind"] for statement in sql_parse(";".join(text for text, _ in kinds))] == [
        kind for _, kind in kinds
    ]


def test_parts_of_statements() -> None:
    insert = one('INSERT INTO s.T (a, "B") SELECT x, y FROM kv WHERE x = $1')
    assert insert == {
        "kind": "insert", "text": "INSERT INTO s.T (a, \"B\") SELECT x, y FROM kv WHERE x = $1", "target": "s.t",
        "columns": ["a", "B"], "source": "SELECT x, y FROM kv WHERE x = $1", "overwrite": False,
        "tables": ["s.t", "kv"], "table_functions": [], "parameters": ["$1"],
    }  # fmt: skip
    external = one(
        "CREATE EXTERNAL TABLE IF NOT EXISTS t (a BIGINT NOT NULL, b TIMESTAMP(3) WITH TIME ZONE) STORED AS json "
        "LOCATION '/data/t/' OPTIONS (on_error 'skip')"
    )
    assert external["columns"] == [
        {"name": "a", "type": "BIGINT", "nullable": False},
        {"name": "b", "type": "TIMESTAMP(3) WITH TIME ZONE", "nullable": True},
    ]
    assert (external["format"], external["locations"], external["if_not_exists"]) == ("JSON", ["/data/t/"], True)
    assert "skip" in str(external["options"])
    explain = one("EXPLAIN ANALYZE SELECT a FROM kv")
    assert explain["analyze"] is True
    assert explain["inner"]["kind"] == "query"  # type: ignore[index]
    assert explain["tables"] == ["kv"]
    assert one("SELECT * FROM read_parquet('/etc/x')")["table_functions"] == ["read_parquet"]
    assert one("-- a note\nSELECT 'é' AS a ;  ")["text"] == "SELECT 'é' AS a"


@pytest.mark.parametrize(
    ("text", "line"),
    [("SELEC 1", 1), ("SELECT 1;\n\nSELECT * FORM kv WHERE", 3), ("SELECT 'open", 1), ("SELECT (1", 1)],
)
def test_errors_say_where(text: str, line: int) -> None:
    with pytest.raises(SqlError) as raised:
        sql_parse(text)
    assert raised.value.line == line
    assert raised.value.column > 0
    assert "Line" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 100_000 + "1" + ")" * 100_000,
        "SELECT 1" + "+1" * 500_000,
        "SELECT " + "NOT " * 200_000 + "true",
        "SELECT " + "- " * 500_000 + "1",
        "SELECT 1" + " OR true" * 100_000,
        "SELECT 1" + " UNION ALL SELECT 1" * 50_000,
        "SELECT * FROM " + "(SELECT * FROM " * 30_000 + "kv" + ")" * 30_000,
        "SELECT * FROM kv" + " JOIN kv USING (key)" * 40_000,
        "SELECT a" + "::int" * 200_000,
        "SELECT " + "CASE WHEN true THEN " * 40_000 + "1" + " END" * 40_000,
        "SELECT " + "a." * 400_000 + "a",
        "SELECT a" + "[1]" * 300_000,
        "x" * (2 << 20),
        "SELECT 1;" * 100_000,
        "EXPLAIN " * 100_000 + "SELECT 1",
        "\0" * 1_000_000,
        "'" * 999_999,
        "/*" * 500_000,
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(SqlError):
        sql_parse(text[: 2 << 20])


def test_a_long_text_that_is_not_nested_is_parsed() -> None:
    numbers = ",".join(str(number) for number in range(150_000))
    assert one(f"SELECT 1 WHERE 1 IN ({numbers})")["kind"] == "query"
