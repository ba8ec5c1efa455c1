"""`jobctl sql`: one statement, and the dialogue on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs import Client
from jobs.cli.statements import Scanner
from jobs.testing import EmbeddedNode
from tests.support.jobctl import jobctl
from tests.support.terminal import Terminal


def shown(node: EmbeddedNode, *arguments: str, stdin: bytes | None = None, code: int = 0) -> str:
    done = jobctl(node, "sql", *arguments, stdin=stdin)
    assert done.returncode == code, done.stderr
    return (done.stdout if code == 0 else done.stderr).decode()


def test_a_table_is_for_people(sql_node: EmbeddedNode) -> None:
    text = shown(sql_node, "SELECT 1 AS n, 'a' AS name, NULL AS nothing UNION ALL SELECT 200, 'bcd', 'x' ORDER BY 1")
    assert text.splitlines()[:4] == [
        "  n  name  nothing",
        "---  ----  -------",
        "  1  a     NULL",
        "200  bcd   x",
    ]
    assert re.fullmatch(r"\(2 rows, \d+\.\d{3} s\)", text.splitlines()[4])


def test_a_value_cannot_steer_the_terminal(sql_node: EmbeddedNode) -> None:
    text = shown(sql_node, "SELECT chr(27) || '[2Jx' || chr(10) || 'y' AS bad")
    assert "\x1b" not in text
    assert "[2Jx⏎y" in text


def test_formats_are_for_programs(sql_node: EmbeddedNode, tmp_path: Path) -> None:
    query = "SELECT 1 AS a, 'x' AS b"
    assert [json.loads(line) for line in shown(sql_node, query, "--json").splitlines()] == [{"a": 1, "b": "x"}]
    assert json.loads(shown(sql_node, "--format", "json", query)) == {"a": 1, "b": "x"}
    assert shown(sql_node, query, "--format", "csv") == '"a","b"\n1,"x"\n'
    for format_ in ("parquet", "arrow"):
        path = tmp_path / f"out.{format_}"
        assert shown(sql_node, query, "--format", format_, "-o", str(path)) == ""
        data = BytesIO(path.read_bytes())
        table = pa.parquet.read_table(data) if format_ == "parquet" else pa.ipc.open_stream(data).read_all()
        assert table.to_pylist() == [{"a": 1, "b": "x"}]
    piped = jobctl(sql_node, "sql", query, "--format", "arrow").stdout
    assert pa.ipc.open_stream(BytesIO(piped)).read_all().num_rows == 1


def test_parameters_files_and_input(sql_node: EmbeddedNode, tmp_path: Path) -> None:
    assert json.loads(shown(sql_node, "SELECT $1 AS a, $2 AS b", "--param", "7", "--param", "o'b", "--json")) == {
        "a": 7,
        "b": "o'b",
    }
    assert json.loads(shown(sql_node, "SELECT $x AS a", "--named", 'x="7"', "--json")) == {"a": "7"}
    assert json.loads(shown(sql_node, "-", "--json", stdin=b"SELECT 1 AS a")) == {"a": 1}
    assert json.loads(shown(sql_node, "--json", stdin=b"SELECT 2 AS a")) == {"a": 2}
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2\n")
    assert json.loads(shown(sql_node, "SELECT a + b AS c FROM t", "--table", f"t={file}", "--json")) == {"c": 3}
    assert "its name has to end as" in shown(sql_node, "SELECT 1", "--table", f"t={tmp_path}/x.txt", code=2)
    assert "not both" in shown(sql_node, "SELECT 1", "--param", "1", "--named", "a=1", code=2)


def test_what_fails_has_its_code(sql_node: EmbeddedNode) -> None:
    assert shown(sql_node, "SELECT nam FROM kv", code=1).startswith("jobctl: line 1, column 8, near nam: ")
    endless = (
        "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value < b.value"
    )
    assert "longer than" in shown(sql_node, endless, "--timeout", "500ms", code=124)
    assert "allows" in shown(sql_node, "SELECT 1", "--memory", "100T", code=65)
    assert "max_rows" in shown(sql_node, "SELECT * FROM generate_series(1, 10)", "--max-rows", "5", code=1)


def test_statements_that_write_say_what_they_did(sql_node: EmbeddedNode) -> None:
    assert shown(sql_node, "CREATE TABLE cli AS SELECT 1 AS a") == "table cli created, 1 row\n"
    assert shown(sql_node, "INSERT INTO cli VALUES (2), (3)") == "2 rows inserted into cli\n"
    assert shown(sql_node, "DROP TABLE cli") == "table cli dropped\n"
    assert shown(sql_node, "DROP TABLE IF EXISTS cli") == "nothing to do for table cli\n"


def test_explain_is_readable(sql_node: EmbeddedNode) -> None:
    text = shown(sql_node, "EXPLAIN SELECT key FROM kv WHERE key = '/data/a'")
    assert text.startswith("-- logical_plan\n")
    assert "\n-- physical_plan\n" in text


@pytest.fixture
def dialogue(sql_node: EmbeddedNode, tmp_path: Path) -> Terminal:
    return start(sql_node, tmp_path)


def start(node: EmbeddedNode, state: Path) -> Terminal:
    env = {**os.environ, "JOBS_SOCKET": str(node.socket), "TERM": "xterm", "XDG_STATE_HOME": str(state)}
    return Terminal([sys.executable, "-m", "jobs.cli.main", "sql"], env)


def wait_for(terminal: Terminal, text: str) -> None:
    """Wait until the text was written, and forget what was written up to then."""
    terminal.until(lambda shown: text.encode() in shown.seen)
    terminal.seen = terminal.seen[terminal.seen.index(text.encode()) + len(text.encode()) :]


def interrupt(terminal: Terminal) -> None:
    """Press Ctrl-C until there is a prompt: Python's `input` misses one that comes between its own prompt and the
    moment from which it waits for keys."""
    pressed_s = 0.0

    def prompts(shown: Terminal) -> bool:
        nonlocal pressed_s
        if time.monotonic() > pressed_s + 1:
            pressed_s = time.monotonic()
            shown.type("\x03")
        return b"jobs=> " in shown.seen

    terminal.until(prompts)
    wait_for(terminal, "jobs=> ")


def test_the_dialogue_runs_statements_over_several_lines(dialogue: Terminal, sql_client: Client) -> None:
    sql_client.sql("CREATE EXTERNAL TABLE listed (cola INT) STORED AS JSON LOCATION '/data/listed/'")
    with dialogue as terminal:
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT 40 + 2\n")
        wait_for(terminal, "jobs-> ")
        terminal.type("AS answer, ';' AS semicolon;\n")
        wait_for(terminal, "answer  semicolon")
        wait_for(terminal, "42  ;")
        wait_for(terminal, "jobs=> ")
        terminal.type("\\d\n")
        wait_for(terminal, "listed")
        wait_for(terminal, "jobs=> ")
        terminal.type("\\d listed\n")
        wait_for(terminal, "cola")
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT nonsense;\n")
        wait_for(terminal, "jobs=> ")
        terminal.type("\\format json\n")
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT 1 AS one; SELECT 2 AS two;\n")
        wait_for(terminal, '{"one":1}')
        wait_for(terminal, '{"two":2}')
        wait_for(terminal, "jobs=> ")
        terminal.type("\\q\n")
        assert terminal.end() == 0
        assert "near nonsense" in terminal.errors()
    sql_client.sql("DROP TABLE listed")


def test_ctrl_c_ends_a_query_and_not_the_dialogue(dialogue: Terminal, sql_client: Client) -> None:
    with dialogue as terminal:
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT half of a\n")
        wait_for(terminal, "jobs-> ")
        interrupt(terminal)
        product = "generate_series(1, 1000000) a, generate_series(1, 1000000) b"
        terminal.type(f"SELECT count(*) FROM {product} WHERE a.value * b.value % 7 = 3;\n")
        running = None
        while running is None:
            running = next(iter(sql_client.list(state="running", type="sql")), None)
        interrupt(terminal)
        assert sql_client.wait(running.id, 10).reason == "cancelled"
        terminal.type("SELECT 1 AS one;\n")
        wait_for(terminal, "(1 row, ")
        wait_for(terminal, "jobs=> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_the_dialogue_remembers_and_completes(sql_node: EmbeddedNode, tmp_path: Path) -> None:
    with start(sql_node, tmp_path) as terminal:
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT 'remembered' AS it;\n")
        wait_for(terminal, "(1 row, ")
        wait_for(terminal, "jobs=> ")
        terminal.type("SELECT create_rev\t FROM kv LIMIT 0;\n")
        wait_for(terminal, "create_revision")
        wait_for(terminal, "(0 rows, ")
        wait_for(terminal, "jobs=> ")
        terminal.type("\\q\n")
        assert terminal.end() == 0
    history = tmp_path / "jobs" / "sql_history"
    assert "SELECT 'remembered' AS it;" in history.read_text().splitlines()
    assert history.stat().st_mode & 0o077 == 0
    with start(sql_node, tmp_path) as terminal:
        wait_for(terminal, "jobs=> ")
        terminal.type("\x1b[A\x1b[A\x1b[A\n")
        wait_for(terminal, "remembered")
        wait_for(terminal, "(1 row, ")
        terminal.type("\\q\n")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("text", "statements", "rest"),
    [
        ("SELECT 1;", ["SELECT 1"], ""),
        ("SELECT 1", [], "SELECT 1"),
        ("SELECT ';'; SELECT \";\" ; x", ["SELECT ';'", 'SELECT ";"'], " x"),
        ("SELECT 'it''s;' ; -- a; b\nSELECT 2;", ["SELECT 'it''s;'", "-- a; b\nSELECT 2"], ""),
        ("/* ; */ SELECT 1; -- done;", ["/* ; */ SELECT 1"], " -- done;"),
        ("SELECT 'open;", [], "SELECT 'open;"),
        (";;  ;", [], ""),
        ("-- only; a comment\n;", [], ""),
    ],
)
def test_statements_end_at_semicolons_outside_of_strings(text: str, statements: list[str], rest: str) -> None:
    assert Scanner(text).split() == (statements, rest)
